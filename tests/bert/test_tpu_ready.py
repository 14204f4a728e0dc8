"""What is said of a recipe and TPUs: each defect is seen, and the tiny model has none."""

import dataclasses
import json
import pathlib
import sys
import types
from collections.abc import Callable

import pytest
import tensorflow as tf
from official.core import config_definitions

from official_bert import configuration, experiments, hlo, tpu_program, tpu_ready, trainer
from tf_lans import compiled_update
from tfrecords.errors import UserError

Tiny = Callable[..., config_definitions.ExperimentConfig]

HEAD = "HloModule m, entry_computation_layout={(f32[2,3]{1,0})->f32[2,3]{1,0}}\n\n"
CLEAN = (
    HEAD
    + """%add.1 (a: f32[], b: f32[]) -> f32[] {
  %a = f32[] parameter(0)
  %b = f32[] parameter(1)
  ROOT %c = f32[] add(f32[] %a, f32[] %b)
}

ENTRY %step (x: f32[2,3], n: s64[]) -> (f32[2,3], s64[]) {
  %x = f32[2,3]{1,0} parameter(0)
  %n = s64[] parameter(1)
  %one = s64[] constant(1)
  %next = s64[] add(s64[] %n, s64[] %one), metadata={op_type="AddV2" op_name="count"}
  %sum = f32[2,3]{1,0} all-reduce(f32[2,3]{1,0} %x), replica_groups={{0,1}}, to_apply=%add.1
  ROOT %out = (f32[2,3]{1,0}, s64[]) tuple(f32[2,3]{1,0} %sum, s64[] %next)
}
"""
)

DEFECTS = {
    "dynamic shape": "%y = f32[<=2,3]{1,0} negate(f32[2,3]{1,0} %x)",
    "host": "%y = ((f32[2]{0}), token[]) infeed(token[] %t)",
    "custom call": '%y = f32[2]{0} custom-call(f32[2,3] %x), custom_call_target="py_callback"',
    "stateful random numbers": "%y = f32[2]{0} rng(f32[] %z, f32[] %z), distribution=rng_uniform",
    "64-bit integers": "%y = s64[2,3]{1,0} convert(f32[2,3]{1,0} %x)",
    "64-bit floats": "%y = f64[2,3]{1,0} convert(f32[2,3]{1,0} %x)",
    "unknown type": "%y = string[2]{0} parameter(2)",
}


def test_a_clean_program_is_read_whole() -> None:
    program = hlo.parse(CLEAN)
    assert (program.name, program.entry, len(program.instructions)) == ("m", "step", 9)
    assert program.argument_bytes == 2 * 3 * 4 + 8
    assert program.collective_bytes == 2 * 3 * 4
    assert program.opcodes["parameter"] == 4
    following = program.by_name["next"]
    assert following.operands == ("n", "one")
    assert (following.op_type, following.op_name) == ("AddV2", "count")
    assert [str(shape) for shape in program.by_name["out"].shapes] == ["f32[2,3]", "s64[]"]
    assert hlo.findings(program) == []


@pytest.mark.parametrize("check", DEFECTS)
def test_each_defect_is_found_and_nothing_else(check: str) -> None:
    line = f'  {DEFECTS[check]}, metadata={{op_type="Made" op_name="layer_7/made"}}\n'
    program = hlo.parse(CLEAN.replace("  %one =", line + "  %one ="))
    (finding,) = hlo.findings(program)
    assert (finding.check, finding.count) == (check, 1)
    assert "layer_N" in str(finding)


def test_a_64_bit_index_is_found_and_a_random_key_is_none() -> None:
    sliced = "  %y = f32[1,3]{1,0} dynamic-slice(f32[2,3] %x, s64[] %n, s64[] %n)\n"
    (finding,) = hlo.findings(hlo.parse(CLEAN.replace("  %one =", sliced + "  %one =")))
    assert finding.check == "64-bit integers"
    key = "  %y = (u64[3]{0}, u32[2,3]{1,0}) rng-bit-generator(u64[3]{0} %k)\n"
    assert not hlo.findings(hlo.parse(CLEAN.replace("  %one =", key + "  %one =")))


def test_text_of_something_else_is_refused() -> None:
    for text in ("", "func.func @main() {}", CLEAN + CLEAN):
        with pytest.raises(ValueError, match="one HloModule"):
            hlo.parse(text)


