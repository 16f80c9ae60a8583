"""Images as they are read, and encoders in ONNX files, tiny ones made here; where `onnx` and `onnxruntime` are installed."""

import struct
import sys
import zlib
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from tiny_encoders import CHANNELS, numbers_file, onnx_in
from turborec.errors import UserError
from turborec.nn import images
from turborec.nn.images import BrokenImageError, Settings, opened

CPU = torch.device("cpu")


def packed(image: Image.Image, form: str = "PNG", **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def colour_of(content: bytes) -> tuple[int, ...]:
    image = opened(content)
    assert image.mode == "RGB"
    return image.getpixel((0, 0))


def test_every_form_is_read_as_rgb():
    red = Image.new("RGB", (4, 3), (250, 10, 10))
    for form in ("PNG", "BMP", "GIF"):
        assert colour_of(packed(red, form)) == (250, 10, 10)
    for form in ("JPEG", "WEBP"):
        np.testing.assert_allclose(colour_of(packed(red, form)), (250, 10, 10), atol=6)


def test_odd_modes_are_read_as_they_are_seen():
    assert colour_of(packed(Image.new("RGBA", (2, 2), (9, 9, 9, 0)))) == (255, 255, 255)
    assert colour_of(packed(Image.new("L", (2, 2), 77))) == (77, 77, 77)
    assert colour_of(packed(Image.new("1", (2, 2), 1))) == (255, 255, 255)
    assert colour_of(packed(Image.fromarray(np.full((2, 2), 128 * 256, np.uint16)))) == (128, 128, 128)
    np.testing.assert_allclose(colour_of(packed(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")), (255, 0, 0), atol=6)


def test_a_photograph_is_turned_upright():
    lying = Image.new("RGB", (40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    assert opened(packed(lying, "JPEG", exif=exif)).size == (20, 40)


def bomb(side: int) -> bytes:
    """A PNG of a few kilobytes that claims side x side points."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(bytes(10**6))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8_000, 30_000, 2**31 - 1])
def test_an_image_of_too_many_points_is_not_unpacked(side):
    with pytest.raises(BrokenImageError, match=r"points large|pixels|exceeds"):
        opened(bomb(side))


@pytest.mark.parametrize("form", ["JPEG", "PNG", "GIF", "WEBP", "BMP"])
def test_a_truncated_image_is_broken(form):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    content = packed(noise, form)
    for share in (0.02, 0.3, 0.7):
        with pytest.raises(BrokenImageError):
            opened(content[: int(len(content) * share)])


def test_what_is_no_image_is_broken():
    for content in (b"x", b"<html>not found</html>", b"%!PS-Adobe-3.0 EPSF-3.0", bytes(1000), b"\xff\xd8\xff" + bytes(50)):
        with pytest.raises(BrokenImageError):
            opened(content)


def test_damaged_images_raise_nothing_else():
    generator = np.random.default_rng(1)
    content = packed(Image.effect_noise((32, 32), 60).convert("RGB"), "JPEG")
    for _ in range(200):
        damaged = bytearray(content)
        for place in generator.integers(0, len(content), 5):
            damaged[place] = generator.integers(256)
        try:
            opened(bytes(damaged))
        except BrokenImageError:
            continue


def expected(image: Image.Image, mean, std) -> np.ndarray:
    """Averages of the channels of an image that is square already, at length 1."""
    channels = ((np.asarray(image, np.float64) / 255).mean((0, 1)) - mean) / std
    vector = CHANNELS @ channels
    return vector / np.linalg.norm(vector)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        (["n", 3, 8, 8], {}),
        (["n", 3, 8, 8], {"reduce": True}),
        (["n", 3, "h", "w"], {}),
        (["n", 8, 8, 3], {"last": True}),
        ([2, 3, 8, 8], {"reduce": True}),
        (["n", 3, 8, 8], {"reduce": True, "kind": np.float16}),
    ],
)
def test_vectors_are_the_pooled_output(tmp_path, shape, options):
    path = onnx_in(tmp_path / "tiny.onnx", shape, **options)
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    encoder = images.load(Settings(path, size=8, mean=mean, std=std, batch=3), CPU)
    generator = np.random.default_rng(0)
    some = [Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8)) for _ in range(7)]
    found = encoder.encode([encoder.prepare(image) for image in some])
    assert found.dtype == np.float32
    near = 5e-3 if options.get("kind") is np.float16 else 1e-5
    np.testing.assert_allclose(found, [expected(image, mean, std) for image in some], atol=near)


def test_an_image_is_scaled_and_cut_in_the_middle(tmp_path):
    path = onnx_in(tmp_path / "tiny.onnx", ["n", 3, 8, 8])
    encoder = images.load(Settings(path, mean=(0, 0, 0), std=(1, 1, 1)), CPU)
    wide = Image.new("RGB", (64, 16), "white")
    wide.paste((255, 0, 0), (24, 0, 40, 16))
    pixels = encoder.prepare(wide)
    assert pixels.shape == (3, 8, 8)
    assert pixels[0].min() == pixels[0].max() == 1
    assert pixels[1, :, 2:6].max() == 0


def test_weights_tell_encoders_apart(tmp_path):
    path = onnx_in(tmp_path / "tiny.onnx", ["n", 3, "h", "w"])
    own = images.load(Settings(path), CPU).identity
    assert own["size"] == images.SIDE
    (tmp_path / "tiny.onnx_data").write_bytes(b"more weights")
    assert images.load(Settings(path), CPU).identity["weights_sha256"] != own["weights_sha256"]
    assert images.load(Settings(path, size=32), CPU).identity["size"] == 32


def test_what_is_no_image_encoder_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"expected one input \[B, 3, H, W\] of floats, got pixels: tensor\(float\) \[2, 8\]"):
        images.load(Settings(numbers_file(tmp_path / "flat.onnx")), CPU)
    with pytest.raises(UserError, match=r"takes images of 8 points a side, got --size 9"):
        images.load(Settings(onnx_in(tmp_path / "tiny.onnx", ["n", 3, 8, 8]), size=9), CPU)
    with pytest.raises(UserError, match="only square ones"):
        images.load(Settings(onnx_in(tmp_path / "wide.onnx", ["n", 3, 8, 9])), CPU)
    with pytest.raises(UserError, match="no output 'other'; it has 'map'"):
        images.load(Settings(tmp_path / "tiny.onnx", output="other"), CPU)
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(UserError, match="is no ONNX file that onnxruntime can run"):
        images.load(Settings(tmp_path / "text.onnx"), CPU)
    with pytest.raises(UserError, match="There is no image encoder"):
        images.load(Settings(tmp_path / "none.onnx"), CPU)


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"pip install 'turborec\[onnx\]'"):
        images.load(Settings(tmp_path / "none.onnx"), CPU)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(UserError, match="pip install pillow"):
        opened(b"")
