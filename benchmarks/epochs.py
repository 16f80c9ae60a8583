"""Measure an epoch of a recipe beside those of others: python benchmarks/epochs.py RECIPE [A.B=VALUE]... --beside RECIPE...

All train in turns in one process. An epoch of each predicts the same targets once. The row goes to
results/speed/<data>-<model>-epochs.json.
"""

import torch

from measured import arguments, chosen_by, prepared, surroundings, told
from rows import Row, write
from turborec import recipes
from turborec.assembly import assemble
from turborec.bench import step
from turborec.bench.step import Contestant
from turborec.data.loader import TrainingBatches
from turborec.engine import hardware
from turborec.errors import UserError


def main() -> None:
    """Measure and write."""
    parser = arguments(__doc__)
    parser.add_argument("--beside", nargs="+", required=True, help="other recipes for the same data")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=10.0)
    chosen = chosen_by(parser)
    hardware.keep_freed_memory()
    busy, environment = surroundings(parser)
    recipe, store = prepared(chosen)
    found = {chosen.recipe: recipe} | {name: recipes.load(name, chosen.overrides) for name in chosen.beside}
    targets = {name: TrainingBatches(store, one.batches, one.seed).epoch(0).targets for name, one in found.items()}
    if len(set(targets.values())) > 1:
        raise UserError(f"Their epochs predict different numbers of targets: {targets}.")
    contestants = [
        Contestant(name, step.training(assemble(one, store, "cpu")), torch.device("cpu")) for name, one in found.items()
    ]
    measured = {one.name: one for one in step.compete(contestants, chosen.rounds, chosen.seconds)}
    data, model = chosen.recipe.rsplit("/", 1)
    ratios = {
        f"epoch_vs_{name.rsplit('/', 1)[1]}": step.ratio(measured[name], measured[chosen.recipe]) for name in chosen.beside
    }
    seconds = {
        f"{name.rsplit('/', 1)[1]}_epoch_cpu_seconds": targets[name] / step.median(one.per_second("targets", "cpu")).value
        for name, one in measured.items()
    }
    row: Row = {
        "kind": "speed",
        "data": data,
        "model": model,
        "recipe": chosen.recipe,
        "variant": "epochs",
        "seed": recipe.seed,
        "protocol": {
            "work": "steps of each recipe in turns, forward, backward and optimizer; targets a processor second",
            "beside": {name: one.model_dump(mode="json")["model"] for name, one in found.items()},
            "targets": targets[chosen.recipe],
            "rounds": chosen.rounds,
            "seconds": chosen.seconds,
            "overrides": chosen.overrides,
            "counts": store.card["counts"],
            "busy": busy,
        },
        "values": {name: median.value for name, median in ratios.items()} | seconds,
        "intervals": {name: [median.low, median.high] for name, median in ratios.items()},
        "provenance": environment,
    }
    print(write(f"speed/{data}-{model}-epochs", [row]))


if __name__ == "__main__":
    told(main)
