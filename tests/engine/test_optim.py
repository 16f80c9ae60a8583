import math

import pytest
import torch
from torch import nn

from turborec import recipes
from turborec.contract import reads_of, rows_of
from turborec.engine.optim import AdamW, Constant, Cosine, Joined, Linear, Muon, RowAdam, clip, gradient_norm


def test_an_optimizer_without_a_kind_is_adamw():
    tree = {"data": {"source": {"kind": "online_retail"}}, "model": {"kind": "sasrec"}, "train": {"optimizer": {"lr": 0.5}}}
    assert recipes.from_tree(tree, "the test").train.optimizer == AdamW(lr=0.5)
    tree["train"]["optimizer"] = {"kind": "muon", "momentum": 0.5}
    assert recipes.from_tree(tree, "the test").train.optimizer == Muon(momentum=0.5)


SCHEDULES = [Constant(warmup=0.2), Linear(warmup=0.2), Cosine(warmup=0.2)]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_warm_up_is_a_line_from_zero(schedule):
    assert [schedule.factor(p) for p in (0.0, 0.05, 0.1, 0.2)] == pytest.approx([0, 1 / 4, 1 / 2, 1])


@pytest.mark.parametrize("schedule", [Constant(), Linear(), Cosine()])
def test_without_warm_up_the_full_rate_comes_first(schedule):
    assert schedule.factor(0.0) == 1.0


def test_each_schedule_follows_its_curve():
    assert Constant(warmup=0.5).factor(0.9) == 1.0
    assert Linear(warmup=0.5, end=0.2).factor(0.75) == pytest.approx(1 - 0.8 * 0.5)
    assert Cosine(warmup=0.2, end=0.1).factor(0.4) == pytest.approx(1 - 0.9 * (1 - math.cos(math.pi / 4)) / 2)


@pytest.mark.parametrize(("schedule", "end"), [(Linear(end=0.3), 0.3), (Cosine(end=0.3), 0.3), (Linear(), 0), (Cosine(), 0)])
def test_the_end_is_reached(schedule, end):
    assert schedule.factor(1.0) == pytest.approx(end)


def test_adamw_equals_the_paper():
    """Two steps written out from algorithm 2 of arXiv 1711.05101, for one matrix and one vector."""
    model = torch.nn.Linear(2, 2)
    config = AdamW(lr=0.1, weight_decay=0.5, beta1=0.8, beta2=0.9)
    optimizer = config.build(model)
    expected = {name: p.detach().double().clone() for name, p in model.named_parameters()}
    first, second = ({name: torch.zeros_like(p) for name, p in expected.items()} for _ in range(2))
    for step in (1, 2):
        for name, parameter in model.named_parameters():
            gradient = torch.full_like(parameter, 0.3 * step)
            parameter.grad = gradient
            first[name] = 0.8 * first[name] + 0.2 * gradient
            second[name] = 0.9 * second[name] + 0.1 * gradient**2
            moved = (first[name] / (1 - 0.8**step)) / ((second[name] / (1 - 0.9**step)).sqrt() + 1e-8)
            decay = 0.5 if name == "weight" else 0.0
            expected[name] = expected[name] - 0.1 * (moved + decay * expected[name])
        optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter.double(), expected[name], atol=1e-6)


