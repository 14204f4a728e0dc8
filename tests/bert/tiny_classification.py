"""Sentences that a small model tells apart in seconds, and command lines to finetune on them."""

import json
import pathlib
from collections.abc import Sequence

import numpy as np
import pytest
import yaml

from official_bert import finetune
from tests.bert.test_glue import write
from tests.bert.tiny_squad import ENCODER, make_folder

SEQ_LENGTH = 24
COLOURS = ("red", "blue", "green")


def sentences(count: int) -> tuple[list[str], list[str]]:
    """Sentences of many lengths whose label is the one colour they name."""
    generator = np.random.default_rng(0)
    filling = ["the", "of", "is", "and", "in", "box", "lamp", "chair", "door"]
    texts, labels = [], []
    for number in range(count):
        words = list(generator.choice(filling, generator.integers(1, 21)))
        label = COLOURS[number % 3]
        words[generator.integers(len(words))] = label
        texts.append(" ".join(words))
        labels.append(label)
    return texts, labels


def make_files(root: pathlib.Path) -> pathlib.Path:
    """A pretraining run, labelled CSV files, a config with dropout, and a GLUE folder."""
    make_folder(root)
    texts, labels = sentences(96)
    for name in ("train.csv", "dev.csv"):
        # 70 dev rows fill up no batch of 16.
        kept = 70 if name == "dev.csv" else 96
        lines = [f"{text},{label}" for text, label in zip(texts, labels, strict=True)][:kept]
        (root / name).write_text("text,colour\n" + "\n".join(lines) + "\n")
    encoder = {**ENCODER, "dropout_rate": 0.1, "attention_dropout_rate": 0.1}
    config = yaml.safe_load((root / "small.yaml").read_text())
    config["task"]["model"]["encoder"]["bert"] = encoder
    (root / "dropout.yaml").write_text(yaml.safe_dump(config))
    pairs = [("the red box", "a lamp", "1"), ("the door", "the chair is blue", "0")]
    write(root / "MRPC", "mrpc", pairs * 6)
    firsts, seconds = texts[:12], texts[12:24]
    scored = [(a, b, str(n % 6)) for n, (a, b) in enumerate(zip(firsts, seconds, strict=True))]
    write(root / "STS-B", "sts-b", scored)
    write(root / "MNLI", "mnli", [(a, b, "neutral") for a, b, _ in pairs])
    return root


def command_line(
    folder: pathlib.Path, model_dir: str, *more: str, task: Sequence[str] | None = None
) -> list[str]:
    files = [f"--train_file={folder / 'train.csv'}", f"--dev_file={folder / 'dev.csv'}"]
    return [
        *(task or ["--task=classify", *files, "--text_column=text", "--label_column=colour"]),
        f"--model_dir={folder / model_dir}",
        "--batch_size=16",
        f"--seq_length={SEQ_LENGTH}",
        "--learning_rate=1e-3",
        "--num_lengths=2",
        *more,
    ]


def from_scratch(folder: pathlib.Path, config: str = "small.yaml") -> list[str]:
    return [f"--config_file={folder / config}", f"--vocab_file={folder / 'vocab.txt'}"]


def glue(folder: pathlib.Path, name: str) -> list[str]:
    return ["--task=glue", f"--glue_task={name}", f"--data_dir={folder}"]


def losses(run: pathlib.Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (run / "metrics.jsonl").open()]


def failed(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that a finetuning ends with which the user has to change."""
    capsys.readouterr()
    assert finetune.main(arguments) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    return errors[0]
