"""Writes a checkpoint with cap neurons in it: plain safetensors, file by file as they were, that stock libraries load.

What is in memory is one tensor, never a file, so a model of any size is baked with the memory of its largest matrix.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_electric.core.artifact import require_space, write_json
from karma_electric.core.errors import ArtifactError
from karma_electric.core.progress import Progress, Silent
from karma_electric.models.refs import TEMPLATES
from karma_electric.models.weights import (
    FLOATING,
    INDEX,
    Layout,
    StoredTensor,
    checkpoint_tensors,
    index_of,
    write_tensors,
)
from karma_electric.steer.insertion import Insertion
from karma_electric.steer.neuron import Neurons, Removals, read_config

if TYPE_CHECKING:
    import torch

_PIECE_BYTES = 64 << 20  # of a tensor that stays as it is
# Everything else beside the weights is kept: tokenizer, templates, licence, processors. Not weights of other kinds, not
# what describes the uncapped model (its card, our own records), and no code: these architectures need none.
_LEFT_OUT_SUFFIXES = (
    ".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".onnx", ".pt", ".pth", ".py", ".safetensors", ".tmp",
)  # fmt: skip
_LEFT_OUT = ("config.json", "manifest.json", "merge.json", "fidelity.json", "README.md", "pytorch_model.bin.index.json")


def write_baked(
    source: Path, neurons: Neurons, out: Path, *, removed: Removals | None = None, progress: Progress | None = None
) -> dict[str, Any]:
    """Write the checkpoint in `source` with cap neurons in it.

    Appended (the default), every MLP grows to the next multiple of 32 with room for the neurons, with zeros where there
    is none, since `intermediate_size` is one number for all blocks. Replacing, the sizes stay.

    Args:
        source: a checkpoint folder.
        neurons: block -> neurons.
        out: an existing folder.
        removed: block -> the neurons whose places they take; None appends.
        progress: told about every file.

    Returns:
        What was changed: `intermediate_size` before and after, `placement`, and the neurons replaced.

    Raises:
        MissingError: no safetensors there, or one is missing. ArtifactError: damaged, or MLPs that are not floats.
        SpaceError: no room for it.
    """
    progress = progress or Silent()
    config = read_config(source)
    insertion = Insertion(neurons, removed, int(config["intermediate_size"]))
    files: dict[Path, list[StoredTensor]] = {}
    for tensor in checkpoint_tensors(source).values():
        if insertion.changes(tensor.name) and tensor.dtype not in FLOATING:
            raise ArtifactError(
                f"{tensor.name} in {tensor.file} is stored as {tensor.dtype}, expected floats.",
                "Bake the model it was quantised from, then quantise the result.",
            )
        files.setdefault(tensor.file, []).append(tensor)
    layouts = {
        file.name: [Layout(t.name, t.dtype, insertion.grown(t.shape, t.name)) for t in tensors]
        for file, tensors in files.items()
    }
    require_space(out, int(1.01 * sum(layout.n_bytes for members in layouts.values() for layout in members)))
    for number, (file, tensors) in enumerate(files.items()):
        progress.update(number, len(files), "files written")
        _write(file, tensors, layouts[file.name], insertion, out)
    progress.update(len(files), len(files), "files written")
    if (source / INDEX).is_file():
        _write_index(source, layouts, out)
    write_json(out / "config.json", config | {"intermediate_size": insertion.new})
    _copy_others(source, out)
    changed: dict[str, Any] = {
        "intermediate_size": {"before": insertion.old, "after": insertion.new},
        "placement": "append" if removed is None else "replace",
    }
    if removed is not None:
        changed["replaced"] = {str(layer): [gone.as_dict() for gone in members] for layer, members in removed.items()}
    return changed


def _write(
    file: Path, tensors: Sequence[StoredTensor], layouts: Sequence[Layout], insertion: Insertion, out: Path
) -> None:
    stored = {tensor.name: tensor for tensor in tensors}

    def pieces(layout: Layout) -> Iterator[torch.Tensor]:
        tensor = stored[layout.name]
        if insertion.changes(tensor.name):
            yield insertion.apply(tensor.name, tensor.read())
            return
        step = max(1, _PIECE_BYTES * tensor.n_rows // max(1, tensor.n_bytes))
        for first in range(0, tensor.n_rows, step):
            yield tensor.rows(first, min(first + step, tensor.n_rows))

    write_tensors(out / file.name, layouts, pieces)


def _write_index(source: Path, layouts: dict[str, list[Layout]], out: Path) -> None:
    """The source's index, with what the new sizes change."""
    index = json.loads((source / INDEX).read_text(encoding="utf-8"))
    fresh = index_of(layouts)
    metadata = {**(index.get("metadata") or {}), **fresh["metadata"]}
    metadata.pop("total_parameters", None)  # transformers' own count; it is not read back
    write_json(out / INDEX, {"metadata": metadata, "weight_map": fresh["weight_map"]})


def _copy_others(source: Path, out: Path) -> None:
    for file in sorted(source.iterdir()):
        if file.name in _LEFT_OUT or file.suffix in _LEFT_OUT_SUFFIXES or file.name.startswith("."):
            continue
        if file.is_file() and file.name != INDEX:
            shutil.copyfile(file, out / file.name)
    if (source / TEMPLATES).is_dir():
        shutil.copytree(source / TEMPLATES, out / TEMPLATES, dirs_exist_ok=True)
