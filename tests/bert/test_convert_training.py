"""Pretraining and finetuning start from a converted BERT as from the run itself."""

import pathlib

import numpy as np
import pytest
from official.nlp.configs import encoders

from official_bert import (
    checkpoints,
    configuration,
    convert,
    experiments,
    metrics_log,
    starting_point,
    train,
)
from official_bert.export import source
from tests.bert.conftest import VOCAB_SIZE
from tfrecords.errors import UserError


@pytest.fixture(scope="module")
def converted(
    published_bert: pathlib.Path, tmp_path_factory: pytest.TempPathFactory
) -> pathlib.Path:
    output = tmp_path_factory.mktemp("converted") / "bert"
    assert not convert.main(["--from=huggingface", str(published_bert), f"--output_dir={output}"])
    return output


def test_pretraining_goes_on_from_it_as_from_the_run(
    converted: pathlib.Path, pretrained_run: pathlib.Path, tiny_arguments, tmp_path: pathlib.Path
) -> None:
    """Four steps with the next-sentence loss: the same numbers as from the checkpoint itself."""
    config, override = tiny_arguments
    logs = []
    for start in (converted, pretrained_run):
        run = tmp_path / f"run{len(logs)}"
        more = f"{override},task.init_checkpoint={start},trainer.train_steps=4"
        arguments = [f"--config_file={config}", f"--params_override={more}", "--mode=train"]
        assert not train.main([*arguments, f"--model_dir={run}"])
        logs.append(metrics_log.read(run / metrics_log.METRICS))
    assert len(logs[0]) == 4
    for ours, theirs in zip(*logs, strict=True):
        for name in ("loss", "masked_lm_loss", "next_sentence_loss", "gradient_norm"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-6), name


def test_another_vocabulary_size_is_refused_with_the_override(
    converted: pathlib.Path, tiny_arguments, tmp_path: pathlib.Path, capsys
) -> None:
    config, override = tiny_arguments
    more = f"{override},task.init_checkpoint={converted},task.model.encoder.bert.vocab_size=1030"
    arguments = [f"--config_file={config}", f"--params_override={more}", "--mode=train"]
    assert train.main([*arguments, f"--model_dir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err
    assert "task.model.encoder.bert.vocab_size is 1030" in error
    assert f"--params_override=task.model.encoder.bert.vocab_size={VOCAB_SIZE}" in error
    assert f"--config_file={converted}/params.yaml" in error


def test_the_sizes_can_be_taken_over_from_its_params(converted: pathlib.Path, tiny_yaml) -> None:
    params = configuration.load(
        experiments.PRETRAINING, [tiny_yaml, str(converted / "params.yaml")]
    )
    assert params.task.model.encoder.get().vocab_size == VOCAB_SIZE
    assert params.trainer.train_steps == 6


def test_an_encoder_with_fewer_layers_is_refused(converted: pathlib.Path, tiny) -> None:
    params = tiny(task__model__encoder__bert__num_layers=1)
    encoder = encoders.build_encoder(params.task.model.encoder)
    before = [variable.numpy() for variable in encoder.variables]
    with pytest.raises(UserError, match=r"another architecture.*39 variables, the config's 23"):
        checkpoints.restore_encoder(starting_point.find(str(converted)).checkpoint, encoder)
    for array, variable in zip(before, encoder.variables, strict=True):
        np.testing.assert_array_equal(array, variable)


def test_finetuning_starts_from_it(converted: pathlib.Path, pretrained_run: pathlib.Path) -> None:
    start = starting_point.find(str(converted))
    encoder = encoders.build_encoder(start.encoder)
    checkpoints.restore_encoder(start.checkpoint, encoder)
    trained = source.load(str(pretrained_run)).model.encoder_network
    for ours, theirs in zip(encoder.variables, trained.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs, err_msg=ours.name)
