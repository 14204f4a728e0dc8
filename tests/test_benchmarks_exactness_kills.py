"""Killed runs, ours and stock: chains and trials are counted once, jobs end, runs are compared."""

import sys

import pytest
import tensorflow as tf

from benchmarks import exactness_kills, exactness_stock_kills
from tests.bert import test_kill


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
