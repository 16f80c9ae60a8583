import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.csv as pc
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor

from stores import item_id, store_of, user_id
from turborec import histories, recommend, tiles
from turborec.data.batch import SequenceBatch
from turborec.data.store import Store
from turborec.errors import UserError
from turborec.histories import from_file, stored
from turborec.recommend import Lists, Recommendations, candidates_of

CPU = torch.device("cpu")
ITEMS = 12
FOUR = Lists(k=4)
HISTORIES = [[1, 2, 3, 2], [12, 11, 6, 6, 7], [5, 5, 5], [], list(range(1, ITEMS + 1))]


class Neighbours:
    """Prefers items near the last event, both sides alike, and the more so the more events it is shown."""

    def users(self, batch: SequenceBatch) -> Tensor:
        last = batch.items.gather(1, batch.last()[:, None])
        return torch.cat([last, batch.lengths[:, None]], 1)

    def score(self, state: Tensor, lo: int, hi: int) -> Tensor:
        return (-(torch.arange(lo, hi) - state[:, :1]).abs() * state[:, 1:]).float()


def near(history: list[int], hidden: set[int], max_length: int) -> list[tuple[int, float]]:
    """What `Neighbours` scores best, by a sort of everything; equal scores by item."""
    scores = {i: -abs(i - history[-1]) * min(len(history), max_length) for i in range(1, ITEMS + 1)}
    return sorted(((i, s) for i, s in scores.items() if i not in hidden), key=lambda pair: (-pair[1], pair[0]))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return store_of(tmp_path / "store", HISTORIES, items=ITEMS)


def lists_of(store: Store, users=None, lists: Lists = FOUR, candidates=None) -> Iterator[Recommendations]:
    users = stored(store) if users is None else users
    return recommend.recommend(Neighbours(), users, store, lists, 3, CPU, candidates)


def listed(chunks: Iterator[Recommendations]) -> dict[str, list[tuple[int, float]]]:
    """Items and scores by user, without the empty places."""
    return {
        user: [(i, s) for i, s in zip(items.tolist(), scores.tolist(), strict=True) if i]
        for some in chunks
        for user, items, scores in zip(some.users, some.items, some.scores, strict=True)
    }


@pytest.mark.parametrize("seen", ["filtered", "kept"])
@pytest.mark.parametrize("width", [1, 3, ITEMS])
@pytest.mark.parametrize("tokens", [1, 4, 1000])
def test_lists_are_those_of_a_full_sort(store, monkeypatch, seen, width, tokens):
    monkeypatch.setattr(tiles, "CPU_TILE_BYTES", 4 * width)
    monkeypatch.setattr(recommend, "TOKENS", tokens)
    found = listed(lists_of(store, lists=Lists(k=4, seen=seen)))
    for user, history in enumerate(HISTORIES):
        if history:
            hidden = set(history) if seen == "filtered" else set()
            assert found[user_id(user)] == near(history, hidden, max_length=3)[:4]


def test_users_come_out_as_they_came_in_whatever_the_chunks(store, monkeypatch):
    monkeypatch.setattr(histories, "USERS_AT_A_TIME", 2)
    names = [user_id(u) for u in (4, 0, 3, 2, 1)]
    chunks = list(lists_of(store, stored(store, names)))
    assert [some.users for some in chunks] == [names[:2], names[2:4], names[4:]]
    assert listed(chunks) == listed(lists_of(store))


def test_who_has_seen_everything_gets_nothing(store):
    assert listed(lists_of(store))[user_id(4)] == []


def test_users_of_a_file_who_were_never_seen_in_training(store, tmp_path):
    path = tmp_path / "history.csv"
    path.write_text(f"user,item\nnew,{item_id(9)}\nnew,unheard\nnew,{item_id(8)}\nempty,unheard\n", encoding="utf-8")
    chunks = list(lists_of(store, from_file(store, path)))
    assert listed(chunks)["new"] == near([9, 8], {8, 9}, max_length=3)[:4]
    assert [bool(p) for some in chunks for p in some.popular] == [False, True]
    assert sum(some.unknown_events for some in chunks) == 2


def test_who_is_unknown_gets_the_most_popular_items_of_the_training_part(store):
    (some,) = lists_of(store, stored(store, ["stranger", user_id(3), user_id(0)]), Lists(k=3))
    assert some.popular.tolist() == [True, True, False]
    # In training: 1, 2, then 12, 11, 6, then 5, then 1..10.
    assert listed([some])["stranger"] == listed([some])[user_id(3)] == [(1, 2), (2, 2), (5, 2)]


def test_only_candidates_are_listed(store):
    candidates, unknown = candidates_of(store, [item_id(7), "unheard", item_id(4), item_id(7), item_id(12)])
    assert (candidates.tolist(), unknown) == ([4, 7, 12], ["unheard"])
    found = listed(lists_of(store, stored(store, [user_id(0), user_id(1), "stranger"]), candidates=candidates))
    others = set(range(1, ITEMS + 1)) - {4, 7, 12}
    assert found[user_id(0)] == near(HISTORIES[0], others, max_length=3)
    assert [i for i, _ in found[user_id(1)]] == [4]  # 7 and 12 are seen
    assert found["stranger"] == [(4, 1), (7, 1), (12, 1)]


