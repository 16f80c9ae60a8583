"""What a model is worth before its training, where that begins with weights that were learnt elsewhere; and what came of it."""

import json
import logging
import time
from collections.abc import Mapping

import numpy as np

from turborec import base
from turborec.assembly import Run, measure
from turborec.engine import world
from turborec.evaluate import Result
from turborec.metrics import CatalogueAUC
from turborec.recipes import AnyRecipe

logger = logging.getLogger("turborec")

BEFORE = "before-training"
"""What the results are called beside those of the model and of the anchors."""

SURE = 3.0
"""Standard errors by which a model must differ from chance for it to be known that it does."""


def is_wanted(recipe: AnyRecipe) -> bool:
    """Whether a training begins with weights that are worth something, and baselines are measured at all."""
    return bool(base.given(recipe) and recipe.anchors)


def measure_before(run: Run) -> None:
    """Rank the test part, write down what came of it, and warn where it is no more than chance. It chooses nothing."""
    began = time.monotonic()
    result = measure(run, "test")
    if not world.leads():
        return
    result.write(run.folder / "evaluation" / "test" / BEFORE, run.store)
    auc, error = chance_of(result)
    logger.info(f"Before training, ranked in {time.monotonic() - began:.1f} s: {_listed(result.values)}")
    if abs(auc - 0.5) < SURE * error:
        logger.warning(
            f"Before training, targets rank as they would at random among the items: AUC {auc:.4f}, its standard error "
            f"{error:.4f}. A pretrained model that can read the items does better: its weights do not reach the ranking, its "
            "tokens are not those it was trained with, or items have the rows of others."
        )


def chance_of(result: Result) -> tuple[float, float]:
    """The mean over users of the share of items that a target ranks above, .5 at random, and its standard error."""
    values = CatalogueAUC().per_user(result.ranks["kept"])
    return float(values.mean()), float(values.std() / np.sqrt(len(values)))


def tell_after(run: Run, result: Result) -> None:
    """Say what became of each value, where it was measured before the training."""
    path = run.folder / "evaluation" / "test" / BEFORE / "result.json"
    if not path.is_file():
        return
    before = json.loads(path.read_text(encoding="utf-8"))["values"][result.card["history"]]
    told = [
        f"{name} {before[name]:.4f} -> {value:.4f}" + (f" ({value / before[name]:.2f}x)" if before[name] else "")
        for name, value in result.values.items()
        if name in before
    ]
    logger.info(f"Before and after training: {', '.join(told)}")
    select = run.recipe.select
    if result.values.get(select, 0.0) < before.get(select, 0.0):
        logger.warning(
            f"Training made of the given weights worse ones ({select} {before[select]:.4f} -> {result.values[select]:.4f}): "
            "validation chose among its epochs alone. It may help to learn more slowly, or longer."
        )


def _listed(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.4f}" for name, value in values.items())
