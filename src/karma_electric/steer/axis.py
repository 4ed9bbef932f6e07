"""The axis: per site and block, the unit direction that points away from the persona. Reads and writes its file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_electric.core.artifact import write_atomic
from karma_electric.core.errors import ArtifactError, MissingError
from karma_electric.core.lineage import missing_run_hint
from karma_electric.models.blocks import SITES, Site

if TYPE_CHECKING:
    import torch

FORMAT = "karma-electric-axis"
ORIENTATION = "away-from-persona"


@dataclass(frozen=True)
class Axis:
    """Directions with what they were made from.

    Attributes:
        directions: site -> unit vectors, float32 [n_layers, hidden]; they point away from the persona.
        norms: site -> length of each direction before it was scaled, float32 [n_layers].
        model: fingerprint of the model it was extracted from.
        template_sha256: hash of that model's chat template.
        position: where the residual stream was read.
        toward: the persona's system prompt.
        away: the generic system prompts.
        n: number of user prompts.
        stats: separation and other diagnostics, JSON.
        projections: site -> projection of every contrast prompt on the direction of every block, float32
            [2, n, n_layers]: persona-prompted, then the mean over the away prompts. Empty for imported axes.
        blocks: the blocks that have a direction, in order, at every site; None means all of them. Only an imported
            axis lacks some: their rows are zero, and `require_blocks` keeps them from being used.
    """

    directions: dict[Site, torch.Tensor]
    norms: dict[Site, torch.Tensor]
    model: str
    template_sha256: str
    position: str
    toward: str
    away: tuple[str, ...]
    n: int
    stats: dict[str, Any] = field(default_factory=dict)
    projections: dict[Site, torch.Tensor] = field(default_factory=dict)
    blocks: tuple[int, ...] | None = None

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return int(next(iter(self.directions.values())).shape[0])

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return int(next(iter(self.directions.values())).shape[1])


def direction(toward: torch.Tensor, away: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`d = mean over prompts of (mean over away prompts h - h(toward))`, and `v = d / |d|` (design, section 4).

    Args:
        toward: [n_prompts, n_layers, hidden].
        away: the same, already averaged over the away prompts.

    Returns:
        Unit directions [n_layers, hidden] and norms [n_layers], float32, computed in float64.
    """
    return scaled((away.double() - toward.double()).mean(0))


