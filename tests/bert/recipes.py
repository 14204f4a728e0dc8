"""Packaged recipes with some fields changed."""

import yaml

from official_bert import configuration, experiments

ENCODER = "task.model.encoder.bert"
OPTIMIZER = "trainer.optimizer_config.optimizer"


def load(*pairs: str, recipe: str = "bert_tiny_phase1.yaml"):
    experiments.register()
    return configuration.load(experiments.PRETRAINING, [recipe], ",".join(pairs))


def nested(field: str, value: object) -> str:
    """A field and its value as YAML, for values that a.b=c cannot say."""
    for name in reversed(field.split(".")):
        value = {name: value}
    return yaml.safe_dump(value)
