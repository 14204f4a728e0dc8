r"""Trains one experiment on the TF Model Garden, with Model Garden's own flags.

Example::

  python -m official_bert.train --experiment=bert/large_batch_pretraining \
    --config_file=bert_tiny_phase1.yaml \
    --params_override=task.train_data.input_path=shards,task.validation_data.input_path=shards \
    --mode=train_and_eval --model_dir=run/phase1

Run again with the same flags, it continues from the newest checkpoint in --model_dir, and ends
as if it had not been interrupted. After SIGTERM or SIGHUP it saves at the next step boundary and
exits with 42, which means: start me again. After Ctrl-C it saves too and exits with 130; a second
one ends it at once.
"""

import sys
from collections.abc import Sequence

from absl import flags

from official_bert import (
    cluster,
    configuration,
    devices,
    experiments,
    interruption,
    preflight,
    run_data,
    runner,
)

FLAGS = flags.FlagValues()
configuration.define_flags(FLAGS, experiments.PRETRAINING)
flags.DEFINE_enum("mode", "train_and_eval", runner.MODES, "What to run.", flag_values=FLAGS)
flags.DEFINE_string(
    "model_dir", None, "Folder of the run.", required=True, flag_values=FLAGS
)  # fmt: skip
run_data.define_flags(FLAGS)
interruption.define_flags(FLAGS)


def body(flag_values: flags.FlagValues, stop: interruption.StopRequest) -> None:
    """Loads the config, checks it against the data, and runs it."""
    experiments.register()
    params = configuration.load(
        flag_values.experiment, flag_values.config_file, flag_values.params_override
    )
    mode, model_dir = flag_values.mode, flag_values.model_dir
    preflight.check(params, mode, model_dir)
    # Before anything is computed: TensorFlow wants a strategy over several workers first of all.
    strategy = devices.build_strategy(params.runtime)
    worker = cluster.this_worker(strategy)
    result = runner.run(
        params,
        model_dir,
        mode,
        strategy=strategy,
        stop=stop,
        repartition=flag_values.repartition,
    )
    if not worker.is_chief:
        return
    print(f"{model_dir}: step {result.global_step}")
    for name, value in result.evaluation.items():
        print(f"  {name} {value:.4f}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see the module's docstring."""
    return interruption.exit_code(body, FLAGS, argv)


if __name__ == "__main__":
    sys.exit(main())
