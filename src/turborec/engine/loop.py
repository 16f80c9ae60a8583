"""The training loop: batches in, one record per optimizer step out. It knows no model and no data set."""

import json
import logging
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch
from pydantic import Field, model_validator
from torch.profiler import record_function

from turborec.contract import Batch, Model, forget_reads
from turborec.engine import hardware, world
from turborec.engine.ahead import Batches, ordered
from turborec.engine.hardware import Precision, compute_dtype
from turborec.engine.optim import AdamW, Constant, Optimizer, Schedule, clip, gradient_norm
from turborec.engine.parallel import Exchange, Shares
from turborec.engine.replay import Packed, Replays
from turborec.engine.scaling import Scaling, clip_rows
from turborec.engine.state import Position, TrainState
from turborec.errors import DivergedError, UserError
from turborec.recipe import Config

Kept = Literal["optimizer", "schedule", "best"]

logger = logging.getLogger("turborec")

TOLD = ("clip_norm", "accumulate", "recompute", "collect_garbage", "average", "compile", "compile_mode", "replay", "kernels")
"""Settings of a step that a run tells where they are not those by default."""


class Stage(Config):
    """One stretch of training with one optimizer and one schedule."""

    epochs: int = Field(20, ge=1)
    optimizer: Optimizer = AdamW()
    scaling: Scaling = Scaling()
    exchange: Exchange = Exchange()
    schedule: Schedule = Constant()
    schedule_epochs: int | None = Field(None, ge=1, description="epochs that the schedule is laid over; null: the stage's own")
    clip_norm: float | None = Field(None, gt=0.0, description="largest norm of the whole gradient")
    accumulate: int = Field(1, ge=1, description="parts a global batch is computed in, to save memory")
    recompute: bool = Field(False, description="keep what enters each layer alone, and compute the rest again going backward")
    collect_garbage: bool = Field(False, description="after each epoch collect garbage and give cached memory back")
    refresh: bool = Field(
        True, description="do a model's work of an epoch, such as encoding all items; false: leave it as it is"
    )
    average: float | None = Field(None, gt=0.0, lt=1.0, description="decay per step of the weights' moving average (EMA)")
    precision: Precision = "auto"
    compile: Literal["none", "layers", "model"] = Field(
        "none", description="what torch.compile is given: each repeated layer, or the whole of a model's forward pass"
    )
    compile_mode: Literal["default", "reduce-overhead"] = Field(
        "default", description="of what is compiled; reduce-overhead: CUDA records its kernels once and replays them"
    )
    replay: bool = Field(
        False, description="CUDA records whole optimizer steps, once for each shape of batch, and replays them; not elsewhere"
    )
    kernels: Literal["auto", "reference", "triton", "mamba_ssm"] = Field(
        "auto", description="what computes the recurrences of state-space models: the best there is, loops, or these kernels"
    )
    start: Literal["last", "best"] = Field("last", description="which weights of the stage before it begins with")
    keep: tuple[Kept, ...] = Field(
        (),
        description="of the stage before: what its optimizer remembers, its schedule from where that ended, its best value, "
        "which only a better one replaces",
    )
    patience_epochs: int | None = Field(None, ge=1, description="of this stage; null: as stopping says")

    @model_validator(mode="after")
    def _rows_can_be_clipped(self) -> "Stage":
        if self.scaling.rule == "cowclip" and not (isinstance(self.optimizer, AdamW) and self.optimizer.tables == "rows"):
            raise ValueError("scaling rule cowclip needs optimizer {kind: adamw, tables: rows}: it treats the tables apart")
        return self

    @model_validator(mode="after")
    def _shards_fit(self) -> "Stage":
        shard, tables = self.exchange.shard, getattr(self.optimizer, "tables", "dense")
        if shard == "tables" and (self.scaling.rule == "cowclip" or getattr(self.optimizer, "clip_rows", None)):
            raise ValueError("exchange.shard tables cannot count how often rows are read: leave out cowclip and clip_rows")
        if shard == "tables" and self.compile != "none":
            raise ValueError("exchange.shard tables exchanges rows within the model, which compile has no graph for")
        if self.exchange.static_graph and self.accumulate > 1:
            raise ValueError("exchange.static_graph cannot be promised of a batch computed in parts: leave out accumulate")
        if shard == "parameters" and (self.optimizer.kind == "muon" or tables == "rows"):
            raise ValueError(
                "exchange.shard parameters needs an optimizer that treats each number by itself: {kind: adamw, tables: dense}"
            )
        return self

    @model_validator(mode="after")
    def _can_be_replayed(self) -> "Stage":
        if not self.replay:
            return self
        needed = {
            "accumulate=1": self.accumulate == 1,
            "optimizer.kind=adamw": self.optimizer.kind == "adamw",
            "optimizer.tables=dense": getattr(self.optimizer, "tables", "dense") == "dense",
            "another scaling.rule than cowclip": self.scaling.rule != "cowclip",
            "exchange.shard=none": self.exchange.shard == "none",
            "another precision than float16": self.precision != "float16",
            "compile_mode=default": self.compile_mode == "default",
        }
        if lacking := [name for name, there in needed.items() if not there]:
            raise ValueError(f"replay records whole steps of one process with a dense AdamW: it needs {', '.join(lacking)}")
        return self

    def told(self) -> str:
        """What of a step is otherwise than by default, as a recipe would say it; '' where nothing is."""
        fields = type(self).model_fields
        changed = {name: getattr(self, name) for name in TOLD if getattr(self, name) != fields[name].default}
        return ", ".join(f"{name}={json.dumps(value)}".replace('"', "") for name, value in changed.items())

    def at(self, tokens: int) -> "Stage":
        """The stage for batches of so many tokens: its scaling applied."""
        return self.model_copy(update={"optimizer": self.scaling.applied(self.optimizer, tokens), "scaling": Scaling()})


