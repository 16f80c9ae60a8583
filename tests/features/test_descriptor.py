import numpy as np
import pytest
from PIL import Image

from turborec.features.descriptor import DIRECTIONS, FIELDS, WIDTH, describe

COLOURS = WIDTH - FIELDS**2 * DIRECTIONS


def stripes(across: bool, period: int = 8) -> Image.Image:
    bright = np.arange(128) // (period // 2) % 2 * 255
    grey = np.broadcast_to(bright[:, None] if across else bright[None, :], (128, 128))
    return Image.fromarray(np.ascontiguousarray(grey).astype(np.uint8)).convert("RGB")


def test_an_image_of_one_colour_has_that_colour_in_every_quarter_and_no_edge():
    vector = describe(Image.new("RGB", (300, 200), (255, 0, 0)))
    assert vector.dtype == np.float32
    assert vector.shape == (416,)
    red = vector[:COLOURS].reshape(4, -1)
    assert np.flatnonzero(red.any(0)).tolist() == [2 * 3 + 2]  # hue 0, most saturation, most brightness
    np.testing.assert_allclose(red.max(1), 0.5, rtol=1e-6)
    assert not vector[COLOURS:].any()


def test_a_quarter_has_the_colours_that_are_in_it():
    image = Image.new("RGB", (128, 128), "black")
    image.paste((0, 255, 0), (64, 0, 128, 64))  # above, on the right
    green = describe(image)[:COLOURS].reshape(4, 8, 9)[:, 2]  # hue 85 of 256
    assert green.any(1).tolist() == [False, True, False, False]


@pytest.mark.parametrize(("across", "direction"), [(False, 0), (True, DIRECTIONS // 2)])
def test_edges_run_the_way_they_run(across, direction):
    edges = describe(stripes(across))[COLOURS:].reshape(-1, DIRECTIONS)
    assert (edges[:, direction] > 0).all()
    assert not np.delete(edges, direction, axis=1).any()


def test_alike_images_are_nearer_than_others():
    one, brighter, other = (
        describe(stripes(True)),
        describe(stripes(True).point(lambda v: v * 9 // 10)),
        describe(stripes(False)),
    )
    assert one @ brighter > one @ other + 0.2
    for vector in (one, brighter, other):
        np.testing.assert_allclose(np.linalg.norm(vector), 1, rtol=1e-5)
