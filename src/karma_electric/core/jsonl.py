"""Reads JSON Lines files, with the line number in every error."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from karma_electric.core.errors import DataError, MissingError


def read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (line number, value) for every non-blank line.

    Raises:
        MissingError: no such file.
        DataError: a line that is not UTF-8 or not JSON, or the same key twice in one object.
    """
    if not path.is_file():
        raise MissingError(f"{path} does not exist.", "Give a .jsonl file.")
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if raw.strip():
                yield number, _parse(raw, f"{path.name} line {number}")


def _parse(raw: bytes, where: str) -> Any:
    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_repeats)
        if b"\\u" in raw and any("\ud800" <= c <= "\udfff" for c in json.dumps(value, ensure_ascii=False)):
            raise ValueError("half of a surrogate pair (\\ud800 to \\udfff alone), which is no character")
        return value
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8 (byte {error.start} is 0x{raw[error.start]:02x}).", "Save as UTF-8."
        ) from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: not JSON ({error.msg} at column {error.colno}).", "One JSON object per line."
        ) from None
    except ValueError as error:
        raise DataError(f"{where}: {error}.", "Correct that line.") from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} appears twice")
    return value
