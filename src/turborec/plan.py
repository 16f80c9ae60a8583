"""Before a run: what it will need in memory, disk and time, found by trying a few of its steps; and what stands in its way."""

import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from turborec.assembly import Assembly, Parameters, measure, parameters
from turborec.contract import Counted
from turborec.data.loader import Epoch, Some
from turborec.engine import hardware, log, loop
from turborec.errors import UserError
from turborec.head import tile_bytes
from turborec.preflight import Check, checks, nearest
from turborec.recipe import dump
from turborec.stores import training_batches

STEPS = 20
"""Steps that are tried; the first quarter warms up and does not count."""

USERS = 4096
"""Users that are ranked to see how long a validation takes."""

SCORES = 2 * 10**9
"""Scores that the run in small computes to see what a validation holds: all that there are, if they are no more."""


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters, and bytes."""

    parameters: Parameters
    weights: int  # bytes
    gradients: int
    optimizer: int  # what the optimizer remembers, the moving average included
    activations: int  # kept for the backward pass of the largest batch tried
    logits: int  # held at a time
    peak: int  # the most that a whole run in small, or the accelerator, held while trying
    checkpoint: int  # on disk, each


@dataclass(frozen=True)
class Times:
    """Seconds."""

    step: float
    epoch: float  # of training alone
    validation: float  # after each epoch, or as often as the recipe says
    total: float  # all epochs, if none is spared by early stopping


@dataclass(frozen=True)
class Forecast:
    """What a run will need, and why it cannot work, if it cannot."""

    sizes: Sizes
    times: Times
    steps: int  # an epoch
    events: int  # to learn from, an epoch
    fill: float
    epochs: int
    dtype: str
    device: str
    free_memory: int
    free_disk: int
    environment: dict[str, object]
    checks: tuple[Check, ...]
    warning: str | None = None  # why the times say little
    problems: tuple[str, ...] = ()


def forecast(assembly: Assembly, folder: Path) -> Forecast:
    """Try some steps and a part of a validation, and reckon from them. `folder` is where the run would be written."""
    if isinstance(assembly.model, Counted):
        raise UserError(f"{assembly.recipe.model.kind} is counted in one pass: there is nothing to plan.")
    warning = hardware.busy()
    hardware.keep_freed_memory()
    recipe, device = assembly.recipe, assembly.device
    epoch = training_batches(recipe, assembly.store).epoch(0)
    if not len(epoch):
        raise UserError("There is nothing to train on: no user has two events before the validation part.")
    looked_at = checks(assembly, folder)  # before a step is tried, as a run does
    stage = recipe.stages[0]
    state = loop.start(assembly.model, stage, device)
    activations = _activations(assembly, epoch)
    tried = list(loop.fit(state, Some(epoch, range(min(STEPS, len(epoch)))), stage, device))
    counted = tried[len(tried) // 4 :]
    training = epoch.targets * sum(record.seconds for record in counted) / sum(record.asked for record in counted)
    validation = _validation(assembly)
    epochs = sum(stage.epochs for stage in recipe.stages)
    validations = sum(-(-stage.epochs // recipe.stopping.every) for stage in recipe.stages)
    times = Times(training / len(epoch), training, validation, epochs * training + validations * validation)
    found = Forecast(
        sizes=_sizes(assembly, state.optimizer, activations),
        times=times,
        steps=len(epoch),
        events=epoch.targets,
        fill=epoch.fill,
        epochs=epochs,
        dtype=str(hardware.compute_dtype(recipe.train.precision, device)).removeprefix("torch."),
        device=str(device),
        free_memory=hardware.free_memory(device),
        free_disk=shutil.disk_usage(nearest(folder)).free,
        environment=log.environment(),
        checks=looked_at,
        warning=warning,
    )
    return replace(found, problems=_problems(found, recipe.checkpoints.keep + 2))


def _activations(assembly: Assembly, epoch: Epoch) -> int:
    """Bytes kept for the backward pass of the largest batch among those tried, each storage counted once."""
    steps = range(min(STEPS, len(epoch)))
    largest = max(steps, key=lambda step: len(epoch.order[step]) * epoch.width[step])
    parameters = {p.untyped_storage().data_ptr() for p in assembly.model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    batch = epoch.batch(largest).split(assembly.recipe.train.accumulate)[0].to(assembly.device)
    dtype = hardware.compute_dtype(assembly.recipe.train.precision, assembly.device)
    assembly.model.train()
    lowered = torch.autocast(assembly.device.type, dtype, enabled=dtype != torch.float32)
    with lowered, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        assembly.model(batch)
    return sum(kept.values())


def _validation(assembly: Assembly) -> float:
    """Seconds of a whole validation, from that of some users."""
    users = len(assembly.recipe.evaluation.users(assembly.store, "validation"))
    asked = min(USERS, users)
    some = assembly.recipe.evaluation.without_lists()
    measure(assembly, "validation", config=some.model_copy(update={"max_users": min(256, users)}))  # first touches
    began = time.perf_counter()
    measure(assembly, "validation", config=some.model_copy(update={"max_users": asked}))
    return (time.perf_counter() - began) * users / max(1, asked)


def _sizes(assembly: Assembly, optimizer: torch.optim.Optimizer, activations: int) -> Sizes:
    model, items = assembly.model, assembly.store.num_items
    trainable = [p for p in model.parameters() if p.requires_grad]
    remembered = sum(t.nbytes for state in optimizer.state.values() for t in state.values() if isinstance(t, Tensor))
    weights, gradients = sum(p.nbytes for p in model.parameters()), sum(p.nbytes for p in trainable)
    average = gradients if assembly.recipe.train.average is not None else 0
    saved = gradients if assembly.recipe.adapters is not None else weights  # what is frozen beneath adapters is another run's
    dtype = hardware.compute_dtype(assembly.recipe.train.precision, assembly.device)
    cuda = assembly.device.type == "cuda"
    return Sizes(
        parameters=parameters(model, items),
        weights=weights,
        gradients=gradients,
        optimizer=remembered + average,
        activations=activations,
        logits=tile_bytes(assembly.device, dtype),
        peak=torch.cuda.max_memory_allocated(assembly.device) if cuda else max(hardware.peak_memory(), _run_in_small(assembly)),
        checkpoint=saved + remembered + average,
    )


def _run_in_small(assembly: Assembly) -> int:
    """The most bytes that a run of a few steps holds: training is not all, there are the anchors, the lists, the report.

    As many users are ranked as can be: the shorter the histories of a batch, the more users it has, and the more scores.
    """
    recipe, store = assembly.recipe, assembly.store
    hardware.collect_garbage(assembly.device)  # what the tried steps took is the run's to have
    users = max(1, min(recipe.evaluation.max_users or store.num_users, SCORES // store.num_items))
    smaller = {
        "train": recipe.train.model_copy(update={"epochs": 1}),
        "then": (),
        "evaluation": recipe.evaluation.model_copy(update={"max_users": users}),
    }
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "recipe.yaml"
        path.write_text(dump(recipe.model_copy(update=smaller)), encoding="utf-8")
        command = [sys.executable, "-m", "turborec", "train", str(path), "--steps", str(STEPS), "--store", str(store.folder)]
        command += ["--device", str(assembly.device), "--out", str(Path(scratch) / "run")]
        return hardware.wait_with_peak(subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL))


def _problems(found: Forecast, checkpoints: int) -> tuple[str, ...]:
    """Why the run cannot work, each with what would."""
    problems = [f"{check.name}: {check.says}" for check in found.checks if check.state == "problem"]
    if found.sizes.peak > found.free_memory:
        problems.append(
            f"It needs about {found.sizes.peak / 2**20:,.0f} MiB of memory, and {found.free_memory / 2**20:,.0f} are free: "
            "lower batches.tokens, batches.max_length or model.width, or set train.accumulate."
        )
    needed = found.sizes.checkpoint * checkpoints
    if needed > found.free_disk:
        problems.append(
            f"Its checkpoints take {needed / 2**20:,.0f} MiB of disk, and {found.free_disk / 2**20:,.0f} are free: "
            "lower checkpoints.keep, or choose another folder with --out."
        )
    return tuple(problems)
