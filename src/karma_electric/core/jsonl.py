"""JSON Lines: reading with the line number in every error, appending so that a kill costs one line at most."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from karma_electric.core.artifact import write_atomic
from karma_electric.core.errors import DataError, MissingError


def read_jsonl(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield (line number, value) for every non-blank line.

    Raises:
        MissingError: no such file.
        DataError: a folder, a line that is not UTF-8 or not JSON, or the same key twice in one object.
    """
    if path.is_dir():
        raise DataError(f"{path} is a folder, expected a file.", "Give a .jsonl file in it.")
    if not path.is_file():
        raise MissingError(f"{path} does not exist.", "Give a .jsonl file.")
    with path.open("rb") as file:
        for number, raw in enumerate(file, 1):
            if raw.strip():
                yield number, parse_json(raw, f"{path.name} line {number}")


def append_jsonl(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Add a line per row and wait until they are on disk."""
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    with path.open("a", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def whole_characters(text: str) -> str:
    """The text with U+FFFD for each half of a surrogate pair (\\ud800 to \\udfff alone), which no file can hold.

    An endpoint may send one where it cuts an answer off in the middle of a character.
    """
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def drop_torn_line(path: Path) -> None:
    """Cut off a last line without its end, which a kill has left; what it held is done again."""
    if not path.exists():
        return
    data = path.read_bytes()
    if data and not data.endswith(b"\n"):
        write_atomic(path, data[: data.rfind(b"\n") + 1])


def parse_json(raw: bytes, where: str, *, expected: str = "One JSON object per line.") -> Any:
    """Read one JSON value, more strictly than Python does: what another reader would take otherwise is refused.

    Args:
        raw: the bytes of the value.
        where: the place, for errors ("corpus/crisis.jsonl line 4").
        expected: what should stand there, for errors.

    Raises:
        DataError: not UTF-8, not JSON, NaN or a number out of range, the same key twice in one object, half of a
            surrogate pair.
    """
    try:
        value = json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_without_repeats,
            parse_constant=_no_number,
            parse_float=_finite,
        )
        if b"\\u" in raw and any("\ud800" <= c <= "\udfff" for c in json.dumps(value, ensure_ascii=False)):
            raise ValueError("half of a surrogate pair (\\ud800 to \\udfff alone), which is no character")
        return value
    except UnicodeDecodeError as error:
        raise DataError(
            f"{where}: not UTF-8 (byte {error.start} is 0x{raw[error.start]:02x}).", "Save as UTF-8."
        ) from None
    except json.JSONDecodeError as error:
        raise DataError(
            f"{where}: not JSON ({error.msg.removesuffix(' at')} at column {error.colno}).", expected
        ) from None
    except RecursionError:
        raise DataError(f"{where}: brackets are nested too deeply.", "Correct that line.") from None
    except ValueError as error:
        # Python's own words for an integer of thousands of digits name a setting that no user has
        said = "a number of thousands of digits" if "integer string conversion" in str(error) else str(error)
        raise DataError(f"{where}: {said}.", "Correct that line.") from None


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} appears twice")
    return value


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON value")


def _finite(digits: str) -> float:
    value = float(digits)
    if value in (float("inf"), float("-inf")):
        raise ValueError(f"the number {digits[:20]} is out of range")
    return value
