"""Useful work: the floating-point operations a step cannot do without, on real events and required logits alone.

Per event and block: 8 D^2 for q, k, v and o, 4 D H for the feed-forward layer, 4 D times the events seen for attention. The
gradients of a product cost two more of its size. Letters: D width, H hidden width, V items.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

Lengths = NDArray[np.int64]


def useful(config: Any, items: int, lengths: Lengths, targets: int) -> float | None:
    """Operations of one training pass over rows of these lengths with so many targets; None for a model nobody described."""
    encoder = ENCODERS.get(config.kind)
    if encoder is None:
        return None
    loss = config.loss.chosen(items) if config.loss.kind == "auto" else config.loss
    candidates = getattr(loss, "negatives", items - 1) + 1
    return float(3 * (encoder(config, lengths.astype(np.float64), targets) + 2 * targets * config.width * candidates))


def _sasrec(config: Any, lengths: Any, targets: int) -> float:
    per_event = 8 * config.width**2 + 4 * config.width * config.hidden
    seen = (lengths * (lengths + 1) / 2).sum()
    return float(config.layers * (per_event * lengths.sum() + 4 * config.width * seen))


def _bert4rec(config: Any, lengths: Any, targets: int) -> float:
    """The last block's queries, output and feed-forward layer are needed at the masked places only."""
    lengths = lengths + 1  # the event that follows a window is part of the sequence
    width, events = config.width, lengths.sum()
    mean_seen = (lengths**2).sum() / events
    whole = events * (8 * width**2 + 4 * width * config.hidden) + 4 * width * (lengths**2).sum()
    last = events * 4 * width**2 + targets * (4 * width**2 + 4 * width * config.hidden + 4 * width * mean_seen)
    head = 2 * targets * width**2 if config.head else 0
    return float((config.layers - 1) * whole + last + head)


def _gru4rec(config: Any, lengths: Any, targets: int) -> float:
    sizes = [config.width] + [config.hidden] * config.layers
    gates = sum(6 * config.hidden * (size + config.hidden) for size in sizes[:-1])
    return float(gates * lengths.sum() + 2 * targets * config.hidden * config.width)


ENCODERS: dict[str, Callable[[Any, Any, int], float]] = {"sasrec": _sasrec, "bert4rec": _bert4rec, "gru4rec": _gru4rec}
