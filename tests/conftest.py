"""What every test starts from: one thread, known seeds, reproducible examples, and the real data where it is there."""

import os
import random
import sys
from collections.abc import Generator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import settings

# The tests are of processors, whose results are the same to the bit; those of CUDA devices ask for them: `make test-cuda`.
if not os.environ.get("TURBOREC_TEST_CUDA"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
torch.set_num_threads(1)
settings.register_profile("turborec", derandomize=True, deadline=None)
settings.load_profile("turborec")

CHECKOUT = Path(__file__).parents[1]

collect_ignore_glob = ["fixtures/checkpoints/*.py", "recbole_trainer.py"]  # scripts for other libraries' environments


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="a test that would be skipped fails")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if item.config.getoption("--no-skips") and report.skipped and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"skipped in spite of --no-skips: {report.longrepr}"
    return report


@pytest.fixture(autouse=True)
def _seeds() -> None:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The folder of real data sets, for tests marked `data`."""
    folder = Path(os.environ.get("TURBOREC_TEST_DATA") or CHECKOUT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"real data: {folder} is not there (set TURBOREC_TEST_DATA to its place)")
    return folder


@pytest.fixture
def run(capsys, monkeypatch, tmp_path):
    """Carry out a command line: exit code, standard output and standard error."""
    from turborec import cli

    monkeypatch.setenv("COLUMNS", "160")
    monkeypatch.setenv("TURBOREC_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments):
        monkeypatch.setattr(sys, "argv", ["turborec", *map(str, arguments)])
        with pytest.raises(SystemExit) as end:
            cli.main()
        said = capsys.readouterr()
        return end.value.code or 0, said.out, said.err

    return invoke
