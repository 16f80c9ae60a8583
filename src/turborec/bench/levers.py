"""Levers: named changes of a recipe that are meant to make it faster, what each promises, and how it shows that it was on."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from turborec.assembly import layers_of, shape_of
from turborec.bench.evidence import Evidence
from turborec.data.batch import SequenceBatch
from turborec.errors import UserError, closest
from turborec.recipe import Tree, override
from turborec.recipes import AnyRecipe, from_tree

Promise = Literal["exact", "close", "changes the mathematics"]
"""exact: the same rows have the same loss and gradient up to the order of float32 sums; close: reduced precision; else another
objective or optimizer."""


Change = Callable[[AnyRecipe], tuple[str, ...]] | tuple[str, ...]
"""Overrides, or what makes them of a recipe."""


def _optimizer(kind: str) -> Callable[[AnyRecipe], tuple[str, ...]]:
    """Another optimizer with the rate and the decay of the recipe's own."""

    def change(recipe: AnyRecipe) -> tuple[str, ...]:
        own = recipe.train.optimizer
        if own.kind == kind:
            return ()
        kept = own.model_dump(mode="json", include={"lr", "weight_decay", "tables"})
        return (f"train.optimizer={json.dumps({'kind': kind, **kept})}",)

    return change


@dataclass(frozen=True)
class Lever:
    """One change, as overrides of a recipe without it and with it."""

    name: str
    promise: Promise
    off: Change
    on: Change
    proof: Callable[[Evidence, Evidence], str | None]
    """Of the evidence (without, with): the words that show that it was on, or None where nothing shows it."""
    widens: bool = False
    """Without it rows are wider, so that as many of them need more tokens a batch."""
    layered: bool = False
    """It is one of models with a stack of layers."""
    cuda: bool = False
    """It is one of CUDA devices alone."""
    gain_in: Literal["targets", "events"] = "targets"
    """What its rate counts: events seen where it changes how many of them are predicted."""


def _fuller(without: Evidence, with_: Evidence) -> str | None:
    return f"{without.fill:.0%} -> {with_.fill:.0%} of the positions filled" if with_.fill > without.fill else None


def _in(dtype: str) -> Callable[[Evidence, Evidence], str | None]:
    def proof(without: Evidence, with_: Evidence) -> str | None:
        share = with_.products[dtype] / max(1, sum(with_.products.values()))
        return f"{share:.0%} of the products' arithmetic in {dtype}" if share > 0.5 > without.products[dtype] else None

    return proof


def _fewer_logits(without: Evidence, with_: Evidence) -> str | None:
    done, before = with_.flops / max(1, with_.work.targets), without.flops / max(1, without.work.targets)
    return f"{before / 1e6:.2f} -> {done / 1e6:.2f} MFLOP a target" if done < before else None


def _compiled(without: Evidence, with_: Evidence) -> str | None:
    told = f"{with_.graphs} graphs compiled, {with_.breaks} breaks, {with_.regions} calls of compiled code a step"
    return told if with_.regions > 0 else None


def _replayed(without: Evidence, with_: Evidence) -> str | None:
    return f"{with_.replays} recordings replayed a step" if with_.replays > 0 else None


def _computed_again(without: Evidence, with_: Evidence) -> str | None:
    done, before = (seen.flops / max(1, seen.work.events) for seen in (with_, without))
    return f"{before / 1e6:.2f} -> {done / 1e6:.2f} MFLOP an event" if done > 1.01 * before else None


def _at_masks_alone(without: Evidence, with_: Evidence) -> str | None:
    before, left = (seen.work.targets / max(1, seen.work.events) for seen in (without, with_))
    return f"{before:.2f} -> {left:.2f} predictions for each event shown" if left < before else None


def _more_calls(operation: str, told: str) -> Callable[[Evidence, Evidence], str | None]:
    def proof(without: Evidence, with_: Evidence) -> str | None:
        more = with_.calls(operation) - without.calls(operation)
        return f"{told} {more:.2g} times a step" if more > 0 else None

    return proof


def _other_rates(without: Evidence, with_: Evidence) -> str | None:
    before, now = (seen.work.rates / max(1, seen.work.steps) for seen in (without, with_))
    return f"mean rate of the first steps {before:.1e} -> {now:.1e}" if not math.isclose(before, now) else None


