"""The committed ratios of speed, measured again: no change may take away what was gained. Absolute times are never asserted."""

import json
from pathlib import Path

import pytest
import torch

from turborec import recipes, stores
from turborec.bench import matrix
from turborec.stores import Places

ROWS = Path(__file__).parents[2] / "benchmarks" / "results" / "speed" / "online-retail-sasrec.json"
MARGIN = 0.6
"""Share of a committed ratio that must be left, on any machine and beside other work."""


@pytest.fixture
def one_thread():
    """Processor seconds of two threads hold the waiting of each for the other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_ratios_stay_near_the_committed_ones(tmp_path, one_thread):
    committed = {row["variant"]: row["values"] for row in json.loads(ROWS.read_text(encoding="utf-8"))}
    recipe = recipes.load("online-retail/sasrec")
    store = stores.of_recipe(recipe, Places(tmp_path))
    plan = matrix.Plan(("bucketing", "sampled"), ("eager",), rounds=3, seconds=0.7, memory=False)
    found = matrix.run(recipe, store, plan, "cpu")
    levers = {one["name"]: one for one in found["levers"]}
    assert [one["failed"] for one in levers.values()] == [None, None]
    eager = next(row["vs_recipe"]["value"] for row in found["rows"] if row["name"] == "eager")
    assert eager > MARGIN * committed["default"]["targets_per_second_vs_eager"]
    assert levers["bucketing"]["gain"]["value"] > MARGIN * committed["without bucketing"]["gain_of_lever"]
    sampled = next(row["over"]["eager"]["value"] for row in found["rows"] if row["name"] == "with sampled")
    assert sampled > MARGIN * committed["with sampled"]["targets_per_second_sampled_vs_eager"]
