"""What several processes do to batches, speed and quality: python benchmarks/batches.py RECIPE [A.B=VALUE]...

The table that the study of RecBole on four GPUs drew up by hand, with what it left out: whole trainings with one process and
with several, whose batch is that of one, shared out, or as large for each; the latter with and without a rate that follows.
Rows go to results/batches/<data>-<model>.json.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measured import arguments, chosen_by, command, told
from rows import Row, write
from turborec import recipes
from turborec.engine import log
from turborec.errors import UserError


def variants(processes: int, tokens: int) -> dict[str, tuple[int, list[str]]]:
    """The processes of each kind of training, and what it changes of the recipe."""
    each, one = [f"batches.tokens={tokens}", "batches.tokens_of=process"], f"batches.tokens={tokens}"
    rules = {
        name: [*each, f"train.scaling={{rule: {rule}, tokens: {tokens}}}"]
        for name, rule in (("linear rate", "linear"), ("square-root rate", "square_root"))
    }
    return {
        "one process": (1, [one]),
        f"{processes} processes, its batch shared out": (processes, [one]),
        f"{processes} processes, a batch for each, same rate": (processes, each),
        **{f"{processes} processes, a batch for each, {name}": (processes, words) for name, words in rules.items()},
    }


def trained(recipe: str, processes: int, words: list[str], folder: Path) -> dict[str, Any]:
    """What a whole training came to, in so many processes of one thread each."""
    called = ["launch", "local", "--processes", str(processes), recipe, *words, "anchors=false", "--out", str(folder)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "turborec", *called], env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise UserError(f"A training in {processes} processes failed: {done.stderr.strip()[-1500:]}")
    epochs = [record for record in log.read_metrics(folder) if record["kind"] == "epoch"]
    (result,) = (folder / "evaluation" / "test").glob("*/result.json")
    found = json.loads(result.read_text(encoding="utf-8"))
    return {
        "protocol": found["protocol"],
        "values": {
            "targets_per_second": statistics.median(record["targets_per_second"] for record in epochs),
            "steps_per_epoch": epochs[-1]["step"] / len(epochs),
            **{name: found["values"][found["protocol"]["history"]][name] for name in ("hr@10", "ndcg@10", "mrr")},
        },
        "provenance": json.loads((folder / "environment.json").read_text(encoding="utf-8")),
    }


def main() -> None:
    """Train and write."""
    parser: argparse.ArgumentParser = arguments(__doc__)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--tokens", type=int, help="of the batch of one process; the recipe's, which its rate is meant for")
    parser.add_argument("--seeds", type=int, default=3)
    chosen = chosen_by(parser)
    data, model = chosen.recipe.split("/")
    tokens = chosen.tokens or recipes.load(chosen.recipe, chosen.overrides).batches.tokens
    rows: list[Row] = []
    # Seed by seed, so that what slows the machine down for a while does so to all kinds.
    for seed in range(1, chosen.seeds + 1):
        for variant, (processes, words) in variants(chosen.processes, tokens).items():
            with tempfile.TemporaryDirectory() as folder:
                found = trained(chosen.recipe, processes, [*chosen.overrides, *words, f"seed={seed}"], Path(folder) / "run")
            size = tokens * (processes if "batches.tokens_of=process" in words else 1)
            found["protocol"] |= {"processes": processes, "tokens": size, "threads_a_process": 1, "backend": "gloo"}
            found["provenance"]["command"] = command(parser.prog)
            row = {"kind": "batches", "data": data, "model": model, "recipe": chosen.recipe, "variant": variant, "seed": seed}
            rows.append({**row, **found})
            print(variant, seed, found["values"], flush=True)
    print(write(f"batches/{data}-{model}", rows))


if __name__ == "__main__":
    told(main)
