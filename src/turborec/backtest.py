"""How often to train again: a recipe trained on the past of each period and asked for that period and those after it.

Letters: W periods, N sampled targets of a period, O options. An option is a way to train (from nothing, or on from the weights
before) and how many periods go by from one training to the next.
"""

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
from turborec.cutting import Plan, plan
from turborec.data.split import cuts_below
from turborec.data.store import Store
from turborec.drift.periods import Every
from turborec.engine import checkpoint, log
from turborec.engine.interrupt import interruptible
from turborec.files import write_whole
from turborec.progress import task
from turborec.recipe import dump
from turborec.recipes import AnyRecipe
from turborec.training import fit, load_best
from turborec.worlds import World, of_store

logger = logging.getLogger("turborec")
Float = NDArray[np.float64]

Way = Literal["full", "warm"]
DONE = "trained.json"
"""In the folder of a training that is over: what it cost."""
RESAMPLES = 2000


@dataclass(frozen=True)
class Option:
    """A way to keep a model up to date."""

    way: Way
    every: int  # periods from one training to the next; 0: never again
    value: float  # mean of the metric over all targets of all periods
    by_period: list[float]
    seconds: float  # processor seconds of its trainings after the first
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
        """The cheapest whose loss against the best is not shown."""
        return next(option for option in self.options if option.loss[1] <= 0)

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
    `folder` is not trained again.
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
    values: dict[Way, list[list[Float]]] = {way: [] for way in ways}  # by training, by period from its own on
    seconds: dict[Way, list[float]] = {way: [] for way in ways}
    with task("Trainings", 2 * len(begins) - 1, "trainings") as advance:
        for way, one in ways.items():
            before: Run | None = None
            for number, begin in enumerate(begins):
                first = number == 0
                if first and way == "warm":
                    values[way].append(values["full"][0])  # both begin with the same training
                    seconds[way].append(seconds["full"][0])
                    before = _trained(recipe, store, world, begin, folder / "full-0", device, None)[0]
                    continue
                trained, cost = _trained(
                    one, store, world, begin, folder / f"{way}-{number}", device, before if way == "warm" else None
                )
                seconds[way].append(cost)
                values[way].append(
                    [ranked_at(world, trained, chosen.names[k], places[k]).targets.values for k in range(number, len(begins))]
                )
                before = trained
                advance(1)
    return Backtest(recipe.select, chosen, _options(values, seconds, seed))


def _trained(
    recipe: AnyRecipe, store: Store, world: World, begin: int, folder: Path, device: str, before: Run | None
) -> tuple[Run, float]:
    """The recipe trained on what lies before an instant, on from another training's weights if one is named; and its cost."""
    cuts, parts = cuts_below(store.histories.offsets, store.histories.times, begin - (world.begins - world.validates), begin)
    seen = replace(store, cuts=cuts, parts=parts)
    run = Run(**vars(assemble(recipe, seen, device)), folder=folder)
    done = folder / DONE
    if done.is_file() and (newest := checkpoint.load_latest(run.checkpoints)) is not None:
        load_best(run, newest)
        return run, float(json.loads(done.read_text(encoding="utf-8"))["seconds"])
    if before is not None:
        run.model.load_state_dict(before.model.state_dict())
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / "recipe.yaml", dump(recipe))
    began = time.process_time()
    with log.logging_to(folder), interruptible() as interruption:
        fit(run, None, interruption, None)
    cost = time.process_time() - began
    write_whole(done, json.dumps({"seconds": cost, "begin": begin}))
    return run, cost


def _options(values: dict[Way, list[list[Float]]], seconds: dict[Way, list[float]], seed: int) -> list[Option]:
    """Every way at every cadence, from the cheapest to the dearest."""
    windows = len(values["full"])
    cadences = sorted({m for m in (1, 2, 3, 4, 6, 12) if m < windows})
    found: list[tuple[Way, int, list[Float], float]] = [("full", 0, values["full"][0], 0.0)]
    for way in values:
        for every in cadences if way == "full" else cadences[:1]:
            used = [every * (k // every) for k in range(windows)]
            shown = [values[way][j][k - j] for k, j in enumerate(used)]
            found.append((way, every, shown, sum(seconds[way][j] for j in set(used) if j)))
    joined = [np.concatenate(shown) for _, _, shown, _ in found]
    best = joined[int(np.argmax([one.mean() for one in joined]))]
    generator = np.random.default_rng(seed)
    weights = generator.multinomial(len(best), np.full(len(best), 1 / len(best)), RESAMPLES) / len(best)
    options = []
    for (way, every, shown, cost), one in zip(found, joined, strict=True):
        low, high = np.quantile(weights @ (best - one), [0.025, 0.975])
        loss = (float((best - one).mean()), float(low), float(high))
        options.append(Option(way, every, float(one.mean()), [float(part.mean()) for part in shown], cost, loss))
    return sorted(options, key=lambda option: option.seconds)
