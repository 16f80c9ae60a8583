"""Train five of RecBole's models on its ml-100k, and write into docs/recbole.md how RecBole and turborec rank by their weights.

python benchmarks/recbole_parity.py [MODEL]...: with models named, their rows alone are made anew.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

PAGE = Path(__file__).parents[1] / "docs" / "recbole.md"
FIRST, LAST = "<!-- parity: written by benchmarks/recbole_parity.py -->", "<!-- end of parity -->"

TRAINED = {"BPR": (6, 40), "LightGCN": (3, 40), "GRU4Rec": (1, 20), "SASRec": (1, 12), "BERT4Rec": (1, 6)}
"""Epochs, and steps of each: enough for ranks that differ from user to user."""

SEQUENTIAL = {"SASRec", "BERT4Rec", "GRU4Rec"}
METRICS = ("recall@10", "ndcg@10", "mrr@10", "hit@10", "precision@10")


def rows_of(model: str) -> list[str]:
    """Three rows of the table: RecBole's values of the test part, turborec's with parity, and turborec's."""
    epochs, steps = TRAINED[model]
    settings = [f"epochs={epochs}", *(["train_neg_sample_args=~"] if model in SEQUENTIAL else [])]
    with tempfile.TemporaryDirectory() as folder:
        turborec("train", model, *settings, "--steps", str(steps), "--out", folder)
        found = json.loads(turborec("check", "--weights", folder, "--json"))
    names = {"recbole": "RecBole", "parity": "turborec `--parity`", "exact": "turborec"}
    return [
        f"| {model} | {epochs * steps} | {names[kind]} | "
        + " | ".join(f"{found[kind]['test'][metric]:.4f}" for metric in METRICS)
        + " |"
        for kind in names
    ]


def turborec(*words: str) -> str:
    """What a command writes to standard output."""
    command = [sys.executable, "-m", "turborec", "recbole", *words]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    """Write the table, a model after the other."""
    for model in sys.argv[1:] or TRAINED:
        rows = rows_of(model)
        before, _, rest = PAGE.read_text(encoding="utf-8").partition(FIRST)
        table, _, after = rest.partition(LAST)
        others = [line for line in table.splitlines() if line.startswith("| ") and line.split()[1] not in ("model", model)]
        head = ["| model | steps | ranked by | " + " | ".join(METRICS) + " |", "|" + "---|" * (3 + len(METRICS))]
        PAGE.write_text("\n".join([before + FIRST, *head, *others, *rows, LAST + after]), encoding="utf-8")


if __name__ == "__main__":
    main()
