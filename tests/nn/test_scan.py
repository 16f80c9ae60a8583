"""Recurrences against plain loops in float64 that autograd goes through, and against finite differences."""

import numpy as np
import pytest
import torch

from turborec.nn.scan import scan, selective_scan

SHAPES = [(1, 1, (1,)), (2, 3, (4,)), (17, 2, (3, 5))]


def drawn(*shape, dtype=torch.float64, seed=0):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def loop(decay, drive, start=None, resets=None):
    """The recurrence as it is written."""
    h = torch.zeros_like(drive[0]) if start is None else start
    states = []
    for t in range(len(drive)):
        kept = torch.zeros_like(decay[t]) + decay[t]
        if resets is not None:
            kept = kept * (~resets[t]).to(kept.dtype).view(-1, *[1] * (kept.ndim - 1))
        h = kept * h + drive[t]
        states.append(h)
    return torch.stack(states)


@pytest.mark.parametrize(("length", "rows", "shape"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
@pytest.mark.parametrize("variant", ["plain", "started", "reset"])
def test_states_and_gradients_are_those_of_a_loop(length, rows, shape, dtype, variant):
    decay, drive = (drawn(length, rows, *shape, dtype=dtype, seed=n).requires_grad_() for n in (1, 2))
    start = drawn(rows, *shape, dtype=dtype, seed=3).requires_grad_() if variant == "started" else None
    resets = drawn(length, rows, seed=4) > 0.5 if variant == "reset" else None
    weights = drawn(length, rows, *shape, dtype=dtype, seed=5)
    wanted = [t for t in (decay, drive, start) if t is not None]
    outcomes = []
    for method in (scan, loop):
        states = method(decay, drive, start, resets)
        loss = (states * weights).real.sum() if dtype.is_complex else (states * weights).sum()
        outcomes.append((states, torch.autograd.grad(loss, wanted)))
    (fast, of_fast), (plain, of_plain) = outcomes
    torch.testing.assert_close(fast, plain, rtol=1e-12, atol=1e-12)
    for one, other in zip(of_fast, of_plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def selective_loop(x, step, rate, write, read, start=None, resets=None):
    """Mamba's recurrence in numpy, element by element."""
    length, rows, channels = x.shape
    states = rate.shape[0]
    h = np.zeros((rows, states, channels)) if start is None else start.copy()
    y = np.zeros_like(x)
    for t in range(length):
        for b in range(rows):
            for n in range(states):
                for e in range(channels):
                    before = 0.0 if resets is not None and resets[t, b] else h[b, n, e]
                    h[b, n, e] = np.exp(step[t, b, e] * rate[n, e]) * before + step[t, b, e] * x[t, b, e] * write[t, b, n]
                    y[t, b, e] += read[t, b, n] * h[b, n, e]
    return y, h


def selective_inputs(length=6, rows=2, channels=3, states=4, dtype=torch.float64):
    x, step = drawn(length, rows, channels, seed=1), drawn(length, rows, channels, seed=2).exp()
    rate, write, read = (
        -drawn(states, channels, seed=3).exp(),
        drawn(length, rows, states, seed=4),
        drawn(length, rows, states, seed=5),
    )
    return [t.to(dtype) for t in (x, step, rate, write, read)]


@pytest.mark.parametrize("variant", ["plain", "started", "reset"])
def test_the_selective_scan_is_the_loop(variant):
    inputs = selective_inputs()
    start = drawn(2, 4, 3, seed=6) if variant == "started" else None
    resets = drawn(6, 2, seed=7) > 0.3 if variant == "reset" else None
    y, last = selective_scan(*inputs, start, resets)
    plain = [None if t is None else t.numpy() for t in (*inputs, start, resets)]
    expected = selective_loop(*plain)
    np.testing.assert_allclose(y, expected[0], rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(last, expected[1], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("variant", ["plain", "started", "reset"])
def test_the_gradient_of_the_selective_scan_is_that_of_finite_differences(variant):
    inputs = [t.requires_grad_() for t in selective_inputs()]
    start = drawn(2, 4, 3, seed=6) if variant == "started" else None
    resets = drawn(6, 2, seed=7) > 0.3 if variant == "reset" else None
    assert torch.autograd.gradcheck(lambda *t: selective_scan(*t, start, resets)[0], inputs)


def test_float32_is_near_float64_over_long_histories():
    inputs = selective_inputs(length=200, rows=3, channels=8, states=16)
    expected = selective_scan(*inputs)[0]
    found = selective_scan(*[t.float() for t in inputs])[0]
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()
    decay, drive = drawn(200, 4, 8, seed=1).sigmoid(), drawn(200, 4, 8, seed=2)
    exact = loop(decay, drive)
    assert (scan(decay.float(), drive.float()) - exact).abs().max() <= 1e-5 * exact.abs().max()


def test_lower_precision_is_not_computed_in():
    inputs = [t.bfloat16() for t in selective_inputs()]
    assert selective_scan(*inputs)[0].dtype == torch.float32


def test_a_scan_in_two_halves_is_one_scan():
    inputs = selective_inputs(length=9)
    whole, last = selective_scan(*inputs)
    first, between = selective_scan(*[t if t.shape[0] == 4 and t.ndim == 2 else t[:5] for t in inputs])
    second, end = selective_scan(*[t if t.shape[0] == 4 and t.ndim == 2 else t[5:] for t in inputs], between)
    torch.testing.assert_close(torch.cat([first, second]), whole, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(end, last, rtol=1e-12, atol=1e-12)


def test_no_step_reads_one_after_it():
    inputs = selective_inputs()
    before = selective_scan(*inputs)[0]
    changed = [t.clone() for t in inputs]
    for place in (0, 1, 3, 4):
        changed[place][4:] += 1.0
    assert torch.equal(selective_scan(*changed)[0][:4], before[:4])


@pytest.mark.parametrize("variant", ["plain", "started"])
def test_lower_precision_around_it_changes_nothing(variant):
    """Forward and backward within autocast, as in a loop of one's own that closes it late."""
    inputs, outcomes = selective_inputs(dtype=torch.float32), []
    start = drawn(2, 4, 3, seed=6).float() if variant == "started" else None
    for enabled in (False, True):
        leaves = [t.clone().requires_grad_() for t in inputs]
        with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            y, last = selective_scan(*leaves, start)
            outcomes.append([y, last, *torch.autograd.grad(y.square().sum(), leaves)])
    assert all(torch.equal(one, other) for one, other in zip(*outcomes, strict=True))


def test_the_start_has_a_gradient_and_the_last_state_none():
    inputs, start = selective_inputs(), drawn(2, 4, 3, seed=6).requires_grad_()
    resets = drawn(6, 2, seed=7) > 0.8
    assert torch.autograd.gradcheck(lambda s: selective_scan(*inputs, s, resets)[0], [start])
    assert not selective_scan(*inputs, start)[1].requires_grad


def test_the_last_state_does_not_keep_the_others():
    _, last = selective_scan(*selective_inputs(length=50))
    assert last.untyped_storage().nbytes() == last.numel() * last.element_size()


def test_tensors_of_any_layout_and_gradients_of_no_layout():
    inputs = selective_inputs()
    turned = [t.transpose(0, -1).contiguous().transpose(0, -1) for t in inputs]
    assert not any(t.is_contiguous() for t in turned)
    outcomes = []
    for some in (inputs, turned):
        leaves = [t.detach().requires_grad_() for t in some]
        y, _ = selective_scan(*leaves)
        outcomes.append([y, *torch.autograd.grad(y.sum(), leaves)])  # the gradient of a sum has strides of 0
    for one, other in zip(*outcomes, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    decay, drive = (drawn(5, 2, 3, seed=n).transpose(1, 2) for n in (1, 2))
    torch.testing.assert_close(scan(decay, drive), loop(decay, drive), rtol=1e-12, atol=1e-12)


def test_batches_without_rows_and_histories_without_steps():
    x, step, rate, write, read = selective_inputs()
    leaves = [t.requires_grad_() for t in (x[:, :0], step[:, :0], rate, write[:, :0], read[:, :0])]
    y, last = selective_scan(*leaves)
    y.sum().backward()
    assert y.shape == (6, 0, 3) and last.shape == (0, 4, 3) and not leaves[2].grad.any()
    assert scan(x[:, :0], x[:, :0]).shape == (6, 0, 3)
    with pytest.raises(ValueError, match="at least one step"):
        scan(x[:0], x[:0])
    with pytest.raises(ValueError, match="at least one step"):
        selective_scan(x[:0], step[:0], rate, write[:0], read[:0])


def test_a_gradient_of_a_gradient_is_refused_rather_than_wrong():
    leaves = [t.requires_grad_() for t in selective_inputs()]
    first = torch.autograd.grad(selective_scan(*leaves)[0].square().sum(), leaves, create_graph=True)
    with pytest.raises(RuntimeError):
        torch.autograd.grad(first[0].square().sum(), leaves)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_operators_are_what_torch_expects_of_them(dtype):
    """Layouts and aliases as announced to compilers and exports."""
    checks = ("test_schema", "test_faketensor")
    tensors = [drawn(4, 2, 3, dtype=dtype, seed=n) for n in (1, 2)]
    for back in (False, True):
        torch.library.opcheck(torch.ops.turborec.walk_loops, (*tensors, back), test_utils=checks)
    inputs = selective_inputs()
    for start, resets in ((None, None), (drawn(2, 4, 3), drawn(6, 2) > 0)):
        torch.library.opcheck(torch.ops.turborec.selective_loops, (*inputs, start, resets), test_utils=checks)
        states = drawn(6, 2, 4, 3)
        given = (drawn(6, 2, 3), inputs, states, start, resets)
        torch.library.opcheck(torch.ops.turborec.selective_loops_backward, given, test_utils=checks)
