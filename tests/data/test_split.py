from collections.abc import Sequence
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from turborec.data import split as split_module
from turborec.data.schema import UNKNOWN_TIME
from turborec.data.split import (
    GlobalTime,
    ItemHoldout,
    Labelled,
    LeaveOneOut,
    Ordered,
    Ratio,
    Split,
    UserHoldout,
)
from turborec.errors import UserError

TRAIN, VALIDATION, TEST = 1, 2, 4
ALL = TRAIN + VALIDATION + TEST


def ordered(
    lengths: Sequence[int],
    times: Sequence[int] | None = None,
    labels: Sequence[int] | None = None,
    ticks: int = 1,
) -> Ordered:
    """Users with this many events, whose times are all 0 and whose labels are all 0 by default."""
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    total = int(offsets[-1])
    return Ordered(
        offsets,
        np.asarray(times if times is not None else [0] * total, dtype=np.int64),
        np.asarray(labels if labels is not None else [0] * total, dtype=np.uint8),
        ticks,
    )


def spans(split: Split, events: Ordered) -> list[tuple[int, int, int, int]]:
    """Of each user: the sizes of the three parts, and the parts taken part in."""
    cuts, parts = split.cut(events)
    assert (cuts.dtype, parts.dtype) == (np.int64, np.uint8)
    edges = np.concatenate([events.offsets[:-1, None], cuts, events.offsets[1:, None]], axis=1)
    assert (np.diff(edges) >= 0).all()
    return [(*sizes, part) for sizes, part in zip(np.diff(edges).tolist(), parts.tolist(), strict=True)]


def test_leave_one_out_keeps_short_histories_for_training() -> None:
    assert spans(LeaveOneOut(), ordered([1, 2, 3, 9])) == [(1, 0, 0, TRAIN), (2, 0, 0, TRAIN), (1, 1, 1, ALL), (7, 1, 1, ALL)]


def test_ratio_rounds_down_but_leaves_each_part_an_event() -> None:
    sizes = spans(Ratio(validation=0.1, test=0.2), ordered([2, 3, 10, 19, 100]))
    assert sizes == [(2, 0, 0, TRAIN), (1, 1, 1, ALL), (7, 1, 2, ALL), (15, 1, 3, ALL), (70, 10, 20, ALL)]


def test_ratio_leaves_training_an_event_even_where_the_test_is_large() -> None:
    assert spans(Ratio(validation=0.1, test=0.85), ordered([3, 4, 20])) == [(1, 1, 1, ALL), (1, 1, 2, ALL), (1, 2, 17, ALL)]


@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.floats(0.01, 0.6), st.floats(0.01, 0.39))
def test_ratio_has_something_of_everything_from_three_events_on(lengths: list[int], validation: float, test: float) -> None:
    for length, (train, valid, last, parts) in zip(
        lengths, spans(Ratio(validation=validation, test=test), ordered(lengths)), strict=True
    ):
        assert train + valid + last == length
        assert (min(train, valid, last) > 0) == (parts == ALL) == (length >= 3)


def test_ratio_does_not_lose_an_event_to_rounding() -> None:
    assert 0.29 * 100 < 29
    assert spans(Ratio(validation=0.29, test=0.1), ordered([100])) == [(61, 29, 10, ALL)]


@pytest.mark.parametrize("kind", [Ratio, UserHoldout, ItemHoldout])
def test_shares_must_leave_something_for_training(kind: type) -> None:
    with pytest.raises(ValidationError, match="leave a share for training"):
        kind(validation=0.5, test=0.5)


DAY = 86_400
JAN = int(datetime(2020, 1, 1, tzinfo=UTC).timestamp())


@pytest.mark.parametrize("ticks", [1, 1000])
def test_global_time_cuts_at_the_same_instants_for_all(ticks: int) -> None:
    split = GlobalTime(validation_from="2020-01-02", test_from="2020-01-03T12:00:00+00:00")
    days = [0, 1, 2.5, 0, 0.999, 1, 1, 3, 2, 2.4, 2.5, 4]
    events = ordered([3, 2, 3, 2, 2], [int((JAN + day * DAY) * ticks) for day in days], ticks=ticks)
    assert spans(split, events) == [
        (1, 1, 1, ALL),
        (2, 0, 0, TRAIN),
        (0, 2, 1, TEST),
        (0, 2, 0, 0),
        (0, 0, 2, 0),
    ]


def test_global_time_reads_zones() -> None:
    split = GlobalTime(validation_from="2020-01-02T01:00:00+01:00", test_from="2020-01-03T00:00:00Z")
    assert spans(split, ordered([3], [JAN + DAY - 1, JAN + DAY, JAN + 2 * DAY])) == [(1, 1, 1, ALL)]


