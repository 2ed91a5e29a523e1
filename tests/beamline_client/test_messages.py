"""The processing program's messages: plain values are read, nothing is ever run, all else is refused."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pickle
import pickletools
import struct
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from beamline_client.messages import (
    MAX_BYTES,
    MAX_DEPTH,
    TOPICS,
    BadMessageError,
    End,
    read_message,
    read_pickle,
)

ID = "NS_230216033_ccdframes_0_0"
END = {"identifier": ID}
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=20),
    st.integers(-(2**300), 2**300),
)
keys = st.one_of(st.text(max_size=8), st.integers(), st.none(), st.booleans())


def nested(leaves: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.recursive(
        leaves,
        lambda inner: st.one_of(
            st.lists(inner, max_size=4),
            st.lists(inner, max_size=4).map(tuple),
            st.dictionaries(keys, inner, max_size=4),
        ),
        max_leaves=20,
    )


plain = nested(scalars)
plain_with_bytes = nested(st.one_of(scalars, st.binary(max_size=300)))


@given(plain, st.integers(0, 5))
def test_a_pickle_of_plain_values_of_any_protocol_is_read(value: Any, protocol: int) -> None:
    assert read_pickle(pickle.dumps(value, protocol)) == value


@given(plain_with_bytes, st.integers(3, 5))
def test_bytes_are_read_from_the_protocols_that_have_them(value: Any, protocol: int) -> None:
    assert read_pickle(pickle.dumps(value, protocol)) == value


@given(plain)
def test_shared_values_and_optimized_pickles_are_read(value: Any) -> None:
    shared = [value, {"a": value, "b": value}, (value, value)]
    for protocol in range(6):
        content = pickle.dumps(shared, protocol)
        assert read_pickle(content) == read_pickle(pickletools.optimize(content)) == shared


class _PlainOnly(pickle._Unpickler):  # the one in Python: its memo is a dict
    def find_class(self, module: str, name: str) -> Any:
        raise AssertionError(f"{module}.{name} would be run")

    def persistent_load(self, pid: Any) -> Any:
        raise AssertionError("something would be loaded from elsewhere")


def read_or_refuse(content: bytes) -> None:
    """What is read has only plain values in it; Python finds no class there, and the same values if any."""
    try:
        value = read_pickle(content)
    except BadMessageError:
        return
    _assert_plain(value, 0)
    with contextlib.suppress(ValueError, EOFError, pickle.UnpicklingError):  # frames of wrong lengths
        assert repr(_PlainOnly(io.BytesIO(content)).load()) == repr(value)


def _assert_plain(value: Any, depth: int) -> None:
    assert type(value) in (type(None), bool, int, float, str, bytes, list, tuple, dict)
    assert depth <= MAX_DEPTH
    if isinstance(value, dict):
        for key, item in value.items():
            assert type(key) in (type(None), bool, int, float, str, bytes)
            _assert_plain(item, depth + 1)
    elif isinstance(value, list | tuple):
        for item in value:
            _assert_plain(item, depth + 1)


INSTRUCTIONS = [opcode.code.encode("latin-1") for opcode in pickletools.opcodes]
WORDS = [b"os\nsystem\n", b"\x8c\x02os", b"\x8c\x06system", b"0\n", b"1\n", b"\x00", b"\x01", b"ab", b"I1\n"]


@settings(max_examples=1000)
@given(st.lists(st.one_of(st.sampled_from(INSTRUCTIONS), st.sampled_from(WORDS), st.binary(max_size=3))))
@example([b"(", b"."])
@example([b"]", b"q\x00", b"h\x00", b"a", b"."])  # a list in itself
@example([b"]", b"q\x00", b"]", b"h\x00", b"a", b"0", b"h\x00", b"]", b"a", b"."])
def test_random_instructions_are_read_alike_or_refused(pieces: list[bytes]) -> None:
    content = b"".join(pieces)
    read_or_refuse(content)
    read_or_refuse(content + b".")


@settings(max_examples=500)
@given(plain, st.integers(0, 5), st.data())
def test_a_damaged_pickle_is_read_alike_or_refused(value: Any, protocol: int, data: st.DataObject) -> None:
    content = bytearray(pickle.dumps(value, protocol))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    read_or_refuse(bytes(content[: data.draw(st.integers(0, len(content)))]))
    read_or_refuse(bytes(content))


@given(st.binary(max_size=200))
def test_random_bytes_are_refused_or_harmless(content: bytes) -> None:
    read_or_refuse(content)
    for parts in ([content], [b"stop", content], [content, b"{}"], [b"stop", content, content]):
        with contextlib.suppress(BadMessageError):
            read_message(parts)


class _Runs:
    """Runs a command when it is loaded."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


