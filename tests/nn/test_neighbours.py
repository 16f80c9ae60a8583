"""Graphs of items by features and of users by what they have in common, against loops; and where they are kept."""

import numpy as np
import pytest
import torch

from sparse import dense
from turborec.nn import neighbours
from turborec.nn.modality import Modality
from turborec.nn.neighbours import common, item_graph, nearest, user_graph


def table(size=9, width=4, seed=0, missing=(0, 3)):
    values = torch.randn(size, width, generator=torch.Generator().manual_seed(seed))
    values[list(missing)] = float("nan")
    return Modality(values)


def pairs(users=12, items=8, seed=0):
    has = torch.rand(users, items, generator=torch.Generator().manual_seed(seed)) < 0.4
    has[3], has[:, 5] = False, False
    row, column = has.nonzero(as_tuple=True)
    return row.int(), (column + 1).int()


@pytest.mark.parametrize("cells", [1, 20, 10**6])
def test_the_nearest_are_those_of_greatest_cosine(cells, monkeypatch):
    monkeypatch.setattr(neighbours, "CELLS", cells)
    one = table()
    rows, columns = nearest(one, 3)
    found = {row: set(columns[rows == row].tolist()) for row in rows.unique().tolist()}
    values = one.values.double()
    for item in (1, 2, 4, 5, 6, 7, 8):
        likeness = {j: float(torch.cosine_similarity(values[item], values[j], dim=0)) for j in (1, 2, 4, 5, 6, 7, 8)}
        best = sorted(likeness, key=likeness.get, reverse=True)[:3]
        assert found[item] == set(best) and item in best
    assert found.keys() == {1, 2, 4, 5, 6, 7, 8} and not {0, 3} & set(columns.tolist())


def test_a_mixture_counts_each_neighbour_by_its_modality_and_rows_add_up_to_one():
    image, text = table(seed=1, missing=(0, 3)), table(seed=2, missing=(0, 4, 6))
    found = dense(item_graph([image, text], torch.tensor([0.1, 0.9]), 2, None))
    for item in range(9):
        expected = torch.zeros(9, dtype=torch.float64)
        for one, weight in ((image, 0.1), (text, 0.9)):
            rows, columns = nearest(one, 2)
            for column in columns[rows == item].tolist():
                expected[column] += weight / 2
        total = expected.sum()
        assert torch.allclose(found[item], expected / total if total else expected, atol=1e-7)
    sums = found.sum(1)
    assert sums[0] == 0 and torch.allclose(sums[1:], torch.ones(8, dtype=torch.float64), atol=1e-6)
    # Item 3 has no image: its neighbours are those by text.
    rows, columns = nearest(text, 2)
    assert set(found[3].nonzero().flatten().tolist()) == set(columns[rows == 3].tolist())


@pytest.mark.parametrize("unit", [1e-30, 1.0, 1e15])
def test_the_unit_of_a_table_changes_no_neighbour(unit):
    plain, scaled = table(size=60), table(size=60)
    scaled.values *= unit
    assert all(torch.equal(a, b) for a, b in zip(nearest(plain, 5), nearest(scaled, 5), strict=True))


def test_a_graph_that_cannot_be_kept_is_found_all_the_same(tmp_path, caplog):
    (tmp_path / "graphs").write_text("a file where the folder should be")
    found = item_graph([table()], torch.ones(1), 2, tmp_path / "graphs")
    assert torch.equal(dense(found), dense(item_graph([table()], torch.ones(1), 2, None)))
    assert "cannot be written" in caplog.text


def test_an_item_of_zeros_is_nobody_s_neighbour():
    one = table()
    one.values[4] = 0.0
    rows, columns = nearest(one, 3)
    assert 4 not in rows and 4 not in columns


def test_a_modality_that_counts_nothing_leaves_no_entry():
    image, text = table(seed=1, missing=(0, 3)), table(seed=2, missing=(0, 4))
    found = dense(item_graph([image, text], torch.tensor([1.0, 0.0]), 2, None))
    assert found.isfinite().all() and torch.equal(found, dense(item_graph([image], torch.tensor([1.0]), 2, None)))
    assert not found[3].any()


@pytest.mark.parametrize("cells", [1, 30, 10**6])
def test_users_have_most_in_common_with_whom_a_loop_finds(cells, monkeypatch):
    monkeypatch.setattr(neighbours, "CELLS", cells)
    users, items = pairs()
    has = torch.zeros(12, 9, dtype=torch.int64)
    has[users.long(), items.long()] = 1
    counts = has @ has.T
    rows, columns, found = common(users, items, (12, 8), 4)
    assert (rows.diff() >= 0).all()
    for user in range(12):
        ranked = sorted((-int(counts[user, v]), v) for v in range(12) if v != user and counts[user, v])[:4]
        mine = sorted((-int(c), int(v)) for c, v in zip(found[rows == user], columns[rows == user], strict=True))
        assert mine == ranked
    assert 3 not in rows.tolist() and 3 not in columns.tolist()


def test_the_weights_of_users_are_the_softmax_of_what_they_have_in_common():
    users, items = pairs()
    rows, columns, counts = common(users, items, (12, 8), 3)
    graph = dense(user_graph(users, items, (12, 8), 3, None))
    for user in rows.unique().tolist():
        expected = counts[rows == user].double().softmax(0)
        assert torch.allclose(graph[user, columns[rows == user]], expected, atol=1e-6)
    assert not graph[3].any()


def test_a_graph_is_kept_by_its_content_and_made_anew_where_the_file_is_damaged(tmp_path, monkeypatch, caplog):
    one, weights, folder = table(), torch.ones(1), tmp_path / "graphs"
    first = dense(item_graph([one], weights, 3, folder))
    (path,) = folder.iterdir()
    monkeypatch.setattr(neighbours, "nearest", None)  # nothing is computed again
    assert torch.equal(dense(item_graph([one], weights, 3, folder)), first)
    monkeypatch.undo()
    other = table(seed=7)
    for changed in ((([other]), weights, 3), ([one, other], torch.tensor([0.5, 0.5]), 3), ([one], weights, 2)):
        item_graph(*changed, folder)
    assert len(list(folder.iterdir())) == 4
    path.write_bytes(path.read_bytes()[:-40])
    assert torch.equal(dense(item_graph([one], weights, 3, folder)), first)
    assert "made anew" in caplog.text and np.load(path, allow_pickle=False)["rows"].size