class Tied(torch.nn.Module):
    """A table read at both ends, and a body between them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.items = torch.nn.Embedding(50, 4)
        self.body = torch.nn.Linear(4, 4)

    def forward(self, ids):
        return (self.body(self.items(ids)) * rows_of(self.items.weight, ids + 1)).tanh().sum()


IDS = [torch.tensor(ids) for ids in ([3, 5, 3, 8], [8, 20], [3, 3, 3, 40])]


def trained(config, ids=IDS, steps=()):
    model = Tied()
    optimizer = config.build(model)
    for some in ids:
        model(some).backward()
        for look in steps:
            look(model)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return model, optimizer


def test_rows_that_no_step_reads_stay_as_they_are():
    before, (after, _) = Tied(), trained(AdamW(lr=0.1, weight_decay=0.5, tables="rows"))
    read = torch.cat([torch.cat([ids, ids + 1]) for ids in IDS]).unique()
    unread = [row for row in range(50) if row not in read.tolist()]
    assert torch.equal(before.items.weight[unread], after.items.weight[unread])
    assert not torch.isclose(before.items.weight[read], after.items.weight[read]).any(1).all()


def test_row_adam_equals_its_definition():
    """Three steps written out in float64 from dense gradients."""
    seen = []
    config = AdamW(lr=0.1, weight_decay=0.5, beta1=0.8, beta2=0.9, tables="rows")
    model, _ = trained(config, steps=[lambda m: seen.append(m.items.weight.grad.to_dense().double().clone())])
    table = Tied().items.weight.detach().double()
    mean, square = torch.zeros(50, 4, dtype=torch.float64), torch.zeros(50, dtype=torch.float64)
    for step, gradient in enumerate(seen, 1):
        for row in torch.cat([IDS[step - 1], IDS[step - 1] + 1]).unique().tolist():
            mean[row] = 0.8 * mean[row] + 0.2 * gradient[row]
            square[row] = 0.9 * square[row] + 0.1 * (gradient[row] ** 2).mean()
            scale = math.sqrt(square[row] / (1 - 0.9**step)) + 1e-8
            table[row] -= 0.1 * (mean[row] / (1 - 0.8**step) / scale + 0.5 * table[row])
    assert torch.allclose(model.items.weight.double(), table, atol=1e-6)


def test_a_mean_in_bfloat16_takes_half_the_memory_and_nearly_the_same_steps():
    (wide, _), (narrow, optimizer) = trained(AdamW(lr=0.1, tables="rows")), trained(NARROW)
    assert optimizer.state[narrow.items.weight]["mean"].dtype == torch.bfloat16
    moved = (wide.items.weight - Tied().items.weight).detach()
    apart = (wide.items.weight - narrow.items.weight).detach()
    assert 0 < apart.norm() < 2**-7 * moved.norm()
    with pytest.raises(ValueError, match="tables_mean needs tables=rows"):
        AdamW(tables_mean="bfloat16")


def test_a_dense_gradient_is_one_of_all_rows():
    tables = [torch.nn.Parameter(torch.ones(3, 2)) for _ in range(2)]
    for table, sparse in zip(tables, (False, True), strict=True):
        gradient = torch.tensor([[1.0, 2.0], [0.0, 1.0], [3.0, 0.0]])
        table.grad = gradient.to_sparse(1) if sparse else gradient
        RowAdam([table], 0.1, (0.9, 0.999), 1e-8, 0.1).step()
    assert torch.allclose(*tables)


def test_the_gradients_of_rows_are_those_of_the_table():
    dense, sparse = Tied(), Tied()
    AdamW(tables="rows").build(sparse)
    for model in (dense, sparse):
        model(IDS[0]).backward()
    assert sparse.items.weight.grad.is_sparse and not dense.items.weight.grad.is_sparse
    assert torch.allclose(sparse.items.weight.grad.to_dense(), dense.items.weight.grad)
    norms = [float(gradient_norm(list(model.parameters()))) for model in (dense, sparse)]
    for model, norm in zip((dense, sparse), norms, strict=True):
        clip(list(model.parameters()), norm, 0.01)
    assert norms[0] == pytest.approx(norms[1]) and norms[0] > 0.01
    assert torch.allclose(sparse.items.weight.grad.to_dense(), dense.items.weight.grad)
    left = math.sqrt(sum(float(p.grad.pow(2).sum()) for p in dense.parameters()))
    assert left == pytest.approx(0.01, rel=1e-3)


def test_muon_orthogonalises_the_body_and_leaves_the_rest_to_adamw():
    before, (after, optimizer) = Tied(), trained(Muon(lr=0.1), IDS[:1])
    with_adamw, _ = trained(AdamW(lr=0.1), IDS[:1])
    assert torch.allclose(after.items.weight, with_adamw.items.weight)
    assert torch.allclose(after.body.bias, with_adamw.body.bias)
    values = torch.linalg.svdvals(after.body.weight - before.body.weight)
    assert values[0] / values[2] < 1.5  # those of the gradient itself, which has rank three, differ more
    assert isinstance(optimizer, Joined)


NARROW = AdamW(lr=0.1, tables="rows", tables_mean="bfloat16")


@pytest.mark.parametrize("config", [Muon(lr=0.1), Muon(lr=0.1, tables="rows"), AdamW(lr=0.1, tables="rows"), NARROW])
def test_several_optimizers_are_saved_and_restored_as_one(config):
    whole, _ = trained(config)
    half, optimizer = trained(config, IDS[:2])
    again = Tied()
    restored = config.build(again)
    again.load_state_dict(half.state_dict())
    restored.load_state_dict(optimizer.state_dict())
    again(IDS[2]).backward()
    restored.step()
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_a_stage_with_whole_tables_after_one_by_rows_reads_them_whole_again():
    model = nn.ModuleDict({"table": nn.Embedding(9, 4)})
    hooks = []
    for _ in range(2):  # counted once, however many stages ask for it
        AdamW(tables="rows", clip_rows=1.0).build(model)
        hooks.append(len(model["table"]._forward_pre_hooks))
    model["table"](torch.tensor([1, 2, 2])).sum().backward()
    assert hooks == [1, 1] and model["table"].weight.grad.is_sparse
    assert int(reads_of(model["table"].weight, False).sum()) == 3
    model.zero_grad()
    AdamW().build(model)
    model["table"](torch.tensor([1, 2, 2])).sum().backward()
    assert not model["table"].weight.grad.is_sparse and not model["table"]._forward_pre_hooks
