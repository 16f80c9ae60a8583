"""Everything of a training that must survive: if it is a field here it is in the checkpoint, and nothing else is.

But for `shares` and `replays`, which are how the model is called and say nothing about what it has learnt.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from turborec.contract import Model
from turborec.engine.guard import Guard
from turborec.engine.parallel import Shares
from turborec.engine.replay import Replays
from turborec.engine.sharding import held, load_whole, part_of, whole, whole_state
from turborec.engine.stopping import StopperState

Tensors = dict[str, dict[str, Tensor]]


@dataclass
class Position:
    """Where the training stands. Batches follow from it alone."""

    stage: int = 0
    epoch: int = 0  # of the stage
    step: int = 0  # batches done of the epoch
    global_step: int = 0  # optimizer steps done in all
    loss: float = 0.0  # of the epoch so far, summed over its targets
    targets: int = 0  # predicted in the epoch so far
    scheduled: int = 0  # epochs of the stage's schedule that those before it went through


@dataclass
class TrainState:
    """The model and all that its training remembers."""

    shares: Shares
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    position: Position = field(default_factory=Position)
    stopper: StopperState = field(default_factory=StopperState)
    best_step: int | None = None  # global step of the checkpoint with the best validation value of the stage
    average: dict[str, Tensor] | None = None  # exponential moving average of the parameters
    guard: Guard = field(default_factory=Guard)
    parts: int = 1  # a batch is computed in so many at least, since memory did not suffice for fewer
    replays: Replays | None = None  # recordings of steps; none of a checkpoint's business

    @property
    def model(self) -> Model:
        """What is trained."""
        return self.shares.model

    def capture(self) -> tuple[Tensors, dict[str, Any]]:
        """Tensors by file and name, and plain facts: what a checkpoint holds. Every process of a run must ask."""
        optimizer_tensors, optimizer_facts = _flatten(self.optimizer.state_dict())
        numbered = _numbered(self.optimizer)
        optimizer_tensors = {path: whole(t, numbered[_number(path)]) for path, t in optimizer_tensors.items()}
        tensors = {"model": whole_state(self.model), "optimizer": optimizer_tensors, "random": _random_state()}
        if self.average is not None:
            parameters = dict(self.model.named_parameters())
            tensors["average"] = {name: whole(t, parameters[name]) for name, t in self.average.items()}
        facts = {
            "position": asdict(self.position),
            "stopper": self.stopper.to_json(),
            "best_step": self.best_step,
            "optimizer": optimizer_facts,
            "scaler": self.scaler.state_dict(),
            "parts": self.parts,
        }
        return tensors, facts

    def restore(self, tensors: Mapping[str, Mapping[str, Tensor]], facts: Mapping[str, Any]) -> None:
        """Become what `capture` saw."""
        self.replays = None  # of other tensors than those to come
        load_whole(self.model, tensors["model"])
        rates = [group["initial_lr"] for group in self.optimizer.param_groups]
        numbered = _numbered(self.optimizer)
        parts = {path: part_of(t, numbered[_number(path)]) for path, t in tensors["optimizer"].items()}
        self.optimizer.load_state_dict(_unflatten(parts, facts["optimizer"]))
        for group, rate in zip(self.optimizer.param_groups, rates, strict=True):
            group["initial_lr"] = rate  # the recipe's, which checkpoints written before there were such rates do not hold
        self.scaler.load_state_dict(facts["scaler"])
        self.position = Position(**facts["position"])
        self.stopper = StopperState.from_json(facts["stopper"])
        self.best_step, self.parts = facts["best_step"], facts.get("parts", 1)
        parameters, saved = dict(self.model.named_parameters()), tensors.get("average")
        self.average = (
            None if saved is None else {n: part_of(t, parameters[n]).to(parameters[n].device) for n, t in saved.items()}
        )
        _restore_random_state(tensors["random"])

    def update_average(self, decay: float) -> None:
        """Move the average towards the parameters: average = decay * average + (1 - decay) * parameter.

        Early on the decay is lowered to (1 + steps) / (10 + steps), so that the random start is soon forgotten.
        """
        parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        if self.average is None:
            self.average = {name: p.detach().clone() for name, p in parameters.items()}
            return
        steps = self.position.global_step
        weight = 1 - min(decay, (1 + steps) / (10 + steps))
        current = [held(parameters[name].detach()) for name in self.average]
        torch._foreach_lerp_([held(tensor) for tensor in self.average.values()], current, weight)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model with the averaged weights, where there are any, while the block runs."""
        if self.average is None:
            yield
            return
        parameters = dict(self.model.named_parameters())
        own = {name: parameters[name].detach().clone() for name in self.average}
        try:
            _copy(parameters, self.average)
            yield
        finally:
            _copy(parameters, own)


@torch.no_grad()
def _copy(into: Mapping[str, Tensor], values: Mapping[str, Tensor]) -> None:
    for name, value in values.items():
        into[name].copy_(value)


def _numbered(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """The parameters in the order of the numbers that an optimizer's state dict calls them by."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _number(path: str) -> int:
    """Of the parameter that a flattened state belongs to."""
    return int(path.split(".", 1)[0])


def _flatten(state: dict[str, Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """An optimizer's state dict as named tensors and plain facts."""
    tensors: dict[str, Tensor] = {}
    facts: dict[str, Any] = {"groups": state["param_groups"], "values": {}}
    for index, entry in state["state"].items():
        for name, value in entry.items():
            if isinstance(value, Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                facts["values"][f"{index}.{name}"] = value
    return tensors, facts


def _unflatten(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> dict[str, Any]:
    state: dict[int, dict[str, Any]] = {}
    for path, value in [*tensors.items(), *facts["values"].items()]:
        state.setdefault(_number(path), {})[path.split(".", 1)[1]] = value
    return {"state": state, "param_groups": facts["groups"]}


def _random_state() -> dict[str, Tensor]:
    """The generators that library code might draw from; turborec's own draws are keyed by rows and steps."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _restore_random_state(states: Mapping[str, Tensor]) -> None:
    torch.set_rng_state(states["cpu"].cpu())
    if "cuda" in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"].cpu())