def test_candidates_of_which_none_is_known_are_refused(store):
    with pytest.raises(UserError, match=r"None of the 2 candidates is an item .* look like 'item-000001'"):
        candidates_of(store, ["a", "b"])


def test_a_model_is_told_the_store_rows_of_the_users(store):
    class Rows(Neighbours):
        def users(self, batch: SequenceBatch) -> Tensor:
            asked.extend(batch.users.tolist())
            return super().users(batch)

    asked: list[int] = []
    list(recommend.recommend(Rows(), stored(store, [user_id(1), user_id(0)]), store, Lists(), 3, CPU))
    assert sorted(asked) == [0, 1]


def test_scores_that_are_not_numbers_are_refused(store):
    class Broken(Neighbours):
        def score(self, state: Tensor, lo: int, hi: int) -> Tensor:
            return super().score(state, lo, hi).where(torch.arange(lo, hi) != 5, torch.nan)

    with pytest.raises(UserError, match="not numbers"):
        list(recommend.recommend(Broken(), stored(store), store, Lists(), 3, CPU))


READ = {
    ".parquet": lambda path: pq.read_table(path).to_pylist(),
    ".csv": lambda path: pc.read_csv(path).to_pylist(),
    ".tsv": lambda path: pc.read_csv(path, parse_options=pc.ParseOptions(delimiter="\t")).to_pylist(),
    ".jsonl": lambda path: [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()],
}


@pytest.mark.parametrize("suffix", READ)
def test_lists_are_written_with_raw_ids(store, tmp_path, suffix):
    path, odd = tmp_path / f"lists{suffix}", "żółw, the 7th" if suffix == ".tsv" else 'żółw, "the\t7th"'
    summary = recommend.write(lists_of(store, stored(store, [odd, user_id(1)]), Lists(k=2)), path, store)
    first, second = near(HISTORIES[1], set(HISTORIES[1]), max_length=3)[:2]
    assert READ[suffix](path) == [
        {"user": odd, "rank": 1, "item": item_id(1), "score": 2, "reason": "popular"},
        {"user": odd, "rank": 2, "item": item_id(2), "score": 2, "reason": "popular"},
        {"user": user_id(1), "rank": 1, "item": item_id(first[0]), "score": first[1], "reason": "model"},
        {"user": user_id(1), "rank": 2, "item": item_id(second[0]), "score": second[1], "reason": "model"},
    ]
    assert (summary.users, summary.rows, summary.popular_users, summary.unknown_events) == (2, 4, 1, 0)


def test_a_tab_in_an_id_is_refused_where_tabs_separate(store, tmp_path):
    with pytest.raises(UserError, match="holds a tab or a line end"):
        recommend.write(lists_of(store, stored(store, ["a\tb"])), tmp_path / "lists.tsv", store)
    assert not list(tmp_path.glob("*lists*"))


def test_names_stand_beside_the_items_where_there_are_any(store, tmp_path):
    names = [f"name of {i}" for i in range(1, ITEMS + 1)]
    recommend.write(lists_of(store, stored(store, [user_id(1), user_id(0)])), tmp_path / "lists.csv", store, names)
    rows = READ[".csv"](tmp_path / "lists.csv")
    assert list(rows[0]) == ["user", "rank", "item", "name", "score", "reason"]
    assert all(row["name"] == f"name of {int(row['item'].removeprefix('item-'))}" for row in rows)


def test_nobody_to_recommend_to_leaves_a_file_without_rows(store, tmp_path):
    recommend.write(lists_of(store, stored(store, [])), tmp_path / "lists.parquet", store)
    table = pq.read_table(tmp_path / "lists.parquet")
    assert table.num_rows == 0 and table.column_names == ["user", "rank", "item", "score", "reason"]


@pytest.mark.parametrize("suffix", READ)
def test_a_failure_leaves_the_file_of_before(store, tmp_path, suffix):
    def failing() -> Iterator[Recommendations]:
        yield from lists_of(store)
        raise OSError("no space left")

    path = tmp_path / f"lists{suffix}"
    path.write_text("of before")
    with pytest.raises(OSError, match="no space"):
        recommend.write(failing(), path, store)
    assert path.read_text() == "of before"
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, "store"]


def test_a_file_of_another_kind_is_refused_before_anything_is_computed(store, tmp_path):
    with pytest.raises(UserError, match=r"ending in \.parquet, \.csv, \.tsv or \.jsonl"):
        recommend.write(iter([None]), tmp_path / "lists.xlsx", store)


def test_scores_are_exact_in_float64(store):
    class Close(Neighbours):
        def score(self, state: Tensor, lo: int, hi: int) -> Tensor:
            return torch.arange(lo, hi, dtype=torch.float64).mul(1e-15).add(1).expand(len(state), -1)

    (some,) = recommend.recommend(Close(), stored(store, [user_id(2)]), store, Lists(k=3, seen="kept"), 3, CPU)
    assert some.items.tolist() == [[12, 11, 10]]
    assert some.scores.tolist() == [(np.arange(12, 9, -1) * 1e-15 + 1).tolist()]
