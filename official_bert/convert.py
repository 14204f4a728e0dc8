r"""Turns a published BERT into a checkpoint that training and finetuning start from.

Example::

  python -m official_bert.convert --from=huggingface bert-base-uncased --output_dir=base
  python -m official_bert.train --config_file=recipe.yaml --config_file=base/params.yaml \
    --params_override=task.init_checkpoint=base,... --model_dir=run
  python -m official_bert.finetune --init_checkpoint=base ...

Reads folders that `save_pretrained` of transformers or `save_to_preset` of KerasHub wrote, ours
among them, and writes the weights, `params.yaml` with the model's size, `vocab.txt` and the casing.
Shards to train on are built with that vocabulary: tfrecords.build --vocab_file=base/vocab.txt.
"""

import json
import os
import sys
from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tf_keras
import yaml
from absl import flags, logging

from official_bert import configuration, experiments, input
from official_bert.export import architecture, hugging_face, keras_hub, output, weight_map
from official_bert.export.incoming import Incoming
from official_bert.export.source import UNTRAINED
from tfrecords import command, files, schema
from tfrecords.errors import UserError

READERS = {"huggingface": hugging_face.read, "keras_hub": keras_hub.read}

FLAGS = flags.FlagValues()
flags.DEFINE_enum(
    "from", None, sorted(READERS), "Which program wrote the folder.", required=True,
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_string("output_dir", None, "Folder to write.", required=True, flag_values=FLAGS)
flags.DEFINE_bool(
    "overwrite", False, "Replace an earlier conversion in --output_dir.", flag_values=FLAGS
)
flags.DEFINE_string(
    "vocab_file", "", "WordPiece vocabulary; empty: the folder's own.", flag_values=FLAGS
)
flags.DEFINE_bool(
    "lower_case", None, "Casing of the text; unset: as the folder says.", flag_values=FLAGS
)
flags.DEFINE_integer("seed", 0, "Draws the heads that the folder lacks.", flag_values=FLAGS)


def fill(model: tf_keras.Model, published: Incoming) -> list[str]:
    """Assigns what was read to a pretrainer.

    Args:
        model: of the size that `published` says.
        published: the weights.

    Returns:
        The heads of which the folder lacked weights, and which keep those they were made with.
    """
    arrays = weight_map.with_pooler_copies(published.arrays)
    variables = architecture.variables(model)
    for name, array in arrays.items():
        variables[name].assign(array)
    missing = [name for name in variables if name not in arrays]
    return [
        head
        for head, prefix in architecture.HEADS.items()
        if any(name.startswith(prefix) for name in missing)
    ]


def write(published: Incoming, folder: str) -> list[str]:
    """Writes the checkpoint of a published BERT with all that belongs to it.

    The checkpoint always has all heads, so that pretraining can start from it.

    Args:
        published: what was read.
        folder: an existing folder to write to.

    Returns:
        The heads that the folder lacked; see `fill`.
    """
    model = architecture.build(published.encoder)
    missing = fill(model, published)
    config = architecture.pretrainer_config(published.encoder)
    # As JSON first, which turns Model Garden's own lists and dictionaries into plain ones.
    model_section = json.loads(json.dumps(config.as_dict()))
    checkpoint = tf.train.Checkpoint(model=model, **model.checkpoint_items)
    tf.train.CheckpointManager(checkpoint, folder, max_to_keep=1).save(checkpoint_number=0)
    contents = {
        configuration.PARAMS_FILE: yaml.safe_dump({"task": {"model": model_section}}),
        input.TOKENIZER_CONFIG: json.dumps({"do_lower_case": published.lower_case}),
    }
    for name, text in contents.items():
        files.write_text(os.path.join(folder, name), text)
    files.write_bytes(os.path.join(folder, schema.VOCABULARY_FILE), published.vocabulary.content)
    return missing


def body(flag_values: flags.FlagValues, folders: Sequence[str]) -> None:
    """Converts the folder that the command line names."""
    if len(folders) != 1:
        raise UserError(
            f"{len(folders)} folders given; expected one: python -m official_bert.convert "
            "--from=huggingface DIR --output_dir=D"
        )
    form = flag_values["from"].value
    source, target = folders[0], flag_values.output_dir
    output.check_free(target, flag_values.overwrite)
    output.check_apart(target, source)
    experiments.register()
    if not tf.io.gfile.isdir(source):
        raise UserError(f"{source} is not a folder; download the model's files into one first")
    published = READERS[form](source, flag_values.vocab_file, flag_values.lower_case)
    for warning in published.warnings:
        logging.warning("%s: %s", source, warning)
    tf_keras.utils.set_random_seed(flag_values.seed)
    about: dict[str, Any] = {"converted_from": form}
    with output.folder(target, flag_values.overwrite, about) as folder:
        missing = write(published, folder)
        about[UNTRAINED] = missing
    if missing:
        logging.warning(
            "%s holds no %s: drawn anew from --seed %d, so untrained",
            source,
            ", no ".join(missing),
            flag_values.seed,
        )
    size = published.encoder
    print(
        f"converted {source} to {target}: {size.num_layers} layers, hidden size "
        f"{size.hidden_size}, {len(published.vocabulary)} word pieces, "
        f"{'uncased' if published.lower_case else 'cased'}"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see the module's docstring."""
    return command.run(body, FLAGS, argv, positional=True)


if __name__ == "__main__":
    sys.exit(main())
