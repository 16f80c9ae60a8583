"""How often to train again: a recipe trained on the past of each period and asked for that period and those after it.

Letters: W periods, N sampled targets of a period, O options. An option is a way to train (from nothing, or on from the weights
before) and how many periods go by from one training to the next.
"""

import hashlib
import json
import logging
import math
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from turborec.assembly import Run, assemble
from turborec.checkup import ranked_at, sampled_events
from turborec.contract import Counted
from turborec.cutting import Plan, plan
from turborec.data.split import cuts_below
from turborec.data.store import Store
from turborec.drift.periods import Every
from turborec.engine import checkpoint, log
from turborec.engine.interrupt import interruptible
from turborec.errors import UserError
from turborec.files import write_whole
from turborec.progress import task
from turborec.recipe import dump
from turborec.recipes import AnyRecipe
from turborec.training import fit, load_best
from turborec.worlds import World, of_store

logger = logging.getLogger("turborec")
Float = NDArray[np.float64]

Way = Literal["full", "warm"]
MADE_OF, DONE = "made_of.json", "trained.json"
"""In the folder of a training: what it is made of, from its beginning, and what it cost, once it is over."""
NEAR = 0.05
"""Costs that differ by less are taken for equal."""
RESAMPLES = 2000


@dataclass(frozen=True)
class Cost:
    """What a training has cost."""

    events: int  # of the training part, once for each epoch
    seconds: float  # of the processor


@dataclass(frozen=True)
class Option:
    """A way to keep a model up to date."""

    way: Way
    every: int  # periods from one training to the next; 0: never again
    value: float  # mean of the metric over all targets of all periods
    by_period: list[float]
    events: int  # that its trainings after the first have gone through, once for each epoch: what it costs on any machine
    seconds: float  # processor seconds of these
    loss: tuple[float, float, float]  # of the metric against the best option: mean, low and high of 95 %

    @property
    def name(self) -> str:
        """In words."""
        if not self.every:
            return "never again"
        return f"{'anew' if self.way == 'full' else 'on'}, every {'period' if self.every == 1 else f'{self.every} periods'}"


@dataclass(frozen=True)
class Backtest:
    """What came of all options, the cheapest first."""

    metric: str
    plan: Plan
    options: list[Option]

    @property
    def recommended(self) -> Option:
        """Of those whose loss against the best is not shown, the best of such as cost the least, but for `NEAR`."""
        fair = [option for option in self.options if option.loss[1] <= 0]
        least = min(option.events for option in fair)
        return max((option for option in fair if option.events <= (1 + NEAR) * least), key=lambda option: option.value)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON."""
        options = [{"name": option.name, **vars(option)} for option in self.options]
        return {"metric": self.metric, "periods": self.plan.names, "options": options, "recommended": self.recommended.name}


def backtest(
    recipe: AnyRecipe,
    store: Store,
    every: Every | int,
    folder: Path,
    device: str = "auto",
    warm_epochs: int | None = None,
    sampled: int = 2000,
    seed: int = 0,
) -> Backtest:
    """Train for each period on what came before it, both ways, and rank what users did in it and in the later ones.

    `warm_epochs`: of a training that goes on from the weights before; by default a quarter of the recipe's. What is trained in
    `folder` is not trained again, and refused where it is of another recipe, store or period. A model that is counted does not
    go on from what it was.
    """
    world = of_store(store)
    chosen = plan(world, every)
    begins = [int(chosen.periods.edges[p]) for p in chosen.current]
    spans = [(int(chosen.periods.edges[p]), int(chosen.periods.edges[p + 1])) for p in chosen.current]
    places = sampled_events(world, spans, sampled, seed)
    warm = recipe.model_copy(
        update={"train": recipe.train.model_copy(update={"epochs": warm_epochs or math.ceil(recipe.train.epochs / 4)})}
    )
    ways: dict[Way, AnyRecipe] = {"full": recipe, "warm": warm}
    values: dict[Way, list[list[Float]]] = {"full": []}  # by training, by period from its own on
    costs: dict[Way, list[Cost]] = {"full": []}

    def add(way: Way, number: int, before: Run | None) -> Run:
        at = begins[number]
        trained, cost = _trained(ways[way], store, world, at, folder / f"{way}-{number}", device, before)
        later = range(number, len(begins))
        values[way].append([ranked_at(world, trained, chosen.names[k], places[k]).targets.values for k in later])
        costs[way].append(cost)
        advance(1)
        return trained

    with task("Trainings", 2 * len(begins) - 1, "trainings") as advance:
        first = add("full", 0, None)
        for number in range(1, len(begins)):
            add("full", number, None)
        if not isinstance(first.model, Counted):
            values["warm"], costs["warm"] = values["full"][:1], costs["full"][:1]  # both begin with the same training
            before = first
            for number in range(1, len(begins)):
                before = add("warm", number, before)
    return Backtest(recipe.select, chosen, _options(values, costs, seed))


def _trained(
    recipe: AnyRecipe, store: Store, world: World, begin: int, folder: Path, device: str, before: Run | None
) -> tuple[Run, Cost]:
    """The recipe trained on what lies before an instant, on from another training's weights if one is named; and its cost."""
    validates = begin - (world.begins - world.validates)
    cuts, parts = cuts_below(store.histories.offsets, store.histories.times, validates, begin)
    seen = replace(store, cuts=cuts, parts=parts)
    run = Run(**vars(assemble(recipe, seen, device)), folder=folder)
    _claim(folder, recipe, {"store": store.key, "validates": validates, "begin": begin})
    done = folder / DONE
    if done.is_file() and (newest := checkpoint.load_latest(run.checkpoints)) is not None:
        load_best(run, newest)
        return run, Cost(**json.loads(done.read_text(encoding="utf-8")))
    if before is not None:
        run.model.load_state_dict(before.model.state_dict())
    began = time.process_time()
    with log.logging_to(folder), interruptible() as interruption:
        fit(run, None, interruption, None)
    cost = Cost(_epochs(run) * int((cuts[:, 0] - store.histories.offsets[:-1]).sum()), time.process_time() - began)
    write_whole(done, json.dumps(vars(cost)))
    return run, cost


