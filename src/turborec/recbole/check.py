"""Whether turborec, with RecBole's habits switched on, finds what RecBole itself finds, from the same weights."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from turborec.bridges.pickled import read
from turborec.data.store import Part
from turborec.errors import UserError
from turborec.recbole import shims
from turborec.recbole.evaluation import metrics_of
from turborec.recbole.job import PARITY, Job, Ranking
from turborec.recbole.training import Assembled, assembled, load_best

Values = dict[Part, dict[str, float]]


def check(job: Job, weights: str | None, as_json: bool) -> int:
    """Print RecBole's values, turborec's with its habits and turborec's own, side by side: 1 where the first two differ."""
    with assembled(job.model_copy(update={"ranking": PARITY})) as run:
        _fill(run, weights)
        digits = int(run.config["metric_decimal_place"])
        same = run.job.model_copy(update={"ranking": PARITY.model_copy(update={"digits": digits})})
        ours = _values(replace(run, job=same))
        state = {name: value.clone() for name, value in run.model.recbole.state_dict().items()}
        metrics = set(metrics_of(run.config))
    with assembled(job.model_copy(update={"ranking": Ranking()})) as run:
        run.model.recbole.load_state_dict(state)
        exact = _values(run)
    theirs = _theirs(job, state, metrics, run.config["device"])
    differing = [(part, name) for part, values in theirs.items() for name in values if values[name] != ours[part][name]]
    if as_json:
        print(json.dumps({"recbole": theirs, "parity": ours, "exact": exact, "differing": differing}))
    else:
        _tell(theirs, ours, exact, digits)
        print(f"{len(differing)} values differ." if differing else f"All values agree to {digits} decimals.")
    return int(bool(differing))


def _fill(run: Assembled, weights: str | None) -> None:
    """Put the weights that are to be checked into the model; None leaves those it was made with."""
    if weights is None:
        return
    if Path(weights).is_dir():
        load_best(run.model, Path(weights))
        return
    saved = read(Path(weights))
    if not isinstance(saved, dict) or not isinstance(saved.get("state_dict"), dict):
        raise UserError(f"{weights} is no checkpoint of RecBole's: it has no state_dict.")
    try:
        run.model.recbole.load_state_dict(saved["state_dict"], strict=True)
    except RuntimeError as error:
        told = " ".join(str(error).split())
        raise UserError(f"The weights in {weights} are not those of this model on these data: {told[:400]}") from error


def _values(run: Assembled) -> Values:
    return {part: dict(run.measured(part).values) for part in run.parts}


def _theirs(job: Job, state: dict[str, Any], metrics: set[str], device: torch.device) -> Values:
    """What RecBole's own loaders and trainer find, of nothing but its own code."""
    with shims.workplace() as scratch:
        config = shims.configured(job, device, scratch)
        _, (train, valid, test) = shims.loaders(config, None)
        model = shims.built(config, train)
        model.load_state_dict(state)
        parts: dict[Part, Any] = {"validation": valid, "test": test}
        return {
            part: {name: value for name, value in shims.own_values(config, model, train, loader).items() if name in metrics}
            for part, loader in parts.items()
            if len(loader._dataset)
        }


def _tell(theirs: Values, ours: Values, exact: Values, digits: int) -> None:
    rows: list[tuple[str, ...]] = [("part", "metric", "RecBole", "turborec --parity", "turborec")]
    for part, values in theirs.items():
        for name in values:
            numbers = (values[name], ours[part][name], exact[part][name])
            rows.append((part, name, *(f"{number:.{digits}f}" for number in numbers)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
