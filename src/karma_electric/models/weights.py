"""The tensors of safetensors files, read and written in pieces: what is in memory is one piece, never a file.

The format: 8 bytes with the length of the header, the header (JSON: name -> dtype, shape, offsets), then the data,
row-major, little-endian. The files are read with plain reads and not mapped into memory, so that pages of the input
do not count as memory of the process. This module knows nothing about what the tensors mean.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_electric.core.artifact import read_json, sync_folder
from karma_electric.core.errors import ArtifactError, MissingError

if TYPE_CHECKING:
    import torch

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
FLOATING = ("F64", "F32", "BF16", "F16")
_BITS = {"F64": 64, "I64": 64, "U64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16, "U16": 16}
_TORCH = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
_LARGEST_HEADER = 100_000_000  # the reference implementation's limit
_AGAIN = "Is it a whole, unchanged copy? Fetch or save it again."


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a safetensors file.

    Attributes:
        name: as in the file.
        file: where it is.
        dtype: the format's own name, e.g. BF16.
        shape: as stored.
        offset: position of its first byte in the file.
    """

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def n_bytes(self) -> int:
        """Size in the file."""
        return n_bytes(self.dtype, self.shape)

    @property
    def n_rows(self) -> int:
        """Size of the first dimension; 1 for a single number."""
        return self.shape[0] if self.shape else 1

    def rows(self, first: int, last: int) -> torch.Tensor:
        """Rows `first` to `last` (exclusive) as they are stored, [last - first, *shape[1:]].

        Raises:
            ArtifactError: a type that torch has no name for here, or the file ended early.
        """
        import torch

        if self.dtype not in _TORCH:
            raise ArtifactError(
                f"{self.name} in {self.file} is stored as {self.dtype}, expected 16- or 32-bit floats.",
                "Give the model before quantisation.",
            )
        shape = (last - first, *self.shape[1:])
        row_bytes = self.n_bytes // max(1, self.n_rows)
        data = bytearray((last - first) * row_bytes)
        if not data:
            return torch.empty(shape, dtype=getattr(torch, _TORCH[self.dtype]))
        with self.file.open("rb", buffering=0) as file:
            file.seek(self.offset + first * row_bytes)
            view, done = memoryview(data), 0
            while done < len(data):  # one read returns 2 GiB at most
                got = file.readinto(view[done:])
                if not got:
                    raise ArtifactError(f"{self.file} ends in the middle of {self.name}.", _AGAIN)
                done += got
        return torch.frombuffer(data, dtype=torch.uint8).view(getattr(torch, _TORCH[self.dtype])).reshape(shape)

    def read(self) -> torch.Tensor:
        """The whole tensor as it is stored."""
        return self.rows(0, self.n_rows).reshape(self.shape)


@dataclass(frozen=True)
class Layout:
    """A tensor that is to be written: its name, the format's name of its type, its shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        """Size in the file."""
        return n_bytes(self.dtype, self.shape)


def n_bytes(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a tensor."""
    return math.prod(shape) * _BITS.get(dtype, 8) // 8


def format_dtype(dtype: str) -> str:
    """The format's name of a torch dtype: `bfloat16` -> BF16."""
    return next(name for name, torch_name in _TORCH.items() if torch_name == dtype)


def stored_tensors(file: Path) -> dict[str, StoredTensor]:
    """What a safetensors file holds, in the order of the data; only the header is read.

    Raises:
        MissingError: no such file. ArtifactError: not a whole safetensors file.
    """
    try:
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            length = int.from_bytes(opened.read(8), "little")
            if size < 8 or length > min(size - 8, _LARGEST_HEADER):
                raise ValueError(f"{size} bytes")
            header: dict[str, Any] = json.loads(opened.read(length))
        header.pop("__metadata__", None)
        found = [
            StoredTensor(
                name, file, str(entry["dtype"]), tuple(map(int, entry["shape"])), 8 + length + entry["data_offsets"][0]
            )
            for name, entry in header.items()
        ]
        ends = {name: 8 + length + entry["data_offsets"][1] for name, entry in header.items()}
        for tensor in found:
            known = tensor.dtype in _TORCH
            if ends[tensor.name] > size or (known and ends[tensor.name] != tensor.offset + tensor.n_bytes):
                raise ValueError(f"{tensor.name} does not fit in {size} bytes")
    except FileNotFoundError:
        raise MissingError(f"{file} does not exist.", _AGAIN) from None
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise ArtifactError(f"{file} is not a whole safetensors file ({error}).", _AGAIN) from None
    return {tensor.name: tensor for tensor in sorted(found, key=lambda tensor: tensor.offset)}


