"""Which worker a process is: from fields, TF_CONFIG, or Slurm."""

import json
import pathlib
from unittest import mock

import pytest
import tensorflow as tf

from official_bert import cluster, configuration, runner
from tfrecords.errors import UserError

HOSTS = ["a:1", "b:2", "c:3"]


def tf_config(task: str, index: int, **jobs: list[str]) -> dict[str, str]:
    return {"TF_CONFIG": json.dumps({"cluster": jobs, "task": {"type": task, "index": index}})}


def test_the_fields_win(monkeypatch) -> None:
    found = cluster.find_resolver(",".join(HOSTS), 2, tf_config("worker", 0, worker=["x:9"]))
    assert found.cluster_spec().as_dict() == {"worker": HOSTS}
    assert (found.task_type, found.task_id, found.rpc_layer) == ("worker", 2, "grpc")


def test_tf_config_is_next(monkeypatch) -> None:
    environment = {**tf_config("worker", 1, worker=HOSTS), "SLURM_PROCID": "0"}
    monkeypatch.setenv("TF_CONFIG", environment["TF_CONFIG"])
    found = cluster.find_resolver(environment=environment)
    assert found.cluster_spec().as_dict() == {"worker": HOSTS} and found.task_id == 1


def test_slurm_is_last(tmp_path, monkeypatch) -> None:
    """`scontrol` is a script here that prints the nodes in Slurm's order, which is not text's."""
    script = tmp_path / "scontrol"
    script.write_text('#!/bin/sh\n[ "$*" = "show hostnames n[9-10]" ] && printf "n9\\nn10\\n"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    environment = {
        "SLURM_PROCID": "2",
        "SLURM_STEP_NODELIST": "n[9-10]",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
        "SLURM_JOB_ID": "123456",
    }
    found = cluster.find_resolver(environment=environment)
    hosts = ["n9:23456", "n9:23457", "n10:23456", "n10:23457"]
    assert found.cluster_spec().as_dict() == {"worker": hosts} and found.task_id == 2
    pathlib.Path(script).unlink()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="cannot ask Slurm"):
        cluster.find_resolver(environment=environment)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((None, -1, {}), "nothing says who the workers"),
        (("a:1,b:2", 2, {}), "task_index is 2; expected 0 to 1"),
        (("a:1,b:2", -1, {}), "task_index is -1"),
        ((None, -1, {"TF_CONFIG": "{"}), "expected JSON with cluster.worker"),
        ((None, -1, {"TF_CONFIG": "[]"}), "expected JSON with cluster.worker"),
        ((None, -1, tf_config("worker", 3, worker=HOSTS)), "worker 3, which is not"),
        ((None, -1, tf_config("evaluator", 0, worker=HOSTS, evaluator=["e:1"])), "not a worker"),
    ],
)
def test_what_does_not_fit_is_told(arguments, words: str) -> None:
    with pytest.raises(UserError, match=words):
        cluster.find_resolver(*arguments)


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({"SLURM_JOB_ID": "1"}, "SLURM_STEP_TASKS_PER_NODE"),
        ({"SLURM_JOB_ID": "x", "SLURM_STEP_TASKS_PER_NODE": "1"}, "'x'"),
        ({"SLURM_JOB_ID": "1", "SLURM_STEP_TASKS_PER_NODE": "1,two"}, "expected such as"),
        ({"SLURM_JOB_ID": "1", "SLURM_STEP_TASKS_PER_NODE": "1(x3)"}, "for 3 nodes"),
    ],
)
def test_slurms_environment_is_checked(environment, words: str) -> None:
    with pytest.raises(UserError, match=words):
        cluster.slurm_hosts(environment, ["n1", "n2"])


def test_strategies_of_one_process_have_one_worker() -> None:
    for strategy in (tf.distribute.get_strategy(), tf.distribute.OneDeviceStrategy("CPU:0")):
        worker = cluster.this_worker(strategy)
        assert worker == cluster.Worker(index=0, count=1) and worker.is_chief
        cluster.wait_for_all(strategy)


def test_another_number_of_workers_is_another_run(tmp_path, tiny) -> None:
    """The order of the examples depends on it."""
    params = tiny()
    two = params.replace(runtime=params.runtime.replace(num_workers=2))
    configuration.save(two, str(tmp_path))
    with pytest.raises(UserError, match="runtime.num_workers was 2, now 1, .* give --repartition"):
        runner.check_model_dir(params, str(tmp_path))
    runner.check_model_dir(params, str(tmp_path), repartition=True)
    runner.check_model_dir(params, str(tmp_path), "eval")


def test_each_host_of_a_tpu_has_an_input_pipeline() -> None:
    """A stand-in for a slice of four hosts, whose process is the only worker."""
    strategy = mock.Mock(spec=tf.distribute.TPUStrategy)
    strategy.extended.num_hosts = 4
    assert cluster.input_pipelines(strategy) == 4
    assert cluster.input_pipelines(tf.distribute.get_strategy()) == 1
