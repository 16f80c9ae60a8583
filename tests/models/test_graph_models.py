"""Models of users and items: against plain forms of the published formulas, and what they do with the odd ones."""

import importlib
import math
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from scored import catalogue_scores
from sparse import dense
from turborec.data.batch import DataSpec, Interactions, PairBatch, SequenceBatch
from turborec.errors import UserError
from turborec.nn.neighbours import common

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))
plain = importlib.import_module("plain_graphs").plain

USERS, ITEMS = 30, 40
ALONE = (4, 17)  # a user and an item that nobody has
BARE, WORDLESS = 9, 12  # items without features, and without text
KINDS = ("bpr", "vbpr", "lightgcn", "freedom", "dragon", "mmgcn")
ALL = [*KINDS, "mmgcn trained"]


def spec_of(features=True):
    has = torch.rand(USERS, ITEMS + 1, generator=torch.Generator().manual_seed(0)) < 0.2
    has[:, 0], has[ALONE[0]], has[:, ALONE[1]] = False, False, False
    users, items = has.nonzero(as_tuple=True)
    generator = torch.Generator().manual_seed(1)
    tables = {"image": torch.randn(ITEMS + 1, 9, generator=generator), "text": torch.randn(ITEMS + 1, 7, generator=generator)}
    for table, missing in ((tables["image"], [0, BARE]), (tables["text"], [0, BARE, WORDLESS])):
        table[missing] = float("nan")
    counts = torch.bincount(items, minlength=ITEMS + 1)
    graph = Interactions(users.int(), items.int())
    return DataSpec(USERS, ITEMS, 6, counts, graph=graph, features=tables if features else {})


def build(kind, spec=None, **options):
    torch.manual_seed(0)
    name, *more = kind.split()
    options |= {"trainable_ids": True} if more else {}
    if name == "mmgcn" and "image" in options.get("features", ("image",)):
        options.setdefault("reduced", {"image": 8})
    return importlib.import_module(f"turborec.models.{name}").Config(**options).build(spec or spec_of())


def batch_of(spec, size=64):
    return PairBatch.example(spec, size, torch.Generator().manual_seed(2))


def total(model, batch):
    return sum(term.weight * term.sum for term in model(batch).terms.values())


def asked(users, histories=None):
    histories = histories or [[] for _ in users]
    batch = SequenceBatch.example(spec_of(), len(users), torch.Generator().manual_seed(0))
    items = torch.zeros(len(users), 6, dtype=torch.int64)
    for row, history in enumerate(histories):
        items[row, : len(history)] = torch.tensor(history)
    lengths = torch.tensor([len(history) for history in histories])
    return replace(batch, users=torch.tensor(users), items=items, lengths=lengths, targets=items * 0, targets_count=0)


def scores(model, users, histories=None):
    return catalogue_scores(model, asked(users, histories), ITEMS)


@pytest.mark.parametrize(("kind", "bound"), [("lightgcn", 1e-6), ("mmgcn", 1e-5)])
def test_loss_and_gradient_are_those_of_the_plain_form(kind, bound):
    spec, model = spec_of(), build(kind)
    other, batch = plain(model, spec.graph), batch_of(spec)
    found, expected = total(model, batch), total(other, batch)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)
    trained = list(model.parameters())
    for one, reference in zip(*(torch.autograd.grad(loss, trained) for loss in (found, expected)), strict=True):
        assert (one - reference).norm() <= bound * reference.norm()


