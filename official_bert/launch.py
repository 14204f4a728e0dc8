r"""Starts a training command as local workers of one job, and all of them again when one dies.

Example::

  python -m official_bert.launch --num_workers=2 -- --config_file=bert_tiny_phase1.yaml \
    --params_override=task.train_data.input_path=shards,task.validation_data.input_path=shards \
    --model_dir=run

What stands after `--` are the flags of official_bert.train, or of what --command names. The exit
code is 0 when the job is done, 2 for a mistake in the flags, 42 after SIGTERM (start me again), 130
after Ctrl-C and 1 when --max_restarts is used up. docs/scale.md has the rest.
"""

import json
import os
import re
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import BinaryIO

import yaml
from absl import flags

from official_bert import output_lines, supervision
from tfrecords import command
from tfrecords.errors import UserError

FINETUNE = "official_bert.finetune"
COMMANDS = ("official_bert.train", "official_bert.pretrain", FINETUNE)
MANY_WORKERS = "multi_worker_mirrored"
_MANY_GPUS = "mirrored"

_STRATEGY, _NUM_GPUS = "runtime.distribution_strategy", "runtime.num_gpus"
_ALONE = ("one_device", "mirrored")
_VISIBLE = "CUDA_VISIBLE_DEVICES"

# One field of Model Garden's a.b=1,c.d=x.
_FIELD = re.compile(
    r"""(?P<name>[a-zA-Z][\w.]*)(\[[0-9]*\])?\s*=\s*
        (?P<value>'[^']*'|"[^"]*"|\[[^\]]*\]|[^,\[]*)(,\s*|$)""",
    re.VERBOSE,
)

_ADDRESS = re.compile(r"[a-zA-Z][\w+.-]*://")

