"""How long scores of a whole catalogue take: python benchmarks/inference.py RECIPE --name NAME.

The model as it is called in Python, the program that `turborec export` writes, and that program compiled take turns over the
same histories. Weights are as drawn: time does not depend on them. Rows go to results/inference/NAME.json.
"""

import math
import time
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor

from measured import arguments, chosen_by, prepared, surroundings, told
from rows import Row, numbers, write
from turborec.assembly import Run, assemble
from turborec.bench.step import median
from turborec.exporting import Ranking, examples, program_of

Call = Callable[[Tensor, Tensor], Tensor]


def timed(call: Call, given: tuple[Tensor, Tensor], seconds: float) -> tuple[float, float]:
    """Milliseconds a call, on the wall and of the processor, over about so many seconds."""
    wall, cpu, calls = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - wall < seconds:
        call(*given)
        calls += 1
    return 1e3 * (time.perf_counter() - wall) / calls, 1e3 * (time.process_time() - cpu) / calls


def main() -> None:
    """Measure and write."""
    parser = arguments(__doc__)
    parser.add_argument("--name", required=True, help="what the file of rows is called")
    parser.add_argument("--rows", default="1,64", help="histories a call")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--seconds", type=float, default=1.0)
    chosen = chosen_by(parser)
    busy, environment = surroundings(parser)
    recipe, store = prepared(chosen)
    run = cast("Run", assemble(recipe, store, "cpu"))
    program = program_of(run).module()
    ways: dict[str, Call] = {
        "model": Ranking(run.model, store.num_items),
        "exported": program,
        "exported and compiled": cast("Call", torch.compile(program, dynamic=True)),
    }
    rows: list[Row] = []
    data, model = chosen.recipe.rsplit("/", 1)
    for size in map(int, chosen.rows.split(",")):
        given = examples(run, size)
        with torch.no_grad():
            first = {name: way(*given) for name, way in ways.items()}
            for _ in range(3):
                for way in ways.values():
                    way(*given)
            seen: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
            for number in range(chosen.rounds):
                for name in list(ways) if number % 2 == 0 else reversed(list(ways)):
                    seen[name].append(timed(ways[name], given, chosen.seconds))
        for name, found in seen.items():
            values: dict[str, Any] = {
                "call_ms": median([wall for wall, _ in found]).value,
                "call_cpu_ms": median([cpu for _, cpu in found]).value,
                "difference": float((first[name] - first["model"]).abs().max()),
            }
            ratios = [math.log(a / b) for (_, a), (_, b) in zip(seen["model"], found, strict=True)]
            values["times_as_fast"] = math.exp(median(ratios).value)
            rows.append(
                {
                    "kind": "inference",
                    "data": data,
                    "model": model,
                    "recipe": chosen.recipe,
                    "variant": f"{name}, {size} at a time",
                    "seed": 1,
                    "protocol": {
                        "overrides": chosen.overrides,
                        "items": store.num_items,
                        "rounds": chosen.rounds,
                        "clock": "processor seconds",
                        "busy": busy,
                    },
                    "values": numbers(values),
                    "provenance": environment,
                }
            )
            print(rows[-1]["variant"], values)
    print(write(f"inference/{chosen.name}", rows))


if __name__ == "__main__":
    told(main)
