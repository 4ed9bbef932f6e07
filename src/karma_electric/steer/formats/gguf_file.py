"""Reads and writes the small GGUF files that carry one vector per block, `direction.N` with N the 0-based block.

llama.cpp adds (or its fork caps along) `direction.N` after block N; it has none for block 0, so N starts at 1. The
`gguf` package writes. It is not used to read: given a damaged header it raises whatever comes or allocates what the
header says. Here every count and length is checked against the bytes that are left before it is believed.
"""

from __future__ import annotations

import re
import struct
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from karma_electric.core.artifact import write_atomic
from karma_electric.core.errors import ArtifactError
from karma_electric.core.extras import require
from karma_electric.steer.formats.steering import by_layer
from karma_electric.steer.formats.torch_file import require_file

if TYPE_CHECKING:
    import torch

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_TENSORS, _MAX_KEYS = 100_000, 10_000
_MAX_NAME, _MAX_TEXT = 256, 1 << 20
_STRING, _ARRAY = 8, 9
_FIXED = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # value types
_ELEMENTS = {0: ("float32", 4), 1: ("float16", 2), 30: ("bfloat16", 2)}  # tensor types that hold plain numbers
_TENSOR = re.compile(r"direction\.(.*)", re.DOTALL)
_HINT = "Expected a whole little-endian GGUF file of version 2 or 3, as llama.cpp, repeng or this tool write it."

Value = str | float | int | bool


@dataclass(frozen=True)
class Contents:
    """What a GGUF file of directions holds: scalar metadata, and a float32 vector per block, [hidden]."""

    metadata: dict[str, Value]
    vectors: dict[int, torch.Tensor]


def is_gguf(path: Path) -> bool:
    """Whether a file starts like a GGUF file."""
    with path.open("rb") as file:
        return file.read(4) == MAGIC


