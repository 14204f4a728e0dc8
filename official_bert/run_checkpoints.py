"""The checkpoints of a run: written by all workers, left by the chief, restored by all."""

import contextlib
import copy
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import tensorflow as tf

from official_bert import checkpoints, cluster
from tfrecords import files
from tfrecords.errors import UserError

_NONE = -1
# What a checkpoint need not hold: a run that was made float16 begins with a new loss scale.
_BEGINS_ANEW = {"loss_scale"}


def _number(prefix: str) -> int:
    return int(prefix.rpartition("-")[2])


def _own_folder(model_dir: str, worker: int, stack: contextlib.ExitStack) -> str:
    """A worker's own folder until `stack` ends, rid of what a killed worker left in it."""
    name = hashlib.sha256(os.path.abspath(model_dir).encode()).hexdigest()[:16]
    start = os.path.join(tempfile.gettempdir(), f"tf_lans_worker{worker}_{name}")
    number = 0
    while True:
        folder = f"{start}_{number}"
        # One that is locked belongs to an evaluation of the same run, or to a process that this
        # one replaces.
        with contextlib.suppress(TimeoutError):
            stack.enter_context(files.lock(f"{folder}.lock"))
            shutil.rmtree(folder, ignore_errors=True)
            os.makedirs(folder)
            return folder
        number += 1


