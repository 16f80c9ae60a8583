"""The report of a run: results with intervals, curves, examples, data, protocol, surroundings and recipe.

Everything is read from the run folder; recommendations come from the opened run, where its store is at hand.
"""

import json
import logging
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from turborec import __version__, compare, contestants
from turborec.assembly import Run
from turborec.baseline import BEFORE
from turborec.data.store import Part
from turborec.engine import monitor
from turborec.engine.checkpoint import STATE, checkpoints
from turborec.engine.log import read_metrics
from turborec.errors import UserError
from turborec.evaluate import HISTORIES, History
from turborec.intervals import percentile_intervals, resampled_means
from turborec.recipe import Tree, read
from turborec.report import figures, page

if TYPE_CHECKING:
    from markupsafe import Markup

logger = logging.getLogger("turborec")

RESAMPLES = 2_000
"""Of users, for the intervals of a report."""
USERS_SHOWN = (0.1, 0.5, 0.9)
"""Quantiles of history length of the users whose recommendations are shown."""
PART: Part = "test"


def write_report(folder: Path, run: Run | None = None, out: Path | None = None, missing: str = "") -> Path:
    """Write the page of the run in `folder` to `out` (`report.html` in the folder when None) and return where it is.

    Without the opened `run` there are no recommendations on it, and it says that they are `missing`, and why.
    """
    out = out or folder / "report.html"
    page.write(out, run_page(folder, run, missing))
    return out


def run_page(folder: Path, run: Run | None = None, missing: str = "") -> str:
    """The page of the run in `folder`."""
    recipe = read(folder / "recipe.yaml")
    epochs, steps, usage, clock = (_records(folder, kind) for kind in ("epoch", "train", monitor.KIND, monitor.CLOCK))
    chosen = _chosen_epoch(folder, epochs)
    title = f"{recipe['model']['kind']} on {_named(recipe['data']['source'])}, seed {recipe['seed']}"
    results = _results(folder, recipe)
    facts = {
        "title": title,
        "version": __version__,
        "written": page.moment(datetime.now(UTC).timestamp()),
        "name": folder.resolve().name,
        "status": _json(folder / "status.json"),
        "select": recipe["select"],
        "keys": [*_keys(results, recipe, epochs, chosen), *_sizes(folder), *_usage(usage)],
        "results": results,
        "figures": _figures(recipe, epochs, steps, chosen),
        "epochs": [one | _spent(one, clock) for one in epochs],
        "chosen": chosen,
        "examples": [] if run is None else _examples(run),
        "missing": missing,
        "data": _data(folder, results, run),
        "protocol": _protocol(results),
        "environment": page.rows_of(_json(folder / "environment.json")),
        "recipe": (folder / "recipe.yaml").read_text(encoding="utf-8"),
    }
    return page.render("run", facts)


def _spent(epoch: dict[str, Any], clock: list[dict[str, Any]]) -> dict[str, float]:
    """Seconds of an epoch: what the model did before its steps, its steps, its validation."""
    own = [one for one in clock if all(one.get(name) == epoch.get(name) for name in ("stage", "epoch"))]
    before, training, validation = (
        sum(one.get(f"{what}_seconds", 0.0) for one in own) for what in ("preparing", "training", "validation")
    )
    return {"preparing": before, "stepping": max(0.0, training - before), "validating": validation}


def _before(tables: dict[History, list[dict[str, Any]]], models: list[str], history: History) -> list[tuple[str, float, float]]:
    """Of each metric the value before a training that began with given weights, and the one after it."""
    if BEFORE not in models:
        return []
    at = models.index(BEFORE)
    return [(row["metric"], row["cells"][at][0], row["cells"][0][0]) for row in tables[history]]


def _examples(run: Run) -> list[Any]:
    from turborec.apply import examples

    return examples(run, USERS_SHOWN)


def _named(source: dict[str, Any]) -> str:
    """What the data are called: by the source's name or the file of events, where there is one."""
    told = source.get("name") or source.get("events")
    first = told[0] if isinstance(told, list) and told else told
    return f"{source['kind']} ({first})" if first else str(source["kind"])


