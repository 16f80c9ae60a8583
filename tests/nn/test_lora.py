"""Adapters: the identities of arXiv 2408.10159, and that nothing but what they say changes."""

import dataclasses
import importlib

import pytest
import torch
import torch.nn.functional as F

from turborec.data.batch import DataSpec, SequenceBatch
from turborec.errors import UserError
from turborec.models import bert4rec, sasrec
from turborec.models._gate import Gate, visible
from turborec.nn.linear import Context, Linear
from turborec.nn.lora import Adapter, ILoRA, LoRA, adapt, merge
from turborec.recipe import MistakesError, validate

SPEC = DataSpec(users=10, items=40, max_length=12)
D, OUT, B, L = 12, 7, 5, 6


def drawn(config, seed=0):
    """A projection with an adapter whose numbers are all drawn."""
    torch.manual_seed(seed)
    linear = Linear(D, OUT)
    linear.adapter = Adapter(D, OUT, config, 0)
    torch.nn.init.normal_(linear.adapter.b)
    return linear.double().eval()


def states(seed=1):
    return torch.randn(B, L, D, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def context(gates):
    return Context(torch.arange(len(gates)), gates)


def test_a_projection_gets_what_the_formula_says():
    linear, x = drawn(LoRA(rank=3, alpha=6.0)), states()
    plain = F.linear(x, linear.weight, linear.bias)
    expected = plain + 2.0 * torch.einsum("or,rd,bld->blo", linear.adapter.b, linear.adapter.a, x)
    assert torch.allclose(linear(x, context(torch.zeros(B, 0))), expected, atol=1e-12)
    assert torch.equal(linear(x, Context(None, adapted=False)), plain)


def test_gates_of_one_are_plain_lora_of_the_whole_rank():
    config, x = ILoRA(rank=8, experts=4, alpha=32.0, dropout=0.0), states()
    linear = drawn(config)
    got = linear(x, context(torch.ones(B, 8, dtype=torch.float64)))
    plain = drawn(LoRA(rank=8, alpha=8 * config.scale))
    assert config.scale == 16.0
    assert torch.allclose(got, plain(x, context(torch.zeros(B, 0))), atol=1e-12)


@pytest.mark.parametrize("expert", range(4))
def test_a_gate_on_one_expert_is_an_adapter_of_its_ranks_alone(expert):
    linear, x = drawn(ILoRA(rank=8, experts=4, dropout=0.0)), states()
    own = slice(2 * expert, 2 * expert + 2)
    gates = torch.zeros(B, 8, dtype=torch.float64)
    gates[:, own] = 1.0
    change = 16.0 * linear.adapter.b[:, own] @ linear.adapter.a[own]
    assert torch.allclose(linear(x, context(gates)), F.linear(x, linear.weight + change, linear.bias), atol=1e-12)


def test_one_expert_is_plain_lora():
    linear, x = drawn(ILoRA(rank=4, experts=1, alpha=8.0, dropout=0.0)), states()
    plain = drawn(LoRA(rank=4, alpha=8.0))
    gates = Gate(D, experts=1, rank=4)(batch_of(B), torch.ones(B, L, dtype=torch.int64), lambda: x).detach().double()
    assert torch.equal(gates, torch.ones(B, 4, dtype=torch.float64))
    assert torch.allclose(linear(x, context(gates)), plain(x, context(gates)), atol=1e-12)


def test_sequences_with_other_gates_have_other_weights():
    linear, x = drawn(ILoRA(rank=8, experts=4, dropout=0.0)), states()
    shares = torch.rand(B, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3)).softmax(1)
    got = linear(x, context(shares.repeat_interleave(2, 1)))
    for row in range(B):
        change = sum(
            16.0 * shares[row, k] * linear.adapter.b[:, 2 * k : 2 * k + 2] @ linear.adapter.a[2 * k : 2 * k + 2]
            for k in range(4)
        )
        assert torch.allclose(got[row], F.linear(x[row], linear.weight + change, linear.bias), atol=1e-12)
    assert not torch.allclose(shares[0], shares[1])


