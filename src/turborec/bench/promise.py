"""Whether a lever kept its promise: the same loss and gradient where it promises that, no worse a ranking where it does not."""

import math
import statistics
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from turborec.assembly import Assembly, assemble, measure
from turborec.bench.levers import Lever
from turborec.data.loader import Some
from turborec.data.store import Store
from turborec.engine import hardware, loop
from turborec.recipes import AnyRecipe
from turborec.stores import training_batches

ALLOWED = {"exact": (1e-5, 1e-3), "close": (1e-2, 1e-1)}
"""Largest relative difference of the loss, and of the gradient (norm of the difference by norm), to the lever's absence.

A gradient of float32 sums in another order differs by about 1e-6 of its largest part, and small parts stand beside large ones;
bfloat16 keeps eight bits of each factor.
"""

STEPS = 20
"""Optimizer steps before the comparison."""

BATCHES = 3
"""Real batches that are compared: one of the narrowest, one of the widest, and between."""


@dataclass(frozen=True)
class Gate:
    """How a lever that changes the mathematics is judged: whole epochs, several seeds, full ranking of the validation part."""

    epochs: int = 0  # 0: not judged
    seeds: int = 3


@dataclass(frozen=True)
class Verdict:
    """What was compared, and whether it is as promised; None where nothing was."""

    kept: bool | None
    told: str


def judge(lever: Lever, without: AnyRecipe, with_: AnyRecipe, store: Store, device: str, gate: Gate) -> Verdict:
    """Compare the two recipes as the lever's promise asks for."""
    if lever.promise == "changes the mathematics":
        return _ranking(without, with_, store, device, gate)
    loss, gradient = differences(assemble(without, store, device), assemble(with_, store, device))
    allowed = ALLOWED[lever.promise]
    told = f"loss within {loss:.0e} (allowed {allowed[0]:.0e}), gradient within {gradient:.0e} (allowed {allowed[1]:.0e})"
    return Verdict(loss <= allowed[0] and gradient <= allowed[1], told)


def differences(without: Assembly, with_: Assembly) -> tuple[float, float]:
    """The largest relative difference of loss and of gradient, of the same rows with the same weights, among real batches.

    The weights have been trained for a few steps: fresh ones make every logit nearly the same.
    """
    _train_a_little(without)
    with_.model.load_state_dict(without.model.state_dict())
    plans = [training_batches(one.recipe, one.store) for one in (without, with_)]
    epoch = plans[1].epoch(0)
    worst = [0.0, 0.0]
    found, at = np.unique(epoch.width, return_index=True)
    for step in at[np.linspace(0, len(found) - 1, min(BATCHES, len(found))).astype(int)].tolist():
        rows = epoch.order[step]
        longest = epoch.rows.lengths[rows].max()
        losses, gradients = [], []
        for assembly, plan in zip((without, with_), plans, strict=True):
            width = int(plan.widths[np.searchsorted(plan.widths, longest)])
            loss, gradient = _gradient(assembly, epoch.batch_of(rows, width, step))
            losses.append(loss)
            gradients.append(gradient)
        apart = math.sqrt(sum(float((a - b).norm()) ** 2 for a, b in zip(*gradients, strict=True)))
        size = math.sqrt(sum(float(a.norm()) ** 2 for a in gradients[0]))
        found_here = (abs(losses[0] - losses[1]) / abs(losses[0]), apart / size)
        worst = [max(w, f) if math.isfinite(f) else math.inf for w, f in zip(worst, found_here, strict=True)]
    return worst[0], worst[1]


def _train_a_little(assembly: Assembly) -> None:
    stage = assembly.recipe.stages[0]
    epoch = training_batches(assembly.recipe, assembly.store).epoch(0)
    state = loop.start(assembly.model, stage, assembly.device)
    for _ in loop.fit(state, Some(epoch, range(min(STEPS, len(epoch)))), stage, assembly.device):
        pass


def _gradient(assembly: Assembly, batch: Any) -> tuple[float, list[Tensor]]:
    """The weighted loss of a batch, and its gradient with respect to every parameter."""
    model, device = assembly.model, assembly.device
    dtype = hardware.compute_dtype(assembly.recipe.train.precision, device)
    model.train()
    model.zero_grad(set_to_none=True)
    with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
        terms = model(batch.to(device)).terms.values()
    total = torch.stack([term.weight * term.sum.double() / max(1, term.count) for term in terms]).sum()
    total.backward()  # type: ignore[no-untyped-call]
    trained = [p for p in model.parameters() if p.requires_grad]
    return float(total.detach()), [torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in trained]


def _ranking(without: AnyRecipe, with_: AnyRecipe, store: Store, device: str, gate: Gate) -> Verdict:
    """Train both for some epochs with several seeds; the lever may cost no more than one standard error of the difference."""
    if not gate.epochs:
        return Verdict(None, "ranking not compared")
    found = [
        [_trained(recipe, store, device, gate.epochs, seed) for seed in range(1, gate.seeds + 1)] for recipe in (without, with_)
    ]
    means = [statistics.fmean(values) for values in found]
    error = math.sqrt(sum(statistics.variance(values) / len(values) for values in found)) if gate.seeds > 1 else 0.0
    told = (
        f"validation NDCG@10 {means[0]:.4f} -> {means[1]:.4f}, standard error {error:.4f} "
        f"({gate.epochs} epochs, {gate.seeds} seeds)"
    )
    return Verdict(means[1] >= means[0] - error, told)


def _trained(recipe: AnyRecipe, store: Store, device: str, epochs: int, seed: int) -> float:
    """NDCG@10 of the validation part, history masked, after a whole training of so many epochs."""
    chosen = recipe.model_copy(update={"seed": seed, "train": recipe.train.model_copy(update={"epochs": epochs})})
    assembly = assemble(chosen, store, device)
    stage, batches = chosen.stages[0], training_batches(chosen, store)
    state = loop.start(assembly.model, stage, assembly.device)
    for number in range(epochs):
        for _ in loop.fit(state, batches.epoch(number), stage, assembly.device):
            pass
        state.position.epoch, state.position.step = number + 1, 0
    with state.averaged():
        return float(measure(assembly, "validation", config=chosen.evaluation.without_lists()).masked["ndcg@10"])
