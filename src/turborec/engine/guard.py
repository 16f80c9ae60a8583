"""A watch on the norm of the gradient, which says when it explodes and where."""

import logging
import statistics
from collections import deque
from dataclasses import dataclass, field

import torch
from torch import nn

EXPLODES = 30.0
"""How many times the usual norm is told of."""
USUAL, FEWEST = 100, 20
"""Steps whose median is the usual norm, and how many are needed to know it; so many steps go by until it is told again."""

log = logging.getLogger("turborec")


@dataclass
class Guard:
    """What is known of the norms so far. It changes nothing and is no part of a checkpoint."""

    norms: deque[float] = field(default_factory=lambda: deque(maxlen=USUAL))
    quiet: int = 0  # steps in which nothing is told, after something was

    def look(self, norm: float, model: nn.Module, step: int) -> None:
        """Warn where the norm of a step's gradient, as it was before clipping, is far beyond the usual one."""
        usual = statistics.median(self.norms) if len(self.norms) >= FEWEST else 0.0
        self.norms.append(norm)
        self.quiet = max(0, self.quiet - 1)
        if 0 < EXPLODES * usual < norm and not self.quiet:
            self.quiet = USUAL
            log.warning(
                f"The gradient explodes in step {step + 1:,}: its norm is {norm:.3g}, where {usual:.3g} is usual"
                f"{_largest(model)}. Lower train.optimizer.lr, or set train.clip_norm."
            )


def _largest(model: nn.Module) -> str:
    """Which module has most of it; '' where each process holds parts of gradients."""
    squares: dict[str, float] = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        if type(gradient) is not torch.Tensor:
            continue
        values = gradient.coalesce().values() if gradient.is_sparse else gradient
        module = name.rpartition(".")[0] or name
        squares[module] = squares.get(module, 0.0) + float(values.float().square().sum())
    if not squares or not (total := sum(squares.values())):
        return ""
    worst = max(squares, key=lambda name: squares[name])
    return f", {squares[worst] / total:.0%} of its square in {worst}"
