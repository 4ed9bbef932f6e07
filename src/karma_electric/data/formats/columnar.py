"""Candidates as Parquet, and as a folder that `datasets.load_from_disk` opens.

Columns are our format's, with the system prompt as the first of `messages`, where training tools look for it, and
`extra` as JSON text. Parquet files of others are read too: a null there means that a record lacks the key.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from datetime import date, datetime, time
from decimal import Decimal
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_electric.core.errors import DataError
from karma_electric.core.extras import require
from karma_electric.core.jsonl import parse_json
from karma_electric.core.tolerant import Line
from karma_electric.data.candidate import Candidate
from karma_electric.data.records import as_record

if TYPE_CHECKING:
    import pyarrow  # type: ignore[import-untyped]

_ROWS = 500  # at a time


def read_rows(path: Path) -> Iterator[Line]:
    """The rows of a Parquet file as JSON records; `number` is the row, from 1.

    Raises:
        DataError: not a Parquet file, or a damaged one.
        MissingError: pyarrow is not installed.
    """
    require("data")
    import pyarrow  # type: ignore[import-untyped]
    import pyarrow.parquet  # type: ignore[import-untyped]

    size = path.stat().st_size
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            ours = {"messages", "extra", "added_in"} <= set(file.schema_arrow.names)
            total = max(file.metadata.num_rows, 1)
            number = 0
            for batch in file.iter_batches(batch_size=_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    where = f"{path} row {number}"
                    try:
                        value = {key: _as_json(item, key, where) for key, item in row.items() if item is not None}
                        yield Line(number, _unfold(value, where) if ours else value, None, size * number // total)
                    except DataError as problem:
                        yield Line(number, None, problem, size * number // total)
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as error:
        said = str(error).splitlines()[0][:200]
        raise DataError(f"{path} is no readable Parquet file ({said}).", "Make it again, or give JSONL.") from None


def write_parquet(path: Path, candidates: Iterable[Candidate]) -> None:
    """Write candidates as one Parquet file.

    Raises:
        MissingError: pyarrow is not installed.
    """
    require("data")
    import pyarrow.parquet  # type: ignore[import-untyped]

    schema = _schema()
    remaining = iter(candidates)
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        while batch := [_fold(candidate) for candidate in islice(remaining, _ROWS)]:
            writer.write_table(pyarrow.Table.from_pylist(batch, schema=schema))


def write_dataset(folder: Path, candidates: Iterable[Candidate]) -> None:
    """Write candidates as a folder for `datasets.load_from_disk`.

    Raises:
        MissingError: datasets is not installed.
    """
    require("data")
    import datasets
    import pyarrow  # type: ignore[import-untyped]

    table = pyarrow.Table.from_pylist([_fold(candidate) for candidate in candidates], schema=_schema())
    hidden = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        datasets.Dataset(table).save_to_disk(str(folder))
    finally:
        if not hidden:
            datasets.enable_progress_bars()


def _schema() -> pyarrow.Schema:
    import pyarrow as pa

    text = pa.string()
    return pa.schema(
        [
            ("id", text),
            ("messages", pa.list_(pa.struct([("role", text), ("content", text)]))),
            ("category", text),
            ("tags", pa.list_(text)),
            ("analysis", pa.struct([("direct", text), ("downstream", text), ("inaction", text)])),
            ("source", text),
            ("license", text),
            ("added_in", text),
            ("status", text),
            ("extra", text),
        ]
    )


def _fold(candidate: Candidate) -> dict[str, Any]:
    record = as_record(candidate)
    prompt, extra = record.pop("system"), record.pop("extra")
    if prompt is not None:
        record["messages"] = [{"role": "system", "content": prompt}, *record["messages"]]
    record["extra"] = json.dumps(extra, ensure_ascii=False) if extra else None
    return record


def _unfold(row: dict[str, Any], where: str) -> dict[str, Any]:
    record = dict(row)
    turns = record.get("messages")
    if isinstance(turns, list) and turns and isinstance(turns[0], dict) and turns[0].get("role") == "system":
        record["system"] = turns[0].get("content")
        record["messages"] = turns[1:]
    if isinstance(record.get("extra"), str):
        record["extra"] = parse_json(record["extra"].encode(), where)
    return {"category": None, "analysis": None, "added_in": None, **record}


def _as_json(value: Any, key: str, where: str) -> Any:
    if isinstance(value, dict):
        return {str(name): _as_json(item, key, where) for name, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_as_json(item, key, where) for item in value]
    if isinstance(value, datetime | date | time | Decimal):
        return str(value)
    if value is None or isinstance(value, str | int | bool):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise DataError(f"{where}: {key!r} holds {repr(value)[:40]}, which JSON cannot.", "Remove that column.")
