"""The encoder of RecFormer, or of a plain Longformer, out of the checkpoints that are handed around.

Facts of their form: RecFormer's repository (AaronHeee/RecFormer, recformer/models.py) and Hugging Face's
modeling_longformer.py. Every weight is taken, or known to be none of the encoder's, or refused: of a checkpoint that is loaded
in part nobody is told that it ranks at random.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from turborec.bridges.foreign import State
from turborec.errors import UserError

WRAPPED_IN = ("state_dict", "module")
"""The keys under which Lightning and DeepSpeed keep the weights."""

ANCHOR = "embeddings.word_embeddings.weight"
"""The weight that every form has; what stands before its name stands before all of the encoder's."""

LEFT_OUT = (r"(.*\.)?lm_head\..*", r"(.*\.)?position_ids", r"(.*\.)?item_embedding\.weight", r"pooler\.dense\.(weight|bias)")
"""What some forms have besides the encoder: a head for words, a count, the items of one data set, an unread pooler."""

ATTENTION = {
    "q": "query",
    "k": "key",
    "v": "value",
    "q_first": "query_global",
    "k_first": "key_global",
    "v_first": "value_global",
}

TYPES = 4
"""Rows of RecFormer's table of types of tokens. A Longformer's has one row, which all four begin as."""


@dataclass(frozen=True)
class Encoder:
    """The weights of an encoder in our terms."""

    weights: dict[str, Tensor]
    left_out: list[str]  # weights of theirs that are none of the encoder's, or that nothing depends on
    plain: bool  # it knows no places of items in a history: a Longformer that no recommender has been made of

    def shape(self) -> dict[str, int]:
        """What the weights say of the encoder's shape; its heads and its window are not among it."""
        words, width = self.weights["words.weight"].shape
        layers = {name.split(".")[1] for name in self.weights if name.startswith("blocks.")}
        hidden = len(self.weights["blocks.0.feed_forward.up.bias"])
        positions = len(self.weights["positions.weight"])
        return {"vocabulary": words, "positions": positions, "width": width, "layers": len(layers), "hidden": hidden}


def encoder_of(checkpoint: Any, origin: Path) -> Encoder:
    """The encoder in a checkpoint, in whichever of the released forms. A UserError where a weight is strange or missing."""
    tensors = _unwrapped(checkpoint, origin)
    found = [name for name in tensors if name.endswith(ANCHOR)]
    if len(found) != 1:
        raise UserError(
            f"{origin} is no checkpoint of a RecFormer or a Longformer: expected one weight called …{ANCHOR}, got {len(found)}."
        )
    prefix = found[0].removesuffix(ANCHOR)
    state = State({name.removeprefix(prefix): tensor for name, tensor in tensors.items()}, origin)
    left_out = [name for name in state.tensors if any(re.fullmatch(known, name) for known in LEFT_OUT)]
    for name in left_out:
        state.skip(name)
    tables = {"words": "word", "positions": "position", "types": "token_type", "item_positions": "item_position"}
    theirs = {our: f"embeddings.{their}_embeddings.weight" for our, their in tables.items()}
    plain = theirs["item_positions"] not in state.tensors
    weights = {f"{our}.weight": state.take(name) for our, name in theirs.items() if not (plain and our == "item_positions")}
    if len(weights["types.weight"]) == 1:
        weights["types.weight"] = weights["types.weight"].repeat(TYPES, 1)
    weights |= state.linear("norm", "embeddings.LayerNorm")
    for block in state.blocks("encoder.layer.{}."):
        weights |= _block(state, block)
        del weights[f"blocks.{block}.attention.k_first.bias"]  # the same for all keys, so no softmax depends on it
        left_out.append(f"encoder.layer.{block}.attention.self.key_global.bias")
    if not state.blocks("encoder.layer.{}."):
        raise UserError(f"{origin} is no checkpoint of a RecFormer or a Longformer: it has no layers.")
    state.require_all_taken()
    return Encoder(weights, left_out, plain)


def _unwrapped(checkpoint: Any, origin: Path) -> dict[str, Tensor]:
    while isinstance(checkpoint, Mapping) and (inner := next((key for key in WRAPPED_IN if key in checkpoint), None)):
        checkpoint = checkpoint[inner]
    if not isinstance(checkpoint, Mapping):
        raise UserError(f"{origin} is no checkpoint of an encoder: expected weights by name, got {type(checkpoint).__name__}.")
    return {str(name): value for name, value in checkpoint.items() if isinstance(value, Tensor)}


def _block(state: State, number: int) -> dict[str, Tensor]:
    ours, theirs = f"blocks.{number}", f"encoder.layer.{number}"
    weights: dict[str, Tensor] = {}
    for our, their in ATTENTION.items():
        weights |= state.linear(f"{ours}.attention.{our}", f"{theirs}.attention.self.{their}")
    weights |= state.linear(f"{ours}.attention.o", f"{theirs}.attention.output.dense")
    weights |= state.linear(f"{ours}.attention_norm", f"{theirs}.attention.output.LayerNorm")
    weights |= state.linear(f"{ours}.feed_forward.up", f"{theirs}.intermediate.dense")
    weights |= state.linear(f"{ours}.feed_forward.down", f"{theirs}.output.dense")
    return weights | state.linear(f"{ours}.feed_forward_norm", f"{theirs}.output.LayerNorm")
