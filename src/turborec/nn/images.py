"""Images as vectors, by any encoder in an ONNX file (extra `onnx`), and how image files are read; letters as in `text`.

Nothing in an image or an ONNX file is executed; no other file imports onnxruntime.
"""

import hashlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from glob import escape
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from turborec.errors import UserError

if TYPE_CHECKING:
    from PIL.Image import Image

VERSION = 1
"""Of what is computed here; vectors of another are not found in caches."""

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
"""What is read: Pillow's readers of other formats run other programs or are hardly ever used."""

MOST_POINTS = 50_000_000
"""Of an image: one of more would take gigabytes, and is more likely meant to."""

SIDE = 224
"""Points that an image is scaled to where the encoder does not say."""

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

Triple = tuple[float, float, float]
Floats = NDArray[np.float32]


class BrokenImageError(Exception):
    """Why the bytes of an image are none that can be used."""


def opened(content: bytes) -> "Image":
    """The image in these bytes, upright, as RGB; transparent places are white. A BrokenImageError where there is none.

    Of several frames the first is taken. Its size is looked at before its points are unpacked.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise UserError("Reading images needs the package Pillow: pip install pillow.") from error
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of what is refused here, and of harmless oddities
            with Image.open(BytesIO(content), formats=FORMATS) as image:
                if image.width * image.height > MOST_POINTS:
                    raise BrokenImageError(
                        f"it is {image.width:,} x {image.height:,} points large, more than {MOST_POINTS:,} in all"
                    )
                upright: Image.Image = ImageOps.exif_transpose(image)
                return _rgb(upright)
    except BrokenImageError:
        raise
    except Exception as error:  # of broken bytes, Pillow's readers raise whatever they stumble over
        told = " ".join(str(error).split())[:200]
        if "cannot identify" in told:
            told = f"it is no {', '.join(FORMATS)}"
        raise BrokenImageError(told or type(error).__name__) from error


def _rgb(image: "Image") -> "Image":
    from PIL import Image

    if image.mode.startswith("I;16"):  # Pillow would cut 16 bits off at 255
        return Image.fromarray((np.asarray(image) // 256).astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        layered = image.convert("RGBA")
        white = Image.new("RGBA", layered.size, "white")
        return Image.alpha_composite(white, layered).convert("RGB")
    return image.convert("RGB")


@dataclass(frozen=True)
class Settings:
    """Which ONNX file, and how images are given to it."""

    model: Path
    size: int | None = None  # points of a side; None: as the file says, or else SIDE
    mean: Triple = IMAGENET_MEAN  # of red, green and blue between 0 and 1
    std: Triple = IMAGENET_STD
    batch: int = 64
    output: str | None = None  # None: the file's first


class ImageEncoder:
    """An ONNX model with one input [B, 3, H, W] or [B, H, W, 3], whose output is pooled to one vector of length 1 an image.

    Images are scaled so that their shorter side fits, and cut in the middle to a square. An output [B, D] is taken as it is,
    [B, L, D] averaged over L, and [B, D, H, W] over H and W.
    """

    def __init__(self, session: Any, settings: Settings) -> None:
        self._session, self._settings = session, settings
        self._input, self._last, fixed, side = _expected(session, settings.model)
        self._batch = fixed or settings.batch
        self._fixed = fixed is not None
        if settings.size and side and settings.size != side:
            raise UserError(f"{settings.model} takes images of {side} points a side, got --size {settings.size}.")
        self._size = settings.size or side or SIDE
        outputs = [one.name for one in session.get_outputs()]
        self._output = settings.output or outputs[0]
        if self._output not in outputs:
            raise UserError(f"{settings.model} has no output {self._output!r}; it has {', '.join(map(repr, outputs))}.")
        self.identity: dict[str, Any] = {
            "kind": "image",
            "name": settings.model.name,
            "weights_sha256": _sha256_of(settings.model),
            "size": self._size,
            "mean": list(settings.mean),
            "std": list(settings.std),
            "output": self._output,
            "provider": session.get_providers()[0],
            "length": 1,
            "code": VERSION,
        }

    def prepare(self, image: "Image") -> NDArray[Any]:
        """An RGB image as the model takes it: [3, H, W] or [H, W, 3]."""
        from PIL import ImageOps
        from PIL.Image import Resampling

        square = ImageOps.fit(image, (self._size, self._size), Resampling.BICUBIC)
        mean, std = (np.array(each, np.float32) for each in (self._settings.mean, self._settings.std))
        values = ((np.asarray(square, np.float32) / 255 - mean) / std).astype(np.float32, copy=False)
        shaped = values if self._last else values.transpose(2, 0, 1)
        return shaped.astype(np.float16) if "float16" in self._input.type else shaped

    def encode(self, pixels: Sequence[NDArray[Any]]) -> Floats:
        """The vectors of prepared images: [N, D]. A UserError where the model's output is not as the class says."""
        return np.concatenate([self._encoded(pixels[at : at + self._batch]) for at in range(0, len(pixels), self._batch)])

    def _encoded(self, some: Sequence[NDArray[Any]]) -> Floats:
        pixels = np.stack(some)
        if self._fixed and len(some) < self._batch:
            pixels = np.concatenate([pixels, np.zeros((self._batch - len(some), *pixels.shape[1:]), pixels.dtype)])
        try:
            (found,) = self._session.run([self._output], {self._input.name: pixels})
        except Exception as error:  # onnxruntime's own exceptions have no common base
            told = " ".join(str(error).split())[:300]
            raise UserError(f"{self._settings.model} cannot encode images of {self._size} points a side: {told}") from error
        states: Floats = np.asarray(found, np.float32)[: len(some)]
        if states.ndim not in (2, 3, 4):
            raise UserError(
                f"{self._settings.model}: expected an output [B, D], [B, L, D] or [B, D, H, W], but {self._output!r} has the "
                f"shape {list(np.shape(found))}; name another with --output."
            )
        pooled: Floats = states.mean((2, 3)) if states.ndim == 4 else states.mean(1) if states.ndim == 3 else states
        length = np.linalg.norm(pooled, axis=1, keepdims=True)
        vectors: Floats = pooled / np.maximum(length, np.float32(1e-30))
        return vectors


