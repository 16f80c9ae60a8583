"""The encoders by one interface: contents go in, vectors come out, and the cache is told all that they depend on."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

from turborec.features import descriptor, hashed
from turborec.nn import images, text

if TYPE_CHECKING:
    from PIL.Image import Image

C = TypeVar("C", str, bytes)
Floats = NDArray[np.float32]

Encode = Callable[[Sequence[C]], tuple[Floats, dict[int, str]]]
"""Contents to vectors [N, D], and what is wrong with those at these places, whose vectors mean nothing."""


@dataclass(frozen=True)
class Encoder(Generic[C]):
    """An encoder that reads each content by itself."""

    identity: Mapping[str, Any]  # all that a vector depends on beside its content
    versions: Mapping[str, str]  # of the packages that take part
    encode: Encode[C]
    at_a_time: int  # contents that are encoded, and cached, together


def of_text(settings: text.Settings, device: torch.device, dtype: torch.dtype) -> Encoder[str]:
    """A kept transformer; a UserError where it cannot be loaded."""
    loaded = text.load(settings, device, dtype)
    return Encoder(loaded.identity, text.versions(), lambda contents: (loaded.encode(contents), {}), 1024)


def of_descriptor() -> Encoder[bytes]:
    """Colours and edges, as `descriptor` says."""
    identity = {"kind": "image", "name": "descriptor", "code": descriptor.VERSION, "reader": images.VERSION, "length": 1}

    def encode(prepared: Sequence[Floats]) -> Floats:
        return np.stack(prepared)

    return Encoder(identity, images.reader_version(), _of_files(descriptor.describe, encode), 256)


def of_onnx(settings: images.Settings, device: torch.device) -> Encoder[bytes]:
    """The model in an ONNX file; a UserError where it cannot be loaded."""
    loaded = images.load(settings, device)
    return Encoder(loaded.identity, images.versions(), _of_files(loaded.prepare, loaded.encode), 256)


def identity_of_hashed(width: int) -> dict[str, Any]:
    """What `hashed` depends on beside the texts, all of them."""
    return {
        "kind": "text",
        "name": "hashed",
        "width": width,
        "bins": hashed.BINS,
        "folded": hashed.FOLDED,
        "parts": list(hashed.PARTS),
        "length": 1,
        "code": hashed.VERSION,
    }


def _of_files(prepare: "Callable[[Image], NDArray[Any]]", encode: Callable[[Sequence[NDArray[Any]]], Floats]) -> Encode[bytes]:
    """What encodes the bytes of images. Each is made small before the next is unpacked."""

    def run(contents: Sequence[bytes]) -> tuple[Floats, dict[int, str]]:
        prepared, places, broken = [], [], {}
        for place, content in enumerate(contents):
            try:
                prepared.append(prepare(images.opened(content)))
                places.append(place)
            except images.BrokenImageError as error:
                broken[place] = str(error)
        if not prepared:
            return np.zeros((len(contents), 0), np.float32), broken
        found = encode(prepared)
        vectors = np.zeros((len(contents), found.shape[1]), np.float32)
        vectors[places] = found
        return vectors, broken

    return run
