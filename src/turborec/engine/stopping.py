"""Early stopping counted in epochs: a frozen rule, and a value that remembers the best evaluation so far."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Self

from pydantic import Field

from turborec.recipe import Config


@dataclass(frozen=True)
class StopperState:
    """What the evaluations so far have shown. A greater value is a better one; epochs are those done, from 1."""

    best: float | None = None
    best_epoch: int = 0
    reference: float | None = None  # the last value that was better than the one before by more than `min_delta`
    reference_epoch: int = 0
    epoch: int = 0  # of the last evaluation

    def to_json(self) -> dict[str, Any]:
        """Plain JSON that `from_json` reads back."""
        return asdict(self)

    @classmethod
    def from_json(cls, facts: dict[str, Any]) -> Self:
        """The state that `to_json` wrote."""
        return cls(**facts)


def still_rising(values: Sequence[float]) -> bool:
    """Whether the last tenth of a stage's evaluations found a value better by a hundredth than all before."""
    tail = max(1, len(values) // 10)
    before, after = values[:-tail], values[-tail:]
    return not before or max(after) > 1.01 * max(before)


class EarlyStopping(Config):
    """When to stop: after `patience_epochs` without a gain of more than `min_delta`; never if None.

    Epochs are counted, not evaluations, so evaluating less often does not train longer. However small the gain, the best
    value and its epoch are those of the greatest value, since they choose the weights; `min_delta` is for patience alone.
    """

    patience_epochs: int | None = Field(10, ge=1)
    min_delta: float = Field(0.0, ge=0.0)
    every: int = Field(
        1, ge=1, description="epochs from one validation to the next; the last of a stage, or of patience, is always validated"
    )

    def due(self, state: StopperState, epoch: int, epochs: int) -> bool:
        """Whether to validate when `epoch` of a stage's `epochs` are done.

        Where patience would run out it is, so that rarer validations alone do not prolong a training.
        """
        waited = self.patience_epochs is not None and epoch - state.reference_epoch >= self.patience_epochs
        return epoch % self.every == 0 or epoch >= epochs or waited

    def update(self, state: StopperState, epoch: int, value: float) -> StopperState:
        """The state after an evaluation that found `value` when `epoch` epochs were done; NaN and infinity never count."""
        best, reference = (state.best, state.best_epoch), (state.reference, state.reference_epoch)
        if math.isfinite(value):
            if state.best is None or value > state.best:
                best = (value, epoch)
            if state.reference is None or value > state.reference + self.min_delta:
                reference = (value, epoch)
        return StopperState(*best, *reference, epoch)

    def should_stop(self, state: StopperState) -> bool:
        """Whether patience has run out."""
        return self.patience_epochs is not None and state.epoch - state.reference_epoch >= self.patience_epochs