def _claim(folder: Path, recipe: AnyRecipe, made_of: dict[str, Any]) -> None:
    """Write down what a training is made of, and refuse a folder with one of something else."""
    text, path = dump(recipe), folder / MADE_OF
    made_of = {"recipe": hashlib.sha256(text.encode()).hexdigest(), **made_of}
    if path.is_file() or (folder / DONE).is_file():
        if not path.is_file() or json.loads(path.read_text(encoding="utf-8")) != made_of:
            raise UserError(f"{folder} holds a training of another recipe, store or period. Give this backtest another --out.")
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "recipe.yaml", text)
    write_whole(path, json.dumps(made_of))


def _epochs(run: Run) -> int:
    """How many epochs a training has run, which may have stopped early; a model that is counted sees its data once."""
    newest = checkpoint.load_latest(run.checkpoints)
    if newest is None or isinstance(run.model, Counted):
        return 1
    at = newest.state["position"]
    return sum(stage.epochs for stage in run.recipe.stages[: at["stage"]]) + int(at["epoch"])


def _options(values: dict[Way, list[list[Float]]], costs: dict[Way, list[Cost]], seed: int) -> list[Option]:
    """Every way at every cadence, from the cheapest to the dearest."""
    windows = len(values["full"])
    cadences = sorted({m for m in (1, 2, 3, 4, 6, 12) if m < windows})
    found: list[tuple[Way, int, list[Float], list[Cost]]] = [("full", 0, values["full"][0], [])]
    for way in values:
        for every in cadences if way == "full" else cadences[:1]:
            used = [every * (k // every) for k in range(windows)]
            shown = [values[way][j][k - j] for k, j in enumerate(used)]
            found.append((way, every, shown, [costs[way][j] for j in sorted(set(used)) if j]))
    joined = [np.concatenate(shown) for _, _, shown, _ in found]
    best = joined[int(np.argmax([one.mean() for one in joined]))]
    generator = np.random.default_rng(seed)
    weights = generator.multinomial(len(best), np.full(len(best), 1 / len(best)), RESAMPLES) / len(best)
    options = []
    for (way, every, shown, paid), one in zip(found, joined, strict=True):
        low, high = np.quantile(weights @ (best - one), [0.025, 0.975])
        loss = (float((best - one).mean()), float(low), float(high))
        events, seconds = sum(cost.events for cost in paid), sum(cost.seconds for cost in paid)
        options.append(Option(way, every, float(one.mean()), [float(part.mean()) for part in shown], events, seconds, loss))
    return sorted(options, key=lambda option: option.events)
