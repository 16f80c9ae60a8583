"""The first losses of every trained model on a fixed store, as they were when they were last looked at.

`make golden` (python tests/golden/test_golden.py) writes the file anew; its difference is then read by a person.
"""

import importlib
import json
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from turborec.contract import Counted
from turborec.data.batch import DataSpec, PairBatch
from turborec.data.loader import Batches, TrainingBatches
from turborec.data.pairs import PairBatches
from turborec.engine import loop
from turborec.engine.loop import Stage
from turborec.recipe import kinds

FILE = Path(__file__).with_name("losses.json")
USERS, ITEMS = 60, 40


def losses(kind, folder):
    """The losses of the first 20 steps, in float32; None for a model that is counted."""
    from stores import described, store_of

    generator = np.random.RandomState(0)
    histories = [(generator.randint(ITEMS) + np.arange(generator.randint(3, 50)) * 3) % ITEMS + 1 for _ in range(USERS)]
    store = store_of(folder / "store", [h.tolist() for h in histories], items=ITEMS)
    config, stage = importlib.import_module(f"turborec.models.{kind}").Config(), Stage(precision="float32")
    torch.manual_seed(0)
    model = config.build(described(DataSpec(USERS, ITEMS, 16), store))
    if isinstance(model, Counted):
        return None
    state = loop.start(model, stage, torch.device("cpu"))
    batches = PairBatches if config.batch is PairBatch else TrainingBatches
    plan = batches(store, Batches(max_length=16, tokens=64), seed=1).epoch(0)
    return [round(record.loss, 6) for record in islice(loop.fit(state, plan, stage, torch.device("cpu")), 20)]


@pytest.mark.parametrize("kind", kinds("turborec.models"))
def test_the_first_losses_are_those_on_record(kind, tmp_path):
    expected = json.loads(FILE.read_text())[kind]
    got = losses(kind, tmp_path)
    assert got == (None if expected is None else pytest.approx(expected, rel=1e-4))


if __name__ == "__main__":
    import sys
    import tempfile

    sys.path.insert(0, str(Path(__file__).parents[1]))
    with tempfile.TemporaryDirectory() as scratch:
        curves = {kind: losses(kind, Path(scratch) / kind) for kind in kinds("turborec.models")}
    FILE.write_text(json.dumps(curves, indent=1) + "\n")
