"""The plan's estimates: operations, the ring, a step and its limit, published runs beside them."""

import dataclasses
import json
import math
import pathlib
import re
import shlex

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.testing import compare
from official.core import task_factory

from benchmarks import data_reading
from official_bert import (
    device_table,
    plan,
    plan_published,
    plan_recipe,
    plan_steps,
    plan_time,
)
from official_bert.plan_time import Assumptions, Cluster, Work
from tests.bert.conftest import SHORT

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCUMENT = (ROOT / "docs/planning.md").read_text(encoding="utf-8")
SHELL = DOCUMENT.replace("\\\n", "")
V100 = device_table.find("v100")
SPEEDS = ("peak_flops", "memory_bandwidth", "link_bandwidth")

counts = st.integers(1, 4096)
lengths = st.sampled_from([128, 512])
devices = st.sampled_from(list(device_table.DEVICES.values()))
works = st.builds(
    Work,
    flops_per_example=st.floats(1e6, 1e13),
    trained=st.integers(1000, 10**9),
    seq_length=lengths,
    global_batch=st.integers(1, 10**6),
    micro_batch=st.integers(1, 512),
    steps=st.integers(1, 10**5),
    optimizer=st.sampled_from(list(plan_time.UPDATE_BYTES)),
)


def cluster(device: device_table.Device = V100, count: int = 1) -> Cluster:
    return Cluster(
        device=device,
        devices=count,
        devices_per_worker=device.devices_per_worker,
        network_bandwidth=device.network_bandwidth,
    )


def contracted(operation: tf.Operation) -> int:
    """Multiply-adds of a matrix product in a graph, twice."""
    shapes = [[int(size) for size in tensor.shape] for tensor in operation.inputs]
    if operation.type == "Einsum":
        terms = operation.get_attr("equation").decode().split("->")[0].split(",")
        sizes = {
            letter: size
            for term, shape in zip(terms, shapes, strict=True)
            for letter, size in zip(term, shape, strict=True)
        }
        return 2 * math.prod(sizes.values())
    transposed = "adj_x" if operation.type.startswith("Batch") else "transpose_a"
    rows = shapes[0][-1] if operation.get_attr(transposed) else shapes[0][-2]
    return 2 * rows * math.prod(shapes[0]) // rows * int(operation.outputs[0].shape[-1])


@pytest.mark.filterwarnings("ignore:Input dict contained keys")
def test_operations_are_those_of_the_built_models_graph(tiny) -> None:
    params = tiny()
    task = task_factory.get_task(params.task)
    model = task.build_model()
    rows, masked = 2, 5
    inputs = {
        "input_word_ids": tf.ones([rows, SHORT], tf.int32),
        "input_mask": tf.ones([rows, SHORT], tf.int32),
        "input_type_ids": tf.zeros([rows, SHORT], tf.int32),
        "masked_lm_positions": tf.zeros([rows, masked], tf.int32),
    }

    @tf.function
    def forward_and_backward():
        with tf.GradientTape() as tape:
            outputs = model(inputs, training=True)
            loss = tf.reduce_sum(outputs["mlm_logits"]) + tf.reduce_sum(outputs["next_sentence"])
        return tape.gradient(loss, task.trained_variables(model))

    products = ("MatMul", "BatchMatMul", "BatchMatMulV2", "Einsum")
    graph = forward_and_backward.get_concrete_function().graph
    counted = {
        operation.name: contracted(operation)
        for operation in graph.get_operations()
        if operation.type in products
    }

    def of(part: str) -> int:
        return sum(count for name, count in counted.items() if part in name)

    encoder = params.task.model.encoder.get()
    hidden, types = encoder.hidden_size, encoder.type_vocab_size
    # The encoder's own pooler runs forward, and nothing of the step reads it; the two segments
    # are looked up as a product with one-hot rows, forward and for the table's gradient.
    idle, looked_up = of("pooler_transform"), of("type_embeddings")
    assert idle in (0, 2 * rows * hidden**2)
    assert looked_up == 2 * 2 * rows * SHORT * types * hidden
    formula = plan_time.flops_per_example(params.task.model, SHORT, masked)
    assert sum(counted.values()) - idle - looked_up == rows * formula
    without = plan_time.flops_per_example(params.task.model, SHORT, masked, next_sentence=False)
    assert of("next_sentence") == rows * (formula - without)


