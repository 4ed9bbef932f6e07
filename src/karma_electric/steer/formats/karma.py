"""Our own folder: axis.safetensors, and cap.json where thresholds are set. Only the `block` site goes in and out.

A cap at the `mlp` site has no counterpart in any other format, and thresholds do not carry over from one site to the
other: the streams differ by what the MLP adds. So such a cap is refused, unless its directions alone are asked for.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from karma_electric.core.errors import ArtifactError, InputError
from karma_electric.steer.axis import Axis, load_axis, save_axis
from karma_electric.steer.formats.steering import (
    AWAY,
    SITE,
    UNKNOWN,
    About,
    ReadOptions,
    Steering,
    blocks_text,
    finished,
    oriented,
)
from karma_electric.steer.formats.torch_file import require_file
from karma_electric.steer.spec import AXIS_FILE, CAP_FILE, CapSpec, load_spec, save_spec

if TYPE_CHECKING:
    import torch


def read(path: Path, options: ReadOptions) -> Steering:
    """Read the directions of the `block` site, each in its length, and the cap if it is one at that site.

    Args:
        path: the folder, or an axis.safetensors (whose cap, if any, is then left out).
        options: `site` "block" takes the directions although the cap is for the `mlp` site.

    Raises:
        InputError: the cap is for the `mlp` site and its directions were not asked for by name.
        ArtifactError: the axis has no directions at the `block` site. MissingError: a file is not there.
    """
    spec = load_spec(path / CAP_FILE) if (path / CAP_FILE).is_file() else None
    axis_file = path / (spec.axis if spec else AXIS_FILE) if path.is_dir() else path
    require_file(axis_file, options.max_bytes)
    axis = load_axis(axis_file)
    notes = []
    if spec is not None and spec.site != SITE:
        if options.site != SITE:
            raise InputError(
                f"The cap in {path} is for the site {spec.site!r}, and every other format caps the site {SITE!r}, "
                "the residual stream after the block: its thresholds do not carry over.",
                f"Set thresholds there first (karma axis calibrate --site {SITE}), "
                f"or convert the directions alone with --site {SITE}.",
            )
        notes.append(f"the cap's thresholds are left out: they are for the site {spec.site!r}")
        spec = None
    if SITE not in axis.directions:
        raise ArtifactError(f"{axis_file} has no directions at the site {SITE!r}.", "Extract the axis again.")
    blocks = range(axis.n_layers) if axis.blocks is None else axis.blocks
    steering = Steering(
        vectors={layer: _in_length(axis, layer) for layer in blocks},
        orientation=AWAY,
        thresholds=dict(spec.thresholds) if spec else {},
        alpha=spec.alpha if spec else None,
        n_layers=axis.n_layers,
        about=About(
            model=axis.model,
            template_sha256=axis.template_sha256,
            position=axis.position,
            toward=axis.toward,
            away=axis.away,
            n=axis.n,
        ),
        notes=tuple(notes),
    )
    return finished(steering, axis_file, options.layers)


def _in_length(axis: Axis, layer: int) -> torch.Tensor:
    return (axis.directions[SITE][layer].double() * axis.norms[SITE][layer].double()).float()


def write(steering: Steering, folder: Path) -> list[str]:
    """Write axis.safetensors, and cap.json where there are thresholds, into an existing folder.

    Returns:
        What the files do not carry, a line each.

    Raises:
        InputError: nothing says how many blocks the model has.
    """
    axis = as_axis(steering)
    save_axis(axis, folder / AXIS_FILE)
    if steering.thresholds:
        save_spec(as_spec(steering), folder / CAP_FILE)
    return []


def as_axis(steering: Steering) -> Axis:
    """Unit directions that point away from the persona, with their lengths beside them.

    Raises:
        InputError: nothing says how many blocks the model has.
    """
    import torch

    away = oriented(steering, AWAY)
    if away.n_layers is None:
        raise InputError(
            f"The file has vectors for the blocks {blocks_text(away.layers)} and does not say how many the model has.",
            "Name the model with --model FOLDER, or give --blocks N.",
        )
    directions = torch.zeros(away.n_layers, away.hidden)
    norms = torch.zeros(away.n_layers)
    for layer, vector in away.vectors.items():
        length = vector.double().norm()
        directions[layer] = (vector.double() / length).float()
        norms[layer] = length.float()
    whole = len(away.vectors) == away.n_layers
    return Axis(
        directions={SITE: directions},
        norms={SITE: norms},
        model=away.about.model,
        template_sha256=away.about.template_sha256,
        position=away.about.position,
        toward=away.about.toward,
        away=away.about.away,
        n=away.about.n,
        stats={"imported": dict(away.about.imported)},
        blocks=None if whole else tuple(away.layers),
    )


def as_spec(steering: Steering) -> CapSpec:
    """The cap of a steering file, as one of ours: ceilings at the `block` site, nothing measured yet."""
    away = oriented(steering, AWAY)
    return CapSpec(
        axis=AXIS_FILE,
        site=SITE,
        layers=tuple(sorted(away.thresholds)),
        thresholds={layer: float(t) for layer, t in sorted(away.thresholds.items())},
        alpha=1.0 if away.alpha is None else away.alpha,
        calibrated_on={"model": away.about.model, "template_sha256": away.about.template_sha256, "dtype": UNKNOWN},
        method={"name": "imported", **away.about.imported},
    )
