"""Make committed rows again and compare: python benchmarks/reproduce.py results/quality/<file>.json (make reproduce ROW=…)."""

import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from rows import Row, quality_rows

TOLERANCE = 0.003
"""Another processor rounds otherwise, and training carries that on; on the same one the values come back to the bit."""


def again(row: Row, folder: Path) -> list[Row]:
    """The rows of the run that `row` came from, made anew in `folder`."""
    command = shlex.split(row["provenance"]["command"])
    command[command.index("--out") + 1] = str(folder)
    print("+", shlex.join(command), flush=True)
    subprocess.run([sys.executable, "-m", *command], check=True)
    return quality_rows(folder, row["recipe"], row["variant"])


def key(row: Row) -> tuple[str, str]:
    """What tells the rows of one run apart."""
    return row["model"], row["protocol"]["history"]


def main() -> None:
    """Exit with 1 where a value differs by more than the tolerance."""
    content = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    rows: list[Row] = content if isinstance(content, list) else [content]
    with tempfile.TemporaryDirectory() as scratch:
        found = {key(row): row["values"] for row in again(rows[0], Path(scratch) / "run")}
    worst = 0.0
    for row in rows:
        for name, value in row["values"].items():
            got = found[key(row)][name]
            worst = max(worst, abs(got - value))
            print(f"{row['model']:12} {row['protocol']['history']:7} {name:14} {value:.6f} {got:.6f}")
    print(f"largest difference {worst:.6f}, allowed {TOLERANCE}")
    sys.exit(worst > TOLERANCE)


if __name__ == "__main__":
    main()
