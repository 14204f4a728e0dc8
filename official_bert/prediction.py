"""What every kind of prediction has in common: a request in, a result out."""

import abc
import contextlib
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras
from official.modeling import performance

from official_bert import configuration
from tfrecords import files
from tfrecords.errors import UserError

BEST = "best.json"
ID = "id"
BATCH_SIZE = 32

Request = Mapping[str, Any]
Result = dict[str, Any]


class Predictor(abc.ABC):
    """A run that answers requests. Its weights are read when the first one comes.

    Attributes:
        does: what it does with a request, for messages.
        required: the request's fields, texts that are not empty.
        optional: texts that may be missing.
    """

    does: str
    required: tuple[str, ...]
    optional: tuple[str, ...] = ()

    def check(self, request: Request) -> None:
        """Refuses a request that cannot be answered; computes nothing.

        Raises:
            UserError: a field is missing, is no text or is empty, or the text does not fit.
        """
        for name in self.required:
            if name not in request:
                fields = ", ".join(map(repr, self.required))
                raise UserError(f"there is no {name!r}; {self.does} expects {fields}")
        for name in (*self.required, *self.optional):
            value = request.get(name, "")
            if not isinstance(value, str):
                raise UserError(f"{name} is {type(value).__name__}; expected a text")
            if name in request and not value.strip():
                raise UserError(f"{name} is empty; expected a text")
        for name in (ID, *self.required, *self.optional):
            if not _is_unicode(request.get(name)):
                raise UserError(f"{name} holds half a surrogate pair; expected Unicode text")

    @abc.abstractmethod
    def load(self) -> None:
        """Reads the weights, which otherwise happens when they are first needed.

        Raises:
            UserError: the checkpoint is damaged or of another architecture.
        """

    @abc.abstractmethod
    def predict(self, requests: Sequence[Request]) -> list[Result]:
        """The results of requests that `check` let pass, in their order.

        A result has the request's fields that tell it from others, its `id` among them.
        """

    @abc.abstractmethod
    def readable(self, result: Result) -> str:
        """A result for a terminal, in one or more lines."""


def _is_unicode(value: Any) -> bool:
    """Whether it can be written out again; JSON may escape what no UTF-8 has."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def find_run(model_dir: str) -> str:
    """The run that `model_dir` is, or that is the best of the sweep that it is.

    Raises:
        UserError: it is neither.
    """
    best = os.path.join(model_dir, BEST)
    if not tf.io.gfile.exists(best):
        return model_dir
    try:
        path = json.loads(files.read_bytes(best))["path"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f'{best} does not name the best run; expected {{"path": ...}}, as '
            "official_bert.finetune writes it: give the --model_dir of one run"
        ) from error
    return os.path.normpath(os.path.join(model_dir, path))


def saved_task(run: str) -> dict[str, Any]:
    """The task section of a run's `params.yaml`.

    Raises:
        UserError: there is none.
    """
    return configuration.read_saved(run).get("task") or {}


@contextlib.contextmanager
def precision(name: str | None) -> Iterator[None]:
    """Layers made inside compute as `runtime.mixed_precision_dtype` says; put back afterwards."""
    before = tf_keras.mixed_precision.global_policy()
    performance.set_mixed_precision_policy(name or "float32")
    try:
        yield
    finally:
        tf_keras.mixed_precision.set_global_policy(before)


def saved_precision(run: str) -> str | None:
    """`runtime.mixed_precision_dtype` of a run's `params.yaml`.

    Raises:
        UserError: there is no such file.
    """
    return (configuration.read_saved(run).get("runtime") or {}).get("mixed_precision_dtype")


def with_id(request: Request, result: Result) -> Result:
    """The result, headed by the request's `id` where it has one."""
    return {ID: request[ID], **result} if ID in request else result


def chunks(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    """Consecutive parts of at most `size` items."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def requests_in(path: str) -> Iterator[tuple[int, Any]]:
    """Yields (line number from 1, the line's JSON, or the `UserError` that it makes) of a file.

    Empty lines are passed over.

    Raises:
        UserError: there is no such file, or it cannot be read twice, as a pipe.
    """
    if not tf.io.gfile.exists(path) or tf.io.gfile.isdir(path):
        raise UserError(f"no file at --input_file {path}; expected JSON lines")
    if "://" not in path and not stat.S_ISREG(os.stat(path).st_mode):
        raise UserError(
            f"--input_file {path} is no regular file; expected one, since it is read twice: save "
            "the lines to a file first"
        )
    with tf.io.gfile.GFile(path, "rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield number, _parsed(line)


def _parsed(line: bytes) -> Any:
    try:
        request = json.loads(line.decode("utf-8"))
    except ValueError as error:
        return UserError(f"it is no JSON: {error}")
    if not isinstance(request, dict):
        return UserError(f"it is {type(request).__name__}, not an object of fields")
    return request
