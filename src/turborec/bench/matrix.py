"""The matrix of a benchmark: the recipe, its levers one at a time and plain PyTorch, measured together and made into rows."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from turborec.assembly import Assembly, assemble, without_data
from turborec.bench import configurations, eager, flops, levers, limits, step
from turborec.bench.evidence import Evidence, observe
from turborec.bench.levers import Lever
from turborec.bench.promise import Gate, Verdict, judge
from turborec.bench.step import Contestant, Measurement, Work
from turborec.contract import Counted
from turborec.data.store import Store
from turborec.engine import hardware, log
from turborec.errors import UserError, closest
from turborec.losses import CrossEntropy
from turborec.recipes import AnyRecipe
from turborec.stores import training_batches

logger = logging.getLogger("turborec")

EAGER: dict[str, tuple[eager.Logits, eager.Products]] = {
    "eager": ("targets", "float32"),
    "eager_all_logits": ("all", "float32"),
    "eager_bf16": ("targets", "bfloat16"),
    "eager_tf32": ("targets", "tf32"),
}
"""Plain PyTorch with logits where there is a target, with logits everywhere, and the first in lower precision."""

UNJUDGED = Gate()

VERSIONS = 8
"""Of a layer's compiled code, that one contestant may need: with and without gradients, of all places or of some."""

Measurements = dict[str, Measurement]
Ceilings = dict[str, limits.Limits]


@dataclass(frozen=True)
class Plan:
    """What is measured, and for how long."""

    levers: tuple[str, ...] = ()
    against: tuple[str, ...] = ()
    rounds: int = 6
    seconds: float = 2.0
    memory: bool = True  # also the peak memory of each contestant, in a process of its own
    gate: Gate = UNJUDGED
    eight: bool = False  # the configurations of `configurations`, too


def run(recipe: AnyRecipe, store: Store, plan: Plan, device: str = "auto") -> dict[str, Any]:
    """Measure the recipe on the store: plain data, ready to be written as JSON."""
    hardware.keep_freed_memory()
    chosen = [levers.lever(name) for name in plan.levers]
    unfit = [reason for one in chosen if (reason := levers.why_not(one, recipe, hardware.device_of(device)))]
    if unfit:
        raise UserError("\n".join(unfit))
    variants = _variants(recipe, store, chosen, plan.against, hardware.device_of(device))
    possible, missing = configurations.possible(recipe, hardware.device_of(device)) if plan.eight else ({}, {})
    variants |= possible
    warning, before = hardware.busy(), log.environment()
    if any(variant.train.compile != "none" for variant in variants.values()):
        _make_room(len(variants))
    contestants = [contestant(name, variant, store, device) for name, variant in variants.items()]
    if warning:
        logger.warning(warning)
    evidence = {}
    for racer in contestants:
        logger.info(f"Looking at the first steps of: {racer.name}{', which compile' * racer.compiled}")
        evidence[racer.name] = observe(racer)
    sizes = {name: _parameters(name, variants[name], store) for name in variants}
    logger.info(f"Measuring in turns: {plan.rounds} x {len(contestants)} of {plan.seconds:g} s")
    measured = {m.name: m for m in step.compete(contestants, plan.rounds, plan.seconds)}
    ceilings = _ceilings(recipe, store, {seen.main_type() for seen in evidence.values()}, contestants[0].device)
    rows = [
        _row(name, variants[name], store, measured, evidence[name], ceilings) | {"parameters": sizes[name]} for name in variants
    ]
    if plan.memory:
        for row in rows:
            row["peak_mib"] = _peak(row["name"], variants[row["name"]], store, device)
    verdicts = []
    for one in chosen:
        judged = partial(judge, one, store=store, device=device, gate=plan.gate)
        verdicts.append(_verdict(one, variants, measured, evidence, judged))
    return {
        "data": store.card["counts"],
        "device": str(contestants[0].device),
        "limits": {name: asdict(limit) for name, limit in ceilings.items()},
        "plan": asdict(plan),
        "warning": warning,
        "rows": rows,
        "levers": verdicts,
        "configurations": _configured(possible, missing, evidence, sizes),
        "provenance": before,
    }


def _make_room(contestants: int) -> None:
    """Let torch keep compiled code of so many: they share functions, and past a limit one of them would run plain code."""
    import torch._dynamo

    limit = torch._dynamo.config.recompile_limit
    torch._dynamo.config.recompile_limit = max(limit, VERSIONS * contestants)


def _parameters(name: str, recipe: AnyRecipe, store: Store) -> dict[str, int] | None:
    """How many numbers a contestant of ours has, where that is known without its data."""
    try:
        return None if name in EAGER else asdict(without_data(recipe, store.num_items))
    except UserError:  # of a model that is built from its data
        return None


