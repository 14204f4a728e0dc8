r"""Answers questions, classifies texts, or fills [MASK]: whatever the run in --model_dir can do.

Example::

  python -m official_bert.predict --model_dir=run/phase2 --text='Paris is the [MASK] of France.'
  python -m official_bert.predict --model_dir=squad --context_file=a.txt --question='Who was it?'
  python -m official_bert.predict --model_dir=sst-2 --text='a gripping film'
  python -m official_bert.predict --model_dir=squad --input_file=in.jsonl --output_file=out.jsonl

A run of official_bert.finetune --task=squad answers questions, any other finetuned run classifies,
a pretraining run or what official_bert.convert wrote fills [MASK]; of a sweep, its best run does.
Without a text, a question or a file it reads lines from standard input until its end. On a
terminal results are lines to read, elsewhere JSON, one object a line. Text never yields a special
token, but for [MASK] where that is what is filled.
"""

import io
import json
import os
import stat
import sys
from collections.abc import Iterator, Sequence

import tensorflow as tf
from absl import flags

from official_bert import answering, classifying, experiments, fill_mask, prediction
from official_bert.prediction import Predictor, Request, Result
from tfrecords import command, files
from tfrecords.errors import UserError

_FIELDS = ("question", "context", "text", "text_pair")
# Requests of a file between two writes; many batches, so that few are left part empty.
_AT_ONCE = 256