def read_directions(path: Path, max_bytes: int) -> Contents:
    """Read a GGUF file that holds `direction.N` and nothing else.

    Raises:
        MissingError: no such file.
        InputError: larger than allowed.
        ArtifactError: not such a file; says what is wrong with it.
    """
    require_file(path, max_bytes)
    reader = _Reader(path, path.read_bytes())
    metadata = reader.metadata()
    architecture = metadata.get("general.architecture")
    infos = reader.tensor_infos()
    foreign = [name for name, *_ in infos if not _TENSOR.fullmatch(name)]
    if foreign:
        kind = f" (architecture {architecture!r})" if architecture is not None else ""
        raise ArtifactError(
            f"{path} holds the tensor {foreign[0][:60]!r}{kind}, expected nothing but direction.N.",
            "Is it a model? Give the control vector or the axis.",
        )
    alignment = metadata.get("general.alignment", 32)
    if not isinstance(alignment, int) or isinstance(alignment, bool) or not 1 <= alignment <= 1 << 16:
        reader.refuse(f"its alignment is {alignment}")
    start = -(-reader.position // int(alignment)) * int(alignment)
    rows = by_layer({name.partition(".")[2]: reader.vector(info, start) for name, *info in infos}, path, "the file")
    return Contents(metadata, rows)


class _Reader:
    """A cursor over the bytes of a GGUF file. Nothing is taken before it is known to be there."""

    def __init__(self, path: Path, data: bytes) -> None:
        self._path, self._data, self.position = path, data, 0
        if data[:4] != MAGIC:
            self.refuse(f"it starts with {data[:4]!r}, not with {MAGIC!r}")
        self.position = 4
        version = int(self._number("I"))
        if version not in _VERSIONS:
            self.refuse(f"its version is {version}")
        self._n_tensors, self._n_keys = int(self._number("Q")), int(self._number("Q"))
        if self._n_tensors > _MAX_TENSORS or self._n_keys > _MAX_KEYS:
            self.refuse(f"its header claims {self._n_tensors} tensors and {self._n_keys} keys")

    def refuse(self, reason: str) -> NoReturn:
        """Raise `ArtifactError` with the reason."""
        raise ArtifactError(f"{self._path} is refused: {reason}.", _HINT)

    def _take(self, length: int, what: str) -> bytes:
        left = len(self._data) - self.position
        if length > left:
            self.refuse(f"{what} is said to have {length} bytes, {left} are left in the file")
        self.position += length
        return self._data[self.position - length : self.position]

    def _number(self, code: str) -> float | int | bool:
        raw = self._take(struct.calcsize("<" + code), "a number")
        value: float | int | bool = struct.unpack("<" + code, raw)[0]
        return value

    def _text(self, limit: int, what: str) -> str:
        length = int(self._number("Q"))
        if length > limit:
            self.refuse(f"{what} is said to have {length} bytes, {limit} are allowed")
        raw = self._take(length, what)
        try:
            return raw.decode()
        except UnicodeDecodeError:
            self.refuse(f"{what} is not text")

    def metadata(self) -> dict[str, Value]:
        """Scalars and texts by key. Arrays are stepped over: no steering file needs one."""
        found: dict[str, Value] = {}
        for _ in range(self._n_keys):
            key = self._text(_MAX_NAME, "a key")
            if key in found:
                self.refuse(f"it has the key {key!r} twice")
            kind = int(self._number("I"))
            if kind == _ARRAY:
                self._skip_array(key)
            elif kind == _STRING:
                found[key] = self._text(_MAX_TEXT, f"the value of {key!r}")
            elif kind in _FIXED:
                found[key] = self._number(_FIXED[kind])
            else:
                self.refuse(f"{key!r} has the unknown type {kind}")
        return found

    def _skip_array(self, key: str) -> None:
        kind, count = int(self._number("I")), int(self._number("Q"))
        if kind in _FIXED:
            self._take(count * struct.calcsize(_FIXED[kind]), f"the array {key!r}")
        elif kind == _STRING:
            if count > len(self._data) // 8:  # each needs the eight bytes of its length
                self.refuse(f"the array {key!r} is said to have {count} texts")
            for _ in range(count):
                self._text(_MAX_TEXT, f"a text of {key!r}")
        else:
            self.refuse(f"{key!r} is an array of the type {kind}")

    def tensor_infos(self) -> list[tuple[str, int, int, int]]:
        """(name, elements, type, offset) of every tensor; all are one-dimensional."""
        infos: dict[str, tuple[str, int, int, int]] = {}
        for _ in range(self._n_tensors):
            name = self._text(_MAX_NAME, "a tensor's name")
            if name in infos:
                self.refuse(f"it has the tensor {name!r} twice")
            dimensions = int(self._number("I"))
            if dimensions > 4:
                self.refuse(f"{name!r} has {dimensions} dimensions")
            sizes = [int(self._number("Q")) for _ in range(dimensions)]
            if dimensions != 1 and _TENSOR.fullmatch(name):
                self.refuse(f"{name!r} has shape {sizes}, expected one dimension")
            infos[name] = (name, sizes[0] if sizes else 0, int(self._number("I")), int(self._number("Q")))
        return list(infos.values())

    def vector(self, info: list[int], start: int) -> torch.Tensor:
        """Copy one tensor out of the data section that begins at `start`, as float32 [hidden]."""
        import torch

        elements, kind, offset = info
        if kind not in _ELEMENTS:
            self.refuse(f"a direction is of the tensor type {kind}, expected F32, F16 or BF16")
        dtype, size = _ELEMENTS[kind]
        self.position = min(start + offset, len(self._data))
        raw = self._take(elements * size, "a direction")
        if not raw:
            self.refuse("a direction has no elements")
        return torch.frombuffer(bytearray(raw), dtype=getattr(torch, dtype)).to(torch.float32)


def write_directions(
    path: Path, architecture: str, metadata: Mapping[str, Value], vectors: Mapping[int, torch.Tensor]
) -> None:
    """Write `direction.N` as float32 with scalar metadata, atomically. The same input gives the same bytes.

    Args:
        path: the file.
        architecture: `general.architecture`.
        metadata: other keys; whole numbers are written as uint32, fractions as float32.
        vectors: block -> [hidden].
    """
    require("gguf")
    import gguf

    with tempfile.TemporaryDirectory() as folder:
        temporary = Path(folder) / "directions.gguf"
        writer = gguf.GGUFWriter(temporary, architecture)
        for key, value in metadata.items():
            if isinstance(value, str):
                writer.add_string(key, value)
            elif isinstance(value, int):
                writer.add_uint32(key, value)
            else:
                writer.add_float32(key, value)
        for layer, vector in sorted(vectors.items()):
            writer.add_tensor(f"direction.{layer}", vector.float().contiguous().numpy())
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        data = temporary.read_bytes()
    write_atomic(path, data)