def checkpoint_tensors(folder: Path) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint, in one file or in shards with an index: shard by shard, in the order of the data.

    Raises:
        MissingError: no safetensors there, or a shard is missing. ArtifactError: index and shards disagree.
    """
    if not (folder / INDEX).is_file():
        if (folder / SINGLE).is_file():
            return stored_tensors(folder / SINGLE)
        others = sorted(p.name for pattern in ("*.bin", "*.pt", "*.gguf") for p in folder.glob(pattern))
        raise MissingError(
            f"{folder} has neither {SINGLE} nor {INDEX}{f', only {others[0]}' if others else ''}.",
            "Save the model with save_pretrained, which writes safetensors.",
        )
    index = read_json(folder / INDEX)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not weight_map:
        raise ArtifactError(f"{folder / INDEX} has no weight_map.", _AGAIN)
    found: dict[str, StoredTensor] = {}
    for shard in sorted(set(weight_map.values())):
        found.update(stored_tensors(folder / shard))
    if set(found) != set(weight_map):
        odd = sorted(set(found) ^ set(weight_map))
        raise ArtifactError(f"{folder}: {INDEX} and the shards disagree on {len(odd)} tensors ({odd[0]}).", _AGAIN)
    return found


def write_tensors(path: Path, layouts: Sequence[Layout], pieces: Callable[[Layout], Iterable[torch.Tensor]]) -> str:
    """Write a safetensors file piece by piece, atomically.

    Args:
        path: the file.
        layouts: the tensors, in the order of the data: wider types first, as every reader's alignment wants it.
        pieces: the rows of a tensor, from the first to the last, in any number of parts of the layout's type.

    Returns:
        The SHA-256 of the file, as hex.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for layout in layouts:
        end = position + layout.n_bytes
        header[layout.name] = {"dtype": layout.dtype, "shape": list(layout.shape), "data_offsets": [position, end]}
        position = end
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            for part in (len(text).to_bytes(8, "little"), text):
                digest.update(part)
                file.write(part)
            for layout in layouts:
                written = 0
                for data in _bytes_of(pieces(layout), layout):
                    digest.update(data)
                    file.write(data)
                    written += len(data)
                if written != layout.n_bytes:
                    raise RuntimeError(f"{layout.name}: {written} bytes were made, {layout.n_bytes} announced")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return digest.hexdigest()


def _bytes_of(pieces: Iterable[torch.Tensor], layout: Layout) -> Iterator[memoryview]:
    import torch

    for piece in pieces:
        if str(piece.dtype).removeprefix("torch.") != _TORCH[layout.dtype]:
            raise RuntimeError(f"{layout.name}: a piece of {piece.dtype} was made, {layout.dtype} announced")
        numbers = piece.contiguous().reshape(-1).view(torch.uint8).numpy()
        yield memoryview(numbers)  # type: ignore[arg-type]  # numpy's stubs do not say that arrays are buffers


def shard_names(count: int) -> list[str]:
    """File names of `count` shards, as every loader knows them."""
    if count == 1:
        return [SINGLE]
    return [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]


def split_in_shards(layouts: Sequence[Layout], largest_bytes: int) -> list[list[Layout]]:
    """Tensors in shards of at most `largest_bytes`, in their order; a larger tensor has a shard of its own."""
    shards: list[list[Layout]] = []
    size = 0
    for layout in layouts:
        if not shards or (shards[-1] and size + layout.n_bytes > largest_bytes):
            shards.append([])
            size = 0
        shards[-1].append(layout)
        size += layout.n_bytes
    return [sorted(shard, key=lambda layout: -_BITS.get(layout.dtype, 8)) for shard in shards]


def index_of(shards: Mapping[str, Sequence[Layout]]) -> dict[str, Any]:
    """The index of a sharded checkpoint: file name -> tensors."""
    return {
        "metadata": {"total_size": sum(layout.n_bytes for shard in shards.values() for layout in shard)},
        "weight_map": {layout.name: name for name, shard in sorted(shards.items()) for layout in shard},
    }
