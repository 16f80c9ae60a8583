"""The environment in which RecBole runs: made once from the pinned constraints, whole or not there.

<home>/recbole/<key>/          a virtual environment; the key is a hash of the constraints and of Python's version
<home>/recbole/<key>.log       what pip said
<home>/recbole/turborec-…/     a link to the turborec that runs, and nothing else, for the environment's path
"""

import fcntl
import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from turborec.errors import UserError

CONSTRAINTS = Path(__file__).with_name("constraints.txt")

FLOOR = ("torch", "numpy", "pydantic", "ruamel.yaml", "safetensors", "tensorboard")
"""What turborec needs to train, and TensorBoard, which RecBole imports too."""

IMPORTED = ("pandas", "scipy", "scikit-learn", "tqdm", "PyYAML", "colorlog", "colorama", "texttable", "psutil")
"""What RecBole imports besides. Its own list of requirements asks for ray, plotly and others that nothing here needs."""

NEWEST = (3, 12)
"""The newest Python for which there is a numpy below 2."""

logger = logging.getLogger("turborec")


def ready(home: Path, python: Path | None = None) -> Path:
    """The interpreter of RecBole's environment below `home`, which is made with `python` if it is not there yet."""
    base = python or interpreter()
    folder = home / "recbole" / key(CONSTRAINTS.read_bytes(), version_of(base))
    if not folder.is_dir():
        with _alone(folder.with_suffix(".lock")):
            if not folder.is_dir():  # another process may have made it meanwhile
                _make(folder, base)
    return folder / "bin" / "python"


def surroundings(home: Path) -> dict[str, str]:
    """The variables with which its interpreter finds turborec, and nothing else: no code of the folder that it runs in."""
    package = Path(__file__).resolve().parents[1]
    folder = home / "recbole" / f"turborec-{hashlib.sha256(os.fsencode(package)).hexdigest()[:12]}"
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "turborec").exists():
        temporary = folder / f".turborec.{os.getpid()}"
        temporary.symlink_to(package, target_is_directory=True)
        temporary.replace(folder / "turborec")
    hidden = ("PYTHONHOME", "VIRTUAL_ENV", "__PYVENV_LAUNCHER__")
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return {**kept, "PYTHONPATH": str(folder), "PYTHONNOUSERSITE": "1", "PYTHONSAFEPATH": "1"}


def key(constraints: bytes, version: tuple[int, int]) -> str:
    """What the environment is called by."""
    return hashlib.sha256(constraints + repr((version, FLOOR, IMPORTED)).encode()).hexdigest()[:16]


def interpreter() -> Path:
    """A Python that RecBole can run on: this one, or an older one beside it."""
    names = [f"python{NEWEST[0]}.{minor}" for minor in (NEWEST[1], NEWEST[1] - 1)]
    found = [Path(sys.executable)] if sys.version_info[:2] <= NEWEST else []
    found += [Path(path) for name in names if (path := shutil.which(name))]
    if not found:
        raise UserError(
            f"RecBole needs numpy < 2, which there is for Python {NEWEST[0]}.{NEWEST[1]} at most, and this is "
            f"{sys.version_info[0]}.{sys.version_info[1]}: name an older one with --python."
        )
    return found[0]


def version_of(python: Path) -> tuple[int, int]:
    """Python's version, asked of it; `UserError` where RecBole or turborec cannot run on it."""
    asked = [str(python), "-c", "import json, sys; print(json.dumps(sys.version_info[:2]))"]
    try:
        said = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60).stdout
        major, minor = json.loads(said)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise UserError(f"{python} is no Python that can be run ({error}). Name another one with --python.") from error
    if not (3, 11) <= (major, minor) <= NEWEST:
        raise UserError(f"RecBole and turborec together run on Python 3.11 and 3.12, and {python} is {major}.{minor}.")
    return major, minor


def _make(folder: Path, base: Path) -> None:
    """Make the environment under another name and give it its own when it is whole."""
    unfinished, said = folder.with_suffix(".part"), folder.with_suffix(".log")
    logger.info("Making RecBole's environment in %s: a few minutes, once", folder)
    python = unfinished / "bin" / "python"
    install = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q", "--constraint", str(CONSTRAINTS)]
    try:
        said.unlink(missing_ok=True)
        _run([str(base), "-m", "venv", "--clear", str(unfinished)], said)
        _run([*install, "setuptools", *FLOOR, *IMPORTED], said)
        _run([*install, "--no-deps", "recbole"], said)
        # Nothing in an environment but the starters of its scripts, which nobody uses here, knows what it is called.
        unfinished.replace(folder)
    except OSError as error:
        raise UserError(f"RecBole's environment was not made in {folder}: {error.strerror}.") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _run(command: list[str], said: Path) -> None:
    with said.open("ab") as file:
        code = subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        lines = [line for line in said.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
        raise UserError(
            f"RecBole's environment could not be made: {Path(command[0]).name} {' '.join(command[1:4])} ended with {code}.\n"
            + "\n".join(f"  {line}" for line in lines[-6:])
            + f"\nAll of it is in {said}. Is the package index within reach? The next call tries again."
        )


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Wait until no other process makes the same environment; the kernel drops the lock of one that dies."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise UserError(f"{path.parent} cannot be written: {error.strerror}. Name another home with --home.") from error
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
