"""Every module, and everything public in it, says in its docstring what it is for."""

import ast
from collections.abc import Iterator
from pathlib import Path

from package_source import files, place, tree

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def public(node: ast.Module | ast.ClassDef) -> Iterator[Definition]:
    """What is defined in a module or a class under a public name, methods included."""
    for child in node.body:
        if isinstance(child, Definition) and not child.name.startswith("_"):
            yield child
            if isinstance(child, ast.ClassDef):
                yield from public(child)


def undocumented(path: Path) -> list[str]:
    module = tree(path)
    nameless = [] if ast.get_docstring(module) else [place(path)]
    return nameless + [f"{place(path, node)} {node.name}" for node in public(module) if not ast.get_docstring(node)]


def test_everything_public_has_a_docstring() -> None:
    assert [line for path in files().values() for line in undocumented(path)] == []


def test_docstrings_begin_with_a_whole_short_sentence() -> None:
    wrong = []
    for path in files().values():
        for node in [tree(path), *public(tree(path))]:
            text = ast.get_docstring(node) or ""
            paragraph = text.split("\n\n")[0]
            if text and not paragraph.rstrip().endswith((".", ":", "?", ")", "`")):
                wrong.append(f"{place(path)} {getattr(node, 'name', '')}: {paragraph!r}")
    assert wrong == []
