"""Runs that end early and go on: their command, and whether anything shows in the end."""

import pathlib

import numpy as np
import tensorflow as tf

from official_bert import checkpoints, metrics_log

SCHEDULE = "trainer__optimizer_config__learning_rate__warmup_constant_decay__"
STEPS = 12


def tensors(model_dir: pathlib.Path) -> dict[str, np.ndarray]:
    """Of the last checkpoint; how often a run was saved is its own affair."""
    reader = tf.train.load_checkpoint(str(model_dir))
    names = reader.get_variable_to_shape_map()
    return {
        name: reader.get_tensor(name)
        for name in names
        if "save_counter" not in name and "OBJECT_GRAPH" not in name
    }


def assert_same_run(model_dir: pathlib.Path, whole: pathlib.Path) -> None:
    """Every logged number, every weight and every moment, bit for bit."""
    for name in (metrics_log.METRICS, metrics_log.EVALUATIONS):
        assert (model_dir / name).read_text() == (whole / name).read_text()
    found, expected = tensors(model_dir), tensors(whole)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].tobytes() == value.tobytes(), name


def keep_oldest(model_dir: pathlib.Path, count: int) -> list[int]:
    """Leaves the first checkpoints of a run, as a kill would have; their steps."""
    found = checkpoints.listed(str(model_dir))
    checkpoints.write_list(str(model_dir), found[:count])
    for prefix in found[count:]:
        for path in model_dir.glob(f"{pathlib.Path(prefix).name}.*"):
            path.unlink()
    return [int(prefix.rpartition("-")[2]) for prefix in found[:count]]


def arguments(model_dir: pathlib.Path, tiny_arguments, *overrides: str) -> list[str]:
    config_file, data = tiny_arguments
    bert = "task.model.encoder.bert"
    text = [data, f"{bert}.dropout_rate=0.1,{bert}.attention_dropout_rate=0.1"]
    text += [f"trainer.train_steps={STEPS},trainer.max_to_keep=3", *overrides]
    return [
        f"--config_file={config_file}",
        f"--model_dir={model_dir}",
        f"--params_override={','.join(text)}",
    ]