def _results(folder: Path, recipe: Tree) -> dict[str, Any] | None:
    """Every model's values with intervals over users, and its differences to the run's own; None before the test."""
    own = str(recipe["model"]["kind"])
    found = sorted(path.parent.name for path in (folder / "evaluation" / PART).glob("*/result.json"))
    if own not in found:
        return None
    models, remark = [own, *(model for model in found if model != own)], ""
    try:
        everybody = contestants.read_all([str(folder / model) for model in models], PART)
    except UserError as error:  # such as anchors that an older version measured
        models, remark = [own], str(error)
        everybody = contestants.read_all([str(folder)], PART)
    card = everybody[0].card
    tables = {history: _table(everybody, history, folder, models) for history in HISTORIES}
    metrics = [name for name in dict.fromkeys([recipe["select"], *compare.SHOWN]) if name in everybody[0].values["masked"]]
    terms = compare.Terms(PART, resamples=RESAMPLES)
    anchors = [one for one in everybody[1:] for _ in metrics]
    against = [d for one in everybody[1:] for d in compare.differences([one, everybody[0]], card["history"], metrics, terms)]
    return {
        "models": models,
        "remark": remark,
        "own": own,
        "card": card,
        "history": card["history"],
        "masks": "of training" if "masks" in card else "of the history",
        "ranked": card["candidates"],
        "users": len(everybody[0].users),
        "resamples": RESAMPLES,
        "tables": tables,
        "before": _before(tables, models, card["history"]),
        "against": [(f"{d.metric}, {one.model}", d) for d, one in zip(compare.corrected(against), anchors, strict=True)],
    }


def _table(everybody: list[contestants.Contestant], history: History, folder: Path, models: list[str]) -> list[dict[str, Any]]:
    """A row for each metric: its name, and value, low and high of each model; a list metric has no interval."""
    names = contestants.metrics_of(everybody, history)
    columns = np.stack([one.values[history][name] for name in names for one in everybody], axis=1)
    counts = np.stack([one.count_of(name) for name in names for one in everybody], axis=1)
    drawn = resampled_means(columns, RESAMPLES, counts=counts)
    low, high = (side.reshape(len(names), -1) for side in percentile_intervals(drawn))
    means = np.asarray([[one.mean(history, name) for one in everybody] for name in names])
    rows = [
        {"metric": name, "cells": list(zip(*(side[row].tolist() for side in (means, low, high)), strict=True))}
        for row, name in enumerate(names)
    ]
    written = [_json(folder / "evaluation" / PART / model / "result.json")["values"][history] for model in models]
    lists = [name for name in written[0] if name not in names and all(name in values for values in written)]
    return rows + [{"metric": name, "cells": [(values[name], None, None) for values in written]} for name in lists]


def _keys(
    results: dict[str, Any] | None, recipe: Tree, epochs: list[dict[str, Any]], chosen: int | None
) -> list[tuple[str, str, str]]:
    """The few numbers that are looked for first: name, value, remark."""
    keys = []
    for row in results["tables"][results["history"]] if results else ():
        if row["metric"] in (recipe["select"], "hr@10"):
            value, low, high = row["cells"][0]
            keys.append((f"{row['metric']}, {PART}", f"{value:.4f}", f"{low:.4f} to {high:.4f}" if low is not None else ""))
    if chosen is not None:
        best = epochs[chosen - 1].get(recipe["select"])
        keys.append((f"{recipe['select']}, validation", page.words(best) if best is None else f"{best:.4f}", "chose the epoch"))
        keys.append(("epoch", f"{chosen} of {len(epochs)}", "chosen on validation"))
    if epochs:
        speed = np.median([one["targets_per_second"] for one in epochs])
        keys.append(("training", f"{speed:,.0f}", "targets per second"))
    return keys


def _sizes(folder: Path) -> list[tuple[str, str, str]]:
    """How large the model is, where the run says so: name, value, remark."""
    if not (folder / "model.json").is_file():
        return []
    sizes = _json(folder / "model.json")["parameters"]
    remark = f"{sizes['body']:,} in the body, {sizes['tables']:,} in tables"
    trained = [("trained", f"{sizes['trained'] / sizes['total']:.2%}", "of the parameters")] * (
        sizes["trained"] < sizes["total"]
    )
    return [("parameters", f"{sizes['total']:,}", remark), *trained]


def _usage(records: list[dict[str, Any]]) -> list[tuple[str, str, str]]:
    """What the training used of its machine, where its records say so: name, value, remark."""
    if not records:
        return []
    keys = [("memory", f"{max(one['peak_mib'] for one in records):,.0f} MiB", "the most that a process held")]
    if most := max(one.get("accelerator_peak_mib", 0.0) for one in records):
        keys.append(("accelerator memory", f"{most:,.0f} MiB", "the most that a process reserved"))
    for name, title in (("data_wait_share", "waiting for data"), ("communication_share", "exchange")):
        if known := [one[name] for one in records if name in one]:
            keys.append((title, f"{np.median(known):.1%}", "of the time" if title != "exchange" else "of the time, by itself"))
    return keys