@pytest.mark.parametrize("block", [3, 2**22])
def test_global_time_by_shares_of_all_events(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(split_module, "BLOCK", block)
    times = np.random.default_rng(0).permutation(1000) + JAN
    events = ordered([100] * 10, np.sort(times.reshape(10, 100), axis=1).ravel().tolist())
    sizes = np.asarray(spans(GlobalTime(validation_from=0.75, test_from=0.9), events))
    assert sizes[:, :3].sum(axis=0).tolist() == [750, 150, 100]


def test_share_keeps_events_of_one_instant_together() -> None:
    assert spans(GlobalTime(validation_from=0.5, test_from=0.9), ordered([5], [1, 2, 2, 2, 3])) == [
        (4, 1, 0, TRAIN + VALIDATION)
    ]


@pytest.mark.parametrize(
    ("times", "said"), [([5, UNKNOWN_TIME], "that follow others is unknown"), ([UNKNOWN_TIME] * 2, "none is known")]
)
def test_global_time_needs_times(times: list[int], said: str) -> None:
    with pytest.raises(UserError, match=said):
        GlobalTime().cut(ordered([2], times))


def test_what_begins_a_history_at_an_unknown_time_is_before_any_instant() -> None:
    unknown = [UNKNOWN_TIME] * 2
    events = ordered([4, 2, 2], [*unknown, 86400, 2 * 86400, *unknown, UNKNOWN_TIME, 0])
    found = spans(GlobalTime(validation_from="1970-01-02", test_from="1970-01-03"), events)
    assert [sizes[:3] for sizes in found] == [(2, 1, 1), (2, 0, 0), (2, 0, 0)]


@pytest.mark.parametrize("block", [2, 2**22])
def test_global_time_needs_histories_in_the_order_of_time(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(split_module, "BLOCK", block)
    GlobalTime().cut(ordered([2, 1, 3], [8, 9, 5, 1, 2, 3]))
    with pytest.raises(UserError, match="the column `order` contradicts the times"):
        GlobalTime().cut(ordered([2, 1, 3], [8, 9, 5, 1, 3, 2]))


@pytest.mark.parametrize(
    ("first", "second"), [(0.9, 0.8), (0.5, 0.5), ("2020-02-01", "2020-01-01"), ("2020-01-01T00:00Z", "2020-01-01")]
)
def test_instants_must_be_in_order(first: str | float, second: str | float) -> None:
    with pytest.raises(ValidationError, match="validation_from must come before test_from"):
        GlobalTime(validation_from=first, test_from=second)


def test_instants_of_different_kinds_are_compared_when_the_times_are_known() -> None:
    split = GlobalTime(validation_from=0.5, test_from="2020-01-02")
    assert spans(split, ordered([4], [JAN, JAN + 1, JAN + 2, JAN + DAY])) == [(2, 1, 1, ALL)]
    with pytest.raises(UserError, match="must come before test_from, but they come to"):
        split.cut(ordered([4], [JAN + DAY] * 4))


@pytest.mark.parametrize("text", ["soon", "2020-13-01", "0.8"])
def test_an_instant_is_a_date_or_a_share(text: str) -> None:
    with pytest.raises(ValidationError, match="neither an ISO 8601 date nor a share"):
        GlobalTime(validation_from=text)


@pytest.mark.parametrize("block", [3, 2**22])
def test_labelled_cuts_where_the_label_changes(monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    monkeypatch.setattr(split_module, "BLOCK", block)
    labels = [0, 0, 1, 2, 0, 0, 1, 1, 2, 2, 2, 0, 2]
    assert spans(Labelled(), ordered([4, 2, 3, 2, 2], labels=labels)) == [
        (2, 1, 1, ALL),
        (2, 0, 0, TRAIN),
        (0, 2, 1, TEST),
        (0, 0, 2, 0),
        (1, 0, 1, TRAIN + TEST),
    ]


def test_held_out_users_are_never_trained_on() -> None:
    sizes = spans(UserHoldout(validation=0.2, test=0.3, seed=3), ordered([5] * 10))
    assert sorted(sizes) == sorted([(5, 0, 0, TRAIN)] * 5 + [(4, 1, 0, VALIDATION)] * 2 + [(4, 0, 1, TEST)] * 3)


def test_held_out_user_of_a_single_event_takes_no_part() -> None:
    sizes = spans(UserHoldout(validation=0.2, test=0.3), ordered([1] * 10))
    assert sorted(part for *_, part in sizes) == [0] * 5 + [TRAIN] * 5


def test_held_out_users_follow_from_the_seed() -> None:
    def groups(seed: int) -> list[int]:
        return [part for *_, part in spans(UserHoldout(seed=seed), ordered([5] * 50))]

    assert groups(1) == groups(1)
    assert groups(1) != groups(2)


def test_cold_items_are_shares_of_the_items_and_follow_from_the_seed() -> None:
    split = ItemHoldout(validation=0.1, test=0.25, seed=5)
    labels = split.labels(40)
    assert np.bincount(labels).tolist() == [26, 4, 10]
    assert labels.tolist() == split.labels(40).tolist()
    assert labels.tolist() != ItemHoldout(validation=0.1, test=0.25, seed=6).labels(40).tolist()


def test_cold_items_come_after_the_cuts() -> None:
    assert spans(ItemHoldout(), ordered([4], labels=[0, 0, 1, 2])) == [(2, 1, 1, ALL)]


@pytest.mark.parametrize("what", ["users", "items"])
def test_holding_everything_out_is_refused(what: str) -> None:
    with pytest.raises(UserError, match=f"Holding out 1 and 1 of 2 {what} leaves none"):
        if what == "users":
            UserHoldout().cut(ordered([3, 3]))
        else:
            ItemHoldout().labels(2)


def test_kind_chooses_the_split() -> None:
    adapter: TypeAdapter[Split] = TypeAdapter(Split)
    kinds = ["leave_one_out", "ratio", "global_time", "labelled", "user_holdout", "item_holdout"]
    assert [adapter.validate_python({"kind": kind}).kind for kind in kinds] == kinds