def _configured(
    possible: dict[str, AnyRecipe], unfit: dict[str, str], evidence: dict[str, Evidence], sizes: dict[str, Any]
) -> list[dict[str, str | None]]:
    """Of each of the eight configurations why it is not one of the rows, or not what it is called; None where it is."""
    found = []
    for one in configurations.EIGHT if possible or unfit else ():
        failed = unfit.get(one.name)
        if failed is None:
            known = sizes[one.name] or {"trained": 1, "total": 1}  # adapters are of models whose sizes are known
            failed = one.shown(evidence[one.name], known["trained"] / known["total"])
        found.append({"name": one.name, "failed": failed})
    return found


def named(text: str, recipe: AnyRecipe) -> tuple[str, ...]:
    """The levers that a comma-separated text names; `all` names every one that this machine and the recipe have."""
    if text != "all":
        return tuple(filter(None, map(str.strip, text.split(","))))
    return tuple(one.name for one in levers.LEVERS if levers.why_not(one, recipe, hardware.device_of("auto")) is None)


def opponents(text: str) -> tuple[str, ...]:
    """The opponents that a comma-separated text names."""
    chosen = tuple(filter(None, map(str.strip, text.split(","))))
    for name in chosen:
        if name not in EAGER:
            raise UserError(f"There is no opponent {name!r}{closest(name, list(EAGER))}.")
    return chosen


def contestant(name: str, recipe: AnyRecipe, store: Store, device: str) -> Contestant:
    """The recipe's own steps, or those of plain PyTorch where the name says so."""
    assembly = assemble(recipe, store, device)
    if isinstance(assembly.model, Counted):
        raise UserError(f"{recipe.model.kind} is counted, not trained: it has no step to measure.")
    compiled, recorded = recipe.train.compile != "none", recipe.train.replay and assembly.device.type == "cuda"
    if name in EAGER:
        compiled = recorded = False
    return Contestant(name, _steps(name, assembly), assembly.device, compiled, recorded)


def _steps(name: str, assembly: Assembly) -> Iterator[Work]:
    if name not in EAGER:
        return step.training(assembly)
    if assembly.recipe.model.kind not in eager.KINDS:
        raise UserError(f"There is no plain PyTorch version of {assembly.recipe.model.kind} (known: {', '.join(eager.KINDS)}).")
    rows = _rows_a_step(assembly.recipe, assembly.store)
    positions = rows * (assembly.recipe.batches.max_length + 1)
    logits = 3 * 4 * positions * (assembly.store.num_items + 1)  # bytes of them, their probabilities and their gradient
    if name == "eager_all_logits" and logits > hardware.free_memory(assembly.device):
        raise UserError(f"{name} would hold {logits / 2**30:,.0f} GiB of logits, more than there is: leave it out.")
    if name == "eager_tf32" and assembly.device.type != "cuda":
        raise UserError("eager_tf32 needs a CUDA device: TF32 is a type of its products.")
    return eager.training(assembly, rows, *EAGER[name])


def _rows_a_step(recipe: AnyRecipe, store: Store) -> int:
    """Rows of a batch on the mean: with as many, another way of training has as many targets a step."""
    epoch = training_batches(recipe, store).epoch(0)
    return max(1, round(len(epoch.rows.users) / max(1, len(epoch))))


def _variants(
    recipe: AnyRecipe, store: Store, chosen: list[Lever], against: tuple[str, ...], device: torch.device
) -> dict[str, AnyRecipe]:
    """Name and recipe of each contestant; a lever whose state the recipe has already needs one other contestant only."""

    def computed(one: AnyRecipe) -> tuple[AnyRecipe, torch.dtype]:
        """What tells recipes apart, which `precision: auto` and the type it comes to do not."""
        dtype = hardware.compute_dtype(one.train.precision, device)
        return levers.changed(one, ("train.precision=auto",)), dtype

    variants = {"recipe": recipe}
    for one in chosen:
        for word, assignments in (("without", one.off), ("with", one.on)):
            changed = levers.changed(recipe, assignments)
            if one.widens and word == "without":
                changed = levers.changed(
                    changed, (f"batches.tokens={_rows_a_step(recipe, store) * recipe.batches.max_length}",)
                )
            if computed(changed) != computed(recipe):
                variants[f"{word} {one.name}"] = changed
    return variants | dict.fromkeys(against, recipe)


def _ceilings(recipe: AnyRecipe, store: Store, types: set[str], device: torch.device) -> Ceilings:
    """The machine's limits in the types that the contestants' products ran in."""
    width = getattr(recipe.model, "width", 64)
    shape = (min(recipe.batches.tokens, 8192), width, min(store.num_items, 16384))
    return {name: limits.measure(device, getattr(torch, name), (shape,)) for name in sorted(types - {"none"})}


