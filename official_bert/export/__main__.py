r"""Writes a pretrained BERT in a format that other programs load.

Example::

  python -m official_bert.export --format=huggingface --model_dir=run/phase2 --output_dir=export

Formats: `saved_model` for TensorFlow, TF Hub and TensorFlow Serving; `keras_hub`, a preset for
KerasHub's `from_preset`; `huggingface`, a folder for `from_pretrained` of transformers.
--model_dir is a pretraining run, a folder of official_bert.convert, or any Model Garden BERT
checkpoint. Where no folder says them, --config_file says the size, --vocab_file the vocabulary and
--lower_case the casing.
"""

import os
import sys
from collections.abc import Sequence

from absl import flags

from official_bert.export import (
    architecture,
    hugging_face,
    keras_hub,
    output,
    saved_model,
    source,
)
from tfrecords import command

FORMATS = {
    "saved_model": saved_model.export,
    "keras_hub": keras_hub.export,
    "huggingface": hugging_face.export,
}

FLAGS = flags.FlagValues()
flags.DEFINE_enum("format", "saved_model", sorted(FORMATS), "What to write.", flag_values=FLAGS)
flags.DEFINE_string(
    "model_dir", None, "Pretraining run, converted folder, or checkpoint prefix.", required=True,
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_string("output_dir", None, "Folder to write.", required=True, flag_values=FLAGS)
flags.DEFINE_bool(
    "overwrite", False, "Replace an earlier export in --output_dir.", flag_values=FLAGS
)
flags.DEFINE_string(
    "config_file", "", "Recipe or params.yaml with the model's size; needed only where "
    "--model_dir has no params.yaml.", flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_string(
    "vocab_file", "", "WordPiece vocabulary; empty: the run's own.", flag_values=FLAGS
)
flags.DEFINE_bool(
    "lower_case", None, "Casing of the text; unset: the run's own, or cased if the vocabulary has "
    "capitals.", flag_values=FLAGS,
)  # fmt: skip


def body(flag_values: flags.FlagValues) -> None:
    """Exports, and says where and how large."""
    output.check_free(flag_values.output_dir, flag_values.overwrite)
    output.check_apart(flag_values.output_dir, flag_values.model_dir)
    pretrained = source.load(
        flag_values.model_dir,
        flag_values.config_file,
        flag_values.vocab_file,
        flag_values.lower_case,
    )
    form, target = flag_values.format, flag_values.output_dir
    about = {"format": form, "checkpoint": os.path.basename(pretrained.checkpoint)}
    with output.folder(target, flag_values.overwrite, about) as folder:
        FORMATS[form](pretrained, folder)
    parameters = architecture.num_parameters(pretrained.model)
    print(
        f"exported {pretrained.checkpoint} to {target}: {output.size(target) / 1e6:.1f} MB; its "
        f"{parameters:,} weights of 4 bytes are {4 * parameters / 1e6:.1f} MB"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see the module's docstring."""
    return command.run(body, FLAGS, argv)


if __name__ == "__main__":
    sys.exit(main())