@dataclass(frozen=True)
class Record:
    """What one optimizer step did, with all processes together."""

    position: Position  # after the step
    steps: int  # of the epoch
    losses: dict[str, float]  # mean per target of each term
    gradient_norm: float
    lr: float
    targets: int  # predicted: those of its first term
    asked: int  # targets of its batch, whether the model chose to predict them or not
    seconds: float
    waited: float  # of them, for its batch
    prepared: float = 0.0  # seconds before them, in which the model began the epoch

    @property
    def loss(self) -> float:
        """The weighted sum that was minimised."""
        return self.losses["loss"]


def start(model: Model, stage: Stage, device: torch.device) -> TrainState:
    """A fresh state for the first step of a stage."""
    if stage.replay and not model.replays:
        raise UserError(
            f"train.replay: a step of {type(model).__name__} with these settings is not the same operations for all batches of "
            "the same shapes: it draws negatives or edges, adds a bias of the history, or is not made for it. Leave it out."
        )
    if stage.replay and world.size() > 1:
        raise UserError("train.replay records the steps of one process alone: leave it out where there are several.")
    scaled = compute_dtype(stage.precision, device) == torch.float16
    optimizer = stage.optimizer.build(model)
    for group in optimizer.param_groups:
        group["initial_lr"] = group["lr"]  # torch's name for the rate that a schedule takes shares of
    # After the optimizer, which decides whose gradients are of rows alone.
    shares = Shares(model, stage.exchange)
    if scaled and stage.exchange.shard != "none" and world.size() > 1:
        # Each process holds another part of the gradient: an overflow in one of them is one for all.
        from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler

        return TrainState(shares, optimizer, ShardedGradScaler(device.type, process_group=torch.distributed.group.WORLD))
    return TrainState(shares, optimizer, torch.amp.GradScaler(device.type, enabled=scaled))