@pytest.mark.parametrize("protocol", range(6))
def test_a_command_in_a_pickle_is_not_run(protocol: int, tmp_path: Path) -> None:
    trace = tmp_path / "it was run"
    command = f"touch '{trace}'"
    for hostile in (
        _Runs(command),
        {"event": "stop", "identifier": _Runs(command)},
        {"event": "stop", **END, "more": [_Runs(command)]},
    ):
        content = pickle.dumps(hostile, protocol)
        for parts in ([content], [b"stop", content]):
            with pytest.raises(BadMessageError, match=r"more than plain values in it \((STACK_)?GLOBAL\)"):
                read_message(parts)
    assert not trace.exists()
    pickle.loads(pickle.dumps(_Runs(command), protocol))  # so it would have been
    assert trace.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"cos\nsystem\n(S'true'\ntR.",
        b"(S'true'\nios\nsystem\n.",
        b"(cos\nsystem\nS'true'\no.",
        b"\x80\x02cbuiltins\nlist\n)\x81.",
        b"\x80\x04\x8c\x08builtins\x8c\x04list\x93.",
        b"Pfile\n.",
        b"\x80\x02K\x01Q.",
        b"\x80\x02\x82\x01.",
        b"\x80\x02}}b.",
        b"\x80\x05\x97.",
        b"\x80\x05\x96\x01\x00\x00\x00\x00\x00\x00\x00a.",
        b"\x80\x04\x8f.",
    ],
)
def test_each_instruction_that_makes_something_else_is_refused(content: bytes) -> None:
    with pytest.raises(BadMessageError, match="more than plain values in it"):
        read_pickle(content)


@pytest.mark.parametrize(
    "value", [np.float64(1.0), np.zeros(3), OrderedDict(a=1), {1, 2}, bytearray(b"x"), 1j, Path("x")]
)
def test_what_is_not_plain_is_refused(value: Any) -> None:
    with pytest.raises(BadMessageError, match="more than plain values in it"):
        read_pickle(pickle.dumps({"event": "stop", **END, "frame": value}))


def test_a_huge_memo_takes_no_memory() -> None:
    content = b"\x80\x02}r\xff\xff\xff\xff(j\xff\xff\xff\xff."  # the last of 4 billion entries
    with pytest.raises(BadMessageError):
        read_pickle(content)
    assert read_pickle(b"\x80\x02]r\xff\xff\xff\xff.") == []


@pytest.mark.parametrize(
    "content",
    [
        b"]" * 1000 + b"a" * 999 + b".",
        b"(" * 1000 + b"t" * 1000 + b".",
        b"(" * 1000 + b"l" * 1000 + b".",
        b")" + b"\x85" * 50_000 + b".",
        b"".join(b"}S'a'\n" for _ in range(1000)) + b"N" + b"s" * 1000 + b".",
    ],
)
def test_deep_nesting_is_refused(content: bytes) -> None:
    with pytest.raises(BadMessageError, match=f"nested deeper than {MAX_DEPTH}"):
        read_pickle(content)
    with pytest.raises(BadMessageError):
        read_message([b'{"a":' * 10_000 + b"1" + b"}" * 10_000])


def test_ten_references_to_ten_references_and_so_on_are_refused() -> None:
    level = b"]q\x00K\x01a"
    for number in range(1, 12):
        level += b"]q" + bytes([number]) + b"(" + b"h" + bytes([number - 1])
        level += (b"h" + bytes([number - 1])) * 9 + b"e"
    with pytest.raises(BadMessageError, match="more than 100000 values"):
        read_pickle(b"\x80\x02" + level + b".")