def _figures(
    recipe: Tree, epochs: list[dict[str, Any]], steps: list[dict[str, Any]], chosen: int | None
) -> "list[tuple[str, Markup]]":
    """Caption and drawing of the training curves."""
    if not epochs:
        return []
    numbers = list(range(1, len(epochs) + 1))
    ends = [one["step"] for one in epochs]
    at = np.interp([one["step"] for one in steps], [0, *ends], [0, *numbers]).tolist()
    select = recipe["select"]
    loss = [
        figures.Curve(at, _numbers(steps, "loss"), "steps"),
        figures.Curve(numbers, _numbers(epochs, "loss"), "epochs", True),
    ]
    validated = [number for number in numbers if select in epochs[number - 1]]
    value = [figures.Curve(validated, _numbers([epochs[number - 1] for number in validated], select), marked=True)]
    rate = [figures.Curve(at, _numbers(steps, "lr"))]
    speed = [figures.Curve(numbers, _numbers(epochs, "targets_per_second"), marked=True)]
    return [
        ("Training loss", figures.curves(_told("Training loss", loss[1]), loss, "loss", chosen)),
        (f"{select}, validation", figures.curves(_told(f"Validation {select}", value[0]), value, "validation", chosen)),
        ("Learning rate", figures.curves(_told("Learning rate", rate[0]), rate, "rate", zero=True)),
        ("Targets per second", figures.curves(_told("Targets per second", speed[0]), speed, "speed", zero=True)),
    ]


def _told(what: str, curve: figures.Curve) -> str:
    """What a curve shows, for who cannot see it."""
    known = [value for value in curve.y if np.isfinite(value)]
    if not known:
        return f"{what} by epoch: no numbers"
    return f"{what} by epoch: from {known[0]:.4g} to {known[-1]:.4g}, lowest {min(known):.4g}, highest {max(known):.4g}"


def _data(folder: Path, results: dict[str, Any] | None, run: Run | None) -> dict[str, Any]:
    """The data card, as far as the run folder and the store tell."""
    card = run.store.card if run else {}
    data = results["card"]["data"] if results else {name: card.get(name) for name in ("key", "counts", "tie_rule", "time_unit")}
    filters, split = (
        (results["card"]["filters"], results["card"]["split"]) if results else (card.get("prepare"), card.get("split"))
    )
    known = _json(folder / "data.json")
    facts = {"store": (data["key"] or known.get("key") or "")[:16], "tie rule": data["tie_rule"]}
    if card.get("times"):
        scale = 1000 if card.get("time_unit") == "milliseconds" else 1
        facts["times"] = " to ".join(page.moment(time / scale) for time in card["times"])
    if lengths := card.get("history_lengths"):
        facts["events of a user"] = ", ".join(f"{_quantile(q)} {page.words(n)}" for q, n in lengths.items())
    if terms := card.get("source", {}).get("terms"):
        facts["terms"] = terms
    rules = {"counts": data["counts"] or {}, "filters": filters or {}, "split": split or {}}
    return {"rows": page.rows_of(facts) + page.rows_of(rules), "intake": card.get("rows", {})}


def _quantile(text: str) -> str:
    """Such as `median` for 0.5."""
    return {"0.0": "shortest", "0.5": "median", "1.0": "longest"}.get(text, f"{float(text):.0%}")


def _protocol(results: dict[str, Any] | None) -> list[tuple[str, str]]:
    shown = {k: v for k, v in results["card"].items() if k not in ("data", "filters", "split")} if results else {}
    return page.rows_of_card(shown)


def _records(folder: Path, kind: str) -> list[dict[str, Any]]:
    try:
        return [one for one in read_metrics(folder) if one["kind"] == kind]
    except UserError as error:
        logger.warning("The report has no curves: %s", error)
        return []


def _chosen_epoch(folder: Path, epochs: list[dict[str, Any]]) -> int | None:
    """Which of the epochs, counted over all stages from 1, validation chose."""
    for path in reversed(checkpoints(folder / "checkpoints")):
        step = _json(path / STATE).get("best_step")
        return next((number for number, one in enumerate(epochs, start=1) if one["step"] == step), None)
    return None


def _numbers(records: list[dict[str, Any]], name: str) -> list[float]:
    values = (record.get(name) for record in records)
    return [float("nan") if value is None else float(value) for value in values]


def _json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
