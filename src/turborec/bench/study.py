"""A study of levers by whole trainings: what each does to the time of an epoch, to memory, and to the time until it is good.

Every variant is trained from nothing in a process of its own, one after another, seed by seed: what slows the machine down for
a while does so to all of them. What has ended is not trained again. Selection is on validation, as in every run, and the test
part is opened once for each.
"""

import json
import logging
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from turborec.bench import guide
from turborec.bench.claims import Values, Verdict, judge, judge_unfinished, of_lever, of_variant
from turborec.bench.guide import Variant
from turborec.bench.levers import changed
from turborec.data.store import Store
from turborec.engine import hardware, log, monitor
from turborec.engine.interrupt import TRY_AGAIN, code_of, interruptible
from turborec.errors import DivergedError, InterruptedRunError, UserError
from turborec.files import write_whole
from turborec.recipe import dump, read
from turborec.recipes import AnyRecipe, from_tree

logger = logging.getLogger("turborec")

BASELINE = "baseline"
SHORT = 1
"""Seconds of an epoch that are too few to judge a lever by."""

TESTED = ("recall@20", "ndcg@20")
"""What is shown of the test, beside the metric that selects, as far as the recipe measures it."""


@dataclass(frozen=True)
class Plan:
    """What is trained, and what counts as good."""

    levers: tuple[str, ...] = guide.NAMES
    own: tuple[str, ...] = ()  # further variants, as `NAME=A.B=VALUE A.B=VALUE`
    share: float = 0.98  # of the baseline's best validation value, from which on a training is good
    seeds: int = 1


def named(text: str) -> tuple[str, ...]:
    """The levers and variants that a comma-separated text names; `all` is every lever, `none` leaves the user's own."""
    if text in ("all", "none"):
        return guide.NAMES if text == "all" else ()
    return tuple(filter(None, map(str.strip, text.split(","))))


def run(recipe: AnyRecipe, store: Store, plan: Plan, folder: Path, device: str = "auto") -> dict[str, Any]:
    """Train the recipe and its variants below `folder`, or read what was: plain data, ready to be written as JSON.

    The baseline is the recipe in float32; each variant is that with its overrides. Anchors are left out.
    """
    where = hardware.device_of(device)
    baseline = changed(recipe, ("anchors=false", *(f"{stage}.precision=float32" for stage in guide.stages(recipe))))
    chosen = [Variant(BASELINE, ()), *guide.variants(plan.levers, plan.own, baseline, where)]
    chosen, recipes = _possible(baseline, chosen)
    same = {name for name, other in recipes.items() if name != BASELINE and other == baseline}
    trained = [name for name in recipes if name not in same]
    before, warning = log.environment(), hardware.busy()
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in trained}
    with log.logging_to(None):
        for number in range(plan.seeds * len(trained)):
            name, seed = trained[number % len(trained)], recipe.seed + number // len(trained)
            own = recipes[name].model_copy(update={"seed": seed})
            place = folder / f"{name}-seed-{seed}"
            told = "was trained before" if _has_ended(place) else f"see {place}.txt"
            logger.info(f"Training {number + 1} of {plan.seeds * len(trained)}: {name}, seed {seed} ({told})")
            runs[name].append({"seed": seed, "folder": str(place), **_trained(own, store, place, device)})
    for several in runs.values():
        _add_time_to_quality(several, runs[BASELINE], plan.share)
    rows = [_row(one, runs.get(one.name, []), one.name in same) for one in chosen]
    clock = "cpu_seconds" if where.type == "cpu" else "seconds"
    return {
        "select": recipe.select,
        "plan": {"levers": plan.levers, "share": plan.share, "seeds": plan.seeds},
        "device": str(where),
        "clock": clock,
        "data": store.card["counts"],
        "terms": store.card.get("source", {}).get("terms"),
        "warning": warning,
        "cautions": _cautions(rows, plan.seeds, sum(stage.epochs for stage in baseline.stages)),
        "rows": rows,
        "levers": _levers(chosen, rows, clock, recipe.select),
        "provenance": before,
    }


def _cautions(rows: list[dict[str, Any]], seeds: int, epochs: int) -> list[str]:
    """What keeps these numbers from saying more."""
    found = []
    if seeds == 1:
        found.append("There is one seed: a difference in quality may be the seed's, and no more.")
    if (rows[0]["values"].get("training_seconds") or SHORT) < SHORT:
        found.append(f"An epoch takes less than {SHORT} s: what is not a step's own has a large part in it.")
    rising = [row["name"] for row in rows if row["values"].get("best_epoch") == row["values"].get("epochs") == epochs]
    if rising:
        found.append(f"At their best when the epochs were over, and so perhaps not yet at it: {', '.join(rising)}.")
    return found


def _possible(baseline: AnyRecipe, chosen: list[Variant]) -> tuple[list[Variant], dict[str, AnyRecipe]]:
    """The variants and the recipes of those that can be trained; what a lever makes of a recipe may be none."""
    found, recipes = [], {}
    for one in chosen:
        try:
            if not one.unfit:
                recipes[one.name] = changed(baseline, one.overrides)
            found.append(one)
        except UserError as error:
            if not one.lever:
                raise  # the user's own words
            found.append(replace(one, unfit=" ".join(str(error).split())))
    return found, recipes


