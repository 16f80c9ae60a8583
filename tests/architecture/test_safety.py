"""Nothing that comes from a file is executed: no pickle, no code from text, no loader that has either inside."""

import ast

import pytest
from package_source import files, place, tree

MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "torch.load",
    "torch.save",
    "torch.export.load",
    "torch.jit.load",
    "os.system",
}
"""Methods of the same name are another matter (`re.compile`, `model.eval`), so these are compared in full."""


def dangers(module: ast.AST) -> list[tuple[int, str]]:
    """Line and name of every import and call that could execute what a file says."""
    found = []
    for node in ast.walk(module):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names if alias.name.split(".")[0] in MODULES]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in MODULES:
            found.append((node.lineno, str(node.module)))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in CALLS:
            found.append((node.lineno, ast.unparse(node.func)))
        elif isinstance(node, ast.keyword) and node.arg in ("allow_pickle", "shell") and ast.unparse(node.value) != "False":
            found.append((node.value.lineno, f"{node.arg}={ast.unparse(node.value)}"))
    return found


def test_nothing_that_comes_from_a_file_is_executed() -> None:
    wrong = [f"{place(path)}:{line} {name}" for path in files().values() for line, name in dangers(tree(path))]
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("import pickle", ["pickle"]),
        ("from joblib.memory import x", ["joblib.memory"]),
        ("eval(text)", ["eval"]),
        ("torch.load(path, weights_only=True)", ["torch.load"]),
        ("np.load(path, allow_pickle=True)", ["allow_pickle=True"]),
        ("run(command, shell=True)", ["shell=True"]),
        ("model.eval(); re.compile(x); np.load(path, allow_pickle=False); import pickletools", []),
    ],
)
def test_the_search_finds_what_it_should(text: str, names: list[str]) -> None:
    assert [name for _, name in dangers(ast.parse(text))] == names