def scaled(difference: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`d / |d|` and `|d|`, float32, of mean differences `d` [n_layers, hidden] in float64."""
    norms = difference.norm(dim=-1)
    return (difference / norms.clamp_min(1e-30).unsqueeze(-1)).float(), norms.float()


def save_axis(axis: Axis, path: Path) -> None:
    """Write an axis as safetensors, the rest of its fields as metadata."""
    from safetensors.torch import save

    metadata = {
        "format": FORMAT,
        "orientation": ORIENTATION,
        "model": axis.model,
        "template_sha256": axis.template_sha256,
        "position": axis.position,
        "toward": axis.toward,
        "away": json.dumps(axis.away),
        "n": str(axis.n),
        "stats": json.dumps(axis.stats, allow_nan=False),
    }
    if axis.blocks is not None:
        metadata["blocks"] = json.dumps(axis.blocks)
    tensors = {f"direction.{site}": tensor.contiguous() for site, tensor in axis.directions.items()}
    tensors |= {f"norm.{site}": tensor.contiguous() for site, tensor in axis.norms.items()}
    tensors |= {f"projections.{site}": tensor.contiguous() for site, tensor in axis.projections.items()}
    write_atomic(path, save(tensors, metadata))


def load_axis(path: Path) -> Axis:
    """Read an axis written by `save_axis`.

    Raises:
        MissingError: no such file.
        ArtifactError: not an axis of ours, or its numbers cannot be directions.
    """
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        hint = missing_run_hint(path) or "Extract an axis first: karma run RECIPE --to axis"
        raise MissingError(f"{path} does not exist.", hint)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (SafetensorError, OSError) as error:
        raise ArtifactError(
            f"{path} is not a safetensors file ({error}).",
            "Give an axis.safetensors, its folder, or the folder of a run.",
        ) from None
    if metadata.get("format") != FORMAT or metadata.get("orientation") != ORIENTATION:
        raise ArtifactError(
            f"{path} is not an axis (format {metadata.get('format')!r}, orientation {metadata.get('orientation')!r}).",
            f"Expected {FORMAT!r} pointing {ORIENTATION!r}.",
        )
    directions = {site: tensors[f"direction.{site}"] for site in SITES if f"direction.{site}" in tensors}
    blocks = _blocks(path, metadata.get("blocks"))
    _check(path, directions, blocks)
    try:
        norms = {site: tensors[f"norm.{site}"] for site in directions}
        if any(norms[site].shape != vectors.shape[:1] for site, vectors in directions.items()):
            raise ValueError("norms and directions have not the same blocks")
        if not all(norm.is_floating_point() and bool(norm.isfinite().all()) for norm in norms.values()):
            raise ValueError("a norm is not a number")
        away, stats = json.loads(metadata["away"]), json.loads(metadata["stats"])
        if not isinstance(away, list) or not all(isinstance(text, str) for text in away):
            raise TypeError("away is not a list of texts")
        if not isinstance(stats, dict):
            raise TypeError("stats is not an object")
        return Axis(
            directions=directions,
            norms=norms,
            model=metadata["model"],
            template_sha256=metadata["template_sha256"],
            position=metadata["position"],
            toward=metadata["toward"],
            away=tuple(away),
            n=int(metadata["n"]),
            stats=stats,
            projections={
                site: tensors[f"projections.{site}"] for site in directions if f"projections.{site}" in tensors
            },
            blocks=blocks,
        )
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path}: a field is missing or damaged ({error}).", "Extract the axis again.") from None


def _blocks(path: Path, text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        found = None
    whole = isinstance(found, list) and all(type(block) is int and block >= 0 for block in found)
    if not whole or not found or found != sorted(set(found)):
        raise ArtifactError(f"{path}: its list of blocks is {text[:60]!r}.", "Convert or extract the axis again.")
    return tuple(found)


def _check(path: Path, directions: dict[Site, torch.Tensor], blocks: tuple[int, ...] | None) -> None:
    import torch

    if not directions:
        raise ArtifactError(f"{path} holds no directions.", "Extract the axis again.")
    for site, vectors in directions.items():
        if not vectors.is_floating_point():
            raise ArtifactError(f"{path}: direction.{site} is {vectors.dtype}.", "Extract the axis again.")
        lengths = vectors.norm(dim=-1)
        expected = torch.ones_like(lengths)
        if blocks is not None and vectors.dim() == 2 and blocks[-1] < len(vectors):
            expected[[layer not in blocks for layer in range(len(vectors))]] = 0.0
        if (
            vectors.dim() != 2
            or (blocks is not None and blocks[-1] >= len(vectors))
            or not torch.isfinite(vectors).all()
            or not torch.allclose(lengths, expected, atol=1e-3)
            or bool(lengths[expected == 0.0].any())
        ):
            raise ArtifactError(f"{path}: direction.{site} is not a set of unit vectors.", "Extract the axis again.")
    if len({vectors.shape for vectors in directions.values()}) > 1:
        raise ArtifactError(f"{path}: the sites have not the same blocks.", "Extract the axis again.")


def require_blocks(axis: Axis, layers: Sequence[int]) -> None:
    """Raise `ArtifactError` unless an axis has a direction for every one of these blocks."""
    there = range(axis.n_layers) if axis.blocks is None else axis.blocks
    missing = [layer for layer in layers if layer not in there]
    if missing:
        raise ArtifactError(
            f"The axis has no direction for the blocks {missing}, only for {list(there)}.",
            "Choose blocks that it has, or extract an axis from the model.",
        )


def require_fits(axis: Axis, *, n_layers: int, hidden: int, names: Sequence[str] = ("axis", "model")) -> None:
    """Raise `ArtifactError` unless an axis has the model's number of blocks and hidden size."""
    if (axis.n_layers, axis.hidden) != (n_layers, hidden):
        raise ArtifactError(
            f"The {names[0]} is for {axis.n_layers} blocks of hidden size {axis.hidden}, "
            f"the {names[1]} has {n_layers} blocks of hidden size {hidden}.",
            "Use the axis that was extracted from this model (an axis does not transfer).",
        )
