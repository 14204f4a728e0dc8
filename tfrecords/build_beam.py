r"""Writes BERT pretraining shards from raw text with Apache Beam, on one machine or on many.

    python -m tfrecords.build_beam --input 'gs://bucket/text/*.txt' --vocab_file vocab.txt \
        --output_dir gs://bucket/shards --seq_lengths 128,512 --num_shards 1536 \
        -- --runner=DataflowRunner --project=... --region=... --temp_location=gs://bucket/tmp

It takes the flags of `python -m tfrecords.build`, without --num_processes, and writes the same
bytes. After ``--`` come the options of Beam, such as --runner; by default it is the DirectRunner,
in this process. All workers must see the text and the output folder under the same names.
"""

import copy
import functools
import importlib
import os
import shlex
import sys
from collections.abc import Sequence
from types import ModuleType

from absl import flags

from tfrecords import build, command, pipeline
from tfrecords.errors import UserError

FLAGS = copy.deepcopy(build.FLAGS)
del FLAGS.num_processes
flags.DEFINE_multi_string(
    "pipeline_options", [], "Options of Beam in one string, as an alternative to --.",
    flag_values=FLAGS,
)  # fmt: skip


def body(flag_values: flags.FlagValues) -> None:
    """Builds the folder that the flags ask for."""
    beam_pipeline = _beam_pipeline()
    root = beam_pipeline.root_of(flag_values.pipeline_options)
    output_dir = flag_values.output_dir
    # Workers need not run where this process does.
    folder = output_dir if "://" in output_dir else os.path.abspath(output_dir)
    plan, identity = pipeline.make_plan(
        flag_values.input,
        build.vocabulary_from(flag_values),
        folder,
        build.options_from(flag_values),
        flag_values.strict,
    )
    execute = functools.partial(beam_pipeline.execute, root=root)
    build.report(pipeline.carry_out(plan, identity, execute))


def _beam_pipeline() -> ModuleType:
    # Here, since Beam is an extra, without which --help still works.
    try:
        return importlib.import_module("tfrecords.beam_pipeline")
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] != "apache_beam":
            raise
        raise UserError(
            "Apache Beam is not installed; pip install '.[beam]' in a clone, or build on this "
            "machine with python -m tfrecords.build"
        ) from error


def main(argv: Sequence[str] | None = None) -> int:
    """The command; `argv` without the program's name, None for this process's own."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if "--" in arguments:
        at = arguments.index("--")
        arguments[at:] = [f"--pipeline_options={shlex.join(arguments[at + 1 :])}"]
    return command.run(body, FLAGS, arguments)


if __name__ == "__main__":
    sys.exit(main())
