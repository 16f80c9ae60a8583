"""How much memory a recipe takes from raw files to test values: python benchmarks/bounded.py RECIPE --name NAME --steps N.

One process prepares, takes so many steps of every epoch, and ranks all validation and test targets, as `turborec train` does;
its most resident memory is looked at from outside. The row goes to results/bounded/NAME.json.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measured import arguments, chosen_by, surroundings, told
from rows import Row, numbers, write
from turborec.engine import hardware


def main() -> None:
    """Measure and write."""
    parser = arguments(__doc__)
    parser.add_argument("--name", required=True, help="what the file of rows is called")
    parser.add_argument("--steps", type=int, required=True, help="of an epoch")
    chosen = chosen_by(parser)
    busy, environment = surroundings(parser)
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "run"
        command = [sys.executable, "-m", "turborec", "train", chosen.recipe, *chosen.overrides, "--out", str(run)]
        began = time.perf_counter()
        process = subprocess.Popen(
            [*command, "--steps", str(chosen.steps)], env={**os.environ, "TURBOREC_HOME": str(Path(scratch) / "home")}
        )
        peak = hardware.wait_with_peak(process)
        if process.returncode:
            raise SystemExit(f"The training ended with exit code {process.returncode}.")
        seconds = time.perf_counter() - began
        stores = list((Path(scratch) / "home" / "stores").iterdir())
        store = next(folder for folder in stores if (folder / "card.json").exists())
        counts = json.loads((store / "card.json").read_text(encoding="utf-8"))["counts"]
        size = sum(path.stat().st_size for path in store.iterdir())
        result = next((run / "evaluation" / "test").glob("bert4rec/result.json"))
        users = json.loads(result.read_text(encoding="utf-8"))["protocol"].get("users")
    data, model = chosen.recipe.rsplit("/", 1)
    row: Row = {
        "kind": "bounded",
        "data": data,
        "model": model,
        "recipe": chosen.recipe,
        "variant": "default",
        "seed": 1,
        "protocol": {"overrides": chosen.overrides, "counts": counts, "steps": chosen.steps, "users": users, "busy": busy},
        "values": numbers({"peak_mib": peak / 2**20, "store_mib": size / 2**20, "seconds": seconds}),
        "provenance": environment,
    }
    print(write(f"bounded/{chosen.name}", [row]))


if __name__ == "__main__":
    told(main)
