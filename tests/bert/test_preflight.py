"""Everything is checked before step 1: fields that fit together, batches, shards, disk."""

import json
import pathlib
import shutil
import tempfile
import types

import pytest
from hypothesis import given
from hypothesis import strategies as st
from official.nlp.configs import encoders
from official.nlp.tasks import question_answering
from tensorflow.python.eager import context

import tfrecords
from official_bert import (
    configuration,
    disk_space,
    finetune_plan,
    optimization,
    preflight,
    squad_task,
)
from official_bert.input import PretrainDataConfig
from tests.bert.conftest import SHORT
from tests.bert.recipes import ENCODER, OPTIMIZER, load, nested
from tfrecords.errors import UserError

RECIPES = sorted(path.name for path in pathlib.Path(configuration.CONFIG_FOLDER).glob("*.yaml"))
SCHEDULE = "trainer.optimizer_config.learning_rate"


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipes_lack_nothing_but_their_data(recipe: str) -> None:
    found = list(preflight.problems(load(recipe=recipe), "train_and_eval"))
    assert len(found) == 2
    for line, part in zip(found, ("train_data", "validation_data"), strict=True):
        assert line.startswith(f"task.{part}.input_path is empty")


@pytest.mark.parametrize(
    ("pairs", "words"),
    [
        (["trainer.summary_interval=15"], "multiple of trainer.steps_per_loop 10"),
        ([f"{ENCODER}.num_attention_heads=3"], "hidden_size is 128; expected a multiple"),
        ([f"{ENCODER}.output_range=1"], "output_range is 1; expected null"),
        ([f"{ENCODER}.hidden_activation=gelo"], "hidden_activation is 'gelo'"),
        (["task.model.mlm_activation=gelo"], "mlm_activation is 'gelo'"),
        (
            ["trainer.eval_tf_while_loop=true", "trainer.validation_steps=-1"],
            "validation_steps is -1 and trainer.eval_tf_while_loop True",
        ),
        (
            ["trainer.eval_tf_while_loop=true", "trainer.eval_tf_function=false"],
            "eval_tf_function is False and trainer.eval_tf_while_loop True",
        ),
        (["task.train_data.is_training=false"], "train_data.is_training is False"),
        (
            ["task.validation_data.is_training=true", "trainer.validation_steps=-1"],
            "validation_data.is_training is True, which reads without end",
        ),
        (["task.train_data.max_predictions_per_seq=129"], "at most its seq_length 128"),
        (
            [
                nested(
                    "task",
                    {
                        "model": {"cls_heads": [{"name": "next_sentence", "cls_token_idx": 128}]},
                        "validation_data": {"seq_length": 256},
                    },
                )
            ],
            "cls_token_idx is 128; expected a place in rows of task.train_data.seq_length 128",
        ),
        (["task.train_data.seq_length=513"], "seq_length 513 is longer than the encoder's"),
        (
            ["runtime.distribution_strategy=mirrored", "runtime.all_reduce_alg=ring"],
            "with distribution_strategy mirrored expected nccl or hierarchical_copy",
        ),
        (["runtime.all_reduce_alg=nccl"], "with distribution_strategy one_device expected null"),
        (["runtime.loss_scale=128.0"], "expected it with float16 only"),
        (
            ["runtime.mixed_precision_dtype=float16", f"{OPTIMIZER}.type=adamw"],
            "adamw does not skip a step",
        ),
        (
            ["runtime.mixed_precision_dtype=float16", f"{OPTIMIZER}.lans.skip_nonfinite=false"],
            "skip_nonfinite is False",
        ),
        ([f"{OPTIMIZER}.type=sgd", f"{SCHEDULE}.type=null"], "learning_rate.type is None"),
        ([f"{SCHEDULE}.type=stepwise"], "trainer.optimizer_config"),
        (["task.micro_batch_size=5"], "micro_batch_size is 5; expected 0 or a divisor of the 32"),
        (["task.init_checkpoint=/nowhere"], "no checkpoint at /nowhere"),
    ],
)
def test_fields_that_do_not_fit_together(pairs: list[str], words: str) -> None:
    found = list(preflight.problems(load(*pairs), "train_and_eval"))
    assert [line for line in found if words in line], found
    # Nothing else is wrong with it but the data that the recipe lacks.
    assert len([line for line in found if "input_path is empty" not in line]) == 1, found


