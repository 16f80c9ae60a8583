from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pytest
import torch
from torch import Tensor

from scored import Table
from stores import store_of
from turborec import tiles
from turborec.contract import DotProduct
from turborec.data.store import Store
from turborec.ranking import Ranker, Tally, Targets

CPU = torch.device("cpu")
HISTORIES = [[1, 2, 2, 1, 3], [4, 4, 4, 4], [5, 1, 6, 2, 7, 3, 7, 1], [2, 6, 3], [7, 6, 5, 4, 3, 2, 1, 7, 7]]
CUTS = [(2, 3), (1, 2), (3, 4), (1, 2), (2, 7)]  # the last event, several, repeated ones, items of the history
ITEMS = 9


@dataclass(frozen=True)
class Asked:
    """A batch that says no more than who is asked for."""

    users: Tensor

    def to(self, device: torch.device) -> Self:
        return self


def batches(users: Sequence[int], size: int) -> Iterator[Asked]:
    for first in range(0, len(users), size):
        yield Asked(torch.tensor(users[first : first + size]))


def tally_of(store: Store, scorer: object, size: int = 2, users: Sequence[int] | None = None, memory: int = 2**20) -> Tally:
    everybody = store.users_of("test")
    ranker = Ranker(store, "test", Targets.of(store, "test", everybody), [1, 3], memory, CPU)
    for batch in batches(everybody.tolist() if users is None else users, size):
        ranker.rank(scorer, batch)
    return ranker.tally


def same(one: Tally, other: Tally) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one.arrays(), other.arrays(), strict=True))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return store_of(tmp_path / "store", HISTORIES, items=ITEMS, cuts=CUTS)


def ties(seed: int, dtype: torch.dtype = torch.float32) -> Table:
    """Scores of four values only, one of which is -inf."""
    values = torch.tensor([-np.inf, 0.0, 0.5, 3.0], dtype=dtype)
    drawn = torch.randint(0, 4, (len(HISTORIES), ITEMS + 1), generator=torch.Generator().manual_seed(seed))
    return Table(values[drawn])


def brute_force(scores: np.ndarray) -> dict[str, list[int]]:
    """The counts of every (user, target) pair, one item after the other."""
    counts: dict[str, list[int]] = {"greater": [], "equal": [], "greater_seen": [], "equal_seen": []}
    for user, (history, (_, begin)) in enumerate(zip(HISTORIES, CUTS, strict=True)):
        targets = set(history[begin:])
        seen = set(history[:begin]) - targets
        for target in sorted(targets):
            rivals = [i for i in range(1, ITEMS + 1) if i != target]
            greater = [i for i in rivals if scores[user, i] > scores[user, target]]
            equal = [i for i in rivals if scores[user, i] == scores[user, target]]
            for name, found in (("greater", greater), ("equal", equal)):
                counts[name].append(len(found))
                counts[f"{name}_seen"].append(len(seen.intersection(found)))
    return counts


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("width", [1, 2, 4, ITEMS])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_counts_are_those_of_brute_force(store, monkeypatch, seed, width, dtype):
    monkeypatch.setattr(tiles, "CPU_TILE_BYTES", 4 * 2 * width)
    scorer = ties(seed, dtype)
    tally, expected = tally_of(store, scorer), brute_force(scorer.scores.numpy())
    assert {name: getattr(tally, name).tolist() for name in expected} == expected
    assert tally.seen.tolist() == [1, 0, 3, 2, 6]  # distinct items of the history that are no targets
    assert tally.ranked.tolist() == [1] * 5 and not tally.broken.any()


def test_targets_are_the_distinct_items_of_the_part(store):
    targets = Targets.of(store, "test", np.array([0, 2, 4]))
    assert targets.items.tolist() == [1, 3, 1, 3, 7, 7]
    assert targets.offsets.tolist() == [0, 2, 5, 6]
    assert targets.events.tolist() == [3, 4, 7]


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize("memory", [0, 2**20])
def test_neither_batches_nor_memory_nor_tiles_change_a_count(store, monkeypatch, size, memory):
    expected = tally_of(store, ties(0))
    monkeypatch.setattr(tiles, "CPU_TILE_BYTES", 4 * 7)
    assert same(tally_of(store, ties(0), size, [3, 0, 4, 2, 1], memory), expected)


def test_the_shares_of_several_processes_add_up(store):
    shares = [tally_of(store, ties(1), users=users).arrays() for users in ([4, 1], [0, 2, 3])]
    assert same(Tally(*(a + b for a, b in zip(*shares, strict=True))), tally_of(store, ties(1)))


@pytest.mark.parametrize("seed", range(4))
def test_lists_hold_the_best_candidates_and_equal_scores_go_by_item(store, seed):
    scorer = ties(seed)
    tally = tally_of(store, scorer)
    expected = np.zeros_like(tally.listed)
    for user, (history, (_, begin)) in enumerate(zip(HISTORIES, CUTS, strict=True)):
        for place, hidden in enumerate((set(history[:begin]) - set(history[begin:]), set())):
            order = sorted(set(range(1, ITEMS + 1)) - hidden, key=lambda i: (-scorer.scores[user, i], i))
            listed = [i for i in order if scorer.scores[user, i] > -np.inf]
            for column, k in enumerate((1, 3)):
                expected[place, column, listed[:k]] += 1
    assert np.array_equal(tally.listed, expected)


def test_scores_of_which_all_users_share_one_row_are_left_alone(store):
    scores = torch.arange(ITEMS + 1.0)
    tally = tally_of(store, Table(scores.expand(len(HISTORIES), -1)))
    assert tally.greater.tolist() == [ITEMS - item for item in (1, 3, 4, 1, 3, 7, 3, 7)]
    assert scores.tolist() == list(range(ITEMS + 1))


def test_products_rescored_in_the_same_tiles_are_equal_to_held_ones(store, monkeypatch):
    monkeypatch.setattr(tiles, "CPU_TILE_BYTES", 4 * 2 * 2)
    vectors = torch.randn(len(HISTORIES), 37)
    scorer = DotProduct(lambda batch: vectors[batch.users], torch.randn(ITEMS + 1, 37))
    held, rescored = (tally_of(store, scorer, memory=memory) for memory in (2**20, 0))
    assert same(held, rescored)
    assert not held.equal.any()  # a target does not tie with itself, nor lose to itself


def test_infinite_scores_tie_with_each_other(store):
    scores = torch.full((len(HISTORIES), ITEMS + 1), np.inf)
    scores[1::2] = -np.inf
    tally = tally_of(store, Table(scores))
    assert not tally.greater.any()
    assert tally.equal.tolist() == [ITEMS - 1] * len(tally.equal)


def test_users_with_a_score_that_is_not_a_number_are_told(store):
    scorer = ties(3)
    scorer.scores[2, 5] = scorer.scores[4] = np.nan
    assert tally_of(store, scorer).broken.tolist() == [0, 0, 1, 0, 1]


def test_users_who_are_not_to_be_evaluated_are_a_mistake(store):
    ranker = Ranker(store, "test", Targets.of(store, "test", np.array([0, 2])), [], 0, CPU)
    for user in (1, 4):
        with pytest.raises(ValueError, match="not to be evaluated"):
            ranker.rank(ties(0), Asked(torch.tensor([user])))


def test_a_user_without_an_event_in_the_part_is_a_mistake(tmp_path):
    store = store_of(tmp_path, [[1, 2, 3], [1, 2]])
    with pytest.raises(ValueError, match="row 1 has no event in test"):
        Targets.of(store, "test", np.array([0, 1]))
