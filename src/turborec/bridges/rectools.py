"""SASRec and BERT4Rec of RecTools (0.19), from a checkpoint of Lightning: `hyper_parameters` and `state_dict`.

Facts of their architecture: rectools/models/nn/transformers. The first rows of the table are PAD and, of BERT4Rec, MASK; the
raw ids of all rows are in the checkpoint. Its SASRec does not hide padding by default: attention sees states of zero there.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from turborec.bridges.foreign import Imported, State, Table, member, nowhere, rate, require, texts, whole
from turborec.errors import UserError

IDS = ""
"""Nothing has to be written down: the checkpoint has the raw ids."""

_MODULE = "rectools.models.nn.transformers"
_COMMON = {
    "cls": ("SASRecModel", "BERT4RecModel"),
    "item_net_constructor_type": ("rectools.models.nn.item_net.SumOfEmbeddingsConstructor",),
    "pos_encoding_type": (f"{_MODULE}.net_blocks.LearnableInversePositionalEncoding",),
    "similarity_module_type": (f"{_MODULE}.similarity.DistanceSimilarityModule",),
    "similarity_module_kwargs": (None, {}, {"distance": "dot"}),
    "backbone_type": (f"{_MODULE}.torch_backbone.TransformerTorchBackbone",),
    "pos_encoding_kwargs": (None, {}, {"use_scale_factor": False}),
}
_SASREC = {"transformer_layers_type": (f"{_MODULE}.sasrec.SASRecTransformerLayers",), "use_causal_attn": (True,)}
_BERT4REC = {
    "transformer_layers_type": (f"{_MODULE}.net_blocks.PreLNTransformerLayers",),
    "use_causal_attn": (False,),
    "use_key_padding_mask": (True,),
}


def convert(checkpoint: Any, origin: Path) -> Imported:
    """The model in a checkpoint, a UserError where it is another one."""
    facts = member(checkpoint, origin, "hyper_parameters")
    settings = member(facts, origin, "model_config")
    state = State(member(checkpoint, origin, "state_dict"), origin)
    bert = settings.get("cls") == "BERT4RecModel"
    require(origin, settings, {**_COMMON, **(_BERT4REC if bert else _SASREC)})
    layers = whole(origin, settings, "n_blocks")
    items = state.take("torch_model.item_model.item_net_blocks.0.ids_emb.weight")
    known = texts(member(facts, origin, "item_external_ids"), origin)
    extra = len(member(facts, origin, "item_extra_tokens"))
    if len(known) != len(items) or extra != 1 + bert:
        raise UserError(f"{origin} cannot be imported: it names {len(known)} items, and its table has {len(items)} rows.")
    weights: dict[str, Tensor] = {}
    for block in range(layers):
        weights |= _block(state, block, bert)
    named = "torch_model.pos_encoding_layer.pos_emb.weight"
    placed = settings.get("use_pos_emb", True)
    none = nowhere(origin, settings, "session_max_len", items.shape[1])
    weights["positions.weight"] = state.take(named) if placed else none
    model: dict[str, Any] = {
        **{"kind": "bert4rec" if bert else "sasrec", "width": items.shape[1], "layers": layers},
        **{"heads": whole(origin, settings, "n_heads"), "hidden": len(weights["blocks.0.feed_forward.up.bias"])},
        **{"dropout": rate(origin, settings, "dropout_rate")},
    }
    tables = {"items.weight": Table(items, items[1] if bert else torch.zeros_like(items[0]))}
    if bert:
        model |= {"embedding_norm": False, "final_norm": False, "head": False}
        tables["bias"] = Table(torch.zeros(len(items)), torch.zeros(()))
    else:
        seen = not settings.get("use_key_padding_mask")
        model |= {"norm": "query", "activation": "relu", "blanks": "seen" if seen else "hidden"}
        weights |= state.linear("norm", "torch_model.transformer_layers.last_layernorm")
    state.require_all_taken()
    ids = {text: row for row, text in enumerate(known) if row >= extra}
    return Imported(model, len(weights["positions.weight"]) - bert, weights, tables, ids)


def _block(state: State, number: int, bert: bool) -> dict[str, Tensor]:
    ours, theirs = f"blocks.{number}", f"torch_model.transformer_layers.transformer_blocks.{number}"
    norms = ("layer_norm_1", "layer_norm_2") if bert else ("q_layer_norm", "ff_layer_norm")
    weights = state.attention(f"{ours}.attention", f"{theirs}.multi_head_attn")
    for our, their in (("attention_norm", norms[0]), ("feed_forward_norm", norms[1])):
        weights |= state.linear(f"{ours}.{our}", f"{theirs}.{their}")
    for our, their in (("up", "ff_linear_1"), ("down", "ff_linear_2")):
        weights |= state.linear(f"{ours}.feed_forward.{our}", f"{theirs}.feed_forward.{their}")
    return weights
