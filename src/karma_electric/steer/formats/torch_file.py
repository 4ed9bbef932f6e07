"""Reads and writes `.pt` files of tensors, numbers and text. A file is checked as untrusted before torch sees it.

torch's weights-only reader runs no code of a file, but trusts its sizes: it would decompress a zip bomb, and read
past the end of a record that is shorter than the tensor said to be in it. So: only the zip layout that torch has
written since 1.6, entries stored as they are, sizes that add up, and memory mapped, where slices are bounds-checked.
"""

from __future__ import annotations

import io
import pickle
import warnings
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_electric.core.artifact import write_atomic
from karma_electric.core.errors import ArtifactError, InputError, MissingError

if TYPE_CHECKING:
    import torch

_MAX_ENTRIES = 100_000
_MAX_PICKLE_BYTES = 1 << 26
_SAVE_AGAIN = "Save it again where it was made, with torch.save of tensors, numbers and text alone."


def require_file(path: Path, max_bytes: int) -> int:
    """Size of a file in bytes.

    Raises:
        MissingError: it is not there. InputError: it is larger than allowed.
    """
    if not path.is_file():
        raise MissingError(f"{path} does not exist.", "Give the file that the other tool wrote.")
    size = path.stat().st_size
    if size > max_bytes:
        raise InputError(
            f"{path} has {size / 1e6:.0f} MB, more than the {max_bytes / 1e6:.0f} MB allowed for a steering file.",
            "If it is the right file, allow more with --max-mb.",
        )
    return size


def is_torch_file(path: Path) -> bool:
    """Whether a file is a zip with torch's pickle in it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/data.pkl") for name in archive.namelist())
    except Exception:  # whatever it is that cannot be opened as a zip, it is no torch file
        return False


def read_torch(path: Path, max_bytes: int) -> Any:
    """The contents of a `.pt` file: tensors, numbers, text, and lists and dicts of them.

    Raises:
        MissingError: no such file.
        InputError: larger than allowed.
        ArtifactError: not such a file, damaged, or holding objects that only running code of it would make.
    """
    import torch

    require_file(path, max_bytes)
    _check_archive(path, max_bytes)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # advice on pickles, for the developers of torch
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise ArtifactError(
            f"{path} is refused: it holds more than tensors, numbers and text ({_reason(error)}). Nothing was run.",
            _SAVE_AGAIN,
        ) from None
    except Exception as error:  # a damaged file can raise nearly anything here
        raise ArtifactError(f"{path} is not a whole torch file ({_reason(error)}).", _SAVE_AGAIN) from None


def _check_archive(path: Path, max_bytes: int) -> None:
    try:
        with zipfile.ZipFile(path) as archive:
            problem = _problem(archive, max_bytes)
    except Exception as error:  # nor does zipfile say what a damaged archive can raise
        raise ArtifactError(
            f"{path} is not a torch file as written since torch 1.6 ({_reason(error)}).", _SAVE_AGAIN
        ) from None
    if problem:
        raise ArtifactError(f"{path} is refused: {problem}.", _SAVE_AGAIN)


def _problem(archive: zipfile.ZipFile, max_bytes: int) -> str:
    """Why torch should not be given an archive; empty when it can be."""
    entries = archive.infolist()
    pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
    unpacked = sum(entry.file_size for entry in entries)
    if len(pickles) != 1 or any(entry.filename.endswith("/constants.pkl") for entry in entries):
        return "it is a zip, but not one that torch.save writes"
    if any(entry.compress_type != zipfile.ZIP_STORED or entry.compress_size != entry.file_size for entry in entries):
        return "its entries are compressed, which torch.save never does"
    if len(entries) > _MAX_ENTRIES or unpacked > max_bytes or pickles[0].file_size > _MAX_PICKLE_BYTES:
        return f"it unpacks to {unpacked / 1e6:.0f} MB in {len(entries)} entries"
    for entry in entries:
        if entry.filename.endswith("/byteorder"):
            with archive.open(entry) as file:
                if file.read(16).strip() != b"little":
                    return "it was written on a big-endian machine"
    return ""


def _reason(error: Exception) -> str:
    """The line of a library's message that says what is wrong, without its advice."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    telling = next((line for line in lines if "Unsupported" in line or "GLOBAL" in line), lines[0] if lines else "")
    return (telling or type(error).__name__)[:160]


def as_vectors(value: object, source: Path, where: str, max_bytes: int) -> torch.Tensor:
    """A tensor of a foreign file as float32, copied out of it.

    Raises:
        ArtifactError: not a plain tensor of floating-point numbers, or one that would need more memory than allowed.
    """
    import torch

    if (
        not isinstance(value, torch.Tensor)
        or value.layout != torch.strided
        or value.device.type != "cpu"
        or value.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    ):
        what = f"{value.dtype}, {value.layout}" if isinstance(value, torch.Tensor) else type(value).__name__
        raise ArtifactError(
            f"{source}: {where} is {what}, expected a dense tensor of floating-point numbers.",
            "Is --from the right format?",
        )
    if value.numel() * 4 > max_bytes:
        raise ArtifactError(f"{source}: {where} has shape {list(value.shape)}: too large.", "The file is damaged.")
    return value.detach().to(torch.float32, copy=True)


def as_rows(value: object, source: Path, where: str, max_bytes: int) -> dict[int, torch.Tensor]:
    """Rows of a [n_layers, hidden] tensor by block.

    Raises:
        ArtifactError: another shape, or not a tensor.
    """
    tensor = as_vectors(value, source, where, max_bytes)
    if tensor.dim() != 2 or 0 in tensor.shape:
        raise ArtifactError(
            f"{source}: {where} has shape {list(tensor.shape)}, expected [blocks, hidden].",
            "A vector of one block does not say which block it is for; stack them, one row per block.",
        )
    return {layer: row.clone() for layer, row in enumerate(tensor)}


def write_torch(value: object, path: Path) -> None:
    """Write tensors, numbers and text as a `.pt` file, atomically."""
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer)
    write_atomic(path, buffer.getvalue())