def fit(state: TrainState, batches: Batches, stage: Stage, device: torch.device) -> Iterator[Record]:
    """Train for the rest of the epoch, from `state.position.step` on; the position moves on before each record."""
    model, position = state.model, state.position
    stage = stage.model_copy(update={"accumulate": max(stage.accumulate, state.parts)})
    dtype = compute_dtype(stage.precision, device)
    began = time.perf_counter()
    if stage.refresh:
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            model.begin_epoch(batches.number, torch.Generator().manual_seed(batches.key))
    prepared = time.perf_counter() - began
    model.train()
    if stage.replay and device.type == "cuda" and state.replays is None:
        state.replays = Replays(model, state.optimizer, stage.clip_norm, dtype, device)
    ready = state.replays.ready if state.replays is not None else partial(_ready, model, stage, device)
    coming = ordered(batches, position.step, device, ready)
    while position.step < len(batches):
        began = time.perf_counter()
        # The middle of the step's share of the stage: a rate of zero at either end would waste a step.
        done = position.scheduled + position.epoch + (position.step + 0.5) / len(batches)
        factor = stage.schedule.factor(min(1.0, done / (stage.schedule_epochs or stage.epochs)))
        for group in state.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        with record_function("data"):
            batch = next(coming)
        waited = time.perf_counter() - began
        try:
            if state.replays is None:
                losses, norm, predicted, asked = train_step(state, batch, stage, device)
            else:
                losses, norm, predicted, asked = _replayed(state, state.replays, batch)
        except (MemoryError, RuntimeError) as error:
            if not hardware.out_of_memory(error) or not _can_be_halved(state, batches.batch(position.step), stage):
                raise
            stage = stage.model_copy(update={"accumulate": 2 * stage.accumulate})
            batch = None
        if batch is None:  # only here, where nothing holds what the step had computed
            _begin_again(state, stage, device)
            coming = ordered(batches, position.step, device, partial(_ready, model, stage, device))
            continue
        position.step += 1
        position.global_step += 1
        position.loss += losses["loss"] * predicted
        position.targets += predicted
        if stage.average is not None:
            state.update_average(stage.average)
        seconds = time.perf_counter() - began
        rate = stage.optimizer.lr * factor
        yield Record(replace(position), len(batches), losses, norm, rate, predicted, asked, seconds, waited, prepared)
        prepared = 0.0


def _can_be_halved(state: TrainState, batch: Batch, stage: Stage) -> bool:
    """Whether a batch has more parts to be computed in. Of several processes one alone would know of it."""
    more = len(batch.split(2 * stage.accumulate)) > len(batch.split(stage.accumulate))
    alike = state.model.divisible and state.replays is None and not stage.exchange.static_graph
    return more and alike and world.size() == 1


def _begin_again(state: TrainState, stage: Stage, device: torch.device) -> None:
    """Forget a step that memory did not suffice for: it is done again in more parts, which is the same gradient more slowly."""
    state.parts = stage.accumulate
    state.optimizer.zero_grad(set_to_none=True)
    forget_reads(state.model)
    hardware.collect_garbage(device)
    logger.warning(
        f"Out of memory after step {state.position.global_step}: from here on each batch is computed in {state.parts} parts, "
        f"with the same gradient (train.accumulate={state.parts} says so from the beginning)."
    )


def _ready(model: Model, stage: Stage, device: torch.device, batch: Any) -> Any:
    """The batch on its device, with all that the model makes of it beforehand, but where it will be taken apart."""
    return (batch if stage.accumulate > 1 else model.asked(batch)).to(device)


def _replayed(state: TrainState, replays: Replays, packed: Packed) -> tuple[dict[str, float], float, int, int]:
    """As `train_step`, from a recording where there is one."""
    loss, norm = replays.step(packed, state.optimizer.param_groups[0]["lr"])
    losses, asked = {"loss": loss, replays.term: loss}, packed.batch.num_targets()
    _look(state, losses, norm, asked)
    return losses, norm, packed.batch.count, asked


