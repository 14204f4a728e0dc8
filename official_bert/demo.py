r"""The main job, end to end and small: real text to a finetuned BERT in a quarter of an hour.

Text -> vocabulary -> TFRecord shards of lengths 128 and 512 -> two pretraining phases with LANS
-> SavedModel -> question answering finetuned with BlockNormalizedAdamW, from the pretrained
weights and from random ones -> a table and report.html.

The default text is the docstrings of the installed packages, and the default questions are cut
from them: a demonstration that the whole way works, not a benchmark. --corpus, --squad_train
and --squad_dev put the user's own in their place. That text has one sentence on each line and a
blank line after each document; --split_sentences, --document_boundary and --text_field say so where
it is otherwise.
"""

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import BinaryIO

from absl import flags

from tfrecords import command, limits, text_flags
from tfrecords.errors import UserError

PHASES = ("bert_tiny_phase1.yaml", "bert_tiny_phase2.yaml")
SEQ_LENGTHS = (128, 512)
VOCAB_SIZE = 8192
DOCSTRINGS = "the docstrings of the installed Python packages"
# Chosen, as the rate below, by looking at the dev questions: after 150 steps the pretrained weights
# still scored below random ones, from 250 on above them. The margin is a selected one.
FINETUNE_STEPS = 400
# A model this narrow takes a higher rate than the finetuning command's default.
FINETUNE_FLAGS = ("--seq_length=128", "--doc_stride=64", "--learning_rate=3e-3")

