"""What the documentation shows, done."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from stores import store_of
from turborec import recipes, run
from turborec.recipe import kinds
from turborec.stores import Places

CHECKOUT = Path(__file__).parents[1]


def test_the_model_of_the_guide_passes_every_contract(tmp_path):
    """A copy of the package with the model in it, since a model is found because its file exists."""
    guide = (CHECKOUT / "docs" / "adding-a-model.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", guide, re.DOTALL)[1]
    package = shutil.copytree(
        CHECKOUT / "src" / "turborec", tmp_path / "turborec", ignore=shutil.ignore_patterns("__pycache__")
    )
    (package / "models" / "recent.py").write_text(code, encoding="utf-8")
    shutil.copytree(CHECKOUT / "tests" / "contracts", tmp_path / "contracts", ignore=shutil.ignore_patterns("__pycache__"))
    for helper in ("scored.py", "stores.py"):
        shutil.copy(CHECKOUT / "tests" / helper, tmp_path)
    (tmp_path / "conftest.py").write_text("import sys, pathlib\nsys.path.insert(0, str(pathlib.Path(__file__).parent))\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", tmp_path, "-k", "recent"]
    done = subprocess.run(
        [*map(str, command), str(tmp_path / "contracts" / "test_models.py")],
        capture_output=True,
        text=True,
        timeout=250,
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"1\d passed", done.stdout)


def test_the_guide_follows_users_as_it_says(tmp_path, monkeypatch, capsys):
    """Its code, run where a training has left runs/time."""
    guide = (CHECKOUT / "docs" / "state-space.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", guide, re.DOTALL)[1]
    walks = [[(3 * user + step) % 20 + 1 for step in range(8)] for user in range(20)]
    times = [[10**9 + 60 * step for step in range(8)]] * 20
    store = store_of(tmp_path / "store", walks, items=20, times=times)
    tree = {"data": {"source": {"kind": "online_retail"}}, "model": {"kind": "ss4rec", "width": 8}, "train": {"epochs": 1}}
    recipe = recipes.from_tree({**tree, "anchors": False}, "the test")
    run.train(recipe, tmp_path / "runs" / "time", Places(home=tmp_path, store=store.folder))
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "docs/state-space.md", "exec"), {})
    assert len(re.findall(r"'item-0000\d\d'", capsys.readouterr().out)) == 3


@pytest.mark.parametrize("kind", kinds("turborec.sources"))
def test_the_guide_names_every_source(kind):
    assert f"| `{kind}` |" in (CHECKOUT / "docs" / "adding-a-data-set.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", kinds("turborec.models"))
def test_the_readme_or_the_design_names_every_model(kind):
    assert any(kind in (CHECKOUT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/design.md"))