def test_operations_of_a_factored_embedding() -> None:
    base = plan_recipe.sized("tiny", 1000, 128)
    base["task"]["model"]["encoder"]["bert"]["embedding_size"] = 32
    model = plan_recipe.load(plan_recipe.text(base, [])).task.model
    whole = plan_recipe.load(plan_recipe.text(plan_recipe.sized("tiny", 1000, 128), []))
    saved = 3 * 2 * 20 * (128 * 128 + 128 * 1000 - 128 * 32 - 32 * 1000)
    added = 3 * 2 * 128 * 32 * 128
    assert (
        plan_time.flops_per_example(whole.task.model, 128, 20)
        - plan_time.flops_per_example(model, 128, 20)
        == saved - added
    )


def ring(parts: np.ndarray) -> tuple[np.ndarray, int, int]:
    """A ring all-reduce carried out: the sums, turns, and numbers that a device sends."""
    count = len(parts)
    held = parts.reshape(count, count, -1).copy()
    turns = sent = 0
    for phase in ("reduce", "gather"):
        for turn in range(count - 1):
            shift = 0 if phase == "reduce" else 1
            moving = [(device - turn + shift) % count for device in range(count)]
            values = [held[device, moving[device]].copy() for device in range(count)]
            for device in range(count):
                target = (device + 1) % count
                if phase == "reduce":
                    held[target, moving[device]] += values[device]
                else:
                    held[target, moving[device]] = values[device]
            turns, sent = turns + 1, sent + values[0].size
    return held.reshape(count, -1), turns, sent


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_the_formula_counts_what_a_ring_sends(count) -> None:
    parts = np.random.default_rng(3).integers(0, 100, [count, 40 * count])
    sums, turns, sent = ring(parts)
    assert (sums == parts.sum(axis=0)).all()
    seconds = plan_time.all_reduce_seconds(4 * 40 * count, count, 1e9, 1e-3)
    assert seconds == pytest.approx(4 * sent / 1e9 + turns * 1e-3)


@given(
    work=works,
    device=devices,
    count=counts,
    share=st.floats(0.01, 1),
    factor=st.floats(1, 10),
)
def test_times_are_no_less_than_their_parts_and_move_as_they_must(
    work, device, count, share, factor
) -> None:
    where, assumed = cluster(device, count), Assumptions(utilisation=share)
    step = plan_time.step_time(work, where, assumed)
    parts = {
        plan_time.COMPUTE: step.compute,
        plan_time.UPDATE: step.update,
        plan_time.ALL_REDUCE: step.all_reduce,
        plan_time.INPUT: step.input,
    }
    assert all(0 <= part <= step.total for part in parts.values())
    assert step.total <= sum(parts.values())
    on_device = step.compute + step.update + step.all_reduce
    assert (step.limit == plan_time.INPUT) == (step.input > on_device)
    if step.limit != plan_time.INPUT:
        assert parts[step.limit] == max(on for name, on in parts.items() if name != "input")

    def seconds(**changes: float) -> float:
        return plan_time.step_time(dataclasses.replace(work, **changes), where, assumed).total

    assert seconds(global_batch=work.global_batch + count) >= step.total
    assert seconds(trained=work.trained + count) >= step.total
    assert seconds(flops_per_example=work.flops_per_example * factor) >= step.total
    busier = Assumptions(utilisation=min(1.0, share * factor))
    assert plan_time.step_time(work, where, busier).total <= step.total
    faster = dataclasses.replace(
        where,
        device=dataclasses.replace(
            device, **{field: getattr(device, field) * factor for field in SPEEDS}
        ),
    )
    assert plan_time.step_time(work, faster, assumed).total <= step.total
    doubled = plan_time.step_time(work, dataclasses.replace(where, devices=2 * count), assumed)
    assert doubled.compute == pytest.approx(step.compute / 2)
    assert doubled.all_reduce >= step.all_reduce
    assert doubled.input <= step.input and doubled.update <= step.update