def _trained(recipe: AnyRecipe, store: Store, folder: Path, device: str) -> dict[str, Any]:
    """What the training in `folder` came to; it is begun, or gone on with, unless it has ended."""
    _refuse_another(recipe, store, folder)
    if not _has_ended(folder):
        said, path = folder.with_name(f"{folder.name}.txt"), folder.with_name(f"{folder.name}.yaml")
        folder.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, dump(recipe))
        command = [sys.executable, "-m", "turborec.run", str(path), "--store", str(store.folder), "--out", str(folder)]
        code = _carried_out([*command, "--device", device], said)
        if code in (TRY_AGAIN, 130):
            raise InterruptedRunError("Stopped; what is trained is kept. The same command goes on.", code)
        if code and not _has_ended(folder):
            told = said.read_text(encoding="utf-8", errors="replace").strip().splitlines()
            why = f"killed by signal {-code}, as for lack of memory" if code < 0 else "".join(told[-1:])
            logger.warning(f"{folder.name} failed: {why} ({said} has all that it said)")
            return {"state": "failed", "why": why, **measured(folder, recipe)}
    found = measured(folder, recipe)
    if (state := log.state_of(folder)) == "finished":
        if not found["values"]["steps"]:
            raise UserError(f"{recipe.model.kind} is counted, not trained: there is nothing to study.")
        return {"state": state, "why": None, **found}
    return {"state": "diverged", "why": _reason(folder).partition(": ")[2].partition(". ")[0], **found}


def _refuse_another(recipe: AnyRecipe, store: Store, folder: Path) -> None:
    """Refuse a folder whose training is of another recipe or store."""
    path, facts = folder / "recipe.yaml", folder / "data.json"
    if not path.is_file() or not facts.is_file():
        return
    if from_tree(read(path), str(path)) != recipe or json.loads(facts.read_text(encoding="utf-8"))["key"] != store.key:
        raise UserError(f"{folder} holds a training of another recipe or other data. Give this study another --runs.")


def _has_ended(folder: Path) -> bool:
    """Whether a training is finished, or has diverged, which it would do again."""
    return log.state_of(folder) == "finished" or _reason(folder).startswith(DivergedError.__name__)


