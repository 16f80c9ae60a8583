"""Recipes: strict, frozen, typed configuration trees; read from YAML, changed by `a.b=value`, dumped back.

Every component keeps its own `Config` beside its code. Closed choices are unions told apart by `kind`; open ones
(models, sources) are folders of files, and `kind` is the file's name.
"""

import copy
import importlib
import json
import pkgutil
import types
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError, SafeConstructor
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from turborec.errors import UserError, closest

Tree = dict[str, Any]
C = TypeVar("C", bound="Config")


LARGEST = 100_000
"""Values that a recipe may hold, those that aliases repeat counted each time."""


class Config(BaseModel):
    """A frozen part of a recipe: unknown keys, wrong types, NaN and infinity are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class _PlainData(SafeConstructor):
    """Builds what YAML 1.2 calls its core schema, and refuses every other tag."""


_CORE = ("null", "bool", "int", "float", "str", "seq", "map")
# None stands for the tags without a constructor of their own: refused. A date is text in YAML 1.2.
_PlainData.yaml_constructors = {
    None: SafeConstructor.yaml_constructors[None],
    "tag:yaml.org,2002:timestamp": SafeConstructor.construct_yaml_str,
    **{tag: SafeConstructor.yaml_constructors[tag] for tag in (f"tag:yaml.org,2002:{name}" for name in _CORE)},
}


class Anything(Config):
    """Stands for a part whose kind nobody knows, so that the mistakes of the other parts are still found."""

    model_config = ConfigDict(extra="allow")


class MistakesError(UserError):
    """What is wrong with a recipe, all of it at once."""

    def __init__(self, origin: str, mistakes: list[str]) -> None:
        self.mistakes = mistakes
        noun = "mistake" if len(mistakes) == 1 else "mistakes"
        super().__init__(f"{origin} has {len(mistakes)} {noun}:\n" + "\n".join(f"  {m}" for m in mistakes))


def read(path: Path) -> Tree:
    """The tree in a YAML 1.2 file; duplicate keys and anything but plain data are refused."""
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"The recipe {path} is not UTF-8 text: {error.reason} at byte {error.start}.") from error
    except OSError as error:
        raise UserError(f"The recipe {path} cannot be read: {error.strerror}.") from error
    tree = parse(text, str(path))
    if not isinstance(tree, dict):
        got = "it is empty" if tree is None else f"got {_shown(tree)}"
        raise UserError(f"{path} must hold a mapping of keys to values: {got}.")
    return tree


def parse(text: str, origin: str) -> Any:
    """Plain data from YAML text; `origin` names it in errors."""
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _PlainData
    yaml.version = (1, 2)
    try:
        return _bounded(yaml.load(text), origin)
    except DuplicateKeyError as error:
        problem = str(error.problem).split(" with value")[0].removeprefix("found ")
        raise UserError(f"{origin}{_where(error)}: {problem}; keep one of them.") from error
    except MarkedYAMLError as error:
        problem = ": ".join(part for part in (error.context, error.problem) if part)
        if "alias" in problem:
            problem += " (text that begins with * or & stands in quotes)"
        raise UserError(f"{origin}{_where(error)}: this is not plain YAML 1.2: {problem}.") from error
    except YAMLError as error:
        raise UserError(f"{origin} is not plain YAML 1.2: {' '.join(str(error).split())}.") from error
    except RecursionError as error:
        raise UserError(f"{origin} is nested too deeply for a recipe.") from error
    except (ValueError, LookupError, OverflowError, TypeError) as error:  # of an odd scalar
        raise UserError(f"{origin} holds a value that is not what its form or its tag says: {error}.") from error


def _bounded(tree: Any, origin: str) -> Any:
    """The tree itself, unless aliases make it larger than any recipe, or endless."""
    values, waiting = 0, [tree]
    while waiting:
        node = waiting.pop()
        values += 1
        if values > LARGEST:
            raise UserError(f"{origin} holds more than {LARGEST:,} values: an alias repeats too much, or itself.")
        waiting.extend(node.values() if isinstance(node, dict) else node if isinstance(node, list) else ())
    return tree


def _where(error: MarkedYAMLError) -> str:
    return f", line {error.problem_mark.line + 1}" if error.problem_mark else ""


def override(tree: Tree, assignments: Iterable[str]) -> Tree:
    """A copy of `tree` changed by `a.b=value` assignments; a value is YAML, so `{kind: bpr}` and `[1, 2]` work."""
    result = copy.deepcopy(tree)
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            raise UserError(f"An override reads a.b=value, got {assignment!r}.")
        node: Any = result
        for depth, key in enumerate(keys[:-1], start=1):
            place = _place(node, key, assignment)
            if isinstance(node, list) or node.get(key) is not None:
                node = node[place]
            else:
                node[key] = node = {}
            if not isinstance(node, dict | list):
                raise UserError(f"{assignment!r} goes inside {'.'.join(keys[:depth])}, which is {_shown(node)}.")
        node[_place(node, keys[-1], assignment)] = parse(value, f"The value of {path}")
    return result


def _place(node: Any, key: str, assignment: str) -> str | int:
    """The key of a mapping, or the position in a list."""
    if not isinstance(node, list):
        return key
    if not key.isdecimal() or int(key) >= len(node):
        known = ", ".join(str(position) for position in range(len(node)))
        raise UserError(f"{assignment!r}: {key!r} is not a position in the list{f' (known: {known})' if node else ''}.")
    return int(key)


def validate(kind: type[C], tree: Mapping[str, Any], origin: str) -> C:
    """`tree` as a `kind`; every mistake is reported at once with its dotted path and the closest known names."""
    try:
        text = json.dumps(tree, allow_nan=True)
    except (TypeError, ValueError, RecursionError) as error:
        raise UserError(f"{origin} holds something that is not plain data: {error}.") from error
    try:
        return kind.model_validate_json(text, strict=True)
    except ValidationError as error:
        raise MistakesError(origin, _explain(kind, [dict(e) for e in error.errors(include_url=False)])) from error


def dump(config: Config) -> str:
    """YAML text that `validate(type, parse(text))` turns back into the same config."""
    stream = StringIO()
    yaml = YAML(typ="safe", pure=True)
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.dump(json.loads(config.model_dump_json()), stream)
    return stream.getvalue()


def differences(one: Any, other: Any, path: str = "") -> list[str]:
    """Where two trees of plain data differ, as `a.b: what the first says -> what the second says`."""
    if one == other:
        return []
    if isinstance(one, dict) and isinstance(other, dict) and one.get("kind") == other.get("kind"):
        names = dict.fromkeys([*one, *other])
        return [line for name in names for line in differences(one.get(name), other.get(name), f"{path}.{name}".lstrip("."))]
    return [f"{path}: {_shown(one)} -> {_shown(other)}"]


@dataclass(frozen=True)
class Key:
    """A key of a recipe, for its reader."""

    path: str  # with dots
    values: str  # what it may be
    default: str  # '' where one must be given
    meaning: str


def keys(kind: Any, path: str = "") -> Iterator[Key]:
    """Every key below a config class; each alternative of a union is told with its keys, under the same path."""
    for name, field in kind.model_fields.items():
        here, members = f"{path}.{name}".lstrip("."), _members(field.annotation)
        if name == "kind":
            continue
        if not all(_is_model(member) for member in members):
            yield Key(here, _values(members, field), _default(field), field.description or "")
            continue
        for member in members:
            tags = _tags(member)
            if len(members) > 1 or tags:
                first = "" if len(tags) < 2 else str(member.model_fields["kind"].default)
                meaning = (member.__doc__ or "").strip().split("\n\n")[0].replace("\n    ", " ")
                yield Key(here, f"{{kind: {' | '.join(map(str, tags))}}}", first, meaning)
            yield from keys(member, here)


def _values(members: list[Any], field: Any) -> str:
    """What a plain key may be, in words."""
    words = {bool: "true | false", int: "a whole number", float: "a number", str: "text"}
    told = []
    for member in members:
        if get_origin(member) is Literal:
            told += [json.dumps(value) if not isinstance(value, str) else value for value in get_args(member)]
        else:
            told.append(words.get(member, "a list" if get_origin(member) in (tuple, list) else _MAPPING))
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    bounds = [f"{sign} {getattr(m, name)}" for m in field.metadata for name, sign in signs.items() if hasattr(m, name)]
    return " ".join([" | ".join(dict.fromkeys(told)), *([f"({', '.join(bounds)})"] if bounds else [])])


def _default(field: Any) -> str:
    """The default as YAML would write it on a line, '' where there is none."""
    value = field.get_default(call_default_factory=True)
    if field.is_required():
        return ""
    if isinstance(value, tuple):
        plain = all(isinstance(part, str | int | float) for part in value)
        return json.dumps(value) if plain else f"a list of {len(value)}"
    return json.dumps(value) if isinstance(value, bool | int | float | dict | list | None) else str(value)


def kinds(package: str) -> list[str]:
    """The names an open set offers: the public files of its folder."""
    folder = importlib.import_module(package).__path__
    return sorted(m.name for m in pkgutil.iter_modules(folder) if not m.name.startswith("_"))


def open_kind(package: str, tree: Any, path: str, origin: str) -> type[Config]:
    """The `Config` class of the file that `tree["kind"]` names in `package`."""
    known = kinds(package)
    if tree is None:
        mistake = f"{path}: needed, but not given"
    elif not isinstance(tree, Mapping):
        mistake = f"{path}: expected {_MAPPING}, got {_shown(tree)}"
    elif tree.get("kind") is None:
        mistake = f"{path}.kind: needed, but not given (known: {', '.join(known)})"
    elif tree["kind"] not in known:
        mistake = f"{path}.kind: nothing is called {_shown(tree['kind'])}{closest(str(tree['kind']), known)}"
    else:
        config: type[Config] = importlib.import_module(f"{package}.{tree['kind']}").Config
        return config
    raise MistakesError(origin, [mistake])


_MAPPING = "a mapping of keys to values"
_WORDS = {
    "bool_type": "true or false",
    "dict_type": _MAPPING,
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_from_float": "a whole number",
    "int_type": "a whole number",
    "list_type": "a list",
    "model_attributes_type": _MAPPING,
    "model_type": _MAPPING,
    "string_type": "text",
    "tuple_type": "a list",
}
"""What the validator's kinds of mistakes mean in the words of a recipe."""


