"""The six ways of holding events back: from ordered histories to two cut points a user and the parts they take part in.

Letters: U users, E events, V items. `cuts[u]` says where user u's validation and test parts begin, as positions in the
event arrays; `parts[u]` holds the bits of `PART_BITS`. A user takes part in an evaluation only with a history before the
cut and an event in the part.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from turborec.data.schema import UNKNOWN_TIME, moment
from turborec.data.store import BLOCK, PART_BITS, Int64
from turborec.errors import UserError
from turborec.recipe import Config

UInt8 = NDArray[np.uint8]
Cut = tuple[Int64, UInt8]
"""cuts [U, 2] and parts [U]."""

Share = Annotated[float, Field(gt=0, lt=1)]


@dataclass(frozen=True)
class Ordered:
    """Events sorted by (user, label, time), as a split sees them."""

    offsets: Int64  # [U + 1]
    times: Int64  # [E]
    labels: UInt8  # [E]: 0 train, 1 validation, 2 test; all 0 where the split knows no labels
    ticks: int  # of the unit of time in a second


class LeaveOneOut(Config):
    """The last event is the test, the one before it the validation.

    A user with fewer than 3 events takes part in training only, with all events.
    """

    kind: Literal["leave_one_out"] = "leave_one_out"

    def cut(self, events: Ordered) -> Cut:
        """One event a part."""
        one = np.ones(len(events.offsets) - 1, dtype=np.int64)
        return _tails(events.offsets, one, one)


class Ratio(Config):
    """The last shares of each user's events, rounded down, but at least one event each and one for training.

    A user with fewer than 3 events takes part in training only, with all events.
    """

    kind: Literal["ratio"] = "ratio"
    validation: Share = 0.1
    test: Share = 0.1

    @model_validator(mode="after")
    def _leave_training(self) -> Self:
        _require_training(self.validation, self.test)
        return self

    def cut(self, events: Ordered) -> Cut:
        """Shares of each user's own events."""
        lengths = np.diff(events.offsets)
        test = np.clip(_share_of(lengths, self.test), 1, np.maximum(lengths - 2, 1))
        validation = np.clip(_share_of(lengths, self.validation), 1, np.maximum(lengths - 1 - test, 1))
        return _tails(events.offsets, validation, test)


class GlobalTime(Config):
    """Events from one instant on are the validation, from a later one on the test; the same instants for all users.

    An instant is an ISO 8601 date (UTC where it names no zone) or the share of all events that come before it. Events of
    unknown time must stand at the beginning of their histories, and are before any instant. Users with nothing before a cut
    take no part in that evaluation.
    """

    kind: Literal["global_time"] = "global_time"
    validation_from: str | Share = 0.8
    test_from: str | Share = 0.9

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        first, second = _instant(self.validation_from), _instant(self.test_from)
        if type(first) is type(second) and first >= second:  # type: ignore[operator]
            raise ValueError("validation_from must come before test_from")
        return self

    def cut(self, events: Ordered) -> Cut:
        """Each user's history at the two instants."""
        _require_times(events)
        first, second = (self._ticks(value, events) for value in (self.validation_from, self.test_from))
        if first >= second:
            raise UserError(f"validation_from must come before test_from, but they come to {first} and {second} here.")
        return cuts_below(events.offsets, events.times, first, second)

    def _ticks(self, value: str | float, events: Ordered) -> int:
        instant = _instant(value)
        if isinstance(instant, datetime):
            return int(instant.timestamp() * events.ticks)
        return _quantile(events.times, instant)


class Labelled(Config):
    """The data say themselves which events are for training, validation and test: the column `label`.

    A user's events are sorted by (label, time), so that two cuts serve here too.
    """

    kind: Literal["labelled"] = "labelled"

    def cut(self, events: Ordered) -> Cut:
        """Each user's history where the label changes."""
        return cuts_below(events.offsets, events.labels, 1, 2)


class UserHoldout(Config):
    """Random shares of the users are kept from training altogether, for validation and for test.

    The last event of such a user is the target, the events before it are the history shown. Held-out users with a
    single event take no part at all. Users are drawn by position in the byte order of their raw ids.
    """

    kind: Literal["user_holdout"] = "user_holdout"
    validation: Share = 0.1
    test: Share = 0.1
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _leave_training(self) -> Self:
        _require_training(self.validation, self.test)
        return self

    def cut(self, events: Ordered) -> Cut:
        """Everything before the cut for most users, all but the last event for those held out."""
        starts, ends = events.offsets[:-1], events.offsets[1:]
        groups = _drawn(len(starts), self.validation, self.test, self.seed, "users")
        shown = np.maximum(ends - 1, starts)
        held = groups > 0
        first = np.where(held, shown, ends)
        second = np.where(groups == 2, shown, ends)
        bits = np.asarray([PART_BITS["train"], PART_BITS["validation"], PART_BITS["test"]], dtype=np.uint8)
        parts = np.where(held & (shown == starts), 0, bits[groups]).astype(np.uint8)
        return np.stack([first, second], axis=1), parts


