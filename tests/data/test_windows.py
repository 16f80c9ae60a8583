import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from turborec.data.windows import drawn, filled, lay, newest, widths


def one_user(events, length, overlap, seams="fixed", seed=0):
    start = np.array([5])
    return lay(np.array([3]), start, start + events, length, overlap, seams, np.random.default_rng(seed))


@given(
    events=st.integers(0, 60),
    length=st.integers(1, 20),
    share=st.floats(0, 0.99),
    seams=st.sampled_from(["fixed", "long", "all"]),
    seed=st.integers(0, 99),
)
def test_every_target_is_covered_once_and_sees_only_its_past(events, length, share, seams, seed):
    overlap = int(share * length)
    rows = one_user(events, length, overlap, seams, seed)
    covered = sorted(itertools.chain(*(range(f, e + 1) for f, e in zip(rows.first, rows.end, strict=True))))
    assert covered == list(range(6, 5 + events))
    assert (rows.lengths <= length).all() and (rows.begin >= 5).all() and (rows.first > rows.begin).all()


def test_older_windows_keep_their_context():
    rows = one_user(events=10, length=4, overlap=2)
    assert sorted(zip(rows.begin - 5, rows.first - 5, rows.end - 5, strict=True)) == [
        (0, 1, 1),
        (0, 2, 3),
        (1, 4, 5),
        (3, 6, 7),
        (5, 8, 9),
    ]


def test_random_seams_move():
    assert len({tuple(one_user(50, 10, 0, "long", seed).end) for seed in range(10)}) > 3
    assert len({tuple(one_user(5, 10, 0, "long", seed).end) for seed in range(10)}) == 1
    assert len({tuple(one_user(5, 10, 0, "all", seed).end) for seed in range(30)}) == 4


def test_a_moved_window_keeps_all_the_context_that_fits():
    rows = one_user(9, 10, 0, "all", seed=3)
    assert (rows.begin == 5).all() and rows.end.max() == 5 + 8


def test_newest_shows_the_last_window_alone():
    rows = newest(np.array([0, 1, 2]), np.array([0, 8, 9]), np.array([8, 9, 11]), length=4)
    assert rows.users.tolist() == [0, 2]
    assert rows.begin.tolist() == [3, 9]
    assert rows.end.tolist() == [7, 10]
    assert rows.first.tolist() == [4, 10]


def waste(lengths, chosen):
    return sum(min(w for w in chosen if w >= n) - n for n in lengths)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=30), st.integers(1, 4))
def test_widths_waste_as_little_as_any_choice(lengths, shapes):
    chosen = widths(np.array(lengths), 9, shapes)
    best = min(waste(lengths, [*others, 9]) for n in range(shapes) for others in itertools.combinations(range(1, 9), n))
    assert len(chosen) <= shapes and chosen[-1] == 9
    assert waste(lengths, chosen) == best


@pytest.mark.parametrize("events", [0, 1])
def test_a_history_without_a_target_has_no_window(events):
    assert len(one_user(events, 5, 0).users) == 0


def test_batches_of_ascending_lengths_are_as_full_as_they_may_be():
    lengths = np.sort(np.random.default_rng(0).integers(0, 40, 300))
    batches = list(filled(lengths, 100))
    assert np.array_equal(np.concatenate([lengths[some] for some in batches]), lengths)
    for some in batches:
        part = lengths[some]
        assert len(part) == 1 or len(part) * max(1, part[-1]) <= 100
    assert list(filled(lengths[:0], 100)) == [] and len(list(filled(np.array([500, 500]), 100))) == 2


def test_one_target_is_drawn_of_each_history():
    users, starts, ends = np.arange(3), np.array([0, 8, 9]), np.array([8, 9, 12])
    seen = set()
    for seed in range(60):
        rows = drawn(users, starts, ends, 4, np.random.default_rng(seed))
        assert rows.users.tolist() == [0, 2] and np.array_equal(rows.first, rows.end)
        assert (rows.lengths >= 1).all() and (rows.lengths <= 4).all() and (rows.begin >= starts[rows.users]).all()
        seen |= {(int(user), int(end)) for user, end in zip(rows.users, rows.end, strict=True)}
    assert seen == {*((0, end) for end in range(1, 8)), (2, 10), (2, 11)}


def test_of_a_late_target_there_is_the_second_half_before_it():
    generator = np.random.default_rng(0)
    users, starts = np.zeros(400, np.int64), np.full(400, 3)
    late = drawn(users, starts, starts + 9, 20, generator, late=True).end - 3
    assert set(late.tolist()) == set(range(4, 9))
    two = drawn(users, starts, starts + 2, 20, generator, late=True).end - 3
    assert set(two.tolist()) == {1}
