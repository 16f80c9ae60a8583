"""What drift tells of real data: python benchmarks/drift_reports.py RECIPE [A.B=VALUE]... --every PERIOD [--pages FOLDER].

The recipe must split by time. It is trained; then its data and its model are looked at, and the same data with days and hours
dealt anew, in which every alarm is a false one. The row goes to results/drift/<data>-<model>.json.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from measured import arguments, chosen_by, prepared, surroundings, told
from rows import write
from turborec import run as running
from turborec.checkup import CODES, Checkup, check
from turborec.cli._options import DEFAULT_HOME, periods_of
from turborec.cutting import plan
from turborec.report.drift_page import write_checkup
from turborec.stores import Places
from turborec.worlds import of_store, shuffled

DIGITS = 6


def report(found: Checkup) -> dict[str, Any]:
    """What was found, without the shares of ratings and categories, to so many digits."""
    whole = {name: value for name, value in found.to_json().items() if name != "shares"}
    return dict(_rounded(whole))


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, DIGITS)
    if isinstance(value, dict):
        return {name: _rounded(one) for name, one in value.items()}
    return [_rounded(one) for one in value] if isinstance(value, list | tuple) else value


def alarms(found: Checkup) -> float:
    """Statistics that have moved, once for each period."""
    return float(found.data.beyond.sum())


def main() -> None:
    """Train, look and write."""
    parser = arguments(__doc__)
    parser.add_argument("--every", default="month")
    parser.add_argument("--pages", type=Path, help="also write both pages into this folder")
    chosen = chosen_by(parser)
    busy, environment = surroundings(parser)
    recipe, store = prepared(chosen)
    with tempfile.TemporaryDirectory() as scratch:
        trained, _ = running.train(recipe, Path(scratch) / "run", Places(DEFAULT_HOME, None, store.folder))
    every, world = periods_of(chosen.every), of_store(store)
    found = check(world, plan(world, every), trained)
    dealt = shuffled(world)
    null = check(dealt, replace(plan(dealt, every), remarks=()))
    if chosen.pages:
        for name, one in (("real", found), ("null", null)):
            write_checkup(one, chosen.pages / f"{chosen.recipe.replace('/', '-')}-{name}.html")
    data, model = chosen.recipe.split("/")
    row = {
        "kind": "drift",
        "data": data,
        "model": model,
        "recipe": chosen.recipe,
        "variant": "split by time",
        "seed": recipe.seed,
        "protocol": {
            **{"split": recipe.data.split.model_dump(mode="json"), "every": chosen.every, "epochs": recipe.train.epochs},
            **{"key": store.key, "counts": store.card["counts"], "busy": busy},
        },
        "values": {
            **{"alarms": alarms(found), "alarms_of_null": alarms(null)},
            **{"exit_code": float(CODES[found.verdict]), "exit_code_of_null": float(CODES[null.verdict])},
        },
        "report": report(found),
        "report_of_null": report(null),
        "provenance": environment,
    }
    print(write(f"drift/{data}-{model}", [row]))


if __name__ == "__main__":
    told(main)
