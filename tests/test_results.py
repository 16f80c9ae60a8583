"""The committed rows and the pages made from them."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from turborec import recipes

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "benchmarks" / "results").rglob("*.json"))
NEEDED = {"kind", "data", "model", "recipe", "variant", "seed", "protocol", "values", "provenance"}
PROVENANCE = {"commit", "dirty", "command", "hardware", "threads", "load_average", "versions", "date"}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_row_says_what_how_and_from_what(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    for row in content if isinstance(content, list) else [content]:
        assert row.keys() >= NEEDED and row["provenance"].keys() >= PROVENANCE
        assert row["recipe"] in recipes.shipped()
        assert row["provenance"]["dirty"] is False
        assert row["kind"] != "quality" or row["protocol"]["history"] in ("masked", "kept")
        assert "/" not in str(row["provenance"]["hardware"]["platform"])
        assert not re.search(r"(^|[\s=])/", row["provenance"]["command"]), "a command names a place on one machine"
        assert all(isinstance(value, float) for value in row["values"].values())


def test_the_pages_are_what_the_rows_say():
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks" / "tables.py", "--check"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
