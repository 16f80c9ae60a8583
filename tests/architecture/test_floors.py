"""Imports point down the floors of docs/design.md; what shares a floor is strangers."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from package_source import files, place, tree

FLOORS = (
    {"", "errors", "shown"},
    {"contract", "files", "progress", "recipe"},
    {"head"},
    {"bridges", "data", "drift", "engine", "impressions", "intervals", "losses", "metrics", "nn", "sources", "tiles"},
    {"features", "histories", "ranking"},
    {"evaluate", "models", "recommend"},
    {"recipes"},
    {"stores"},
    {"base"},
    {"assembly", "worlds"},
    {"baseline", "cutting", "preflight"},
    {"training"},
    {"bench", "launch", "plan", "run"},
    {"adopt", "apply", "checkup", "contestants", "exporting", "recbole", "search"},
    {"backtest", "compare"},
    {"report"},
    {"cli"},
    {"__main__"},
)
"""From the ground up; '' is `turborec/__init__.py`, which holds the version."""

ROOMS = {"bench", "bridges", "cli", "data", "drift", "engine", "features", "launch", "nn", "recbole", "report"}
"""Folders whose files may import one another; in the others only files whose names begin with `_` are shared."""

EXCEPTIONS = {("sources", "data.schema"): "a source describes its files in the words of the schema that reads them"}


def floor(module: str) -> int:
    top = module.split(".")[0]
    return next((number for number, names in enumerate(FLOORS) if top in names), -1)


def allowed(importer: str, imported: str) -> bool:
    here, there = importer.split(".")[0], imported.split(".")[0]
    if here != there:
        return floor(imported) < floor(importer) or (here, imported) in EXCEPTIONS
    helper = imported.split(".")[-1].startswith("_")
    return here in ROOMS or helper


def imports(path: Path) -> Iterator[tuple[ast.stmt, str]]:
    """Every own module that a file imports, wherever in the file, with the statement."""
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            named = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            named = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in named:
            if name.split(".")[0] == "turborec":
                yield node, owner(name.removeprefix("turborec").removeprefix("."))


def owner(name: str) -> str:
    """The module that holds `name`, which is a module or something in one."""
    known = files()
    while name not in known:
        name = name.rpartition(".")[0]
    return name


def test_every_module_has_a_floor() -> None:
    homeless = {name.split(".")[0] for name in files() if floor(name) < 0}
    assert not homeless, f"say in FLOORS and in docs/design.md where these belong: {sorted(homeless)}"


def test_imports_point_down() -> None:
    wrong = [
        f"{place(path, node)} imports turborec.{imported}"
        for name, path in files().items()
        for node, imported in imports(path)
        if not allowed(name, imported)
    ]
    assert wrong == []


def test_modules_do_not_import_one_another_in_circles() -> None:
    graph = {name: {imported for _, imported in imports(path)} - {name} for name, path in files().items()}
    while free := {name for name, needs in graph.items() if not needs & graph.keys()}:
        graph = {name: needs for name, needs in graph.items() if name not in free}
    assert graph == {}


def test_imports_are_absolute_and_named() -> None:
    wrong = [
        place(path, node)
        for path in files().values()
        for node in ast.walk(tree(path))
        if isinstance(node, ast.ImportFrom) and (node.level or node.names[0].name == "*")
    ]
    assert wrong == []


def test_every_exception_is_used() -> None:
    used = {(name.split(".")[0], imported) for name, path in files().items() for _, imported in imports(path)}
    assert set(EXCEPTIONS) <= used


@pytest.mark.parametrize(
    ("importer", "imported", "fine"),
    [
        ("run", "models.sasrec", True),
        ("models.sasrec", "nn.attention", True),
        ("models.sasrec", "run", False),
        ("models.sasrec", "models.markov", False),
        ("models.sasrec", "models._shared", True),
        ("models.sasrec", "evaluate", False),
        ("data.loader", "data.store", True),
        ("data.loader", "engine.state", False),
        ("engine.loop", "data.store", False),
        ("sources.table", "data.schema", True),
        ("sources.table", "data.store", False),
        ("sources.table", "sources.movielens", False),
        ("recipe", "errors", True),
        ("errors", "recipe", False),
        ("cli", "", True),
    ],
)
def test_the_rules_themselves(importer: str, imported: str, fine: bool) -> None:
    assert allowed(importer, imported) is fine