def load(settings: Settings, device: torch.device) -> ImageEncoder:
    """The encoder in an ONNX file, on the accelerator where onnxruntime can use it; a UserError where it is none."""
    try:
        import onnxruntime
    except ImportError as error:
        raise UserError(
            f"The image encoder {settings.model} needs the package onnxruntime: pip install 'turborec[onnx]'. "
            "Or take the encoder descriptor, which needs none."
        ) from error
    if not settings.model.is_file():
        raise UserError(f"There is no image encoder {settings.model}: expected descriptor, or an ONNX file.")
    wanted = ["CUDAExecutionProvider"] if device.type == "cuda" else []
    usable = [name for name in wanted if name in onnxruntime.get_available_providers()]
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            str(settings.model), sess_options=options, providers=[*usable, "CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's own exceptions have no common base
        told = " ".join(str(error).split())[:300]
        raise UserError(f"{settings.model} is no ONNX file that onnxruntime can run: {told}") from error
    return ImageEncoder(session, settings)


def versions() -> dict[str, str]:
    """The packages that encode, and that read images."""
    import onnxruntime

    return {"onnxruntime": onnxruntime.__version__, **reader_version()}


def reader_version() -> Mapping[str, str]:
    """The package that reads images: JPEG may be unpacked a shade differently by another."""
    import PIL

    return {"pillow": PIL.__version__}


def _expected(session: Any, path: Path) -> tuple[Any, bool, int | None, int | None]:
    """The input, whether its channels come last, and where the file fixes them the images of a batch and their side."""
    inputs = session.get_inputs()
    shape = inputs[0].shape if len(inputs) == 1 else []
    last = len(shape) == 4 and shape[3] == 3 and shape[1] != 3
    if len(shape) != 4 or inputs[0].type not in ("tensor(float)", "tensor(float16)"):
        told = "; ".join(f"{one.name}: {one.type} {one.shape}" for one in inputs)
        raise UserError(f"{path} is no image encoder: expected one input [B, 3, H, W] of floats, got {told}.")
    high, wide = shape[1:3] if last else shape[2:4]
    if isinstance(high, int) and isinstance(wide, int) and high != wide:
        raise UserError(f"{path} takes images of {high} x {wide} points; only square ones can be given to it.")
    side = next((each for each in (high, wide) if isinstance(each, int)), None)
    return inputs[0], last, shape[0] if isinstance(shape[0], int) else None, side


def _sha256_of(model: Path) -> str:
    """Of the file; where large weights lie beside it under its name and more, of the hashes of all."""
    names = sorted(path for path in model.parent.glob(f"{escape(model.name)}*") if path.is_file())
    hashes = []
    for path in names:
        with path.open("rb") as file:
            hashes.append(hashlib.file_digest(file, "sha256").hexdigest())
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()
