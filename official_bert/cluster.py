"""Which worker this process is, and how the workers wait for each other."""

import dataclasses
import json
import os
from collections.abc import Mapping

import tensorflow as tf

from tfrecords.errors import UserError

_JOBS = ("chief", "worker")


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
        return tf.distribute.cluster_resolver.SimpleClusterResolver(
            tf.train.ClusterSpec({"worker": hosts}),
            task_type="worker",
            task_id=task_index,
            rpc_layer="grpc",
        )
    if environment.get("TF_CONFIG"):
        _check_tf_config(environment["TF_CONFIG"])
        return tf.distribute.cluster_resolver.TFConfigClusterResolver()
    if "SLURM_PROCID" in environment:
        return tf.distribute.cluster_resolver.SlurmClusterResolver()
    raise UserError(
        "runtime.distribution_strategy is multi_worker_mirrored, but nothing says who the workers "
        "are: start them with python -m official_bert.launch or srun, or set TF_CONFIG, or "
        "runtime.worker_hosts and runtime.task_index"
    )


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


def wait_for_all(strategy: tf.distribute.Strategy) -> None:
    """Returns when every worker has come here; at once where there is one."""
    if this_worker(strategy).count == 1:
        return

    @tf.function
    def meet() -> tf.Tensor:
        def one() -> tf.Tensor:
            context = tf.distribute.get_replica_context()
            return context.all_reduce(tf.distribute.ReduceOp.SUM, tf.ones([]))

        return strategy.experimental_local_results(strategy.run(one))[0]

    meet().numpy()
