"""A PyTorch checkpoint as plain values and tensors, without executing anything that it says.

A pickle is a program for a small stack machine. This is another machine for it, one that has no way to import or to call:
what a pickle names stays a name (`Name`), what it would have made of one is written down (`Foreign`), and only the few
calls of `_CALLS`, which are our own functions, make values.
"""

import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from turborec.bridges.archive import Archive, Name, RefusedError, tensor, tensor_of_dtype
from turborec.errors import UserError

LARGEST_KEY = 1000
"""Values within a key of a dictionary or an element of a set: tuples that repeat one another could be hashed for ever."""

MOST_COMPOSITE = 1000
"""Keys of a dictionary, or elements of a set, of which one is made of others."""

COPIES = 16
"""What the calls of a pickle may copy, as a multiple of its bytes."""


@dataclass(eq=False)
class Foreign:
    """What a pickle wanted to be made by calling something unknown, and what it then put into it. Nothing was called."""

    name: str  # of what would have been called, with dots; '' where that is itself a result, the first of the arguments
    arguments: tuple[Any, ...]  # of a call with keywords: the arguments in a tuple, the keywords in a dictionary
    state: Any = None
    items: list[Any] = field(default_factory=list)  # appended, or added to a set
    entries: dict[Any, Any] = field(default_factory=dict)


def read(path: Path) -> Any:
    """What `torch.save` wrote, tensors on the CPU; nothing that the file names is imported or called.

    Values are None, bool, int, float, str, bytes, list, tuple, dict, OrderedDict, set, frozenset and Tensor; in place of all
    others stand `Name` and `Foreign`. Values may be cyclic. A UserError names the file and says why it is not read.
    """
    try:
        with zipfile.ZipFile(_zipped(path)) as file:
            return _Machine(Archive(file, path.stat().st_size)).run()
    except OSError as error:
        reason = error.strerror or str(error)
    except RefusedError as error:
        reason = str(error)
    except Exception as error:
        # Of a damaged or hostile file anything may come: from zipfile, from pickletools, from a stack that is empty.
        reason = f"it is damaged ({type(error).__name__}: {str(error)[:200]})"
    raise UserError(
        f"{path} cannot be read as a checkpoint of PyTorch: {reason}. Save it again with torch.save, or name another file."
    )


def _zipped(path: Path) -> Path:
    """The path itself, unless the file is no zip archive."""
    with path.open("rb") as file:
        start = file.read(2)
    if not zipfile.is_zipfile(path):
        if start[:1] == b"\x80":
            raise RefusedError("it is a bare pickle, as PyTorch wrote before version 1.6, and not the zip archive of today")
        raise RefusedError("it is no zip archive, or only the beginning of one")
    return path


