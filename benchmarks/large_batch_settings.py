"""What a study and each of its runs is; two of equal settings are the same, on any day."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from typing import Any

from tfrecords.errors import UserError

# Raise it with any change that makes a run of equal settings come out differently.
VERSION = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSizes:
    """What a model builder is given.

    Attributes:
        layers: encoder layers.
        width: of the hidden states.
        vocab_size: rows of the word embeddings.
        seq_length: tokens of a row.
        max_predictions: masked positions of a row.
    """

    layers: int = 2
    width: int = 128
    vocab_size: int = 8192
    seq_length: int = 64
    max_predictions: int = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Study:
    """Everything that all runs share.

    Attributes:
        data: SHA-256 of the rows.
        model: `module:function`, or empty for the study's own.
        sizes: of the model.
        examples: of each run.
        batches: ascending; all but the last are tuned by rate only.
        draws: random draws of the hyper-parameters at the largest batch.
        earlier_draws: fewer, ascending, of studies that were made whole before and whose runs at
            the other batches count here too.
        rates: of `GRID`, how many are tried at each other batch.
        seeds: runs at the best settings.
        backend: Keras's; another draws other initial weights.
        seed: of the draws.
    """

    data: str
    model: str = ""
    sizes: ModelSizes = ModelSizes()
    examples: int = 262_144
    batches: tuple[int, ...] = (256, 1024, 4096)
    draws: int = 12
    earlier_draws: tuple[int, ...] = ()
    rates: int = 4
    seeds: int = 3
    backend: str = "tensorflow"
    seed: int = 0

    def __post_init__(self) -> None:
        if list(self.batches) != sorted(set(self.batches)) or self.batches[0] < 1:
            raise UserError(f"--batches={self.batches}; expected different ones, ascending")
        for batch in self.batches:
            if self.examples % batch or self.examples < batch:
                raise UserError(
                    f"--examples={self.examples} is no multiple of the batch {batch}; give one"
                )

    @property
    def largest(self) -> int:
        """The batch at which everything is tuned."""
        return self.batches[-1]

    def common(self) -> dict[str, Any]:
        """What decides how a run comes out, beside the run's own settings.

        Batches, draws and seeds only say which runs there are, so that more of them add up.
        """
        return {
            "version": VERSION,
            "data": self.data,
            "model": self.model,
            "sizes": dataclasses.asdict(self.sizes),
            "examples": self.examples,
            "backend": self.backend,
        }

    @property
    def key(self) -> str:
        """What the lines of one study have in common."""
        return fingerprint(self.common())

    def as_json(self) -> str:
        """For the command line of another process."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Study:
        """What `as_json` wrote."""
        fields = json.loads(text)
        fields["sizes"] = ModelSizes(**fields["sizes"])
        for name in ("batches", "earlier_draws"):
            fields[name] = tuple(fields.get(name, ()))
        return cls(**fields)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One run's own settings.

    Attributes:
        method: a name in `large_batch_methods.METHODS`.
        batch: examples of a step.
        learning_rate: the peak.
        beta_2: decay rate of the second moment.
        warmup_ratio: of the steps.
        seed: of initial weights, order and masks.
    """

    method: str
    batch: int
    learning_rate: float
    beta_2: float
    warmup_ratio: float
    seed: int = 0

    def key(self, study: Study) -> str:
        """What identifies the run, its study's settings included."""
        return fingerprint({**study.common(), **dataclasses.asdict(self)})


def fingerprint(settings: dict[str, Any]) -> str:
    """The first 16 digits of the SHA-256 of settings, whatever their order."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
