"""What every model promises. A model is tested here because its file exists."""

import importlib
from dataclasses import fields, replace

import pytest
import torch
import torch.nn.functional as F

from scored import catalogue_scores
from stores import texts_of
from turborec.contract import Counted
from turborec.data.batch import DataSpec, Interactions, PairBatch, SequenceBatch
from turborec.data.schema import UNKNOWN_TIME
from turborec.data.store import Histories
from turborec.losses import SampledSoftmax
from turborec.nn.ssm import Intervals
from turborec.recipe import kinds


def spec_of(users, items, max_length, has):
    """Facts of data in which a user has the items that `has(user, item)` says, and items have two kinds of features."""
    pairs = torch.tensor([(u, i) for u in range(users) for i in range(1, items + 1) if has(u, i)], dtype=torch.int32)
    generator = torch.Generator().manual_seed(3)
    features = {name: torch.randn(items + 1, width, generator=generator) for name, width in (("image", 6), ("text", 5))}
    features["image"][[0, 4]] = float("nan")
    features["text"][[0, 4, 7]] = float("nan")
    counts = torch.bincount(pairs[:, 1].long(), minlength=items + 1)
    return DataSpec(
        users, items, max_length, counts, graph=Interactions(pairs[:, 0], pairs[:, 1]), features=features, texts=texts_of(items)
    )


SPEC = spec_of(7, 23, 12, lambda user, item: (user * 5 + item * 3) % 4 == 0 and user != 3 and item != 11)
"""One user and one item have nothing; one item has no features, another no text."""
VARIANTS = {
    "sasrec of RecBole": {
        "norm": "post",
        "norm_eps": 1e-12,
        "embedding_norm": True,
        "activation": "tanh",
        "count_from": "start",
    },
    "sasrec with repeats": {"repeat_bias": True},
    "gru4rec with repeats": {"repeat_bias": True, "loss": SampledSoftmax(negatives=5)},
    "sasrec of RecTools": {"norm": "query", "activation": "relu", "blanks": "seen"},
    "sasrec of RePlay": {"norm": "query", "activation": "relu", "scale_items": True, "table_std": 0.02},
    "sasrec with features": {"features": ("text", "image")},
    "bert4rec of RecBole": {"norm": "post", "norm_eps": 1e-12, "count_from": "start", "skip_first": True},
    "ss4rec of its authors": {"parametrisation": "faithful", "init": "official"},
    "ss4rec with all": {"norm": "pre", "hidden": 32, "shared_norm": False, "embedding_norm": True, "embedding_dropout": True}
    | {"intervals": Intervals(kind="log", unit=60.0, learned=True), "repeat_bias": True},
    "mamba4rec of two layers": {"layers": 2, "norm": "pre"},
    "mmgcn with trained vectors": {"trainable_ids": True},
    "lightgcn without layers": {"layers": 0},
    "bpr with a bias": {"item_bias": True},
    "vbpr with a bias": {"item_bias": True},
    "lightgcn of some edges": {"neighbours": 2},
    "dragon of one table": {"features": ("text",), "user_neighbours": 0, "item_layers": 2},
    "freedom of its projections": {"train_features": False, "drop": 0.0},
    "recformer of its authors": {"norm": "post", "width": 16, "layers": 2, "hidden": 32, "window": 4},
    "recformer with trained items": {"items": "trained", "width": 32, "layers": 2, "heads": 2, "hidden": 64},
    "recformer with hidden words": {"items": "trained", "width": 32, "layers": 2, "heads": 2, "hidden": 64}
    | {"masked_words": {}},
    "recformer with drawn items": {"items": "trained", "width": 32, "layers": 1, "heads": 2, "hidden": 64}
    | {"loss": SampledSoftmax(negatives=48)},
    "bert4rec of RePlay": {"embedding_norm": False, "final_norm": False, "head": False, "tied": False},
}
"""Models with other settings, such as imported ones have."""

MODELS = [*kinds("turborec.models"), *VARIANTS]


def config_of(kind):
    return importlib.import_module(f"turborec.models.{kind.split()[0]}").Config(**VARIANTS.get(kind, {}))


def build(kind):
    torch.manual_seed(0)
    config = config_of(kind)
    return config.build(SPEC), config.batch.example(SPEC, 5, torch.Generator().manual_seed(1))


def shown(batch):
    """What is shown of users who are ranked: the batch itself, of models that learn from what they are shown."""
    return SequenceBatch.example(SPEC, 5, torch.Generator().manual_seed(2)) if isinstance(batch, PairBatch) else batch


TRAINED = [kind for kind in MODELS if not isinstance(build(kind)[0], Counted)]
COUNTED = [kind for kind in MODELS if kind not in TRAINED]
PAIRED = [kind for kind in MODELS if config_of(kind).batch is PairBatch]
SEQUENTIAL = [kind for kind in MODELS if kind not in PAIRED]


