r"""Do LANS and LAMB pay? Equally tuned optimizers at growing batches, on as many examples.

    python -m benchmarks.large_batch --budget_hours=8 --corpus='text/*.txt'
    python -m benchmarks.large_batch --quick

A small BERT is pretrained on the same examples in the same order by every method. At the largest
batch each method has the same random draws of rate, beta_2 and warmup; at the others its rate is
tuned around what scaling rules say; then it runs on fresh seeds at its best. Settings are chosen
by one held-out part of the text and reported on another. With `--draws=5,12` a study of five draws
is made whole, and one of twelve goes on from it; the first is reported until the second is whole.

The command prints how long all of it takes, then works until `--budget_hours` are used up. Each
finished run is a line in `--results`, and is not done again: killed or stopped, go on by the same
command. The first Ctrl-C or SIGTERM lets the runs under way end, a second one does not. At the end
it draws what there is.

With KERAS_BACKEND=jax it runs on JAX, for instance on a GPU, without TensorFlow if --data names
rows that benchmarks.large_batch_corpus wrote elsewhere; `--batches` and `--examples` then grow.
"""

from __future__ import annotations

import dataclasses
import glob
import os
import pathlib
import subprocess
import sys
import time
from collections.abc import Sequence

from absl import flags

from benchmarks import (
    data_process,
    large_batch_charts,
    large_batch_methods,
    large_batch_queue,
    large_batch_report,
    large_batch_table,
    large_batch_workers,
    markdown_part,
)
from benchmarks.large_batch_data import Text
from benchmarks.large_batch_settings import ModelSizes, Study, fingerprint
from benchmarks.large_batch_workers import Stop, Worker
from tfrecords import command
from tfrecords.errors import UserError

_MODULE = "benchmarks.large_batch"
_HERE = pathlib.Path(__file__).parent
RESULTS = _HERE / "results" / "large_batch.jsonl"
_WORK = pathlib.Path("build", "large_batch")
_SHARED_TEXT = ("novels/*.txt", "wikitext-2/*.sentences.txt")  # of ../shared/data
# In place of the flags' defaults: minutes on two cores, with figures that say nothing.
QUICK = {
    "examples": 256,
    "batches": ["16", "64"],
    "layers": 1,
    "width": 16,
    "vocab_size": 512,
    "seq_length": 16,
    "max_predictions": 3,
    "held_out": 64,
    "draws": ["2"],
    "rates": 1,
    "seeds": 2,
    "micro_batch": 16,
    "variance_examples": 64,
    "packages": ["absl", "tqdm"],
    "variance": True,
}

