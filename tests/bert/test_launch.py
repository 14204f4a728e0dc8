"""The launcher's command: what it makes of its flags and of its workers'."""

import pathlib
import subprocess
import sys

import pytest

from official_bert import configuration, launch, supervision
from official_bert.supervision import Ending, Job
from tfrecords.errors import UserError

ROOT = pathlib.Path(__file__).resolve().parents[2]
STRATEGY = "runtime.distribution_strategy"
LONG = 60.0  # seconds until a broken test gives up; nothing that passes waits for it


def test_ports_are_different() -> None:
    """That they are free is the system's to say, and no longer so when another test asks."""
    assert len(set(launch.free_ports(50))) == 50


OVERRIDES: dict[str, tuple[str, dict]] = {
    "nothing": ("", {}),
    "pairs": (
        "trainer.train_steps=10, task.train_data.input_path='gs://b,c',task.x=[1,2],a.rate=1e-3",
        {
            "trainer": {"train_steps": 10},
            "task": {"train_data": {"input_path": "gs://b,c"}, "x": [1, 2]},
            "a": {"rate": 0.001},
        },
    ),
    "pairs with a comma after": ("trainer.train_steps=10,", {"trainer": {"train_steps": 10}}),
    "pairs of the same section": (
        "runtime.all_reduce_alg=ring",
        {"runtime": {"all_reduce_alg": "ring"}},
    ),
    "YAML": ("{trainer: {rate: 1e-3, text: '1e-3'}}", {"trainer": {"rate": 0.001, "text": "1e-3"}}),
    "YAML of lines": (
        "runtime:\n  all_reduce_alg: ring\ntask: &t\n  x: [1, 2]\nother: *t\n",
        {"runtime": {"all_reduce_alg": "ring"}, "task": {"x": [1, 2]}, "other": {"x": [1, 2]}},
    ),
    "JSON": ('{"task": {"x": 10, "on": true}}', {"task": {"x": 10, "on": True}}),
    "an empty section": ("{runtime: {}}", {"runtime": {}}),
}
PLACES = [
    pytest.param(name, in_file, id=f"{name}, in a file" if in_file else name)
    for name in OVERRIDES
    for in_file in (False, True)
    if not (in_file and name.startswith("pairs"))  # a file holds YAML
]


@pytest.mark.parametrize(("name", "in_file"), PLACES)
def test_the_strategy_joins_any_override(tmp_path, name: str, in_file: bool) -> None:
    text, values = OVERRIDES[name]
    if in_file:
        (tmp_path / "override.yaml").write_text(text)
        text = str(tmp_path / "override.yaml")
    defaults = {STRATEGY: "multi_worker_mirrored", "runtime.num_gpus": "2"}
    ours = {"distribution_strategy": "multi_worker_mirrored", "num_gpus": 2}
    expected = dict(values) | {"runtime": values.get("runtime", {}) | ours}
    # What official_bert.train makes of it, in Model Garden's own code.
    assert configuration._parse_override(launch.with_defaults(text, defaults)) == expected


@pytest.mark.parametrize(
    "text",
    [
        f"{STRATEGY}=tpu",
        f"trainer.x=1,{STRATEGY} = 'tpu'",
        "{runtime: {distribution_strategy: tpu}}",
        "runtime:\n  distribution_strategy: tpu\n",
    ],
)
def test_a_strategy_of_the_users_own_stays(text: str) -> None:
    assert launch.with_defaults(text, {STRATEGY: "multi_worker_mirrored"}) == text


@pytest.mark.parametrize("text", ["[1, 2]", "{broken", "word", "=", "a: b: c"])
def test_what_is_no_override_is_left_for_the_worker_to_refuse(text: str) -> None:
    assert launch.with_defaults(text, {STRATEGY: "multi_worker_mirrored"}) == text


def parsed(*arguments: str):
    launch.FLAGS.unparse_flags()
    launch.FLAGS(["command", *arguments])
    return launch.FLAGS


