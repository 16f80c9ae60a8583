"""SasRec and Bert4Rec of RePlay (0.22), from a checkpoint of Lightning: its `state_dict`, of Bert4Rec also `hyper_parameters`.

Facts of their architecture: replay/nn/sequential/sasrec (`SasRec.from_params`) and replay/models/nn/sequential/bert4rec. Items
are rows as the user's label encoder numbered them; the checkpoint has no raw ids, and of SasRec not the number of heads.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from turborec.bridges.foreign import Imported, State, Table, member, nowhere, rate, require, whole
from turborec.errors import UserError

IDS = 'json.dump({str(raw): int(row) for raw, row in encoder.mapping["item_id"].items()}, open("items.json", "w"))'
"""How a user of the library writes the rows of the items down."""


def convert(checkpoint: Any, origin: Path) -> Imported:
    """The model in a checkpoint, a UserError where it is another one."""
    tensors = member(checkpoint, origin, "state_dict")
    if "model.body.embedding_aggregator.pe.weight" in tensors:
        # A wrapper for batches of like lengths, which changes no result, goes around the encoder.
        return _sasrec(State({n.replace(".encoder.encoder.", ".encoder."): t for n, t in tensors.items()}, origin))
    if "_model.item_embedder.mask_embedding.weight" in tensors:
        return _bert4rec(State(tensors, origin), member(checkpoint, origin, "hyper_parameters"))
    raise UserError(f"{origin} is neither a SasRec (replay.nn) nor a Bert4Rec of RePlay.")


def _table(state: State, begin: str, end: str) -> Tensor:
    """The table of the only categorical feature, which is the item."""
    found = [name for name in state.tensors if name.startswith(begin) and name.endswith(end)]
    if len(found) != 1:
        raise UserError(
            f"{state.origin} cannot be imported: it has {len(found)} features of events, and only the item is known."
        )
    return state.take(found[0])


def _sasrec(state: State) -> Imported:
    items = _table(state, "model.body.embedder.feature_embedders.", ".emb.weight")
    weights = {"positions.weight": state.take("model.body.embedding_aggregator.pe.weight").flip(0)}
    blocks = state.blocks("model.body.encoder.attention_layers.{}.in_proj_weight")
    for number in blocks:
        ours, theirs = f"blocks.{number}", "model.body.encoder"
        weights |= state.attention(f"{ours}.attention", f"{theirs}.attention_layers.{number}")
        weights |= state.linear(f"{ours}.attention_norm", f"{theirs}.attention_layernorms.{number}")
        weights |= state.linear(f"{ours}.feed_forward_norm", f"{theirs}.forward_layernorms.{number}")
        weights |= state.linear(f"{ours}.feed_forward.up", f"{theirs}.forward_layers.{number}.conv1")
        weights |= state.linear(f"{ours}.feed_forward.down", f"{theirs}.forward_layers.{number}.conv2")
    weights |= state.linear("norm", "model.body.output_normalization")
    state.require_all_taken()
    # Its last norm adds 1e-5 to a variance, the others 1e-8; what reaches the last has a variance of about one.
    model: dict[str, Any] = {
        **{"kind": "sasrec", "norm": "query", "activation": "relu", "scale_items": True, "norm_eps": 1e-8},
        **{"width": items.shape[1], "layers": len(blocks), "hidden": len(weights["blocks.0.feed_forward.up.bias"])},
    }
    tables = {"items.weight": Table(items, torch.zeros_like(items[0]))}
    return Imported(model, len(weights["positions.weight"]), weights, tables, None, padding=len(items) - 1)


def _bert4rec(state: State, settings: Any) -> Imported:
    origin = state.origin
    require(origin, settings, {"pass_per_transformer_block_count": (1,)})
    items = _table(state, "_model.item_embedder.cat_embeddings.", ".weight")
    tied = bool(settings.get("enable_embedding_tying"))
    mask, no_bias = state.take("_model.item_embedder.mask_embedding.weight")[0], torch.zeros(())
    placed, none = settings.get("enable_positional_embedding", True), nowhere(origin, settings, "max_seq_len", items.shape[1])
    positions = state.take("_model.item_embedder.position.pe.weight") if placed else none
    weights, blocks = {"positions.weight": positions.flip(0)}, whole(origin, settings, "block_count")
    for number in range(blocks):
        ours, theirs = f"blocks.{number}", f"_model.transformer_blocks.{number}"
        weights |= state.attention(f"{ours}.attention", f"{theirs}.attention")
        weights |= state.linear(f"{ours}.attention_norm", f"{theirs}.attention_norm")
        weights |= state.linear(f"{ours}.feed_forward_norm", f"{theirs}.pff_norm")
        weights |= state.linear(f"{ours}.feed_forward.up", f"{theirs}.pff.w_1")
        weights |= state.linear(f"{ours}.feed_forward.down", f"{theirs}.pff.w_2")
    tables = {"items.weight": Table(items, mask)}
    if tied:
        tables["bias"] = Table(state.take("_model._head.out_bias"), no_bias)
        state.skip("_model._head._item_embedder.")
    else:
        tables["output.weight"] = Table(state.take("_model._head.linear.weight"), torch.zeros_like(mask))
        tables["bias"] = Table(state.take("_model._head.linear.bias"), no_bias)
    state.require_all_taken()
    model: dict[str, Any] = {
        **{"kind": "bert4rec", "embedding_norm": False, "final_norm": False, "head": False, "tied": tied},
        **{"width": items.shape[1], "layers": blocks, "heads": whole(origin, settings, "head_count")},
        **{"hidden": len(weights["blocks.0.feed_forward.up.bias"]), "dropout": rate(origin, settings, "dropout_rate", 0.1)},
    }
    return Imported(model, len(positions) - 1, weights, tables, None)
