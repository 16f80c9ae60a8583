"""Make committed rows again and compare: python benchmarks/reproduce.py results/quality/<file>.json (make reproduce ROW=…).

Rows of quality are trained again and their values compared. Rows of speed are measured again, which renews their file, and
their ratios compared: seconds belong to a machine, ratios much less. Rows of drift and of ablations are made again in the
same way, and their alarms and values compared.
"""

import json
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from rows import Row, quality_rows

TOLERANCE = 0.003
"""Another processor rounds otherwise, and training carries that on; on the same one the values come back to the bit."""


RATIO_TOLERANCE = 0.7
"""Share of a committed ratio that another machine must come to."""


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


def ratios(rows: list[Row]) -> dict[tuple[str, str], float]:
    """By variant and name, what compares turborec with something else."""
    return {(r["variant"], n): v for r in rows for n, v in r["values"].items() if "vs_" in n or n == "gain_of_lever"}


def ablation_again(path: Path, rows: list[Row]) -> None:
    """Train all variants anew, and exit with 1 where a value differs by more than the tolerance."""
    command = shlex.split(rows[0]["provenance"]["command"])
    with tempfile.TemporaryDirectory() as scratch:
        command[command.index("--out") + 1] = scratch
        print("+", shlex.join(command), flush=True)
        subprocess.run([sys.executable, *command[1:]], check=True, cwd=Path(__file__).parents[1])
    worst = 0.0
    for before, after in zip(rows, _read(path), strict=True):
        for name, value in before["values"].items():
            worst = max(worst, abs(after["values"][name] - value))
            print(f"{before['variant']:20} {before['protocol']['history']:7} {name:14} {value:.6f} {after['values'][name]:.6f}")
    print(f"largest difference {worst:.6f}, allowed {TOLERANCE}")
    sys.exit(worst > TOLERANCE)


def speed_again(path: Path, rows: list[Row]) -> None:
    """Measure the rows anew, and exit with 1 where a ratio is much smaller than it was."""
    command = shlex.split(rows[0]["provenance"]["command"])
    print("+", shlex.join(command), flush=True)
    subprocess.run([sys.executable, *command[1:]], check=True, cwd=Path(__file__).parents[1])
    found = ratios(_read(path))
    worse = 0
    for name, value in ratios(rows).items():
        got = found.get(name, 0.0)
        worse += got < RATIO_TOLERANCE * value
        print(f"{name[0]:20} {name[1]:45} {value:.2f} {got:.2f}")
    sys.exit(worse > 0)


def drift_again(path: Path, rows: list[Row]) -> None:
    """Look at the data and the model anew, and exit with 1 where other alarms are raised."""
    command = shlex.split(rows[0]["provenance"]["command"])
    print("+", shlex.join(command), flush=True)
    subprocess.run([sys.executable, *command[1:]], check=True, cwd=Path(__file__).parents[1])
    before, after = rows[0]["values"], _read(path)[0]["values"]
    for name, value in before.items():
        print(f"{name:20} {value:.0f} {after[name]:.0f}")
    sys.exit(before != after)


def _read(path: Path) -> list[Row]:
    content = json.loads(path.read_text(encoding="utf-8"))
    return content if isinstance(content, list) else [content]


def main() -> None:
    """Exit with 1 where a value differs by more than the tolerance."""
    rows = _read(Path(sys.argv[1]))
    if rows[0]["kind"] == "drift":
        drift_again(Path(sys.argv[1]), rows)
    if rows[0]["kind"] == "ablation":
        ablation_again(Path(sys.argv[1]), rows)
    if rows[0]["kind"] != "quality":
        speed_again(Path(sys.argv[1]), rows)
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