def test_a_scalar_gate_begins_at_half():
    linear, x = drawn(LoRA(kind="scalar_gate", rank=4, alpha=8.0)), states()
    assert torch.allclose(
        linear(x, Context(None)), F.linear(x, linear.weight + linear.adapter.b @ linear.adapter.a, linear.bias), atol=1e-12
    )


def batch_of(rows, seed=0):
    return SequenceBatch.example(SPEC, rows, torch.Generator().manual_seed(seed))


def bert(config=None, **changes):
    torch.manual_seed(0)
    model = bert4rec.Config(width=16, hidden=32, **changes).build(SPEC)
    plain = scores(model, batch_of(6))
    if config is not None:
        adapt(model, config)
        if isinstance(config, ILoRA):
            model.gate = Gate(16, config.experts, config.rank)
    return model, plain


def scores(model, batch):
    model.eval()
    with torch.no_grad():
        scorer = model.scorer()
        return scorer.score(scorer.users(batch), 1, SPEC.items + 1)


ALL = [LoRA(rank=4), ILoRA(rank=8, experts=4), LoRA(kind="scalar_gate", rank=4)]


@pytest.mark.parametrize("config", ALL, ids=lambda config: config.kind)
def test_before_a_step_scores_are_those_of_the_base_to_the_bit(config):
    model, plain = bert(config)
    assert torch.equal(scores(model, batch_of(6)), plain)


@pytest.mark.parametrize("config", ALL, ids=lambda config: config.kind)
def test_what_is_trained_is_the_adapters_and_the_router_and_all_of_it_is_reached(config):
    model, _ = bert(config)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    maps = [m for m in model.modules() if isinstance(m, Linear)]
    expected = sum(config.rank * (m.in_features + m.out_features) for m in maps)
    expected += {"lora": 0, "ilora": 16 * 4 + 4, "scalar_gate": len(maps)}[config.kind]
    assert sum(p.numel() for p in trained.values()) == expected
    for p in trained.values():
        if p.ndim == 2:
            torch.nn.init.normal_(p, std=0.1)
    model.train()
    model(batch_of(6)).terms["masked_item"].sum.backward()
    assert [name for name, p in trained.items() if p.grad is None or not p.grad.abs().sum() > 0] == []
    assert all(p.grad is None for p in model.parameters() if not p.requires_grad)


def test_names_of_the_base_stay_and_only_adapters_are_added():
    before = set(bert()[0].state_dict())
    after = set(bert(LoRA(rank=2, targets=("blocks.*.attention.q",)))[0].state_dict())
    assert after - before == {f"blocks.{n}.attention.q.adapter.{part}" for n in (0, 1) for part in "ab"}
    assert before <= after


def test_the_gate_does_not_see_what_is_masked():
    model, _ = bert(ILoRA(rank=8, experts=4))
    model.train()
    batch, seen = batch_of(6), []
    model.gate.register_forward_hook(lambda module, given, gates: seen.append(gates.detach()))
    masked = model.masked(batch)
    model(batch)
    # Another item in the place of each masked one: events L + 1 are the items and the last target.
    events = bert4rec.sequence(batch)
    other = torch.where(masked, events % SPEC.items + 1, events)
    items = torch.where(batch.items != 0, other[:, :-1], 0)
    targets = torch.where(batch.targets != 0, other[:, 1:], 0)
    model(dataclasses.replace(batch, items=items, targets=targets))
    assert not torch.equal(items, batch.items) and torch.equal(seen[0], seen[1])
    assert torch.allclose(seen[0].sum(1), torch.full((6,), 2.0))  # each share counts for two ranks
    assert not torch.allclose(seen[0][0], seen[0][1])


def test_what_is_visible_closes_the_gaps_that_masks_leave():
    batch = batch_of(2)
    events = torch.tensor([[3, 0, 5, 7] + [0] * 9, [0, 0, 2, 0] + [0] * 9])
    shown = visible(batch, events)
    assert shown.items[:, :3].tolist() == [[3, 5, 7], [2, 0, 0]] and shown.lengths.tolist() == [3, 1]
    assert shown.num_targets() == 0 and not shown.targets.any()


