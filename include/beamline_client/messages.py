"""Reads the messages of the beamline's processing program, without running anything that is in them.

A message is a topic (`stop`, `abort`, ...) and a dictionary as JSON, or one dictionary with the topic in it
as `event`. The dictionary may also be a pickle. Loading a pickle runs whatever code its sender has put in, so
its instructions are read here one by one: those that make plain values are carried out, any other is refused.
"""

from __future__ import annotations

import json
import pickletools
import struct
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence

MAX_BYTES = 65_536  # of a message; one that ends a scan has 100
MAX_DEPTH = 20  # of containers in one another
MAX_VALUES = 100_000  # counted as often as they are referred to
ENDS = ("stop", "abort")  # the events after which the file of a scan is closed
TOPICS = (*ENDS, "start", "frame")


class BadMessageError(ValueError):
    """A message that is none of the processing program's, or one with more in it than plain values."""


class End(NamedTuple):
    """A scan has ended; its file is closed, or about to be."""

    event: str  # stop or abort
    identifier: str  # the file's name without .cxi


def read_message(parts: Sequence[bytes]) -> Optional[End]:
    """The end of a scan in a message; None when it is about something else.

    :raises BadMessageError: the message cannot be read, or only by running what is in it.
    """
    topic = parts[0].decode("latin-1") if len(parts) > 1 else ""
    if len(parts) > 3 or (topic and topic not in TOPICS):
        raise BadMessageError("it is neither a topic with a dictionary nor a dictionary")
    if topic and topic not in ENDS:
        return None
    content = parts[-1] if len(parts) < 3 else parts[1]
    if len(content) > MAX_BYTES:
        raise BadMessageError(f"it is longer than {MAX_BYTES} bytes, which the end of a scan is not")
    data = _read_json(content) if content[:1] == b"{" else read_pickle(content)
    if not isinstance(data, dict):
        raise BadMessageError("it is not a dictionary")
    event = topic or data.get("event")
    event = event.strip().lower() if isinstance(event, str) else event
    if event not in TOPICS:
        raise BadMessageError("no event is named in it")
    if event not in ENDS:
        return None
    identifier = data.get("identifier")
    if not isinstance(identifier, str) or not identifier:
        raise BadMessageError("it names no scan (identifier)")
    return End(event, identifier)


def _read_json(content: bytes) -> Any:
    try:
        return json.loads(content.decode("utf-8"))
    except (ValueError, RecursionError):
        raise BadMessageError("it is not JSON, or nested too deeply") from None


def read_pickle(content: bytes) -> Any:
    """The plain value in a pickle: None, bool, int, float, str, bytes, and list, tuple, dict of them.

        >>> read_pickle(pickle.dumps({"identifier": "NS_230216033_ccdframes_0_0"}))
        {'identifier': 'NS_230216033_ccdframes_0_0'}

    :raises BadMessageError: it is damaged, too large or too deep, or has anything else in it.
    """
    if len(content) > MAX_BYTES:
        raise BadMessageError(f"it is longer than {MAX_BYTES} bytes")
    machine = _Machine()
    try:
        for opcode, argument, _ in pickletools.genops(content):
            if opcode.name == "STOP":
                return machine.result()
            machine.step(opcode.name, argument)
    except BadMessageError:
        raise
    except (ValueError, LookupError, OverflowError, TypeError, struct.error, Warning):
        # Of warnings only where Python is set to raise them: odd escapes in a text cause them.
        raise BadMessageError("it is a damaged pickle, or none") from None
    raise BadMessageError("it is a pickle without an end")


class _Item:
    """A value on the stack: how deep it is, how many values it has in it, and whether it may still grow."""

    __slots__ = ("depth", "is_open", "size", "value")

    def __init__(self, value: Any, parts: Sequence[_Item] = (), *, is_open: bool = False) -> None:
        self.value = value
        self.depth = 0
        self.size = 1
        self.is_open = is_open
        if isinstance(value, (list, tuple, dict)):
            self.depth = 1
            self.take(parts)

    def take(self, parts: Sequence[_Item]) -> None:
        """Count what comes into a container. It cannot change after that, so there are no circles."""
        for part in parts:
            part.is_open = False
            self.depth = max(self.depth, 1 + part.depth)
            self.size += part.size
        if self.depth > MAX_DEPTH:
            raise BadMessageError(f"it is nested deeper than {MAX_DEPTH}")
        if self.size > MAX_VALUES:
            raise BadMessageError(f"it has more than {MAX_VALUES} values in it")


