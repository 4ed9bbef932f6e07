"""Reads single values from the header of a GGUF file, without the arrays of its tokenizer.

`gguf.GGUFReader` makes an object of every token, which takes seconds for a large vocabulary.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from karma_electric.core.errors import ArtifactError, MissingError

_FORMATS = {0: "<B", 1: "<b", 2: "<H", 3: "<h", 4: "<I", 5: "<i", 6: "<f", 7: "<?", 10: "<Q", 11: "<q", 12: "<d"}
_STRING, _ARRAY = 8, 9
_LONGEST = 1 << 26


def read_values(file: Path, keys: Iterable[str]) -> dict[str, Any]:
    """The values of those of `keys` that a file has: numbers and strings; of `tokenizer.ggml.tokens` the list.

    Raises:
        MissingError: no such file. ArtifactError: not a whole GGUF header.
    """
    wanted = set(keys)
    found: dict[str, Any] = {}
    try:
        with file.open("rb") as stream:
            if stream.read(4) != b"GGUF":
                raise ValueError("it does not begin with GGUF")
            _, _, n_keys = struct.unpack("<IQQ", _exactly(stream, 20))
            for _ in range(n_keys):
                key = _string(stream)
                kind = _number(stream, "<I")
                value = _value(stream, kind, keep=key in wanted)
                if key in wanted:
                    found[key] = value
                if wanted <= found.keys():
                    break
    except FileNotFoundError:
        raise MissingError(f"{file} does not exist.", "Make it with: karma gguf MODEL OUT") from None
    except (ValueError, struct.error, UnicodeDecodeError) as error:
        raise ArtifactError(f"{file} is not a whole GGUF file ({error}).", "Export it again.") from None
    return found


def _value(stream: BinaryIO, kind: int, *, keep: bool) -> Any:
    if kind == _STRING:
        return _string(stream)
    if kind == _ARRAY:
        inner, count = _number(stream, "<I"), _number(stream, "<Q")
        if inner in _FORMATS and not keep:
            stream.seek(struct.calcsize(_FORMATS[inner]) * count, 1)
            return None
        values = [_value(stream, inner, keep=keep) for _ in range(count)]
        return values if keep else None
    if kind not in _FORMATS:
        raise ValueError(f"a value of the unknown type {kind}")
    return _number(stream, _FORMATS[kind])


def _number(stream: BinaryIO, form: str) -> Any:
    return struct.unpack(form, _exactly(stream, struct.calcsize(form)))[0]


def _string(stream: BinaryIO) -> str:
    length = _number(stream, "<Q")
    if length > _LONGEST:
        raise ValueError(f"a text of {length} bytes")
    return _exactly(stream, length).decode()


def _exactly(stream: BinaryIO, count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise ValueError("it ends early")
    return data