def test_dragon_is_what_its_paper_and_code_say():
    spec, model = spec_of(), build("dragon", user_neighbours=3, modality_weights={"image": 0.1, "text": 0.9})
    batch, first = batch_of(spec), USERS
    adjacency = dense(model.graph.ahead)
    parts = []
    for name in ("image", "text"):
        table, reader = model.tables[name], model.readers[f"of_{name}"].double()
        read = reader(table.values.double()) * table.there[:, None]
        x = F.normalize(torch.cat([model.preferences[f"of_{name}"].double(), read]))
        parts.append(x + adjacency @ x + adjacency @ adjacency @ x)
    users = torch.cat([model.attention[:, :1] * parts[0][:first], model.attention[:, 1:] * parts[1][:first]], dim=1)
    rows, columns, counts = common(spec.graph.users, spec.graph.items, (USERS, ITEMS), 3)
    company = torch.zeros_like(users)
    for user in rows.unique().tolist():
        company[user] = counts[rows == user].double().softmax(0) @ users[columns[rows == user]]
    items = torch.cat([part[first:] for part in parts], dim=1)
    users, items = users + company, items + dense(model.alike.ahead) @ items
    ranked = users[batch.users], items[batch.items], items[batch.negatives]
    apart = (ranked[0] * ranked[1]).sum(1) - (ranked[0] * ranked[2]).sum(1)
    read = [model.preferences["of_image"], model.preferences["of_text"], model.attention]
    penalty = sum(part[batch.users].square().mean(1).sum() for part in read)
    model.float()
    loss = model(batch).terms
    assert loss["bpr"].weight == 1 / math.log(2)
    assert (loss["bpr"].weight * loss["bpr"].sum).item() == pytest.approx(-torch.sigmoid(apart).log2().sum().item(), rel=1e-5)
    assert loss["l2"].sum.item() == pytest.approx(penalty.item(), rel=1e-5)
    found = scores(model, [0, 7, 29])
    assert torch.allclose(found, (users @ items.T)[[0, 7, 29], 1:].float(), atol=1e-4)


def test_freedom_spreads_along_fewer_edges_in_every_epoch_and_along_all_when_it_ranks():
    model = build("freedom", drop=0.75)
    edges = []
    for epoch in (0, 1, 0):
        model.begin_epoch(epoch, torch.Generator().manual_seed(epoch))
        rows, columns, weights = model.pruned.ahead.entries()
        degrees = torch.bincount(rows, minlength=USERS + ITEMS + 1).double()
        assert torch.allclose(weights.double(), (degrees[rows] * degrees[columns]).rsqrt(), atol=1e-6)
        edges.append(list(zip(rows.tolist(), columns.tolist(), strict=True)))
    every = len(spec_of().graph.users)
    assert edges[0] == edges[2] != edges[1] and len(edges[0]) == 2 * round(every / 4)
    before = scores(model, [0, 1])
    model.begin_epoch(5, torch.Generator().manual_seed(5))
    assert torch.equal(scores(model, [0, 1]), before)


def test_freedom_keeps_edges_of_busy_nodes_less_often():
    model, graph = build("freedom", drop=0.5), spec_of().graph
    kept = torch.zeros(USERS, ITEMS + 1)
    for epoch in range(200):
        model.begin_epoch(epoch, torch.Generator().manual_seed(epoch))
        rows, columns, _ = model.pruned.ahead.entries()
        kept[rows[rows < USERS], columns[rows < USERS] - USERS] += 1
    users, items = graph.users.long(), graph.items.long()
    chance = (torch.bincount(users)[users].double() * torch.bincount(items)[items]).rsqrt()
    assert torch.corrcoef(torch.stack([chance, kept[users, items].double()]))[0, 1] > 0.8


@pytest.mark.parametrize("kind", ALL)
def test_renumbered_users_and_items_have_the_same_scores(kind):
    """Relabelling permutes scores: the weights go where their users and items go."""
    spec = spec_of()
    model = build(kind, spec)
    people = torch.randperm(USERS, generator=torch.Generator().manual_seed(3))
    goods = torch.cat(
        [torch.zeros(1, dtype=torch.int64), 1 + torch.randperm(ITEMS, generator=torch.Generator().manual_seed(4))]
    )
    users, items = people[spec.graph.users.long()], goods[spec.graph.items.long()]
    order = torch.argsort(users * (ITEMS + 1) + items)
    features = {name: table.index_copy(0, goods, table) for name, table in spec.features.items()}
    counts = spec.popularity.index_copy(0, goods, spec.popularity)
    graph = Interactions(users[order].int(), items[order].int())
    other = build(kind, replace(spec, graph=graph, features=features, popularity=counts))
    nodes = torch.cat([people, USERS + goods])
    moves = {USERS: people, ITEMS + 1: goods, USERS + ITEMS + 1: nodes}
    state = {n: v.index_copy(0, moves[len(v)], v) if len(v) in moves else v for n, v in model.state_dict().items()}
    other.load_state_dict(state)
    found, expected = scores(other, people[:9].tolist()), scores(model, list(range(9)))
    if kind == "dragon":  # of users with as many items in common it takes those of the lowest numbers
        model.company = other.company = None
        found, expected = scores(other, people[:9].tolist()), scores(model, list(range(9)))
    assert torch.allclose(found[:, goods[1:] - 1], expected, atol=1e-5)


