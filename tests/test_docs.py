"""What the documentation shows, done."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from turborec.recipe import kinds

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
    shutil.copy(CHECKOUT / "tests" / "scored.py", tmp_path)
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


@pytest.mark.parametrize("kind", kinds("turborec.sources"))
def test_the_guide_names_every_source(kind):
    assert f"| `{kind}` |" in (CHECKOUT / "docs" / "adding-a-data-set.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", kinds("turborec.models"))
def test_the_readme_or_the_design_names_every_model(kind):
    assert any(kind in (CHECKOUT / page).read_text(encoding="utf-8") for page in ("README.md", "docs/design.md"))
