"""What computes recurrences: the choice is told and proven, and nothing is left out where a kernel is missing."""

import logging
import sys
from dataclasses import replace
from importlib.util import find_spec
from types import ModuleType
from typing import get_args

import pytest
import torch

from turborec.engine.loop import Stage
from turborec.errors import UserError
from turborec.nn import lowering
from turborec.nn.linear import Context
from turborec.nn.lowering import REFERENCE, Kernels, chosen
from turborec.nn.scan import scan, selective_scan
from turborec.nn.scan_loops import ran
from turborec.nn.ssm import S5, Mamba, lower, lowered

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture(autouse=True)
def _nothing_remembered():
    caches = (lowering._best_of_cuda, lowering._without_mamba_ssm)
    for cache in caches:
        cache.cache_clear()
    yield
    for cache in caches:
        cache.cache_clear()


def failing(*_):
    raise ImportError("no such kernel")


def selective_scan_fn(u, delta, A, B, C, D=None, z=None, delta_bias=None, delta_softplus=False, return_last_state=False):  # noqa: N803
    """The formula in the layout of mamba-ssm: u, delta [B, D, L], A [D, N], B, C [B, N, L]."""
    assert D is z is delta_bias is None and not delta_softplus
    assert all(t.stride(-1) == 1 for t in (u, delta, A, B, C)), "their kernels want the last axis in one piece"
    h, ys = u.new_zeros(*u.shape[:2], A.shape[1]), []
    for t in range(u.shape[2]):
        h = torch.exp(delta[:, :, t, None] * A) * h + (delta[:, :, t] * u[:, :, t])[..., None] * B[:, None, :, t]
        ys.append((h * C[:, None, :, t]).sum(-1))
    y = torch.stack(ys, -1)
    return (y, h) if return_last_state else y


@pytest.fixture
def stand_in(monkeypatch):
    """A package that is called as mamba-ssm is and computes the formula, since the real one needs CUDA."""
    names = ["mamba_ssm", "mamba_ssm.ops", "mamba_ssm.ops.selective_scan_interface"]
    for name in names:
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    sys.modules[names[-1]].selective_scan_fn = selective_scan_fn
    monkeypatch.delitem(sys.modules, "turborec.nn.scan_mamba_ssm", raising=False)
    yield lowering._with_mamba_ssm(REFERENCE)
    sys.modules.pop("turborec.nn.scan_mamba_ssm", None)
    if hasattr(sys.modules["turborec.nn"], "scan_mamba_ssm"):
        del sys.modules["turborec.nn"].scan_mamba_ssm


def inputs(length=9, rows=3, channels=5, states=4):
    generator = torch.Generator().manual_seed(0)
    x, step, rate, write, read = (
        torch.randn(*shape, generator=generator)
        for shape in ((length, rows, channels),) * 2 + ((states, channels),) + ((length, rows, states),) * 2
    )
    return [t.requires_grad_() for t in (x, step.exp(), -rate.exp(), write, read)]


def test_a_processor_has_the_loops_and_no_word_is_lost_on_it(caplog):
    with caplog.at_level(logging.WARNING):
        assert chosen("auto", CPU) is chosen("reference", CPU) is chosen("reference", CUDA) is REFERENCE
    assert not caplog.records


@pytest.mark.parametrize("kernels", ["triton", "mamba_ssm"])
def test_kernels_of_another_device_are_an_error(kernels):
    with pytest.raises(UserError, match=f"train.kernels={kernels} needs a CUDA device, and this is cpu"):
        chosen(kernels, CPU)


@pytest.mark.parametrize(
    ("kernels", "loader", "install"),
    [("triton", "_triton", "pip install triton"), ("mamba_ssm", "_with_mamba_ssm", r"pip install 'turborec\[mamba\]'")],
)
def test_kernels_that_are_named_and_missing_are_an_error(monkeypatch, kernels, loader, install):
    monkeypatch.setattr(lowering, loader, failing)
    with pytest.raises(UserError, match=rf"no such kernel\)\. Install it \({install}\)"):
        chosen(kernels, CUDA)


def test_an_accelerator_without_kernels_has_the_loops_and_says_so_once(monkeypatch, caplog):
    monkeypatch.setattr(lowering, "_triton", failing)
    monkeypatch.setattr(lowering, "find_spec", lambda name: None)
    with caplog.at_level(logging.WARNING):
        assert chosen("auto", CUDA) is chosen("auto", CUDA) is REFERENCE
    assert [record.message for record in caplog.records] == [
        "Recurrences run step by step, which is slow on an accelerator: Triton cannot be loaded (no such kernel)."
    ]


def test_a_package_that_is_installed_and_broken_is_told_of_once(monkeypatch, caplog):
    ours = replace(REFERENCE, name="triton")
    monkeypatch.setattr(lowering, "_triton", lambda: ours)
    monkeypatch.setattr(lowering, "find_spec", lambda name: "there")
    monkeypatch.setattr(lowering, "_with_mamba_ssm", failing)
    with caplog.at_level(logging.WARNING):
        assert chosen("auto", CUDA) is chosen("auto", CUDA) is ours
    assert [record.message for record in caplog.records] == [
        "mamba-ssm is installed and cannot be loaded (no such kernel): Mamba's recurrence runs by triton."
    ]