def train_step(state: TrainState, batch: Batch, stage: Stage, device: torch.device) -> tuple[dict[str, float], float, int, int]:
    """One optimizer step on this process's share of a global batch -> what came of the whole batch.

    Mean loss of each term, norm of the gradient before clipping, predictions made, predictions asked for. Each term's sum is
    divided by its count over the whole batch, so neither accumulation nor padding nor the number of processes changes them.
    """
    parts = batch.split(stage.accumulate) if stage.accumulate > 1 else [batch]
    if stage.accumulate > 1 and (missing := int(world.greatest([len(parts)])[0]) - len(parts)):
        parts += [batch.nothing()] * missing  # of a model in parts every process must compute as often as the others
    named = [state.model.counts(part) for part in parts]
    asked, *counted = map(
        int,
        world.totals(
            [sum(part.num_targets() for part in parts), *(sum(counts[name] for counts in named) for name in named[0])]
        ),
    )
    counts = dict(zip(named[0], counted, strict=True))
    dtype = compute_dtype(stage.precision, device)
    shares = {"loss": torch.zeros((), device=device)}
    predicted = asked
    for number, part in enumerate(parts, 1):
        if stage.compile_mode == "reduce-overhead":
            # What the last replay put out may be overwritten from here on.
            torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
        with state.shares.silent(last=number == len(parts)):
            with record_function("forward"), torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
                terms = state.shares(part).terms
            total = torch.zeros((), device=device)
            for name, term in terms.items():
                mean = term.sum.float() / max(1, counts.get(name, asked))
                total = total + term.weight * mean
                shares[name] = shares.get(name, 0.0) + mean.detach()
            shares["loss"] = shares["loss"] + total.detach()
            predicted = counts.get(next(iter(terms)), asked)
            with record_function("backward"):
                state.shares.backward(state.scaler.scale(total))
    state.shares.exchange_tables()
    state.scaler.unscale_(state.optimizer)  # clipping scaled gradients would clip by the scale, not by the norm
    parameters = [p for group in state.optimizer.param_groups for p in group["params"]]
    with record_function("clip"):
        for group in state.optimizer.param_groups:
            if group.get("clip_rows") is not None:
                clip_rows(group["params"], group["clip_rows"])
        # Read together: it is here, and nowhere before, that a step waits for an accelerator.
        *own, norm = torch.stack([*shares.values(), gradient_norm(parameters).to(device)]).tolist()
        losses = dict(zip(shares, world.totals(own), strict=True))
        _look(state, losses, norm, asked)
        clip(parameters, norm, stage.clip_norm if stage.clip_norm is not None else math.inf)
    with record_function("optimizer"):
        state.scaler.step(state.optimizer)
        state.scaler.update()
        state.optimizer.zero_grad(set_to_none=True)
    return losses, norm, predicted, asked


def _look(state: TrainState, losses: dict[str, float], norm: float, asked: int) -> None:
    """Refuse what is no number, and warn of a gradient that explodes, by its norm before clipping."""
    _refuse_non_finite(losses, state, asked)
    if not math.isfinite(norm) and not state.scaler.is_enabled():  # a scaler leaves such a step out and lowers its scale
        _refuse_non_finite({**losses, "loss": norm, "gradient_norm": norm}, state, asked)
    state.guard.look(norm, state.model, state.position.global_step)


def _refuse_non_finite(losses: dict[str, float], state: TrainState, asked: int) -> None:
    """Stop, all processes together, before a loss or a gradient that is not a number reaches the weights."""
    if math.isfinite(losses["loss"]):
        return
    state.optimizer.zero_grad(set_to_none=True)
    position = state.position
    named = ", ".join(f"{name} = {value}" for name, value in losses.items())
    raise DivergedError(
        f"The loss or its gradient is not finite ({named}) in epoch {position.epoch + 1}, step {position.step + 1}, on a "
        f"batch with {asked} targets. The weights are those before this step. Lower train.optimizer.lr, set "
        "train.clip_norm, or try train.precision=float32."
    )
