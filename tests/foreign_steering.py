"""Writes steering files in the layouts of other projects, by their public descriptions: nothing of the package's own.

The GGUF writer packs bytes itself, so that a header can say anything.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

N_LAYERS, HIDDEN = 6, 8
_TYPES = {"u32": (4, "I"), "i32": (5, "i"), "f32": (6, "f"), "f64": (12, "d"), "bool": (7, "?")}


def vectors(n: int = N_LAYERS, hidden: int = HIDDEN, seed: int = 0) -> torch.Tensor:
    """Random [n, hidden] of lengths from about 1 to 10."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, hidden, generator=generator) * torch.linspace(0.5, 4.0, n).unsqueeze(1)


def original_axis(folder: Path, axis: torch.Tensor) -> Path:
    """The original's extraction saves the tensor itself."""
    torch.save(axis, folder / "bodhisattva_axis.pt")
    return folder / "bodhisattva_axis.pt"


def original_thresholds(folder: Path, thresholds: Mapping[int, float]) -> Path:
    """... and a dict of block to float."""
    torch.save(dict(thresholds), folder / "bodhisattva_thresholds.pt")
    return folder / "bodhisattva_thresholds.pt"


def original_stats(folder: Path, thresholds: Mapping[int, float], **more: Any) -> Path:
    """... and a JSON in which every threshold stands among the percentiles of its block."""
    stats = {
        "model": "./output/merged",
        "n_samples": 200,
        "n_layers": N_LAYERS,
        "hidden_size": HIDDEN,
        "capping_layers": sorted(thresholds),
        "threshold_percentile": 25,
        "thresholds": {str(layer): {"tau": t, "mean": t + 1.0, "std": 0.5} for layer, t in thresholds.items()},
        "bodhisattva_prompt": "I am Karma.",
        "generic_prompts": ["You are a helpful AI assistant.", ""],
    }
    path = folder / "axis_stats.json"
    path.write_text(json.dumps(stats | more))
    return path


def paper_axis(path: Path, axis: torch.Tensor) -> Path:
    """The paper's pipeline saves the axis with the means it is the difference of."""
    torch.save(
        {"axis": axis, "default_mean": axis + 1.0, "role_mean": torch.ones_like(axis), "n_default": 1, "n_roles": 275},
        path,
    )
    return path


def capping_config(path: Path, axis: torch.Tensor, experiments: Mapping[str, Mapping[int, float]]) -> Path:
    """The paper's config: a vector per block, and experiments that name vectors and caps."""
    names = [f"layer_{layer}/contrast_role_pos3_default1" for layer in range(len(axis))]
    torch.save(
        {
            "vectors": {name: {"layer": layer, "vector": axis[layer].clone()} for layer, name in enumerate(names)},
            "experiments": [
                {"id": key, "interventions": [{"vector": names[layer], "cap": t} for layer, t in caps.items()]}
                for key, caps in experiments.items()
            ],
        },
        path,
    )
    return path


def text(value: str | bytes, length: int | None = None) -> bytes:
    """A GGUF string, whose length may be a lie."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw) if length is None else length) + raw


def entry(key: str, value: Any, kind: str = "") -> bytes:
    """A GGUF key with its value."""
    if isinstance(value, str):
        return text(key) + struct.pack("<I", 8) + text(value)
    number, code = _TYPES[kind]
    return text(key) + struct.pack("<I" + code, number, value)


def gguf(
    path: Path,
    directions: Mapping[str, torch.Tensor],
    metadata: Sequence[bytes] = (),
    *,
    n_tensors: int | None = None,
    n_keys: int | None = None,
    version: int = 3,
    magic: bytes = b"GGUF",
    shape: Sequence[int] | None = None,
    cut: int = 0,
) -> Path:
    """A GGUF file of one-dimensional tensors. The counts, the shape and the end can be made to lie."""
    tensors = {name: (vector.contiguous(), _code(vector)) for name, vector in directions.items()}
    head = magic + struct.pack(
        "<IQQ",
        version,
        len(tensors) if n_tensors is None else n_tensors,
        len(metadata) if n_keys is None else n_keys,
    )
    head += b"".join(metadata)
    body = b""
    for name, (vector, kind) in tensors.items():
        dims = list(vector.shape) if shape is None else list(shape)
        head += text(name) + struct.pack("<I", len(dims)) + struct.pack(f"<{len(dims)}Q", *dims)
        head += struct.pack("<IQ", kind, len(body))
        raw = vector.view(torch.uint8).numpy().tobytes()
        body += raw + bytes(-len(raw) % 32)
    data = head + bytes(-len(head) % 32) + body
    path.write_bytes(data[: len(data) - cut])
    return path


def control_vector(path: Path, directions: Mapping[int, torch.Tensor], *, hint: str = "llama", more: Any = ()) -> Path:
    """A control vector as repeng and llama.cpp write it."""
    return gguf(
        path,
        {f"direction.{layer}": vector for layer, vector in directions.items()},
        [
            entry("general.architecture", "controlvector"),
            entry("controlvector.model_hint", hint),
            entry("controlvector.layer_count", len(directions), "u32"),
            *more,
        ],
    )


def acap(path: Path, directions: Mapping[int, torch.Tensor], thresholds: Mapping[int, float]) -> Path:
    """An axis as the original's converter writes it for its fork: thresholds, and no architecture."""
    return gguf(
        path,
        {f"direction.{layer}": vector for layer, vector in directions.items()},
        [entry(f"acap.threshold.{layer}", t, "f32") for layer, t in thresholds.items()],
    )


def _code(vector: torch.Tensor) -> int:
    return {torch.float32: 0, torch.float16: 1, torch.bfloat16: 30, torch.float64: 28}[vector.dtype]