class _Machine:
    """The stack machine of pickle, protocols 0 to 5, with nothing to call."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive
        self.stack: list[Any] = []
        self.outer: list[list[Any]] = []  # the stacks below the marks
        self.memo: dict[int, Any] = {}
        self.budget = 0  # values that calls may still copy

    def run(self) -> Any:
        """The value that the pickle leaves."""
        pickle = self.archive.pickle()
        self.budget = COPIES * len(pickle)
        for opcode, argument, _ in pickletools.genops(pickle):
            if opcode.name in _LITERALS:
                self.stack.append(argument)
            elif opcode.name in _OPERATIONS:
                _OPERATIONS[opcode.name](self, argument)
            elif opcode.name not in ("PROTO", "FRAME", "STOP"):
                raise RefusedError(f"its pickle asks for {opcode.name}, which torch.save does not write")
        if self.outer or len(self.stack) != 1:
            raise RefusedError("its pickle does not end in one value")
        return self.stack[0]

    def push(self, value: Any) -> None:
        """Put a value on the stack."""
        self.stack.append(value)

    def pop(self, count: int) -> list[Any]:
        """The last values of the stack, which must be there."""
        if len(self.stack) < count:
            raise RefusedError("its pickle takes a value that it never made")
        taken = self.stack[len(self.stack) - count :]
        del self.stack[len(self.stack) - count :]
        return taken

    def since_mark(self) -> list[Any]:
        """All values since the last mark, which goes too."""
        taken, self.stack = self.stack, self.outer.pop()
        return taken

    def mark(self) -> None:
        """Begin a stack of its own."""
        self.outer.append(self.stack)
        self.stack = []

    def drop(self) -> None:
        """Forget the last value, or the mark where there is none since."""
        if self.stack:
            self.stack.pop()
        else:
            self.since_mark()

    def remember(self, place: int) -> None:
        """Keep the last value for later."""
        self.memo[place] = self.stack[-1]

    def recall(self, place: int) -> None:
        """Put a kept value on the stack."""
        if place not in self.memo:
            raise RefusedError("its pickle takes up a value that it never kept")
        self.stack.append(self.memo[place])

    def call(self, called: Any, arguments: Any) -> None:
        """Write down a call, or make the value of one of ours."""
        if not isinstance(arguments, tuple):
            raise RefusedError("its pickle calls something with arguments that are no tuple")
        # A few bytes can ask for one more copy of something large that was kept before.
        self.budget -= len(arguments) + sum(len(part) for part in arguments if isinstance(part, str | list | tuple))
        if self.budget < 0:
            raise RefusedError("its pickle copies the same values again and again")
        self.stack.append(_made(called, arguments))

    def build(self) -> None:
        """Give the last value its state: only what is foreign keeps it, tensors and dictionaries have no need of theirs."""
        value, state = self.pop(2)
        if isinstance(value, Foreign):
            value.state = state
        elif not isinstance(value, OrderedDict | Tensor):
            raise RefusedError(f"its pickle gives a state to a {type(value).__name__}")
        self.stack.append(value)

    def extend(self, values: list[Any]) -> None:
        """Append to the last value."""
        target = self.stack[-1]
        self._expect(target, list)
        (target.items if isinstance(target, Foreign) else target).extend(values)

    def add(self, values: list[Any]) -> None:
        """Add to the set that is the last value."""
        target = self.stack[-1]
        self._expect(target, set)
        target.items.extend(values) if isinstance(target, Foreign) else target.update(_keys(values, len(target)))

    def fill(self, flat: list[Any]) -> None:
        """Set entries, given as key, value, key, value …, of the last value."""
        target = self.stack[-1]
        self._expect(target, dict)
        filled = target.entries if isinstance(target, Foreign) else target
        filled.update(_entries(flat, len(filled)))

    def _expect(self, target: Any, kind: type) -> None:
        if not isinstance(target, Foreign | kind):
            raise RefusedError(f"its pickle fills a {type(target).__name__} as if it were a {kind.__name__}")

    def name(self, module: Any, name: Any) -> None:
        """Refer to something by its name, whatever it is."""
        if not (isinstance(module, str) and isinstance(name, str)):
            raise RefusedError("its pickle refers to something by a name that is no text")
        self.stack.append(Name(f"{'builtins' if module == '__builtin__' else module}.{name}"))

    def instance(self, words: str) -> None:
        """The call of protocol 0, which names what it calls."""
        arguments = self.since_mark()
        self.name(*words.split(" ", 1))
        self.call(self.stack.pop(), tuple(arguments))


_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}

_OPERATIONS: dict[str, Callable[[_Machine, Any], object]] = {
    "NONE": lambda m, _: m.push(None),
    "NEWTRUE": lambda m, _: m.push(True),
    "NEWFALSE": lambda m, _: m.push(False),
    "BYTEARRAY8": lambda m, data: m.push(bytes(data)),
    "EMPTY_LIST": lambda m, _: m.push([]),
    "EMPTY_TUPLE": lambda m, _: m.push(()),
    "EMPTY_DICT": lambda m, _: m.push({}),
    "EMPTY_SET": lambda m, _: m.push(set()),
    "LIST": lambda m, _: m.push(m.since_mark()),
    "TUPLE": lambda m, _: m.push(tuple(m.since_mark())),
    "TUPLE1": lambda m, _: m.push(tuple(m.pop(1))),
    "TUPLE2": lambda m, _: m.push(tuple(m.pop(2))),
    "TUPLE3": lambda m, _: m.push(tuple(m.pop(3))),
    "DICT": lambda m, _: m.push(dict(_entries(m.since_mark()))),
    "FROZENSET": lambda m, _: m.push(frozenset(_keys(m.since_mark()))),
    "APPEND": lambda m, _: m.extend(m.pop(1)),
    "APPENDS": lambda m, _: m.extend(m.since_mark()),
    "ADDITEMS": lambda m, _: m.add(m.since_mark()),
    "SETITEM": lambda m, _: m.fill(m.pop(2)),
    "SETITEMS": lambda m, _: m.fill(m.since_mark()),
    "MARK": lambda m, _: m.mark(),
    "POP": lambda m, _: m.drop(),
    "POP_MARK": lambda m, _: m.since_mark(),
    "DUP": lambda m, _: m.push(m.stack[-1]),
    "PUT": lambda m, place: m.remember(place),
    "BINPUT": lambda m, place: m.remember(place),
    "LONG_BINPUT": lambda m, place: m.remember(place),
    "MEMOIZE": lambda m, _: m.remember(len(m.memo)),
    "GET": lambda m, place: m.recall(place),
    "BINGET": lambda m, place: m.recall(place),
    "LONG_BINGET": lambda m, place: m.recall(place),
    "GLOBAL": lambda m, words: m.name(*words.split(" ", 1)),
    "STACK_GLOBAL": lambda m, _: m.name(*m.pop(2)),
    "REDUCE": lambda m, _: m.call(*m.pop(2)),
    "NEWOBJ": lambda m, _: m.call(*m.pop(2)),
    "NEWOBJ_EX": lambda m, _: m.call((taken := m.pop(3))[0], (taken[1], taken[2])),
    "OBJ": lambda m, _: m.call((taken := m.since_mark())[0], tuple(taken[1:])),
    "INST": lambda m, words: m.instance(words),
    "BUILD": lambda m, _: m.build(),
    "BINPERSID": lambda m, _: m.push(m.archive.storage(m.pop(1)[0])),
}


def _entries(flat: list[Any], held: int = 0) -> Iterator[tuple[Any, Any]]:
    if len(flat) % 2:
        raise RefusedError("its pickle sets a key without a value")
    return zip(_keys(flat[::2], held), flat[1::2], strict=True)


def _keys(values: list[Any], held: int = 0) -> list[Any]:
    """The values themselves, unless one of them cannot be hashed, or not in any bearable time; `held` are there already."""
    if held + len(values) > MOST_COMPOSITE and any(isinstance(value, tuple | frozenset) for value in values):
        raise RefusedError("its pickle has too many keys that are tuples, whose hashes can be chosen to meet one another")
    for value in values:
        count, waiting = 0, [value]
        while waiting:
            part = waiting.pop()
            count += 1
            # Python hashes whole numbers below 2^61 to themselves; larger ones can be chosen to meet one another.
            if count > LARGEST_KEY or not isinstance(part, _HASHABLE) or (isinstance(part, int) and abs(part) >= 2**61 - 1):
                raise RefusedError(f"its pickle has a key that is too large or a {type(part).__name__}")
            waiting.extend(part if isinstance(part, tuple | frozenset) else ())
    return values


_HASHABLE = (type(None), bool, int, float, str, bytes, tuple, frozenset, Name, Foreign)


def _made(called: Any, arguments: tuple[Any, ...]) -> Any:
    """The value of a call: one of our own functions', or a note of the call."""
    name = called.path if isinstance(called, Name) else ""
    if name in _CALLS:
        try:
            return _CALLS[name](*arguments)
        except TypeError as error:  # another number of arguments than torch has ever written
            raise RefusedError(f"it calls {name} in a way that is not known") from error
    return Foreign(name, arguments if name else (called, arguments))