FLAGS = flags.FlagValues()
flags.DEFINE_integer(
    "num_workers", None, "Processes to start.", required=True, lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_integer(
    "max_restarts", 3, "How often to start again after a worker died or hung.", lower_bound=0,
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_float(
    "grace_seconds", 30.0, "What workers have to save after SIGTERM; handed to them.",
    lower_bound=0, flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_float(
    "hang_seconds", 1800.0,
    "A worker that gets no step, evaluation or save done for so long is taken to hang; 0: never. "
    "The start and the compilation of the first step count too.",
    lower_bound=0, flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_string(
    "log_dir", "", "Local folder of worker-<i>.log; by default MODEL_DIR/logs.", flag_values=FLAGS
)
flags.DEFINE_enum("command", COMMANDS[0], COMMANDS, "What a worker runs.", flag_values=FLAGS)
flags.DEFINE_integer(
    "gpus_per_worker", 0,
    "GPUs that each worker sees, by CUDA_VISIBLE_DEVICES, and uses; 0 leaves both as they are.",
    lower_bound=0, flag_values=FLAGS,
)  # fmt: skip


def job_from(
    flag_values: flags.FlagValues, arguments: Sequence[str], environ: Mapping[str, str]
) -> supervision.Job:
    """The job that the launcher's flags and the workers' flags ask for.

    Args:
      flag_values: the launcher's own flags.
      arguments: the workers' flags.
      environ: the launcher's environment.

    Raises:
      UserError: there is no place for the logs, a strategy that uses one process only, a cluster
        of the user's own, too few GPUs.
    """
    workers, gpus = flag_values.num_workers, flag_values.gpus_per_worker
    try:
        arguments = flags.FlagValues().read_flags_from_files(list(arguments))
    except flags.Error as error:
        raise UserError(f"{error}; give a readable --flagfile") from error
    devices = gpu_environments(workers, gpus, environ.get(_VISIBLE))

    def environments() -> list[dict[str, str]]:
        clusters = cluster_environments(free_ports(workers))
        return [
            {"PYTHONUNBUFFERED": "1", **cluster, **visible}
            for cluster, visible in zip(clusters, devices, strict=True)
        ]

    command_line = [sys.executable, "-m", flag_values.command]
    # The user's own --grace_seconds comes later and wins.
    command_line += [f"--grace_seconds={flag_values.grace_seconds:g}", *arguments]
    finds = _finetuning_arguments if flag_values.command == FINETUNE else _strategy_arguments
    command_line += finds(arguments, workers, gpus)
    return supervision.Job(
        command=command_line,
        environments=environments,
        log_dir=flag_values.log_dir or _default_log_dir(arguments),
        max_restarts=flag_values.max_restarts,
        grace_seconds=_grace_seconds(arguments, flag_values.grace_seconds),
        hang_seconds=flag_values.hang_seconds,
    )


def last_value(arguments: Sequence[str], name: str) -> str | None:
    """The value of a worker's flag, which absl takes from its last occurrence; None without one.

    Example:
      >>> last_value(["--model_dir=a", "--model_dir", "b"], "model_dir")
      'b'
    """
    value = None
    for index, argument in enumerate(arguments):
        flag, equals, text = argument.partition("=")
        if flag not in (f"--{name}", f"-{name}"):
            continue
        if equals:
            value = text
        elif index + 1 < len(arguments):
            value = arguments[index + 1]
    return value


def with_defaults(override: str, defaults: Mapping[str, str]) -> str:
    """A `--params_override` that also sets the fields of `defaults` that it does not name.

    Args:
      override: what the user gave: nothing, `a.b=1,c.d=x`, YAML or JSON, or a YAML file's name.
      defaults: values by dotted name.

    Returns:
      The override in its own form, a file's as the text of the file; a text that is none of these
      as it is, for the worker to refuse.

    Example:
      >>> with_defaults("trainer.train_steps=10", {"runtime.num_gpus": "2"})
      'runtime.num_gpus=2,trainer.train_steps=10'
    """
    named = override_values(override)
    missing = {name: value for name, value in defaults.items() if name not in named}
    pairs = [f"{name}={value}" for name, value in missing.items()]
    if not missing:
        return override
    if _is_pairs(override):
        return ",".join([*pairs, override])
    text = _content(override)
    if not text.strip():
        return ",".join(pairs)
    root = _compose(text)
    if not isinstance(root, yaml.MappingNode):
        return override
    for name, value in missing.items():
        _set(root, name.split("."), value)
    # Nodes, not values: 1e-3 stays as it was written, whatever this parser would make of it.
    return yaml.serialize(root)


def override_values(override: str) -> dict[str, str]:
    """What a `--params_override` says of each field, by dotted name, as it is written there."""
    if _is_pairs(override):
        return {found["name"]: found["value"].strip("'\" ") for found in _FIELD.finditer(override)}
    root = _compose(_content(override))
    return dict(_leaves(root, "")) if isinstance(root, yaml.MappingNode) else {}


def free_ports(number: int) -> list[int]:
    """As many loopback ports as asked for, all different, that nobody listened on just now."""
    listening = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [server.getsockname()[1] for server in listening]
    for server in listening:
        server.close()
    return ports


def cluster_environments(ports: Sequence[int]) -> list[dict[str, str]]:
    """`TF_CONFIG` of each worker of a cluster on this machine."""
    cluster = {"worker": [f"127.0.0.1:{port}" for port in ports]}
    return [
        {"TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})}
        for index in range(len(ports))
    ]


def gpu_environments(workers: int, gpus: int, visible: str | None) -> list[dict[str, str]]:
    """`CUDA_VISIBLE_DEVICES` of each worker: its share of what this process may see.

    Raises:
      UserError: there are fewer than `workers * gpus`.

    Example:
      >>> gpu_environments(2, 2, "4,5,6,7")
      [{'CUDA_VISIBLE_DEVICES': '4,5'}, {'CUDA_VISIBLE_DEVICES': '6,7'}]
    """
    if not gpus:
        return [{} for _ in range(workers)]
    if visible is None:
        devices = [str(index) for index in range(workers * gpus)]
    else:
        devices = [device for device in visible.split(",") if device.strip()]
    if len(devices) < workers * gpus:
        raise UserError(
            f"--num_workers={workers} with --gpus_per_worker={gpus} needs {workers * gpus} GPUs; "
            f"CUDA_VISIBLE_DEVICES has {len(devices)}; lower one of them"
        )
    return [
        {_VISIBLE: ",".join(devices[index * gpus : (index + 1) * gpus])} for index in range(workers)
    ]


def _strategy(workers: int, gpus: int) -> str | None:
    """What uses all of them; None where the default does."""
    if workers > 1:
        return MANY_WORKERS
    return _MANY_GPUS if gpus > 1 else None


def _strategy_arguments(arguments: Sequence[str], workers: int, gpus: int) -> list[str]:
    strategy = _strategy(workers, gpus)
    defaults = {_STRATEGY: strategy} if strategy else {}
    defaults |= {_NUM_GPUS: str(gpus)} if gpus else {}
    if not defaults:
        return []
    override = last_value(arguments, "params_override") or ""
    if _ADDRESS.match(override):
        raise UserError(
            f"--params_override is {override}; the launcher adds {', '.join(defaults)} to it, and "
            "reads local files only: give a local file, or a.b=value pairs"
        )
    named = override_values(override)
    if workers > 1 and named.get(_STRATEGY, "").lower() in _ALONE:
        raise UserError(
            f"{_STRATEGY} is {named[_STRATEGY]!r}, and --num_workers {workers}: each worker would "
            f"train alone, all into one --model_dir; leave the field out, or give {MANY_WORKERS}"
        )
    for name in ("runtime.worker_hosts", "runtime.task_index"):
        if workers > 1 and name in named:
            raise UserError(
                f"--params_override names {name}, and the launcher makes a cluster of its own on "
                "this machine; leave one of them out"
            )
    return [f"--params_override={with_defaults(override, defaults)}"]


def _finetuning_arguments(arguments: Sequence[str], workers: int, gpus: int) -> list[str]:
    """As `_strategy_arguments`, for a command with flags in place of a config."""
    given = last_value(arguments, "distribution_strategy")
    if workers > 1 and given in _ALONE:
        raise UserError(
            f"--distribution_strategy is {given!r}, and --num_workers {workers}: each worker would "
            f"train alone, all into one --model_dir; leave it out, or give {MANY_WORKERS}"
        )
    added = []
    strategy = _strategy(workers, gpus)
    if strategy and given is None:
        added.append(f"--distribution_strategy={strategy}")
    if gpus and last_value(arguments, "num_gpus") is None:
        added.append(f"--num_gpus={gpus}")
    return added


def _default_log_dir(arguments: Sequence[str]) -> str:
    model_dir = last_value(arguments, "model_dir")
    if not model_dir:
        raise UserError(
            "no --model_dir among the workers' flags, which stand after --, as in "
            "python -m official_bert.launch --num_workers=2 -- --model_dir=run ..."
        )
    if "://" in model_dir:
        raise UserError(
            f"--model_dir is {model_dir}, and logs are local files; give --log_dir a local folder"
        )
    return os.path.join(model_dir, "logs")


def _grace_seconds(arguments: Sequence[str], given: float) -> float:
    """What the workers will take: their own flag's value, where the user gave it."""
    own = last_value(arguments, "grace_seconds")
    try:
        return given if own is None else float(own)
    except ValueError:
        return given


def _is_pairs(override: str) -> bool:
    return bool(_FIELD.match(override)) and not os.path.isfile(override)


def _content(override: str) -> str:
    if not os.path.isfile(override):
        return override
    with open(override, encoding="utf-8", errors="replace") as stream:
        return stream.read()


def _compose(text: str) -> yaml.Node | None:
    try:
        return yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return None  # the worker says what is wrong with it


def _leaves(node: yaml.MappingNode, path: str) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for key, value in node.value:
        name = f"{path}{key.value}"
        if isinstance(value, yaml.MappingNode):
            found += _leaves(value, f"{name}.")
        else:
            found.append((name, value.value if isinstance(value, yaml.ScalarNode) else ""))
    return found


def _set(node: yaml.MappingNode, names: Sequence[str], value: str) -> None:
    if len(names) == 1:
        node.value.append((_scalar(names[0]), _scalar(value)))
        return
    below = [child for key, child in node.value if key.value == names[0]]
    if not below or not isinstance(below[-1], yaml.MappingNode):
        below = [yaml.MappingNode("tag:yaml.org,2002:map", [], flow_style=node.flow_style)]
        node.value.append((_scalar(names[0]), below[-1]))
    _set(below[-1], names[1:], value)


def _scalar(text: str) -> yaml.ScalarNode:
    kind = "int" if text.isdecimal() else "str"
    return yaml.ScalarNode(f"tag:yaml.org,2002:{kind}", text)


class Screen:
    """Standard output, each line with its speaker; a reader that has gone stops nothing."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream: BinaryIO | None = stream

    def show(self, speaker: str, lines: Sequence[bytes]) -> None:
        """Writes the lines as `[speaker] line`."""
        if self._stream is None or not lines:
            return
        try:
            self._stream.write(b"".join(b"[%s] %s\n" % (speaker.encode(), line) for line in lines))
            self._stream.flush()
        except OSError as error:
            output_lines.let_go(self._stream, error)
            self._stream = None


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see the module's docstring."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    at = arguments.index("--") if "--" in arguments else len(arguments)
    endings: list[supervision.Ending] = []

    def body(flag_values: flags.FlagValues) -> None:
        job = job_from(flag_values, arguments[at + 1 :], os.environ)
        try:
            endings.append(supervision.supervise(job, Screen(sys.stdout.buffer).show))
        except OSError as error:
            # Of the logs most often; unlike a mistake, worth another start by who started this.
            endings.append(supervision.Ending(code=supervision.FAILED, error=str(error)))

    code = command.run(body, FLAGS, arguments[:at])
    if not endings:
        return code
    if endings[0].error:
        print(f"error: {endings[0].error}", file=sys.stderr)
    return endings[0].code


if __name__ == "__main__":
    sys.exit(main())