@pytest.mark.parametrize("kind", ["bert_v2", "albert", "mobilebert", "sparse_mixer"])
def test_an_encoder_that_the_task_cannot_train_is_named(kind: str) -> None:
    found = list(preflight.problems(load(f"task.model.encoder.type={kind}"), "train_and_eval"))
    assert [line for line in found if f"encoder.type is '{kind}'; expected bert" in line], found


@pytest.mark.parametrize(
    ("heads", "words"),
    [
        ([{"inner_dim": 128, "name": "topic"}], "cls_heads[0].name is 'topic'"),
        ([{"inner_dim": 64, "name": "next_sentence"}], "inner_dim is 64; expected the encoder's"),
        ([{"inner_dim": 128, "num_classes": 3, "name": "next_sentence"}], "num_classes is 3"),
    ],
)
def test_heads_that_the_task_cannot_train(heads: list[dict], words: str) -> None:
    found = list(preflight.problems(load(nested("task.model.cls_heads", heads)), "train"))
    assert [line for line in found if words in line], found


@given(
    size=st.integers(1, 96),
    micro=st.integers(0, 12),
    workers=st.integers(1, 5),
    per_worker=st.integers(1, 4),
)
def test_a_batch_is_refused_just_when_it_cannot_be_cut(size, micro, workers, per_worker) -> None:
    replicas = workers * per_worker
    data = types.SimpleNamespace(global_batch_size=size)
    task = types.SimpleNamespace(train_data=data, micro_batch_size=micro)
    params = types.SimpleNamespace(task=task)
    found = list(preflight.batch_problems(params, "train", workers=workers, replicas=replicas))
    fits = size % replicas == 0 and (micro == 0 or size // replicas % micro == 0)
    assert bool(found) != fits
    assert len(found) <= 1


def test_the_first_problem_of_a_batch_is_raised() -> None:
    params = load(
        "task.train_data.global_batch_size=30", "task.validation_data.global_batch_size=31"
    )
    with pytest.raises(UserError, match="task.train_data: global_batch_size 30 .* 4 workers"):
        preflight.check_batches(params, "train_and_eval", workers=4, replicas=4)
    with pytest.raises(UserError, match="validation_data.global_batch_size is 31; .* such as 32"):
        preflight.check_batches(params, "eval", workers=1, replicas=2)
    preflight.check_batches(params, "train", workers=1, replicas=2)


def test_shards_are_refused_in_the_words_of_the_reader(shards, tiny) -> None:
    manifest = tfrecords.Manifest.load(shards)
    cases = [(1, 24), (3, 24), (1, 1_000_000), (4, 1_000_000)]
    refused = 0
    for workers, batch in cases:
        data = PretrainDataConfig(input_path=str(shards), seq_length=SHORT, global_batch_size=batch)
        said = []
        for worker in range(workers):
            try:
                tfrecords.read(
                    shards,
                    seq_length=SHORT,
                    global_batch_size=batch,
                    num_workers=workers,
                    worker_index=worker,
                )
            except UserError as error:
                said.append(str(error))
        refused += bool(said)
        found = list(preflight.shard_problems(manifest, data, workers))
        assert found == list(dict.fromkeys(said))
    assert 0 < refused < len(cases)
    with pytest.raises(UserError, match="4 shards cannot be dealt out to 3 workers"):
        preflight.check(
            tiny(
                task__train_data__global_batch_size=36, task__validation_data__global_batch_size=36
            ),
            "train_and_eval",
            workers=3,
            replicas=3,
        )


def test_all_problems_are_collected_and_the_first_is_raised(tiny, tmp_path) -> None:
    preflight.check(tiny(), "train_and_eval", str(tmp_path))
    params = tiny(
        trainer__max_to_keep=0,
        task__micro_batch_size=5,
        task__model__encoder__bert__vocab_size=999,
        runtime__run_eagerly=True,
    )
    found = list(preflight.problems(params, "train_and_eval", str(tmp_path)))
    for words in ("max_to_keep is 0", "run_eagerly is True", "micro_batch_size is 5", "999"):
        assert [line for line in found if words in line], words
    with pytest.raises(UserError) as caught:
        preflight.check(params, "train_and_eval")
    assert str(caught.value) == found[0]


def test_labels_in_one_split_only_are_told_before_the_run(tiny, shards, tmp_path) -> None:
    folder = tmp_path / "packed"
    folder.mkdir()
    for path in shards.iterdir():
        (folder / path.name).symlink_to(path)
    stored = json.loads((shards / "manifest.json").read_text())
    (folder / "manifest.json").unlink()
    (folder / "manifest.json").write_text(json.dumps(stored | {"next_sentence": False}))
    params = tiny(task__validation_data__input_path=folder)
    found = list(preflight.problems(params, "train_and_eval"))
    assert len(found) == 1 and "one has next-sentence labels and the other none" in found[0]


def test_a_vocabulary_of_segments_too_small_for_pairs(tiny) -> None:
    params = tiny(task__model__encoder__bert__type_vocab_size=1)
    assert "type_vocab_size is 1" in next(preflight.problems(params, "train"))


def test_the_config_of_a_finetuning_passes(tmp_path) -> None:
    settings = finetune_plan.Settings(model_dir=str(tmp_path))
    task = squad_task.SquadConfig(
        model=question_answering.ModelConfig(encoder=encoders.EncoderConfig(type="bert"))
    )
    for steps in (1, 1000):
        params = finetune_plan.experiment(settings, task, steps)
        assert not list(preflight.problems(params, "train_and_eval", str(tmp_path)))
        assert not list(preflight.warnings(params, "train_and_eval", str(tmp_path)))


def test_nothing_is_computed(tiny, monkeypatch, tmp_path) -> None:
    """A strategy over several workers must be built before TensorFlow computes anything."""

    def refuse(self) -> None:
        raise AssertionError("TensorFlow was started")

    params = tiny()
    config = params.trainer.optimizer_config
    monkeypatch.setattr(context.Context, "ensure_initialized", refuse)
    with pytest.raises(AssertionError, match="was started"):
        optimization.build_optimizer(config, 10)
    preflight.check(params, "train_and_eval", str(tmp_path))
    preflight.check(tiny(**{f"{OPTIMIZER}.type".replace(".", "__"): "adamw"}), "train_and_eval")


def test_a_worker_that_is_not_the_first_needs_room_for_what_it_deletes(tiny, monkeypatch) -> None:
    params = tiny()
    size = disk_space.checkpoint_bytes(params)
    asked = []
    for free, is_refused in ((size, False), (size - 1, True), (None, False)):
        monkeypatch.setattr(
            disk_space, "free_bytes", lambda path, free=free: asked.append(path) or free
        )
        assert bool(disk_space.own_problem(params)) == is_refused
    assert set(asked) == {tempfile.gettempdir()}


def test_a_damaged_shard_passes_where_damage_is_skipped(tiny, shards, tmp_path) -> None:
    """As for the reader: the way out that the damage's own message names must be open."""
    damaged = tmp_path / "damaged"
    shutil.copytree(shards, damaged)
    shard = min(damaged.glob("train-*.tfrecord"))
    shard.write_bytes(shard.read_bytes()[:-100])
    moved = {"task__train_data__input_path": damaged}
    with pytest.raises(UserError, match=r"the manifest says"):
        preflight.check(tiny(**moved), "train_and_eval")
    skips = {"task__train_data__on_corrupt": "skip", "task__train_data__corrupt_budget": 3}
    preflight.check(tiny(**moved, **skips), "train_and_eval")


def test_a_loop_of_evaluation_does_not_outlast_its_split(tiny, shards) -> None:
    manifest = tfrecords.Manifest.load(shards)
    data = tiny().task.validation_data
    steps = -(-manifest.num_examples("eval", data.seq_length) // data.global_batch_size)
    loop = {"trainer__eval_tf_while_loop": True}
    preflight.check(tiny(trainer__validation_steps=steps, **loop), "train_and_eval")
    longer = tiny(trainer__validation_steps=steps + 1, **loop)
    with pytest.raises(UserError, match=f"validation_steps is {steps + 1}, .* at most {steps}:"):
        preflight.check(longer, "train_and_eval")
    # Outside of TensorFlow, the loop ends with the split.
    preflight.check(tiny(trainer__validation_steps=steps + 1), "train_and_eval")


def test_checkpoints_rarer_than_asked_for_are_worth_a_warning() -> None:
    params = load("trainer.checkpoint_interval=3")
    (warning,) = preflight.warnings(params, "train")
    assert "checkpoint_interval is 3" in warning
