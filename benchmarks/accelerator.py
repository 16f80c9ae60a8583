"""Steps on one accelerator, in turns with plain PyTorch: python benchmarks/accelerator.py RECIPE --name NAME --ours A,B.

What `eight.py` measures, in the few minutes that a lent accelerator has: each contestant is built, proven to be on, its most
memory taken and its step looked at by the profiler one after the other, and then they take turns. Initial weights are drawn
the quick way, since nothing here depends on them. Rows go to results/configurations/NAME.json.
"""

from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from measured import arguments, chosen_by, command, prepared, surroundings, told
from rows import Row, numbers, write
from turborec.assembly import without_data
from turborec.bench import configurations, matrix, step
from turborec.bench.evidence import Evidence, observe
from turborec.bench.levers import changed
from turborec.bench.profile import _by_the_device
from turborec.bench.step import Contestant
from turborec.recipes import AnyRecipe

KNOWN = {one.name: one for one in (*configurations.EIGHT, *configurations.REPLAYED)}
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel", "cudaGraphLaunch")


def looked_at(contestant: Contestant, steps: int = 5) -> dict[str, Any]:
    """What kernels took of warm steps, the costliest of them, and how often the device was asked for something."""
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA], acc_events=True) as seen:
        for _ in range(steps):
            next(contestant.steps)
        torch.cuda.synchronize()
    events: list[Any] = list(seen.key_averages())
    kernels = sorted((e for e in events if _by_the_device(e, "cuda")), key=lambda e: -e.self_device_time_total)
    total = sum(event.self_device_time_total for event in kernels)
    return {
        "self_device_ms": total / steps / 1e3,
        "top_operation": kernels[0].key[:120],
        "top_share": kernels[0].self_device_time_total / total,
        "calls": sum(event.count for event in events if event.key.startswith(LAUNCHES)) / steps,
    }


def warmed(contestant: Contestant, seconds: float) -> None:
    """As turns begin: all that is compiled or recorded is there, kernels are loaded, plans are made."""
    step._warm(contestant, 30, seconds)


def main() -> None:
    """Measure and write."""
    parser = arguments(__doc__)
    parser.add_argument("--name", required=True, help="what the file of rows is called")
    parser.add_argument("--ours", required=True, help=f"configurations: {', '.join(KNOWN)}")
    parser.add_argument("--against", default="", help="plain PyTorch beside them, such as eager_all_logits")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=1.0)
    chosen = chosen_by(parser)
    torch.nn.init.trunc_normal_ = _drawn_quickly
    busy, environment = surroundings(parser)
    recipe, store = prepared(chosen)
    device = torch.device("cuda")
    variants: dict[str, AnyRecipe] = {
        name: changed(recipe, KNOWN[name].overrides(recipe, device)) for name in filter(None, chosen.ours.split(","))
    }
    variants |= dict.fromkeys(matrix.opponents(chosen.against), recipe)
    contestants, rows = [], []
    for name, variant in variants.items():
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        one = matrix.contestant(name, variant, store, "cuda")
        evidence = observe(one)
        warmed(one, 1.5)
        peak = (torch.cuda.max_memory_allocated() - before) / 2**20
        looks = looked_at(one)
        failed, sizes = shown(name, variant, evidence, store.num_items)
        values = {"peak_mib": peak, "cold_start_seconds": evidence.cold_start, "graphs": evidence.graphs, **sizes, **looks}
        contestants.append(one)
        rows.append(row_of(chosen, name, failed, values, variant, store.card["counts"], busy))
        print(name, values, failed, flush=True)
    for row, seen in zip(rows, step.compete(contestants, chosen.rounds, chosen.seconds), strict=True):
        row["values"] |= numbers(
            {
                "step_ms": 1e3 / step.median(seen.per_second("steps")).value,
                "step_cpu_ms": 1e3 / step.median(seen.per_second("steps", "cpu")).value,
                "targets_per_second": step.median(seen.per_second("targets")).value,
                "targets_a_step": seen.total().targets / seen.total().steps,
                "anew": seen.recompiled,
            }
        )
        row["provenance"] = environment | {"command": command(parser.prog)}
        print(row["variant"], row["values"], flush=True)
    print(write(f"configurations/{chosen.name}", rows))


def shown(name: str, recipe: AnyRecipe, evidence: Evidence, items: int) -> tuple[str | None, dict[str, float]]:
    """Why a configuration was not what it is called, if so, and how much it trains."""
    if name not in KNOWN:
        return None, {}
    sizes = without_data(recipe, items)
    share = sizes.trained / sizes.total
    return KNOWN[name].shown(evidence, share), {"trainable_share": share, "parameters": sizes.total}


def row_of(
    chosen: Any, name: str, failed: str | None, values: dict[str, Any], recipe: AnyRecipe, counts: Any, busy: str | None
) -> Row:
    """What is told of a contestant before its turns; no values where it was not what it is called."""
    data, model = chosen.recipe.rsplit("/", 1)
    lowered = (
        "bfloat16" if recipe.train.precision == "bfloat16" else matrix.EAGER[name][1] if name in matrix.EAGER else "float32"
    )
    top = values.pop("top_operation")
    return {
        "kind": "configurations",
        "data": data,
        "model": model,
        "recipe": chosen.recipe,
        "variant": name,
        "seed": 1,
        "protocol": {
            "name": chosen.name,
            "overrides": chosen.overrides,
            "not_measured": failed,
            "products": lowered,
            "counts": counts,
            "device": "cuda",
            "rounds": chosen.rounds,
            "seconds": chosen.seconds,
            "busy": busy,
            "top_operation": top,
        },
        "values": {} if failed else numbers(values),
    }


def _drawn_quickly(tensor: torch.Tensor, std: float = 1.0, **_: Any) -> torch.Tensor:
    with torch.no_grad():
        return tensor.normal_(std=std)


if __name__ == "__main__":
    told(main)
