"""State-space layers: S5 whose steps are the time between events, Mamba whose steps depend on what it reads, and the gaps.

Letters: B rows, L positions, D width, P states of S5 (complex), E channels of Mamba, N states of each, R rank of its steps.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from turborec.nn import attention
from turborec.nn.keyed import Dropout
from turborec.nn.linear import Context, Linear
from turborec.nn.lowering import Kernels, Lowering, chosen
from turborec.nn.scan import scan, selective_scan
from turborec.recipe import Config

Parametrisation = Literal["faithful", "stable"]
Init = Literal["official", "mamba"]

SLOWEST = 1e-4
"""The least rate at which a state of the stable parametrisation forgets."""


class Gaps(NamedTuple):
    """Seconds that belong to each event."""

    seconds: Tensor  # float32 [B, L]; 0 where unknown
    known: Tensor  # bool [B, L]


class Intervals(Config):
    """How the seconds between events become the steps of a state-space layer.

    SS4Rec's code has {kind: raw, unit: 1, event: 0}: seconds, and what follows at once is not written. Validation likes a step
    for the event itself better, and days that add to it (docs/log.md).
    """

    kind: Literal["raw", "log", "clip", "none"] = Field(
        "log", description="raw: as they are; log: log(1 + gap / unit); clip: `limit` at most; none: one step for each event"
    )
    unit: float = Field(86400.0, gt=0.0, description="seconds of one step")
    limit: float = Field(86400.0, gt=0.0, description="of clip, in seconds")
    event: float = Field(1.0, ge=0.0, description="the step that every event takes besides; 0: one of no gap is not written")
    learned: bool = Field(False, description="train the unit, starting from `unit`")


class Steps(nn.Module):
    """Steps from gaps; that of an unknown gap, such as the first event's, is learned: nothing unknown is taken for 0."""

    def __init__(self, config: Intervals) -> None:
        super().__init__()
        self.config = config
        if config.kind != "none":
            self.unknown = nn.Parameter(torch.zeros(()))  # logarithm of the step
        if config.learned and config.kind != "none":
            self.log_unit = nn.Parameter(torch.tensor(math.log(config.unit)))

    def forward(self, gaps: Gaps) -> Tensor:
        """[B, L], float32."""
        config, seconds = self.config, gaps.seconds
        if config.kind == "none":
            return torch.ones_like(seconds)
        seconds = seconds.clamp(max=config.limit) if config.kind == "clip" else seconds
        steps = seconds * torch.exp(-self.log_unit) if config.learned else seconds / config.unit
        steps = (steps.log1p() if config.kind == "log" else steps) + config.event
        return torch.where(gaps.known, steps, self.unknown.exp())


def hippo(states: int) -> tuple[Tensor, Tensor]:
    """Eigenvalues and eigenvectors of the normal part of HiPPO-LegS: complex128 [P], [P, P] (arXiv 2206.11893, appendix A.1).

    A + p pT = V diag(lambda) V*, with p_n = sqrt(n + 1/2): the real parts are -1/2, the imaginary ones come in pairs.
    """
    n = torch.arange(states, dtype=torch.float64)
    root = (2 * n + 1).sqrt()
    lower = torch.tril(root[:, None] * root, -1) + torch.diag(n + 1)
    low_rank = (n + 0.5).sqrt()
    normal = -lower + low_rank[:, None] * low_rank
    skew = (normal - normal.T) / 2
    imaginary, vectors = torch.linalg.eigh(skew * -1j)
    return torch.complex(normal.diagonal().mean().expand(states), imaginary), vectors


