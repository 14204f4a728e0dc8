"""From a plan to the YAML that `official_bert.train` takes, and the model that it starts from."""

import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from official.core import config_definitions

from official_bert import configuration, device_table, experiments, plan_steps, preflight
from official_bert.device_table import Device
from official_bert.plan_steps import Phase
from tf_lans.recipes import LANS_96K_33K
from tfrecords import files
from tfrecords.errors import UserError

# Layers and width of google-research/bert's models; 64 numbers a head, a dense layer 4 times wide.
SIZES = {
    "tiny": (2, 128),
    "mini": (4, 256),
    "small": (4, 512),
    "medium": (8, 512),
    "base": (12, 768),
    "large": (24, 1024),
}
VOCAB_SIZE = 30522
_HEAD_WIDTH, _POSITIONS = 64, 512
_CHECKPOINTS, _LOOP, _LONG = 35, 10, 10_000
_EVALUATED = {True: 64, False: 32}
_WIDTH = 98
# Of `runtime`: what the planned devices decide, or make meaningless.
_OF_THE_DEVICES = {
    "all_reduce_alg",
    "distribution_strategy",
    "loss_scale",
    "mixed_precision_dtype",
    "num_gpus",
    "tpu",
}

Recipe = dict[str, Any]


def sized(name: str, vocab_size: int, positions: int) -> Recipe:
    """The `task.model` of a size, as a recipe with nothing else.

    Args:
        name: one of `SIZES`.
        vocab_size: entries of the vocabulary.
        positions: tokens of the longest row; at least 512 are kept.
    """
    layers, hidden = SIZES[name]
    encoder = {
        "vocab_size": vocab_size,
        "hidden_size": hidden,
        "num_layers": layers,
        "num_attention_heads": hidden // _HEAD_WIDTH,
        "intermediate_size": 4 * hidden,
        "max_position_embeddings": max(_POSITIONS, positions),
    }
    head = {
        "inner_dim": hidden,
        "num_classes": 2,
        "activation": "tanh",
        "dropout_rate": 0.1,
        "name": "next_sentence",
    }
    model = {"encoder": {"type": "bert", "bert": encoder}, "cls_heads": [head]}
    return {"task": {"model": model}}


