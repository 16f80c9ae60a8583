"""How long the texts of all items take to become vectors: python benchmarks/encoding.py RECIPE --name NAME.

The model's own way (packed, sorted by length, in the recipe's precision) takes turns with the loop that one writes first: items
as they come, some at a time, padded to the longest of them, in float32, by plain PyTorch. Both have the same weights, as drawn
or as `model.pretrained` has them, and the row says how far their vectors are apart. Rows go to results/encoding/NAME.json.

Letters: B items of a batch, L tokens of the longest, D width, H heads.
"""

import math
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from measured import arguments, chosen_by, prepared, surroundings, told
from rows import Row, numbers, write
from turborec.assembly import assemble
from turborec.bench.step import median
from turborec.engine import hardware
from turborec.models.recformer import RecFormer
from turborec.nn.linear import Context
from turborec.nn.longformer import FIRST_POSITION, TextEncoder

CERTAIN = Context(keys=None)
"""Nothing is left out at random."""


def padded(model: RecFormer, items: Tensor) -> Tensor:
    """The vectors of some items by the loop: int64 [B] -> [B, D]."""
    encoder, texts = model.encoder, model.texts
    begin, end = texts.offsets[items], texts.offsets[items + 1]
    real = torch.arange(longest := int((end - begin).max()) + 1) <= (end - begin)[:, None]
    ids, types = (
        F.pad(
            pad_sequence([part[a:b] for a, b in zip(begin, end, strict=True)], True, texts.padding), (1, 0), value=first
        ).long()
        for part, first in ((texts.ids, texts.begin), (texts.types, 0))
    )
    places = F.pad(torch.ones(len(items), longest - 1, dtype=torch.int64), (1, 0))
    types = types.clamp(max=len(encoder.types.weight) - 1)  # where there is padding
    x = encoder.words(ids) + encoder.positions(torch.arange(longest) + FIRST_POSITION)
    x = encoder.norm(x + encoder.types(types) + encoder.item_positions(places))
    place = torch.arange(longest)
    near = (place[:, None] - place).abs() <= encoder.shape.window // 2
    near[:, 0] = True
    for block in encoder.blocks:
        x = layer(encoder, block, x, (near & real[:, None])[:, None], real)
    x = encoder.last_norm(x)
    mean = (x * real[..., None]).sum(1) / real.sum(1, keepdim=True)
    return F.normalize(x[:, 0] if encoder.shape.pooling == "first" else mean, dim=-1)


def layer(encoder: TextEncoder, block: Any, x: Tensor, visible: Tensor, real: Tensor) -> Tensor:
    """One block on all places of a rectangle: [B, L, D]."""
    attention, pre = block.attention, block.norm == "pre"
    h = block.attention_norm(x) if pre else x

    def heads(part: Tensor) -> Tensor:
        return part.view(*part.shape[:2], encoder.shape.heads, -1).transpose(1, 2)

    def mixed(q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(heads(q), heads(k), heads(v), mask).transpose(1, 2).flatten(2)

    first = mixed(attention.q_first(h[:, :1], CERTAIN), attention.k_first(h), attention.v_first(h), real[:, None, None])
    if attention.alone:  # of its last block ours has no projections of other tokens, of which nothing is asked
        x = x[:, :1] + attention.o(first, CERTAIN)
    else:
        found = mixed(attention.q(h, CERTAIN), attention.k(h, CERTAIN), attention.v(h, CERTAIN), visible)
        x = x + attention.o(torch.cat([first, found[:, 1:]], dim=1), CERTAIN)
    x = x if pre else block.attention_norm(x)
    x = x + block.feed_forward(block.feed_forward_norm(x) if pre else x, CERTAIN)
    return x if pre else block.feed_forward_norm(x)


def timed(call: Callable[[], Tensor]) -> tuple[Tensor, float]:
    """What a call gives, and its processor seconds."""
    began = time.process_time()
    found = call()
    return found, time.process_time() - began


def main() -> None:
    """Measure and write."""
    parser = arguments(__doc__)
    parser.add_argument("--name", required=True, help="what the file of rows is called")
    parser.add_argument("--items", type=int, default=4096, help="items of a turn, the first ones")
    parser.add_argument("--batch", type=int, default=64, help="items that the loop pads together")
    parser.add_argument("--rounds", type=int, default=6)
    chosen = chosen_by(parser)
    busy, environment = surroundings(parser)
    recipe, store = prepared(chosen)
    model = assemble(recipe, store, "cpu").model.eval()
    assert isinstance(model, RecFormer)
    model.begin()
    dtype = hardware.compute_dtype(recipe.train.precision, torch.device("cpu"))
    wanted = torch.arange(1, min(chosen.items, store.num_items) + 1)

    def ours() -> Tensor:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            return model.encoded_of(wanted)

    def loop() -> Tensor:
        return torch.cat([padded(model, some) for some in wanted.split(chosen.batch)])

    with torch.no_grad():
        ours(), loop()
        seen: list[tuple[float, float]] = []
        for number in range(chosen.rounds):
            if number % 2:
                (b, slow), (a, fast) = timed(loop), timed(ours)
            else:
                (a, fast), (b, slow) = timed(ours), timed(loop)
            seen.append((fast, slow))
    ratio = median([math.log(slow / fast) for fast, slow in seen])
    values = {
        "items_per_cpu_second": len(wanted) / median([fast for fast, _ in seen]).value,
        "padded_items_per_cpu_second": len(wanted) / median([slow for _, slow in seen]).value,
        "times_as_fast": math.exp(ratio.value),
        "cosine": float((a * b).sum(1).mean()),
        "least_cosine": float((a * b).sum(1).min()),
    }
    data, kind = chosen.recipe.rsplit("/", 1)
    lengths = model.texts.offsets.diff()[1:][: len(wanted)] + 1
    row: Row = {
        "kind": "encoding",
        "data": data,
        "model": kind,
        "recipe": chosen.recipe,
        "variant": chosen.name,
        "seed": recipe.seed,
        "protocol": {
            "overrides": chosen.overrides,
            "items": len(wanted),
            "tokens": int(lengths.sum()),
            "longest": int(lengths.max()),
            "batch": chosen.batch,
            "precision": str(dtype).removeprefix("torch."),
            "parameters": sum(p.numel() for p in model.parameters()),
            "rounds": chosen.rounds,
            "clock": "processor seconds",
            "busy": busy,
        },
        "values": numbers(values),
        "intervals": {"times_as_fast": [math.exp(ratio.low), math.exp(ratio.high)]},
        "provenance": environment,
    }
    print(values, [math.exp(ratio.low), math.exp(ratio.high)])
    print(write(f"encoding/{chosen.name}", [row]))


if __name__ == "__main__":
    told(main)
