"""Every number of a config has a range, and a field that nothing reads is refused when set."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st
from official.nlp.configs import bert, encoders

from official_bert import devices, preflight, ranges, trainer
from official_bert.input import PretrainDataConfig
from official_bert.pretraining_task import LargeBatchPretrainConfig
from tests.bert.recipes import ENCODER, OPTIMIZER, load, nested
from tfrecords.errors import UserError

OUT_OF_RANGE = {
    "trainer.train_steps": (0, -3),
    "trainer.steps_per_loop": (0,),
    "trainer.summary_interval": (0,),
    "trainer.checkpoint_interval": (0,),
    "trainer.validation_interval": (0,),
    "trainer.validation_steps": (0, -2),
    "trainer.max_to_keep": (0,),
    "trainer.max_skipped_steps": (0,),
    "task.micro_batch_size": (-1,),
    "task.seed": (-1, 2**32),
    "task.train_data.global_batch_size": (0, -8),
    "task.validation_data.global_batch_size": (0,),
    "task.train_data.seq_length": (0,),
    "task.train_data.seed": (2**63,),
    "task.train_data.masked_lm_prob": (0.0, 1.5, float("nan")),
    "task.train_data.max_predictions_per_seq": (0,),
    "task.train_data.on_corrupt": ("ignore",),
    "task.train_data.corrupt_budget": (-1,),
    f"{ENCODER}.vocab_size": (0,),
    f"{ENCODER}.hidden_size": (0,),
    f"{ENCODER}.num_layers": (0,),
    f"{ENCODER}.num_attention_heads": (0,),
    f"{ENCODER}.intermediate_size": (0,),
    f"{ENCODER}.max_position_embeddings": (0,),
    f"{ENCODER}.type_vocab_size": (0,),
    f"{ENCODER}.embedding_size": (0,),
    f"{ENCODER}.dropout_rate": (1.0, -0.1),
    f"{ENCODER}.attention_dropout_rate": (1.0,),
    f"{ENCODER}.initializer_range": (0.0, float("inf")),
    "task.model.mlm_initializer_range": (-0.02,),
    "runtime.num_gpus": (-1,),
    "runtime.bytes_per_pack": (-1,),
    "runtime.num_packs": (-1,),
    "runtime.task_index": (-2,),
    "runtime.num_workers": (0,),
    "runtime.mixed_precision_dtype": ("half",),
    "runtime.distribution_strategy": ("parameter_server",),
    "runtime.all_reduce_alg": ("tree",),
    "runtime.loss_scale": ("static", 0.0, float("nan")),
}


@pytest.mark.parametrize(
    ("field", "value"),
    [(field, value) for field, values in OUT_OF_RANGE.items() for value in values],
    ids=str,
)
def test_a_value_out_of_range_is_named_with_the_way_out(field: str, value: object) -> None:
    params = load(nested(field, value))
    line = ranges.problems(params, "train_and_eval")[field]
    assert line.startswith(f"{field} is {value!r}; expected ")
    assert "\n" not in line
    # The way out is one: with it the field is in its range.
    way_out = line.split("--params_override=")[1]
    assert way_out.startswith(f"{field}=")
    assert field not in ranges.problems(load(way_out), "train_and_eval")
    with pytest.raises(UserError, match=field.replace(".", r"\.")):
        preflight.check(params, "train_and_eval")


def test_what_a_mode_does_not_read_may_be_anything() -> None:
    params = load("trainer.train_steps=0", "task.train_data.global_batch_size=0")
    assert not ranges.problems(params, "eval")
    assert set(ranges.problems(params, "train")) == {
        "trainer.train_steps",
        "task.train_data.global_batch_size",
    }


def test_heads_and_model_gardens_optimizers_have_ranges_too() -> None:
    heads = [{"inner_dim": 128, "num_classes": 1, "dropout_rate": 1.0, "name": "next_sentence"}]
    found = ranges.problems(load(nested("task.model.cls_heads", heads)), "train")
    assert set(found) == {
        f"task.model.cls_heads[0].{name}" for name in ("num_classes", "dropout_rate")
    }
    found = ranges.problems(
        load(f"{OPTIMIZER}.type=adamw", f"{OPTIMIZER}.adamw.beta_2=1.0"), "train"
    )
    assert set(found) == {f"{OPTIMIZER}.adamw.beta_2"}


CONFIGS = (
    (trainer.TrainerConfig, ranges.TRAINER, ranges.UNREAD_TRAINER),
    (devices.RuntimeConfig, ranges.RUNTIME, ranges.UNREAD_RUNTIME),
    (LargeBatchPretrainConfig, ranges.TASK, ranges.UNREAD_TASK),
    (PretrainDataConfig, ranges.DATA, ranges.UNREAD_DATA),
    (encoders.BertEncoderConfig, ranges.ENCODER, {}),
    (bert.PretrainerConfig, ranges.MODEL, ranges.UNREAD_MODEL),
    (bert.ClsHeadConfig, ranges.HEAD, {}),
)


@pytest.mark.parametrize(
    ("config", "allowed", "unread"), CONFIGS, ids=lambda value: str(value)[:40]
)
def test_every_number_is_in_a_table(config, allowed, unread) -> None:
    fields = {field.name: str(field.type) for field in dataclasses.fields(config)}
    numbers = {name for name, kind in fields.items() if "int" in kind or "float" in kind}
    # output_range is refused whatever it is.
    assert numbers - set(allowed) - set(unread) <= {"output_range"}
    assert set(allowed) <= set(fields) and set(unread) <= set(fields)
    assert not set(allowed) & set(unread)
    for name, entry in allowed.items():
        assert entry.allows(entry.example), name
    defaults = config()
    for name, entry in unread.items():
        assert getattr(defaults, name) in entry.accepted, name


@given(st.integers(), st.floats(allow_nan=True))
def test_ranges_are_what_their_words_say(integer: int, number: float) -> None:
    assert ranges.TRAINER["train_steps"].allows(integer) == (integer >= 1)
    assert ranges.TRAINER["validation_steps"].allows(integer) == (integer >= 1 or integer == -1)
    assert ranges.TASK["micro_batch_size"].allows(integer) == (integer >= 0)
    assert ranges.ENCODER["dropout_rate"].allows(number) == (0 <= number < 1)
    assert ranges.DATA["masked_lm_prob"].allows(number) == (0 < number <= 1)
    assert ranges.ENCODER["initializer_range"].allows(number) == (0 < number < float("inf"))


OTHER = {bool: lambda value: not value, str: lambda value: "x", int: lambda value: value + 7}
OTHER[float] = OTHER[int]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        (path, name)
        for path, table in (
            ("trainer", ranges.UNREAD_TRAINER),
            ("runtime", ranges.UNREAD_RUNTIME),
            ("task", ranges.UNREAD_TASK),
            ("task.model", ranges.UNREAD_MODEL),
            ("task.train_data", ranges.UNREAD_DATA),
            ("task.validation_data", ranges.UNREAD_DATA),
        )
        for name in table
        if name != "differential_privacy_config"
    ],
)
def test_a_field_that_nothing_reads_is_refused_when_set(path: str, name: str) -> None:
    params = load()
    config = params
    for part in path.split("."):
        config = getattr(config, part)
    value = getattr(config, name)
    other = 3 if value is None else OTHER[type(value)](value)
    changed = config.replace(**{name: other})
    *above, last = path.split(".")
    for part in reversed(above):
        changed = getattr(params, part).replace(**{last: changed})
        last = part
    found = list(ranges.unread(params.replace(**{last: changed}), "train_and_eval"))
    assert len(found) == 1
    assert found[0].startswith(f"{path}.{name} is {other!r}, which nothing here reads")
    assert not list(ranges.unread(params, "train_and_eval"))


@pytest.mark.parametrize(
    ("train", "evaluation", "lines"),
    [(True, False, 1), (True, True, 0), (False, True, 0), (False, False, 0)],
)
def test_labels_of_evaluation_alone_are_not_left_out(train, evaluation, lines) -> None:
    params = load(
        f"task.train_data.use_next_sentence_label={train}",
        f"task.validation_data.use_next_sentence_label={evaluation}",
    )
    found = list(ranges.unread(params, "train_and_eval"))
    assert len(found) == lines
    assert all(
        line.startswith("task.validation_data.use_next_sentence_label is False") for line in found
    )
    assert not list(ranges.unread(params, "train"))


def test_an_average_that_our_optimizers_do_not_keep_is_refused() -> None:
    ema = nested("trainer.optimizer_config.ema", {"average_decay": 0.99})
    assert "optimizer_config.ema is set" in next(ranges.unread(load(ema), "train"))
