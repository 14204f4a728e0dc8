r"""Does pretraining pay? The same finetuning from our pretrained weights and from random ones.

    python -m benchmarks.transfer --work_dir=transfer \
        --corpus='../shared/data/novels/*.txt,../shared/data/wikitext-2/*.sentences.txt' \
        --sst2_dir=../shared/data/sst-2 \
        --squad_train=../shared/data/squad/squadshifts_new_wiki_v1.0.json \
        --squad_dev=../shared/data/squad/xquad.en.json --output=benchmarks/results/transfer

Every stage is one of the commands that README names, in a process of its own. Killed and started
again it goes on where it stood. Each task is finetuned with every seed and rate from both starting
points; the rate of each starting point is the one with the best median over the seeds.
"""

from __future__ import annotations

import json
import pathlib
import re
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from absl import flags

from benchmarks import machine, markdown_part, provenance, transfer_report, whole_files
from benchmarks.transfer_report import PRETRAINED, RANDOM, Arm, Task
from official_bert import configuration, demo, report, run_summary, sweep
from tfrecords import command
from tfrecords.errors import UserError

PHASES = ("bert_mini_phase1.yaml", "bert_mini_phase2.yaml")
SEQ_LENGTHS = (64, 256)
# Each task starts from the phase whose rows have its length.
_PHASES_OF_TASKS = {"sst2": "phase1", "squad": "phase2"}
_MODULE = "benchmarks.transfer"

