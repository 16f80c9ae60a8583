"""No stub, no promise and no path of somebody's machine passes for finished work."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from package_source import CHECKOUT, classes, decorators, files, functions, lines, place

PROMISES = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|raise NotImplementedError|pragma: no cover")
MACHINE_PATHS = re.compile(r"(?<![\w.}~/-])/(work|home|root|tmp|Users|mnt|opt|data|scratch)/")
WRITTEN = {".py", ".md", ".yaml", ".toml", ".txt", ".json", ".sh", ""}

NOTHING_TO_DO = {
    "contract.py:begin": "not every model is given weights to begin with",
    "contract.py:begin_epoch": "not every model has work that belongs to an epoch",
    "sources/online_retail.py:download": "the data set is a part of the package",
}
"""Working functions that are right to be empty, each with its reason."""


def written() -> Iterator[Path]:
    """Every text of the project."""
    for folder in ("src", "tests", "benchmarks", "docs", "tools", ".ci"):
        yield from (CHECKOUT / folder).rglob("*")
    yield from CHECKOUT.iterdir()


def texts() -> Iterator[Path]:
    generated = {"__pycache__", "turborec.egg-info"}
    for path in written():
        if path.is_file() and path.suffix in WRITTEN and not generated & set(path.parts) and path != Path(__file__):
            yield path


def test_nothing_is_left_to_do_in_the_package() -> None:
    wrong = [
        f"{place(path)}:{number}"
        for path in files().values()
        for number, line in enumerate(lines(path), start=1)
        if PROMISES.search(line)
    ]
    assert wrong == []


def test_no_function_is_a_stub() -> None:
    wrong = []
    for path in files().values():
        interfaces = [node for node in classes(path) if any("Protocol" in ast.unparse(base) for base in node.bases)]
        declared = {id(method) for interface in interfaces for method in interface.body}
        for node in functions(path):
            declared_only = id(node) in declared or decorators(node) & {"abstractmethod", "overload"}
            name = f"{place(path)}:{node.name}"
            if not declared_only and not does_something(node) and name not in NOTHING_TO_DO:
                wrong.append(name)
    assert wrong == []
    known = {f"{place(path)}:{node.name}" for path in files().values() for node in functions(path)}
    assert NOTHING_TO_DO.keys() <= known


def does_something(node: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a body holds more than a docstring, `pass` and `...`."""
    return any(
        not isinstance(statement, ast.Pass)
        and not (isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant))
        for statement in node.body
    )


def test_no_path_of_a_machine_is_written_down() -> None:
    wrong = [
        f"{path.relative_to(CHECKOUT)}:{number}: {line.strip()[:80]}"
        for path in texts()
        for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1)
        if MACHINE_PATHS.search(line)
    ]
    assert wrong == []


def test_the_search_for_paths_finds_them() -> None:
    found = ['open("/home/me/x")', "cd /work/main", "(/tmp/x)"]
    spared = ["https://example.org/home/x", "../shared/data/x", "{folder}/data/x", "~/data/x", "src/data/x", "./data/x"]
    assert [text for text in found + spared if MACHINE_PATHS.search(text)] == found
