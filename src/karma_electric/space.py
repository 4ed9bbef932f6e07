"""How much disk the large stages of a run take, from the shapes of the base's tensors: for the check before it starts.

Estimates: tests/test_space.py and tests/test_chain.py hold them against what is written.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karma_electric.core.recipe import Recipe
from karma_electric.models.weights import FLOATING, INDEX, SINGLE, checkpoint_tensors
from karma_electric.train.disk import adapter_bytes, checkpoint_bytes

_BYTES = {"bfloat16": 2.0, "float32": 4.0, "f32": 4.0, "f16": 2.0, "bf16": 2.0, "q8_0": 34 / 32}  # a number
_PADDING = 32  # neurons: a capped MLP grows to a multiple of it
_PROBED = 4096  # tokens whose logits lie beside a merged model while it is checked
_CHUNKS = 16  # bytes a prompt, block and hidden number: two sites, two sides, float32
SLACK = 50_000_000  # tokenizers, figures, records


@dataclass(frozen=True)
class Space:
    """Bytes of a stage: what stays, and what it needs besides while it is at work."""

    stays: int
    scratch: int = 0


def shapes_of(base: Path) -> dict[str, tuple[int, ...]]:
    """Name -> shape of the floating-point tensors of a model folder; empty where it has no safetensors.

    Raises:
        ArtifactError: files that are not whole. MissingError: a shard is not there.
    """
    if not any((base / name).is_file() for name in (INDEX, SINGLE)):
        return {}
    return {name: tensor.shape for name, tensor in checkpoint_tensors(base).items() if tensor.dtype in FLOATING}


def space_of(
    recipe: Recipe, shapes: Mapping[str, tuple[int, ...]], config: Mapping[str, Any], *, prompts: int
) -> dict[str, Space]:
    """Stage -> what it needs.

    Args:
        recipe: the whole recipe.
        shapes: of the base's tensors, by name.
        config: the base's config.json.
        prompts: how many contrast prompts the axis is taken from.
    """
    numbers = sum(math.prod(shape) for shape in shapes.values())
    keys = ("num_hidden_layers", "hidden_size", "vocab_size")
    blocks, hidden, vocabulary = (n if isinstance(n := config.get(key), int) else 0 for key in keys)
    grown = numbers + 3 * _PADDING * hidden * blocks  # gate, up and down
    trained = recipe.train.rank * sum(
        sum(shape)
        for name, shape in shapes.items()
        if len(shape) == 2 and name.removesuffix(".weight").rsplit(".", 1)[-1] in recipe.train.target_modules
    )
    width, packed = _BYTES[recipe.merge.dtype], _BYTES[recipe.gguf.type]
    return {
        "adapter": Space(adapter_bytes(trained) + SLACK, checkpoint_bytes(trained, recipe.train.save_steps)),
        "merged": Space(int(width * numbers) + SLACK, 4 * _PROBED * vocabulary),
        "axis": Space(2 * SLACK, _CHUNKS * blocks * hidden * prompts + 2 * SLACK),
        "capped": Space(int(width * grown) + SLACK),
        "gguf": Space(int(packed * (numbers + grown)) + SLACK),
    }
