"""State-space layers against the formulas written out in numpy, and against what follows from the formulas."""

import copy

import numpy as np
import pytest
import torch

from turborec.nn.linear import Context
from turborec.nn.ssm import S5, Gaps, Intervals, Layer, Mamba, Shape, Steps, hippo

CONTEXT = Context(keys=torch.tensor([1, 2]))


def drawn(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def s5(parametrisation="stable", width=6, states=8):
    torch.manual_seed(0)
    return S5(width, states, parametrisation).double()


def values_of(layer):
    if layer.parametrisation == "faithful":
        return torch.view_as_complex(layer.lambdas).detach().numpy()
    return (-layer.log_rate.exp() - 1e-4 + 1j * layer.frequency).detach().numpy()


@pytest.mark.parametrize("states", [1, 2, 8, 32, 64])
def test_the_first_eigenvalues_are_those_of_hippo(states):
    """The normal part of HiPPO-LegS, by numpy's solver for matrices of any kind."""
    n = np.arange(states)
    hippo_legs = -np.where(
        n[:, None] > n, np.sqrt(2 * n[:, None] + 1) * np.sqrt(2 * n + 1), np.where(n[:, None] == n, n + 1, 0)
    )
    normal = hippo_legs + np.sqrt(n[:, None] + 0.5) * np.sqrt(n + 0.5)
    expected = np.linalg.eigvals(normal)
    values, vectors = (part.numpy() for part in hippo(states))
    np.testing.assert_allclose(values.real, -0.5, atol=1e-12)
    np.testing.assert_allclose(np.sort(values.imag), np.sort(expected.imag), atol=1e-8)
    np.testing.assert_allclose(np.sort(values.imag), -np.sort(values.imag)[::-1], atol=1e-8)  # they come in pairs
    np.testing.assert_allclose(vectors @ np.diag(values) @ vectors.conj().T, normal, atol=1e-8)
    for parametrisation in ("faithful", "stable"):
        np.testing.assert_allclose(values_of(S5(4, states, parametrisation)), values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("parametrisation", ["faithful", "stable"])
def test_s5_is_the_formula(parametrisation):
    layer, u, steps = s5(parametrisation), drawn(2, 7, 6), drawn(2, 7, seed=1).exp()
    values, durations = values_of(layer), steps.numpy()[..., None] * layer.log_step.detach().exp().numpy()
    b, c = (torch.view_as_complex(t.detach()).numpy() for t in (layer.b, layer.c))
    expected = np.zeros((2, 7, 6))
    for row in range(2):
        x = np.zeros(8, complex)
        for k in range(7):
            kept = np.exp(values * durations[row, k])
            x = kept * x + (kept - 1) / values * (b @ u[row, k].numpy())
            expected[row, k] = (c @ x).real + layer.d.detach().numpy() * u[row, k].numpy()
    np.testing.assert_allclose(layer(u, CONTEXT, steps)[0].detach(), expected, rtol=1e-10, atol=1e-12)


def test_the_two_parametrisations_are_one_function():
    stable, free = s5("stable"), s5("faithful")
    with torch.no_grad():
        free.lambdas.copy_(torch.view_as_real(torch.from_numpy(values_of(stable))))
    for name in ("b", "c", "d", "log_step"):
        getattr(free, name).data.copy_(getattr(stable, name))
    u, steps = drawn(2, 5, 6), drawn(2, 5, seed=1).exp()
    torch.testing.assert_close(stable(u, CONTEXT, steps)[0], free(u, CONTEXT, steps)[0], rtol=1e-10, atol=1e-12)


def test_a_step_in_two_with_nothing_read_between_is_one_step():
    layer = s5()
    start = torch.complex(drawn(2, 8, seed=2), drawn(2, 8, seed=3))
    steps, nothing = drawn(2, 1, seed=1).exp(), torch.zeros(2, 1, 6, dtype=torch.float64)
    _, once = layer(nothing, CONTEXT, 3 * steps, start)
    _, half = layer(nothing, CONTEXT, steps, start)
    _, twice = layer(nothing, CONTEXT, 2 * steps, half)
    torch.testing.assert_close(once, twice, rtol=1e-12, atol=1e-12)


def test_no_time_leaves_the_state_and_endless_time_settles_it():
    layer, u = s5(), drawn(2, 1, 6)
    start = torch.complex(drawn(2, 8, seed=2), drawn(2, 8, seed=3))
    _, same = layer(u, CONTEXT, torch.zeros(2, 1, dtype=torch.float64), start)
    torch.testing.assert_close(same, start, rtol=0, atol=0)
    _, settled = layer(u, CONTEXT, torch.full((2, 1), 1e9, dtype=torch.float64), start)
    b = torch.view_as_complex(layer.b.detach()).numpy()
    np.testing.assert_allclose(settled.detach(), -(u[:, 0].numpy() @ b.T) / values_of(layer), rtol=1e-9)


@pytest.mark.parametrize("seconds", [0.0, 1e-9, 1.0, 6.3e8, 1e9])
def test_the_stable_form_is_finite_for_any_gap_and_rate(seconds):
    """In float32, going forward and backward, at rates near zero, where the other form overflows."""
    layer = S5(6, 8, "stable")
    with torch.no_grad():
        layer.log_rate.copy_(torch.linspace(-200.0, 5.0, 8))
    u, steps = torch.randn(2, 50, 6, requires_grad=True), torch.full((2, 50), seconds, requires_grad=True)
    y, last = layer(u, CONTEXT, steps)
    y.square().sum().backward()
    assert y.isfinite().all() and last.isfinite().all()
    assert all(p.grad.isfinite().all() for p in (*layer.parameters(), u, steps))


def test_the_faithful_form_overflows_where_a_rate_is_positive():
    layer = S5(6, 8, "faithful")
    with torch.no_grad():
        layer.lambdas[:, 0] = 1e-3
    assert not layer(torch.randn(2, 5, 6), CONTEXT, torch.full((2, 5), 1e6))[0].isfinite().all()


@pytest.mark.parametrize("seconds", [1e-6, 1.0, 600.0, 86_400.0, 1e9])
def test_gradients_are_right_to_float32_after_any_gap(seconds):
    """Against float64: after long gaps they are nothing, not rounding times the gap."""
    torch.manual_seed(0)
    narrow = S5(4, 8, "stable")
    wide = copy.deepcopy(narrow).double()
    names = ("log_step", "log_rate", "frequency")
    found = []
    for layer, kind in ((narrow, torch.float32), (wide, torch.float64)):
        duration = torch.full((1, 1, 1), seconds, dtype=kind) * layer.log_step.exp()
        total = sum(torch.view_as_real(part).sum() for part in layer._discrete(duration))
        found.append(torch.autograd.grad(total, [getattr(layer, name) for name in names]))
    scale = max(float(gradient.abs().max()) for gradient in found[1])
    for got, expected in zip(*found, strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=2e-3, atol=2e-5 * scale)


def test_small_steps_lose_no_digits():
    """(exp(z) - 1) / lambda at tiny z, in float32, against float64."""
    single, double = S5(6, 8, "stable"), s5()
    double.load_state_dict(single.state_dict())
    u, steps = torch.randn(2, 4, 6), torch.full((2, 4), 1e-6)
    exact = double(u.double(), CONTEXT, steps.double())[1]
    assert (single(u, CONTEXT, steps)[1] - exact).abs().max() <= 1e-5 * exact.abs().max()


def test_mamba_is_the_formula():
    torch.manual_seed(0)
    layer, x = Mamba(6, 5).double(), drawn(2, 7, 6)
    p = {name: value.detach().numpy() for name, value in layer.named_parameters()}

    def silu(v):
        return v / (1 + np.exp(-v))

    expected = np.zeros((2, 7, 6))
    for row in range(2):
        both = x[row].numpy() @ p["input.weight"].T
        inner, gate = both[:, :12], both[:, 12:]
        h = np.zeros((5, 12))
        for k in range(7):
            u = p["kernel_bias"].copy()
            for back in range(4):
                if k - back >= 0:
                    u += p["kernel"][3 - back] * inner[k - back]
            u = silu(u)
            rank, write, read = np.split(p["select.weight"] @ u, [1, 6])
            step = np.log1p(np.exp(p["step.weight"] @ rank + p["step.bias"]))
            h = np.exp(-step * np.exp(p["log_rate"])) * h + np.outer(write, step * u)
            y = (read @ h + p["skip"] * u) * silu(gate[k])
            expected[row, k] = p["output.weight"] @ y
    np.testing.assert_allclose(layer(x, CONTEXT)[0].detach(), expected, rtol=1e-9, atol=1e-11)


def test_how_mamba_starts():
    torch.manual_seed(0)
    steps = torch.nn.functional.softplus(Mamba(64, 16).step.bias)
    assert steps.min() > 0.9e-3 and steps.max() < 0.11
    official = Mamba(64, 16, init="official")
    assert not official.step.bias.any() and official.input.weight.std().item() == pytest.approx(0.02, rel=0.05)
    assert torch.equal(official.log_rate[:, 3], torch.arange(1, 17).float().log())


@pytest.mark.parametrize("mixers", ["s5", "mamba", "both"])
def test_a_layer_goes_on_where_it_stopped(mixers):
    torch.manual_seed(0)
    chosen = {"s5": [S5(6, 4, "stable")], "mamba": [Mamba(6, 5)], "both": [S5(6, 4, "stable"), Mamba(6, 5)]}[mixers]
    layer = Layer(Shape(6, 12, 0.2), chosen, 0).double().eval()
    x, steps = drawn(2, 9, 6), drawn(2, 9, seed=1).exp()
    whole = layer(x, CONTEXT, steps)[0]
    seen, found = None, []
    for part in (slice(0, 1), slice(1, 3), slice(3, 9)):
        y, seen = layer(x[:, part], CONTEXT, steps[:, part], seen)
        found.append(y)
    torch.testing.assert_close(torch.cat(found, 1), whole, rtol=1e-12, atol=1e-12)


def test_steps_of_every_kind():
    gaps = Gaps(torch.tensor([[0.0, 0.0, 1.0, 1e6]]), torch.tensor([[False, True, True, True]]))
    raw = Steps(Intervals(kind="raw", unit=1.0, event=0.0))(gaps)
    assert raw.tolist() == [[1.0, 0.0, 1.0, 1e6]]  # the first is unknown, the second is zero
    clipped = Steps(Intervals(kind="clip", limit=100.0, unit=10.0, event=0.0))(gaps)
    assert clipped.tolist()[0] == pytest.approx([1.0, 0.0, 0.1, 10.0])
    logs = Steps(Intervals(kind="log", unit=2.0, event=0.0, learned=True))
    assert logs(gaps).tolist()[0] == pytest.approx([1.0, 0.0, np.log(1.5), np.log(1 + 5e5)])
    assert {name for name, _ in logs.named_parameters()} == {"unknown", "log_unit"}
    beside = Steps(Intervals(kind="log", unit=2.0, event=1.0))(gaps)
    torch.testing.assert_close(beside, torch.where(gaps.known, Steps(Intervals(unit=2.0, event=0.0))(gaps) + 1.0, 1.0))
    assert Steps(Intervals(kind="none"))(gaps).tolist() == [[1.0] * 4]
