"""Where pretrained encoders lie: in files, folders, runs, a package, or on the Hugging Face hub."""

import json
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file

from turborec.bridges import pickled
from turborec.engine import checkpoint
from turborec.errors import UserError
from turborec.nn.text import minilm

FILES = ("model.safetensors", "pytorch_model.bin")
"""Of a folder that holds an encoder."""


def found_in(name: str) -> tuple[Any, Path]:
    """A checkpoint by its name: a file of PyTorch's or of safetensors, a folder with one, a run, `minilm`, or the hub."""
    path = minilm() if name == "minilm" else Path(name).expanduser()
    if (path / "checkpoints").is_dir():
        if (chosen := checkpoint.load_chosen(path / "checkpoints")) is None:
            raise UserError(f"{path} has no validated weights: expected a run of a text model, an epoch of which is validated.")
        return chosen, path
    if path.is_dir():
        path = next((path / file for file in FILES if (path / file).is_file()), path / FILES[0])
    elif not path.exists() and name.count("/") == 1:
        path = _fetched(name)
    if path.suffix != ".safetensors":
        return pickled.read(path), path
    try:
        return load_file(path), path
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as weights in safetensors ({error}).") from error


def require_same_words(path: Path, tokenizer: str) -> None:
    """Compare a tokenizer.json with the one that lies beside a checkpoint, if any: a UserError where their words differ."""
    beside = (path if path.is_dir() else path.parent) / "tokenizer.json"
    if not tokenizer or not beside.is_file():
        return
    theirs, ours = (json.loads(text)["model"] for text in (beside.read_text(encoding="utf-8"), tokenizer))
    if theirs.get("vocab") != ours.get("vocab"):
        raise UserError(
            f"model.pretrained: {path} was trained with the words of {beside}, and model.texts.tokenizer has others: set it to "
            f"{beside.parent}."
        )


def _fetched(name: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download

        return Path(hf_hub_download(name, FILES[0]))
    except ImportError as error:
        raise UserError(
            f"{name} on the Hugging Face hub needs the package huggingface_hub: pip install 'turborec[text]'."
        ) from error
    except Exception as error:  # of the network or of the hub, as many kinds as there are ways to fail
        told = " ".join(str(error).split())[:200]
        raise UserError(
            f"{name} is no file or folder here, and no model with {FILES[0]} on the Hugging Face hub ({told})."
        ) from error
