"""What the state-space models share: an item table for both ends, layers between, and users that are followed event by event.

Letters: B rows, L positions, D width, V items.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from turborec.contract import DotProduct, Loss, Model, Vectors
from turborec.data.batch import AskedBatch, DataSpec, SequenceBatch, between
from turborec.data.schema import UNKNOWN_TIME
from turborec.losses import CatalogueLoss
from turborec.models._next_item import NextItem
from turborec.nn.keyed import Dropout
from turborec.nn.linear import Context
from turborec.nn.ssm import Gaps, Intervals, Layer, Seen, Steps


@dataclass(frozen=True)
class Ends:
    """What is before and after the layers."""

    width: int
    norm_eps: float
    embedding_norm: bool
    embedding_dropout: float
    final_norm: bool
    repeat_bias: bool


@dataclass(frozen=True)
class Followed:
    """What is known of B users whose events come one by one: the newest events, and what the layers kept before the last."""

    items: Tensor  # int64 [B, R]: the newest events, as many as are asked for again
    times: Tensor  # int64 [B]: of the newest one
    times_before: Tensor  # int64 [B]: of the events before the newest
    layers: tuple[Seen, ...] | None  # None where the newest event is the first


class StateSpace(Model):
    """The module; its item table serves both ends."""

    def __init__(self, ends: Ends, layers: Sequence[Layer], intervals: Intervals, loss: CatalogueLoss, spec: DataSpec) -> None:
        super().__init__()
        self.spec = replace(spec, popularity=None)
        self.items = nn.Embedding(spec.items + 1, ends.width, padding_idx=0)
        norm = nn.LayerNorm(ends.width, eps=ends.norm_eps)
        self.embedding_norm = norm if ends.embedding_norm else nn.Identity()
        self.embedding_dropout = Dropout(ends.embedding_dropout, site=4 * len(layers))
        self.steps = Steps(intervals)
        self.layers = nn.ModuleList(layers)
        self.norm = nn.LayerNorm(ends.width, eps=ends.norm_eps) if ends.final_norm else nn.Identity()
        self.head = NextItem(loss, ends.repeat_bias, spec)
        nn.init.normal_(self.items.weight, std=0.02)
        with torch.no_grad():
            self.items.weight[0].zero_()

    def forward(self, batch: SequenceBatch) -> Loss:
        """The loss of predicting every target of the batch."""
        asked = self.asked(batch)
        states = self._encode(asked).flatten(0, 1).index_select(0, asked.where)
        return self.head.loss(states, self.items.weight, asked)

    def asked(self, batch: SequenceBatch, again: bool = False) -> AskedBatch:
        """The batch with the places of its targets."""
        return self.head.asked(batch, again)

    def scorer(self) -> DotProduct:
        """Scores by the state after the last event."""
        return self.head.scorer(self._last_state, self.items.weight)

    def hear(self, users: Followed | None, items: Tensor, times: Tensor) -> Followed:
        """The users, None before their first event, after one more of each: items and times int64 [B].

        It costs the same, however many came before. A ValueError for an item that is none of 1..V.
        """
        if len(items) and not 1 <= int(items.min()) <= int(items.max()) < len(self.items.weight):
            raise ValueError(
                f"Items are 1 to {len(self.items.weight) - 1}, got {items.tolist()}: leave out events of unknown ones"
            )
        if users is None:
            return Followed(items[:, None], times, torch.full_like(times, UNKNOWN_TIME), None)
        newest = torch.cat([users.items, items[:, None]], dim=1)
        newest = newest[:, -1 if self.head.repeats is None else -self.spec.max_length :]
        return Followed(newest, times, users.times, self._newest(users, times)[1])

    def vectors(self, users: Followed, request: Tensor | None = None) -> Vectors:
        """What `scorer().score` takes, as if all events of the users were shown at once. `request` int64 [B]: when."""
        states = self._newest(users, torch.full_like(users.times, UNKNOWN_TIME) if request is None else request)[0]
        return Vectors.of(states, self.head.cells(users.items, torch.full_like(users.times, users.items.shape[1] - 1)))

    def _newest(self, users: Followed, after: Tensor) -> tuple[Tensor, tuple[Seen, ...]]:
        """The users' newest event, read after what the layers have kept: [B, D], and what they keep then."""
        if self.training:
            raise ValueError("users are followed by a model in evaluation, not in training: call model.eval()")
        earlier, later = (users.times, after) if self.spec.told else (users.times_before, users.times)
        gaps = Gaps(*between(earlier[:, None], later[:, None], self.spec.ticks))
        newest = users.items[:, -1:]
        states, kept = self._read(newest, gaps, Context(keys=newest[:, 0]), users.layers)
        return states[:, 0], kept

    def _last_state(self, batch: SequenceBatch) -> Tensor:
        """[B, D]."""
        states = self._encode(batch)
        return states[torch.arange(len(states), device=states.device), batch.last()]

    def _encode(self, batch: SequenceBatch) -> Tensor:
        """[B, L] -> [B, L, D]; nothing looks ahead, so padding on the right reaches no real position."""
        return self._read(batch.items, Gaps(*batch.gaps(self.spec)), Context(keys=batch.keys))[0]

    def _read(
        self, items: Tensor, gaps: Gaps, context: Context, seen: tuple[Seen, ...] | None = None
    ) -> tuple[Tensor, tuple[Seen, ...]]:
        """int64 [B, L] -> [B, L, D], and what each layer keeps for the next event."""
        x, kept = self.embedding_dropout(self.embedding_norm(self.items(items)), context.keys), []
        steps = self.steps(gaps)
        for number, layer in enumerate(self.layers):
            x, last = layer(x, context, steps, None if seen is None else seen[number])
            kept.append(last)
        return self.norm(x), tuple(kept)
