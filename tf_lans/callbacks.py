"""Diagnostics of a large-batch run in Keras's `fit`, and its stop when steps keep failing.

`LargeBatchDiagnostics` is the class for whatever `tf.keras` is; `tf_lans.keras3` and
`tf_lans.tf_keras` have it for theirs.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
from typing import Any

from tf_lans import diagnostics, family, hyperparameters, loss_scale

_logger = logging.getLogger("tf_lans")


def __getattr__(name: str) -> Any:
    if name == "LargeBatchDiagnostics":
        return importlib.import_module("tf_lans").LargeBatchDiagnostics
    raise AttributeError(f"module 'tf_lans.callbacks' has no attribute {name!r}")


class DiagnosticsCallback:
    """Watches an optimizer of this package while a model is fitted.

    Every `interval` steps it takes the learning rate, the norm of the global gradient (all
    blocks together, all-reduced, before clipping), the smallest, median and largest trust ratio
    over the blocks, the norm of all weights and the count of skipped steps. They go to `history`,
    to the epoch's logs with the prefix "lans/", so that `History` and a `CSVLogger` that is listed
    after it have the latest, at least one of each epoch, and to TensorBoard, there also the trust
    ratios and gradient norms of all blocks as histograms.

    A run whose steps are all skipped trains nothing: after `max_skipped_steps` skipped steps in a
    row it stops `fit` and names the blocks with non-finite gradients. Inside a LossScaleOptimizer
    the batches count too that overflowed there, though not in `skipped_steps`; of those no blocks
    are known. The usual first overflows stay below the default: 15 halvings take the initial scale
    of 2^15 to 1, and a batch without overflow begins the count anew.

    Under Keras 3 on JAX and PyTorch there are no gradient norms, and no blocks are named. Since a
    question to the optimizer waits for the device there, it is asked only every `interval` or
    `max_skipped_steps` batches, whichever are fewer, and a run is stopped by so many later. With
    `steps_per_execution` it is asked after each execution.

    Args:
        max_skipped_steps: how many steps in a row may be skipped, at least 1; None never stops.
        interval: steps (updates and skipped ones) between two looks, at least 1. A look reads all
            weights and moments once, which is less than an update does.
        log_dir: a folder for TensorBoard's event files, or None. They take TensorFlow and the
            package tensorboard.

    Attributes:
        history: a list of dictionaries, one for each look: "step" (updates made) and the scalars
            of `tf_lans.diagnostics.Diagnostics.scalars`.

    Raises:
        TypeError: an argument of the wrong type; in `fit`, an optimizer of another package.
        ValueError: an argument below 1.
        ImportError: `log_dir` is given, and the package tensorboard is not installed.

    Example:
        >>> model = keras.Sequential([keras.layers.Dense(1)])
        >>> model.compile(optimizer=tf_lans.LANS(0.01), loss="mse")
        >>> watch = tf_lans.callbacks.LargeBatchDiagnostics(interval=1)
        >>> data = numpy.ones((8, 4)), numpy.ones((8, 1))
        >>> history = model.fit(*data, batch_size=4, callbacks=[watch], verbose=0)
        >>> [row["step"] for row in watch.history]
        [1, 2]
    """

    model: Any

    def __init__(
        self,
        max_skipped_steps: int | None = 20,
        interval: int = 100,
        log_dir: str | None = None,
    ) -> None:
        super().__init__()
        if max_skipped_steps is not None:
            hyperparameters.integer("max_skipped_steps", max_skipped_steps, minimum=1)
        self.max_skipped_steps = max_skipped_steps
        self.interval = hyperparameters.integer("interval", interval, minimum=1)
        # `tf.summary` writes by it; TensorFlow brings it along up to 2.20.
        if log_dir is not None and importlib.util.find_spec("tensorboard") is None:
            raise ImportError(
                f"log_dir={log_dir!r}: writing for TensorBoard takes the package tensorboard, "
                "which is not installed: pip install tensorboard"
            )
        self.log_dir = log_dir
        self.history: list[dict[str, float]] = []
        self._looked_at = 0
        self._rows_before_epoch = 0
        self._batches, self._stride = 0, 1
        self._batches_asked, self._last_batch = 0, -1
        self._updates = self._skipped_before = 0
        self._loss_scale: loss_scale.LossScale | None = None
        self._overflows = 0
        self._writer: Any = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Asks the optimizer to keep its gradients' norms."""
        del logs
        optimizer = self._optimizer()
        self._looked_at = optimizer.steps_taken()
        self._skipped_before = int(diagnostics.plain(optimizer.skipped_steps))
        self._updates = self._looked_at - self._skipped_before
        self._loss_scale = loss_scale.loss_scale_now(self.model.optimizer)
        self._overflows = 0
        self._batches, self._stride = 0, 1
        self._batches_asked, self._last_batch = 0, -1
        if not optimizer.can_watch_gradients:
            self._stride = min(self.interval, self.max_skipped_steps or self.interval)
        if optimizer.can_watch_gradients and not optimizer.watches_gradients:
            optimizer.watch_gradients()
            if getattr(self.model, "train_function", None) is not None:
                self.model.make_train_function(force=True)
        if self.log_dir is not None:
            summary = importlib.import_module("tensorflow").summary
            self._writer = summary.create_file_writer(str(self.log_dir))

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Remembers what was looked at in earlier epochs."""
        del epoch, logs
        self._rows_before_epoch = len(self.history)
        self._last_batch = -1

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Looks at the optimizer when it is time, and stops a run that only skips."""
        del logs
        # An execution of several batches ends with the number of its last one.
        self._batches += max(1, batch - self._last_batch)
        self._last_batch = batch
        since_asked = self._batches - self._batches_asked
        if since_asked < self._stride:
            return
        self._batches_asked = self._batches
        optimizer = self._optimizer()
        self._count_overflows(since_asked)
        self._stop_if_stuck(optimizer)
        taken = optimizer.steps_taken()
        if taken - self._looked_at >= self.interval or self.model.stop_training:
            self._looked_at = taken
            self._look(optimizer)

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Adds the latest figures to the epoch's logs; looks where the epoch had no look."""
        del epoch
        optimizer = self._optimizer()
        taken = optimizer.steps_taken()
        if len(self.history) == self._rows_before_epoch and taken > self._looked_at:
            self._looked_at = taken
            self._look(optimizer)
        if logs is not None and self.history:
            latest = self.history[-1]
            logs.update({f"lans/{name}": value for name, value in latest.items() if name != "step"})

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Closes TensorBoard's file."""
        del logs
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _optimizer(self) -> Any:
        optimizer = self.model.optimizer
        optimizer = getattr(optimizer, "inner_optimizer", optimizer)
        if not isinstance(optimizer, family.BlockOptimizer):
            raise TypeError(
                f"LargeBatchDiagnostics got a model with {type(optimizer).__name__}: expected an "
                "optimizer of tf_lans"
            )
        return optimizer

    def _stop_if_stuck(self, optimizer: Any) -> None:
        if self.max_skipped_steps is None:
            return
        skipped = self._overflows + self._count_in_a_row(optimizer)
        if skipped < self.max_skipped_steps:
            return
        self.model.stop_training = True
        message = f"stopped: the last {skipped} steps were skipped, the gradient is not finite"
        if self._overflows:
            message += f"; in which blocks, {type(self.model.optimizer).__name__} does not tell"
        elif optimizer.watches_gradients:
            blocks = diagnostics.nonfinite_blocks(optimizer.gradient_norms())
            message += f" in {len(blocks)} blocks: {', '.join(blocks)}"
        _logger.error(message)

    def _count_overflows(self, batches: int) -> None:
        now = loss_scale.loss_scale_now(self.model.optimizer)
        if now is not None and self._loss_scale is not None:
            self._overflows = loss_scale.overflows_in_a_row(
                self._overflows, self._loss_scale, now, batches
            )
        self._loss_scale = now

    def _count_in_a_row(self, optimizer: Any) -> int:
        if optimizer.watches_gradients:
            return optimizer.skipped_in_a_row()
        skipped = int(diagnostics.plain(optimizer.skipped_steps))
        updates = optimizer.steps_taken() - skipped
        if updates != self._updates:
            self._updates, self._skipped_before = updates, skipped
        return skipped - self._skipped_before

    def _look(self, optimizer: Any) -> None:
        found = optimizer.diagnostics()
        self.history.append({"step": found.iterations, **found.scalars()})
        if self._writer is None:
            return
        summary = importlib.import_module("tensorflow").summary
        with self._writer.as_default(step=found.iterations):
            for name, value in found.scalars().items():
                summary.scalar(f"lans/{name}", value)
            for name in ("trust_ratios", "gradient_norms"):
                values = getattr(found, name)
                if values:
                    summary.histogram(f"lans/{name}", list(values.values()))