def _parameter(data: Any, *_: Any) -> Any:
    """A parameter is its tensor: what trains it is not a part of a checkpoint's values."""
    return data


def _ordered(pairs: Any = ()) -> OrderedDict[Any, Any]:
    return OrderedDict(_entries([value for key, item in _sequence(pairs) for value in (key, item)]))


def _set(values: Any = ()) -> set[Any]:
    return set(_keys(list(_sequence(values))))


def _frozenset(values: Any = ()) -> frozenset[Any]:
    return frozenset(_set(values))


def _sequence(values: Any) -> Any:
    if not isinstance(values, list | tuple):
        raise RefusedError(f"it makes a collection of a {type(values).__name__}")
    return values


def _encoded(text: Any, encoding: Any) -> bytes:
    """How protocol 2 writes bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise RefusedError("it encodes text in another way than pickle does")
    return text.encode("latin-1")


_CALLS: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered,
    "builtins.set": _set,
    "builtins.frozenset": _frozenset,
    "builtins.bytes": lambda: b"",  # of protocol 2, which writes others by _codecs.encode
    "_codecs.encode": _encoded,
    "torch.Size": lambda sizes: tuple(_sequence(sizes)),
    "torch._utils._rebuild_tensor_v2": tensor,
    "torch._utils._rebuild_tensor_v3": tensor_of_dtype,
    "torch._utils._rebuild_parameter": _parameter,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": lambda called, _type, arguments, _state: _made(called, tuple(_sequence(arguments))),
}