def fit(model, batch):
    """Make a model worth scoring: a few steps, or the counts."""
    if isinstance(model, Counted):
        rows = [row[:n] for row, n in zip(batch.items, batch.lengths, strict=True)]
        offsets = torch.tensor([0, *batch.lengths]).cumsum(0)
        model.count(Histories(offsets.numpy(), torch.cat(rows).int().numpy(), torch.cat(rows).numpy()))
        return model
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        total(model, batch).backward()
        optimizer.step()
    return model


def total(model, batch):
    return sum(term.weight * term.sum for term in model(batch).terms.values())


def scores(model, batch):
    return catalogue_scores(model, shown(batch), SPEC.items)


def tensors(batch):
    return {f.name: getattr(batch, f.name) for f in fields(batch) if isinstance(getattr(batch, f.name), torch.Tensor)}


def padded(batch, extra):
    fill = {"items": 0, "targets": 0, "times": UNKNOWN_TIME}
    return replace(batch, **{name: F.pad(getattr(batch, name), (0, extra), value=v) for name, v in fill.items()})


@pytest.mark.parametrize("kind", TRAINED)
def test_the_loss_is_finite_and_counts_its_targets(kind):
    model, batch = build(kind)
    terms = model(batch).terms
    assert terms and all(term.sum.isfinite() and term.sum.ndim == 0 for term in terms.values())
    counts = model.counts(batch)
    assert all(term.count == counts.get(name, batch.num_targets()) for name, term in terms.items())


@pytest.mark.parametrize("kind", TRAINED)
def test_the_loss_adds_up_over_rows_dropout_included(kind):
    model, batch = build(kind)
    rows = sum(total(model, batch.rows(r, r + 1)) for r in range(5))
    assert total(model, batch).item() == pytest.approx(rows.item(), rel=1e-5)


@pytest.mark.parametrize("kind", TRAINED)
def test_forward_is_a_pure_function_of_the_batch(kind):
    model, batch = build(kind)
    assert total(model, batch).item() == total(model, batch).item()


@pytest.mark.parametrize("kind", TRAINED)
def test_every_parameter_receives_a_gradient(kind):
    model, batch = build(kind)
    total(model, batch).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@pytest.mark.parametrize("kind", MODELS)
def test_every_tensor_is_registered(kind):
    model, batch = build(kind)
    fit(model, batch)
    for name, module in model.named_modules():
        loose = [a for a, value in vars(module).items() if isinstance(value, torch.Tensor)]
        assert loose == [], f"{name}: {loose} would be neither saved nor moved"


@pytest.mark.parametrize("kind", MODELS)
def test_neither_loss_nor_scores_leave_anything_behind(kind):
    model, batch = build(kind)
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    state = {name: value.clone() for name, value in model.state_dict().items()}
    model(batch)
    scores(model, batch)
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("kind", MODELS)
def test_the_batch_is_not_touched(kind):
    model, batch = build(kind)
    copies = {name: value.clone() for name, value in tensors(batch).items()}
    model(batch)
    scores(model, batch)
    assert all(torch.equal(value, copies[name]) for name, value in tensors(batch).items())


@pytest.mark.parametrize("kind", MODELS)
def test_a_saved_state_restores_the_scores_to_the_bit(kind):
    model, batch = build(kind)
    expected = scores(fit(model, batch), batch)
    torch.manual_seed(99)
    fresh = build(kind)[0]
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(scores(fresh, batch), expected)


@pytest.mark.parametrize("kind", MODELS)
def test_tiles_are_parts_of_the_whole_catalogue(kind):
    model, batch = build(kind)
    whole = scores(fit(model, batch), batch)
    assert whole.shape == (5, SPEC.items) and whole.dtype in (torch.float32, torch.float64) and whole.isfinite().all()
    with torch.no_grad():
        scorer = model.scorer()
        state = scorer.users(shown(batch))
        tiles = [scorer.score(state, lo, min(lo + 6, SPEC.items + 1)) for lo in range(1, SPEC.items + 1, 6)]
    assert torch.allclose(torch.cat(tiles, dim=1), whole, atol=1e-6)


@pytest.mark.parametrize("kind", MODELS)
def test_padding_changes_nothing(kind):
    model, batch = build(kind)
    fit(model, batch)
    batch = shown(batch)
    assert torch.allclose(scores(model, padded(batch, 9)), scores(model, batch), atol=1e-5)


@pytest.mark.parametrize("kind", [kind for kind in TRAINED if kind in SEQUENTIAL])
def test_padding_does_not_change_the_loss(kind):
    model, batch = build(kind)
    model.train()
    assert total(model, padded(batch, 9)).item() == pytest.approx(total(model, batch).item(), rel=1e-5)


