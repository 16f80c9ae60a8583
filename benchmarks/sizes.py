"""How good and how fast one model is at several sizes: python benchmarks/sizes.py amazon-beauty-2014/bert4rec --out RUNS.

Each of SIZES is trained whole with every seed, from nothing, the epoch chosen on validation; its step is then measured in
turns with those of the others, and looked at by the profiler. Sizes differ by nothing but width, heads and layers, and the
rate of each is the best of RATES by validation with the first seed. Rows go to results/sizes/<data>-<model>.json; a run that
is in RUNS already is not trained again. On another machine, `--name` adds its rows beside those that are there.
"""

import json
import os
from pathlib import Path
from typing import Any

from ablation import trained
from adapt import best_validation, cost
from measured import arguments, chosen_by, command, prepared, surroundings, told
from rows import Row, numbers, write
from turborec import recipes
from turborec.assembly import assemble, without_data
from turborec.bench import matrix, step
from turborec.bench.profile import take
from turborec.cli._options import DEFAULT_HOME
from turborec.data.store import Store
from turborec.recipes import AnyRecipe
from turborec.stores import training_batches

SIZES = {
    "width 16": ["model.width=16", "model.heads=1", "model.hidden=32", "model.layers=1"],
    "width 32": ["model.width=32", "model.heads=1", "model.hidden=64", "model.layers=1"],
    "width 64": ["model.width=64", "model.heads=1", "model.hidden=128", "model.layers=1"],
    "width 128": ["model.width=128", "model.heads=1", "model.hidden=256", "model.layers=1"],
    "width 256": ["model.width=256", "model.heads=2", "model.hidden=512", "model.layers=2"],
}
RATES = (2e-3, 4e-3, 8e-3)


def quality(folder: Path, kind: str) -> dict[str, float]:
    """Of a run's test part, history masked."""
    result = json.loads((folder / "evaluation" / "test" / kind / "result.json").read_text(encoding="utf-8"))
    return {name: result["values"]["masked"][name] for name in ("hr@10", "ndcg@10")}


def measured(recipe: AnyRecipe, store: Store, memory: bool) -> dict[str, Any]:
    """The step's operations and memory, beside what a measurement in turns says of its time."""
    seen = take(assemble(recipe, store), steps=5)
    top = next(one for one in seen.operations if one.name.startswith("aten::"))
    found = {"self_device_ms": sum(one.milliseconds for one in seen.operations), "top_share": top.share}
    if memory:
        found["peak_mib"] = matrix._peak("size", recipe, store, "auto")
    return {"values": found, "top_operation": top.name}


def main() -> None:
    """Train, measure and write."""
    parser = arguments(__doc__)
    parser.add_argument("--out", type=Path, required=True, help="the folder of the runs")
    parser.add_argument("--sizes", default=",".join(SIZES), help="those to look at")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--name", help="what the file of rows is called, if not by the recipe")
    chosen = chosen_by(parser)
    _, store = prepared(chosen)
    home = Path(os.environ.get("TURBOREC_HOME", DEFAULT_HOME))
    busy, provenance = surroundings(parser)
    found: dict[str, tuple[AnyRecipe, list[Path]]] = {}
    for size in filter(None, chosen.sizes.split(",")):
        tried = {}
        for rate in RATES:
            changes = [*chosen.overrides, *SIZES[size], f"train.optimizer.lr={rate}"]
            tried[rate] = recipes.load(chosen.recipe, changes)

        def run_of(rate: float, seed: int, own: AnyRecipe, size: str = size) -> Path:
            folder = chosen.out / f"{size.replace(' ', '-')}-{rate:g}-{seed}"
            return trained(own.model_copy(update={"seed": seed}), folder, home, store)

        values = {rate: best_validation(run_of(rate, 1, own), own.select) for rate, own in tried.items()}
        best = max(values, key=lambda rate: values[rate])
        found[size] = tried[best], [run_of(best, seed, tried[best]) for seed in range(1, chosen.seeds + 1)]
    contestants = [matrix.contestant(size, recipe, store, "auto") for size, (recipe, _) in found.items()]
    rates = {one.name: one for one in step.compete(contestants, chosen.rounds)}
    rows = [
        row_of(chosen, size, found[size], rates[size], store, provenance | {"command": command(parser.prog)}, busy)
        for size in found
    ]
    print(write(f"sizes/{chosen.name or chosen.recipe.replace('/', '-')}", rows))


def row_of(
    chosen: Any,
    size: str,
    made: tuple[AnyRecipe, list[Path]],
    rate: step.Measurement,
    store: Store,
    provenance: dict[str, Any],
    busy: str | None,
) -> Row:
    """What is told of a size."""
    recipe, runs = made
    data, model = chosen.recipe.rsplit("/", 1)
    sizes = without_data(recipe, store.num_items)
    tested = [quality(folder, recipe.model.kind) for folder in runs]
    seen = measured(recipe, store, memory=True)
    costs = [cost(folder) for folder in runs]
    shown = int(training_batches(recipe, store).epoch(0).rows.lengths.sum())
    values = {name: sum(one[name] for one in tested) / len(tested) for name in tested[0]}
    values |= {"parameters": sizes.total, "body": sizes.body, "tables": sizes.tables}
    values |= {
        "targets_per_second": step.median(rate.per_second("targets")).value,
        "targets_per_cpu_second": step.median(rate.per_second("targets", "cpu")).value,
        "step_ms": 1e3 / step.median(rate.per_second("steps")).value,
        "step_cpu_ms": 1e3 / step.median(rate.per_second("steps", "cpu")).value,
        "epoch_seconds": shown / step.median(rate.per_second("events")).value,
        "epoch_cpu_seconds": sum(one["training_cpu_seconds"] / one["epochs"] for one in costs) / len(costs),
        **seen["values"],
    }
    result = json.loads((runs[0] / "evaluation" / "test" / recipe.model.kind / "result.json").read_text(encoding="utf-8"))
    return {
        "kind": "sizes",
        "data": data,
        "model": model,
        "recipe": chosen.recipe,
        "variant": size,
        "seed": 1,
        "protocol": {
            **result["protocol"],
            "history": "masked",
            "seeds": len(runs),
            "model": recipe.model.model_dump(mode="json"),
            "rate": recipe.train.optimizer.lr,
            "rates_tried": list(RATES),
            "top_operation": seen["top_operation"],
            "busy": busy,
            "source": store.card["source"].get("terms", ""),
        },
        "values": numbers(values),
        "by_seed": {name: [one[name] for one in tested] for name in tested[0]},
        "provenance": provenance,
    }


if __name__ == "__main__":
    told(main)