def test_a_step_by_hand() -> None:
    work = Work(
        flops_per_example=1e12,
        trained=10**8,
        seq_length=128,
        global_batch=1024,
        micro_batch=32,
        steps=10,
        optimizer="lans",
    )
    step = plan_time.step_time(work, cluster(V100, 16), Assumptions(utilisation=0.5))
    assert step.compute == pytest.approx(64 * 1e12 / (0.5 * 125e12))
    assert step.update == pytest.approx(1e8 * (48 + 24) / 900e9)
    for optimizer, moved in (("lamb", 40), ("adamw", 28)):
        other = dataclasses.replace(work, optimizer=optimizer, micro_batch=64)
        seconds = plan_time.step_time(other, cluster(V100, 16), Assumptions()).update
        assert seconds == pytest.approx(1e8 * moved / 900e9), optimizer
    assert step.all_reduce == pytest.approx(30 / 16 * 4e8 / 12.5e9 + 30 * 5e-6)
    assert step.input == pytest.approx(1024 * 128 / (2 * 20e6))
    assert step.total == pytest.approx(step.compute + step.update + step.all_reduce)
    assert step.limit == plan_time.COMPUTE
    own = plan_time.step_time(work, cluster(V100, 16), Assumptions(examples_per_second=128))
    assert own.compute == 0.5
    # Eight stay on the links of one machine; a TPU's go on.
    assert cluster(V100, 8).ring_bandwidth == 150e9
    assert cluster(device_table.find("tpu-v5e"), 256).ring_bandwidth == 200e9


@pytest.mark.parametrize(
    ("changes", "limit"),
    [
        ({"flops_per_example": 1e6}, plan_time.INPUT),
        ({"flops_per_example": 1e6, "global_batch": 64}, plan_time.ALL_REDUCE),
        ({"flops_per_example": 1e13}, plan_time.COMPUTE),
    ],
)
def test_what_binds_is_named(changes, limit) -> None:
    work = Work(
        flops_per_example=1e10,
        trained=10**7,
        seq_length=512,
        global_batch=65_536,
        micro_batch=64,
        steps=1,
        optimizer="lamb",
    )
    work = dataclasses.replace(work, **changes)
    assert plan_time.step_time(work, cluster(V100, 64), Assumptions()).limit == limit


@given(work=works, device=devices, share=st.floats(0.05, 1))
def test_more_devices_stop_paying_where_a_doubling_saves_less_than_a_quarter(
    work, device, share
) -> None:
    numbers = plan_time.doublings(work.global_batch)
    assert numbers[-1] <= work.global_batch < 2 * numbers[-1]
    points = plan_time.curve([(work, Assumptions(utilisation=share))], cluster(device), numbers)
    last = plan_time.last_that_pays(points)
    savings = [
        1 - after.seconds / before.seconds
        for before, after in zip(points, points[1:], strict=False)
    ]
    # From there on no doubling pays, and the one before does.
    place = len(savings) if last is None else points.index(last)
    assert all(saving < 0.25 + 1e-12 for saving in savings[place:])
    assert all(saving >= 0.25 - 1e-12 for saving in savings[:place][-1:])
    for point in points:
        own = plan_time.step_time(
            work,
            dataclasses.replace(cluster(device), devices=point.devices),
            Assumptions(utilisation=share),
        )
        assert point.seconds == pytest.approx(work.steps * own.total)