@pytest.mark.parametrize("kind", MODELS)
def test_a_user_scores_the_same_alone_and_in_company(kind):
    model, batch = build(kind)
    fit(model, batch)
    batch = shown(batch)
    together = scores(model, batch)
    for row in range(5):
        length = int(batch.lengths[row])
        alone = batch.rows(row, row + 1)
        alone = replace(alone, **{n: getattr(alone, n)[:, :length] for n in ("items", "times", "targets")})
        assert torch.allclose(scores(model, alone)[0], together[row], atol=1e-5)


BIDIRECTIONAL = {"bert4rec": "reads both sides of a masked event; tests/models/test_bert4rec.py hides the event itself"}


@pytest.mark.parametrize("kind", [k for k in TRAINED if k in SEQUENTIAL and k.split()[0] not in BIDIRECTIONAL])
def test_no_prediction_sees_its_own_future(kind):
    model, batch = build(kind)
    early = replace(batch, targets=batch.targets.clone(), targets_count=0)
    early.targets[:, 6:] = 0
    later = replace(early, items=early.items.clone(), times=early.times.clone())
    changed = later.items[:, 6:]
    later.items[:, 6:] = torch.where(changed > 0, changed % SPEC.items + 1, 0)
    later.times[:, 6:] += 10**6 * (changed > 0)
    assert total(model, later).item() == pytest.approx(total(model, early).item(), rel=1e-6)


NOT_PERSONAL = {"popularity": "ranks the same for everybody"}


SLOW = {
    "bert4rec of RecBole": "post-norm blocks need many times the steps until they read the order of events",
    "recformer": "it compares histories with items that stand still, and is for encoders that can read",
    "recformer of its authors": "the same",
}


@pytest.mark.parametrize("kind", [kind for kind in SEQUENTIAL if kind not in (*NOT_PERSONAL, *SLOW)])
def test_learns_a_checkerboard(kind):
    """Users of even and of odd taste walk through the items of their parity; the next one must rank first."""
    spec = replace(spec_of(16, 12, 8, lambda u, i: True), graph=None)
    config = config_of(kind)
    torch.manual_seed(0)
    model = config.build(spec)
    walks = torch.tensor([[(u % 2) + 1 + 2 * ((u // 2 + s) % 6) for s in range(9)] for u in range(16)])
    batch = config.batch.example(spec, 16, torch.Generator().manual_seed(0))
    batch = replace(
        batch,
        items=walks[:, :-1],
        targets=walks[:, 1:],
        lengths=torch.full((16,), 8),
        users=torch.arange(16),
        targets_count=128,
    )
    if isinstance(model, Counted):
        fit(model, batch)
    else:
        optimizer = torch.optim.Adam(model.parameters(), 3e-3)
        for step in range(800):
            optimizer.zero_grad()
            # Keys are never the same twice in a training; those of masks decide what there is to learn.
            total(model, replace(batch, keys=batch.keys + step, key=step)).backward()
            optimizer.step()
            if step % 40 == 39 and torch.equal(best(model, batch), walks[:, -1]):
                break
            model.train()
    assert torch.equal(best(model, batch), walks[:, -1])


def best(model, batch):
    return catalogue_scores(model, batch, 12).argmax(1) + 1


@pytest.mark.parametrize("kind", PAIRED)
def test_learns_a_checkerboard_of_pairs(kind):
    """Users of even and of odd taste have the items of their parity, all but one, which must rank first among the others."""
    users, items = 16, 12
    missing = [(u % 2) + 1 + 2 * (u // 2 % 6) for u in range(users)]
    spec = spec_of(users, items, 8, lambda u, i: i % 2 != u % 2 and i != missing[u])
    torch.manual_seed(0)
    model = config_of(kind).build(spec)
    graph = spec.graph
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    generator = torch.Generator().manual_seed(0)
    asked = SequenceBatch.example(spec, users, generator)
    asked = replace(asked, users=torch.arange(users))
    own = torch.zeros(users, items + 1, dtype=torch.bool)
    own[graph.users.long(), graph.items.long()] = True
    for step in range(600):
        away = torch.rand(len(graph.users), items + 1, generator=generator)
        away[own[graph.users.long()]] = 0
        away[:, 0] = 0
        batch = replace(
            PairBatch.example(spec, len(graph.users), generator),
            users=graph.users.long(),
            items=graph.items.long(),
            negatives=away.argmax(1),
        )
        if step % 50 == 0:
            model.begin_epoch(step // 50, torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        total(model, batch).backward()
        optimizer.step()
        if step % 40 == 39 and torch.equal(first_among_others(model, asked, own), torch.tensor(missing)):
            break
    assert torch.equal(first_among_others(model, asked, own), torch.tensor(missing))


def first_among_others(model, batch, own):
    found = catalogue_scores(model, batch, 12)
    return found.masked_fill(own[:, 1:], -torch.inf).argmax(1) + 1