def test_an_accelerators_update_can_be_traced_on_a_cpu() -> None:
    with tf.device("CPU:0"):
        variable = tf.Variable(1.0)
    assert compiled_update.on_cpu(variable)
    with compiled_update.whole_blocks():
        assert not compiled_update.on_cpu(variable)
    assert compiled_update.on_cpu(variable)


@pytest.fixture(scope="module")
def report(tiny: Tiny) -> tpu_ready.Report:
    """Of the tiny model with dropout, in two micro-batches on each of four cores."""
    params = tiny(
        task__micro_batch_size=4,
        task__model__encoder__bert__dropout_rate=0.1,
        task__model__encoder__bert__attention_dropout_rate=0.1,
        task__model__encoder__bert__num_layers=1,
    )
    return tpu_ready.examine("tiny", params, cores=4)


def test_the_tiny_model_is_one_clean_program(report: tpu_ready.Report) -> None:
    assert report.problems == ()
    assert report.clusters == 1
    assert (report.share, report.micro_batch) == (8, 4)
    assert report.collectives > 1


def test_gradients_are_summed_once_a_step(report: tpu_ready.Report) -> None:
    # The rest is scalars.
    gradients = report.estimate.gradients / 2
    assert gradients <= report.collective_bytes <= gradients + 1024


def test_its_arguments_are_weights_moments_and_batch(report: tpu_ready.Report) -> None:
    least = report.estimate.weights + report.estimate.optimizer
    assert least <= report.argument_bytes <= least * 1.2


def test_it_computes_compiled_what_it_computes_plain(report: tpu_ready.Report) -> None:
    """Up to the order of float32 sums, which rounds to 6e-8.

    The logs are sums over a thousand or so terms, which come apart by sqrt(1000) 6e-8 = 2e-6; five
    times that is allowed. So do gradients, but LANS divides each element by its own size: where an
    element's gradient is a share t of what is typical, its step comes apart by 2e-6 / t, and by no
    more than all of it. Over all t the root mean square is sqrt(2 * 2e-6) = 2e-3; again five times
    that.
    """
    assert report.difference is not None
    assert report.difference.logs < 1e-5
    assert report.difference.weights < 1e-2


