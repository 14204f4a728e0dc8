r"""Writes the demonstration's corpus and question set from the docstrings of installed packages.

Example::

  python -m official_bert.docstrings --output_dir=data

Leaves `data/text/*.txt` (a sentence a line, an empty line after a document: what
`tfrecords.build` reads) and `data/questions/train.json` and `dev.json` (SQuAD v1.1: what
`official_bert.finetune` reads).
"""

import os
import sys
from collections.abc import Sequence

from absl import flags

from official_bert import docstring_corpus, docstring_questions, docstring_sources
from tfrecords import command

TEXT, QUESTIONS = "text", "questions"

FLAGS = flags.FlagValues()
flags.DEFINE_string("output_dir", None, "Folder to write to.", required=True, flag_values=FLAGS)
flags.DEFINE_list(
    "packages", list(docstring_sources.DEFAULT_PACKAGES), "Import names to take the text from.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_list(
    "train_packages", list(docstring_questions.TRAIN_PACKAGES), "Packages to train on.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_list(
    "dev_packages", list(docstring_questions.DEV_PACKAGES), "Packages to evaluate on.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_integer(
    "max_train_questions", 3_000, "The most questions in train.json.", flag_values=FLAGS
)
flags.DEFINE_integer(
    "max_dev_questions", 1_000, "The most questions in dev.json.", flag_values=FLAGS
)
flags.DEFINE_integer("seed", 0, "Which questions are asked, and how.", flag_values=FLAGS)


def body(flag_values: flags.FlagValues) -> None:
    """Writes both."""
    questions = docstring_questions.write_questions(
        os.path.join(flag_values.output_dir, QUESTIONS),
        flag_values.train_packages,
        flag_values.dev_packages,
        max_train_questions=flag_values.max_train_questions,
        max_dev_questions=flag_values.max_dev_questions,
        seed=flag_values.seed,
    )
    print(f"questions: {questions}")
    corpus = docstring_corpus.write_corpus(
        os.path.join(flag_values.output_dir, TEXT), flag_values.packages
    )
    print(f"text: {corpus}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see the module's docstring."""
    return command.run(body, FLAGS, argv)


if __name__ == "__main__":
    sys.exit(main())