def test_the_document_holds_what_the_code_computes(capsys) -> None:
    assert plan.main(["--published"]) == 0
    printed = capsys.readouterr().out
    begin, end = (
        f"<!-- written by official_bert.plan --published: {word} -->" for word in ("begin", "end")
    )
    assert DOCUMENT.split(begin)[1].split(end)[0].strip() == printed.strip(), (
        "docs/planning.md differs: put the output of python -m official_bert.plan --published "
        "between its marks"
    )
    for words in (
        f"up to {plan_steps.LAST_OF_PHASE_1} tokens",
        f"at most {plan_steps.EXAMPLES_OF_A_SHARD:,} examples",
        f"{plan.FLAGS['tokens_per_word'].default} word pieces a word",
    ):
        assert words in DOCUMENT, words


def test_the_documents_chart_is_what_its_command_draws(tmp_path) -> None:
    (line,) = re.findall(r"python -m official_bert\.plan (.*--chart=docs/.*)", SHELL)
    flags = [each for each in shlex.split(line) if not each.startswith("--chart=")]
    (name,) = re.findall(r"--chart=docs/(\S+)", line)
    assert f"]({name})" in DOCUMENT
    drawn, shown = tmp_path / name, ROOT / "docs" / name
    assert plan.main([*flags, f"--chart={drawn}"]) == 0
    # Root mean square, of 255 levels; a utilisation of 0.34 in place of 0.33 makes it 7.
    problem = compare.compare_images(str(shown), str(drawn), tol=3)
    assert problem is None, f"run the command of docs/planning.md again: {problem}"


def test_published_runs_are_foretold_by_one_set_of_assumptions() -> None:
    """Within a third, which is what the document claims to be: the right order."""
    published = {
        "LANS paper, 1536 V100": 53.6,
        "LAMB paper, 1024 TPU v3": 76.19,
        "NVIDIA, 32 x 8 A100": 2.02 * 60,
        "NVIDIA, 32 x 16 V100": 2.67 * 60,
    }
    assert {each.name: each.minutes for each in plan_published.RUNS} == published
    for each in plan_published.RUNS:
        steps = plan_published.predicted(each, Assumptions())
        assert [count for count, _ in steps] == list(each.steps)
        error = plan_time.run_seconds(steps) / 60 / each.minutes - 1
        assert abs(error) < 1 / 3, (each.name, error)
        # NVIDIA's own rates and time for the A100 agree, which shows that steps and batches do.
        if each.device == "a100":
            assert each.steady_minutes == pytest.approx(each.minutes, rel=0.02)
        for batch, micro in zip(each.batches, each.micro_batches, strict=True):
            assert batch % (micro * each.devices) == 0


def test_the_table_of_devices() -> None:
    for name, row in device_table.DEVICES.items():
        numbers = [value for value in vars(row).values() if isinstance(value, int | float)]
        assert row.name == name == name.lower() and row.source
        assert all(number > 0 and math.isfinite(number) for number in numbers)
        assert f"| `{name}` |" in device_table.markdown()
    assert device_table.find("TPU-v4").peak_flops == 275e12


def test_the_input_rate_is_of_the_order_that_was_measured() -> None:
    """Within a factor of eight, which is more than lies between two machines' cores.

    What this finds is another unit: a rate in examples is 128 times smaller than one in tokens.
    """
    results = json.loads((ROOT / "benchmarks/results/data.json").read_text())
    rates = [
        row["examples_per_s"]
        for row in results["reading"]
        if row["reader"].startswith("tfrecords.read")
        and row["cores"] == 1
        and "not_measured" not in row
    ]
    if not rates:
        pytest.skip("benchmarks/results/data.json has no reader of ours on one core")
    slowest = data_reading.SEQ_LENGTH * min(rates)
    assert slowest / 8 < Assumptions().input_tokens_per_second < slowest * 8