def test_the_command_of_a_job(tmp_path) -> None:
    (tmp_path / "flags").write_text("--params_override=a.b=1\n--params_override=c.d=2\n")
    found = launch.job_from(
        parsed("--num_workers=2", "--grace_seconds=7", "--gpus_per_worker=1", "--hang_seconds=5"),
        [f"--flagfile={tmp_path / 'flags'}", "--model_dir", "run", "--grace_seconds=9"],
        {"CUDA_VISIBLE_DEVICES": "3,5"},
    )
    assert found.command == [
        sys.executable, "-m", "official_bert.train", "--grace_seconds=7",
        "--params_override=a.b=1", "--params_override=c.d=2", "--model_dir", "run",
        "--grace_seconds=9",
        f"--params_override={STRATEGY}=multi_worker_mirrored,runtime.num_gpus=1,c.d=2",
    ]  # fmt: skip
    assert (found.log_dir, found.grace_seconds, found.hang_seconds) == ("run/logs", 9.0, 5.0)
    assert [one["CUDA_VISIBLE_DEVICES"] for one in found.environments()] == ["3", "5"]


def test_one_worker_keeps_its_strategy() -> None:
    flag_values = parsed("--num_workers=1", "--command=official_bert.pretrain")
    found = launch.job_from(flag_values, ["--model_dir=run"], {})
    assert found.command[2:] == ["official_bert.pretrain", "--grace_seconds=30", "--model_dir=run"]


@pytest.mark.parametrize(
    ("command", "added"),
    [
        ("train", f"--params_override={STRATEGY}=mirrored,runtime.num_gpus=2"),
        ("finetune", "--distribution_strategy=mirrored --num_gpus=2"),
    ],
)
def test_one_worker_uses_all_of_its_gpus(command: str, added: str) -> None:
    own = ("--num_workers=1", "--gpus_per_worker=2", f"--command=official_bert.{command}")
    found = launch.job_from(parsed(*own), ["--model_dir=run"], {})
    assert found.command[-len(added.split()) :] == added.split()


@pytest.mark.parametrize(
    ("own", "workers", "message"),
    [
        (["--num_workers=2"], ["--config_file=x.yaml"], "no --model_dir among the workers' flags"),
        (["--num_workers=1"], ["--model_dir=gs://bucket/run"], "give --log_dir a local folder"),
        (
            ["--num_workers=2"],
            ["--model_dir=run", f"--params_override={STRATEGY}=one_device"],
            "each worker would train alone",
        ),
        (
            ["--num_workers=2"],
            ["--model_dir=run", "--params_override={runtime: {worker_hosts: 'a:1,b:1'}}"],
            "names runtime.worker_hosts",
        ),
        (
            ["--num_workers=2"],
            ["--model_dir=run", "--params_override=gs://bucket/override.yaml"],
            "reads local files only",
        ),
    ],
)
def test_mistakes_are_refused(own: list[str], workers: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        launch.job_from(parsed(*own), workers, {})


def test_too_few_gpus_are_refused() -> None:
    with pytest.raises(UserError, match="needs 4 GPUs; CUDA_VISIBLE_DEVICES has 3"):
        launch.gpu_environments(2, 2, "0,1,2")


@pytest.mark.parametrize(
    "arguments", [[], ["--num_workers=0"], ["--num_workers=1", "--command=os"], ["--model_dir=x"]]
)
def test_the_command_refuses_flags(arguments: list[str], capsys) -> None:
    assert launch.main(arguments) == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_the_command_ends_as_its_job(monkeypatch, capsys) -> None:
    jobs: list[Job] = []

    def supervise(job: Job, show: supervision.Show) -> Ending:
        jobs.append(job)
        return Ending(code=1, error="worker 0 died")

    monkeypatch.setattr(supervision, "supervise", supervise)
    assert launch.main(["--num_workers=1", "--", "--model_dir=run", "--help"]) == 1
    assert capsys.readouterr().err == "error: worker 0 died\n"
    assert jobs[0].command[-1] == "--help"


def test_a_log_that_cannot_be_written_is_worth_another_start(tmp_path, capsys) -> None:
    (tmp_path / "logs/worker-0.log").mkdir(parents=True)
    assert launch.main(["--num_workers=1", "--", f"--model_dir={tmp_path}"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "worker-0.log" in error and error.count("\n") == 1


def test_the_launcher_starts_without_tensorflow() -> None:
    check = "import sys, official_bert.launch; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", check], cwd=ROOT, check=True, timeout=LONG)
