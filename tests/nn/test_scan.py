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
