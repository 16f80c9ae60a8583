"""How near the forecasts of `turborec plan` come to whole runs: python benchmarks/forecasts.py RECIPE [A.B=VALUE]...

Plan and training take turns, each in a process of its own; the training runs two epochs. The row goes to
results/forecast/<data>-<model>.json: what was forecast, as a share of what was measured.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measured import arguments, chosen_by, prepared, surroundings, told
from rows import write
from turborec.bench import step
from turborec.engine import hardware

EPOCHS = 2


def planned(words: list[str]) -> dict[str, Any]:
    """The forecast for one epoch."""
    done = subprocess.run(
        [sys.executable, "-m", "turborec", "plan", *words, "--json"], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        sys.exit(done.returncode)
    found = json.loads(done.stdout)
    return {
        "epoch_seconds": found["times"]["epoch"],
        "validation_seconds": found["times"]["validation"],
        "peak": found["sizes"]["peak"],
    }


def trained(words: list[str], folder: Path) -> dict[str, Any]:
    """Seconds of the second epoch and of the validation after it, and the peak of the process, of a training."""
    words = [*words, f"train.epochs={EPOCHS}", "anchors=false", "--out", str(folder)]
    child = subprocess.Popen([sys.executable, "-m", "turborec", "train", *words], stdout=subprocess.DEVNULL)
    peak = hardware.wait_with_peak(child)
    if child.returncode:
        sys.exit("The training failed.")
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    times = [record["time"] for record in records if record["kind"] == "train" and record["epoch"] == EPOCHS]
    ends = [record["time"] for record in records if record["kind"] == "epoch"]
    steps = len(times)
    epoch = (times[-1] - times[0]) * steps / (steps - 1)
    return {"epoch_seconds": epoch, "validation_seconds": ends[-1] - times[-1], "peak": peak}


def main() -> None:
    """Measure and write."""
    parser = arguments(__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    chosen = chosen_by(parser)
    busy, environment = surroundings(parser)
    recipe, store = prepared(chosen)
    words = [chosen.recipe, *chosen.overrides, "--store", str(store.folder)]
    rounds = []
    for number in range(chosen.rounds):
        with tempfile.TemporaryDirectory() as scratch:
            forecast, found = planned(words), trained(words, Path(scratch) / "run")
        rounds.append({"forecast": forecast, "measured": found})
        print(f"round {number + 1}: {forecast} -> {found}")
    data, model = chosen.recipe.split("/")
    shares = {name: [r["forecast"][name] / r["measured"][name] for r in rounds] for name in rounds[0]["forecast"]}
    medians = {f"forecast_{name}_of_measured": step.median(values) for name, values in shares.items()}
    row = {
        "kind": "forecast",
        "data": data,
        "model": model,
        "recipe": chosen.recipe,
        "variant": "default",
        "seed": recipe.seed,
        "protocol": {"epochs": EPOCHS, "rounds": chosen.rounds, "overrides": chosen.overrides, "busy": busy},
        "values": {name: median.value for name, median in medians.items()},
        "intervals": {name: [median.low, median.high] for name, median in medians.items()},
        "rounds": rounds,
        "provenance": environment,
    }
    print(write(f"forecast/{data}-{model}", [row]))


if __name__ == "__main__":
    told(main)
