"""The files of the paper's code (The Assistant Axis, arXiv 2601.10387): an axis `.pt`, and `capping_config.pt`.

The axis is the mean over default rollouts minus the mean over roles, [n_layers, hidden], so it points *toward* the
character the paper protects, the Assistant; the file is that tensor, or a dict with it under `axis`. A capping config
has `vectors`: name -> {layer, vector} and `experiments`: a list of {id, interventions} (id -> interventions is read
too), of which those with a `cap` are ceilings along the named vector, scaled to unit length, after the block, always
fully (alpha 1). A ceiling keeps what lies against its vector, so these vectors point away from the Assistant.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_electric.core.errors import ArtifactError, InputError
from karma_electric.steer.formats.original import as_tensor, missing_rows
from karma_electric.steer.formats.steering import (
    AWAY,
    TOWARD,
    About,
    ReadOptions,
    Steering,
    finished,
    layer_number,
    number,
    oriented,
)
from karma_electric.steer.formats.torch_file import as_rows, as_vectors, read_torch, write_torch

if TYPE_CHECKING:
    import torch

_ALPHA = 1.0
_POSITION = "response"
_PERSONA = "the persona is the Assistant, the character that the paper's cap keeps"
_CAPPING_HINT = "Expected a capping_config.pt of the paper: `vectors` and `experiments`."


def read_axis(path: Path, options: ReadOptions) -> Steering:
    """Read an axis: a tensor [n_layers, hidden], or a dict that has it under `axis`.

    Raises:
        ArtifactError: it is neither. MissingError: no such file.
    """
    raw = read_torch(path, options.max_bytes)
    notes: tuple[str, ...] = (_PERSONA,)
    if isinstance(raw, Mapping):
        if "axis" not in raw:
            raise ArtifactError(
                f"{path} is a dict without the key 'axis'.", "Is it a capping config? --from paper-capping"
            )
        notes += ("the means of both sides and their counts are left out",) if len(raw) > 1 else ()
        raw = raw["axis"]
    rows = as_rows(raw, path, "the axis", options.max_bytes)
    steering = Steering(
        vectors=rows, orientation=TOWARD, n_layers=len(rows), about=About(position=_POSITION), notes=notes
    )
    return finished(steering, path, options.layers)


def write_axis(steering: Steering, path: Path) -> list[str]:
    """Write the axis as a tensor that points toward the persona.

    Returns:
        What the file does not carry, a line each.

    Raises:
        InputError: nothing says how many blocks the model has.
    """
    toward = oriented(steering, TOWARD)
    write_torch(as_tensor(toward), path)
    lost = missing_rows(toward)
    if steering.thresholds:
        lost.append("thresholds and alpha: this file has no place for them; --to paper-capping has")
    return lost


def read_capping(path: Path, options: ReadOptions) -> Steering:
    """Read one experiment of a capping config.

    Raises:
        InputError: the file has several experiments and none is named, or another is; lists them.
        ArtifactError: not a capping config, or a block is capped along several vectors. MissingError: no such file.
    """
    raw = read_torch(path, options.max_bytes)
    if not isinstance(raw, Mapping) or not isinstance(raw.get("vectors"), Mapping):
        raise ArtifactError(f"{path} has no `vectors`.", _CAPPING_HINT)
    name, interventions = _experiment(_experiments(raw.get("experiments"), path), path, options.experiment)
    if not isinstance(interventions, list) or not all(isinstance(i, Mapping) for i in interventions):
        raise ArtifactError(f"{path}: the experiment {name!r} has no list of interventions.", _CAPPING_HINT)
    caps = [i for i in interventions if "cap" in i]
    vectors: dict[int, torch.Tensor] = {}
    thresholds: dict[int, float] = {}
    for intervention in caps:
        layer, vector = _vector(raw["vectors"], intervention.get("vector"), path, options.max_bytes)
        if layer in vectors:
            raise ArtifactError(
                f"{path}: the experiment {name!r} caps block {layer} along several vectors.",
                "A cap here has one direction per block; split the experiment.",
            )
        vectors[layer] = vector
        thresholds[layer] = number(intervention["cap"], path, f"the cap of block {layer}")
    if not vectors:
        raise ArtifactError(f"{path}: the experiment {name!r} caps nothing.", "Name another.")
    notes = [f"experiment {name!r}", _PERSONA]
    if len(caps) < len(interventions):
        notes.append(f"{len(interventions) - len(caps)} interventions that are not caps are left out")
    steering = Steering(
        vectors=vectors,
        orientation=AWAY,
        thresholds=thresholds,
        alpha=_ALPHA,
        about=About(position=_POSITION),
        notes=tuple(notes),
    )
    return finished(steering, path, options.layers)


def write_capping(steering: Steering, path: Path) -> list[str]:
    """Write a capping config with one experiment, named after its blocks as the paper's are (`layers_22:29-karma`).

    Returns:
        What the file does not carry, a line each.

    Raises:
        InputError: there are no thresholds.
    """
    away = oriented(steering, AWAY)
    layers = sorted(away.thresholds)
    if not layers:
        raise InputError(
            "There are no thresholds, and this format is a cap.",
            "Set them first: karma axis calibrate --site block, or write --to paper-axis.",
        )
    names = {layer: f"layer_{layer}/karma" for layer in layers}
    write_torch(
        {
            "vectors": {names[layer]: {"layer": layer, "vector": away.vectors[layer]} for layer in layers},
            "experiments": [
                {
                    "id": f"layers_{layers[0]}:{layers[-1] + 1}-karma",
                    "interventions": [
                        {"vector": names[layer], "cap": float(away.thresholds[layer])} for layer in layers
                    ],
                }
            ],
        },
        path,
    )
    lost = []
    if away.alpha not in (None, _ALPHA):
        lost.append(f"alpha {away.alpha:g}: the paper's code always caps fully (alpha 1), so it acts more strongly")
    if set(away.layers) - set(layers):
        lost.append("the vectors of blocks that are not capped; --to paper-axis has them")
    return lost


def _experiments(raw: object, path: Path) -> dict[str, Any]:
    """Interventions of a capping config's experiments by id, in order.

    Raises:
        ArtifactError: there are none, or two of one id.
    """
    if isinstance(raw, Mapping):
        pairs = [
            (key, value.get("interventions") if isinstance(value, Mapping) else value) for key, value in raw.items()
        ]
    elif isinstance(raw, list) and all(isinstance(entry, Mapping) for entry in raw):
        pairs = [(entry.get("id"), entry.get("interventions")) for entry in raw]
    else:
        pairs = []
    found = {key: value for key, value in pairs if isinstance(key, str)}
    if not pairs or len(found) < len(pairs):
        raise ArtifactError(f"{path} has no `experiments` with an id each.", _CAPPING_HINT)
    return found


def _experiment(there: Mapping[str, Any], path: Path, asked: str | None) -> tuple[str, Any]:
    ids = list(there)
    if asked is None and len(ids) == 1:
        asked = ids[0]
    if asked is None or asked not in there:
        listed = ", ".join(ids[:30]) + (f", and {len(ids) - 30} more" if len(ids) > 30 else "")
        found = f"{path} has {len(ids)} experiments" if asked is None else f"{path} has no experiment {asked!r}"
        raise InputError(f"{found}: {listed}.", "Name one with --experiment ID.")
    return asked, there[asked]


def _vector(vectors: Mapping[Any, Any], name: object, path: Path, max_bytes: int) -> tuple[int, torch.Tensor]:
    entry = vectors.get(name) if isinstance(name, str) else None
    if not isinstance(entry, Mapping) or not {"layer", "vector"} <= set(entry):
        raise ArtifactError(f"{path}: an intervention names the vector {str(name)[:60]!r}, which is not there.", "")
    layer = layer_number(entry["layer"], path, f"the vector {name!r}")
    return layer, as_vectors(entry["vector"], path, f"the vector {name!r}", max_bytes)
