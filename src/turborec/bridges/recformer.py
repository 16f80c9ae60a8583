"""The encoder of RecFormer, of a plain Longformer, or of a BERT, out of the checkpoints that are handed around.

Facts of their form: RecFormer's repository (AaronHeee/RecFormer, recformer/models.py) and Hugging Face's
modeling_longformer.py, modeling_bert.py and modeling_roberta.py. A BERT is a Longformer whose first token is projected as all
others are, and whose window is wide enough: with the same weights it is the same numbers. Every weight is taken, or known to
be none of the encoder's, or refused: of a checkpoint that is loaded in part nobody is told that it ranks at random.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from turborec.bridges.foreign import State
from turborec.errors import UserError

WRAPPED_IN = ("state_dict", "module")
"""The keys under which Lightning and DeepSpeed keep the weights."""

ANCHOR = "embeddings.word_embeddings.weight"
"""The weight that every form has; what stands before its name stands before all of the encoder's."""

OURS = "encoder."
"""What stands before the names of an encoder's weights in a run of a text model."""

LEFT_OUT = (
    *(r"(.*\.)?lm_head\..*", r"cls\..*", r"(.*\.)?position_ids", r"(.*\.)?item_embedding\.weight"),
    r"pooler\.dense\.(weight|bias)",
)
"""What some forms have besides the encoder: a head for words, a count, the items of one data set, an unread pooler."""

ATTENTION = {
    "q": "query",
    "k": "key",
    "v": "value",
    "q_first": "query_global",
    "k_first": "key_global",
    "v_first": "value_global",
}

AS_ALL_OTHERS = {our: their for our, their in ATTENTION.items() if not our.endswith("_first")}
"""Of encoders whose first token is one like others."""

BEFORE = 2
"""Rows of a table of positions that RoBERTa's kin, and we, have before that of a text's first token."""

TYPES = 4
"""Rows of RecFormer's table of types of tokens. A Longformer's has one row, which all four begin as, and a BERT's two."""


@dataclass(frozen=True)
class Encoder:
    """The weights of an encoder in our terms."""

    weights: dict[str, Tensor]
    left_out: list[str]  # weights of theirs that are none of the encoder's, or that nothing depends on
    plain: bool  # it knows no places of items in a history: an encoder that no recommender has been made of

    def shape(self) -> dict[str, int]:
        """What the weights say of the encoder's shape; its heads and its window are not among it."""
        words, width = self.weights["words.weight"].shape
        layers = {name.split(".")[1] for name in self.weights if name.startswith("blocks.")}
        hidden = len(self.weights["blocks.0.feed_forward.up.bias"])
        positions = len(self.weights["positions.weight"])
        return {"vocabulary": words, "positions": positions, "width": width, "layers": len(layers), "hidden": hidden}


def encoder_of(checkpoint: Any, origin: Path) -> Encoder:
    """The encoder in a checkpoint, in our form or in whichever of the released ones.

    A UserError where a weight is strange or missing.
    """
    tensors = _unwrapped(checkpoint, origin)
    if f"{OURS}words.weight" in tensors:
        weights = {name.removeprefix(OURS): tensor for name, tensor in tensors.items() if name.startswith(OURS)}
        return Encoder(weights, sorted(name for name in tensors if not name.startswith(OURS)), plain=False)
    found = [name for name in tensors if name.endswith(ANCHOR)]
    if len(found) != 1:
        raise UserError(
            f"{origin} is no checkpoint of a RecFormer, a Longformer or a BERT: expected one weight called …{ANCHOR}, got "
            f"{len(found)}."
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
    types = weights["types.weight"]
    bert = plain and len(types) == 2
    if bert:  # whose positions are counted from 0, where RoBERTa's kin has two rows before the first
        weights["positions.weight"] = F.pad(weights["positions.weight"], (0, 0, BEFORE, 0))
    if len(types) < TYPES:  # the first of which plain texts have
        weights["types.weight"] = types[:1].repeat(TYPES, 1)
    weights |= state.linear("norm", "embeddings.LayerNorm")
    everywhere = not plain or any("_global." in name for name in state.tensors)
    for block in state.blocks("encoder.layer.{}."):
        weights |= _block(state, block, ATTENTION if everywhere else AS_ALL_OTHERS)
        if not everywhere:
            at = f"blocks.{block}.attention"
            weights |= {f"{at}.{p}_first.{kind}": weights[f"{at}.{p}.{kind}"] for p in "qkv" for kind in ("weight", "bias")}
        del weights[f"blocks.{block}.attention.k_first.bias"]  # the same for all keys, so no softmax depends on it
        left_out += [f"encoder.layer.{block}.attention.self.key_global.bias"] * everywhere
    if not state.blocks("encoder.layer.{}."):
        raise UserError(f"{origin} is no checkpoint of a RecFormer, a Longformer or a BERT: it has no layers.")
    state.require_all_taken()
    return Encoder(weights, left_out, plain)


def _unwrapped(checkpoint: Any, origin: Path) -> dict[str, Tensor]:
    while isinstance(checkpoint, Mapping) and (inner := next((key for key in WRAPPED_IN if key in checkpoint), None)):
        checkpoint = checkpoint[inner]
    if not isinstance(checkpoint, Mapping):
        raise UserError(f"{origin} is no checkpoint of an encoder: expected weights by name, got {type(checkpoint).__name__}.")
    return {str(name): value for name, value in checkpoint.items() if isinstance(value, Tensor)}


def _block(state: State, number: int, attention: Mapping[str, str]) -> dict[str, Tensor]:
    ours, theirs = f"blocks.{number}", f"encoder.layer.{number}"
    weights: dict[str, Tensor] = {}
    for our, their in attention.items():
        weights |= state.linear(f"{ours}.attention.{our}", f"{theirs}.attention.self.{their}")
    weights |= state.linear(f"{ours}.attention.o", f"{theirs}.attention.output.dense")
    weights |= state.linear(f"{ours}.attention_norm", f"{theirs}.attention.output.LayerNorm")
    weights |= state.linear(f"{ours}.feed_forward.up", f"{theirs}.intermediate.dense")
    weights |= state.linear(f"{ours}.feed_forward.down", f"{theirs}.output.dense")
    return weights | state.linear(f"{ours}.feed_forward_norm", f"{theirs}.output.LayerNorm")