def _explain(kind: type[Config], errors: list[dict[str, Any]]) -> list[str]:
    """Each mistake as `a.b: what is wrong`; the alternatives of a union are told in one line."""
    wanted: dict[tuple[str, str], list[str]] = {}
    for error in errors:
        inner = (other["loc"] for other in errors if len(other["loc"]) > len(error["loc"]))
        if error["type"] == "too_short" and any(loc[: len(error["loc"])] == error["loc"] for loc in inner):
            continue  # entries with mistakes of their own do not count for the validator
        path, fields = _walk(kind, error["loc"])
        said, got = _complaint(error, fields)
        if error["type"].startswith("union_tag"):
            path = f"{path}.kind"
        wanted.setdefault((path, got), []).append(said)
    lines = (": ".join(filter(None, (path, " or ".join(said)))) + got for (path, got), said in wanted.items())
    return [line.replace(" or expected ", " or ") for line in lines]


def _complaint(error: dict[str, Any], fields: list[str]) -> tuple[str, str]:
    """What is wrong, and what was got where that helps."""
    reason, message = error["type"], error["msg"].rstrip(".")
    if reason == "extra_forbidden":
        return f"no such key{closest(str(error['loc'][-1]), fields)}", ""
    if reason in ("missing", "union_tag_not_found"):
        return "needed, but not given", ""
    if reason == "union_tag_invalid":
        known = [tag.strip(" '") for tag in error["ctx"]["expected_tags"].split(",")]
        return f"nothing is called {error['ctx']['tag']!r}{closest(error['ctx']['tag'], known)}", ""
    if reason == "value_error":
        return message.removeprefix("Value error, "), ""
    got = f", got {_shown(error['input'])}"
    if reason in _WORDS:
        return f"expected {_WORDS[reason]}", got
    if reason == "too_short":
        least = error["ctx"]["min_length"]
        return f"expected at least {'one entry' if least == 1 else f'{least} entries'}", got
    rest = message.removeprefix("Input should be ")
    if rest == message:
        return message[0].lower() + message[1:], got
    return f"expected {'a number ' if reason.startswith(('greater_', 'less_')) else ''}{rest}", got


