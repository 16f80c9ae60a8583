"""The image encoder that needs no model, `descriptor`: which colours an image has where, and which way its edges run.

The image is scaled to `SIDE` x `SIDE` points, whatever its shape. It is described by

- colours: in each quarter of the image a histogram over 8 hues x 3 saturations x 3 brightnesses (288 numbers);
- edges: in each of 4 x 4 fields a histogram over 8 directions, weighted by how strong they are (128 numbers), after the
  histograms of oriented gradients of Dalal and Triggs (CVPR 2005), without their overlapping blocks.

Of each histogram the roots are taken (Arandjelovic and Zisserman, CVPR 2012, say why); colours and edges are each scaled to
length 1, and so is the whole. It sees that two posters look alike, not what they show.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

VERSION = 1
SIDE = 128
QUARTERS, FIELDS = 2, 4
HUES, SATURATIONS, VALUES = 8, 3, 3
DIRECTIONS = 8
WIDTH = QUARTERS**2 * HUES * SATURATIONS * VALUES + FIELDS**2 * DIRECTIONS

Floats = NDArray[np.float32]


def describe(image: "Image") -> Floats:
    """The descriptor of an RGB image: [WIDTH], of length 1."""
    from PIL.Image import Resampling

    small = image.resize((SIDE, SIDE), Resampling.BILINEAR, reducing_gap=3.0)
    both = np.concatenate([_unit(_colours(np.asarray(small.convert("HSV")))), _unit(_edges(np.asarray(small.convert("L"))))])
    return _unit(both).astype(np.float32)


def _colours(hsv: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Roots of the shares of the colours in each quarter: [QUARTERS^2 x HUES x SATURATIONS x VALUES]."""
    hue, saturation, value = (
        hsv[..., channel].astype(np.int64) * bins // 256 for channel, bins in enumerate((HUES, SATURATIONS, VALUES))
    )
    colour = (hue * SATURATIONS + saturation) * VALUES + value
    bins = HUES * SATURATIONS * VALUES
    counts = np.bincount((_part(QUARTERS) * bins + colour).ravel(), minlength=QUARTERS**2 * bins)
    return np.sqrt(counts / (SIDE / QUARTERS) ** 2)


def _edges(grey: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Roots of the strengths of the directions in each field: [FIELDS^2 x DIRECTIONS]."""
    down, right = np.gradient(grey.astype(np.float64) / 255)
    # An edge runs the same way whichever of its sides is bright: directions end at half a turn, and the first is centred at 0.
    turn = np.arctan2(down, right) / np.pi
    direction = np.floor(turn * DIRECTIONS + 0.5).astype(np.int64) % DIRECTIONS
    place = (_part(FIELDS) * DIRECTIONS + direction).ravel()
    return np.sqrt(np.bincount(place, np.hypot(down, right).ravel(), FIELDS**2 * DIRECTIONS))


def _part(parts: int) -> NDArray[np.int64]:
    """Which of parts x parts fields each point is in: [SIDE, SIDE]."""
    along = np.arange(SIDE) * parts // SIDE
    return along[:, None] * parts + along[None, :]


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    """The vector at length 1; one of zeros as it is, such as the edges of an image of one colour."""
    length: Any = np.linalg.norm(vector)
    return vector / length if length else vector
