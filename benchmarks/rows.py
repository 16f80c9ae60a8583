"""Benchmark rows: made from run folders, read back for the tables. One JSON file under results/ holds one row or a list."""

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]

QUALITY_VALUES = (
    "hr@10",
    "ndcg@10",
    "hr@20",
    "ndcg@20",
    "recall@10",
    "recall@20",
    "mrr",
    "map@10",
    "precision@10",
    "catalogue_auc",
)


def quality_rows(run: Path, recipe: str, variant: str) -> list[Row]:
    """A row for each model of a run's test evaluation and each of masked and kept history."""
    rows = []
    environment = json.loads((run / "environment.json").read_text(encoding="utf-8"))
    for result_file in sorted((run / "evaluation" / "test").glob("*/result.json")):
        result = json.loads(result_file.read_text(encoding="utf-8"))
        for history in ("masked", "kept"):
            rows.append(
                {
                    "kind": "quality",
                    "data": recipe.split("/")[0],
                    "model": result_file.parent.name,
                    "recipe": recipe,
                    "variant": variant,
                    "seed": seed_of(run),
                    "protocol": {**result["protocol"], "history": history},
                    "values": {n: v for n, v in result["values"][history].items() if n in QUALITY_VALUES},
                    "provenance": environment,
                }
            )
    return rows


def seed_of(run: Path) -> int:
    """The seed in a run's resolved recipe."""
    for line in (run / "recipe.yaml").read_text(encoding="utf-8").splitlines():
        if line.startswith("seed: "):
            return int(line.removeprefix("seed: "))
    raise ValueError(f"{run}/recipe.yaml has no seed")


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """What a row may hold: those that are known, as floats."""
    return {name: float(value) for name, value in values.items() if value is not None}


def write(name: str, rows: list[Row]) -> Path:
    """Write rows to results/<name>.json."""
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(rows, indent=1, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")
    return path


def read_all() -> list[Row]:
    """Every committed row."""
    rows: list[Row] = []
    for path in sorted(RESULTS.rglob("*.json")):
        content = json.loads(path.read_text(encoding="utf-8"))
        rows += content if isinstance(content, list) else [content]
    return rows
