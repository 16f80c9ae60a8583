"""Commit by how much a recipe's runs differ from others on the same users: python benchmarks/paired.py RECIPE BASELINE RUN...

RECIPE is <data>/<model>, and --against names the runs of the baseline. The runs of each side are of several seeds, and their
values are averaged user by user.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from rows import Row, seed_of, write
from turborec.intervals import LEVEL, RESAMPLES, percentile_intervals, resampled_means

METRICS = ("hr@10", "ndcg@10")
HISTORIES = ("kept", "masked")


def paired_rows(recipe: str, variant: str, baseline: str, base: Sequence[Path], other: Sequence[Path]) -> list[Row]:
    """A row for kept and one for masked history: `other` less `base`, with intervals by the bootstrap over users."""
    data, model = recipe.split("/")
    names = [f"{metric}_{history}" for metric in METRICS for history in HISTORIES]
    (users, first), (others, second) = (_values(runs, names) for runs in (base, other))
    if users != others:
        raise SystemExit(f"{base[0]} and {other[0]} are not about the same users.")
    low, high = percentile_intervals(resampled_means(second - first))
    means = dict(zip(names, (second - first).mean(0), strict=True))
    ends = {name: [float(low[i]), float(high[i])] for i, name in enumerate(names)}
    provenance = json.loads((other[0] / "environment.json").read_text(encoding="utf-8"))
    result = other[0] / "evaluation" / "test" / _model(other[0]) / "result.json"
    protocol = json.loads(result.read_text(encoding="utf-8"))["protocol"]
    return [
        {
            "kind": "paired",
            "data": data,
            "model": model,
            "recipe": recipe,
            "variant": variant,
            "seed": seed_of(other[0]),
            "protocol": {
                **protocol,
                "history": history,
                "baseline": baseline,
                "seeds": {"baseline": [seed_of(run) for run in base], "variant": [seed_of(run) for run in other]},
                "interval": f"{LEVEL:.0%} of {RESAMPLES:,} resamples of users",
            },
            "values": {metric: float(means[f"{metric}_{history}"]) for metric in METRICS},
            "intervals": {metric: ends[f"{metric}_{history}"] for metric in METRICS},
            "provenance": provenance,
        }
        for history in HISTORIES
    ]


def _values(runs: Sequence[Path], names: list[str]) -> tuple[list[str], np.ndarray]:
    """The users in the order of their ids, and what the runs' own models have of each on average: [U, C]."""
    users: list[str] = []
    found = []
    for run in runs:
        table = pq.read_table(run / "evaluation" / "test" / _model(run) / "per_user.parquet").sort_by("user")
        users = table["user"].to_pylist()
        found.append(np.column_stack([table[name].to_numpy() for name in names]))
    return users, np.mean(found, axis=0)


def _model(run: Path) -> str:
    """The name of a run's own model, which its anchors are not."""
    (name,) = {place.name for place in (run / "evaluation" / "test").iterdir()} - {"markov", "popularity"}
    return name


def main() -> None:
    """Write results/paired/<data>-<model>-against-<baseline>.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe")
    parser.add_argument("baseline", help="what the baseline is called")
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--against", nargs="+", type=Path, required=True, help="the baseline's runs")
    chosen = parser.parse_args()
    rows = paired_rows(chosen.recipe, "default", chosen.baseline, chosen.against, chosen.runs)
    print(write(f"paired/{chosen.recipe.replace('/', '-')}-against-{chosen.baseline}", rows))


if __name__ == "__main__":
    main()