_VALUES = {  # instructions with the value as their argument
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
}
_CONSTANTS: Dict[str, Any] = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PROTOCOLS = range(6)
_SCALARS = (str, bytes, int, float, type(None))


class _Machine:
    """Carries out the instructions of a pickle that make plain values."""

    def __init__(self) -> None:
        self.stack: List[_Item] = []
        self.marks: List[int] = []
        self.memo: Dict[int, _Item] = {}
        self.others: Dict[str, Callable[[], None]] = {
            "MARK": self._mark,
            "EMPTY_LIST": lambda: self._push([], is_open=True),
            "EMPTY_DICT": lambda: self._push({}, is_open=True),
            "LIST": self._list,
            "TUPLE": self._tuple,
            "DICT": self._dict,
            "APPEND": lambda: self._append(self._pop(1)),
            "APPENDS": lambda: self._append(self._pop_to_mark()),
            "SETITEM": lambda: self._set_items(self._pop(2)),
            "SETITEMS": lambda: self._set_items(self._pop_to_mark()),
            "POP": self._drop,
            "POP_MARK": lambda: self._pop_to_mark().clear(),
            "DUP": lambda: self.stack.append(self._top()),
            "MEMOIZE": lambda: self.memo.__setitem__(len(self.memo), self._top()),
        }

    def step(self, name: str, argument: Any) -> None:
        """Carry out one instruction.

        :raises BadMessageError: it would do something else than make a plain value.
        """
        if name in _VALUES:
            self._push(argument)
        elif name in _CONSTANTS:
            self._push(_CONSTANTS[name])
        elif name in _TUPLES:
            self._push_tuple(self._pop(_TUPLES[name]))
        elif name in ("PUT", "BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self._top()
        elif name in ("GET", "BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name in self.others:
            self.others[name]()
        elif name == "PROTO" and argument not in _PROTOCOLS:
            raise ValueError(argument)
        elif name not in ("PROTO", "FRAME"):
            raise BadMessageError(f"it is a pickle with more than plain values in it ({name})")

    def result(self) -> Any:
        """The value at the end, alone on the stack."""
        if len(self.stack) != 1 or self.marks:
            raise BadMessageError("it is a damaged pickle, or none")
        return self.stack[0].value

    def _push(self, value: Any, parts: Sequence[_Item] = (), *, is_open: bool = False) -> None:
        self.stack.append(_Item(value, parts, is_open=is_open))

    def _mark(self) -> None:
        self.marks.append(len(self.stack))

    def _floor(self) -> int:
        return self.marks[-1] if self.marks else 0

    def _top(self) -> _Item:
        if len(self.stack) <= self._floor():
            raise IndexError
        return self.stack[-1]

    def _pop(self, count: int) -> List[_Item]:
        if len(self.stack) - count < self._floor():
            raise IndexError
        items = self.stack[-count:]
        del self.stack[-count:]
        return items

    def _pop_to_mark(self) -> List[_Item]:
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def _drop(self) -> None:
        if len(self.stack) == self._floor() and self.marks:
            self.marks.pop()
        else:
            self._pop(1)

    def _list(self) -> None:
        items = self._pop_to_mark()
        self._push([item.value for item in items], items, is_open=True)

    def _tuple(self) -> None:
        self._push_tuple(self._pop_to_mark())

    def _push_tuple(self, items: Sequence[_Item]) -> None:
        self._push(tuple(item.value for item in items), items)

    def _dict(self) -> None:
        items = self._pop_to_mark()
        self._push({}, is_open=True)
        self._set_items(items)

    def _container(self, kind: type, parts: Sequence[_Item]) -> _Item:
        """The container on top of the stack, which grows by these parts."""
        top = self._top()
        if type(top.value) is not kind or not top.is_open or any(part is top for part in parts):
            raise BadMessageError("it is a pickle that changes what it has put elsewhere")
        top.take(parts)
        return top

    def _append(self, items: Sequence[_Item]) -> None:
        self._container(list, items).value.extend(item.value for item in items)

    def _set_items(self, items: Sequence[_Item]) -> None:
        top = self._container(dict, items)
        keys, values = items[::2], items[1::2]
        if len(keys) != len(values) or not all(isinstance(key.value, _SCALARS) for key in keys):
            raise BadMessageError("it has a dictionary whose keys are not plain")
        for index, key in enumerate(keys):
            top.value[key.value] = values[index].value