def test_another_model_s_vectors_may_open_the_gate_and_it_never_trains():
    model, _ = bert(ILoRA(rank=8, experts=4))
    other = sasrec.Config(width=8, hidden=16, dropout=0.5).build(SPEC)
    model.gate = Gate(8, 4, 8, other)
    model.train()
    assert not other.training and model.gate.training
    model(batch_of(6)).terms["masked_item"].sum.backward()
    assert all(p.grad is None for p in other.parameters())


@pytest.mark.parametrize("config", [LoRA(rank=4), LoRA(kind="scalar_gate", rank=4)], ids=lambda config: config.kind)
def test_merged_weights_score_as_base_and_adapters_together(config):
    model, plain = bert(config)
    for name, p in model.named_parameters():
        if name.endswith("adapter.b"):
            torch.nn.init.normal_(p, std=0.05)
    together = scores(model, batch_of(6))
    merge(model)
    assert not any("adapter" in name for name in model.state_dict())
    assert torch.allclose(scores(model, batch_of(6)), together, atol=1e-5) and not torch.allclose(together, plain, atol=1e-3)


def test_adapters_of_instances_cannot_be_merged():
    with pytest.raises(UserError, match="every sequence has weights of its own"):
        merge(bert(ILoRA(rank=8))[0])


def test_a_frozen_base_in_bfloat16_is_near_to_the_one_in_float32():
    model, plain = bert(LoRA(rank=4, frozen="bfloat16"))
    assert model.items.weight.dtype == model.blocks[0].attention.q.weight.dtype == torch.bfloat16
    model.train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(batch_of(6)).terms["masked_item"].sum
    loss.backward()
    assert loss.dtype == torch.float32 and model.blocks[0].attention.q.adapter.b.grad.dtype == torch.float32
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.allclose(scores(model, batch_of(6)), plain, atol=0.05)
    model.train()
    model(batch_of(6)).terms["masked_item"].sum.backward()  # in float32 as well


@pytest.mark.parametrize("frozen", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["sasrec", "gru4rec", "bert4rec", "ss4rec", "mamba4rec", "s5rec"])
def test_every_model_of_sequences_takes_plain_adapters_in_either_precision(kind, frozen):
    torch.manual_seed(0)
    model = importlib.import_module(f"turborec.models.{kind}").Config(width=16).build(SPEC)
    plain = scores(model, batch_of(6))
    adapt(model, LoRA(rank=2, frozen=frozen))
    assert torch.allclose(scores(model, batch_of(6)), plain, atol=0.0 if frozen == "float32" else 0.05)
    for lowered in (False, True):
        model.train()
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=lowered):
            loss = next(iter(model(batch_of(6)).terms.values())).sum
        loss.backward()
        idle = [name for name, p in model.named_parameters() if name.endswith("adapter.b") and p.grad is None]
        assert loss.isfinite() and idle == []


@pytest.mark.parametrize(
    ("targets", "told"),
    [
        (("blocks.*.attention.qq",), "'blocks.*.attention.qq' matches no projection"),
        (("*",), "'*' matches 'items', a table of embeddings and no projection"),
        (("blocks.*", "output"), "'output' matches 'output', a table"),
    ],
)
def test_a_pattern_that_finds_nothing_or_a_table_is_refused(targets, told):
    with pytest.raises(UserError, match=told.replace("*", r"\*").replace(".", r"\.")):
        bert(LoRA(targets=targets), tied=False)


def test_ranks_are_dealt_to_experts_evenly():
    with pytest.raises(MistakesError, match="rank 6 must be divisible by experts 4"):
        validate(ILoRA, {"rank": 6}, "the test")


def test_dropout_is_keyed_by_row_and_is_off_when_ranking():
    linear = drawn(LoRA(rank=3, dropout=0.5)).train()
    x = states()
    first, again = (linear(x, Context(torch.arange(B))) for _ in range(2))
    assert torch.equal(first, again)
    assert torch.equal(linear(x[2:], Context(torch.arange(B)[2:])), first[2:])
    assert not torch.equal(linear(x, Context(torch.arange(B) + 1)), first)
    flat = linear(x[:, 0], Context(torch.arange(B)))
    assert flat.shape == (B, OUT)
