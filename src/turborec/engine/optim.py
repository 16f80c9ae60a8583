"""Optimizers and learning-rate schedules."""

import math
from typing import Annotated, Any, Literal, Self

import torch
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor, nn

from turborec.contract import count_reads, note_reads, read_by_rows, read_densely
from turborec.engine import world
from turborec.engine.sharding import held, is_part
from turborec.errors import UserError
from turborec.recipe import Config

Share = Annotated[float, Field(ge=0.0, le=1.0)]


Tables = Literal["dense", "rows"]
"""How tables of embeddings are updated: every row in every step, or only the rows that a step has read (see `RowAdam`)."""


class AdamW(Config):
    """Adam with decoupled weight decay (arXiv 1711.05101), as one fused kernel. Vectors (norms, biases) do not decay."""

    kind: Literal["adamw"] = "adamw"
    lr: float = Field(1e-3, gt=0.0)
    weight_decay: float = Field(0.0, ge=0.0)
    beta1: float = Field(0.9, ge=0.0, lt=1.0)
    beta2: float = Field(0.999, ge=0.0, lt=1.0)
    eps: float = Field(1e-8, ge=1e-15)
    tables: Tables = Field("dense", description="rows: of tables, update only what a step reads; pays with a sampled loss")
    tables_lr: float | None = Field(None, gt=0.0, description="with tables=rows: their rate, where it is not lr")
    tables_weight_decay: float | None = Field(None, ge=0.0, description="with tables=rows: theirs, where it is another")
    clip_rows: float | None = Field(
        None, gt=0.0, description="with tables=rows: largest norm of a row's gradient, in norms of the row and times read"
    )

    tables_mean: Literal["float32", "bfloat16"] | None = Field(
        None, description="with tables=rows: what their first moment is kept in, where that is not the table's own type"
    )

    @model_validator(mode="after")
    def _tables_are_apart(self) -> Self:
        apart = ("tables_lr", "tables_weight_decay", "clip_rows", "tables_mean")
        said = [name for name in apart if getattr(self, name) is not None]
        if self.tables_mean == "bfloat16" and self.beta1 > 0.99:
            raise ValueError(
                f"tables_mean bfloat16 has eight bits: steps of 1 - beta1 = {1 - self.beta1:g} would be lost in it"
            )
        if said and self.tables != "rows":
            raise ValueError(f"{said[0]} needs tables=rows: only then are tables updated apart from the rest")
        return self

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """An optimizer over the trainable parameters."""
        return self.over(model, list(model.parameters()))

    def over(self, model: nn.Module, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """An optimizer over some of the model's parameters, which include its tables."""
        reset_tables(model)
        tables = row_tables(model, counted=self.clip_rows is not None) if self.tables == "rows" else []
        trainable = [p for p in parameters if p.requires_grad and not _among(p, tables)]
        groups = [
            {"params": [p for p in trainable if p.ndim >= 2], "weight_decay": self.weight_decay},
            {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
        ]
        betas, groups = (self.beta1, self.beta2), [group for group in groups if group["params"]]
        dense: list[torch.optim.Optimizer] = []
        if groups or not tables:
            dense.append(torch.optim.AdamW(groups, lr=self.lr, betas=betas, eps=self.eps, fused=True))
        if not tables:
            return dense[0]
        decay = self.weight_decay if self.tables_weight_decay is None else self.tables_weight_decay
        mean = getattr(torch, self.tables_mean) if self.tables_mean else None
        rows = RowAdam(tables, self.tables_lr or self.lr, betas, self.eps, decay, mean)
        rows.param_groups[0]["clip_rows"] = self.clip_rows
        return Joined([*dense, rows])


class Muon(Config):
    """Orthogonalised momentum (Jordan et al. 2024) for the matrices of the body, AdamW for tables and vectors.

    An update has the size of AdamW's (the scaling of arXiv 2502.16982), so one rate and one decay serve both.
    """

    kind: Literal["muon"] = "muon"
    lr: float = Field(1e-3, gt=0.0)
    weight_decay: float = Field(0.0, ge=0.0)
    momentum: float = Field(0.95, ge=0.0, lt=1.0)
    tables: Tables = Field("dense", description="rows: of tables, update only what a step reads; pays with a sampled loss")

    def build(self, model: nn.Module) -> torch.optim.Optimizer:
        """An optimizer over the trainable parameters."""
        embeddings = [module.weight for module in model.modules() if isinstance(module, nn.Embedding)]
        hidden = [p for p in model.parameters() if p.requires_grad and p.ndim == 2 and not _among(p, embeddings)]
        others = [p for p in model.parameters() if p.requires_grad and not _among(p, hidden)]
        if not hidden:
            raise UserError("train.optimizer.kind=muon is for the matrices of a model's body, and this model has none.")
        rest = AdamW(lr=self.lr, weight_decay=self.weight_decay, tables=self.tables).over(model, others)
        muon = torch.optim.Muon(
            hidden, lr=self.lr, weight_decay=self.weight_decay, momentum=self.momentum, adjust_lr_fn="match_rms_adamw"
        )
        return Joined([muon, *(rest.parts if isinstance(rest, Joined) else [rest])])


def _adamw_unless_said(value: Any) -> Any:
    """An optimizer without a kind is AdamW, so that `optimizer: {lr: 0.001}` is enough."""
    return {"kind": "adamw", **value} if isinstance(value, dict) else value


Optimizer = Annotated[AdamW | Muon, Field(discriminator="kind"), BeforeValidator(_adamw_unless_said)]


class Joined(torch.optim.Optimizer):
    """Several optimizers as one, each for parameters of its own, with one state to save."""

    def __init__(self, parts: list[torch.optim.Optimizer]) -> None:
        self.parts = parts
        super().__init__([group for part in parts for group in part.param_groups], {})
        self._share()

    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """A step of each."""
        for part in self.parts:
            part.step()

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()

    def _share(self) -> None:
        """Let the parts work on the groups and the state of the whole."""
        at = 0
        for part in self.parts:
            part.param_groups = self.param_groups[at : at + len(part.param_groups)]
            part.state, at = self.state, at + len(part.param_groups)


class RowAdam(torch.optim.Optimizer):
    """Adam for tables of which a step reads few rows: rows without a gradient are left as they are, moments and all.

    The second moment is one number a row, the mean over the row (the partial row-wise Adam of FBGEMM); decay, too, reaches
    the rows that were read. Bias is corrected by the steps of the table, not of the row. The first moment, which is the rest of
    the memory, may be kept in bfloat16 (`mean`): with a beta1 of .9 its steps of a tenth are far from the last of eight bits.
    """

    def __init__(
        self,
        tables: list[nn.Parameter],
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        mean: torch.dtype | None = None,
    ) -> None:
        super().__init__(tables, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})
        self._mean = mean

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Update the rows that have a gradient; a dense gradient is one of all rows."""
        for group in self.param_groups:
            for table in group["params"]:
                if table.grad is not None:
                    self._update(table, table.grad, group)

    def _update(self, table: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        (beta1, beta2), state = group["betas"], self.state[table]
        if not state:
            state["step"] = torch.zeros((), dtype=torch.float32)
            state["mean"] = torch.zeros_like(table, dtype=self._mean)  # [V + 1, D]
            state["square"] = torch.zeros(len(table), device=table.device)  # [V + 1]
        state["step"] += 1
        steps = float(state["step"])
        rows, values = torch.arange(len(table), device=table.device), gradient
        if gradient.is_sparse:
            gradient = gradient.coalesce()
            rows, values = gradient.indices()[0], gradient.values()
        # torch restores every state in the type of its parameter.
        state["mean"] = state["mean"].to(self._mean or table.dtype)
        mean = state["mean"][rows].to(values.dtype).lerp_(values, 1 - beta1)
        square = state["square"][rows].lerp_(values.pow(2).mean(1).to(state["square"].dtype), 1 - beta2)
        state["mean"][rows], state["square"][rows] = mean.to(state["mean"].dtype), square
        scale = (square / (1 - beta2**steps)).sqrt_().add_(group["eps"]).mul_(1 - beta1**steps)
        change = mean / scale[:, None].to(mean.dtype)
        if group["weight_decay"]:
            change += group["weight_decay"] * table[rows]
        table.index_add_(0, rows, change, alpha=-group["lr"])


def row_tables(model: nn.Module, counted: bool = False) -> list[nn.Parameter]:
    """The model's tables, from now on with gradients of the rows that were read alone, and with their reads counted."""
    found = []
    for module in model.modules():
        if not isinstance(module, nn.Embedding) or getattr(module, "_read_whole", False):
            continue
        if isinstance(module.weight, nn.Parameter) and module.weight.requires_grad:
            module.sparse = True
            read_by_rows(module.weight)
            if counted:
                count_reads(module.weight)
                module._counting = module.register_forward_pre_hook(  # type: ignore[assignment]
                    lambda module, arguments: note_reads(module.weight, arguments[0])
                )
            found.append(module.weight)
    return found


def reset_tables(model: nn.Module) -> None:
    """Take back what an optimizer of an earlier stage has asked of the model's tables."""
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            module.sparse = False
            read_densely(module.weight)
            if (counting := module.__dict__.pop("_counting", None)) is not None:
                counting.remove()


def gradient_norm(parameters: list[nn.Parameter]) -> Tensor:
    """The norm of their gradients together, on their device: a scalar, of which nobody has to wait yet."""
    for parameter in parameters:
        if parameter.grad is not None and parameter.grad.is_sparse:
            parameter.grad = parameter.grad.coalesce()
    norm: Tensor = torch.nn.utils.get_total_norm(_values(parameters, part=False))
    if any(is_part(parameter) for parameter in parameters):  # of these, other processes have the rest
        parts = float(torch.nn.utils.get_total_norm(_values(parameters, part=True)))
        norm = torch.hypot(norm, norm.new_tensor(math.sqrt(world.totals([parts**2])[0])))
    return norm


def clip(parameters: list[nn.Parameter], norm: float, limit: float) -> None:
    """Scale the gradients, whose norm together is `norm`, so that it is at most `limit`."""
    if limit < norm:
        values = _values(parameters, part=False) + _values(parameters, part=True)
        torch._foreach_mul_(values, limit / (norm + 1e-6))


def _values(parameters: list[nn.Parameter], part: bool) -> list[Tensor]:
    """The numbers of the gradients of those that are, or are not, a process's part of a parameter."""
    found = [(parameter, parameter.grad) for parameter in parameters if is_part(parameter) == part]
    return [(g.values() if g.is_sparse else held(g)).detach() for _, g in found if g is not None]


def _among(one: Tensor, some: list[Tensor] | list[nn.Parameter]) -> bool:
    return any(one is other for other in some)


class Constant(Config):
    """The full rate after the warm-up."""

    kind: Literal["constant"] = "constant"
    warmup: Share = Field(0.0, description="share of the stage in which the rate rises linearly from 0")

    def factor(self, progress: float) -> float:
        """The share of the optimizer's rate at `progress` in [0, 1] of the stage."""
        return _warm(progress, self.warmup)


class Linear(Config):
    """Falls in a straight line from the full rate to `end` of it."""

    kind: Literal["linear"] = "linear"
    warmup: Share = 0.0
    end: Share = Field(0.0, description="share of the rate left at the end")
    within: bool = Field(False, description="the line begins with the stage, and the warm-up only replaces its beginning")

    def factor(self, progress: float) -> float:
        """The share of the optimizer's rate at `progress` in [0, 1] of the stage."""
        if self.within:  # as RecFormer's authors have it: their warm-up is no share of the line, and ends below the full rate
            return progress / self.warmup if progress < self.warmup else 1 - (1 - self.end) * progress
        return _warm(progress, self.warmup) * (1 - (1 - self.end) * _after(progress, self.warmup))


class Cosine(Config):
    """Falls along half a cosine (arXiv 1608.03983, one period) from the full rate to `end` of it."""

    kind: Literal["cosine"] = "cosine"
    warmup: Share = 0.0
    end: Share = Field(0.0, description="share of the rate left at the end")

    def factor(self, progress: float) -> float:
        """The share of the optimizer's rate at `progress` in [0, 1] of the stage."""
        fallen = (1 - math.cos(math.pi * _after(progress, self.warmup))) / 2
        return _warm(progress, self.warmup) * (1 - (1 - self.end) * fallen)


Schedule = Annotated[Constant | Linear | Cosine, Field(discriminator="kind")]


def _warm(progress: float, warmup: float) -> float:
    return 1.0 if progress >= warmup else progress / warmup


def _after(progress: float, warmup: float) -> float:
    """How far into the part after the warm-up, in [0, 1]."""
    return 0.0 if progress <= warmup else min(1.0, (progress - warmup) / (1 - warmup))
