"""Reads Transfer's filter, orderby, limit and offset parameters.

A filter is a list of clauses `key:value,value` with slashes between them; all clauses must hold. Where
several filter parameters are given, one of them must hold.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from standin.globus import times
from standin.globus.errors import TransferError, bad_request

Document = Mapping[str, Any]
Test = Callable[[Document], bool]

_NUMBER = re.compile(r"(>=|<=|!=|>|<|=|!)?\s*(-?\d+)")


def _glob(pattern: str, flags: int) -> re.Pattern[str]:
    return re.compile(".*".join(re.escape(part) for part in pattern.split("*")), flags | re.DOTALL)


def text_test(key: str, values: Sequence[str], *, ignore_case: bool = False) -> Test:
    """Exact (`=` or no prefix) and pattern (`~`, with `*`) matches, `!` for their opposites.

    One of the positive ones must match, and all of the negative ones must hold.
    """
    exact: tuple[set[str], set[str]] = (set(), set())  # positive, negative
    patterns: tuple[list[re.Pattern[str]], list[re.Pattern[str]]] = ([], [])
    flags = re.IGNORECASE if ignore_case else 0
    for value in values:
        negative = value.startswith("!")
        rest = value.removeprefix("!")
        if rest.startswith("~"):
            patterns[negative].append(_glob(rest[1:], flags))
        else:
            exact[negative].add(rest.removeprefix("="))

    def matches(text: str, negative: int) -> bool:
        return text in exact[negative] or any(p.fullmatch(text) for p in patterns[negative])

    any_positive = bool(exact[0] or patterns[0])

    def test(document: Document) -> bool:
        text = "" if document.get(key) is None else str(document[key])
        return (not any_positive or matches(text, 0)) and not matches(text, 1)

    return test


def number_test(key: str, values: Sequence[str]) -> Test:
    """Comparisons such as `>5`; one of them must hold.

    :raises TransferError: 400 when one is not a comparison with a number.
    """
    tests: list[Test] = []
    for value in values:
        match = _NUMBER.fullmatch(value.strip())
        if match is None:
            raise bad_request(f"Invalid filter value {value!r} for '{key}': not a number")
        tests.append(_comparison(key, match[1] or "=", int(match[2])))
    return lambda document: any(test(document) for test in tests)


def _comparison(key: str, operator: str, number: int) -> Test:
    operations: dict[str, Callable[[int], bool]] = {
        "=": lambda value: value == number,
        "!": lambda value: value != number,
        "!=": lambda value: value != number,
        ">": lambda value: value > number,
        "<": lambda value: value < number,
        ">=": lambda value: value >= number,
        "<=": lambda value: value <= number,
    }
    operation = operations[operator]
    return lambda document: document.get(key) is not None and operation(int(document[key]))


def range_test(key: str, values: Sequence[str]) -> Test:
    """A range of times `start,end`, either of which may be empty; a lone start is open at the end.

    :raises TransferError: 400 when one is not a time.
    """
    if len(values) > 2:
        raise bad_request(f"Filter '{key}' takes a start and an end")
    try:
        bounds = [times.parse(value) if value.strip() else None for value in values]
    except ValueError as error:
        raise bad_request(f"Invalid time in filter '{key}': {error}") from error
    start, end = (*bounds, None)[:2]

    def test(document: Document) -> bool:
        if document.get(key) is None:
            return False
        moment = times.parse(str(document[key]))
        return (start is None or moment >= start) and (end is None or moment <= end)

    return test


ClauseMaker = Callable[[str, Sequence[str]], Test]


def parse_filter(text: str, makers: Mapping[str, ClauseMaker]) -> dict[str, Test]:
    """The clauses of one filter, by key.

    :param makers: what each key that may be filtered by makes of its values.
    :raises TransferError: 400 for an unknown key or a malformed clause.
    """
    clauses: dict[str, Test] = {}
    for clause in filter(None, text.split("/")):
        key, colon, value = clause.partition(":")
        if not colon or key not in makers:
            raise bad_request(f"Invalid filter clause {clause!r}; keys are {', '.join(sorted(makers))}")
        clauses[key] = makers[key](key, value.split(","))
    return clauses


def order(documents: list[dict[str, Any]], orderby: str | None, keys: Sequence[str]) -> list[dict[str, Any]]:
    """Sort by `field [ASC|DESC],...`; documents with no value come last.

    :raises TransferError: 400 for a field that cannot be sorted by.
    """
    ordered = list(documents)
    for part in reversed([p.strip() for p in (orderby or "").split(",") if p.strip()]):
        key, _, direction = part.partition(" ")
        direction = direction.strip().upper() or "ASC"
        if key not in keys or direction not in ("ASC", "DESC"):
            raise bad_request(f"Invalid orderby {part!r}; fields are {', '.join(keys)}")
        known = [document for document in ordered if document.get(key) is not None]
        unknown = [document for document in ordered if document.get(key) is None]
        known.sort(key=lambda document: document[key], reverse=direction == "DESC")
        ordered = known + unknown
    return ordered


def page_bounds(query: Mapping[str, str], *, default: int, maximum: int) -> tuple[int, int]:
    """The limit and offset of a request.

    :raises TransferError: 400 when they are not numbers or out of bounds.
    """
    return _bounded(query, "limit", default, maximum), _bounded(query, "offset", 0, 10**9)


def _bounded(query: Mapping[str, str], name: str, default: int, maximum: int) -> int:
    text = query.get(name)
    if text is None:
        return default
    error: TransferError = bad_request(f"'{name}' must be a number from 0 to {maximum}, not {text!r}")
    if not re.fullmatch(r"[0-9]{1,12}", text):
        raise error
    if int(text) > maximum:
        raise error
    return int(text)
