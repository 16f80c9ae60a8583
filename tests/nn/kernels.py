"""The kernels for accelerators against the loops; run by test_scan_triton.py."""

import pytest
import torch

from turborec.nn.lowering import REFERENCE, Lowering
from turborec.nn.scan import scan, selective_scan
from turborec.nn.scan_loops import ran

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def triton_kernels():
    from turborec.nn import scan_triton  # not where the file is only searched for doctests

    return Lowering("triton", scan_triton.walk, scan_triton.forward, scan_triton.backward)


def both_ways(method, tensors, start=None, resets=None):
    """What a method gives and its gradients, by the loops and by the kernels."""
    generator, outcomes = torch.Generator().manual_seed(9), []
    weights, before = None, ran["triton"]
    for lowering in (REFERENCE, triton_kernels()):
        leaves = [tensor.to(DEVICE).requires_grad_() for tensor in (*tensors, *([] if start is None else [start]))]
        begun = None if start is None else leaves[-1]
        given = leaves[: len(tensors)]
        found = method(*given, begun, None if resets is None else resets.to(DEVICE), lowering)
        outputs = found if isinstance(found, tuple) else (found,)
        weights = torch.randn(outputs[0].shape, dtype=outputs[0].dtype, generator=generator) if weights is None else weights
        weighted = (outputs[0] * weights.to(DEVICE)).sum()
        outcomes.append([*outputs, *torch.autograd.grad(weighted.real, leaves)])
    assert ran["triton"] == before + 2
    for plain, fast in zip(*outcomes, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("variant", ["plain", "started", "reset"])
@pytest.mark.parametrize(("length", "rows", "channels", "states"), [(5, 2, 3, 4), (7, 2, 40, 5), (3, 1, 64, 16)])
def test_selective_kernels(length, rows, channels, states, variant):
    generator = torch.Generator().manual_seed(0)

    def drawn(*shape):
        return torch.randn(*shape, generator=generator)

    x, step, rate = drawn(length, rows, channels), drawn(length, rows, channels).exp(), -drawn(states, channels).exp()
    write, read = drawn(length, rows, states), drawn(length, rows, states)
    start = drawn(rows, states, channels) if variant == "started" else None
    resets = drawn(length, rows) > 0 if variant == "reset" else None
    both_ways(selective_scan, [x, step, rate, write, read], start, resets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64])
@pytest.mark.parametrize("shape", [(5, 2, 3), (7, 3, 40, 2)])
def test_plain_kernels(shape, dtype):
    generator = torch.Generator().manual_seed(0)
    both_ways(scan, [torch.randn(*shape, dtype=dtype, generator=generator) for _ in range(2)])


def test_kernels_take_what_is_not_contiguous_and_batches_without_rows():
    triton, generator = triton_kernels(), torch.Generator().manual_seed(0)
    x, step = (torch.randn(2, 5, 3, generator=generator).to(DEVICE).transpose(0, 1) for _ in range(2))
    write, read = (torch.randn(2, 5, 8, generator=generator).to(DEVICE).transpose(0, 1)[..., ::2] for _ in range(2))
    rate = -torch.randn(3, 4, generator=generator).exp().to(DEVICE).T
    inputs = [t.detach().requires_grad_() for t in (x, step.exp(), rate, write, read)]
    plain, fast = (selective_scan(*inputs, lowering=one)[0] for one in (REFERENCE, triton))
    torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-5)
    # The gradient of a sum is one number seen from everywhere: a tensor of strides 0.
    for one, other in zip(*(torch.autograd.grad(y.sum(), inputs) for y in (plain, fast)), strict=True):
        torch.testing.assert_close(other, one, rtol=1e-5, atol=1e-5)
    nobody = [t if t is rate else t[:, :0] for t in (x, step, rate, write, read)]
    assert selective_scan(*nobody, lowering=triton)[0].shape == (5, 0, 3)
    assert scan(step[:, :0], x[:, :0], lowering=triton).shape == (5, 0, 3)


def test_kernels_refuse_what_they_would_read_wrongly():
    double = [torch.ones(2, 1, 3, dtype=torch.float64, device=DEVICE)] * 2
    with pytest.raises(ValueError, match="float32, got"):
        scan(*double, lowering=triton_kernels())


@pytest.mark.parametrize("words", [1, 3, 48])
@pytest.mark.parametrize("own", [False, True])
def test_the_kernel_draws_the_bits_of_the_arithmetic(words, own):
    from turborec.nn import keyed, keyed_triton

    generator = torch.Generator().manual_seed(0)
    keys = torch.randint(-(2**62), 2**62, (70,), generator=generator).to(DEVICE)
    places = (torch.randint(0, 300, (70, 13), generator=generator) if own else torch.arange(13)).to(DEVICE)
    constants = keyed._GOLDEN, keyed._FIRST, keyed._SECOND
    found = keyed_triton.bits(keys, torch.tensor(5, device=DEVICE), places, words, constants)
    assert torch.equal(found, keyed._words(keys, 5, places, words, torch.arange(words, device=DEVICE)))
    assert keyed_triton.bits(keys[:0], torch.tensor(5, device=DEVICE), places[:0], words, constants).shape[0] == 0
