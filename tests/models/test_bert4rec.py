import math
from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from scored import catalogue_scores
from stores import store_of
from turborec.data.batch import DataSpec, SequenceBatch
from turborec.data.loader import Batches, TrainingBatches
from turborec.models.bert4rec import Config, sequence
from turborec.nn.linear import Context

SPEC = DataSpec(users=5, items=11, max_length=7)
VARIANTS = {
    "paper": Config(width=8, heads=2, hidden=12, dropout=0.0, norm="post"),
    "pre-norm, untied": Config(width=8, heads=2, hidden=12, dropout=0.0, norm="pre", tied=False),
    "bare": Config(width=8, heads=1, hidden=12, dropout=0.0, norm="post", embedding_norm=False, head=False),
    "sinusoidal": Config(width=8, heads=2, hidden=12, dropout=0.0, norm="pre", positions="sinusoidal"),
}


def plain_bert4rec(state, config, events):
    """The network of one sequence written out in float64 from its state dict alone -> what each position says of [V] items."""
    w = {name: value.double() for name, value in state.items()}
    length = len(events)

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    def position(age):
        if config.positions == "learned":
            return w["positions.weight"][age]
        angles = [age / 10_000 ** (2 * (d // 2) / config.width) for d in range(config.width)]
        waves = [math.cos(a) if d % 2 else math.sin(a) for d, a in enumerate(angles)]
        return torch.tensor(waves, dtype=torch.float64)

    x = torch.stack([w["items.weight"][events[i]] + position(length - 1 - i) for i in range(length)])
    x = norm(x, "embedding_norm") if config.embedding_norm else x
    for b in range(config.layers):
        block = f"blocks.{b}"
        h = x if config.norm == "post" else norm(x, f"{block}.attention_norm")
        q, k, v = (linear(h, f"{block}.attention.{p}") for p in "qkv")
        mixed = [
            (q[:, p] @ k[:, p].T / len(p) ** 0.5).softmax(1) @ v[:, p] for p in torch.arange(config.width).chunk(config.heads)
        ]
        x = x + linear(torch.cat(mixed, 1), f"{block}.attention.o")
        x = norm(x, f"{block}.attention_norm") if config.norm == "post" else x
        h = x if config.norm == "post" else norm(x, f"{block}.feed_forward_norm")
        x = x + linear(F.gelu(linear(h, f"{block}.feed_forward.up")), f"{block}.feed_forward.down")
        x = norm(x, f"{block}.feed_forward_norm") if config.norm == "post" else x
    x = norm(x, "norm") if config.norm == "pre" else x
    if config.head:
        x = norm(F.gelu(linear(x, "dense")), "dense_norm")
    table = w["items.weight" if config.tied else "output.weight"]
    return x @ table[1:].T + w["bias"][1:]


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def case(request):
    torch.manual_seed(0)
    model = request.param.build(SPEC)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return request.param, model, SequenceBatch.example(SPEC, 4, torch.Generator().manual_seed(2))


def test_scores_equal_an_independent_implementation(case):
    config, model, batch = case
    scores = catalogue_scores(model, batch, SPEC.items)
    for row, length in enumerate(batch.lengths):
        events = [*batch.items[row, :length].tolist(), 0]
        assert torch.allclose(scores[row].double(), plain_bert4rec(model.state_dict(), config, events)[-1], atol=1e-5)


def test_the_loss_equals_an_independent_implementation(case):
    config, model, batch = case
    masked, expected, count = model.masked(batch), 0.0, 0
    for row, length in enumerate(batch.lengths.tolist()):
        truth = [*batch.items[row, :length].tolist(), int(batch.targets[row, length - 1])]
        hidden = [p for p in range(length + 1) if masked[row, p]]
        logits = plain_bert4rec(model.state_dict(), config, [0 if p in hidden else i for p, i in enumerate(truth)])
        expected += sum(F.cross_entropy(logits[p], torch.tensor(truth[p] - 1)).item() for p in hidden)
        count += len(hidden)
    term = model(batch).terms["masked_item"]
    assert term.sum.item() == pytest.approx(expected, rel=1e-5)
    assert term.count == count == model.counts(batch)["masked_item"]


def test_a_masked_event_is_seen_by_nobody(case):
    _, model, batch = case
    masked, events = model.masked(batch), sequence(batch)
    hidden = events.masked_fill(masked, 0)
    other = torch.where(masked, events % SPEC.items + 1, events)
    assert torch.equal(other.masked_fill(masked, 0), hidden)
    longer = F.pad(other, (0, 1))
    swapped = replace(
        batch, items=torch.where(batch.items > 0, other[:, :-1], 0), targets=torch.where(batch.targets > 0, longer[:, 1:-1], 0)
    )
    assert torch.equal(model.masked(swapped), masked)
    assert torch.equal(sequence(swapped).masked_fill(masked, 0), hidden)


def test_both_sides_of_a_mask_are_read(case):
    _, model, batch = case
    row = int(batch.lengths.argmax())
    only = replace(batch.rows(row, row + 1), targets=torch.zeros(1, 7, dtype=torch.int64))
    only.targets[0, 2] = batch.targets[row, 2]  # the fourth event is masked
    for place in (1, 5):
        changed = replace(only, items=only.items.clone())
        changed.items[0, place] = changed.items[0, place] % SPEC.items + 1
        assert abs(model(changed).terms["masked_item"].sum - model(only).terms["masked_item"].sum) > 1e-6


def long_batch(rows, length):
    spec = DataSpec(users=5, items=11, max_length=length)
    batch = SequenceBatch.example(spec, rows, torch.Generator().manual_seed(3))
    return spec, replace(
        batch,
        items=batch.items.clamp(min=1),
        targets=batch.targets.clamp(min=1),
        lengths=torch.full((rows,), length),
    )


def test_events_are_masked_at_the_stated_rate_and_the_first_never():
    spec, batch = long_batch(1000, 40)
    masked = Config(mask_share=0.3, last_share=0.0).build(spec).masked(batch)
    trials, deviation = 40_000, (40_000 * 0.3 * 0.7) ** 0.5
    assert abs(int(masked.sum()) - trials * 0.3) < 3 * deviation
    assert not masked[:, 0].any() and masked.any(1).all()
    by_place = masked[:, 1:].sum(0).double()
    assert (by_place - 300).abs().max() < 4 * (1000 * 0.3 * 0.7) ** 0.5


def test_in_a_share_of_the_rows_the_last_event_alone_is_masked():
    spec, batch = long_batch(2000, 20)
    masked = Config(mask_share=0.5, last_share=0.25).build(spec).masked(batch)
    alone = (masked.sum(1) == 1) & masked[:, -1]
    assert abs(int(alone.sum()) - 500) < 3 * (2000 * 0.25 * 0.75) ** 0.5


def test_a_row_with_targets_is_never_without_a_mask_and_padding_never_masked():
    batch = SequenceBatch.example(DataSpec(5, 11, 30), 200, torch.Generator().manual_seed(5))
    masked = Config(mask_share=0.01, last_share=0.0).build(DataSpec(5, 11, 30)).masked(batch)
    assert masked.any(1).all()
    assert not (masked & (torch.arange(31) > batch.lengths[:, None])).any()


def test_masks_follow_the_row_wherever_it_stands():
    spec, batch = long_batch(6, 9)
    model = Config().build(spec)
    whole = model.masked(batch)
    assert all(torch.equal(model.masked(batch.rows(r, r + 1))[0], whole[r]) for r in range(6))
    assert not torch.equal(model.masked(replace(batch, keys=batch.keys + 1)), whole)


@pytest.mark.parametrize("wrong", [dict(width=9, heads=2), dict(width=9, heads=3, positions="sinusoidal")])
def test_widths_that_do_not_fit_are_refused(wrong):
    with pytest.raises(ValueError, match="width"):
        Config(**wrong)


def test_with_identity_maps_a_mask_begins_as_the_mean_of_what_it_sees():
    """Before any step a block without positions, queries and feed-forward scores items by the mean of the normed history."""
    torch.manual_seed(0)
    plain = {"embedding_norm": False, "head": False, "dropout": 0.0}
    model = Config(width=16, heads=2, layers=1, hidden=4, maps="identity", **plain).build(
        DataSpec(users=5, items=40, max_length=7)
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "positions" in name or "feed_forward.down" in name or ".q." in name:
                parameter.zero_()
        model.items.weight[0] = 0.0  # the mask itself
        events = torch.tensor([[3, 9, 27]])
        batch = replace(
            SequenceBatch.example(DataSpec(5, 40, 3), 1, torch.Generator()), items=events, lengths=torch.tensor([3])
        )
        shown = F.layer_norm(model.items.weight[torch.tensor([3, 9, 27, 0])], (16,))
        expected = F.layer_norm(shown.mean(0), (16,)) @ model.items.weight[1:].T
        scorer = model.eval().scorer()
        torch.testing.assert_close(scorer.score(scorer.users(batch), 1, 41)[0], expected, atol=1e-4, rtol=1e-3)


def test_the_loss_may_be_of_every_event_under_a_name_that_says_so():
    torch.manual_seed(0)
    masked, every = (Config(width=8, hidden=16, dropout=0.0, loss_on=name).build(SPEC) for name in ("masked", "every_event"))
    every.load_state_dict(masked.state_dict())
    batch = SequenceBatch.example(SPEC, 4, torch.Generator().manual_seed(0))
    shown = sequence(batch)
    assert every.counts(batch)["masked_item"] == int((shown != 0).sum()) > masked.counts(batch)["masked_item"]
    got = every(batch).terms["masked_item"]
    assert got.count == int((shown != 0).sum())
    states = every._encode(shown.masked_fill(every.masked(batch), 0), batch.lengths + 1, Context(batch.keys))
    at = shown != 0
    logits = every._projected(states[at], Context(batch.keys)) @ every.items.weight[1:].T + every.bias[1:]
    assert torch.allclose(got.sum, F.cross_entropy(logits, shown[at] - 1, reduction="sum"), rtol=1e-5)


@pytest.mark.parametrize("overlap", [0, 3])
@pytest.mark.parametrize("seams", ["fixed", "all"])
def test_of_long_histories_every_event_but_the_first_may_be_masked_once_an_epoch(overlap, seams, tmp_path):
    """Windows that overlap show some events twice; those shown for context alone are never to be named."""
    lengths = (3, 9, 30, 47)
    store = store_of(tmp_path / "store", [list(range(1, length + 1)) for length in lengths], items=47)
    settings = Batches(max_length=8, tokens=64, overlap=overlap, seams=seams)
    model = Config(width=8, heads=2, hidden=8, mask_share=0.999999, last_share=0.0).build(DataSpec(4, 47, 8))
    for number in range(2):
        epoch = TrainingBatches(store, settings, seed=1).epoch(number)
        named = Counter()
        for step in range(len(epoch)):
            batch = epoch.batch(step)
            rows, at = model.masked(batch).nonzero(as_tuple=True)
            named.update(zip(batch.users[rows].tolist(), sequence(batch)[rows, at].tolist(), strict=True))
        # Histories hold items 1, 2, 3, … so an item is its place; the last two are validation and test.
        assert named == Counter((user, place) for user, length in enumerate(lengths) for place in range(2, length - 1))


def test_a_batch_without_a_masked_event_has_no_loss_and_no_gradient():
    model = Config(width=8, heads=2, hidden=8).build(SPEC)
    batch = SequenceBatch.example(SPEC, 4, torch.Generator().manual_seed(0))
    for empty in (batch.nothing(), replace(batch, targets=torch.zeros_like(batch.targets), targets_count=0)):
        assert model.counts(empty) == {"masked_item": 0}
        term = model(empty).terms["masked_item"]
        term.sum.backward()
        assert term.sum.item() == 0.0 and term.count == 0
        assert all(p.grad is None or not p.grad.any() for p in model.parameters())
