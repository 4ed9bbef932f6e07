"""Reads JSON records of unknown quality: a bad one is handed out as an error with its line, and reading goes on.

One object per line, or one array of objects over any number of lines. Memory stays bounded: a record longer than the
limit is passed over without being held. A strict reader of our own files is in `core/jsonl`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from karma_electric.core.errors import DataError, MissingError
from karma_electric.core.jsonl import parse_json

LONGEST = 16 << 20  # bytes of a record
_BLOCK = 1 << 20
_OUTSIDE = re.compile(rb'["\[\]{},\n]')
_INSIDE = re.compile(rb'["\\\n]')
_KINDS = (  # first bytes of files that are no JSON text, and what to do
    (b"PAR1", "a Parquet file", "Name it .parquet."),
    (b"\x1f\x8b", "compressed with gzip", "Unpack it first: gunzip FILE."),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", "Unpack it first: unzstd FILE."),
    (b"PK\x03\x04", "a zip archive", "Unpack it first."),
    (b"SQLite format 3", "an SQLite database", "Give it with --db."),
    (b"\xff\xfe", "UTF-16 text", "Save as UTF-8: iconv -f UTF-16 -t UTF-8 FILE > NEW."),
    (b"\xfe\xff", "UTF-16 text", "Save as UTF-8: iconv -f UTF-16 -t UTF-8 FILE > NEW."),
)
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Line:
    """One record of a file.

    Attributes:
        number: line (of a table: row) on which it begins, from 1.
        value: what it says, unless there is a problem.
        problem: why it cannot be used, or None.
        read_bytes: bytes of the file that were read so far.
        element: its number in the array, from 1; None in a file of lines.
    """

    number: int
    value: Any
    problem: DataError | None
    read_bytes: int
    element: int | None = None

    @property
    def place(self) -> str:
        """Where it is in the file, for errors: an array may be one line."""
        return _place(self.number, self.element)


def read_tolerant(path: Path, *, longest: int = LONGEST) -> Iterator[Line]:
    """The records of a file, good and bad. A byte order mark and any line ends are accepted.

    Args:
        path: JSON Lines, or one JSON array.
        longest: bytes of a record; a longer one is a problem.

    Raises:
        MissingError: no such file.
        DataError: a folder, or a file that is no JSON text at all.
    """
    if not path.exists():
        raise MissingError(f"{path} does not exist.", "Give a .jsonl, .json or .parquet file, or a corpus folder.")
    if path.is_dir():
        raise DataError(f"{path} is a folder, expected a file.")
    with path.open("rb") as file:
        first = file.read(_BLOCK)
        for start, kind, hint in _KINDS:
            if first.startswith(start):
                raise DataError(f"{path} is {kind}, expected JSON records.", hint)
        first = first.removeprefix(_BOM)
        number = 1
        while first and not first.strip():
            number += first.count(b"\n")
            first = file.read(_BLOCK)
        source = _Source(file, first, str(path), longest)
        yield from source.elements(number) if first.lstrip().startswith(b"[") else source.lines(number)


class _Source:
    def __init__(self, file: BinaryIO, first: bytes, name: str, longest: int) -> None:
        self._file = file
        self._next = first
        self._name = name
        self._longest = longest
        self._read = 0  # bytes of the records that were handed out

    def _blocks(self) -> Iterator[bytes]:
        before = 0
        while self._next:
            yield self._next
            before += len(self._next)
            self._read = before
            self._next = self._file.read(_BLOCK)

    def _line(self, number: int, held: list[bytes], size: int, element: int | None = None) -> Line:
        where = f"{self._name} {_place(number, element)}"
        if size > self._longest:
            return Line(number, None, _too_long(where, size, self._longest), self._read, element)
        try:
            return Line(number, parse_json(b"".join(held), where), None, self._read, element)
        except DataError as problem:
            return Line(number, None, problem, self._read, element)

    def lines(self, number: int) -> Iterator[Line]:
        """One record per line."""
        held: list[bytes] = []
        size = 0
        for block in self._blocks():
            *ended, rest = block.split(b"\n")
            for piece in ended:
                size += len(piece)
                held.append(piece)
                self._read += len(piece) + 1
                if size > self._longest or any(part.strip() for part in held):
                    yield self._line(number, held, size)
                number, held, size = number + 1, [], 0
            size += len(rest)
            held = [*held, rest] if size <= self._longest else []
        if size > self._longest or any(part.strip() for part in held):
            yield self._line(number, held, size)

    def elements(self, number: int) -> Iterator[Line]:
        """The elements of one array. Their ends are found by brackets and quotes, so a bad one costs only itself."""
        start, begun = number, False  # line of the record's first sign, once that has come
        depth, in_string, skip, closed = 0, False, False, False
        element = 1
        held: list[bytes] = []
        size = 0

        def keep(piece: bytes) -> None:
            nonlocal size, start, begun
            if not begun:
                begun = bool(piece.strip())
                start += piece[: len(piece) - len(piece.lstrip())].count(b"\n")
            size += len(piece)
            if size <= self._longest:
                held.append(piece)
            else:
                held.clear()

        for block in self._blocks():
            at, before = 0, self._read  # what stands before `at` is dealt with
            place = 1 if skip else 0
            skip = False
            while not closed and (found := (_INSIDE if in_string else _OUTSIDE).search(block, place)):
                sign, place = found.group(), found.end()
                if sign == b"\n":
                    number += 1
                elif sign == b"\\":
                    skip = place == len(block)
                    place += 1
                elif sign == b'"':
                    in_string = not in_string
                elif sign in b"[{":
                    depth += 1
                    if depth == 1:
                        at, start = place, number
                elif sign in b"]}":
                    depth -= 1
                    closed = depth == 0
                if closed or (depth == 1 and sign == b","):
                    keep(block[at : place - 1])
                    self._read = before + place
                    if size > self._longest or any(part.strip() for part in held):
                        yield self._line(start, held, size, element)
                    elif not closed:
                        yield self._problem(number, "nothing before a comma", element)
                    element += 1
                    held, size, at, start, begun = [], 0, place, number, False
            if closed and block[at:].strip():
                yield self._problem(number, "text after the end of the array; what follows was not read", None)
                return
            if not closed:
                keep(block[at:])
        if not closed:
            yield self._problem(start, "the file ends before the array does; its last record", element)

    def _problem(self, number: int, what: str, element: int | None) -> Line:
        where = f"{self._name} {_place(number, element)}"
        problem = DataError(f"{where}: not JSON ({what}).", "Correct the file.")
        return Line(number, None, problem, self._read, element)


def _place(number: int, element: int | None) -> str:
    return f"line {number}" if element is None else f"line {number} (element {element})"


def _too_long(where: str, size: int, longest: int) -> DataError:
    return DataError(
        f"{where}: {size / (1 << 20):.1f} MiB long, the limit is {longest / (1 << 20):.0f} MiB.",
        "A conversation is not that long: look at the line, and split or remove it.",
    )
