"""Which worker this process is, and how the workers wait for each other."""

import dataclasses
import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence

import tensorflow as tf

from tfrecords.errors import UserError

_JOBS = ("chief", "worker")
# Below the ports that systems hand out by themselves; a job's tasks on one node follow each other.
_PORTS = range(20000, 30000)
_TASKS = re.compile(r"(?P<tasks>\d+)(\(x(?P<nodes>\d+)\))?")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Worker:
    """One process of a training job.

    Attributes:
      index: its place among the workers; the chief is 0.
      count: how many there are.
    """

    index: int = 0
    count: int = 1

    @property
    def is_chief(self) -> bool:
        """Whether this worker leaves files and prints progress."""
        return self.index == 0


def find_resolver(
    worker_hosts: str | None = None,
    task_index: int = -1,
    environment: Mapping[str, str] = os.environ,
) -> tf.distribute.cluster_resolver.ClusterResolver:
    """The cluster, from the first that says it: the fields, TF_CONFIG, or Slurm.

    Args:
      worker_hosts: comma-separated `host:port` of all workers, or None.
      task_index: this worker's place in `worker_hosts`.
      environment: the process's environment.

    Raises:
      UserError: none of them does, or what it says does not fit together.
    """
    if worker_hosts:
        hosts = [host.strip() for host in worker_hosts.split(",")]
        if not 0 <= task_index < len(hosts):
            raise UserError(
                f"runtime.task_index is {task_index}; expected 0 to {len(hosts) - 1}, this "
                f"worker's place in runtime.worker_hosts"
            )
        return _resolver(hosts, task_index)
    if environment.get("TF_CONFIG"):
        _check_tf_config(environment["TF_CONFIG"])
        return tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if "SLURM_PROCID" in environment:
        hosts = slurm_hosts(environment, _host_names(environment))
        return _resolver(hosts, int(environment["SLURM_PROCID"]))
    raise UserError(
        "runtime.distribution_strategy is multi_worker_mirrored, but nothing says who the workers "
        "are: start them with python -m official_bert.launch or srun, or set TF_CONFIG, or "
        "runtime.worker_hosts and runtime.task_index"
    )


def _resolver(
    hosts: Sequence[str], index: int
) -> tf.distribute.cluster_resolver.SimpleClusterResolver:
    return tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec({"worker": list(hosts)}),
        task_type="worker",
        task_id=index,
        rpc_layer="grpc",
    )


def slurm_hosts(environment: Mapping[str, str], host_names: Sequence[str]) -> list[str]:
    """`host:port` of every task of a Slurm job step, in the order of their ranks.

    TensorFlow's own SlurmClusterResolver sorts hosts as text, n10 before n9, while Slurm numbers
    tasks in the order of its node list; and its port is the same for every job.

    Args:
      environment: of the task: SLURM_STEP_TASKS_PER_NODE such as "2(x3),1", SLURM_JOB_ID.
      host_names: the step's nodes in Slurm's order, as `scontrol show hostnames` prints them.

    Raises:
      UserError: a variable is missing, or they contradict each other.

    Example:
      >>> slurm_hosts({"SLURM_STEP_TASKS_PER_NODE": "2,1", "SLURM_JOB_ID": "7"}, ["n9", "n10"])
      ['n9:20007', 'n9:20008', 'n10:20007']
    """
    try:
        tasks = environment["SLURM_STEP_TASKS_PER_NODE"]
        port = _PORTS.start + int(environment["SLURM_JOB_ID"]) % len(_PORTS)
    except (KeyError, ValueError) as error:
        raise UserError(
            f"Slurm's environment has no usable {error}; start the workers with srun, or give "
            "runtime.worker_hosts and runtime.task_index"
        ) from error
    counts: list[int] = []
    for part in tasks.split(","):
        found = _TASKS.fullmatch(part)
        if found is None:
            raise UserError(f"SLURM_STEP_TASKS_PER_NODE is {tasks!r}; expected such as 2(x3),1")
        counts += [int(found["tasks"])] * int(found["nodes"] or 1)
    if len(counts) != len(host_names):
        raise UserError(
            f"SLURM_STEP_TASKS_PER_NODE is {tasks!r}, for {len(counts)} nodes, but the step has "
            f"{len(host_names)}: {', '.join(host_names)}"
        )
    return [
        f"{host}:{port + local}"
        for host, count in zip(host_names, counts, strict=True)
        for local in range(count)
    ]


def _host_names(environment: Mapping[str, str]) -> list[str]:
    nodes = environment.get("SLURM_STEP_NODELIST", "")
    try:
        printed = subprocess.run(
            ["scontrol", "show", "hostnames", nodes], check=True, capture_output=True, text=True
        ).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(
            f"cannot ask Slurm for the nodes of {nodes!r} ({error}); give runtime.worker_hosts and "
            "runtime.task_index"
        ) from error
    return printed.split()


def _check_tf_config(text: str) -> None:
    try:
        config = json.loads(text)
        cluster, task = config["cluster"], config["task"]
        addresses = cluster[task["type"]]
        known = task["type"] in _JOBS and 0 <= int(task["index"]) < len(addresses)
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"TF_CONFIG is {text!r}; expected JSON with cluster.worker, a list of host:port, and "
            'task.type "worker" with task.index'
        ) from error
    if not known:
        raise UserError(
            f"TF_CONFIG names task {task['type']} {task['index']}, which is not a worker of its "
            f"cluster of {', '.join(f'{len(hosts)} {job}' for job, hosts in cluster.items())}"
        )


def this_worker(strategy: tf.distribute.Strategy) -> Worker:
    """The worker that runs this process; the only one unless the strategy spans several."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return Worker()
    resolver = strategy.cluster_resolver
    jobs = resolver.cluster_spec().as_dict()
    sizes = [len(jobs.get(job, [])) for job in _JOBS]
    if sum(sizes) == 0:
        return Worker()
    before = sizes[0] if resolver.task_type == "worker" else 0
    return Worker(index=before + int(resolver.task_id), count=sum(sizes))


def input_pipelines(strategy: tf.distribute.Strategy) -> int:
    """How many input pipelines share a global batch: one a worker, on a TPU one a host."""
    if isinstance(strategy, tf.distribute.TPUStrategy):
        return int(strategy.extended.num_hosts)
    return this_worker(strategy).count


def wait_for_all(strategy: tf.distribute.Strategy) -> None:
    """Returns when every worker has come here; at once where there is one."""
    of_the_chief(strategy, 0)


def of_the_chief(strategy: tf.distribute.Strategy, number: int) -> int:
    """The chief's number, on every worker; all have to ask.

    Example:
      >>> of_the_chief(tf.distribute.get_strategy(), 7)
      7
    """
    worker = this_worker(strategy)
    if worker.count == 1:
        return number

    @tf.function
    def meet(number: tf.Tensor) -> tf.Tensor:
        def one(number: tf.Tensor) -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            is_first = tf.equal(context.replica_id_in_sync_group, 0)
            return context.all_reduce(
                tf.distribute.ReduceOp.SUM, tf.where(is_first, number, tf.zeros_like(number))
            )

        return strategy.experimental_local_results(strategy.run(one, args=(number,)))[0]

    return int(meet(tf.constant(number)).numpy())
