r"""Exports a pretraining run for use elsewhere.

Example::

  python -m official_bert.export --format=saved_model --model_dir=run/phase2 --output_dir=export

writes `export/encoder`, which `tf.saved_model.load` and `hub.KerasLayer` (in tf_keras) call with
a dict of `input_word_ids`, `input_mask`, `input_type_ids`.
"""

import sys
from collections.abc import Sequence

from absl import flags

from official_bert import experiments
from official_bert.export import saved_model
from tfrecords import command

FORMATS = {"saved_model": saved_model.export}

FLAGS = flags.FlagValues()
flags.DEFINE_enum("format", "saved_model", sorted(FORMATS), "What to write.", flag_values=FLAGS)
flags.DEFINE_string("model_dir", None, "Pretraining run.", required=True, flag_values=FLAGS)
flags.DEFINE_string("output_dir", None, "Folder to write.", required=True, flag_values=FLAGS)


def body(flag_values: flags.FlagValues) -> None:
    """Exports and says where."""
    experiments.register()
    write = FORMATS[flag_values.format]
    print(f"exported {write(flag_values.model_dir, flag_values.output_dir)}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see the module's docstring."""
    return command.run(body, FLAGS, argv)


if __name__ == "__main__":
    sys.exit(main())