FLAGS = flags.FlagValues()
flags.DEFINE_string("work_dir", "transfer", "Folder of all runs.", flag_values=FLAGS)
flags.DEFINE_string("corpus", None, "Text files to pretrain on.", required=True, flag_values=FLAGS)
flags.DEFINE_string(
    "sst2_dir", "", "Folder of SST-2's train.tsv and dev.tsv; empty: leave it out.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_string("squad_train", "", "SQuAD file to finetune on.", flag_values=FLAGS)
flags.DEFINE_string("squad_dev", "", "SQuAD file to score on.", flag_values=FLAGS)
flags.DEFINE_string("phase1", PHASES[0], "Recipe of phase 1, length 64.", flag_values=FLAGS)
flags.DEFINE_string("phase2", PHASES[1], "Recipe of phase 2, length 256.", flag_values=FLAGS)
flags.DEFINE_integer("vocab_size", 8192, "As the recipes have it.", flag_values=FLAGS)
flags.DEFINE_string("seeds", "3", "As `finetune` takes it.", flag_values=FLAGS)
flags.DEFINE_list(
    "sst2_learning_rates", ["3e-4"], "Rates tried from both starting points.", flag_values=FLAGS
)
flags.DEFINE_list(
    "squad_learning_rates", ["3e-4"], "Rates tried from both starting points.", flag_values=FLAGS
)
flags.DEFINE_float("sst2_epochs", 1.0, "Passes over SST-2.", flag_values=FLAGS)
flags.DEFINE_float("squad_epochs", 1.0, "Passes over the SQuAD file.", flag_values=FLAGS)
flags.DEFINE_string("output", None, "Writes OUTPUT.json.", flag_values=FLAGS)
flags.DEFINE_string(
    "document", None, "Markdown file whose generated part is replaced.", flag_values=FLAGS
)

_RUN = re.compile(r"rate-(?P<rate>[^-]+(?:-\d+)?)-seed-(?P<seed>\d+)")
_PACKAGES = ("tensorflow", "tf-keras", "tf-models-official", "numpy", "tf-lans")


def pretraining_stages(layout: demo.Layout, flag_values: flags.FlagValues) -> list[demo.Stage]:
    """Text to a pretrained model."""
    vocabulary, shards = layout.path("vocab.txt"), layout.path("shards")
    return [
        demo.Stage(
            title="vocabulary",
            module="tfrecords.vocabulary",
            arguments=[
                f"--input={flag_values.corpus}",
                f"--vocab_size={flag_values.vocab_size}",
                f"--output={vocabulary}",
            ],
            output=vocabulary,
        ),
        demo.Stage(
            title="TFRecord shards",
            module="tfrecords.build",
            arguments=[
                f"--input={flag_values.corpus}",
                f"--vocab_file={vocabulary}",
                f"--output_dir={shards}",
                f"--seq_lengths={','.join(map(str, SEQ_LENGTHS))}",
                *("--records=dynamic", "--num_shards=8", "--dupe_factor=1", "--split_sentences"),
                *("--num_processes=2", "--eval_fraction=0.01"),
            ],
        ),
        demo.Stage(
            title="pretraining",
            module="official_bert.pretrain",
            arguments=[
                f"--phase1={flag_values.phase1}",
                f"--phase2={flag_values.phase2}",
                f"--input_path={shards}",
                f"--model_dir={layout.path('pretrained')}",
            ],
        ),
    ]


def _start(layout: demo.Layout, starting_point: str, phase2: str, task: str) -> list[str]:
    if starting_point == PRETRAINED:
        # From random weights the pooler is new anyway; the one that learnt next sentences in a
        # short run is saturated.
        new_pooler = ["--new_pooler"] if task == "sst2" else []
        checkpoint = layout.path("pretrained", _PHASES_OF_TASKS[task])
        return [f"--init_checkpoint={checkpoint}", *new_pooler]
    return [f"--config_file={phase2}", f"--vocab_file={layout.path('vocab.txt')}", "--lower_case"]


def finetuning_stages(layout: demo.Layout, flag_values: flags.FlagValues) -> list[demo.Stage]:
    """Both tasks, where their data was given, from both starting points."""
    tasks: dict[str, list[str]] = {}
    if flag_values.sst2_dir:
        tasks["sst2"] = [
            *("--task=glue", "--glue_task=sst-2", f"--data_dir={flag_values.sst2_dir}"),
            *("--seq_length=64", f"--epochs={flag_values.sst2_epochs:g}"),
            f"--learning_rates={','.join(flag_values.sst2_learning_rates)}",
        ]
    if flag_values.squad_train:
        tasks["squad"] = [
            *("--task=squad", f"--train_file={flag_values.squad_train}"),
            f"--dev_file={flag_values.squad_dev}",
            *("--seq_length=256", "--doc_stride=128", f"--epochs={flag_values.squad_epochs:g}"),
            f"--learning_rates={','.join(flag_values.squad_learning_rates)}",
        ]
    return [
        demo.Stage(
            title=f"{task} from {starting_point} weights",
            module="official_bert.finetune",
            arguments=[
                *arguments,
                f"--seeds={flag_values.seeds}",
                *_start(layout, starting_point, flag_values.phase2, task),
                f"--model_dir={layout.path(f'{task}_{starting_point}')}",
            ],
        )
        for task, arguments in tasks.items()
        for starting_point in (PRETRAINED, RANDOM)
    ]


def read_arm(folder: pathlib.Path, starting_point: str, metric: str) -> Arm:
    """The scores that a finetuning sweep left, by rate and seed.

    Raises:
        UserError: there are none.
    """
    scores: dict[str, dict[int, float]] = {}
    for path in sorted(folder.glob("rate-*-seed-*/eval_metrics.json")):
        match = _RUN.fullmatch(path.parent.name)
        if match:
            value = json.loads(path.read_text())[metric]
            scores.setdefault(match["rate"], {})[int(match["seed"])] = float(value)
    if not scores:
        raise UserError(f"{folder} holds no finished run; expected rate-*-seed-*/eval_metrics.json")
    return Arm(starting_point=starting_point, scores=scores)


def check_tries(arms: Sequence[Arm], title: str) -> None:
    """Refuses starting points that were given unequal tries: the best of more is better by chance.

    An earlier call may have left other rates or seeds in the work folder, or a run diverged.

    Raises:
        UserError: a rate of one has other seeds than another rate, or than in the other arm.
    """
    tries = [{(rate, seed) for rate in arm.scores for seed in arm.scores[rate]} for arm in arms]
    rates, seeds = ({each[part] for one in tries for each in one} for part in (0, 1))
    wanted = {(rate, seed) for rate in rates for seed in seeds}
    if any(each != wanted for each in tries):
        listed = ",".join(sorted(rates, key=float))
        lacking = ", ".join(
            f"{sweep.folder(float(rate), seed)} from {arm.starting_point} weights"
            for arm, found in zip(arms, tries, strict=True)
            for rate, seed in sorted(wanted - found)
        )
        raise UserError(
            f"{title}: not both starting points have all rates and seeds: no score of {lacking}; "
            f"run again with the rates {listed} and --seeds={','.join(map(str, sorted(seeds)))}, "
            "or move what is too much out of the work folder"
        )


def read_tasks(layout: demo.Layout) -> list[Task]:
    """What the finetunings that lie in the work folder scored.

    Raises:
        UserError: a task's starting points were given unequal tries.
    """
    tasks = []
    for name, metric, title in transfer_report.TASKS:
        runs = name.partition("_")[0]
        folders = [pathlib.Path(layout.path(f"{runs}_{each}")) for each in (PRETRAINED, RANDOM)]
        if all(folder.is_dir() for folder in folders):
            arms = [
                read_arm(folder, each, metric)
                for folder, each in zip(folders, (PRETRAINED, RANDOM), strict=True)
            ]
            check_tries(arms, title)
            tasks.append(Task(name=name, title=title, pretrained=arms[0], random=arms[1]))
    return tasks


def read_phase(layout: demo.Layout, number: int) -> dict[str, Any]:
    """What a pretraining phase took and reached."""
    folder = layout.path("pretrained", f"phase{number}")
    run = run_summary.Run.load(folder)
    data = configuration.read_saved(folder)["task"]["train_data"]
    last = run.evaluations[-1]
    speed = pathlib.Path(folder, "speed.jsonl").read_text().splitlines()
    length = data["seq_length"]
    return {
        "seq_length": length,
        "steps": run.last_step,
        "examples": run.last_step * data["global_batch_size"],
        "training_seconds": round(sum(json.loads(line)["seconds"] for line in speed), 1),
        "held_out_masked_lm_loss": last["masked_lm_loss"],
        "held_out_masked_lm_accuracy": last["masked_lm_accuracy"],
        "most_frequent_token_accuracy": report.most_frequent_token_accuracy(
            layout.path("shards"), length
        ),
    }


def known(output: str | None) -> dict[str, Any]:
    """What OUTPUT.json has from before; nothing where there is no such file.

    Raises:
        UserError: it is not what this command writes.
    """
    path = pathlib.Path(f"{output}.json")
    if not output or not path.exists():
        return {}
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not JSON of this command: {error}; move it away") from error
    if not isinstance(figures, dict):
        raise UserError(f"{path} is not JSON of this command; move it away")
    return figures


def read_figures(
    layout: demo.Layout,
    stages: Sequence[demo.Stage],
    heading: dict[str, Any],
    before: dict[str, Any],
) -> dict[str, Any]:
    """What lies in the work folder, as it goes into the JSON file.

    Args:
        layout: of the work folder.
        stages: what was run, or had been run before.
        heading: of this call, which a row takes over that `before` has not.
        before: what `known` found: its rows keep the heading that they were measured with.
    """

    def in_words(command_line: str) -> str:
        return command_line.replace(layout.root, "WORK_DIR")

    rows = {
        "pretraining": [read_phase(layout, number) for number in (1, 2)],
        "tasks": [task.as_json() for task in read_tasks(layout)],
    }
    return {
        **heading,
        "command": in_words(heading["command"]),
        "stages": [
            in_words(shlex.join(["python", "-m", stage.module, *stage.arguments]))
            for stage in stages
        ],
        **{
            part: provenance.stamped(found, before.get(part, []), before, heading)
            for part, found in rows.items()
        },
    }


def body(flag_values: flags.FlagValues) -> None:
    """Runs what is not done yet, then reports."""
    if bool(flag_values.squad_train) != bool(flag_values.squad_dev):
        raise UserError("give both --squad_train and --squad_dev")
    if flag_values.document:
        markdown_part.check(flag_values.document, _MODULE)
    if flag_values.output:
        whole_files.check(f"{flag_values.output}.json")
    before = known(flag_values.output)
    heading = {
        **machine.heading(_MODULE),
        "processor": machine.processor(),
        "versions": machine.versions(_PACKAGES),
    }
    layout = demo.Layout(root=flag_values.work_dir)
    pathlib.Path(layout.root).mkdir(parents=True, exist_ok=True)
    stages = pretraining_stages(layout, flag_values) + finetuning_stages(layout, flag_values)
    for stage in stages:
        print(f"== {stage.title}", flush=True)
        if not (stage.output and pathlib.Path(stage.output).exists()):
            demo.run_stage(stage, layout.log)
    figures = read_figures(layout, stages, heading, before)
    text = transfer_report.table(figures)
    print(text)
    if flag_values.output:
        whole_files.write_json(f"{flag_values.output}.json", figures)
    if flag_values.document:
        markdown_part.write(flag_values.document, _MODULE, text)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see the module's docstring."""
    return command.run(body, FLAGS, argv)


if __name__ == "__main__":
    sys.exit(main())