FLAGS = flags.FlagValues()
flags.DEFINE_string(
    "model_dir", None, "A run, or a sweep of runs.", required=True, flag_values=FLAGS
)
flags.DEFINE_string("question", None, "To answer from --context.", flag_values=FLAGS)
flags.DEFINE_string("context", None, "Text that holds the answer.", flag_values=FLAGS)
flags.DEFINE_string("context_file", None, "File with the context.", flag_values=FLAGS)
flags.DEFINE_string("text", None, "To classify, or with [MASK] to fill.", flag_values=FLAGS)
flags.DEFINE_string(
    "text_pair", None, "Second text, where pairs are classified.", flag_values=FLAGS
)
flags.DEFINE_string(
    "input_file", None, 'JSON lines: {"question", "context"} or {"text"} or {"text", "text_pair"}, '
    'and an "id" if you like, which the result repeats.', flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_string(
    "output_file", None, "JSON lines for those of --input_file; unset: standard output.",
    flag_values=FLAGS,
)  # fmt: skip
flags.DEFINE_integer(
    "top_k", 5, "Answers to a question, or words for a [MASK].", lower_bound=1, flag_values=FLAGS
)
flags.DEFINE_integer(
    "batch_size", prediction.BATCH_SIZE, "Rows that the model sees at once.", lower_bound=1,
    flag_values=FLAGS,
)  # fmt: skip


def open_predictor(
    model_dir: str, top_k: int = 5, batch_size: int = prediction.BATCH_SIZE
) -> Predictor:
    """The predictor for what a folder holds.

    Args:
        model_dir: a run's folder, or a sweep's.
        top_k: answers or words in a result.
        batch_size: rows that the model sees at once.

    Raises:
        UserError: it holds no run, no checkpoint, or a run of another kind.
    """
    experiments.register()
    run = prediction.find_run(model_dir)
    saved = prediction.saved_task(run)
    if answering.is_finetuned(saved):
        return answering.QuestionAnswerer(run, top_k, batch_size)
    if classifying.is_finetuned(saved):
        return classifying.Classifier(run, batch_size)
    if fill_mask.is_pretrained(saved):
        return fill_mask.MaskFiller(run, top_k, batch_size)
    raise UserError(
        f"{run} holds a run of an unknown task, with the fields "
        f"{', '.join(sorted(saved)) or 'none'}; expected a --model_dir of official_bert.finetune, "
        "official_bert.train or official_bert.convert"
    )


def body(flag_values: flags.FlagValues) -> None:
    """Answers what the flags ask, or the file, or standard input."""
    _check_flags(flag_values)
    given = _given(flag_values)
    predictor = open_predictor(flag_values.model_dir, flag_values.top_k, flag_values.batch_size)
    _check_fields(given, predictor, flag_values.model_dir)
    if flag_values.input_file is not None:
        _answer_file(predictor, flag_values.input_file, flag_values.output_file)
    elif predictor.required[0] in given:
        predictor.check(given)
        _show(predictor, predictor.predict([given])[0])
    else:
        _answer_lines(predictor, given)


def _check_flags(flag_values: flags.FlagValues) -> None:
    if flag_values.context is not None and flag_values.context_file is not None:
        raise UserError("both --context and --context_file are given; leave one out")
    if flag_values.input_file is None:
        if flag_values.output_file is not None:
            raise UserError("--output_file is given without --input_file; redirect standard output")
        return
    for name in (*_FIELDS, "context_file"):
        if flag_values[name].value is not None:
            raise UserError(f"both --{name} and --input_file are given; leave one out")


def _given(flag_values: flags.FlagValues) -> dict[str, str]:
    """The request's fields that the flags give."""
    given = {name: flag_values[name].value for name in _FIELDS}
    if flag_values.context_file is not None:
        try:
            given["context"] = files.read_bytes(flag_values.context_file).decode("utf-8")
        except UnicodeDecodeError as error:
            raise UserError(
                f"--context_file {flag_values.context_file} is no UTF-8 text ({error})"
            ) from error
    return {name: value for name, value in given.items() if value is not None}


def _check_fields(given: Request, predictor: Predictor, model_dir: str) -> None:
    fields = (*predictor.required, *predictor.optional)
    for name in given:
        if name not in fields:
            raise UserError(
                f"--{name} is given, but {model_dir} is for {predictor.does}, which takes "
                f"{', '.join(f'--{field}' for field in fields)}"
            )
    if "text_pair" in given and "text" not in given:
        raise UserError("--text_pair is given without --text; give both")


def _answer_file(predictor: Predictor, input_file: str, output_file: str | None) -> None:
    if output_file is not None:
        _check_output(input_file, output_file)
    count = _check_lines(predictor, input_file)
    predictor.load()
    if output_file is None:
        for result in _results(predictor, input_file):
            _show(predictor, result)
        return
    folder = os.path.dirname(output_file)
    if folder:
        files.make_folder(folder)
    with (
        files.atomic_path(output_file) as temporary,
        tf.io.gfile.GFile(temporary, "w") as output,
        command.progress(total=count, desc="predict", unit="line") as bar,
    ):
        # Opens it: a folder that cannot be written to is told before the slow part.
        output.write("")
        for result in _results(predictor, input_file):
            output.write(_json(result) + "\n")
            bar.update()
    print(f"{output_file}: {count} results")


def _check_output(input_file: str, output_file: str) -> None:
    if tf.io.gfile.isdir(output_file):
        raise UserError(f"--output_file {output_file} is a folder; name a file")
    is_local_and_there = "://" not in output_file and os.path.lexists(output_file)
    if is_local_and_there and not stat.S_ISREG(os.lstat(output_file).st_mode):
        raise UserError(
            f"--output_file {output_file} is no regular file, and would be replaced by one; name a "
            "regular file, or leave it out for standard output"
        )
    if os.path.abspath(output_file) == os.path.abspath(input_file):
        raise UserError(f"--output_file is --input_file, {input_file}; name another")


def _check_lines(predictor: Predictor, path: str) -> int:
    """The number of requests in a file; all are looked at before the first is answered."""
    count, bad = 0, []
    for number, request in prediction.requests_in(path):
        count += 1
        try:
            _checked(predictor, request)
        except UserError as error:
            bad.append((number, error))
    if bad:
        number, first = bad[0]
        others = f" ({len(bad)} such lines)" if len(bad) > 1 else ""
        raise UserError(f"{path}: line {number}: {first}{others}; nothing was computed")
    if not count:
        raise UserError(f"--input_file {path} has no lines; expected a JSON object on each")
    return count


def _checked(predictor: Predictor, request: Request | UserError) -> Request:
    if isinstance(request, UserError):
        raise request
    predictor.check(request)
    return request


def _results(predictor: Predictor, path: str) -> Iterator[Result]:
    waiting: list[Request] = []
    for _, request in prediction.requests_in(path):
        waiting.append(_checked(predictor, request))
        if len(waiting) == _AT_ONCE:
            yield from predictor.predict(waiting)
            waiting = []
    if waiting:
        yield from predictor.predict(waiting)


def _answer_lines(predictor: Predictor, given: Request) -> None:
    """Answers line by line; one that cannot be answered is told, and the next one read."""
    predictor.load()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8", errors="replace")
    for request in _session(predictor, given):
        try:
            predictor.check(request)
            result = predictor.predict([request])[0]
        except UserError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
            continue
        _show(predictor, result)


def _session(predictor: Predictor, given: Request) -> Iterator[Request]:
    """The requests that lines of standard input make.

    A line is a text, or a text and its pair with a tab between them. Of questions, a line is one;
    where no context is given the first line is the context, and after an empty line the next.
    """
    if "question" not in predictor.required:
        for line in _lines("text> "):
            if line.strip():
                text, tab, pair = line.partition("\t")
                paired = tab and "text_pair" in (*predictor.required, *predictor.optional)
                yield {"text": text, "text_pair": pair} if paired else {"text": line}
        return
    context = given.get("context")
    while True:
        if context is None:
            context = next(filter(str.strip, _lines("context> ")), None)
            if context is None:
                return
        for line in _lines("question> "):
            if not line.strip():
                break
            yield {"question": line, "context": context}
        else:
            return
        context = given.get("context")


def _lines(prompt: str) -> Iterator[str]:
    """Lines of standard input; somebody at a terminal is asked for each."""
    while True:
        if sys.stdin.isatty():
            print(prompt, end="", file=sys.stderr, flush=True)
        line = sys.stdin.readline()
        if not line:
            return
        yield line.rstrip("\r\n")


def _show(predictor: Predictor, result: Result) -> None:
    print(predictor.readable(result) if sys.stdout.isatty() else _json(result), flush=True)


def _json(result: Result) -> str:
    return json.dumps(result, ensure_ascii=False)


def main(argv: Sequence[str] | None = None) -> int:
    """The command; see the module's docstring."""
    return command.run(body, FLAGS, argv)


if __name__ == "__main__":
    sys.exit(main())
