"""State-space models whole: rows of any kind, precision, and what torch does with a module (copies, compilers, exports)."""

import copy
import io
from dataclasses import replace

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.nn.parallel import DistributedDataParallel

from scored import catalogue_scores
from turborec.data.batch import DataSpec, SequenceBatch
from turborec.data.schema import UNKNOWN_TIME
from turborec.models import mamba4rec, s5rec, ss4rec
from turborec.nn.linear import Context
from turborec.nn.ssm import S5, Gaps, Mamba

SPEC = DataSpec(users=7, items=23, max_length=12)
MODULES = [ss4rec, mamba4rec, s5rec]


def built(module=ss4rec, spec=SPEC, **settings):
    torch.manual_seed(0)
    return module.Config(width=16, **settings).build(spec)


def example(rows=5, length=12):
    return SequenceBatch.example(replace(SPEC, max_length=length), rows, torch.Generator().manual_seed(1))


def total(model, batch):
    return model(batch).terms["next_item"].sum


def gradients(model, batch):
    model.zero_grad()
    loss = total(model, batch)
    loss.backward()
    return loss.detach(), {name: p.grad.clone() for name, p in model.named_parameters()}


@pytest.mark.parametrize("module", MODULES)
def test_shuffling_the_future_changes_nothing_before_it(module):
    model, batch = built(module).eval(), example()
    order = torch.tensor([0, 1, 2, 3, 4, 5, 9, 6, 11, 8, 7, 10])
    with torch.no_grad():
        before, after = model._encode(batch), model._encode(replace(batch, items=batch.items[:, order]))
    assert torch.equal(after[:, :6], before[:, :6]) and not torch.equal(after[0, 6], before[0, 6])


@pytest.mark.parametrize("module", MODULES)
def test_empty_rows_beside_others_change_nothing_and_have_no_gradient(module):
    model, batch = built(module), example()
    alone = gradients(model, batch)
    nobody = batch.nothing()
    both = {
        name: torch.cat([getattr(batch, name), getattr(nobody, name)])
        for name in ("items", "times", "targets", "lengths", "users", "keys")
    }
    together = gradients(model, replace(batch, **both))
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)
    loss, none = gradients(model, nobody)
    assert loss == 0 and not any(gradient.any() for gradient in none.values())


@pytest.mark.parametrize("module", MODULES)
def test_histories_of_one_event_and_batches_without_rows(module):
    model = built(module)
    loss, found = gradients(model, example(rows=3, length=1))
    assert loss.isfinite() and all(gradient.isfinite().all() for gradient in found.values())
    assert catalogue_scores(model, example().rows(0, 0), SPEC.items).shape == (0, SPEC.items)


GAPS = {"nothing": 0, "a second": 1, "a day": 86_400, "twenty years": 20 * 365 * 86_400, "1e9 s": 10**9}


@pytest.mark.parametrize("ticks", [1, 1000])
@pytest.mark.parametrize("kind", ["raw", "log", "clip"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_stable_form_is_finite_for_gaps_of_every_length_in_one_history(ticks, kind, precision):
    """Losses and gradients, at the first weights and where rates have come near zero or grown."""
    spec, gaps = replace(SPEC, ticks=ticks), torch.tensor([list(GAPS.values()) * 2 + [0, 1]])
    batch = example()
    times = torch.where(batch.items > 0, ticks * (10**9 + gaps.cumsum(1)), UNKNOWN_TIME)
    model = built(spec=spec, intervals={"kind": kind, "learned": True})
    for rates in (None, torch.linspace(-40.0, 4.0, 32)):
        if rates is not None:
            for module in model.modules():
                if isinstance(module, S5):
                    module.log_rate.data.copy_(rates)
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
            loss, found = gradients(model, replace(batch, times=times))
        assert loss.isfinite() and [n for n, g in found.items() if not g.isfinite().all()] == []


def test_steps_of_mamba_are_not_rounded_to_bfloat16(monkeypatch):
    """Steps are softplus of numbers near -5, which bfloat16 has in steps of 1/32; products before them may be rounded."""
    seen = []
    monkeypatch.setattr("turborec.nn.ssm.selective_scan", lambda x, step, *_, **__: seen.append(step) or stop())

    def stop():
        raise KeyboardInterrupt

    torch.manual_seed(0)
    block, x = Mamba(64, 16), torch.randn(4, 50, 64)
    for enabled in (False, True):
        with pytest.raises(KeyboardInterrupt), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            block(x, Context(keys=torch.arange(4)))
    exact, rounded = seen
    assert rounded.dtype == torch.float32 and ((rounded - exact).abs() / exact).max() < 0.005


@pytest.mark.parametrize("module", MODULES)
def test_copies_and_saved_states_are_the_model(module):
    model, batch = built(module), example()
    expected = catalogue_scores(model, batch, SPEC.items)
    twin = copy.deepcopy(model)
    assert torch.equal(catalogue_scores(twin, batch, SPEC.items), expected)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1.0)
    assert torch.equal(catalogue_scores(model, batch, SPEC.items), expected), "a copy shares no weights"
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    assert torch.equal(catalogue_scores(torch.load(file, weights_only=False), batch, SPEC.items), expected)
    fresh = module.Config(width=16).build(SPEC)
    fresh.load_state_dict(model.state_dict(), strict=True)
    assert torch.equal(catalogue_scores(fresh, batch, SPEC.items), expected)


@pytest.mark.filterwarnings("ignore")  # of its own making in torch's compiler
@pytest.mark.parametrize("module", MODULES)
def test_one_graph_without_breaks_serves_every_width(module):
    """Recurrences are single steps to a compiler, however long they are; the graph is run as it was found."""
    model, counter, batches = built(module), CompileCounter(), (example(5, 12), example(4, 9), example(6, 11))
    expected = [gradients(model, batch) for batch in batches]
    torch.compiler.reset()
    model.layers[0].compile(dynamic=True, fullgraph=True, backend=counter)
    found = [gradients(model, batch) for batch in batches]
    torch.compiler.reset()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert counter.frame_count == 1


class Encoder(torch.nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, items, seconds, known):
        return self.model._read(items, Gaps(seconds, known), Context(keys=items[:, 0]))[0]


@pytest.mark.parametrize("module", MODULES)
def test_an_exported_encoder_is_the_encoder_at_any_size(module):
    encoder = Encoder(built(module)).eval()
    rows, length = torch.export.Dim("rows", min=1, max=1000), torch.export.Dim("length", min=2, max=1000)
    shape = {0: rows, 1: length}
    batch = example()
    exported = torch.export.export(encoder, (batch.items, *batch.gaps(SPEC)), dynamic_shapes=(shape,) * 3).module()
    for some in (batch, example(3, 7)):
        inputs = (some.items, *some.gaps(SPEC))
        with torch.no_grad():
            torch.testing.assert_close(exported(*inputs), encoder(*inputs), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("module", MODULES)
def test_gradients_pass_through_ddp(module, tmp_path):
    """Every parameter takes part in every step, which DDP without a search for unused ones needs."""
    model, batch = built(module), example()
    expected = gradients(model, batch)
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    try:
        wrapped = DistributedDataParallel(model)
        for _ in range(2):
            wrapped.zero_grad()
            wrapped(batch).terms["next_item"].sum.backward()
        found = {name: p.grad for name, p in model.named_parameters()}
        torch.testing.assert_close(found, expected[1], rtol=1e-6, atol=1e-7)
        del wrapped
    finally:
        torch.distributed.destroy_process_group()
