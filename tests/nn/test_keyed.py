import pytest
import torch

from turborec.nn.keyed import Dropout, bits, mix

KEYS = torch.tensor([3, -7, 2**62, 0])


def splitmix64(state: int) -> int:
    """The published output function in unbounded integers."""
    state &= 2**64 - 1
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
    return state ^ (state >> 31)


@pytest.mark.parametrize("value", [0, 1, -1, 2**63 - 1, -(2**63), 0x123456789ABCDEF])
def test_mix_is_splitmix64(value):
    assert int(mix(torch.tensor(value))) % 2**64 == splitmix64(value)


def test_bits_are_fair_in_every_position():
    drawn = bits(torch.arange(512), site=0, places=torch.arange(16), words=4)
    shares = torch.stack([(drawn >> b & 1).double().mean() for b in range(64)])
    assert (shares - 0.5).abs().max() < 5 * 0.5 / drawn.numel() ** 0.5


def test_rows_sites_and_positions_differ():
    first, second = bits(KEYS, 0, torch.arange(8), 2), bits(KEYS, 1, torch.arange(8), 2)
    drawn = torch.cat([first, second]).flatten()
    assert len(drawn.unique()) == len(drawn)


def test_a_row_drops_the_same_channels_in_any_batch_and_at_any_padding():
    layer, x = Dropout(0.3, site=2), torch.ones(4, 10, 12)
    together = layer(x, KEYS)
    alone = layer(torch.ones(1, 25, 12), KEYS[1:2])
    assert torch.equal(together[1], alone[0, :10])


def test_rate_and_scale_keep_the_mean():
    x = torch.ones(64, 50, 64)
    out = Dropout(0.2, site=0)(x, torch.arange(64))
    kept = (256 - round(0.2 * 256)) / 256
    assert out.max() == pytest.approx(1 / kept)
    assert out.mean() == pytest.approx(1, abs=5 * ((1 - kept) / kept / x.numel()) ** 0.5)


def test_widths_that_no_word_fills():
    assert Dropout(0.5, site=0)(torch.ones(2, 3, 5), KEYS[:2]).shape == (2, 3, 5)


def test_evaluation_and_rate_zero_change_nothing():
    x = torch.randn(2, 3, 8)
    assert Dropout(0.0, site=0)(x, KEYS[:2]) is x
    assert Dropout(0.5, site=0).eval()(x, KEYS[:2]) is x


@pytest.mark.parametrize("rate", [-0.1, 1.0, 1.5])
def test_impossible_rates_are_refused(rate):
    with pytest.raises(ValueError, match="dropout rate"):
        Dropout(rate, site=0)


def test_what_a_compiler_is_given_drops_the_same_channels():
    layer, x = Dropout(0.3, site=2), torch.randn(4, 10, 13)
    assert torch.equal(layer(x, KEYS), x * layer._kept(KEYS, torch.arange(10), 13))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_dropout_drops_the_same_channels_on_an_accelerator(dtype):
    layer, other = Dropout(0.3, site=2).cuda(), torch.nn.Linear(24, 24).cuda().to(dtype)
    x, keys = torch.randn(4, 10, 24, device="cuda", dtype=dtype), KEYS.cuda()

    def block(x):
        return layer(torch.nn.functional.gelu(layer(other(x), keys)), keys)

    plain, compiled = block(x), torch.compile(block, dynamic=True)(x)
    assert torch.equal(plain == 0, compiled == 0)
    torch.testing.assert_close(compiled, plain, rtol=2e-2, atol=1e-2)