@pytest.mark.parametrize(
    "content",
    [
        b"]q\x00h\x00a.",  # a list in itself
        b"]q\x00]q\x01h\x00ah\x01a.",  # and by way of another
        b"}q\x00S'a'\nh\x00s.",
    ],
)
def test_circles_are_refused(content: bytes) -> None:
    with pytest.raises(BadMessageError):
        read_pickle(content)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "a pickle without an end|damaged"),
        (b"x", "damaged"),
        (b".", "damaged"),
        (b"K\x01K\x02.", "damaged"),
        (b"(K\x01.", "damaged"),
        (b"K\x01", "damaged|without an end"),
        (b"a.", "damaged"),
        (b"h\x05.", "damaged"),
        (b"}(K\x01u.", "keys are not plain"),
        (b"}]K\x01s.", "keys are not plain"),
        (b"K\x01K\x02a.", "changes what it has put elsewhere"),
        (b"\x80\x04\x95" + struct.pack("<Q", 2**60) + b"N.", "damaged"),
        (b"\x8e" + struct.pack("<Q", 2**62) + b"x.", "damaged"),
        (b"\x8b" + struct.pack("<i", -5) + b"x.", "damaged"),
        (b"S'\\u0100'\n.", "damaged"),
        (b"K\x01" * MAX_BYTES, f"longer than {MAX_BYTES} bytes"),
    ],
)
def test_a_pickle_that_is_damaged_or_too_large(content: bytes, why: str) -> None:
    if b"\x95" in content:  # a frame's length is only a hint
        assert read_pickle(content) is None
        return
    with pytest.raises(BadMessageError, match=why):
        read_pickle(content)


@pytest.mark.parametrize("event", ["stop", "abort"])
@pytest.mark.parametrize("dump", [lambda data: json.dumps(data).encode(), pickle.dumps])
def test_the_end_of_a_scan_in_each_of_its_forms(event: str, dump: Any) -> None:
    assert read_message([event.encode(), dump(END)]) == End(event, ID)
    assert read_message([dump({"event": event, **END})]) == End(event, ID)
    assert read_message([dump({"event": f" {event.upper()}\n", **END, "data": [1, 2.5, None]})]) == End(
        event, ID
    )


@pytest.mark.parametrize(
    "parts",
    [
        [b"start", b"x" * 10_000_000],
        [b"frame", json.dumps(END).encode(), b"\x00" * 3_000_000],
        [json.dumps({"event": "start", **END}).encode()],
        [pickle.dumps({"event": "frame", "data": [0] * 100})],
    ],
)
def test_other_events_are_none_of_ours(parts: list[bytes]) -> None:
    assert read_message(parts) is None


@pytest.mark.parametrize(
    ("parts", "why"),
    [
        ([b"stop", b"{"], "it is not JSON, or nested too deeply"),
        ([b"stop", b"{\xff}"], "it is not JSON"),
        ([b"stop", b"[]"], "damaged pickle|not a dictionary|more than plain"),
        ([b"stop", pickle.dumps([1])], "it is not a dictionary"),
        ([b"stop", b"{}"], r"names no scan \(identifier\)"),
        ([b"stop", b'{"identifier": 5}'], "names no scan"),
        ([b"stop", b'{"identifier": ""}'], "names no scan"),
        ([b'{"identifier": "x"}'], "no event is named in it"),
        ([pickle.dumps({"event": b"stop"})], "no event is named in it"),
        ([pickle.dumps({"event": ["stop"]})], "no event is named in it"),
        ([b"reboot", b"{}"], "neither a topic with a dictionary nor a dictionary"),
        ([b"stop", b"{}", b"", b""], "neither a topic"),
        ([b"x" * (MAX_BYTES + 1)], "longer than 65536 bytes, which the end of a scan is not"),
    ],
)
def test_a_message_that_is_refused_says_why(parts: list[bytes], why: str) -> None:
    with pytest.raises(BadMessageError, match=why):
        read_message(parts)


def test_the_topics() -> None:
    assert set(TOPICS) == {"start", "frame", "stop", "abort"}
