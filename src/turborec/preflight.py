"""The checks before a run: data, split, times, kernels, one step's gradients, and a checkpoint written and read back."""

import math
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from turborec import base
from turborec.assembly import Assembly, stated, used_features
from turborec.contract import Counted
from turborec.data import audit
from turborec.data.store import Store
from turborec.drift.periods import instant
from turborec.engine import checkpoint, hardware, world
from turborec.errors import UserError
from turborec.nn.ssm import lowered
from turborec.stores import training_batches

TESTED = {"torch": ("2.11", "2.13"), "numpy": ("1.26", "2.4")}
"""The oldest version that is allowed, and the newest that the tests were run with."""

TOLD = 0.001
"""The share of events from which on it is worth a line what they are like."""

State = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. A note is worth knowing; with a problem no run begins."""

    name: str
    state: State
    says: str
    values: Mapping[str, float] = field(default_factory=dict)  # the numbers in what it says, where others may watch them


def checks(assembly: Assembly, folder: Path) -> tuple[Check, ...]:
    """Look at all that can be known before the first step; checkpoints would be written below `folder`.

    Of several processes the leader looks at data and disk, and all of them at gradients. The weights stay as they are, and
    so does what is drawn later.
    """
    found = []
    if world.leads():
        found += [_data(assembly.store), _split(assembly.store), _times(assembly.store)]
        found += [_features(assembly)] * ("features" in stated(assembly.recipe))
        found.append(_kernels(assembly))
    if not isinstance(assembly.model, Counted):
        found.append(_gradients(assembly))
    if world.leads():
        found.append(_checkpoint(assembly, folder))
    return tuple(found)


def require(found: tuple[Check, ...]) -> None:
    """`UserError` with every problem there is, in all processes alike."""
    problems = [f"{check.name}: {check.says}" for check in found if check.state == "problem"]
    if int(world.greatest([len(problems)])[0]):
        raise UserError("The run does not begin. " + " ".join(problems or ["Another process says why."]))


def _data(store: Store) -> Check:
    if found := audit.faults(store):
        return Check("data", "problem", f"{'; '.join(found)}. Delete {store.folder} and prepare it again.")
    card = store.card
    sources = len(card.get("source", {}).get("files", ()))
    return Check(
        "data", "ok", f"{len(card['files'])} files as they were written (SHA-256), made of {sources} whose sums are known"
    )


def _split(store: Store) -> Check:
    found, kind = audit.split(store), store.card.get("split", {}).get("kind")
    users = ", ".join(f"{number:,} users in {part}" for part, number in found.users.items())
    if kind == "global_time":
        train, validation, test = found.ends["train"], found.begins["validation"], found.begins["test"]
        for earlier, later, name in (
            (train, validation, "validation"),
            (train, test, "test"),
            (found.ends["validation"], test, "test"),
        ):
            if earlier is not None and later is not None and earlier >= later:
                return Check(
                    "split", "problem", f"events before the {name} part are later than some in it: prepare the data again."
                )
    if kind == "item_holdout" and found.cold_targets < 1 and found.users["test"]:
        return Check(
            "split", "problem", f"{1 - found.cold_targets:.1%} of the targets are of items that are trained: prepare again."
        )
    if not found.users["validation"]:
        return Check("split", "note", f"{users}: nobody by whom an epoch could be chosen")
    says, values = [users], {"cold_targets": found.cold_targets}
    if told := found.cold_targets >= TOLD:
        says.append(f"{found.cold_targets:.1%} of the test's events have items that training never sees")
    if found.hindsight:
        values["hindsight"] = found.hindsight
        hindsight = f"{found.hindsight:.0%} of the training events whose times are known are later than half of the test's"
        says.append(f"{hindsight}: a split by global_time has no such hindsight")
    return Check("split", "note" if told or found.hindsight else "ok", "; ".join(says), values)


def _times(store: Store) -> Check:
    found = audit.times(store, time.time())
    if found.first is None or found.last is None:
        return Check("times", "note", "none are known: the order of events is all there is")
    says = [f"{_day(found.first, store.ticks)} to {_day(found.last, store.ticks)}"]
    shares = {
        "are unknown": found.unknown,
        # Some ties are in every log; what else there is should be in none.
        "are those of the event before (order within a tie means nothing)": found.tied * (found.tied >= TOLD * found.events),
        "go back behind the event before": found.backwards,
        "lie in the future": found.future,
    }
    says += [f"{_share(number, found.events)} {what}" for what, number in shares.items() if number]
    values = {"unknown": found.unknown, "tied": found.tied, "backwards": found.backwards, "future": found.future}
    return Check("times", "note" if len(says) > 1 else "ok", "; ".join(says), {"events": found.events, **values})


def _features(assembly: Assembly) -> Check:
    """How many items the tables tell something of."""
    items, used = f"{assembly.store.num_items:,} items", used_features(assembly)
    told = [f"{name}: {one['items']:,} of {items}, {one['width']:,} numbers each" for name, one in used.items()]
    return Check("features", "note", "; ".join(told), {f"items_with_{name}": one["items"] for name, one in used.items()})


def _kernels(assembly: Assembly) -> Check:
    dtype = str(hardware.compute_dtype(assembly.recipe.train.precision, assembly.device)).removeprefix("torch.")
    says = f"products in {dtype} on {assembly.device}, {torch.get_num_threads()} threads"
    if recurrences := lowered(assembly.model):
        says += f"; {recurrences[0].lower()}{recurrences[1:]}"
    train, cuda = assembly.recipe.train, assembly.device.type == "cuda"
    if cuda and assembly.model.replays and not train.replay and world.size() == 1:
        says += "; train.replay=true would record whole steps, of which launches are most of a small model's"
    elif train.replay and not cuda:
        says += "; train.replay records nothing, since this is no CUDA device"
    versions = {"torch": torch.__version__, "numpy": np.__version__}
    strange = [
        f"{name} {versions[name]} (made for {oldest} to {newest})"
        for name, (oldest, newest) in TESTED.items()
        if not _pair(oldest) <= _pair(versions[name]) <= _pair(newest)
    ]
    if dtype == "float16" and assembly.device.type == "cpu":
        return Check("kernels", "note", f"{says}; processors compute float16 products in software, several times as slowly")
    if strange:
        return Check("kernels", "note", f"{says}; not made for {', '.join(strange)}: run `make test`")
    return Check("kernels", "ok", f"{says}; " + ", ".join(f"{name} {version}" for name, version in versions.items()))


def _gradients(assembly: Assembly) -> Check:
    """The loss of the first batch and its gradients, computed as the run will."""
    recipe, model, device = assembly.recipe, assembly.model, assembly.device
    try:
        base.require_given(recipe)
    except UserError as error:
        return Check("gradients", "problem", str(error))
    if recipe.train.exchange.shard == "parameters":
        return Check("gradients", "note", "not tried: no process could hold all of them")
    epoch = training_batches(recipe, assembly.store, (world.rank(), world.size())).epoch(0)
    if not len(epoch):
        return Check("gradients", "problem", "there is nothing to train on: no user has two events before the validation part.")
    batch = epoch.batch(0).split(recipe.train.accumulate)[0].to(device)
    dtype = hardware.compute_dtype(recipe.train.precision, device)
    devices = [device] if device.type == "cuda" else []
    learnt = {name for name, _ in model.named_parameters()}
    before = {name: tensor.clone() for name, tensor in model.state_dict().items() if name not in learnt}
    with torch.random.fork_rng(devices):
        if recipe.adapters is None:
            model.begin()
        model.begin_epoch(0, torch.Generator().manual_seed(recipe.seed))
        model.train()
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            terms = model(batch).terms
        total = torch.stack([term.weight * term.sum.float() / max(1, term.count) for term in terms.values()]).sum()
        total.backward()  # type: ignore[no-untyped-call]
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    strange = [name for name, gradient in gradients.items() if not _finite(gradient)]
    model.zero_grad(set_to_none=True)
    model.load_state_dict(before, strict=False)  # an epoch's own work is not to be found done when it begins
    loss = float(total.detach())
    if not math.isfinite(loss):
        named = ", ".join(f"{name} = {float(term.sum.detach())}" for name, term in terms.items())
        return Check(
            "gradients",
            "problem",
            f"the loss of the first batch is not finite ({named}): are the model's settings what they should be?",
        )
    if strange:
        return Check("gradients", "problem", f"the first batch's are not finite in {', '.join(strange[:5])}.")
    if idle := [name for name, p in model.named_parameters() if name.endswith(".adapter.b") and name not in gradients]:
        return Check(
            "gradients",
            "problem",
            f"the loss does not depend on what is added to {idle[0].removesuffix('.adapter.b')}: leave it out of the targets.",
        )
    says = f"loss {loss:.4f} on the first batch, all of {len(gradients)} gradients finite"
    return Check("gradients", "ok", says, {"loss": loss})


def _finite(gradient: Tensor) -> bool:
    """Whether all numbers of a gradient are; only its rows where it has nothing else."""
    values = gradient.coalesce().values() if gradient.is_sparse else gradient
    return bool(values.isfinite().all())


def _checkpoint(assembly: Assembly, folder: Path) -> Check:
    """Write the weights as a checkpoint, read them back, compare every bit, and remove them."""
    tensors = {name: tensor for name, tensor in assembly.model.state_dict().items() if type(tensor) is Tensor}
    # Named as what a killed process leaves behind, which the next start sweeps away.
    place = nearest(folder) / f"step_000000.tmp.{os.getpid()}"
    try:
        began = time.perf_counter()
        loaded = checkpoint.load(checkpoint.save(place, 0, {"model": tensors}, {}))
        seconds = time.perf_counter() - began
    except UserError as error:
        return Check("checkpoint", "problem", str(error))
    finally:
        shutil.rmtree(place, ignore_errors=True)
    other = [name for name, tensor in tensors.items() if not _same(loaded.tensors["model"][name], tensor.cpu())]
    if other:
        return Check("checkpoint", "problem", f"what was read back is not what was written: {', '.join(other[:5])}.")
    size = sum(tensor.nbytes for tensor in tensors.values()) / 2**20
    return Check("checkpoint", "ok", f"{size:,.1f} MiB written and read back, equal to the bit, in {seconds:.1f} s")


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same bits, so that -0 is not 0 and what is no number is itself."""
    bits = [tensor.contiguous().reshape(-1).view(torch.uint8) for tensor in (one, other)]
    return one.dtype == other.dtype and one.shape == other.shape and torch.equal(*bits)


def nearest(folder: Path) -> Path:
    """The folder, or the nearest one above it that exists."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())


def _day(ticks: int, each: int) -> str:
    """The day of a time, in UTC; the number itself where no calendar reaches."""
    try:
        return f"{instant(ticks, each):%Y-%m-%d}"
    except UserError:
        return f"{ticks / each:.3g} s"


def _share(number: int, total: int) -> str:
    return f"{number:,} ({number / total:.1%})"


def _pair(version: str) -> tuple[int, int]:
    """The first two numbers of a version."""
    major, minor = version.split("+")[0].split(".")[:2]
    return int(major), int(minor)
