"""Suites on disk: JSONL, one item a line, each with an id of its own."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from karma_electric.core.errors import DataError
from karma_electric.core.jsonl import read_jsonl


class _HasId(Protocol):
    @property
    def id(self) -> str: ...


T = TypeVar("T", bound=_HasId)
Item = TypeVar("Item")


def read_suite(path: Path, parse: Callable[[object, str], T], what: str) -> list[T]:
    """Every item of a suite, in the order of the file.

    Args:
        path: the file.
        parse: makes an item of a line's value; is given the file and line for its errors.
        what: one item is called, for errors.

    Raises:
        MissingError: there is no such file.
        DataError: the first problem, with file and line number, what was found and what was expected.
    """
    suite: list[T] = []
    first_line: dict[str, int] = {}
    for number, raw in read_jsonl(path):
        where = f"{path.name} line {number}"
        item = parse(raw, where)
        if item.id in first_line:
            raise DataError(f"{where}: id {item.id!r} is already on line {first_line[item.id]}, expected a new one.")
        first_line[item.id] = number
        suite.append(item)
    if not suite:
        raise DataError(f"{path.name} holds no {what}, expected one a line.")
    return suite


def spread(items: Sequence[Item], limit: int | None) -> list[Item]:
    """`limit` items at equal distances, so that no category at the end of a file is left out."""
    if limit is None or limit >= len(items):
        return list(items)
    return [items[number * len(items) // limit] for number in range(limit)]
