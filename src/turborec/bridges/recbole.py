"""SASRec and BERT4Rec of RecBole (1.2), from what its trainer saves: a dictionary with `config` and `state_dict`.

Facts of their architecture: recbole/model/layers.py, model/sequential_recommender/sasrec.py and bert4rec.py. Row 0 of the
table is padding, the last of BERT4Rec the mask. The checkpoint does not hold the raw ids of items.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from turborec.bridges.foreign import Imported, State, Table, member, rate, require, text, whole

IDS = 'json.dump(dataset.field2token_id["item_id"], open("items.json", "w"))'
"""How a user of the library writes the rows of the items down."""


def convert(checkpoint: Any, origin: Path) -> Imported:
    """The model in a checkpoint, a UserError where it is another one."""
    settings = member(checkpoint, origin, "config", "final_config_dict")
    state = State(member(checkpoint, origin, "state_dict"), origin)
    name = text(origin, {"model": member(checkpoint, origin, "config", "model")}, "model")
    require(origin, {"model": name}, {"model": ("SASRec", "BERT4Rec")})
    given = text(origin, settings, "hidden_act")
    bert, activation = name == "BERT4Rec", {"swish": "silu"}.get(given, given)
    known = ("gelu",) if bert else ("gelu", "relu", "silu", "tanh", "sigmoid")
    require(origin, {"hidden_act": activation}, {"hidden_act": known})
    layers = whole(origin, settings, "n_layers")
    weights = state.linear("embedding_norm", "LayerNorm")
    for block in range(layers):
        weights |= _block(state, block)
    items, positions = state.take("item_embedding.weight"), state.take("position_embedding.weight")
    model: dict[str, Any] = {
        **{"kind": name.lower(), "norm": "post", "embedding_norm": True, "count_from": "start"},
        **{"width": items.shape[1], "layers": layers, "heads": whole(origin, settings, "n_heads")},
        **{"hidden": len(weights["blocks.0.feed_forward.up.bias"]), "dropout": rate(origin, settings, "hidden_dropout_prob")},
        "norm_eps": rate(origin, settings, "layer_norm_eps"),
    }
    if bert:
        weights |= state.linear("dense", "output_ffn") | state.linear("dense_norm", "output_ln")
        bias = state.take("output_bias")
        tables = {"items.weight": Table(items[:-1], items[-1]), "bias": Table(bias, torch.zeros(()))}
        # Its last place holds the mask, and the oldest event makes room for it, whether there is room or not.
        weights["positions.weight"] = torch.cat([positions, torch.zeros_like(positions[:1])])
        model |= {"skip_first": True}
    else:
        tables = {"items.weight": Table(items, torch.zeros_like(items[0]))}
        weights["positions.weight"] = positions
        model |= {"activation": activation}
    state.require_all_taken()
    return Imported(model, len(positions), weights, tables, None, padding=0)


def _block(state: State, number: int) -> dict[str, Tensor]:
    ours, theirs = f"blocks.{number}", f"trm_encoder.layer.{number}"
    attention, forward = f"{theirs}.multi_head_attention", f"{theirs}.feed_forward"
    weights: dict[str, Tensor] = {}
    for our, their in (("q", "query"), ("k", "key"), ("v", "value"), ("o", "dense")):
        weights |= state.linear(f"{ours}.attention.{our}", f"{attention}.{their}")
    for our, their in (("up", "dense_1"), ("down", "dense_2")):
        weights |= state.linear(f"{ours}.feed_forward.{our}", f"{forward}.{their}")
    weights |= state.linear(f"{ours}.attention_norm", f"{attention}.LayerNorm")
    return weights | state.linear(f"{ours}.feed_forward_norm", f"{forward}.LayerNorm")
