"""Shards of real English that every Python carries, and a model small enough to train here."""

import pathlib
import pydoc_data.topics
from collections.abc import Callable

import pytest
import tf_keras
from official.core import config_definitions

import tfrecords
import tfrecords.build
import tfrecords.vocabulary
from official_bert import configuration, experiments
from tests.bert import pretrained_runs, tiny_squad

# Helpers that compare show in what two values differ, as tests do.
pytest.register_assert_rewrite("tests.bert.predictions", "tests.bert.resumed_runs")

VOCAB_SIZE = 1024
SHORT, LONG = 32, 64

TINY = f"""
task:
  model:
    encoder:
      bert:
        vocab_size: {VOCAB_SIZE}
        hidden_size: 32
        num_layers: 2
        num_attention_heads: 2
        intermediate_size: 64
        max_position_embeddings: {LONG}
        dropout_rate: 0.0
        attention_dropout_rate: 0.0
    cls_heads:
      - {{inner_dim: 32, num_classes: 2, activation: tanh, dropout_rate: 0.0, name: next_sentence}}
  train_data: {{seq_length: {SHORT}, global_batch_size: 32}}
  validation_data: {{seq_length: {SHORT}, global_batch_size: 32}}
trainer:
  train_steps: 6
  steps_per_loop: 2
  summary_interval: 2
  checkpoint_interval: 2
  validation_interval: 4
  validation_steps: 2
  optimizer_config:
    optimizer: {{type: lans}}
    learning_rate:
      type: warmup_constant_decay
      warmup_constant_decay: {{peak_learning_rate: 0.05, warmup_steps: 2, constant_steps: 2}}
"""


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """CPython's language reference at lengths 32 and 64, four shards a length."""
    root = tmp_path_factory.mktemp("shards")
    topics = "\n".join(text for _, text in sorted(pydoc_data.topics.topics.items()))
    lines = [line.strip() for line in topics.split("\n") if line.strip()]
    documents = ["\n".join(lines[start : start + 15]) for start in range(0, len(lines), 15)]
    (root / "text.txt").write_text("\n\n".join(documents), encoding="utf-8")
    assert not tfrecords.vocabulary.main(
        [f"--input={root / 'text.txt'}", f"--vocab_size={VOCAB_SIZE}", f"--output={root / 'v.txt'}"]
    )
    assert not tfrecords.build.main(
        [
            f"--input={root / 'text.txt'}",
            f"--vocab_file={root / 'v.txt'}",
            f"--output_dir={root / 'shards'}",
            f"--seq_lengths={SHORT},{LONG}",
            "--num_shards=4",
            "--dupe_factor=1",
            "--num_processes=1",
            "--eval_fraction=0.1",
        ]
    )
    return root / "shards"


@pytest.fixture(scope="session")
def tiny_yaml(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("configs") / "tiny.yaml"
    path.write_text(TINY)
    return str(path)


@pytest.fixture(scope="session")
def tiny_arguments(shards: pathlib.Path, tiny_yaml: str) -> tuple[str, str]:
    """The tiny experiment for another process: its config file and the override of its data."""
    parts = ("train_data", "validation_data")
    return tiny_yaml, ",".join(f"task.{part}.input_path={shards}" for part in parts)


@pytest.fixture(scope="session")
def tiny(
    shards: pathlib.Path, tiny_yaml: str
) -> Callable[..., config_definitions.ExperimentConfig]:
    """Makes the tiny experiment's config; keyword arguments become `--params_override`s."""
    experiments.register()

    def make(**overrides: object) -> config_definitions.ExperimentConfig:
        pairs = {
            "task.train_data.input_path": shards,
            "task.validation_data.input_path": shards,
        } | {name.replace("__", "."): value for name, value in overrides.items()}
        text = ",".join(f"{name}={value}" for name, value in pairs.items())
        return configuration.load(experiments.PRETRAINING, [tiny_yaml], text)

    return make


@pytest.fixture(scope="session")
def pretrained_run(
    tiny: Callable[..., config_definitions.ExperimentConfig],
    shards: pathlib.Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> pathlib.Path:
    """A pretraining run's folder as one leaves it, with weights as large as trained ones."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    pretrained_runs.write(tiny(), shards, folder)
    return folder


@pytest.fixture(scope="session")
def published_bert(
    pretrained_run: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    """The run's model as a BERT is published on Hugging Face."""
    # Not at the top: it imports KerasHub, which takes seconds and few tests need.
    from official_bert.export import __main__ as export

    output = tmp_path_factory.mktemp("published") / "bert"
    assert not export.main(
        ["--format=huggingface", f"--model_dir={pretrained_run}", f"--output_dir={output}"]
    )
    return output


@pytest.fixture(scope="session")
def squad_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Small questions and a pretraining run, which the tests of predictions finetune and ask."""
    return tiny_squad.make_folder(tmp_path_factory.mktemp("predict"))


@pytest.fixture
def _nothing_to_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs that build nothing leave nothing to clear, which takes seconds."""
    monkeypatch.setattr(tf_keras.backend, "clear_session", lambda: None)
