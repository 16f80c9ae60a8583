"""Exported programs: their scores are the model's, for any number and length of histories, without this package."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from stores import item_id, store_of
from turborec import exporting, recipes, run
from turborec.errors import UserError
from turborec.stores import Places

TREE = {
    "data": {"source": {"kind": "online_retail"}},
    "batches": {"max_length": 12, "tokens": 192},
    "train": {"epochs": 1},
    "anchors": False,
}


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    generator = np.random.default_rng(0)
    histories = [generator.integers(1, 31, generator.integers(3, 20)).tolist() for _ in range(25)]
    return Places(home=folder, store=store_of(folder / "store", histories, items=30).folder)


def trained(places, folder, model, **changes):
    done, _ = run.train(recipes.from_tree({**TREE, "model": model, **changes}, "the test"), folder, places)
    return done


MODELS = {
    "sasrec": {"kind": "sasrec", "width": 16, "hidden": 32},
    "bert4rec": {"kind": "bert4rec", "width": 16, "hidden": 32},
}


@pytest.mark.parametrize("kind", MODELS)
def test_scores_are_the_model_s_at_any_number_and_length_of_histories(kind, places, tmp_path):
    done = trained(places, tmp_path / "run", MODELS[kind])
    found = exporting.export(done, tmp_path / "out")
    program = torch.export.load(tmp_path / "out" / "model.pt2").module()
    model = exporting.Ranking(done.model, 30)
    for rows, length in ((1, 3), (5, 12), (40, 7)):
        items, lengths = exporting.examples(done, rows)
        items, lengths = items[:, :length].contiguous(), lengths.clamp(max=length)
        with torch.no_grad():
            assert torch.allclose(program(items, lengths), model(items, lengths), atol=1e-5)
    assert found.difference < 1e-4 and (tmp_path / "out" / "items.txt").read_text().splitlines()[4] == item_id(5)
    assert json.loads((tmp_path / "out" / "export.json").read_text())["max_length"] == 12


def test_what_the_guide_shows_calls_a_program(places, tmp_path):
    done = trained(places, tmp_path / "run", MODELS["sasrec"])
    exporting.export(done, tmp_path / "program")
    with pytest.raises(UserError, match="holds a program already"):
        exporting.export(done, tmp_path / "program")
    guide = (Path(__file__).parents[1] / "docs" / "speed.md").read_text()
    code = re.search(r"```python\n(.*?)```", guide, re.DOTALL)[1]
    code = code.replace('["1193", "661", "914"]', str([item_id(n) for n in (3, 9, 4)]))
    shown = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    with torch.no_grad():
        scores = exporting.Ranking(done.model, 30)(torch.tensor([[3, 9, 4]]), torch.tensor([3]))
    assert shown.stdout.strip() == str([item_id(int(n) + 1) for n in scores[0].topk(10).indices])


def test_adapters_are_a_part_of_the_program(places, tmp_path):
    trained(places, tmp_path / "base", MODELS["bert4rec"])
    for kind in ("lora", "ilora"):
        done = trained(places, tmp_path / kind, MODELS["bert4rec"], base=str(tmp_path / "base"), adapters={"kind": kind})
        assert exporting.export(done, tmp_path / f"{kind}-out").difference < 1e-4


def test_a_program_needs_nothing_of_this_package(places, tmp_path):
    exporting.export(trained(places, tmp_path / "run", MODELS["sasrec"]), tmp_path / "out")
    script = (
        "import sys; sys.modules['turborec'] = None\n"
        "import torch\n"
        f"program = torch.export.load({str(tmp_path / 'out' / 'model.pt2')!r}).module()\n"
        "print(tuple(program(torch.tensor([[3, 5, 0]]), torch.tensor([2])).shape))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, env={**os.environ})
    assert done.stdout.strip() == "(1, 30)"


def test_what_torch_cannot_write_down_is_told(places, tmp_path):
    """GRU4Rec's recurrence is cuDNN's and the like: torch ties it to one number of rows."""
    done = trained(places, tmp_path / "run", {"kind": "gru4rec", "width": 8, "hidden": 8})
    with pytest.raises(UserError, match=r"gru4rec cannot be exported by torch"):
        exporting.export(done, tmp_path / "out")


@pytest.mark.parametrize("model", [{"kind": "markov"}, {"kind": "bpr", "width": 8}])
def test_what_does_not_rank_by_histories_is_refused(model, places, tmp_path):
    done = trained(places, tmp_path / "run", model)
    with pytest.raises(UserError, match="does not rank by histories alone"):
        exporting.export(done, tmp_path / "out")