class RunCheckpoints(tf.train.CheckpointManager):
    """Model Garden's checkpoint manager with what a long run on many workers needs beside it.

    - Every worker restores the same checkpoint from `model_dir`: the newest that the chief finds
      whole.
    - All workers take part in a save, as variables on several of them demand; what others than
      the chief write goes to a folder of their own and is deleted at once. A save is over when
      the chief's is.
    - A save that fails, for want of space most often, leaves the earlier checkpoints as they are
      and nothing of its own.
    - A checkpoint is on the disk before an earlier one is deleted for it, and so are the logs up
      to its step: a machine that loses its power costs the steps since then and no more.

    Args:
      checkpoint: what is saved.
      model_dir: the run's folder.
      max_to_keep: how many checkpoints stay.
      global_step: counts the steps; a checkpoint's number is its step.
      interval: steps between checkpoints.
      initialize: called where there is nothing to restore.
      logs: files beside the checkpoints that are appended to step by step.
      restored: what is restored, by its name in the checkpoint, for a run that does not train; all
        of `checkpoint` when None.
    """

    def __init__(
        self,
        checkpoint: tf.train.Checkpoint,
        model_dir: str,
        *,
        max_to_keep: int,
        global_step: tf.Variable,
        interval: int,
        initialize: Callable[[], None],
        logs: Sequence[str] = (),
        restored: Mapping[str, Any] | None = None,
    ) -> None:
        # TensorFlow's patterns find nothing behind a doubled slash.
        model_dir = model_dir.rstrip("/") or "/"
        self._model_dir, self._restored = model_dir, restored
        self._initialize, self._logs = initialize, logs
        self._seen: list[bytes] = []
        self._strategy = tf.distribute.get_strategy()
        worker = cluster.this_worker(self._strategy)
        self._is_chief = worker.is_chief
        self._stack = contextlib.ExitStack()
        self._own_folder = (
            None if self._is_chief else _own_folder(model_dir, worker.index, self._stack)
        )
        # A list of checkpoints that cannot be read would end the superclass.
        readable = self._own_folder or checkpoints.is_state_readable(model_dir)
        if not readable:
            tf.io.gfile.remove(os.path.join(model_dir, "checkpoint"))
        super().__init__(
            checkpoint,
            directory=self._own_folder or model_dir,
            max_to_keep=max_to_keep,
            step_counter=global_step,
            checkpoint_interval=interval,
        )

    def restore_or_initialize(self) -> str | None:
        """Restores the newest whole checkpoint of the run, or initialises a new one.

        The chief decides which it is; another worker that does not see that one is told.

        Raises:
          UserError: no checkpoint is whole, this worker does not see the chief's, or it is not of
            this config.
        """
        self._seen = self._state()
        prefix = checkpoints.newest_whole(self._model_dir) if self._is_chief else None
        step = _number(prefix) if prefix else _NONE
        step = cluster.of_the_chief(self._strategy, step)
        if step == _NONE:
            self._initialize()
            self._last_checkpoint_step = 0
            return None
        prefix = os.path.join(self._model_dir, f"ckpt-{step}")
        try:
            self._restore(prefix)
        except UserError:
            raise
        except (AssertionError, tf.errors.OpError, ValueError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"cannot restore {prefix}: {reason}; expected --model_dir to be one folder for all "
                "workers, and the run to be of this config"
            ) from error
        self._last_checkpoint_step = step
        self._forget_after(prefix)
        return prefix

    def catch_up(self) -> None:
        """Restores anew where another process saved or swept after this one restored.

        For the process that has since taken the run's lock: one that replaces another may restore
        while the other still saves its last step.
        """
        changed = self._is_chief and self._state() != self._seen
        if cluster.of_the_chief(self._strategy, int(changed)):
            self.restore_or_initialize()

    def _state(self) -> list[bytes]:
        """What a save or a sweep changes: the index files, and then their list."""
        indices = sorted(tf.io.gfile.glob(os.path.join(self._model_dir, "ckpt-*.index")))
        state = os.path.join(self._model_dir, "checkpoint")
        listed = [files.read_bytes(state)] if tf.io.gfile.exists(state) else []
        return [*map(str.encode, indices), *listed]

    def _restore(self, prefix: str) -> None:
        if self._restored is not None:
            checkpoints.restore_items(prefix, self._restored)
            return
        absent = _BEGINS_ANEW - checkpoints.children(prefix)
        parts = tf.train.TrackableView.children(self._checkpoint)
        if absent.isdisjoint(parts):
            status = self._checkpoint.restore(prefix)
        else:
            held = {name: part for name, part in parts.items() if name not in absent}
            status = tf.train.Checkpoint(**held).read(prefix)
        # What the checkpoint holds beyond this run's needs, such as a loss scale, is left there.
        status.assert_existing_objects_matched().expect_partial()

    def _forget_after(self, prefix: str) -> None:
        """Takes checkpoints that were passed over off the list, or sweeps would spare them."""
        if self._own_folder is not None:
            return
        step = _number(prefix)
        now = time.time()
        kept = [path for path in checkpoints.listed(self._model_dir) if _number(path) < step]
        stamps = {path: self._maybe_delete.get(path, now) for path in [*kept, prefix]}
        self._maybe_delete.clear()
        self._maybe_delete.update(stamps)
        self._latest_checkpoint = prefix

    def tidy(self) -> None:
        """Ends what a killed process left half done: a save, a sweep, the list of checkpoints.

        What is not on the list goes too: a checkpoint that was passed over, or saved in the moment
        before a kill. For the process that trains, after the restore.
        """
        if self._own_folder is not None:
            return
        if self._maybe_delete:
            self._sweep()
            self._record_state()
            self._remove_unlisted()
        for path in tf.io.gfile.glob(f"{self._prefix}-*_temp"):
            tf.io.gfile.rmtree(path)
        # A sweep deletes the index first, a save writes it last.
        for path in tf.io.gfile.glob(f"{self._prefix}-*.data-*"):
            if not tf.io.gfile.exists(f"{path.rpartition('.data-')[0]}.index"):
                tf.io.gfile.remove(path)
        for path in tf.io.gfile.glob(os.path.join(self._directory, "checkpoint.tmp*")):
            tf.io.gfile.remove(path)

    def _remove_unlisted(self) -> None:
        """Deletes the index files of checkpoints that are not on the list, by their names alone."""
        kept = {f"{os.path.basename(prefix)}.index" for prefix in self._maybe_delete}
        for path in tf.io.gfile.glob(f"{self._prefix}-*.index"):
            if os.path.basename(path) not in kept:
                tf.io.gfile.remove(path)

    def save(
        self, checkpoint_number: Any = None, check_interval: bool = True, options: Any = None
    ) -> str | None:
        """Saves; see the superclass.

        Raises:
          UserError: it could not be written.
        """
        options = copy.copy(options) or tf.train.CheckpointOptions()
        # The superclass adds its own behind it, which deletes earlier checkpoints.
        first = [*(options.experimental_write_callbacks or ()), self._sync]
        options.experimental_write_callbacks = first
        try:
            prefix = super().save(checkpoint_number, check_interval, options)
        except (tf.errors.OpError, OSError) as error:
            step = int(self._step_counter.numpy())
            self._remove_remains(step)
            reason = " ".join(str(getattr(error, "message", error)).split())[:200]
            raise UserError(
                f"cannot save the checkpoint of step {step} in {self._directory}: {reason}; the "
                "checkpoints before it are untouched: make room and start again with the same "
                "command"
            ) from error
        if prefix is None:
            return None
        if self._own_folder is not None:
            self._delete_own(self._own_folder)
        cluster.wait_for_all(self._strategy)
        return prefix

    def _sync(self, prefix: str) -> None:
        if self._own_folder is None:
            files.sync([*self._logs, *sorted(tf.io.gfile.glob(f"{prefix}.*"))])

    def _delete_own(self, folder: str) -> None:
        shutil.rmtree(folder)
        os.mkdir(folder)
        self._maybe_delete.clear()

    def _remove_remains(self, step: int) -> None:
        prefix = f"{self._prefix}-{step}"
        if prefix in self._maybe_delete:
            return
        for path in tf.io.gfile.glob(f"{prefix}.*"):
            tf.io.gfile.remove(path)
        for path in tf.io.gfile.glob(f"{prefix}_temp*"):
            tf.io.gfile.rmtree(path)

    def close(self) -> None:
        """Removes the folder of a worker that is not the chief."""
        if self._own_folder is not None:
            shutil.rmtree(self._own_folder, ignore_errors=True)
            self._stack.close()
