from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from scored import catalogue_scores
from turborec.data.batch import DataSpec, SequenceBatch
from turborec.errors import UserError
from turborec.models.sasrec import Config

SPEC = DataSpec(users=5, items=11, max_length=7)


def plain_sasrec(state, config, items, length):
    """The network of one history written out in float64 from its state dict alone -> [length, D]."""
    w = {name: value.double() for name, value in state.items()}

    def norm(x, name):
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])

    def linear(x, name):
        return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]

    x = torch.stack([w["items.weight"][items[i]] + w["positions.weight"][length - 1 - i] for i in range(length)])
    for b in range(config.layers):
        block = f"blocks.{b}"
        h = norm(x, f"{block}.attention_norm")
        q, k, v = (linear(h, f"{block}.attention.{p}") for p in "qkv")
        mixed = []
        for part in torch.arange(config.width).chunk(config.heads):
            scores = q[:, part] @ k[:, part].T / len(part) ** 0.5
            scores = scores.masked_fill(torch.ones(length, length).triu(1).bool(), -torch.inf)
            mixed.append(scores.softmax(1) @ v[:, part])
        x = x + linear(torch.cat(mixed, 1), f"{block}.attention.o")
        h = norm(x, f"{block}.feed_forward_norm")
        x = x + linear(F.gelu(linear(h, f"{block}.feed_forward.up")), f"{block}.feed_forward.down")
    return norm(x, "norm")


@pytest.fixture
def case():
    torch.manual_seed(0)
    config = Config(width=8, layers=2, heads=2, hidden=12, dropout=0.0)
    model = config.build(SPEC)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return config, model, SequenceBatch.example(SPEC, 4, torch.Generator().manual_seed(2))


def test_scores_equal_an_independent_implementation(case):
    config, model, batch = case
    scores = catalogue_scores(model, batch, SPEC.items)
    for row in range(4):
        states = plain_sasrec(model.state_dict(), config, batch.items[row], int(batch.lengths[row]))
        expected = states[-1] @ model.items.weight[1:].double().T
        assert torch.allclose(scores[row].double(), expected, atol=1e-5)


def test_the_loss_equals_an_independent_implementation(case):
    config, model, batch = case
    expected = 0.0
    for row in range(4):
        length = int(batch.lengths[row])
        states = plain_sasrec(model.state_dict(), config, batch.items[row], length)
        logits = states @ model.items.weight[1:].detach().double().T
        expected += F.cross_entropy(logits, batch.targets[row, :length] - 1, reduction="sum").item()
    term = model(batch).terms["next_item"]
    assert term.sum.item() == pytest.approx(expected, rel=1e-5)
    assert term.count == int(batch.lengths.sum())


def test_the_parameters_are_those_of_the_formula():
    """(V + 1) d + L d + layers (4 d^2 + 4 d + 2 d h + h + d + 4 d) + 2 d."""
    config = Config(width=16, layers=3, heads=2, hidden=40)
    d, h = 16, 40
    expected = 12 * d + 7 * d + 3 * (4 * d * d + 4 * d + 2 * d * h + h + d + 4 * d) + 2 * d
    assert sum(p.numel() for p in config.build(SPEC).parameters()) == expected


def test_padding_is_never_drawn_nor_moved():
    model = Config(width=8).build(SPEC)
    batch = SequenceBatch.example(SPEC, 4, torch.Generator().manual_seed(2))
    model(batch).terms["next_item"].sum.backward()
    assert not model.items.weight[0].any() and not model.items.weight.grad[0].any()


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="width 10 must be divisible by heads 4"):
        Config(width=10, heads=4)


def featured(**settings):
    """Items with two tables of features, one of which item 4 lacks; nobody has chosen items 10 and 11."""
    generator = torch.Generator().manual_seed(5)
    tables = {"text": torch.randn(12, 6, generator=generator) @ torch.randn(6, 6, generator=generator) + 3}
    tables["image"] = torch.randn(12, 3, generator=generator)
    tables["text"][[0, 4]] = tables["image"][[0, 4, 6]] = float("nan")
    spec = replace(SPEC, features=tables)
    torch.manual_seed(0)
    return Config(width=8, layers=1, hidden=12, dropout=0.0, **settings).build(spec), tables


def test_an_item_s_vector_is_its_own_and_what_is_read_off_its_features():
    model, tables = featured(features=("text", "image"))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    expected = model.items.weight.double().clone()
    for name, table in tables.items():
        there = ~table.isnan().any(1)
        rows = table[there].double()
        rows = rows - rows.mean(0)
        left, _, right = torch.linalg.svd(rows, full_matrices=False)
        whitened = left @ right  # the nearest of the same variance in every direction
        whitened = whitened / whitened.square().sum(1).mean().sqrt()
        expected[there] += whitened @ model.maps[f"of_{name}"].weight.double().T
    scorer = model.scorer()
    assert torch.allclose(scorer.items.double(), expected, atol=1e-5)


def test_of_features_alone_new_items_have_vectors_too_and_what_lacks_them_has_none():
    model, _ = featured(features=("text",), ids=False)
    assert model.items is None and not [name for name, _ in model.named_parameters() if "items" in name]
    table = model.scorer().items
    assert table[[0, 4]].eq(0).all() and table[[1, 2, 3, 5, 6, 7, 8, 9, 10, 11]].abs().sum(1).gt(0).all()
    batch = SequenceBatch.example(SPEC, 4, torch.Generator().manual_seed(2))
    model(batch).terms["next_item"].sum.backward()
    assert model.maps["of_text"].weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"ids": False}, "ids: false needs features"),
        ({"features": ("txt",)}, "There are no features 'txt'"),
    ],
)
def test_features_must_be_there(settings, said):
    with pytest.raises((UserError, ValueError), match=said):
        featured(**settings)
