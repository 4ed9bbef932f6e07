"""Records of a foreign benchmark's file: a CSV table, a JSON list or JSON Lines, told apart by how the file begins.

A record that cannot be read is handed out as an error with its line, and reading goes on. Knows nothing of what the
columns mean.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from karma_electric.core.errors import DataError, MissingError
from karma_electric.core.jsonl import parse_json
from karma_electric.core.tolerant import read_tolerant

LONGEST_FIELD = 100_000  # characters
_BIGGEST = 256 << 20  # bytes of a CSV file: benchmarks have some thousand rows
_BOM = b"\xef\xbb\xbf"
_OTHER_DELIMITERS = {";": "semicolons", "\t": "tabs", "|": "bars"}

Record = Mapping[str, Any]


def read_records(path: Path, required: Sequence[str]) -> Iterator[tuple[int, Record | DataError]]:
    """(line, record or what is wrong with it) of every record, in order. A byte order mark is accepted.

    Args:
        path: the file.
        required: columns that a CSV file must have; of JSON every record is looked at by itself, by the caller.

    Raises:
        MissingError: no such file.
        DataError: a file that is neither, or a table without the required columns.
    """
    if not path.exists():
        raise MissingError(f"{path} does not exist.", "Give the benchmark's .csv, .json or .jsonl file.")
    if path.is_dir():
        raise DataError(f"{path} is a folder, expected a file.", "Give the benchmark's .csv, .json or .jsonl file.")
    with path.open("rb") as file:
        start = file.read(4096).removeprefix(_BOM).lstrip()
    if not start:
        raise DataError(f"{path.name} is empty, expected records.", "Give the benchmark's .csv, .json or .jsonl file.")
    if start[:1] in b"[{" or b"\0" in start or start.startswith((b"\x1f\x8b", b"PK\x03\x04", b"PAR1")):
        yield from _json(path)
    else:
        yield from _csv(path, required)


def read_nested(path: Path, key: str) -> list[Record | DataError] | None:
    """The records of the list under `key`, or what is wrong with one; None where the file is not one object with it.

    Raises:
        DataError: the object says a key twice or the like, or what is under `key` is no list.
    """
    if not path.is_file() or path.stat().st_size > _BIGGEST:
        return None
    with path.open("rb") as file:
        raw = file.read(4096).removeprefix(_BOM)
        if not raw.lstrip().startswith(b"{"):
            return None
        raw += file.read()
    try:
        if key not in json.loads(raw):
            return None
    except (ValueError, RecursionError):
        return None  # lines of objects, each to be read by itself
    records = parse_json(raw, path.name)[key]
    if not isinstance(records, list):
        raise DataError(
            f"{path.name}: {key!r} is of type {type(records).__name__}, expected a list of objects.", "Check --format."
        )
    return [
        record
        if isinstance(record, dict)
        else DataError(f"{path.name} element {number} is of type {type(record).__name__}, expected an object.")
        for number, record in enumerate(records, 1)
    ]


def _json(path: Path) -> Iterator[tuple[int, Record | DataError]]:
    for line in read_tolerant(path):
        if line.problem is not None:
            # told by the file's name, like every other problem here
            yield line.number, DataError(line.problem.message.replace(str(path), path.name, 1), line.problem.hint)
        elif not isinstance(line.value, dict):
            where = f"{path.name} line {line.number}"
            yield line.number, DataError(f"{where} is of type {type(line.value).__name__}, expected an object.")
        else:
            yield line.number, line.value


def _csv(path: Path, required: Sequence[str]) -> Iterator[tuple[int, Record | DataError]]:
    if path.stat().st_size > _BIGGEST:
        raise DataError(f"{path.name} is larger than {_BIGGEST >> 20} MiB, which no benchmark is.", "Check the file.")
    raw = path.read_bytes().removeprefix(_BOM)
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path.name} line {line}: not UTF-8 (byte 0x{raw[error.start]:02x}).", "Save the table as UTF-8."
        ) from None
    rows = csv.reader(io.StringIO(text, newline=""), strict=True)
    before = csv.field_size_limit(LONGEST_FIELD)
    try:
        columns = _header(path, rows, required)
        while True:
            number = rows.line_num + 1
            where = f"{path.name} line {number}"
            try:
                row = next(rows)
            except StopIteration:
                return
            except csv.Error as error:
                # where the next row begins cannot be known after this
                yield number, DataError(f"{where}: no row of a table ({error}); what follows was not read.")
                return
            if not row:
                continue
            if len(row) != len(columns):
                yield number, DataError(f"{where}: {len(row)} fields, expected {len(columns)} as in the first line.")
            else:
                yield number, dict(zip(columns, row, strict=True))
    finally:
        csv.field_size_limit(before)  # it is the whole process's


def _header(path: Path, rows: Iterator[list[str]], required: Sequence[str]) -> list[str]:
    try:
        columns = [name.strip() for name in next(rows)]
    except csv.Error as error:
        raise DataError(f"{path.name} line 1: no row of a table ({error}).", "Give a CSV file.") from None
    missing = [name for name in required if name not in columns]
    if missing:
        shown = ", ".join(columns)[:200]
        other = next(
            (word for sign, word in _OTHER_DELIMITERS.items() if len(columns) == 1 and sign in columns[0]), None
        )
        raise DataError(
            f"{path.name}: no column {', '.join(missing)}; found {shown}.",
            f"The columns are parted by {other}: save the table with commas."
            if other
            else f"Expected {', '.join(required)}: check --format.",
        )
    if len(set(columns)) < len(columns):
        raise DataError(f"{path.name}: two columns have the same name in {', '.join(columns)[:200]}.", "Rename one.")
    return columns
