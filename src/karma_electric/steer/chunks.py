"""The activations of an extraction, chunk by chunk on disk: what a kill does not lose, and what later passes read.

Every chunk file names the settings it was made with, so that chunks of another model, prompt or position are never
mixed in, and how many chunks there are, so that a set that is not whole is not taken for one.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from karma_electric.core.artifact import write_atomic
from karma_electric.core.errors import ArtifactError, MissingError
from karma_electric.models.blocks import SITES, Site

if TYPE_CHECKING:
    import torch

# site -> (toward, mean over the away prompts), float32 [n_prompts, n_layers, hidden]
Sides = dict[Site, "tuple[torch.Tensor, torch.Tensor]"]
FOLDER = "extraction"


def chunk_path(out: Path, number: int) -> Path:
    """Where a chunk is."""
    return out / FOLDER / f"{number:04d}.safetensors"


def write_chunk(out: Path, number: int, sides: Sides, *, settings: str, count: int) -> None:
    """Write a chunk whole or not at all.

    Args:
        out: the folder that is worked in.
        number: which of the chunks it is.
        sides: the activations of its prompts.
        settings: hash of everything they depend on.
        count: how many chunks there will be.
    """
    from safetensors.torch import save

    tensors: dict[str, torch.Tensor] = {}
    for site, (toward, away) in sides.items():
        tensors |= {f"toward.{site}": toward.contiguous(), f"away.{site}": away.contiguous()}
    write_atomic(chunk_path(out, number), save(tensors, {"settings": settings, "count": str(count)}))


def read_chunk(path: Path) -> Sides:
    """The activations of a chunk's prompts.

    Raises:
        ArtifactError: not a whole chunk file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return {site: (file.get_tensor(f"toward.{site}"), file.get_tensor(f"away.{site}")) for site in SITES}
    except (SafetensorError, OSError) as error:
        raise _unusable(path, error) from None


def chunk_settings(path: Path) -> tuple[str, int]:
    """What a chunk was made with, and how many there are of its kind.

    Raises:
        ArtifactError: not a whole chunk file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata() or {}
        return about["settings"], int(about["count"])
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise _unusable(path, error) from None


def _unusable(path: Path, error: Exception) -> ArtifactError:
    return ArtifactError(f"{path} is not a chunk of an extraction ({error}).", "Extract the axis again.")


def drop_others(out: Path, *, settings: str, count: int) -> None:
    """Remove the chunks that were made with other settings, or are damaged."""
    for path in sorted((out / FOLDER).glob("*.safetensors")):
        try:
            wanted = chunk_settings(path) == (settings, count)
        except ArtifactError:
            wanted = False
        if not wanted:
            path.unlink()


def iter_chunks(out: Path) -> Iterator[Sides]:
    """The activations of all prompts, the longest first, one chunk in memory at a time. Call it again to read again.

    Args:
        out: the folder that `extract` worked in, before `forget_chunks`.

    Raises:
        MissingError: there are none, or not all of them.
        ArtifactError: a file is damaged, or belongs to another extraction.
    """
    paths = sorted((out / FOLDER).glob("*.safetensors"))
    if not paths:
        raise MissingError(f"{out / FOLDER} has no chunks.", "Extract first: karma axis extract MODEL OUT")
    about = {path: chunk_settings(path) for path in paths}
    if len(set(about.values())) > 1:
        raise ArtifactError(f"{out / FOLDER} has chunks of several extractions.", "Extract the axis again.")
    count = about[paths[0]][1]
    if paths != [chunk_path(out, number) for number in range(count)]:
        raise MissingError(f"{out / FOLDER} has {len(paths)} of {count} chunks.", "Let the extraction end first.")
    for path in paths:
        yield read_chunk(path)


def forget_chunks(out: Path) -> None:
    """Remove the working files of an extraction."""
    shutil.rmtree(out / FOLDER, ignore_errors=True)