class S5(nn.Module):
    """S5 (Smith, Warrington and Linderman 2023, arXiv 2208.04933) with a step of its own for each event, as SS4Rec uses it.

    x_k = exp(lambda d_k) x_{k-1} + (exp(lambda d_k) - 1) / lambda B u_k; y_k = Re(C x_k) + D u_k; d_k = step_k exp(log_step).
    A step of zero leaves the state as it was. The state is complex and whole, without halves that mirror each other.
    `faithful` leaves lambda free, so that a real part above zero overflows after a long gap; `stable` keeps it below.
    """

    lowering: Lowering | None = None  # what computes the recurrence; None: the best there is for what comes

    def __init__(
        self, width: int, states: int, parametrisation: Parametrisation, steps: tuple[float, float] = (1e-3, 0.1)
    ) -> None:
        super().__init__()
        self.parametrisation = parametrisation
        values, vectors = hippo(states)
        drawn_in = torch.randn(states, width, dtype=torch.float64) / math.sqrt(width)
        drawn_out = torch.view_as_complex(torch.randn(width, states, 2, dtype=torch.float64) * math.sqrt(0.5))
        if parametrisation == "faithful":
            self.lambdas = nn.Parameter(torch.view_as_real(values).float())  # [P, 2]
        else:
            self.log_rate = nn.Parameter((-values.real - SLOWEST).log().float())
            self.frequency = nn.Parameter(values.imag.float())
        self.b = nn.Parameter(torch.view_as_real(vectors.mH @ drawn_in.to(vectors.dtype)).float())  # [P, D, 2]
        self.c = nn.Parameter(torch.view_as_real(drawn_out @ vectors).float())  # [D, P, 2]
        self.d = nn.Parameter(torch.rand(width))
        low, high = map(math.log, steps)
        self.log_step = nn.Parameter(torch.rand(states) * (high - low) + low)

    def forward(self, u: Tensor, context: Context, steps: Tensor, start: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """[B, L, D], steps [B, L] -> [B, L, D], and the last state, complex [B, P]."""
        with torch.autocast(u.device.type, enabled=False):
            u = u if u.dtype == torch.float64 else u.float()
            decay, gain = self._discrete(steps.T[..., None].to(u.dtype) * self.log_step.exp())
            drawn = u.transpose(0, 1) @ self.b.permute(1, 0, 2).flatten(1)
            driven = torch.view_as_complex(drawn.view(*drawn.shape[:2], len(self.b), 2))
            states = scan(decay, gain * driven, start, lowering=self.lowering)
            conjugate = torch.stack([self.c[..., 0], -self.c[..., 1]], dim=-1)  # Re(C x) as a product of real numbers
            seen = torch.view_as_real(states).flatten(2) @ conjugate.flatten(1).T
            return seen.transpose(0, 1) + self.d * u, states[-1]

    def _discrete(self, duration: Tensor) -> tuple[Tensor, Tensor]:
        """What a state keeps and takes in over a duration, by zero-order hold: [L, B, P] -> complex [L, B, P] twice."""
        if self.parametrisation == "faithful":
            values = torch.view_as_complex(self.lambdas)
            decay = torch.exp(values * duration)
            return decay, (decay - 1) / values
        rate, frequency = self.log_rate.exp() + SLOWEST, self.frequency
        kept, angle = torch.exp(-rate * duration), frequency * duration
        decay = torch.complex(kept * angle.cos(), kept * angle.sin())
        # exp(z) - 1 without the loss of digits at small z: expm1(x) cos y - 2 sin(y / 2)^2 + i exp(x) sin y. At large z, whose
        # gradient is nearly nothing, the terms of that would cancel in it and leave rounding times the duration.
        near = rate * duration < 0.5
        little, turn = torch.where(near, rate * duration, 0.0), torch.where(near, angle, 0.0)
        exact = torch.expm1(-little) * turn.cos() - 2 * (turn / 2).sin().square()
        less_one = torch.complex(torch.where(near, exact, decay.real - 1), decay.imag)
        return decay, less_one / torch.complex(-rate, frequency)


class Mamba(nn.Module):
    """A block of Mamba (Gu and Dao 2023, arXiv 2312.00752, figure 3). `init` says how it starts.

    `mamba`: as its authors have it, steps between 0.001 and 0.1. `official`: as SS4Rec's code leaves it, all maps normal with
    deviation 0.02 and biases zero, so that steps start at log 2.
    """

    lowering: Lowering | None = None  # what computes the recurrence; None: the best there is for what comes

    def __init__(self, width: int, states: int, convolution: int = 4, expand: int = 2, init: Init = "mamba") -> None:
        super().__init__()
        channels, self.rank, self.states = expand * width, -(-width // 16), states
        self.input = Linear(width, 2 * channels, bias=False)
        self.kernel = nn.Parameter(torch.empty(convolution, channels))
        self.kernel_bias = nn.Parameter(torch.empty(channels))
        self.select = Linear(channels, self.rank + 2 * states, bias=False)
        self.step = Linear(self.rank, channels)
        self.log_rate = nn.Parameter(torch.arange(1, states + 1).float().log()[:, None].repeat(1, channels))  # [N, E]
        self.skip = nn.Parameter(torch.ones(channels))
        self.output = Linear(channels, width, bias=False)
        bound = convolution**-0.5
        nn.init.uniform_(self.kernel, -bound, bound)
        nn.init.uniform_(self.kernel_bias, -bound, bound)
        if init == "official":
            for module in (self.input, self.select, self.step, self.output):
                nn.init.normal_(module.weight, std=0.02)
            nn.init.zeros_(self.step.bias)
        else:
            nn.init.uniform_(self.step.weight, -(self.rank**-0.5), self.rank**-0.5)
            wanted = torch.exp(torch.rand(channels) * (math.log(0.1) - math.log(1e-3)) + math.log(1e-3)).clamp(min=1e-4)
            with torch.no_grad():
                self.step.bias.copy_(wanted + torch.log(-torch.expm1(-wanted)))  # the inverse of softplus

    def forward(
        self, x: Tensor, context: Context, start: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """[B, L, D] -> [B, L, D], and what the next event needs: the last inputs of the convolution, and the last state."""
        inner, gate = self.input(x, context).chunk(2, dim=-1)
        width = len(self.kernel) - 1
        shown = F.pad(inner, (0, 0, width, 0)) if start is None else torch.cat([start[0], inner], dim=1)
        length = inner.shape[1]
        convolved = self.kernel_bias + sum(shown[:, k : k + length] * self.kernel[k] for k in range(width + 1))
        inner = F.silu(convolved)
        rank, write, read = self.select(inner, context).split([self.rank, self.states, self.states], dim=-1)
        with torch.autocast(x.device.type, enabled=False):
            # A step of .01 is the softplus of -4.6, of which bfloat16 holds two digits; the product is a small one.
            steps = F.softplus(self.step(rank if rank.dtype == torch.float64 else rank.float(), context))
            driven, step, writes, reads = (t.transpose(0, 1).contiguous() for t in (inner, steps, write, read))
            rate, before = -self.log_rate.exp(), None if start is None else start[1]
            y, last = selective_scan(driven, step, rate, writes, reads, before, lowering=self.lowering)
        y = y.transpose(0, 1) + self.skip * inner
        mixed: Tensor = self.output(y * F.silu(gate), context)
        return mixed, (shown[:, shown.shape[1] - width :], last)


@dataclass(frozen=True)
class Shape:
    """What the layers of a state-space model have in common."""

    width: int
    hidden: int  # width of the feed-forward layer; 0 for none
    dropout: float
    norm: Literal["pre", "post"] = "post"
    norm_eps: float = 1e-12
    shared_norm: bool = False  # one norm for all mixers of a layer
    residual: bool = True  # around mixers


class Seen(NamedTuple):
    """What a layer has kept of the events so far: of each of its mixers."""

    mixers: tuple[Any, ...]


class Layer(nn.Module):
    """Mixers one after another, S5 or Mamba, each around a residual and normalised; then the feed-forward layer."""

    def __init__(self, shape: Shape, mixers: Sequence[S5 | Mamba], site: int) -> None:
        """`site` is the layer's place in its model; it takes the dropout sites 4 * site .. 4 * site + 3."""
        super().__init__()
        self.shape = shape
        self.mixers = nn.ModuleList(mixers)
        norms = 1 if shape.shared_norm else len(mixers)
        self.norms = nn.ModuleList(nn.LayerNorm(shape.width, eps=shape.norm_eps) for _ in range(norms))
        self.dropouts = nn.ModuleList(Dropout(shape.dropout, 4 * site + place) for place in range(len(mixers)))
        if shape.hidden:
            inner = attention.Shape(shape.width, 1, shape.hidden, shape.dropout)
            self.feed_forward = attention.FeedForward(inner, 4 * site + 2)
            self.feed_forward_norm = nn.LayerNorm(shape.width, eps=shape.norm_eps)
            self.feed_forward_dropout = Dropout(shape.dropout, 4 * site + 3)

    def forward(self, x: Tensor, context: Context, steps: Tensor, seen: Seen | None = None) -> tuple[Tensor, Seen]:
        """[B, L, D], steps [B, L] -> [B, L, D], and what the next event needs."""
        shape, kept = self.shape, []
        for place, mixer in enumerate(self.mixers):
            norm, start = self.norms[0 if shape.shared_norm else place], None if seen is None else seen.mixers[place]
            asked = norm(x) if shape.norm == "pre" else x
            mixed, last = mixer(asked, context, steps, start) if isinstance(mixer, S5) else mixer(asked, context, start)
            kept.append(last)
            mixed = self.dropouts[place](mixed, context.keys)
            mixed = mixed + x if shape.residual else mixed
            x = norm(mixed) if shape.norm == "post" else mixed
        if shape.hidden:
            norm = self.feed_forward_norm
            changed = self.feed_forward(norm(x) if shape.norm == "pre" else x, context)
            x = self.feed_forward_dropout(changed, context.keys) + x
            x = norm(x) if shape.norm == "post" else x
        return x, Seen(tuple(kept))


def lower(model: nn.Module, kernels: Kernels, device: torch.device) -> None:
    """From now on the model's recurrences are computed so; a UserError where the device or the machine has no such kernels."""
    if modules := _recurrent(model):
        lowering = chosen(kernels, device)
        for module in modules:
            module.lowering = lowering


def lowered(model: nn.Module) -> str | None:
    """What computes the model's recurrences, in words; None for a model that has none."""
    found = {module.lowering for module in _recurrent(model)}
    if not found:
        return None
    named = "; ".join(sorted(_named(one) for one in found))
    return f"Recurrences: {named}"


def _named(lowering: Lowering | None) -> str:
    if lowering is None:
        return "by what is best for each tensor"
    beside = f", those of S5 and of followed users by {lowering.others}" if lowering.others else ""
    return f"by {lowering.name}{beside}"


def _recurrent(model: nn.Module) -> list[S5 | Mamba]:
    return [module for module in model.modules() if isinstance(module, S5 | Mamba)]
