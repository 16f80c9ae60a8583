"""Pretrained encoders: in files, folders, runs, a package, or on the Hugging Face hub; and an encoder that begins as one."""

import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from turborec.bridges import pickled
from turborec.bridges.recformer import OURS, encoder_of
from turborec.engine import checkpoint, log
from turborec.errors import UserError
from turborec.features.tokens import require_same_words
from turborec.nn.longformer import TextEncoder
from turborec.nn.text import minilm, on_hub

logger = logging.getLogger("turborec")

PLACES = "item_positions.weight"

FILES = ("model.safetensors", "pytorch_model.bin")
"""Of a folder that holds an encoder."""


def begin_with(encoder: TextEncoder, name: str, tokenizer: str) -> None:
    """Give an encoder the weights of the checkpoint that is named (`found_in`), for words that tokenizer.json `tokenizer` cuts.

    A UserError where the checkpoint is of another shape, or of other words.
    """
    theirs, path = found_in(name)
    require_same_words(path if path.is_dir() else path.parent, tokenizer)
    found, own = encoder_of(theirs, path), encoder.state_dict()
    weights = {name: weight for name, weight in found.weights.items() if name in own}
    for name in ("positions.weight", PLACES):  # of which there may be more than are needed
        if name in weights:
            weights[name] = weights[name][: len(own[name])]
    for name, weight in weights.items():
        if weight.shape != own[name].shape:
            places = f", its max_length {len(found.weights[PLACES]) - 1}" * (PLACES in found.weights)
            raise UserError(
                f"model.pretrained: {name} has the shape {list(weight.shape)} in {path}, and {list(own[name].shape)} here: "
                f"the checkpoint is one of {found.shape()}{places}. Give model, tokenizer and batches.max_length that shape."
            )
    kept = own.keys() - weights.keys()
    if kept - {PLACES}:
        raise UserError(
            f"model.pretrained: {path} has no {min(kept)}: give model its norm (released checkpoints: post) and as many layers "
            "as it has. With masked_words it must have been trained with them, or be a released one."
        )
    if more := {name for name in found.weights if name.startswith("blocks.")} - own.keys() - _unread(encoder):
        raise UserError(f"model.pretrained: {path} has {min(more)}, and this model has no such layer.")
    if found.plain:  # what it has not learnt begins at nothing, so that a single text is what it was trained to read
        weights[PLACES] = torch.zeros_like(own[PLACES])
    encoder.load_state_dict({**own, **weights})
    told = "; places of items in a history begin at zero" * found.plain
    logger.info(f"The encoder begins with {len(weights)} weights of {path}{told}")


def _unread(encoder: TextEncoder) -> set[str]:
    """Names of weights that checkpoints have, and that nothing but the states of other tokens would depend on."""
    last = f"blocks.{encoder.shape.layers - 1}.attention"
    return {f"{last}.{part}.{kind}" for part in "qkv" for kind in ("weight", "bias")}


def found_in(name: str) -> tuple[Any, Path]:
    """A checkpoint by its name: a file of PyTorch's or of safetensors, a folder with one, a run, `minilm`, or the hub."""
    path = minilm() if name == "minilm" else Path(name).expanduser()
    if (path / "recipe.yaml").is_file():
        if (chosen := checkpoint.load_chosen(path / "checkpoints")) is None:
            raise UserError(f"{path} has no validated weights: expected a run of a text model, an epoch of which is validated.")
        if f"{OURS}words.weight" not in chosen:
            raise UserError(
                f"model.pretrained: the run in {path} has no encoder of texts to give: it holds adapters alone, of which "
                "`turborec merge` makes a whole model, or is one of another model."
            )
        if (state := log.state_of(path)) not in (None, "finished"):
            logger.warning(f"The run in {path} is {state}: these are the weights that it had chosen so far.")
        return chosen, path
    if path.is_dir():
        path = next((path / file for file in FILES if (path / file).is_file()), path / FILES[0])
    elif not path.exists():
        if not on_hub(name):
            raise UserError(
                f"model.pretrained: there is no {path}; expected a checkpoint, its folder, a run, or a name on the hub."
            )
        path = _fetched(name)
    if path.suffix != ".safetensors":
        return pickled.read(path), path
    try:
        return load_file(path), path
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read as weights in safetensors ({error}).") from error


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
