"""The kernels for accelerators against the loops; run by test_scan_triton.py."""

import pytest
import torch

from turborec.nn import scan as scans
from turborec.nn.scan import scan, selective_scan

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def both_ways(monkeypatch, method, tensors, *others):
    """What a method gives and its gradients, by the loops and by the kernels."""
    from turborec.nn import scan_triton  # not where the file is only searched for doctests

    generator, outcomes = torch.Generator().manual_seed(9), []
    weights = None
    for kernels in (None, scan_triton):
        monkeypatch.setattr(scans, "_kernels", lambda tensor, kernels=kernels: kernels)
        leaves = [tensor.to(DEVICE).requires_grad_() for tensor in tensors]
        found = method(*leaves, *(None if other is None else other.to(DEVICE) for other in others))
        outputs = found if isinstance(found, tuple) else (found,)
        weights = torch.randn(outputs[0].shape, dtype=outputs[0].dtype, generator=generator) if weights is None else weights
        weighted = (outputs[0] * weights.to(DEVICE)).sum()
        outcomes.append([*outputs, *torch.autograd.grad(weighted.real, leaves)])
    for plain, fast in zip(*outcomes, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", ["plain", "started", "reset"])
@pytest.mark.parametrize(("length", "rows", "channels", "states"), [(5, 2, 3, 4), (7, 2, 40, 5), (3, 1, 64, 16)])
def test_selective_kernels(monkeypatch, length, rows, channels, states, variant):
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator)

    x, step, rate = drawn(length, rows, channels), drawn(length, rows, channels).exp(), -drawn(states, channels).exp()
    write, read = drawn(length, rows, states), drawn(length, rows, states)
    start = drawn(rows, states, channels) if variant == "started" else None
    resets = drawn(length, rows) > 0 if variant == "reset" else None
    both_ways(monkeypatch, selective_scan, [x, step, rate, write, read], start, resets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("shape", [(5, 2, 3), (7, 3, 40, 2)])
def test_plain_kernels(monkeypatch, shape, dtype):
    generator = torch.Generator().manual_seed(0)
    both_ways(monkeypatch, scan, [torch.randn(*shape, dtype=dtype, generator=generator) for _ in range(2)])