def test_auto_takes_mamba_ssm_where_it_is_installed(monkeypatch, stand_in):
    monkeypatch.setattr(lowering, "_triton", lambda: replace(REFERENCE, name="triton"))
    monkeypatch.setattr(lowering, "find_spec", lambda name: "there")
    found = chosen("auto", CUDA)
    assert (found.name, found.others, found.walk) == ("mamba_ssm", "triton", REFERENCE.walk)


def test_mamba_ssm_is_given_whole_histories_in_its_own_layout(stand_in):
    outcomes = []
    for way in (REFERENCE, stand_in):
        given, before = inputs(), ran["mamba_ssm"]
        y, last = selective_scan(*given, lowering=way)
        assert ran["mamba_ssm"] - before == (way is stand_in) and not last.requires_grad
        outcomes.append([y, last, *torch.autograd.grad((y * torch.arange(5)).sum(), given)])
    for plain, theirs in zip(*outcomes, strict=True):
        torch.testing.assert_close(theirs, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", ["started", "reset"])
def test_mamba_ssm_is_not_given_what_it_knows_nothing_of(stand_in, variant):
    """Its kernels begin at zero and run on to the end: a boundary within a row would be read over."""
    start = torch.ones(3, 4, 5) if variant == "started" else None
    resets = torch.arange(9)[:, None].repeat(1, 3) % 4 == 2 if variant == "reset" else None
    before = ran["mamba_ssm"]
    y, last = selective_scan(*inputs(), start, resets, lowering=stand_in)
    assert ran["mamba_ssm"] == before
    expected = selective_scan(*inputs(), start, resets)
    assert torch.equal(y, expected[0]) and torch.equal(last, expected[1])


def test_mamba_ssm_is_not_given_other_types(stand_in):
    with pytest.raises(ValueError, match="is given float32, got"):
        selective_scan(*(t.detach().double() for t in inputs()), lowering=stand_in)


def test_a_block_of_mamba_is_the_same_by_either_and_goes_on_by_the_other(stand_in):
    torch.manual_seed(0)
    block, x, context = Mamba(6, 4), torch.randn(2, 7, 6), Context(keys=torch.tensor([1, 2]))
    expected, _ = block(x, context)
    block.lowering = stand_in
    found, _ = block(x, context)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    first, kept = block(x[:, :5], context)
    second, _ = block(x[:, 5:], context, kept)
    torch.testing.assert_close(torch.cat([first, second], 1), expected, rtol=1e-5, atol=1e-6)


def test_what_was_chosen_is_told(stand_in):
    model = torch.nn.ModuleList([S5(4, 2, "stable"), Mamba(4, 2)])
    assert lowered(model) == "Recurrences: by what is best for each tensor"
    lower(model, "auto", CPU)
    assert lowered(model) == "Recurrences: by reference"
    for module in model:
        module.lowering = stand_in
    assert lowered(model) == "Recurrences: by mamba_ssm, those of S5 and of followed users by reference"
    assert lowered(torch.nn.Linear(2, 2)) is None
    lower(torch.nn.Linear(2, 2), "triton", CPU)  # a model without recurrences needs no kernels


def test_what_ran_is_counted():
    before = ran.copy()
    scan(torch.ones(3, 1, 2), torch.ones(3, 1, 2, requires_grad=True)).sum().backward()
    y, _ = selective_scan(*inputs())
    y.sum().backward()
    assert ran - before == {"reference": 4}


needs_kernels = pytest.mark.skipif(
    find_spec("mamba_ssm") is None or not torch.cuda.is_available(),
    reason="mamba-ssm is not installed (pip install 'turborec[mamba]'), or there is no CUDA device",
)


@needs_kernels
@pytest.mark.parametrize(("length", "rows", "channels", "states"), [(1, 1, 16, 16), (50, 7, 128, 32), (200, 4, 64, 16)])
def test_the_real_kernels_are_the_loop(length, rows, channels, states):
    """Values, last states and gradients, against the loops in float64; float32 on a parallel scan is given some room."""
    kernels, outcomes = chosen("mamba_ssm", CUDA), []
    for way, dtype in ((REFERENCE, torch.float64), (kernels, torch.float32)):
        given = [t.detach().to(CUDA, dtype).requires_grad_() for t in inputs(length, rows, channels, states)]
        before = ran["mamba_ssm"]
        y, last = selective_scan(*given, lowering=way)
        assert ran["mamba_ssm"] - before == (way is kernels)
        outcomes.append([y, last, *torch.autograd.grad(y.sin().sum(), given)])
    for exact, theirs in zip(*outcomes, strict=True):
        torch.testing.assert_close(theirs.double(), exact, rtol=3e-3, atol=5e-3)


@needs_kernels
def test_their_reference_is_ours():
    """mamba-ssm's own plain code, on the device where it can be imported."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_ref

    x, step, rate, write, read = (t.detach().to(CUDA) for t in inputs(50, 3, 16, 8))
    u, delta, b, c = (t.permute(1, 2, 0) for t in (x, step, write, read))
    theirs, last = selective_scan_ref(u, delta, rate.T, b, c, return_last_state=True)
    y, state = selective_scan(x, step, rate, write, read, lowering=REFERENCE)
    torch.testing.assert_close(y, theirs.permute(2, 0, 1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(state, last.transpose(1, 2), rtol=1e-5, atol=1e-5)


def test_recipes_name_the_kernels_that_there_are():
    assert get_args(Stage.model_fields["kernels"].annotation) == get_args(Kernels)
