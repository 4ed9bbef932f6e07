"""What a cap is, before it acts: site, blocks, thresholds and strength, with what was measured of it. Reads and writes
cap.json. Acting on a model is cap.py's business, being compiled into one neuron.py's.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_electric.core.artifact import read_json, write_json
from karma_electric.core.errors import ArtifactError
from karma_electric.models.blocks import SITES, Site
from karma_electric.steer.axis import Axis, load_axis, require_blocks

if TYPE_CHECKING:
    import torch

CAP_FILE = "cap.json"
AXIS_FILE = "axis.safetensors"


@dataclass(frozen=True)
class CapSpec:
    """Where a cap acts, how strongly, and what was measured of it.

    Attributes:
        axis: file name of the axis, beside cap.json.
        site: where the cap reads and writes.
        layers: blocks that are capped, in order.
        thresholds: block -> t, the ceiling of the projection.
        alpha: strength the measurements were made with, and the default when it is used.
        calibrated_on: model fingerprint, template, dtype and the amount of text.
        method: how the thresholds were set.
        cap_rate: measured on held-out responses while the cap acts: per block and `mean`, the share of tokens above the
            threshold, each kind of response with its weight.
        dose: the same for mean |dh| / |h|.
        measured: the same and more per split and kind of response, with token counts and an interval; and
            `threshold_sd`, how far each threshold lies from the runtime mean, in standard deviations.
        reference: projections of a few fixed conversations, by which compat.py notices that a model has changed.
    """

    axis: str
    site: Site
    layers: tuple[int, ...]
    thresholds: dict[int, float]
    alpha: float
    calibrated_on: dict[str, Any] = field(default_factory=dict)
    method: dict[str, Any] = field(default_factory=dict)
    cap_rate: dict[str, float] = field(default_factory=dict)
    dose: dict[str, float] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    reference: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Cap:
    """A CapSpec with its directions: all that is needed to act on a model."""

    spec: CapSpec
    directions: dict[int, torch.Tensor]  # block -> unit vector [hidden], float32

    @classmethod
    def of(cls, spec: CapSpec, axis: Axis) -> Cap:
        """Pick the directions a spec needs from an axis."""
        if spec.site not in axis.directions:
            raise ArtifactError(f"The axis has no directions for the site {spec.site!r}.", "Extract the axis again.")
        if any(not 0 <= layer < axis.n_layers for layer in spec.layers):
            raise ArtifactError(
                f"The cap names blocks {list(spec.layers)}, the axis has 0-{axis.n_layers - 1}.", "Calibrate again."
            )
        require_blocks(axis, spec.layers)
        vectors = axis.directions[spec.site]
        return cls(spec, {layer: vectors[layer] for layer in spec.layers})


def save_spec(spec: CapSpec, path: Path) -> None:
    """Write cap.json."""
    value = asdict(spec)
    value["thresholds"] = {str(layer): t for layer, t in spec.thresholds.items()}
    write_json(path, value)


def load_spec(path: Path) -> CapSpec:
    """Read cap.json.

    Raises:
        MissingError: no such file. ArtifactError: not a cap, or impossible values.
    """
    raw = read_json(path)
    try:
        spec = CapSpec(**raw)
        _require_types(spec)
        spec = replace(
            spec,
            layers=tuple(spec.layers),
            thresholds={int(layer): float(t) for layer, t in spec.thresholds.items()},
            alpha=float(spec.alpha),
        )
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ArtifactError(
            f"{path} is not a cap ({error}).", "Calibrate again: karma axis calibrate MODEL AXIS OUT"
        ) from None
    if spec.site not in SITES or set(spec.layers) != set(spec.thresholds) or not spec.layers:
        raise ArtifactError(f"{path}: layers, thresholds and site do not go together.", "Calibrate again.")
    if not all(map(math.isfinite, spec.thresholds.values())) or not 0.0 <= spec.alpha <= 1.0:
        raise ArtifactError(f"{path}: thresholds or alpha ({spec.alpha}) are impossible.", "Calibrate again.")
    return spec


def _require_types(spec: CapSpec) -> None:
    """Raise `TypeError` or `ValueError` where a field read from JSON cannot be what it stands for."""
    for key in ("calibrated_on", "method", "measured", "reference", "thresholds", "cap_rate", "dose"):
        if not isinstance(getattr(spec, key), dict):
            raise TypeError(f"{key} is {getattr(spec, key)!r:.40}, expected an object")
    if not isinstance(spec.axis, str) or Path(spec.axis).name != spec.axis or not spec.axis:
        raise ValueError(f"axis is {spec.axis!r:.60}, expected the name of a file beside it")
    layers = spec.layers
    if not isinstance(layers, list) or any(type(layer) is not int or layer < 0 for layer in layers):
        raise TypeError(f"layers is {layers!r:.60}, expected a list of blocks")
    if layers != sorted(set(layers)):
        raise ValueError(f"layers is {layers!r:.60}, expected each block once, in order")
    means = (spec.reference.get("mean", {}), spec.reference.get("sd", {}))
    for key, values in (("cap_rate", spec.cap_rate), ("dose", spec.dose), *(("reference", mean) for mean in means)):
        if not isinstance(values, dict) or not all(_is_number(value) for value in values.values()):
            raise TypeError(f"{key} has {values!r:.60}, expected a number for each block")
    if spec.cap_rate and "mean" not in spec.cap_rate:
        raise ValueError("cap_rate has no mean")
    if set(means[0]) != set(means[1]):
        raise ValueError("reference has not the same blocks in mean and sd")
    if means[0] and not isinstance(spec.reference.get("tokens_sha256"), str):
        raise ValueError("reference has no tokens_sha256")


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def load_cap(path: Path) -> tuple[Cap, Axis]:
    """Read cap.json (or the folder that holds it) and the axis beside it."""
    file = path / CAP_FILE if path.is_dir() else path
    spec = load_spec(file)
    axis = load_axis(file.parent / spec.axis)
    return Cap.of(spec, axis), axis


def describe(spec: CapSpec) -> str:
    """One line on a cap, for people."""
    rate = f", {spec.cap_rate['mean']:.0%} of held-out tokens capped" if spec.cap_rate else ""
    layers = f"{spec.layers[0]}-{spec.layers[-1]}"
    return f"cap at blocks {layers}, site {spec.site}, alpha {spec.alpha:g}, {spec.method.get('name')}{rate}"
