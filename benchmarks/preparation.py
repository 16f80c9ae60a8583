"""Measure how long a recipe's raw files take to become a store, and how much memory: python benchmarks/preparation.py RECIPE.

A process of its own prepares into an empty home; then another finds the store again. The row goes to results/preparation/.
Raw files are those of --raw.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measured import arguments, chosen_by, surroundings, told
from rows import Row, numbers, write
from turborec.engine import hardware

PREPARE = (
    "import json, sys\n"
    "from pathlib import Path\n"
    "from turborec import recipes, stores\n"
    "recipe = recipes.load(sys.argv[1], json.loads(sys.argv[4]))\n"
    "store = stores.of_recipe(recipe, stores.Places(Path(sys.argv[2]), Path(sys.argv[3])))\n"
    "print(json.dumps([store.card['counts'], store.card['source'].get('terms', '')]))\n"
)


def prepared(chosen: argparse.Namespace, home: Path) -> tuple[float, float, dict[str, int], str]:
    """Seconds, the most MiB that were held, counts, and whose data it is."""
    command = [sys.executable, "-c", PREPARE, chosen.recipe, str(home), str(chosen.raw), json.dumps(chosen.overrides)]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    peak = hardware.wait_with_peak(process)
    assert process.stdout is not None
    if process.returncode:
        raise SystemExit(f"The preparation ended with exit code {process.returncode}.")
    counts, terms = json.loads(process.stdout.read().splitlines()[-1])
    return time.perf_counter() - began, peak / 2**20, counts, terms


def main() -> None:
    """Measure and write."""
    parser = arguments(__doc__)
    parser.add_argument("--raw", type=Path, required=True, help="a folder that holds the raw files")
    parser.add_argument("--name", required=True, help="what the data are called in the row")
    chosen = chosen_by(parser)
    busy, environment = surroundings(parser)
    files = [path for path in sorted(chosen.raw.rglob("*")) if path.is_file()]
    with tempfile.TemporaryDirectory() as scratch:
        seconds, peak, counts, terms = prepared(chosen, Path(scratch))
        again, _, _, _ = prepared(chosen, Path(scratch))
        size = sum(path.stat().st_size for path in (Path(scratch) / "stores").rglob("*") if path.is_file())
    row: Row = {
        "kind": "preparation",
        "data": chosen.name,
        "model": "none",
        "recipe": chosen.recipe,
        "variant": "default",
        "seed": 1,
        "protocol": {"overrides": chosen.overrides, "counts": counts, "source": terms, "busy": busy},
        "values": numbers(
            {
                "raw_mib": sum(path.stat().st_size for path in files) / 2**20,
                "store_mib": size / 2**20,
                "seconds": seconds,
                "found_again_seconds": again,
                "events_per_second": counts["events"] / seconds,
                "peak_mib": peak,
            }
        ),
        "provenance": environment,
    }
    print(write(f"preparation/{chosen.name}", [row]))


if __name__ == "__main__":
    told(main)