def _reason(folder: Path) -> str:
    try:
        return str(json.loads((folder / log.STATUS).read_text(encoding="utf-8"))["reason"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


def _carried_out(command: list[str], said: Path) -> int:
    """The exit code of a training; a signal that this process is sent is handed on, and the training saves what it has."""
    with said.open("ab") as file, interruptible() as request:
        # A session of its own: otherwise a terminal would send Ctrl-C to both, and this process once more.
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        handed: signal.Signals | None = None
        while (code := process.poll()) is None:
            if request.signal and request.signal != handed:
                handed = request.signal
                process.send_signal(handed)
            time.sleep(0.1)
    return code_of(handed) if handed else code


def measured(folder: Path, recipe: AnyRecipe) -> dict[str, Any]:
    """What a run folder tells of its training: `values`, and the `curve` [[seconds, processor seconds, validation value]]."""
    curve: list[list[float]] = []
    epochs: list[dict[str, float]] = [{}]  # seconds of each, those of its parts added up
    held: dict[str, float] = {}
    steps = wrong = left_out = 0
    for record in log.read_metrics(folder):
        if record["kind"] == "train":
            steps += 1
            wrong += record["loss"] is None or record["gradient_norm"] is None
            # A training without a scaler ends with such a step.
            left_out += record["loss"] is not None and record["gradient_norm"] is None
        elif record["kind"] == monitor.CLOCK:
            for name in (name for name in record if name.endswith("_seconds")):
                epochs[-1][name] = epochs[-1].get(name, 0.0) + record[name]
            held |= {name: max(held.get(name, 0.0), record[name]) for name in record if name.endswith("peak_mib")}
        elif record["kind"] == "epoch":
            if record.get(recipe.select) is not None:
                spent = [sum(_sums(epochs, clock)) for clock in ("seconds", "cpu_seconds")]
                curve.append([*spent, record[recipe.select]])
            epochs.append({})
    # The step that ends a training is not among its records.
    wrong += _reason(folder).startswith(f"{DivergedError.__name__}: The loss")
    done = [one for one in epochs if "training_seconds" in one]
    values: dict[str, float | None] = {
        "epochs": len(epochs) - 1,
        "steps": steps,
        "nonfinite_steps": wrong if steps or wrong else None,
    }
    values |= held | {"skipped_steps": left_out}
    for clock in ("seconds", "cpu_seconds"):
        values[f"training_{clock}"] = statistics.median(one[f"training_{clock}"] for one in done) if done else None
        validations = [one.get(f"validation_{clock}", 0.0) for one in done]
        values[f"validation_{clock}"] = sum(validations) / len(done) if curve else None
        values[f"first_epoch_{clock}"] = done[0][f"training_{clock}"] if done else None
        values[f"total_{clock}"] = sum(_sums(epochs, clock)) if done else None
    best = max((point[2] for point in curve), default=None)
    values["validation"] = best
    values["best_epoch"] = _first_epoch(folder, recipe.select, best)
    return {"values": values | _tested(folder, recipe), "curve": curve}


def _sums(epochs: list[dict[str, float]], clock: str) -> list[float]:
    """Seconds of training and validation of each epoch."""
    return [one.get(f"training_{clock}", 0.0) + one.get(f"validation_{clock}", 0.0) for one in epochs]


def _first_epoch(folder: Path, select: str, best: float | None) -> int | None:
    """The epoch with the best validation value, counted over all stages."""
    values = [record.get(select) for record in log.read_metrics(folder) if record["kind"] == "epoch"]
    return values.index(best) + 1 if best is not None else None


def _tested(folder: Path, recipe: AnyRecipe) -> dict[str, float | None]:
    """The test values that are shown, history masked; none before the test part was opened."""
    path = folder / "evaluation" / "test" / recipe.model.kind / "result.json"
    if not path.is_file():
        return {}
    values = json.loads(path.read_text(encoding="utf-8"))["values"]["masked"]
    return {name: values[name] for name in dict.fromkeys([*TESTED, recipe.select]) if name in values}


def time_to(curve: Iterable[Iterable[float]], threshold: float) -> tuple[float, float] | None:
    """Seconds, and processor seconds, until a training is first validated at `threshold` or better; None if it never is."""
    return next(((wall, cpu) for wall, cpu, value in curve if value >= threshold), None)


def _add_time_to_quality(own: list[dict[str, Any]], baseline: list[dict[str, Any]], share: float) -> None:
    """Add it to the values of each run, by the baseline of the same seed."""
    for one, other in zip(own, baseline, strict=True):
        best = other["values"]["validation"]
        found = time_to(one["curve"], share * best) if best is not None else None
        one["values"] |= dict(zip(("quality_seconds", "quality_cpu_seconds"), found or (None, None), strict=True))


def _row(one: Variant, runs: list[dict[str, Any]], same: bool) -> dict[str, Any]:
    """A variant with the means over its seeds; what one of them lacks has no mean."""
    row: dict[str, Any] = {"name": one.name, "lever": one.lever, "overrides": one.overrides, "values": {}, "curve": []}
    if not runs:
        why = "the recipe is the same with it and without it" if same else str(one.unfit)
        return {**row, "state": "not trained", "why": why, "runs": []}
    states = [state for state in ("failed", "diverged", "finished") if any(each["state"] == state for each in runs)]
    reason = next((each["why"] for each in runs if each["why"]), None)
    names = dict.fromkeys(name for each in runs for name in each["values"])
    found = {name: _mean([each["values"].get(name) for each in runs]) for name in names}
    found["trainings"] = len(runs)
    for name in ("nonfinite_steps", "skipped_steps"):  # of all of them
        if counts := [count for each in runs if (count := each["values"].get(name)) is not None]:
            found[name] = sum(counts)
    return {**row, "values": found, "curve": runs[0]["curve"], "state": states[0], "why": reason, "runs": runs}


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if len(known) == len(values) else None


def _levers(chosen: list[Variant], rows: list[dict[str, Any]], clock: Any, select: str) -> list[dict[str, Any]]:
    """What the guide claims of each lever that was looked at, what is known, and whether the claims held."""
    values: Mapping[str, Values] = {row["name"]: row["values"] for row in rows}
    states = {row["name"]: row for row in rows}
    quality = TESTED[0] if TESTED[0] in values[BASELINE] else select
    found = []
    for lever in guide.LEVERS:
        told: list[dict[str, Any]] = []
        for one in (each for each in chosen if each.lever == lever.name):
            own, unfinished = values[one.name], {states[name]["state"] for name in (one.name, BASELINE)} - {"finished"}
            judged = [
                judge_unfinished(claim, states[one.name]["state"])
                if unfinished
                else judge(claim, own, values[BASELINE], clock, quality)
                for claim in one.claims
                if states[one.name]["runs"]
            ]
            told.append(
                {
                    "name": one.name,
                    "held": of_variant(judged),
                    "told": _sentence(states[one.name], values[BASELINE], judged, clock),
                }
            )
        if told:
            held, words = of_lever([one["held"] for one in told])
            facts = {"name": lever.name, "claim": lever.claim, "truth": lever.truth, "held": held, "verdict": words}
            found.append({**facts, "variants": told})
    return found


def _sentence(row: dict[str, Any], baseline: Values, judged: list[Verdict], clock: str) -> str:
    """What was measured of a variant."""
    if not row["runs"]:
        return f"not trained: {row['why']}"
    ended = {"finished": [], "diverged": [f"it diverged ({row['why']})"], "failed": [f"it failed ({row['why']})"]}[row["state"]]
    own, other = row["values"].get(f"quality_{clock}"), baseline.get(f"quality_{clock}")
    if own is not None and other is not None:
        ended.append(f"as good as asked for after {own:,.1f} s, the baseline after {other:,.1f} s")
    return "; ".join([*(one.told for one in judged), *ended])