def _shown(value: Any) -> str:
    """A value much as YAML would write it, on one short line."""
    text = repr(value) if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 60 else f"{text[:59]}…"


def _walk(kind: Any, location: tuple[Any, ...]) -> tuple[str, list[str]]:
    """The dotted path a reader knows (without the names of union members) and the field names known where it ends."""
    names: list[str] = []
    fields: list[str] = []
    node = kind
    for part in location:
        members = _members(node)
        if len(members) > 1:
            # The validator names the alternative that it tried: by its tag, or by its type.
            node = next((m for m in members if part in (_tag(m), str(m))), None)
            continue
        names.append(str(part))
        member = members[0]
        fields = list(member.model_fields) if _is_model(member) else []
        if part in fields:
            node = member.model_fields[part].annotation
        else:
            # Of a mapping the values matter, of a list the one type of its entries.
            arguments = [a for a in get_args(member) if a is not Ellipsis]
            node = arguments[-1] if arguments else None
    return ".".join(names), fields


def _members(node: Any) -> list[Any]:
    """The alternatives of an annotation: union members without None, or the annotation itself."""
    if get_origin(node) is Annotated:
        return _members(get_args(node)[0])
    if get_origin(node) in (Union, types.UnionType):
        return [m for a in get_args(node) if a is not type(None) for m in _members(a)]
    return [node]


def _is_model(member: Any) -> bool:
    return isinstance(member, type) and get_origin(member) is None and issubclass(member, BaseModel)


def _tag(member: Any) -> Any:
    """The `kind` that tells a union member from the others."""
    return next(iter(_tags(member)), None)


def _tags(member: Any) -> tuple[Any, ...]:
    """What its `kind` may be."""
    field = member.model_fields.get("kind") if _is_model(member) else None
    return get_args(field.annotation) if field else ()
