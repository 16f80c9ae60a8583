"""Recipes: strict, frozen, typed configuration trees; read from YAML, changed by `a.b=value`, dumped back.

Every component keeps its own `Config` beside its code. Closed choices are unions told apart by `kind`; open ones
(models, sources) are folders of files, and `kind` is the file's name.
"""

import importlib
import json
import pkgutil
import types
import typing
from collections.abc import Iterable, Mapping
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import YAMLError

from turborec.errors import UserError, closest

Tree = dict[str, Any]
C = TypeVar("C", bound="Config")


class Config(BaseModel):
    """A frozen part of a recipe: unknown keys, wrong types, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def read(path: Path) -> Tree:
    """The tree in a YAML 1.2 file; duplicate keys and anything but plain data are refused."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"Cannot read the recipe {path}: {error}.") from error
    tree = parse(text, str(path))
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold a mapping of keys to values, got {type(tree).__name__}.")
    return tree


def parse(text: str, origin: str) -> Any:
    """Plain data from YAML text; `origin` names it in errors."""
    yaml = YAML(typ="safe", pure=True)
    yaml.version = (1, 2)
    try:
        return yaml.load(text)
    except DuplicateKeyError as error:
        mark = error.problem_mark
        where = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{origin}{where}: {str(error.problem).split(' with value')[0]}; keep one of them.") from error
    except YAMLError as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{origin} is not plain YAML 1.2: {reason}") from error


def override(tree: Tree, assignments: Iterable[str]) -> Tree:
    """A copy of `tree` changed by `a.b=value` assignments; a value is YAML, so `{kind: bpr}` and `[1, 2]` work."""
    result: Tree = json.loads(json.dumps(tree))
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise UserError(f"An override reads a.b=value, got {assignment!r}.")
        node: Any = result
        for depth, key in enumerate(keys[:-1]):
            node = _child(node, key, ".".join(keys[:depth]), assignment)
        _assign(node, keys[-1], parse(value, f"The value of {path}"), assignment)
    return result


def _child(node: Any, key: str, path: str, assignment: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, key, assignment)]
    if node.get(key) is None:
        node[key] = {}
    if not isinstance(node[key], dict | list):
        where = f"{path}.{key}".lstrip(".")
        raise UserError(f"{assignment!r} goes inside {where}, which is the plain value {node[key]!r}.")
    return node[key]


def _assign(node: Any, key: str, value: Any, assignment: str) -> None:
    if isinstance(node, list):
        node[_index(node, key, assignment)] = value
    else:
        node[key] = value


def _index(node: list[Any], key: str, assignment: str) -> int:
    if not key.isdigit() or int(key) >= len(node):
        raise UserError(f"{assignment!r}: expected a position 0 to {len(node) - 1} in the list, got {key!r}.")
    return int(key)


def validate(kind: type[C], tree: Mapping[str, Any], origin: str) -> C:
    """`tree` as a `kind`; every mistake is reported at once with its dotted path and the closest known names."""
    try:
        text = json.dumps(tree, allow_nan=True)
    except TypeError as error:
        raise UserError(f"{origin} holds something that is not plain data: {error}.") from error
    try:
        return kind.model_validate_json(text, strict=True)
    except ValidationError as error:
        mistakes = [_explain(kind, dict(e)) for e in error.errors(include_url=False)]
        noun = "mistake" if len(mistakes) == 1 else "mistakes"
        raise UserError(f"{origin} has {len(mistakes)} {noun}:\n" + "\n".join(f"  {m}" for m in mistakes)) from error


def dump(config: Config) -> str:
    """YAML text that `validate(type, parse(text))` turns back into the same config."""
    stream = StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(json.loads(config.model_dump_json()), stream)
    return stream.getvalue()


def kinds(package: str) -> list[str]:
    """The names an open set offers: the public files of its folder."""
    folder = importlib.import_module(package).__path__
    return sorted(m.name for m in pkgutil.iter_modules(folder) if not m.name.startswith("_"))


def open_kind(package: str, tree: Any, path: str, origin: str) -> type[Config]:
    """The `Config` class of the file that `tree["kind"]` names in `package`."""
    known = kinds(package)
    name = tree.get("kind") if isinstance(tree, Mapping) else None
    if not isinstance(name, str):
        raise UserError(f"{origin} has 1 mistake:\n  {path}.kind: one of {', '.join(known)} is needed, got {name!r}")
    if name not in known:
        raise UserError(f"{origin} has 1 mistake:\n  {path}.kind: nothing is called {name!r}{closest(name, known)}")
    config: type[Config] = importlib.import_module(f"{package}.{name}").Config
    return config


def _explain(kind: type[Config], error: dict[str, Any]) -> str:
    """One mistake as `a.b: what is wrong`, in the words of the recipe rather than of the validator."""
    location = error["loc"]
    path, fields = _walk(kind, location)
    if error["type"] == "extra_forbidden":
        return f"{path}: no such key{closest(str(location[-1]), fields)}"
    if error["type"] == "missing":
        return f"{path}: needed, but not given"
    if error["type"] == "union_tag_invalid":
        context = error["ctx"]
        known = [tag.strip(" '") for tag in context["expected_tags"].split(",")]
        return f"{path}.kind: nothing is called {context['tag']!r}{closest(context['tag'], known)}"
    if error["type"] == "union_tag_not_found":
        return f"{path}.kind: needed, but not given"
    message = error["msg"].removeprefix("Value error, ").removeprefix("Input should be ").rstrip(".")
    expected = message if error["type"] == "value_error" else f"expected {message.removeprefix('a ').removeprefix('an ')}"
    if error["type"] == "value_error":
        return f"{path}: {expected}" if path else expected
    return f"{path}: {expected}, got {error['input']!r}"


def _walk(kind: Any, location: tuple[Any, ...]) -> tuple[str, list[str]]:
    """The dotted path a reader knows (without union tags) and the field names known where it ends."""
    names: list[str] = []
    fields: list[str] = []
    node = kind
    for part in location:
        members = _members(node)
        tagged = [m for m in members if isinstance(m, type) and issubclass(m, BaseModel) and _tag(m) == part]
        if len(members) > 1 and tagged:
            node = tagged[0]
            continue
        names.append(str(part))
        models = [m for m in members if isinstance(m, type) and issubclass(m, BaseModel)]
        fields = list(models[0].model_fields) if models else []
        if models and part in models[0].model_fields:
            node = models[0].model_fields[part].annotation
        elif members and isinstance(part, int):
            node = (get_args(members[0]) or (None,))[0]
        else:
            node = None
    return ".".join(names), fields


def _members(node: Any) -> list[Any]:
    """The alternatives of an annotation: union members without None, or the annotation itself."""
    if get_origin(node) is Annotated:
        return _members(get_args(node)[0])
    if isinstance(node, typing.TypeAliasType) if hasattr(typing, "TypeAliasType") else False:
        return _members(node.__value__)
    if get_origin(node) in (Union, types.UnionType):
        return [m for a in get_args(node) if a is not type(None) for m in _members(a)]
    return [node]


def _tag(model: type[BaseModel]) -> Any:
    field = model.model_fields.get("kind")
    return (get_args(field.annotation) or (None,))[0] if field else None
