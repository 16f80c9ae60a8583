"""Measure how training speeds up with processes, and commit the rows: python benchmarks/scaling.py RECIPE [A.B=VALUE]...

Each measurement is a training of its own, one thread a process. Rows go to results/scaling/<data>-<model>.json.
"""

from typing import Any

from measured import arguments, chosen_by, command, prepared, told
from rows import Row, write
from turborec.bench import scaling


def rows_of(found: dict[str, Any], recipe: str, seed: int, named: str) -> list[Row]:
    """A row for each number of processes and each way to size the batch; `named` is what overrides make of the recipe."""
    data, model = recipe.split("/")
    rows = []
    for measured in found["rows"]:
        alone = measured["processes"] == 1
        variant = "default" if alone else f"{measured['processes']} processes, {measured['mode']}"
        if named:
            variant = f"{named}, one process" if alone else f"{named}, {variant}"
        values = {
            "targets_per_second": measured["targets_per_second"]["value"],
            "step_ms": measured["step_ms"],
            "communication_share": measured["communication_share"],
            "exchanged_mib": measured["exchanged_mib"],
        }
        intervals = {"targets_per_second": [measured["targets_per_second"][end] for end in ("low", "high")]}
        if not alone:
            name = "two_process_speedup" if measured["processes"] == 2 else "process_speedup"
            values[name] = measured["speedup"]["value"]
            intervals[name] = [measured["speedup"][end] for end in ("low", "high")]
        protocol = {
            **found["plan"],
            **{name: measured[name] for name in ("mode", "tokens", "processes")},
            "threads_a_process": 1,
        }
        rows.append(
            {
                "kind": "scaling",
                "data": data,
                "model": model,
                "recipe": recipe,
                "variant": variant,
                "seed": seed,
                "protocol": {**protocol, "named": named, "backend": "gloo", "counts": found["data"], "busy": found["warning"]},
                "values": values,
                "intervals": intervals,
                "provenance": found["provenance"],
            }
        )
    return rows


def main() -> None:
    """Measure and write."""
    parser = arguments(__doc__)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--named", default="", help="what the overrides make of the recipe, such as 'tables shared'")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=8.0)
    chosen = chosen_by(parser)
    recipe, store = prepared(chosen)
    found = scaling.measure(recipe, store, chosen.processes, chosen.rounds, chosen.seconds, "cpu")
    found["provenance"]["command"] = command(parser.prog)
    file = "-".join([*chosen.recipe.split("/"), *chosen.named.split()])
    print(write(f"scaling/{file}", rows_of(found, chosen.recipe, recipe.seed, chosen.named)))


if __name__ == "__main__":
    told(main)
