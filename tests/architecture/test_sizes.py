"""The budgets of docs/design.md: a house of small rooms stays one only while somebody measures."""

import ast
from collections.abc import Iterator

from package_source import classes, decorators, files, functions, lines, place, tree

FILE_LINES, FUNCTION_LINES, PARAMETERS, FIELDS = 400, 60, 8, 20
PACKAGE_LINES, CORE_LINES = 35_500, 15_000
CORE = {"data", "nn", "models", "engine", "evaluate", "ranking", "tiles", "head", "losses", "metrics"}

KERNEL = "a kernel is given every pointer and size that it needs"
ALLOWED = {
    "bench/evidence.py:__call__": "torch's counter calls a formula with whatever its kernel takes",
    "nn/keyed_triton.py:_bits": KERNEL,
    **{f"nn/scan_triton.py:{name}": KERNEL for name in ("_forward", "_backward")},
}
"""What may be larger (`data/store.py` or `data/store.py:open_store`), each with its reason."""

ROOTS = {"Config", "Model", "Counted", "UserError", "Assembly", "Rows", "SequenceBatch"}
"""Own classes made to be derived from: interfaces, what says what a thing is for, batches, what a run adds its folder to"""


def excess(measured: Iterator[tuple[str, int]], limit: int) -> list[str]:
    return [f"{name}: {size}, not {limit}" for name, size in measured if size > limit and name not in ALLOWED]


def parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many arguments a caller must think of; those of a command are its options, which nobody passes by place."""
    if "command" in decorators(node):
        return 0
    given = node.args.posonlyargs + node.args.args + node.args.kwonlyargs
    return len([argument for argument in given if argument.arg not in ("self", "cls")])


def fields(node: ast.ClassDef) -> int:
    declared = [n for n in node.body if isinstance(n, ast.AnnAssign) and "ClassVar" not in ast.unparse(n.annotation)]
    return len(declared)


def test_files_are_short() -> None:
    assert excess(((place(path), len(lines(path))) for path in files().values()), FILE_LINES) == []


def test_functions_are_short() -> None:
    measured = (
        (f"{place(path)}:{node.name}", (node.end_lineno or 0) - node.lineno + 1)
        for path in files().values()
        for node in functions(path)
    )
    assert excess(measured, FUNCTION_LINES) == []


def test_functions_take_few_parameters_and_no_open_ones() -> None:
    found = [(f"{place(path)}:{node.name}", node) for path in files().values() for node in functions(path)]
    assert excess(((name, parameters(node)) for name, node in found), PARAMETERS) == []
    assert [name for name, node in found if node.args.kwarg and name not in ALLOWED] == []


def test_classes_have_few_fields() -> None:
    measured = ((f"{place(path)}:{node.name}", fields(node)) for path in files().values() for node in classes(path))
    assert excess(measured, FIELDS) == []


def test_own_classes_are_derived_from_once() -> None:
    own = {node.name for path in files().values() for node in classes(path)}
    wrong = [
        f"{place(path, node)}: {node.name} derives from {base}"
        for path in files().values()
        for node in classes(path)
        for base in bases(node)
        if base in own - ROOTS
    ]
    assert wrong == []


def bases(node: ast.ClassDef) -> list[str]:
    """The names of the own classes derived from; a file may call `Config` BaseConfig, to give its own the name."""
    plain = [ast.unparse(base).split("[")[0] for base in node.bases]
    return ["Config" if name in ("BaseConfig", "recipe.Config") else name for name in plain]


def test_the_package_stays_small() -> None:
    sizes = {name: len(lines(path)) for name, path in files().items()}
    assert sum(sizes.values()) <= PACKAGE_LINES
    assert sum(size for name, size in sizes.items() if name.split(".")[0] in CORE) <= CORE_LINES


def test_every_exception_still_exists() -> None:
    known = {place(path) for path in files().values()}
    known |= {f"{place(path)}:{node.name}" for path in files().values() for node in functions(path) + classes(path)}
    assert ALLOWED.keys() <= known
    assert all(isinstance(tree(path), ast.Module) for path in files().values())
