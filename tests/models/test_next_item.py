"""What is learnt of items that were there before, against the plain way: every position and every item by itself."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from scored import catalogue_scores
from turborec.data.batch import DataSpec, SequenceBatch
from turborec.errors import UserError
from turborec.head import Head
from turborec.losses import CrossEntropy, SampledSoftmax
from turborec.models import _next_item, gru4rec, sasrec, ss4rec
from turborec.models._next_item import RepeatBias

SPEC = DataSpec(users=7, items=9, max_length=12)


def batch_of_repeats(seed=1):
    return SequenceBatch.example(SPEC, 5, torch.Generator().manual_seed(seed))


def built(module, **settings):
    torch.manual_seed(0)
    model = module.Config(repeat_bias=True, **settings).build(SPEC).eval()
    with torch.no_grad():
        model.head.repeats.weight.copy_(torch.tensor([-3.0, 2.0, 0.5, -1.0]))
    return model


def ages(history):
    """How many events ago each item of a history was last there."""
    return {item: len(history) - place for place, item in enumerate(history)}


def number(weight, age):
    """1; 2 and 3; 4 to 7; 8 to 15."""
    return float(weight[len(bin(age)) - 3])


def plain(bias, history):
    """What is added to items 1..V."""
    extra = torch.zeros(SPEC.items)
    for item, age in ages(history).items():
        extra[item - 1] = number(bias, age)
    return extra


def test_every_item_of_a_history_once_by_how_long_ago_it_was_there():
    batch, bias = batch_of_repeats(), RepeatBias(12)
    with torch.no_grad():
        weight = bias.weight.copy_(torch.tensor([10.0, 20.0, 30.0, 40.0]))
    wanted = batch.targets.flatten().nonzero().squeeze(1)
    cells = bias(batch.items, wanted)
    found = [{} for _ in wanted]
    for row, item, value in zip(cells.rows.tolist(), cells.items.tolist(), cells.values.tolist(), strict=True):
        assert item not in found[row]
        found[row][item] = value
    assert cells.rows.tolist() == sorted(cells.rows.tolist())
    for at, got in zip(wanted.tolist(), found, strict=True):
        history = batch.items[at // 12, : at % 12 + 1].tolist()
        assert got == {item: number(weight.detach(), age) for item, age in ages(history).items()}


@pytest.mark.parametrize(("module", "settings"), [(sasrec, {"count_from": "start"}), (gru4rec, {}), (ss4rec, {})])
def test_scores_and_losses_have_the_number_of_each_item(module, settings):
    model, batch = built(module, **settings), batch_of_repeats()
    without = module.Config(**settings).build(SPEC)
    without.load_state_dict({k: v for k, v in model.state_dict().items() if k != "head.repeats.weight"})
    weight = model.head.repeats.weight.detach()
    rows = [items[:length].tolist() for items, length in zip(batch.items, batch.lengths, strict=True)]
    extra = torch.stack([plain(weight, row) for row in rows])
    torch.testing.assert_close(catalogue_scores(model, batch, 9), catalogue_scores(without, batch, 9) + extra)
    loss = 0.0
    for row in range(5):
        for length in range(1, int(batch.lengths[row]) + 1):
            shown = batch.rows(row, row + 1)
            cut = {name: getattr(shown, name)[:, :length] for name in ("items", "times", "targets")}
            shown = replace(shown, **cut, lengths=torch.tensor([length]))
            logits = catalogue_scores(without, shown, 9)[0] + plain(weight, rows[row][:length])
            loss += float(F.cross_entropy(logits, batch.targets[row, length - 1] - 1))
    assert float(model(batch).terms["next_item"].sum.detach()) == pytest.approx(loss, rel=1e-4)


def test_scores_do_not_depend_on_the_tiles_they_are_asked_for_in():
    model, batch = built(sasrec), batch_of_repeats()
    scorer = model.scorer()
    with torch.no_grad():
        state = scorer.users(batch)
        parts = torch.cat([scorer.score(state, lo, hi) for lo, hi in ((1, 2), (2, 6), (6, 7), (7, 10))], dim=1)
        torch.testing.assert_close(parts, scorer.score(state, 1, 10))


def test_users_followed_beyond_the_window_have_the_numbers_of_the_window():
    model = built(ss4rec)
    items = torch.randint(1, 10, (2, 30), generator=torch.Generator().manual_seed(3))
    users = None
    with torch.no_grad():
        for k in range(30):
            users = model.hear(users, items[:, k], torch.full((2,), 10**9 + k))
            cells = model.vectors(users).cells
            assert users.items.shape[1] == min(k + 1, 12)
            for row in range(2):
                window = items[row, max(0, k - 11) : k + 1].tolist()
                here = cells.rows == row
                got = dict(zip(cells.items[here].tolist(), cells.values[here].tolist(), strict=True))
                weight = model.head.repeats.weight.detach()
                assert got == {item: number(weight, age) for item, age in ages(window).items()}


@pytest.mark.parametrize("loss", [CrossEntropy(), SampledSoftmax(negatives=4)])
def test_long_windows_are_looked_at_part_by_part(monkeypatch, loss):
    model, batch = built(ss4rec, loss=loss), batch_of_repeats()
    found = []
    for cells in (2**20, 5 * 12, 1):
        monkeypatch.setattr(_next_item, "CELLS", cells)
        model.zero_grad()
        total = model(batch).terms["next_item"].sum
        total.backward()
        found.append((total.detach(), *(p.grad.clone() for p in model.parameters())))
    for other in found[1:]:
        for got, expected in zip(other, found[0], strict=True):
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_nothing_is_added_where_nothing_is_shown():
    model, batch = built(sasrec), batch_of_repeats()
    assert not len(model.head.repeats(torch.zeros(2, 4, dtype=torch.int64), torch.tensor([0, 4])).rows)
    assert model(batch.nothing()).terms["next_item"].sum.item() == 0


def test_it_learns_that_nothing_recurs():
    """Rows that go through all items, never twice: what was there is out of the question."""
    torch.manual_seed(0)
    model = sasrec.Config(repeat_bias=True, width=8, hidden=8, dropout=0.0).build(SPEC)
    optimizer = torch.optim.Adam([model.head.repeats.weight], lr=0.1)
    order = torch.stack([torch.randperm(9) for _ in range(64)]) + 1
    batch = replace(
        SequenceBatch.example(replace(SPEC, max_length=8), 64, torch.Generator().manual_seed(1)),
        items=order[:, :-1],
        targets=order[:, 1:],
        lengths=torch.full((64,), 8),
        targets_count=64 * 8,
    )
    for _ in range(200):
        optimizer.zero_grad()
        loss = model(batch).terms["next_item"].sum / (64 * 8)
        loss.backward()
        optimizer.step()
    assert float(model.head.repeats.weight.detach()[:3].max()) < -4
    # Nine items less those that were there: the mean of log 8, log 7, ..., log 1.
    assert float(loss.detach()) == pytest.approx(torch.arange(1, 9).double().log().mean().item(), abs=0.1)


def test_a_table_in_parts_is_refused():
    model, batch = built(sasrec), batch_of_repeats()
    table = torch.zeros(4, 8)
    table._parts = object()
    cells = model.head.repeats(batch.items, torch.tensor([0]))
    with pytest.raises(UserError, match=r"model\.repeat_bias needs the whole item table"):
        Head(torch.zeros(1, 8), table, cells=cells)