class ItemHoldout(Config):
    """Random shares of the items are cold: kept from training altogether, for validation and for test.

    A user's events are sorted by (group of the item, time): events of training items come first, then those of
    validation items, then those of test items. Items are drawn by position in the byte order of their raw ids.
    """

    kind: Literal["item_holdout"] = "item_holdout"
    validation: Share = 0.1
    test: Share = 0.1
    seed: int = Field(default=0, ge=0)

    @model_validator(mode="after")
    def _leave_training(self) -> Self:
        _require_training(self.validation, self.test)
        return self

    def labels(self, items: int) -> UInt8:
        """The group of each item, 0 train, 1 validation, 2 test: [V]; item i is at i - 1."""
        return _drawn(items, self.validation, self.test, self.seed, "items")

    def cut(self, events: Ordered) -> Cut:
        """Each user's history where the items turn cold."""
        return cuts_below(events.offsets, events.labels, 1, 2)


def _tails(offsets: Int64, validation: Int64, test: Int64) -> Cut:
    """Cut `test` events off the end of each history of 3 events or more, and `validation` events before them."""
    ends = offsets[1:]
    enough = np.diff(offsets) >= 3
    second = np.where(enough, ends - test, ends)
    return _cuts(offsets, np.where(enough, second - validation, ends), second)


def cuts_below(offsets: Int64, values: NDArray[Any], first: int, second: int) -> Cut:
    """Cut each history where its ascending `values` reach `first` and `second`."""
    starts = offsets[:-1]
    return _cuts(offsets, starts + below(offsets, values, first), starts + below(offsets, values, second))


def _cuts(offsets: Int64, first: Int64, second: Int64) -> Cut:
    starts, ends = offsets[:-1], offsets[1:]
    trains = first > starts
    parts = trains * PART_BITS["train"]
    parts = parts + (trains & (second > first)) * PART_BITS["validation"]
    parts = parts + ((second > starts) & (ends > second)) * PART_BITS["test"]
    return np.stack([first, second], axis=1), parts.astype(np.uint8)


def below(offsets: Int64, values: NDArray[Any], limit: int) -> Int64:
    """How many of each user's values lie below `limit`: [U]."""
    counts = np.zeros(len(offsets) - 1, dtype=np.int64)
    for lo, hi in _blocks(offsets):
        edges = offsets[lo : hi + 1] - offsets[lo]
        running = np.concatenate([[0], np.cumsum(values[offsets[lo] : offsets[hi]] < limit)])
        counts[lo:hi] = np.diff(running[edges])
    return counts


def _blocks(offsets: Int64) -> Iterator[tuple[int, int]]:
    """Ranges of users with about `BLOCK` events each."""
    inner = np.searchsorted(offsets, np.arange(BLOCK, offsets[-1], BLOCK))
    yield from pairwise(np.unique(np.concatenate([[0], inner, [len(offsets) - 1]])).tolist())


def _require_times(events: Ordered) -> None:
    """No history may go back in time, nor from a known time to an unknown one; some must be known."""
    if int(events.times.max()) == UNKNOWN_TIME:
        raise UserError("A split by global time needs times, but none is known.")
    for lo, hi in _blocks(events.offsets):
        begin, end = events.offsets[lo], events.offsets[hi]
        before, after = events.times[begin : end - 1], events.times[begin + 1 : end]
        back = before > after
        back[events.offsets[lo + 1 : hi] - begin - 1] = False
        if (back & (after == UNKNOWN_TIME)).any():
            raise UserError(
                "A split by global time needs to know when events were, but the time of some that follow others is unknown."
            )
        if back.any():
            raise UserError(
                "A split by global time needs histories in the order of time, but the column `order` contradicts the "
                "times: leave `order` out, or choose another split."
            )


def _quantile(times: Int64, share: float) -> int:
    """The first instant before which at least `share` of all events lie."""
    low, high = int(times.min()), int(times.max()) + 1
    while low < high:
        middle = (low + high) // 2
        before = sum(np.count_nonzero(times[i : i + BLOCK] < middle) for i in range(0, len(times), BLOCK))
        low, high = (low, middle) if before >= share * len(times) else (middle + 1, high)
    return low


def _drawn(count: int, validation: float, test: float, seed: int, what: str) -> UInt8:
    """The group of each of `count` users or items, drawn by a seeded permutation: 0 train, 1 validation, 2 test."""
    sizes = [max(1, round(count * share)) for share in (validation, test)]
    if sum(sizes) >= count:
        raise UserError(f"Holding out {sizes[0]} and {sizes[1]} of {count} {what} leaves none for training.")
    order = np.random.Generator(np.random.PCG64(seed)).permutation(count)
    groups = np.zeros(count, dtype=np.uint8)
    groups[order[: sizes[0]]] = 1
    groups[order[sizes[0] : sum(sizes)]] = 2
    return groups


def _share_of(lengths: Int64, share: float) -> Int64:
    # 0.29 * 100 is 28.999..., which must not lose an event.
    whole: Int64 = np.floor(lengths * share + 1e-9).astype(np.int64)
    return whole


def _require_training(validation: float, test: float) -> None:
    if validation + test >= 1:
        raise ValueError("validation and test must leave a share for training: their sum must stay below 1")


def _instant(value: str | float) -> datetime | float:
    if isinstance(value, float):
        return value
    try:
        return moment(value)
    except ValueError as error:
        raise ValueError(f"{value!r} is neither an ISO 8601 date nor a share between 0 and 1") from error


Split = Annotated[
    LeaveOneOut | Ratio | GlobalTime | Labelled | UserHoldout | ItemHoldout,
    Field(discriminator="kind"),
]
