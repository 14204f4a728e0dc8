"""What holds on any hardware: the real code on little, the table and the chart, user mistakes."""

import collections
import json
import pydoc_data.topics
import sys

import numpy as np
import pytest
import tensorflow as tf

from benchmarks import (
    exactness,
    exactness_chart,
    exactness_coverage,
    exactness_cuts,
    exactness_data,
    exactness_error,
    exactness_kills,
    exactness_report,
    exactness_stock_kills,
    markdown_part,
)
from benchmarks.exactness_coverage import Case
from benchmarks.exactness_cuts import Cut
from tests.bert import test_kill
from tfrecords.errors import UserError

MEASURED = {
    "date": "2020-01-02T03:04:05+00:00",
    "command": "python -m benchmarks.exactness",
    "processor": "one",
    "versions": {"tensorflow": "2.20.0"},
}
COVERAGE = {
    "cases": [
        {
            "examples": 6388,
            "case": "8 files, 4 workers, seed unset",
            "stock": {
                "mean_share": 0.6543,
                "lowest_share": 0.5,
                "highest_share": 0.75,
                "each_exactly_once": False,
            },
            "ours": {
                "mean_share": 1.0,
                "lowest_share": 1.0,
                "highest_share": 1.0,
                "each_exactly_once": True,
            },
        },
        {
            "examples": 6388,
            "case": "10 files, 4 workers, seed set",
            "stock": {
                "mean_share": 0.9,
                "lowest_share": 0.9,
                "highest_share": 0.9,
                "each_exactly_once": False,
            },
            "ours": {"refused": "10 shards for 4 workers"},
        },
    ],
    **MEASURED,
}
ERROR = {
    "steps": 100,
    "methods": [
        {
            "method": method,
            "is_ours": is_ours,
            "formula": "Algorithm 1",
            "relative_l2_error": error,
            "remark": remark,
        }
        for method, is_ours, error, remark in (
            ("tf-lans LAMB, Keras 3", True, 3.14e-7, ""),
            ("Keras Lamb", False, 0.0215, "decays outside"),
        )
    ],
    **MEASURED,
}
CUTS = {
    "steps": 10,
    "global_batch_size": 32,
    "rows": [
        {
            "system": system,
            "is_ours": is_ours,
            "cut": cut,
            "relative_l2_difference": difference,
            "with_key_biases": 2 * difference,
        }
        for system, is_ours, cut, difference in (
            ("tf-lans LANS", True, "2 replicas", 1e-6),
            ("tf-lans LANS", True, "4 micro-batches", 0.0),
            ("Model Garden LAMB", False, "2 replicas", 0.03),
        )
    ],
    **MEASURED,
}
KILLS = {
    "planned_kills": {"1": 7, "2": 3},
    "ours": [
        {"chain": "steps", "workers": 1, "kills": 6, "bit_equal": True},
        {"chain": "saves", "workers": 1, "kills": 1, "bit_equal": False},
        {"chain": "a peer", "workers": 2, "kills": 1, "bit_equal": True},
    ],
    "stock": [
        {"workers": 1, "restarted": "ended", "bit_equal": False},
        {"workers": 2, "restarted": "crashed", "bit_equal": False},
        {"workers": 2, "restarted": "hung", "bit_equal": False},
    ],
    **MEASURED,
}
FIGURES = {"coverage": COVERAGE, "error": ERROR, "cuts": CUTS, "kills": KILLS}


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    folder = tmp_path_factory.mktemp("text")
    topics = "\n".join(each for _, each in sorted(pydoc_data.topics.topics.items()))
    (folder / "topics.txt").write_text(topics, encoding="utf-8")
    return exactness_data.prepare(str(folder / "topics.txt"), folder / "made", 2e5, seq_length=32)


