"""Measure steps of a graph model beside its plain form: python benchmarks/graphs.py RECIPE [A.B=VALUE]...

LightGCN beside sparse products in coordinates, MMGCN beside messages that are gathered and scattered (plain_graphs.py); both
train in turns in one process, in float32, on the same batches, with the same optimizer, and with parameters of their own
that begin as the same numbers. An epoch of each is as many steps. A further contestant has the machine's reduced precision,
and with --batch another the recipe with that many pairs in a batch, which changes the mathematics. In that process freed
memory is kept for all of them, as training here keeps it; the plain form then runs once more in a process of its own, with
the allocator as it comes, as who writes it plainly has it. The row goes to results/speed/<data>-<model>-graphs.json.
"""

import argparse
import copy
import multiprocessing
from dataclasses import replace

import torch
from torch import Tensor

from measured import arguments, chosen_by, prepared, surroundings, told
from plain_graphs import plain
from rows import Row, write
from turborec import stores
from turborec.assembly import Assembly, assemble
from turborec.bench import step
from turborec.bench.levers import changed
from turborec.bench.step import Contestant
from turborec.contract import Model
from turborec.data.batch import PairBatch
from turborec.engine import hardware
from turborec.stores import training_batches


def main() -> None:
    """Measure and write."""
    parser = arguments(__doc__)
    parser.add_argument("--batch", type=int, help="also measure an epoch with so many pairs in a batch")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=5.0)
    chosen = chosen_by(parser)
    hardware.keep_freed_memory()
    busy, environment = surroundings(parser)
    recipe, store = prepared(chosen)
    exact = changed(recipe, ("train.precision=float32",))
    ours = assemble(exact, store, "cpu")
    theirs = plain_form(ours)
    apart = differences(ours, theirs)
    name = "step_vs_coo" if recipe.model.kind == "lightgcn" else "epoch_vs_gather_scatter"
    entrants = {"ours": ours, "plain": theirs}
    if hardware.compute_dtype("auto", torch.device("cpu")) != torch.float32:
        entrants["reduced"] = assemble(changed(recipe, ("train.precision=auto",)), store, "cpu")
    if chosen.batch:
        entrants["batch"] = assemble(changed(exact, (f"batches.tokens={chosen.batch}",)), store, "cpu")
    contestants = [Contestant(one, step.training(entrant), torch.device("cpu")) for one, entrant in entrants.items()]
    measured = {one.name: one for one in step.compete(contestants, chosen.rounds, chosen.seconds)}
    with multiprocessing.get_context("spawn").Pool(1) as other:  # spawned: it inherits no setting of the allocator
        alone = other.apply(rates_alone, (chosen,))
    # A target is a pair, and an epoch all of them: that is a ratio of steps too, where batches are as large.
    ratios = {one: step.ratio(measured[one], measured["plain"]) for one in measured if one != "plain"}
    ratios["alone"] = step.ratio_of(measured["ours"].per_second("targets", "cpu"), alone)
    names = {
        "alone": f"{name}_default_allocator",
        "ours": name,
        "reduced": f"{name}_reduced_precision",
        "batch": f"{name}_larger_batch",
    }
    epoch = training_batches(exact, store).epoch(0)
    rates = {one: found.per_second("targets", "cpu") for one, found in measured.items()} | {"plain_default_allocator": alone}
    seconds = {f"{one}_epoch_cpu_seconds": epoch.targets / step.median(found).value for one, found in rates.items()}
    data, model = chosen.recipe.rsplit("/", 1)
    row: Row = {
        "kind": "speed",
        "data": data,
        "model": model,
        "recipe": chosen.recipe,
        "variant": "graphs",
        "seed": recipe.seed,
        "protocol": {
            "work": "training steps in turns, forward, backward and optimizer, float32 but where it says otherwise; pairs a "
            "processor second",
            "model": recipe.model.model_dump(mode="json"),
            "pairs_a_batch": recipe.batches.tokens,
            "pairs_a_larger_batch": chosen.batch,
            "larger_batch": "changes the mathematics: fewer steps an epoch",
            "edges": epoch.targets,
            "default_allocator": "the plain form in a process of its own, after the others, freed memory given back",
            "overrides": chosen.overrides,
            "rounds": chosen.rounds,
            "seconds": chosen.seconds,
            "counts": store.card["counts"],
            "source": store.card["source"].get("terms", ""),
            "busy": busy,
        },
        "values": {names[one]: found.value for one, found in ratios.items()} | apart | seconds,
        "intervals": {names[one]: [found.low, found.high] for one, found in ratios.items()},
        "provenance": environment,
    }
    print(write(f"speed/{data}-{model}-graphs", [row]))


def plain_form(ours: Assembly) -> Assembly:
    """The same model written plainly, with parameters of its own."""
    graph = stores.spec_of(ours.store, ours.recipe).graph
    assert graph is not None
    return replace(ours, model=plain(copy.deepcopy(ours.model), graph))


def rates_alone(chosen: argparse.Namespace) -> list[float]:
    """Pairs a processor second of the plain form alone in this process, of each round."""
    torch.set_num_threads(chosen.threads)
    recipe, store = prepared(chosen)
    theirs = plain_form(assemble(changed(recipe, ("train.precision=float32",)), store, "cpu"))
    contestant = Contestant("plain", step.training(theirs), torch.device("cpu"))
    (measured,) = step.compete([contestant], chosen.rounds, chosen.seconds)
    return measured.per_second("targets", "cpu")


def differences(ours: Assembly, theirs: Assembly) -> dict[str, float]:
    """How far loss and gradient of the first batch lie from those of the plain form in float64, relatively.

    Beside ours those of the plain form in float32: long sums of messages, one after another, round more than sums of bags.
    """
    batch = training_batches(ours.recipe, ours.store).epoch(0).batch(0)
    loss, reference = _gradient(copy.deepcopy(theirs.model).double(), batch)
    found = {}
    for name, model in (("", ours.model), ("plain_", theirs.model)):
        value, gradient = _gradient(model, batch)
        found[f"{name}loss_difference"] = abs(value - loss) / abs(loss)
        found[f"{name}gradient_difference"] = float((gradient - reference).norm() / reference.norm())
        model.zero_grad(set_to_none=True)
    return found


def _gradient(model: Model, batch: PairBatch) -> tuple[float, Tensor]:
    """The loss of a batch, and its gradient as one row of numbers; the parameters of both forms are in the same order."""
    model.zero_grad(set_to_none=True)
    total = torch.stack([term.weight * term.sum / term.count for term in model(batch).terms.values()]).sum()
    total.backward()
    return float(total.detach()), torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])


if __name__ == "__main__":
    told(main)