def find_model(
    name: str, vocab_size: int | None, positions: int, default_vocab_size: int = VOCAB_SIZE
) -> Recipe:
    """The recipe that a plan changes: a size, a packaged recipe or a file.

    Args:
        name: `--model`.
        vocab_size: of the model; None for what a recipe says.
        positions: tokens of the longest row.
        default_vocab_size: of a size where `vocab_size` is None.

    Raises:
        UserError: there is no such size or file, or it is no recipe.
    """
    if name in SIZES:
        return sized(name, vocab_size or default_vocab_size, positions)
    path = configuration.find_config(name)
    try:
        found = yaml.safe_load(files.read_bytes(path))
    except FileNotFoundError as error:
        raise UserError(
            f"--model is {name!r}; expected one of {', '.join(SIZES)}, the name of a packaged "
            "recipe such as bert_large_phase1.yaml, or a YAML file"
        ) from error
    except yaml.YAMLError as error:
        raise UserError(f"{name} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(found, dict):
        raise UserError(f"{name} holds no field: value pairs; expected a recipe")
    if vocab_size is None:
        return found
    kind = _at(found, "task", "model", "encoder").get("type") or "bert"
    encoder = {"type": kind, kind: {"vocab_size": vocab_size}}
    return _merged(found, {"task": {"model": {"encoder": encoder}}})


def optimizer_of(base: Recipe) -> str:
    """The optimizer of a recipe where the rules know it, otherwise LANS."""
    chosen = _at(base, "trainer", "optimizer_config", "optimizer").get("type")
    return chosen if chosen in plan_steps.RECIPES else "lans"


def fill(base: Recipe, phase: Phase, device: Device, optimizer: str, shards: str = "") -> Recipe:
    """The recipe of one phase: the base, with everything that the plan decides.

    Args:
        base: from `find_model`. Its model, its settings of the planned optimizer, and what the
            plan says nothing of stay.
        phase: the plan.
        device: says precision and strategy.
        optimizer: "lans" or "lamb".
        shards: the folder of the examples; "" leaves it open.
    """
    cut = phase.cut
    is_tpu = device.platform == device_table.TPU
    loop = _LOOP if phase.steps >= (_LOOP**2 if is_tpu else _LONG) else 1
    checkpoints = max(1, round(_one_digit(phase.steps / _CHECKPOINTS) / loop)) * loop
    wanted = _EVALUATED[phase.seq_length <= plan_steps.LAST_OF_PHASE_1]
    data = {"input_path": shards} if shards else {}
    settings = _at(base, "trainer", "optimizer_config", "optimizer", optimizer)
    runtime = {
        name: value for name, value in _at(base, "runtime").items() if name not in _OF_THE_DEVICES
    }
    return _merged(
        {**base, "runtime": runtime},
        {
            "task": {
                "micro_batch_size": cut.micro_batch,
                "train_data": {
                    **data,
                    "seq_length": phase.seq_length,
                    "global_batch_size": cut.global_batch,
                },
                "validation_data": {
                    **data,
                    "seq_length": phase.seq_length,
                    "global_batch_size": -(-wanted // cut.replicas) * cut.replicas,
                },
            },
            "trainer": {
                "train_steps": phase.steps,
                "steps_per_loop": loop,
                "summary_interval": _LOOP,
                "checkpoint_interval": checkpoints,
                "validation_interval": 5 * checkpoints,
                "optimizer_config": None,
            },
        },
        {
            "trainer": {"optimizer_config": _optimizer_config(phase, optimizer, settings)},
            "runtime": {
                **plan_steps.strategy(device, cut.replicas, cut.workers),
                "mixed_precision_dtype": device.precision,
                **({"loss_scale": "dynamic"} if device.precision == "float16" else {}),
            },
        },
    )


def _optimizer_config(phase: Phase, optimizer: str, settings: Mapping[str, Any]) -> Recipe:
    schedule = {
        "peak_learning_rate": phase.rate,
        "warmup_ratio": phase.warmup_ratio,
        "constant_ratio": phase.constant_ratio,
    }
    return {
        "optimizer": {
            "type": optimizer,
            optimizer: dict(settings) or dict(LANS_96K_33K.optimizer_arguments),
        },
        "learning_rate": {
            "type": "warmup_constant_decay",
            "warmup_constant_decay": schedule,
        },
    }


def _one_digit(value: float) -> float:
    return float(f"{value:.0e}")


def _at(recipe: Mapping[str, Any], *keys: str) -> Mapping[str, Any]:
    for key in keys:
        below = recipe.get(key)
        recipe = below if isinstance(below, dict) else {}
    return recipe


def _merged(base: Recipe, *changes: Recipe) -> Recipe:
    """Nested dictionaries, later ones winning; None clears what was there."""
    found = dict(base)
    for change in changes:
        for key, value in change.items():
            below = found.get(key)
            is_section = isinstance(value, dict) and isinstance(below, dict)
            found[key] = _merged(below or {}, value) if is_section else value
    return found


class _Dumper(yaml.SafeDumper):
    """YAML without anchors: a list that two fields share is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        """True: nothing becomes an anchor."""
        del data
        return True


def text(recipe: Recipe, head: Sequence[str]) -> str:
    """The file: a comment and the fields in their order.

    Args:
        recipe: the fields.
        head: the comment's lines.
    """
    comment = "\n".join(f"# {line}".rstrip() for line in head)
    fields = yaml.dump(recipe, Dumper=_Dumper, sort_keys=False, width=_WIDTH)
    return f"{comment}\n{fields}"


def load(content: str) -> config_definitions.ExperimentConfig:
    """The config of a recipe's text, its names and types checked as `official_bert.train` does.

    Raises:
        UserError: a field or a value that it does not take.
    """
    experiments.register()
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "plan.yaml")
        files.write_text(path, content)
        try:
            return configuration.load(experiments.PRETRAINING, [path])
        except UserError as error:
            raise UserError(str(error).replace(f"{path}: ", "the planned recipe: ")) from error


def check(params: config_definitions.ExperimentConfig, phase: Phase) -> None:
    """Refuses a plan that training would refuse, but for shards that are not named yet.

    Raises:
        UserError: the first problem of `preflight`.
    """
    found = preflight.problems(
        params, "train_and_eval", workers=phase.cut.workers, replicas=phase.cut.replicas
    )
    for problem in found:
        if not isinstance(problem, preflight.NoShards):
            raise UserError(problem)