@pytest.fixture(scope="module")
def manifests(text, tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    return {count: exactness_data.shards(text, folder / str(count), count) for count in (8, 10)}


def test_our_epoch_is_whole_and_stocks_is_not(manifests) -> None:
    row = exactness_coverage.measure_case(
        manifests[8], Case(files=8, workers=4, seeded=False), trials=2
    )
    assert row["examples"] == manifests[8].num_examples("train", 32) > 1000
    assert row["ours"]["each_exactly_once"] and row["ours"]["lowest_share"] == 1.0
    # Four workers that take two of eight files each, unknown to each other: for them to share the
    # files out has a probability of 0.4 %, and their seeds are fixed.
    assert not row["stock"]["each_exactly_once"]
    assert 0.25 <= row["stock"]["lowest_share"] <= row["stock"]["highest_share"] < 0.99


def test_files_that_do_not_divide_are_refused_by_us_and_missed_by_stock(manifests) -> None:
    row = exactness_coverage.measure_case(
        manifests[10], Case(files=10, workers=4, seeded=True), trials=1
    )
    assert "10" in row["ours"]["refused"] and "8" in row["ours"]["refused"]
    # Two workers own three files and draw no more than those with two.
    assert row["stock"]["mean_share"] < 0.95


def test_examples_of_one_content_count_each() -> None:
    stored = collections.Counter({b"a": 2, b"b": 1, b"c": 1})
    assert exactness_coverage.share_drawn(stored, stored) == 1.0
    assert exactness_coverage.share_drawn(collections.Counter({b"a": 4}), stored) == 0.5
    assert exactness_coverage.share_drawn(collections.Counter(b"a"), stored) == 0.0


def test_rows_are_counted_by_all_their_features_up_to_a_number() -> None:
    words = np.array([[1, 2], [1, 2], [1, 2], [3, 4]])
    labels = np.array([[0], [0], [1], [1]])
    batches = [{"words": words, "labels": labels}] * 2
    assert sorted(exactness_coverage.counts(batches, 4).values()) == [1, 1, 2]
    assert exactness_coverage.counts(batches, 8).total() == 8
    assert exactness_coverage.counts(batches, 1).total() == 1


@pytest.mark.parametrize("method", exactness_error.METHODS, ids=lambda each: each.name)
def test_only_another_formula_is_far_from_the_reference(method) -> None:
    """Each of n = 20 updates rounds a weight x by at most 2^-24 |x| and moves it by RATE |x|.

    Where roundings add up the error is 2^-24 / RATE = 8e-6 of the way; as much again is left for
    those within an update.
    """
    blocks, steps = [(24, 16), (16,)], 20
    expected = exactness_error.in_float64(method.algorithm, method.weight_decay, blocks, steps)
    found = exactness_error.in_float32(method, blocks, steps)
    error = exactness_error.relative_error(found, expected, exactness_error.start(blocks))
    if method.remark:
        assert error > 1e-3
    else:
        assert error < 1.6e-5


def test_the_blocks_are_those_of_a_bert_with_fewer_words() -> None:
    shapes = exactness_error.shapes(64)
    assert shapes[0] == (64, 128) and shapes.count((64,)) == 1
    assert len(shapes) == len(exactness_error.bert_shapes.block_shapes("bert_tiny"))


def test_our_weights_do_not_depend_on_replicas_and_stocks_do(manifests, monkeypatch) -> None:
    """Ours to rounding, which test_pretraining_task.py derives; stock by orders of magnitude."""
    monkeypatch.setattr(exactness_cuts, "LAYERS", 1)
    batches = exactness_cuts.read_batches(manifests[8], 4)
    assert exactness_cuts.masked_share(batches, 2) > 0.5
    differences = {}
    for system in (exactness_cuts.SYSTEMS[0], exactness_cuts.SYSTEMS[-1]):
        cuts = [Cut(replicas=2)]
        (row,) = exactness_cuts.measure_system(system, manifests[8], batches, cuts)
        differences[system.is_ours] = row["relative_l2_difference"]
    assert differences[True] < 1e-5
    assert differences[False] > 1e-3


def test_cuts_are_named() -> None:
    titles = [cut.title for cut in (Cut(), Cut(replicas=2), Cut(replicas=2, micro_batches=4))]
    assert titles == ["whole", "2 replicas", "2 replicas of 4 micro-batches"]


def test_too_few_devices_are_refused() -> None:
    assert tf.config.list_logical_devices("CPU")  # it runs from here on
    exactness_cuts.prepare_devices(2)
    with pytest.raises(UserError, match="logical CPUs, 64 are needed"):
        exactness_cuts.prepare_devices(64)


def test_chains_are_counted_from_pytests_report(monkeypatch) -> None:
    names = ["steps", "a peer", "saves", "phases"]
    report = """<testsuites><testsuite>
        <testcase name="test_a_killed_run[steps]" time="60.04"/>
        <testcase name="test_a_killed_run[a peer]" time="1"><failure>x</failure></testcase>
        <testcase name="test_a_killed_run[saves]" time="1"><skipped>x</skipped></testcase>
    </testsuite></testsuites>"""
    rows = exactness_kills.rows_of(report, names)
    assert [row["chain"] for row in rows] == ["steps", "a peer"], "only those that ran"
    assert [row["bit_equal"] for row in rows] == [True, False]
    assert [row["workers"] for row in rows] == [1, 2]
    assert rows[0]["kills"] == len(test_kill.CHAINS["steps"].kills) and rows[0]["seconds"] == 60.0


def test_chains_that_are_known_are_not_run_again(monkeypatch) -> None:
    asked, kept = [], []

    def run_chains(names):
        asked.append(names)
        return [{"chain": name} for name in names]

    monkeypatch.setattr(exactness_kills, "run_chains", run_chains)
    few = exactness_kills.measure_ours(exactness_kills.FEW, [], lambda rows: kept.append(len(rows)))
    assert [name for names in asked for name in names] == list(test_kill.FEW) and kept == [1, 2]
    asked.clear()
    everything = exactness_kills.measure_ours(exactness_kills.ALL, few, lambda rows: None)
    assert {row["chain"] for row in everything} == set(test_kill.CHAINS)
    assert not {name for names in asked for name in names} & set(test_kill.FEW)
    kinds = [[test_kill.CHAINS[name].kind for name in names] for names in asked]
    assert all(len(set(each)) == 1 for each in kinds)


# Ends with the code in its first flag, or when told to die waits for nothing; else for ever.
JOB = """
import os, signal, sys
if int(sys.argv[1]):
    os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[2] == "wait":
    signal.pause()
print("Traceback:\\n  inside\\nmodule.SomeError: what went wrong")
sys.exit(int(sys.argv[2]))
"""


@pytest.mark.parametrize(
    ("flag", "victim", "code"), [("0", None, 0), ("3", None, 3), ("wait", 1, -9)]
)
def test_the_first_worker_that_ends_otherwise_ends_a_job(
    monkeypatch, tmp_path, flag, victim, code
) -> None:
    monkeypatch.setattr(exactness_stock_kills, "_JOB", (sys.executable, "-c", JOB))
    found = exactness_stock_kills.run([flag], tmp_path / "log", 2, victim, loops=1)
    assert found == code
    if flag == "3":
        error = exactness_stock_kills.last_error(tmp_path / "log")
        assert error == "module.SomeError: what went wrong"


def test_no_two_trials_are_one_experiment() -> None:
    most = exactness_stock_kills.MOST_TRIALS
    for workers in (1, 2):
        planned = exactness_stock_kills.kills(workers, most)
        assert len(set(planned)) == most
        # A checkpoint comes before each, and each before the job has ended.
        loops = exactness_stock_kills.STEPS // exactness_stock_kills.LOOP
        assert all(2 <= kill.loops <= loops for kill in planned)
        assert {kill.victim for kill in planned} == set(range(workers))
        assert planned[:1] == exactness_stock_kills.kills(workers, 1)
    with pytest.raises(ValueError, match="expected at most 3"):
        exactness_stock_kills.kills(1, most + 1)


def test_a_kill_that_was_made_twice_counts_once_and_another_takes_its_place(
    monkeypatch, tmp_path
) -> None:
    made = []

    def one_trial(manifest, place, kill, control):
        made.append(kill)
        return row(kill.workers, kill.victim, kill.loops)

    def row(workers, victim, loops, remark=""):
        place = {"workers": workers, "killed_worker": victim, "after_loop": loops}
        return place | {"bit_equal": False, "restarted": "ended", "remark": remark}

    monkeypatch.setattr(exactness_stock_kills, "one_trial", one_trial)
    monkeypatch.setattr(exactness_stock_kills, "run", lambda *_: 0)
    monkeypatch.setattr(exactness_stock_kills, "arguments", lambda *_: [])
    monkeypatch.setattr(exactness_stock_kills, "compared", lambda *_: {"bit_equal": True})
    known = [
        *(row(1, 0, 2, "first"), row(1, 0, 3), row(1, 0, 2)),
        *(row(2, 0, 2), row(2, 1, 2), row(2, 0, 3)),
    ]
    kept = []
    found = exactness_stock_kills.measure(
        None, tmp_path, 3, known, lambda rows: kept.append(len(rows))
    )
    assert made == [exactness_stock_kills.Kill(workers=1, victim=0, loops=4)]
    assert kept == [6] and found == [*known[:2], *known[3:], row(1, 0, 4)]
    assert not exactness_stock_kills.missing(found, 1, 3)


def test_runs_are_compared_by_their_last_checkpoints(tmp_path) -> None:
    for name, weight in (("a", 1.0), ("same", 1.0), ("other", 1.5)):
        model = tf.Module()
        model.weight = tf.Variable([weight, 0.0])
        checkpoint = tf.train.Checkpoint(model=model, global_step=tf.Variable(8))
        manager = tf.train.CheckpointManager(checkpoint, str(tmp_path / name), max_to_keep=1)
        for _ in range(1 + (name == "same")):  # how often it was saved is no difference
            manager.save()
    same, other = (
        exactness_stock_kills.compared(tmp_path / name, tmp_path / "a")
        for name in ("same", "other")
    )
    assert same == {"bit_equal": True, "relative_l2_difference": 0.0}
    assert other == {"bit_equal": False, "relative_l2_difference": 0.5}


def test_the_table() -> None:
    assert exactness_report.table(FIGURES).splitlines() == [
        "| | Model Garden, Keras | tf-lans |",
        "| --- | --- | --- |",
        "| of 6,388 examples, an epoch draws: 8 files, 4 workers, seed unset "
        "| 65.4 % (50 % to 75 %) | 100 %, each once |",
        "| of 6,388 examples, an epoch draws: 10 files, 4 workers, seed set "
        "| 90 % (90 % to 90 %) | refused before training |",
        "| float32 LAMB (Algorithm 1): distance to float64 after 100 updates, over the way gone "
        "| Keras Lamb: 2.1e-2 (decays outside) | tf-lans LAMB, Keras 3: 3.1e-7 |",
        "| weights without key biases, 32 rows cut into 2 replicas against whole: distance after "
        "10 updates, over the way gone "
        "| LAMB 3.0e-2 | LANS 1.0e-6 |",
        "| weights without key biases, 32 rows cut into 4 micro-batches against whole: distance "
        "after 10 updates, over the way gone "
        "| cannot | LANS 0 |",
        "| kills after which a restarted run ends bit-equal, one worker | 0 of 1, in 1 run "
        "| 6 of 7, in 2 runs |",
        "| kills after which a restarted run ends bit-equal, two workers "
        "| 0 of 2, in 2 runs; 1 restart crashed; 1 restart hung "
        "| 1 of 1, in 1 run, made so far; the sweep has 3 |",
        "",
        "Distances are L2 norms over all weights together; the way gone is how far the weights "
        "held against came from the start. Algorithms 1 and 2 are those of arXiv 2006.13484.",
        "",
        "Those of a cut batch are without the attention's key biases. Softmax ignores those, so "
        "that their gradient is rounding alone, which LANS scales to whole steps; with them our "
        "largest difference is 2.0e-6, stock's 6.0e-2. The batch has 32 rows; stock's difference "
        "shrinks as it grows.",
        "",
        "Measured 2020-01-02 with tensorflow 2.20.0.",
    ]


def test_parts_that_are_missing_are_left_out(tmp_path) -> None:
    assert "epoch" not in exactness_report.table({"cuts": CUTS})
    unbegun = exactness_report.table({"kills": KILLS | {"ours": [], "stock": []}})
    assert unbegun.count("| not measured | not measured |") == 2
    nothing = exactness_report.table({})
    assert len(nothing.splitlines()) == 2
    exactness_chart.chart({"cuts": CUTS}).savefig(tmp_path / "chart.png", dpi=20)


def test_the_chart_shows_every_value_and_is_small(tmp_path) -> None:
    figure = exactness_chart.chart(FIGURES)
    axes = [each for panel in figure.subfigs for each in panel.axes]
    shown = [{each.get_text() for each in one.texts} for one in axes]
    for expected in (
        {"65.4 %", "100 %", "90 %", "refused"},
        {"3.1e-7", "2.1e-2"},
        {"1.0e-6", "0", "3.0e-2"},
        {"0 of 1", "6 of 7", "0 of 2", "1 of 1"},
    ):
        assert expected in shown
    (titled,) = [each.get_suptitle() for each in figure.subfigs if "Weights" in each.get_suptitle()]
    assert "without key biases" in titled and "32 rows" in titled
    figure.savefig(tmp_path / "chart.png", dpi=exactness_chart.DPI)
    assert (tmp_path / "chart.png").stat().st_size < 300_000


@pytest.fixture
def calls(monkeypatch):
    """The parts that were measured, in place of their measurement."""
    found = []

    def measurer(part):
        figures = {name: FIGURES[part][name] for name in FIGURES[part] if name not in MEASURED}

        def measure(*_):
            found.append(part)
            return figures

        return measure

    for part, module in (
        ("coverage", exactness_coverage),
        ("error", exactness_error),
        ("cuts", exactness_cuts),
        ("kills", exactness_kills),
    ):
        monkeypatch.setattr(module, "measure", measurer(part))
    monkeypatch.setattr(exactness_cuts, "prepare_devices", lambda _: None)
    monkeypatch.setattr(exactness_data, "prepare", lambda *_: None)
    return found


def test_a_finished_part_is_not_measured_again(calls, tmp_path, capsys) -> None:
    output = f"--output={tmp_path / 'out'}"
    assert exactness.main([output, "--only=error,coverage"]) == 0
    assert calls == ["error", "coverage"]
    first = json.loads((tmp_path / "out.json").read_text())
    assert list(first) == ["coverage", "error"] and first["error"]["steps"] == 100
    assert exactness.main([output]) == 0
    assert calls == ["error", "coverage", "cuts", "kills"]
    second = json.loads((tmp_path / "out.json").read_text())
    assert list(second) == list(FIGURES)
    assert all(second[part] == first[part] for part in first)
    assert exactness.main([output, "--only=error", "--again"]) == 0
    assert calls[4:] == ["error"]
    assert "65.4 %" in capsys.readouterr().out
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_the_document_gets_the_table(calls, tmp_path) -> None:
    document = tmp_path / "document.md"
    document.write_text("before\n" + "\n".join(markdown_part.marks("benchmarks.exactness")))
    assert exactness.main([f"--document={document}"]) == 0
    assert exactness_report.table(FIGURES).splitlines()[2] in document.read_text()
    assert document.read_text().startswith("before\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--only=speed"], "--only names 'speed'; expected some of coverage, error, cuts, kills"),
        (["--epochs=0"], "epochs"),
        (["--kills=some"], "kills"),
        (["--document={folder}/none.md"], "cannot take the table"),
        (["--document={folder}/plain.md"], "cannot take the table"),
        (["--output={folder}/damaged"], "is not JSON of this command"),
        (["--output={folder}/foreign"], "is not JSON of this command"),
    ],
)
def test_mistakes_are_refused_before_anything_is_measured(
    calls, tmp_path, capsys, arguments, message
) -> None:
    for name, content in (
        ("plain.md", "no marks"),
        ("damaged.json", '{"coverage"'),
        ("foreign.json", '{"contenders": []}'),
    ):
        (tmp_path / name).write_text(content)
    before = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert exactness.main([each.format(folder=tmp_path) for each in arguments]) == 2
    assert message in capsys.readouterr().err
    assert not calls
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == before


def test_text_without_a_sentence_is_refused(tmp_path, capsys) -> None:
    (tmp_path / "empty.txt").write_text("\n\n")
    assert exactness.main(["--only=coverage", f"--input={tmp_path / 'empty.txt'}"]) == 2
    assert "holds no sentence" in capsys.readouterr().err
