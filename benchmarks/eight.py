"""The eight configurations of a study of BERT4Rec, warm and in turns: python benchmarks/eight.py RECIPE --name NAME.

Whole training and instance-wise adapters, each plain, in reduced precision, compiled, and compiled with recordings where there
are any. Beside the time of a step: what the profiler says of it, the most memory of a process of its own, and the proof that
each was on. Plain PyTorch with a logit everywhere, as the study trained, stands beside them where it fits into memory. Rows go
to results/configurations/NAME.json.
"""

from typing import Any

from measured import arguments, chosen_by, command, prepared, surroundings, told
from rows import Row, numbers, write
from turborec.assembly import assemble
from turborec.bench import configurations, matrix
from turborec.bench.profile import Profile, take
from turborec.data.store import Store
from turborec.engine import hardware
from turborec.errors import UserError
from turborec.recipes import AnyRecipe

KERNELS = ("aten::", "turborec::", "mkldnn::", "Torch-Compiled", "void ", "ampere", "sm90", "nvjet", "triton")


def looked_at(recipe: AnyRecipe, store: Store) -> dict[str, Any]:
    """What the profiler says of warm steps: time within operations, the costliest with its share, what lies between them."""
    seen: Profile = take(assemble(recipe, store), steps=5)
    ours = [one for one in seen.operations if one.name.startswith(KERNELS)] or list(seen.operations)
    return {
        "self_device_ms": sum(one.milliseconds for one in seen.operations),
        "top_operation": ours[0].name,
        "top_share": ours[0].share,
        "calls": sum(one.calls for one in seen.operations),
    }


def main() -> None:
    """Measure and write."""
    parser = arguments(__doc__)
    parser.add_argument("--name", required=True, help="what the file of rows is called")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--against", default="eager_all_logits", help="plain PyTorch beside them, or nothing")
    chosen = chosen_by(parser)
    _, environment = surroundings(parser)
    recipe, store = prepared(chosen)
    plan = matrix.Plan((), matrix.opponents(chosen.against), chosen.rounds, chosen.seconds, eight=True)
    try:
        found = matrix.run(recipe, store, plan)
    except UserError as error:  # such as logits that do not fit
        print(f"Without {chosen.against}: {error}")
        plan = matrix.Plan((), (), chosen.rounds, chosen.seconds, eight=True)
        found = matrix.run(recipe, store, plan)
    possible, _ = configurations.possible(recipe, hardware.device_of("auto"))
    measured = {row["name"]: row for row in found["rows"]}
    rows: list[Row] = []
    provenance = environment | {"command": command(parser.prog)}
    for one in found["configurations"]:
        rows.append(row_of(chosen, one, measured.get(one["name"]), found, provenance))
        if one["name"] in possible:
            looks = looked_at(possible[one["name"]], store)
            rows[-1]["protocol"]["top_operation"] = looks.pop("top_operation")
            rows[-1]["values"] |= numbers(looks)
    for name in plan.against:
        rows.append(row_of(chosen, {"name": name, "failed": None}, measured[name], found, provenance))
    print(write(f"configurations/{chosen.name}", rows))


def row_of(
    chosen: Any, one: dict[str, Any], row: dict[str, Any] | None, found: dict[str, Any], provenance: dict[str, Any]
) -> Row:
    """What is told of a configuration; no values where it was not measured."""
    data, model = chosen.recipe.rsplit("/", 1)
    values: dict[str, Any] = {}
    if row is not None and one["failed"] is None:
        sizes = row["parameters"] or {}
        values = {
            "step_ms": row["step_ms"],
            "step_cpu_ms": row["step_cpu_ms"],
            "targets_per_second": row["targets_per_second"]["value"],
            "peak_mib": row["peak_mib"],
            "cold_start_seconds": row["cold_start_seconds"],
            "graphs": row["graphs"],
            **({"trainable_share": sizes["trained"] / sizes["total"], "parameters": sizes["total"]} if sizes else {}),
        }
    return {
        "kind": "configurations",
        "data": data,
        "model": model,
        "recipe": chosen.recipe,
        "variant": one["name"],
        "seed": 1,
        "protocol": {
            "name": chosen.name,
            "overrides": chosen.overrides,
            "not_measured": one["failed"],
            "products": row["main_type"] if row else None,
            "counts": found["data"],
            "device": found["device"],
            "rounds": chosen.rounds,
            "seconds": chosen.seconds,
            "busy": found["warning"],
        },
        "values": numbers(values),
        "provenance": provenance,
    }


if __name__ == "__main__":
    told(main)