def test_too_large_a_difference_is_a_problem(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def problems(logs: float, weights: float, programs: int = 1) -> list[str]:
        found = tpu_program.Difference(logs=logs, weights=weights, block="w")
        monkeypatch.setattr(tpu_program, "compiled_against_plain", lambda _: found)
        clusters = types.SimpleNamespace(programs=programs)
        monkeypatch.setattr(tpu_program, "traced_by_tpu_strategy", lambda _: clusters)
        return tpu_ready._run(tiny())[1]

    assert problems(9e-6, 9e-3) == []
    for logs, weights in ((1.1e-5, 0.0), (0.0, 1.1e-2)):
        (problem,) = problems(logs, weights)
        assert problem.startswith("compiled and plain steps differ: ")
    assert problems(0.0, 0.0, programs=2) == ["TPUStrategy makes 2 programs of a step; expected 1"]


def test_the_report_says_all_of_it(report: tpu_ready.Report) -> None:
    sizes = {"arguments": 2**20, "temporaries": 2**20, "peak": 2**30}
    compiled = {"core": "TPU v5 lite", "seconds": 3.0, **sizes}
    text = "\n".join(tpu_ready.lines(dataclasses.replace(report, compiled=compiled)))
    for part in ("4 cores", "problems      none", "1 program a step", "TPU v5 lite: 1.0 GiB"):
        assert part in text
    broken = dataclasses.replace(report, problems=("custom call: x (1 times)",))
    assert "PROBLEM       custom call: x" in "\n".join(tpu_ready.lines(broken))


def test_a_batch_that_cores_cannot_share_is_refused(tiny: Tiny) -> None:
    with pytest.raises(UserError, match="multiple of 5 cores"):
        tpu_program.share_of(tiny(), 5)
    with pytest.raises(UserError, match="micro_batch_size 3"):
        tpu_program.share_of(tiny(task__micro_batch_size=3), 4)


def test_what_xla_cannot_express_is_named(tiny: Tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    def one_step(self: object, *_: object) -> tf.Tensor:
        return tf.py_function(lambda: 1.0, [], tf.float32)

    monkeypatch.setattr(trainer.Trainer, "_step_row", one_step)
    with pytest.raises(UserError, match="no XLA program holds its whole step: .*EagerPyFunc"):
        tpu_ready.examine("tiny", tiny(), cores=4)


def fake_compiler(folder: pathlib.Path, code: str) -> str:
    path = folder / "python"
    path.write_text(f"#!{sys.executable}\nimport pathlib, sys\n{code}\n")
    path.chmod(0o755)
    return str(path)


def test_the_compilers_answer_and_its_failures(tmp_path: pathlib.Path) -> None:
    answer = json.dumps({"peak": 7})
    writes = f"pathlib.Path(sys.argv[-1].split('=')[1]).write_text({answer!r})"
    compiler = fake_compiler(tmp_path, writes)
    assert tpu_ready.compile_for_tpu(b"", "v5e:2x4", compiler) == {"peak": 7}
    failing = fake_compiler(tmp_path, "sys.exit('ModuleNotFoundError: No module named jax')")
    with pytest.raises(UserError, match="No module named jax"):
        tpu_ready.compile_for_tpu(b"", "v5e:2x4", failing)
    with pytest.raises(UserError, match="No such file"):
        tpu_ready.compile_for_tpu(b"", "v5e:2x4", str(tmp_path / "absent"))


def small(tiny_arguments: tuple[str, str], *overrides: str) -> list[str]:
    config_file, data = tiny_arguments
    layers = "task.model.encoder.bert.num_layers=1"
    text = ",".join([data, layers, *overrides])
    return [f"--config_file={config_file}", f"--params_override={text}"]


def test_the_command_on_a_sound_recipe(
    tiny_arguments: tuple[str, str], capfd: pytest.CaptureFixture
) -> None:
    assert tpu_ready.main([*small(tiny_arguments), "--num_replicas=4"]) == 0
    head, *rest = capfd.readouterr().out.splitlines()
    assert head == "tiny.yaml: 4 cores, 8 examples a step on each, 8 at a time"
    assert rest[-1].split() == ["problems", "none"]
    assert any(line.split()[:3] == ["TPUStrategy", "1", "program"] for line in rest)


def test_the_command_fails_where_the_compiler_refuses(
    tmp_path: pathlib.Path, tiny_arguments: tuple[str, str], capfd: pytest.CaptureFixture
) -> None:
    answer = json.dumps({"error": "out of memory", "core": "TPU v5 lite"})
    noted = tmp_path / "arguments"
    compiler = fake_compiler(
        tmp_path,
        f"pathlib.Path({str(noted)!r}).write_text(' '.join(sys.argv[1:]))\n"
        "result = sys.argv[-1].removeprefix('--output=')\n"
        f"pathlib.Path(result).write_text({answer!r})",
    )
    recipe = small(tiny_arguments, "runtime.distribution_strategy=tpu")
    assert tpu_ready.main([*recipe, "--num_replicas=8", f"--compiler={compiler}"]) == 2
    said = capfd.readouterr()
    assert "PROBLEM       the TPU's compiler: out of memory" in said.out.splitlines()[-1]
    (error,) = [line for line in said.err.splitlines() if line.startswith("error: ")]
    assert error == f"error: not ready for TPUs: {tiny_arguments[0]}; the report says why"
    assert "--topology=v5e:2x4" in noted.read_text().split()


def test_the_command_names_the_slices_there_are(
    tiny_arguments: tuple[str, str], capfd: pytest.CaptureFixture
) -> None:
    arguments = [*small(tiny_arguments), "--num_replicas=2", "--compiler=python"]
    assert tpu_ready.main(arguments) == 2
    (error,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert error == "error: --num_replicas is 2; v5e has slices of 4, 8, 16, 32, 64, 128, 256"


@pytest.mark.parametrize("phase", [1, 2])
def test_a_tpu_recipe_is_the_papers_but_for_where_it_runs(phase: int) -> None:
    experiments.register()
    name = f"bert_large_phase{phase}"
    params, papers = (
        configuration.load(experiments.PRETRAINING, [f"{name}{suffix}.yaml"])
        for suffix in ("_tpu", "")
    )
    assert params.runtime.distribution_strategy == "tpu"
    assert params.runtime.mixed_precision_dtype == "bfloat16"
    assert params.trainer.steps_per_loop > 1
    assert params.trainer.checkpoint_interval % params.trainer.steps_per_loop == 0
    tpu_program.share_of(params, tpu_ready.TPU_RECIPE_CORES)
    for section in ("optimizer_config", "train_steps"):
        assert getattr(params.trainer, section) == getattr(papers.trainer, section)
    assert params.task.model == papers.task.model
    assert params.task.train_data == papers.task.train_data