def _row(
    name: str,
    recipe: AnyRecipe,
    store: Store,
    measured: Measurements,
    seen: Evidence,
    ceilings: Ceilings,
) -> dict[str, Any]:
    measurement = measured[name]
    total, epoch = measurement.total(), training_batches(recipe, store).epoch(0)
    rate = step.median(measurement.per_second("targets"))
    events = step.median(measurement.per_second("events"))
    shown = int(epoch.rows.lengths.sum())
    stated = str(hardware.compute_dtype(recipe.train.precision, measurement.device)).removeprefix("torch.")
    products = seen.main_type() if seen.products else stated  # within compiled code nothing is seen
    row: dict[str, Any] = {
        "name": name,
        "loss": "cross_entropy" if name in EAGER else getattr(getattr(recipe.model, "loss", None), "kind", "bpr"),
        "step_ms": 1e3 / step.median(measurement.per_second("steps")).value,
        "step_cpu_ms": 1e3 / step.median(measurement.per_second("steps", "cpu")).value,
        "targets_per_second": asdict(rate),
        "targets_per_cpu_second": asdict(step.median(measurement.per_second("targets", "cpu"))),
        "events_per_second": asdict(events),
        "epoch_seconds": shown / events.value,
        "cold_start_seconds": seen.cold_start,
        "fill": total.events / total.positions if name in EAGER else epoch.fill,
        "rounds": len(measurement.samples),
        "main_type": products,
        "graphs": seen.graphs,
        "graph_breaks": seen.breaks,
        "recompiled": measurement.recompiled,
        "vs_recipe": asdict(_ratio(measured["recipe"], measurement)) if name != "recipe" else None,
        "over": {other: asdict(_ratio(measurement, measured[other])) for other in EAGER if other in measured},
    }
    useful = flops.useful(
        _exact(recipe.model) if name in EAGER else recipe.model,
        store.num_items,
        epoch.rows.lengths,
        round(shown * total.targets / total.events),
    )
    ceiling = ceilings.get(products)
    if useful is not None and ceiling is not None:
        row["useful_flop_utilisation"] = useful / shown * events.value / ceiling.flops
        if seen.flops:
            row["hardware_flop_utilisation"] = seen.flops / max(1, seen.work.targets) * rate.value / ceiling.flops
    return row


def _exact(model: Any) -> Any:
    """The model with the loss that plain PyTorch has."""
    return model.model_copy(update={"loss": CrossEntropy()})


def _ratio(fast: Measurement, slow: Measurement, quantity: str = "targets") -> step.Median:
    """By processor time; beside an accelerator, which the processor waits for, by wall time."""
    return step.ratio(fast, slow, quantity, clock="cpu" if fast.device.type == "cpu" else "wall")


def _verdict(
    one: Lever,
    variants: dict[str, AnyRecipe],
    measured: Measurements,
    evidence: dict[str, Evidence],
    judged: Callable[..., Verdict],
) -> dict[str, Any]:
    """What a lever gave, whether it was seen to be on, and whether it kept its promise: what fails either has no gain."""
    without, with_ = (name if name in variants else "recipe" for name in (f"without {one.name}", f"with {one.name}"))
    if without == with_:
        return {"name": one.name, "failed": "the recipe is the same with it and without it"}
    found: dict[str, Any] = {
        "name": one.name,
        "promise": one.promise,
        "proof": one.proof(evidence[without], evidence[with_]),
        "gain": None,
    }
    if not found["proof"]:
        return {**found, "failed": "nothing shows that it was on"}
    verdict = judged(without=variants[without], with_=variants[with_])
    found |= {"kept": verdict.kept, "comparison": verdict.told}
    if verdict.kept is False:
        return {**found, "failed": f"it did not keep its promise: {verdict.told}"}
    return {**found, "failed": None, "gain": asdict(_ratio(measured[with_], measured[without], one.gain_in))}


def _peak(name: str, recipe: AnyRecipe, store: Store, device: str) -> float | None:
    """Peak MiB of a fresh process that takes a few steps: of the accelerator if there is one, else resident."""
    command = [sys.executable, "-m", "turborec.bench", "--peak-of", name, "--store", str(store.folder), "--device", device]
    done = subprocess.run(command, input=recipe.model_dump_json(), capture_output=True, text=True, check=False)
    if done.returncode:
        logger.warning(f"The memory of {name} could not be measured: {done.stderr.strip().splitlines()[-1:]}")
        return None
    return float(json.loads(done.stdout)["peak_mib"])


def peak(name: str, recipe: AnyRecipe, store: Store, device: str, steps: int = 3) -> float:
    """Peak MiB of this process after a few steps of a contestant."""
    hardware.keep_freed_memory()
    one = contestant(name, recipe, store, device)
    for _ in range(10 * steps if one.recorded else steps):  # shapes are recorded when they come again
        next(one.steps)
    if one.device.type == "cuda":
        return torch.cuda.max_memory_allocated(one.device) / 2**20
    return hardware.peak_memory() / 2**20
