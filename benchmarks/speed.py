"""Measure a recipe's step, levers and plain PyTorch, and commit the rows: python benchmarks/speed.py RECIPE [A.B=VALUE]...

Rows go to results/speed/<data>-<model>[-<name>].json. Ratios are of targets a processor second, from rounds in pairs.
"""

from typing import Any

from measured import arguments, chosen_by, command, prepared, told
from rows import Row, write
from turborec.bench import matrix, promise

VALUES = ("step_ms", "step_cpu_ms", "epoch_seconds", "fill", "peak_mib", "cold_start_seconds", "useful_flop_utilisation")
VALUES += ("hardware_flop_utilisation", "graphs", "graph_breaks")
MEDIANS = ("targets_per_second", "targets_per_cpu_second", "events_per_second")


def rows_of(found: dict[str, Any], recipe: str, variant: str, seed: int, protocol: dict[str, Any]) -> list[Row]:
    """A row for every contestant; that of the recipe itself has the ratios to plain PyTorch, those of levers their gain."""
    data, model = recipe.split("/")
    levers = {one["name"]: one for one in found["levers"]}
    made = []
    for measured in found["rows"]:
        name = measured["name"]
        values = {value: float(measured[value]) for value in VALUES if measured.get(value) is not None}
        medians = {median: measured[median] for median in MEDIANS}
        proof = None
        if name not in matrix.EAGER:
            # Plain PyTorch has the exact loss whatever the recipe's: the name says where the two losses differ.
            sampled = "sampled_" * (measured["loss"] != "cross_entropy")
            medians |= {f"targets_per_second_{sampled}vs_{other}": ratio for other, ratio in measured["over"].items()}
        if name.split(" ", 1)[-1] in levers:
            lever = levers[name.split(" ", 1)[-1]]
            medians |= {"gain_of_lever": lever["gain"]} if lever.get("gain") else {}
            proof = {key: lever.get(key) for key in ("name", "promise", "proof", "kept", "comparison", "failed")}
        made.append(
            {
                "kind": "speed",
                "data": data,
                "model": model,
                "recipe": recipe,
                "variant": variant if name == "recipe" else f"{variant}, {name}".removeprefix("default, "),
                "seed": seed,
                "protocol": {**protocol, "lever": proof, "products": measured["main_type"]},
                "values": values | {median: one["value"] for median, one in medians.items()},
                "intervals": {median: [one["low"], one["high"]] for median, one in medians.items()},
                "provenance": found["provenance"],
            }
        )
    return made


def main() -> None:
    """Measure and write."""
    parser = arguments(__doc__)
    parser.add_argument("--levers", default="all")
    parser.add_argument("--against", default="eager,eager_all_logits,eager_bf16")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument(
        "--gate", type=int, default=0, help="epochs after which levers that change the mathematics are compared"
    )
    parser.add_argument("--precision", choices=("float32", "bfloat16", "auto"), default="float32")
    parser.add_argument("--name", default="", help="of what is changed, as the rows and their file say it")
    chosen = chosen_by(parser)
    changed = [one for one in chosen.overrides if not one.startswith("data.source=")]
    if not chosen.name and (changed or chosen.threads > 1 or chosen.precision != "float32"):
        parser.error("what is changed needs a --name: the file without one is that of the recipe as it ships")
    chosen.overrides.append(f"train.precision={chosen.precision}")
    recipe, store = prepared(chosen)
    judged, opponents = promise.Gate(chosen.gate), matrix.opponents(chosen.against)
    plan = matrix.Plan(matrix.named(chosen.levers, recipe), opponents, chosen.rounds, chosen.seconds, gate=judged)
    found = matrix.run(recipe, store, plan)
    found["provenance"]["command"] = command(parser.prog)
    protocol = {
        "precision": chosen.precision,
        "threads": chosen.threads,
        "loss": recipe.model.loss.model_dump(mode="json"),
        "work": "whole optimizer steps: batch, forward, backward, clipping, optimizer",
        "rounds": plan.rounds,
        "seconds": plan.seconds,
        "overrides": chosen.overrides,
        "counts": found["data"],
        "limits": found["limits"],
        "busy": found["warning"],
    }
    rows = rows_of(found, chosen.recipe, chosen.name or "default", recipe.seed, protocol)
    print(write(f"speed/{chosen.recipe.replace('/', '-')}{f'-{chosen.name}' * bool(chosen.name)}".replace(" ", "-"), rows))


if __name__ == "__main__":
    told(main)