FLAGS = flags.FlagValues()
flags.DEFINE_string("work_dir", "demo", "Folder of everything the demo writes.", flag_values=FLAGS)
flags.DEFINE_string(
    "corpus", "", "Text files, such as 'dir/*.txt'; empty: docstrings.", flag_values=FLAGS
)
text_flags.define(FLAGS)
flags.DEFINE_bool(
    "split_sentences", False, "A line of --corpus is a paragraph, to be split into sentences.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_string("squad_train", "", "SQuAD v1.1 file to finetune on.", flag_values=FLAGS)
flags.DEFINE_string("squad_dev", "", "SQuAD v1.1 file to score on.", flag_values=FLAGS)
flags.DEFINE_string("phase1", PHASES[0], "Recipe of phase 1, length 128.", flag_values=FLAGS)
flags.DEFINE_string("phase2", PHASES[1], "Recipe of phase 2, length 512.", flag_values=FLAGS)
flags.DEFINE_integer(
    "finetune_steps", FINETUNE_STEPS, "Steps of each finetuning.", flag_values=FLAGS
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One command of the demonstration.

    Attributes:
      title: what it does, for the screen.
      module: the command's module.
      arguments: its flags.
      output: a path that exists when the stage is done and need not run again; empty for
        commands that find out themselves.
    """

    title: str
    module: str
    arguments: Sequence[str]
    output: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Layout:
    """Where everything lies below the work folder."""

    root: str

    def path(self, *names: str) -> str:
        """A path below the work folder."""
        return os.path.join(self.root, *names)

    @property
    def vocabulary(self) -> str:
        """The vocabulary's file."""
        return self.path("vocab.txt")

    @property
    def log(self) -> str:
        """What TensorFlow and the stages print on standard error."""
        return self.path("demo.log")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """What the demonstration works on.

    Attributes:
      corpus: text files, as `tfrecords.build --input` takes them.
      text_format: flags of what its documents are, for the vocabulary and the shards.
      split_sentences: whether its lines are paragraphs.
      squad_train: questions to finetune on.
      squad_dev: questions to score on.
      own_text: whether all of these are the user's, so that no docstrings are needed.
      phases: recipes of the two pretraining phases.
      finetune_steps: steps of each of the two finetunings.
    """

    corpus: str
    text_format: tuple[str, ...]
    split_sentences: bool
    squad_train: str
    squad_dev: str
    own_text: bool
    phases: tuple[str, str]
    finetune_steps: int


def stages(layout: Layout, inputs: Inputs) -> list[Stage]:
    """The commands in order, as a user would type them."""
    return [
        *([] if inputs.own_text else [docstrings_stage(layout)]),
        *data_stages(layout, inputs),
        *pretraining_stages(layout, inputs),
        *finetuning_stages(layout, inputs),
        report_stage(layout, inputs),
    ]


def docstrings_stage(layout: Layout) -> Stage:
    """Text and questions, for those who give none."""
    return Stage(
        title="text: docstrings of the installed packages, and questions cut from them",
        module="official_bert.docstrings",
        arguments=[f"--output_dir={layout.root}"],
        output=layout.path("questions", "dev.json"),
    )


def data_stages(layout: Layout, inputs: Inputs) -> list[Stage]:
    """From text to shards."""
    return [
        Stage(
            title="vocabulary",
            module="tfrecords.vocabulary",
            arguments=[
                f"--input={inputs.corpus}",
                *inputs.text_format,
                f"--vocab_size={VOCAB_SIZE}",
                f"--output={layout.vocabulary}",
            ],
            output=layout.vocabulary,
        ),
        Stage(
            title=f"TFRecord shards of lengths {' and '.join(map(str, SEQ_LENGTHS))}",
            module="tfrecords.build",
            arguments=[
                f"--input={inputs.corpus}",
                *inputs.text_format,
                *(["--split_sentences"] if inputs.split_sentences else []),
                f"--vocab_file={layout.vocabulary}",
                f"--output_dir={layout.path('shards')}",
                f"--seq_lengths={','.join(map(str, SEQ_LENGTHS))}",
                "--num_shards=8",
                "--dupe_factor=1",
                f"--num_processes={limits.cores()}",
                "--eval_fraction=0.02",
            ],
        ),
    ]


def pretraining_stages(layout: Layout, inputs: Inputs) -> list[Stage]:
    """From shards to a SavedModel."""
    return [
        Stage(
            title="pretraining with LANS, phase 1 (length 128) and phase 2 (length 512)",
            module="official_bert.pretrain",
            arguments=[
                f"--phase1={inputs.phases[0]}",
                f"--phase2={inputs.phases[1]}",
                f"--input_path={layout.path('shards')}",
                f"--model_dir={layout.path('pretraining')}",
            ],
        ),
        Stage(
            title="export of the encoder as a SavedModel",
            module="official_bert.export",
            arguments=[
                "--format=saved_model",
                f"--model_dir={layout.path('pretraining', 'phase2')}",
                f"--output_dir={layout.path('export')}",
            ],
            output=layout.path("export", "encoder"),
        ),
    ]


def finetuning_stages(layout: Layout, inputs: Inputs) -> list[Stage]:
    """The same questions from the pretrained weights and from random ones."""
    questions = [
        "--task=squad",
        f"--train_file={inputs.squad_train}",
        f"--dev_file={inputs.squad_dev}",
        f"--train_steps={inputs.finetune_steps}",
        *FINETUNE_FLAGS,
    ]
    return [
        Stage(
            title="finetuning from the pretrained weights",
            module="official_bert.finetune",
            arguments=[
                *questions,
                f"--init_checkpoint={layout.path('pretraining', 'phase2')}",
                f"--model_dir={layout.path('finetuned')}",
            ],
        ),
        Stage(
            title="the same finetuning from random weights",
            module="official_bert.finetune",
            arguments=[
                *questions,
                f"--config_file={inputs.phases[1]}",
                f"--vocab_file={layout.vocabulary}",
                f"--model_dir={layout.path('finetuned_from_random')}",
            ],
        ),
    ]


def report_stage(layout: Layout, inputs: Inputs) -> Stage:
    """The table and the page of curves."""
    source = DOCSTRINGS if inputs.corpus.startswith(layout.root) else inputs.corpus
    return Stage(
        title="report",
        module="official_bert.demo_report",
        arguments=[f"--work_dir={layout.root}", f"--source={source}"],
    )


def run_stage(stage: Stage, log: str) -> None:
    """Runs a stage as a process of its own; what it says on standard error goes to `log`.

    Raises:
      UserError: the stage failed; the message is its own last line.
      KeyboardInterrupt: Ctrl-C, after which the stage has saved what it had and ended; after a
        second one it was ended at once.
    """
    with open(log, "ab") as stream:
        start = stream.tell()
        command_line = [sys.executable, "-m", stage.module, *stage.arguments]
        stream.write(f"\n$ {' '.join(command_line)}\n".encode())
        stream.flush()
        code = _exit_code(command_line, stream)
    if code == command.SUCCESS:
        return
    if code == command.INTERRUPTED:
        raise KeyboardInterrupt
    with open(log, encoding="utf-8", errors="replace") as text:
        text.seek(start)
        lines = [line.strip() for line in text if line.strip()]
    reasons = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    reason = (reasons or lines)[-1]
    raise UserError(f"{stage.module} ended with exit code {code}: {reason} (all of it: {log})")


def _exit_code(command_line: Sequence[str], stderr: BinaryIO) -> int:
    """Runs a command to its end, which after Ctrl-C is when it has saved."""
    process = subprocess.Popen(command_line, stderr=stderr)
    try:
        return process.wait()
    except KeyboardInterrupt:
        # The terminal has told the stage too, and `subprocess.run` would kill it while it saves.
        print("   the stage saves and ends; Ctrl-C once more ends it at once", flush=True)
        process.wait()
        raise
    finally:
        process.kill()


def inputs_from(flag_values: flags.FlagValues, layout: Layout) -> Inputs:
    """What the flags name, and below the work folder what they leave out.

    Raises:
      UserError: one file of questions of two, or a format without the text that has it.
    """
    if bool(flag_values.squad_train) != bool(flag_values.squad_dev):
        raise UserError("give both --squad_train and --squad_dev (make: SQUAD_TRAIN, SQUAD_DEV)")
    formats = [flag_values[name] for name in ("document_boundary", "text_field", "split_sentences")]
    given = {flag.name: flag.serialize() for flag in formats if flag.value != flag.default}
    if given and not flag_values.corpus:
        raise UserError(
            f"{' '.join(given.values())} is about the text of --corpus, which is empty; give both"
        )
    return Inputs(
        corpus=flag_values.corpus or layout.path("text", "*.txt"),
        text_format=tuple(text for name, text in given.items() if name != "split_sentences"),
        split_sentences=flag_values.split_sentences,
        squad_train=flag_values.squad_train or layout.path("questions", "train.json"),
        squad_dev=flag_values.squad_dev or layout.path("questions", "dev.json"),
        own_text=bool(flag_values.corpus and flag_values.squad_train),
        phases=(flag_values.phase1, flag_values.phase2),
        finetune_steps=flag_values.finetune_steps,
    )


def body(flag_values: flags.FlagValues) -> None:
    """Runs every stage that is not done yet; the last one prints the table."""
    started = time.monotonic()
    layout = Layout(root=flag_values.work_dir)
    inputs = inputs_from(flag_values, layout)
    os.makedirs(layout.root, exist_ok=True)
    for stage in stages(layout, inputs):
        if stage.output and os.path.exists(stage.output):
            print(f"== {stage.title}: there already ({stage.output})")
            continue
        begun = time.monotonic()
        print(f"== {stage.title}", flush=True)
        run_stage(stage, layout.log)
        print(f"   {time.monotonic() - begun:.0f} s", flush=True)
    print(f"  all stages: {(time.monotonic() - started) / 60:.1f} minutes")
    print(f"  TensorFlow's own messages: {layout.log}")


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see the module's docstring."""
    return command.run(body, FLAGS, argv)


if __name__ == "__main__":
    sys.exit(main())