def _rows_alone(without: Evidence, with_: Evidence) -> str | None:
    made = with_.calls("_coalesce") - without.calls("_coalesce")
    return f"{made:.0f} gradients of rows alone a step" if made > 0 else None


def _orthogonalised(without: Evidence, with_: Evidence) -> str | None:
    new, old = (seen.calls("mm") + seen.calls("addmm") for seen in (with_, without))
    return f"{new - old:.0f} more matrix products a step, of Newton-Schulz" if new > old else None


LEVERS = (
    Lever("bucketing", "exact", ("batches.shapes=1",), ("batches.shapes=12",), _fuller, widens=True),
    Lever("bf16", "close", ("train.precision=float32",), ("train.precision=bfloat16",), _in("bfloat16")),
    Lever("fp16", "close", ("train.precision=float32",), ("train.precision=float16",), _in("float16"), cuda=True),
    Lever("compile", "exact", ("train.compile=none",), ("train.compile=layers",), _compiled),
    Lever("whole_model", "exact", ("train.compile=none",), ("train.compile=model",), _compiled),
    Lever(
        "cuda_graphs",
        "exact",
        ("train.compile=layers", "train.compile_mode=default"),
        ("train.compile=layers", "train.compile_mode=reduce-overhead"),
        _replayed,
        cuda=True,
    ),
    Lever("recompute", "exact", ("train.recompute=false",), ("train.recompute=true",), _computed_again, layered=True),
    Lever("replay", "close", ("train.replay=false",), ("train.replay=true",), _replayed, cuda=True),
    Lever(
        "rows",
        "changes the mathematics",
        ("model.loss={kind: sampled_softmax, negatives: 256}", "train.optimizer.tables=dense"),
        ("model.loss={kind: sampled_softmax, negatives: 256}", "train.optimizer.tables=rows"),
        _rows_alone,
    ),
    Lever(
        "muon",
        "changes the mathematics",
        _optimizer("adamw"),
        _optimizer("muon"),
        _orthogonalised,
    ),
    Lever(
        "sampled",
        "changes the mathematics",
        ("model.loss={kind: cross_entropy}",),
        ("model.loss={kind: sampled_softmax, negatives: 256}",),
        _fewer_logits,
    ),
    Lever(
        "masked",
        "changes the mathematics",
        ("model.loss_on=every_event",),
        ("model.loss_on=masked",),
        _at_masks_alone,
        gain_in="events",
    ),
    Lever(
        "focal",
        "changes the mathematics",
        ("model.loss={kind: cross_entropy}",),
        ("model.loss={kind: focal}",),
        _more_calls("expm1", "losses weighed"),
    ),
    Lever(
        "clip",
        "changes the mathematics",
        ("train.clip_norm=null",),
        ("train.clip_norm=1.0",),
        _more_calls("_foreach_mul_", "gradients scaled"),
    ),
    Lever(
        "cosine",
        "changes the mathematics",
        ("train.schedule={kind: constant}",),
        ("train.schedule={kind: cosine, warmup: 0.1}",),
        _other_rates,
    ),
)


def lever(name: str) -> Lever:
    """The lever of this name."""
    known = {one.name: one for one in LEVERS}
    if name not in known:
        raise UserError(f"There is no lever {name!r}{closest(name, list(known))}")
    return known[name]


def changed(recipe: AnyRecipe, change: Change) -> AnyRecipe:
    """The recipe with these overrides."""
    assignments = change if isinstance(change, tuple) else change(recipe)
    tree: Tree = recipe.model_dump(mode="json")
    return from_tree(override(tree, assignments), "The recipe with " + " ".join(assignments))


def why_not(one: Lever, recipe: AnyRecipe, device: torch.device) -> str | None:
    """Why a recipe has no such lever on a device; None where it has."""
    if one.cuda and device.type != "cuda":
        return f"The lever {one.name} is one of CUDA devices, and this is a {device.type}."
    if one.widens and recipe.model.batch is not SequenceBatch:
        return f"The lever {one.name} is one of batches of histories, and {recipe.model.kind} trains on pairs."
    try:
        for change in (one.off, one.on):
            made = changed(recipe, change)
        if one.layered and not layers_of(shape_of(made, items=1)):
            raise UserError("it has no stack of layers.")
    except UserError as error:
        return f"The lever {one.name} is none of this recipe's: {error}"
    return None