FLAGS = flags.FlagValues()
flags.DEFINE_string("results", str(RESULTS), "Lines of finished runs.", flag_values=FLAGS)
flags.DEFINE_float(
    "budget_hours", None, "Start no run that would end later; empty: until all is done.",
    lower_bound=0.0, flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_string(
    "corpus", "", "Text: files, folders and globs, separated by commas; empty: the novels and "
    "WikiText of ../shared/data where they are, else docstrings.", flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_list(
    "packages", [], "The text is the docstrings of these; empty: as --corpus says.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_string(
    "data", "", "Rows of text, made of --corpus where the file is missing; empty: below build.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_string(
    "model", "", "module:function of your own model: it takes the sizes and returns a Keras 3 "
    "model from [word ids, masked positions] to logits; empty: a BERT.", flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_integer("layers", 2, "Of the model.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer("width", 128, "Of the model.", lower_bound=8, flag_values=FLAGS)
flags.DEFINE_integer("vocab_size", 8192, "Word pieces.", lower_bound=64, flag_values=FLAGS)
flags.DEFINE_integer("seq_length", 64, "Tokens of a row.", lower_bound=8, flag_values=FLAGS)
flags.DEFINE_integer(
    "max_predictions", 10, "Masked tokens of a row.", lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_integer("held_out", 4096, "Rows held out.", lower_bound=2, flag_values=FLAGS)
flags.DEFINE_list("batches", ["256", "1024", "4096"], "Ascending.", flag_values=FLAGS)
flags.DEFINE_integer("examples", 262_144, "Of each run.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_list(
    "draws", ["5", "12"], "At the largest batch; of several numbers, ascending, each makes a study "
    "whole before the next goes on from it.", flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_integer(
    "rates", len(large_batch_methods.GRID), "At each other batch.", lower_bound=1,
    upper_bound=len(large_batch_methods.GRID), flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_integer("seeds", 3, "At the best settings.", lower_bound=1, flag_values=FLAGS)
flags.DEFINE_integer(
    "micro_batch", 64, "Rows of one gradient; changes no result.", lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_integer(
    "processes", None, "Runs at a time; empty: one on each core, or on a GPU one.", lower_bound=1,
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_float(
    "target_loss", None, "Of the steps to it; empty: the last that was given for these runs, else "
    f"{large_batch_report.TARGET_BELOW_FREQUENCIES:g} below the loss of token frequencies.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_bool(
    "variance", False, "Measure the variance of gradients first, if it is not there.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_integer(
    "variance_examples", 2048, "Examples of that.", lower_bound=8, flag_values=FLAGS
)
flags.DEFINE_bool(
    "report_only", False, "Only draw what there is: of the study that was begun or gone on with "
    "last, or of that of --data, --corpus or --packages.", flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_string(
    "document", None, "Markdown file whose generated part is replaced.", flag_values=FLAGS
)
flags.DEFINE_bool("quick", False, "Tiny, to see that it runs.", flag_values=FLAGS)


def _apply_quick(flag_values: flags.FlagValues) -> None:
    """What was not given takes its small value; the tree's results are left alone."""
    for name, value in QUICK.items():
        if not flag_values[name].present:
            flag_values[name].value = value
    if not flag_values["results"].present:
        results = _WORK / "quick" / "results.jsonl"
        if not flag_values.report_only:
            results.unlink(missing_ok=True)  # what runs today is the question
        flag_values["results"].value = str(results)
    if not flag_values["data"].present and not flag_values["corpus"].present:
        flag_values["data"].value = str(_WORK / "quick" / "rows.npz")


def shared_text(folder: pathlib.Path) -> str:
    """Patterns, separated by commas, of the text in a folder like ../shared/data; "" without it."""
    patterns = [str(folder / pattern) for pattern in _SHARED_TEXT]
    return ",".join(patterns) if all(map(glob.glob, patterns)) else ""


def _stamps(corpus: str) -> list[tuple[str, int, int]]:
    """What changes when a text does: its files' names, sizes and times."""
    found = [pathlib.Path(each) for pattern in corpus.split(",") for each in glob.glob(pattern)]
    below = (file for each in found for file in (each.rglob("*") if each.is_dir() else [each]))
    stats = [(str(file), file.stat()) for file in below]
    return sorted((name, stat.st_size, stat.st_mtime_ns) for name, stat in stats)


def prepare(flag_values: flags.FlagValues) -> str:
    """The path of the rows, made in a process of its own where they are missing.

    Raises:
        UserError: that failed.
    """
    if not flag_values.corpus and not flag_values.packages:
        flag_values["corpus"].value = shared_text(_HERE.parents[1] / "shared" / "data")
    names = ("corpus", "vocab_size", "seq_length", "held_out")
    arguments = [f"--{name}={flag_values[name].value}" for name in names]
    if flag_values.packages:
        arguments.append(f"--packages={','.join(flag_values.packages)}")
    path = flag_values.data
    if not path:
        key = fingerprint({"arguments": arguments, "text": _stamps(flag_values.corpus)})
        path = str(_WORK / f"rows-{key}.npz")
    if not os.path.exists(path):
        print("preparing the text", flush=True)
        module = "benchmarks.large_batch_corpus"
        completed = subprocess.run(
            [sys.executable, "-m", module, f"--output={path}", *arguments],
            env={**os.environ, "PYTHONPATH": str(_HERE.parent), "TF_CPP_MIN_LOG_LEVEL": "3"},
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if completed.returncode:
            lines = completed.stderr.strip().splitlines()
            reason = lines[-1].removeprefix("error: ") if lines else "no message"
            raise UserError(f"the text could not be prepared: {reason}")
    return path


def _integers(flag_values: flags.FlagValues, name: str, example: str) -> tuple[int, ...]:
    """A list of them, ascending and positive."""
    given = flag_values[name].value
    try:
        found = tuple(int(each) for each in given)
    except ValueError:
        found = ()
    if not found or list(found) != sorted(set(found)) or found[0] < 1:
        raise UserError(
            f"--{name}={','.join(given)}; expected positive integers, ascending, such as {example}"
        )
    return found


def studies_of(flag_values: flags.FlagValues, text: Text, backend: str) -> list[Study]:
    """The studies that the flags and the text make, one for each number of draws.

    Raises:
        UserError: sizes do not fit each other or the text.
    """
    batches = _integers(flag_values, "batches", "256,1024")
    draws = _integers(flag_values, "draws", "5,12")
    seq_length = text.train.shape[1]
    if seq_length != flag_values.seq_length:
        raise UserError(
            f"--seq_length={flag_values.seq_length}, but the rows of --data are {seq_length} long; "
            "give that, or other rows"
        )
    if not flag_values.max_predictions < seq_length - 2:
        raise UserError(
            f"--max_predictions={flag_values.max_predictions}; expected less than {seq_length - 2}"
        )
    micro_batch = flag_values.micro_batch
    for name, found in (
        ("vocab_size", text.vocab_size),
        ("held_out", len(text.validation) + len(text.test)),
    ):
        # Fewer than asked for is what a small text gives.
        if flag_values[name].present and found > flag_values[name].value:
            raise UserError(
                f"--{name}={flag_values[name].value}, but --data has {found}; give that, or other "
                "rows"
            )
    for batch in batches:
        if batch > micro_batch and batch % micro_batch:
            raise UserError(f"--micro_batch={micro_batch} does not divide the batch {batch}")
    study = Study(
        data=text.sha256,
        model=flag_values.model,
        sizes=ModelSizes(
            layers=flag_values.layers,
            width=flag_values.width,
            vocab_size=text.vocab_size,
            seq_length=seq_length,
            max_predictions=flag_values.max_predictions,
        ),
        examples=flag_values.examples,
        batches=batches,
        draws=draws[-1],
        rates=flag_values.rates,
        seeds=flag_values.seeds,
        backend=backend,
    )
    return [
        dataclasses.replace(study, draws=number, earlier_draws=draws[:place])
        for place, number in enumerate(draws)
    ]


def _project(
    studies: Sequence[Study], staff: Sequence[Worker], flag_values: flags.FlagValues
) -> float:
    """Prints how long the studies take; the hours of a run."""
    study = studies[0]
    done = large_batch_queue.of_study(study, large_batch_queue.read(flag_values.results))
    method = large_batch_methods.METHODS["LANS eq. (9)"]
    run = dataclasses.replace(large_batch_methods.drawn(study, method, 0), batch=study.batches[0])
    rate = large_batch_workers.speed(staff, run, 0.0 if flag_values.quick else 5.0)
    hours = study.examples / rate / 3600
    print(
        f"{rate:,.0f} examples/s in {len(staff)} processes; a run takes "
        f"{60 * hours * len(staff):.1f} minutes",
        flush=True,
    )
    for study in studies:
        count = len(large_batch_queue.finished(study, done))
        all_ = large_batch_queue.total(study, done)
        print(
            f"with --draws={study.draws} {count} of {all_} runs are done; the others take "
            f"{(all_ - count) * hours:.1f} hours",
            flush=True,
        )
    return hours * len(staff)


def _work(studies: Sequence[Study], data: str, flag_values: flags.FlagValues) -> None:
    begin = time.monotonic()
    results, budget = flag_values.results, flag_values.budget_hours
    on_gpu = os.path.exists("/dev/nvidia0")
    count = flag_values.processes or (1 if on_gpu else len(os.sched_getaffinity(0)))
    stop = Stop()
    with (
        stop.listening(),
        large_batch_workers.workers(studies[0], data, flag_values.micro_batch, count) as staff,
    ):
        hours = _project(studies, staff, flag_values)
        measured = large_batch_report.variance(studies[0], large_batch_queue.read(results))
        if flag_values.variance and measured is None and not stop.is_set:
            record = staff[0].ask({"variance": flag_values.variance_examples})
            large_batch_queue.append(results, record)

        def may_start() -> bool:
            used = (time.monotonic() - begin) / 3600
            return budget is None or used + hours <= budget

        for study in studies:
            large_batch_workers.work(study, staff, results, may_start, stop)
        done = large_batch_queue.of_study(studies[0], large_batch_queue.read(results))
        if not may_start() and not all(
            large_batch_queue.is_complete(study, done) for study in studies
        ):
            print(f"the budget of {budget:g} hours has no room for another run", flush=True)


def report(studies: Sequence[Study], flag_values: flags.FlagValues) -> None:
    """Draws and prints what there is; replaces the document's part."""
    records = large_batch_queue.read(flag_values.results)
    done = large_batch_queue.of_study(studies[0], records)
    study = large_batch_queue.reported(studies, done)
    prefix = large_batch_charts.prefix(flag_values.results, study, records)
    target = large_batch_report.target_loss(study, records, flag_values.target_loss)
    paths = large_batch_charts.draw(study, records, prefix, target)
    document = flag_values.document
    folder = os.path.dirname(os.path.abspath(document)) if document else os.getcwd()
    shown = [os.path.relpath(path, folder) for path in paths]
    text = large_batch_table.table(study, records, shown, target)
    print(text)
    if document:
        markdown_part.write(document, _MODULE, text)


def body(flag_values: flags.FlagValues) -> None:
    """Makes what runs the budget allows, then reports."""
    if flag_values.quick:
        _apply_quick(flag_values)
    if flag_values.variance_examples % 8:
        raise UserError(
            f"--variance_examples={flag_values.variance_examples}; give a multiple of 8"
        )
    if flag_values.document:
        markdown_part.check(flag_values.document, _MODULE)
    if flag_values.report_only and not any(
        flag_values[name].present for name in ("corpus", "packages", "data")
    ):
        # Without the text, which another machine need not have.
        studies = large_batch_queue.planned(large_batch_queue.read(flag_values.results))
        if not studies:
            raise UserError(f"{flag_values.results} has no run to report; make one first")
        report(studies, flag_values)
        return
    backend = os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    data = prepare(flag_values)
    text = Text.load(data)
    studies = studies_of(flag_values, text, backend)
    if not flag_values.report_only:
        with large_batch_queue.lock(flag_values.results):
            parts = ("validation", "test")
            frequencies = {part: text.frequency_loss(studies[0].sizes, part) for part in parts}
            for study in studies:
                target = flag_values.target_loss
                large_batch_queue.note_plan(flag_values.results, study, target, frequencies)
            try:
                _work(studies, data, flag_values)
            except data_process.FailedError as error:
                raise UserError(
                    f"{error}; finished runs are kept, go on by the same command; where memory is "
                    "short, with --processes=1"
                ) from error
    report(studies, flag_values)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see the module's docstring."""
    return command.run(body, FLAGS, argv)


if __name__ == "__main__":
    sys.exit(main())