@pytest.mark.parametrize("kind", ALL)
def test_odd_users_and_items_have_finite_scores(kind):
    model = build(kind)
    batch = batch_of(spec_of())
    odd = replace(batch, users=torch.full_like(batch.users, ALONE[0]), negatives=torch.full_like(batch.items, ALONE[1]))
    bare = replace(batch, negatives=torch.tensor([BARE, WORDLESS]).repeat(32))
    for one in (odd, bare):
        loss = total(model, one)
        loss.backward()
        assert loss.isfinite() and all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert scores(model, [0, ALONE[0], -1], [[1], [2, 3], []]).isfinite().all()


@pytest.mark.parametrize("kind", ALL)
def test_strangers_are_answered_by_their_history(kind):
    model = build(kind)
    found = scores(model, [-1, ALONE[0]], [[5, 8], [5, 8]])
    assert torch.allclose(found[0], found[1], atol=1e-6)  # who is known, but not from training, is as good as a stranger
    items = model.scorer().items[1:]
    assert torch.allclose(found[0], items @ items[[4, 7]].mean(0), atol=1e-5)


@pytest.mark.parametrize("kind", ["vbpr", "freedom", "dragon", "mmgcn"])
def test_features_are_asked_for_by_name(kind):
    with pytest.raises(UserError, match="needs features of the items, and the data have none"):
        build(kind, spec_of(features=False))
    with pytest.raises(UserError, match=r"no features 'imge' \(did you mean 'image'"):
        build(kind, features=("imge",))
    assert build(kind, features=("text",)).tables.names == ["text"]


@pytest.mark.parametrize("kind", ["vbpr", "freedom", "dragon", "mmgcn"])
def test_tables_may_be_called_as_torch_calls_its_own(kind):
    spec = spec_of()
    spec = replace(spec, features=dict(zip(("type", "items"), spec.features.values(), strict=True)))
    options = {"reduced": {"type": 8}} if kind == "mmgcn" else {}
    assert total(build(kind, spec, **options), batch_of(spec)).isfinite()


def test_a_table_is_named_once():
    with pytest.raises(UserError, match=r"named once in model\.features: got image, image"):
        build("freedom", features=("image", "image"))


def test_weights_of_modalities_are_named_for_all():
    with pytest.raises(UserError, match="must name image, text, each once: got image"):
        build("dragon", modality_weights={"image": 0.1})


@pytest.mark.parametrize("weights", [(-0.5, 1.0), (0.0, 0.0)])
def test_weights_of_modalities_are_shares(weights):
    with pytest.raises(UserError, match="at least 0 each and more than 0 together: got image"):
        build("freedom", modality_weights=dict(zip(("image", "text"), weights, strict=True)))


def test_a_table_that_mmgcn_is_to_reduce_must_be_one_of_its_own():
    with pytest.raises(UserError, match=r"model.reduced names 'imge', no table of this model \(did you mean 'image'"):
        build("mmgcn", reduced={"imge": 8})
    assert build("mmgcn", reduced=None).networks.of_image.reduce.out_features == 256
    assert build("mmgcn", features=("text",), reduced=None).networks.of_text.reduce is None


def test_what_mmgcn_does_not_train_stays_as_it_was_drawn():
    model = build("mmgcn")
    drawn = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    total(model, batch_of(spec_of())).backward()
    optimizer.step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, drawn[name])}
    assert not any("ids" in name or "preferences" in name for name in changed) and "networks.of_text.own.0.weight" in changed


def test_another_s_weights_bring_what_follows_from_them():
    """What is computed once from vectors that are not trained is computed again where others are loaded."""
    model, other = build("mmgcn"), build("mmgcn")
    torch.manual_seed(9)
    with torch.no_grad():
        for network in model.networks.values():
            network.preferences.normal_()
    model.load_state_dict(model.state_dict())
    other.load_state_dict(model.state_dict())
    assert torch.equal(scores(other, [0, 1]), scores(model, [0, 1]))
    reference = plain(model, spec_of().graph)
    batch = batch_of(spec_of())
    assert total(model, batch).item() == pytest.approx(total(reference, batch).item(), rel=1e-6)
