import pytest
import torch
import torch.nn.functional as F

from scored import catalogue_scores
from turborec.data.batch import DataSpec, SequenceBatch
from turborec.models.gru4rec import Config

SPEC = DataSpec(users=5, items=11, max_length=7)


def plain_gru4rec(state, config, items):
    """The network of one history written out step by step in float64 from its state dict alone -> [length, V]."""
    w = {name: value.double() for name, value in state.items()}
    x = [w["items.weight"][i] for i in items]
    for layer in range(config.layers):
        name, h, out = f"layers.{layer}", torch.zeros(config.hidden, dtype=torch.float64), []
        for event in x:
            seen = (w[f"{name}.weight_ih_l0"] @ event + w[f"{name}.bias_ih_l0"]).chunk(3)
            kept = (w[f"{name}.weight_hh_l0"] @ h + w[f"{name}.bias_hh_l0"]).chunk(3)
            reset, update = torch.sigmoid(seen[0] + kept[0]), torch.sigmoid(seen[1] + kept[1])
            h = (1 - update) * torch.tanh(seen[2] + reset * kept[2]) + update * h
            out.append(h)
        x = out
    states = torch.stack(x) @ w["output.weight"].T + w["output.bias"]
    states = F.layer_norm(states, states.shape[-1:], w["norm.weight"], w["norm.bias"])
    return states @ w["items.weight"][1:].T


@pytest.fixture(params=[1, 2])
def case(request):
    torch.manual_seed(0)
    config = Config(width=6, hidden=8, layers=request.param, dropout=0.0)
    model = config.build(SPEC)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return config, model, SequenceBatch.example(SPEC, 4, torch.Generator().manual_seed(2))


def test_scores_equal_an_independent_implementation(case):
    config, model, batch = case
    scores = catalogue_scores(model, batch, SPEC.items)
    for row, length in enumerate(batch.lengths):
        expected = plain_gru4rec(model.state_dict(), config, batch.items[row, :length])[-1]
        assert torch.allclose(scores[row].double(), expected, atol=1e-5)


def test_the_loss_equals_an_independent_implementation(case):
    config, model, batch = case
    expected = 0.0
    for row, length in enumerate(batch.lengths):
        logits = plain_gru4rec(model.state_dict(), config, batch.items[row, :length])
        expected += F.cross_entropy(logits, batch.targets[row, :length] - 1, reduction="sum").item()
    term = model(batch).terms["next_item"]
    assert term.sum.item() == pytest.approx(expected, rel=1e-5)
    assert term.count == int(batch.lengths.sum())


def test_the_parameters_are_those_of_the_formula():
    """(V + 1) d + 3 h (d + h + 2) + 3 h (2 h + 2) + h d + d + 2 d."""
    d, h = 6, 8
    expected = 12 * d + 3 * h * (d + h + 2) + 3 * h * (2 * h + 2) + h * d + 3 * d
    assert sum(p.numel() for p in Config(width=d, hidden=h, layers=2).build(SPEC).parameters()) == expected
