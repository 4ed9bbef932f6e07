"""The original's files: a `.pt` tensor [n_layers, hidden], thresholds as a `.pt` dict of block to number, a stats JSON.

Its axis is the mean over generic prompts minus the mean under the persona, so it points away from the persona, in the
length of that difference; its hooks scale it to unit length and cap after the block, thresholds being ceilings. The
stats JSON of an extraction (`axis_stats.json`) has `thresholds` as block -> {"tau": ...} and, where they were set
again, `recalibration_v2.new_thresholds`, which then count. alpha is an argument of its inference script, 0.5 when not
given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_electric.core.artifact import write_json
from karma_electric.core.errors import ArtifactError, InputError, MissingError
from karma_electric.steer.formats.steering import (
    AWAY,
    UNKNOWN,
    About,
    ReadOptions,
    Steering,
    blocks_text,
    by_layer,
    finished,
    number,
    oriented,
)
from karma_electric.steer.formats.torch_file import as_rows, as_vectors, read_torch, require_file, write_torch

if TYPE_CHECKING:
    import torch

# The names its scripts look for.
AXIS = "bodhisattva_axis.pt"
THRESHOLDS = "bodhisattva_thresholds.pt"
STATS = "axis_stats.json"
_ALPHA = 0.5
_RECALIBRATED = ("recalibration_v2", "new_thresholds")
_PERSONA_PROMPTS = ("bodhisattva_prompt", "safety_prompt")


@dataclass(frozen=True)
class Thresholds:
    """What a file of thresholds says: block -> ceiling, and what else it knows."""

    values: dict[int, float]
    alpha: float | None = None
    n_layers: int | None = None
    about: About = field(default_factory=About)
    notes: tuple[str, ...] = ()


def read(path: Path, options: ReadOptions) -> Steering:
    """Read an axis, and thresholds from the file beside it that is named (or from the folder's only one).

    Raises:
        InputError: the folder has two files of thresholds that differ.
        ArtifactError: not such files. MissingError: a file is not there.
    """
    axis, beside = (path / AXIS, _beside(path, options)) if path.is_dir() else (path, options.thresholds)
    raw = read_torch(axis, options.max_bytes)
    vectors, n_layers = read_rows(raw, axis, options.max_bytes)
    steering = Steering(vectors=vectors, orientation=AWAY, n_layers=n_layers, about=About(position="last-prompt"))
    if beside is not None:
        found = read_thresholds(beside, options.max_bytes)
        if None not in (n_layers, found.n_layers) and n_layers != found.n_layers:
            raise ArtifactError(
                f"{beside} is for {found.n_layers} blocks, {axis} has {n_layers}.", "Give the files of one extraction."
            )
        alpha = _ALPHA if found.alpha is None else found.alpha
        said = f"alpha is {_ALPHA}, the original script's default: the files do not say it"
        steering = replace(
            steering,
            thresholds=found.values,
            alpha=alpha,
            n_layers=n_layers if found.n_layers is None else found.n_layers,
            about=replace(found.about, position=steering.about.position),
            notes=(*found.notes, *((said,) if found.alpha is None else ())),
        )
    return finished(steering, axis, options.layers)


def write(steering: Steering, folder: Path) -> list[str]:
    """Write the axis and, for a cap, thresholds and stats into a folder, under the names the original's scripts use.

    Returns:
        What the files do not carry, a line each.

    Raises:
        InputError: nothing says how many blocks the model has.
    """
    away = oriented(steering, AWAY)
    write_torch(as_tensor(away), folder / AXIS)
    lost = missing_rows(away)
    if away.thresholds:
        layers = sorted(away.thresholds)
        write_torch({layer: float(away.thresholds[layer]) for layer in layers}, folder / THRESHOLDS)
        stats: dict[str, Any] = {
            "n_layers": away.n_layers,
            "hidden_size": away.hidden,
            "capping_layers": layers,
            "alpha": away.alpha,
            "thresholds": {str(layer): {"tau": float(away.thresholds[layer])} for layer in layers},
            "bodhisattva_prompt": away.about.toward,
            "generic_prompts": list(away.about.away),
            "n_samples": away.about.n,
        }
        write_json(folder / STATS, stats)
        if away.alpha not in (None, _ALPHA):
            lost.append(f"alpha {away.alpha:g}: the original's script takes --alpha, and {_ALPHA} when not given")
        if layers != list(range(22, 29)):
            lost.append(f"the capped blocks {blocks_text(layers)}: the original's script has 22-28 in its CONFIG")
    return lost


def read_rows(raw: object, source: Path, max_bytes: int) -> tuple[dict[int, torch.Tensor], int | None]:
    """Vectors by block from a [n_layers, hidden] tensor, or from a dict of block to vector; and n_layers if known.

    Raises:
        ArtifactError: it is neither.
    """
    if isinstance(raw, Mapping):
        items = by_layer(raw, source, "the axis").items()
        return {layer: as_vectors(v, source, f"block {layer}", max_bytes) for layer, v in items}, None
    rows = as_rows(raw, source, "the axis", max_bytes)
    return rows, len(rows)


def as_tensor(steering: Steering) -> torch.Tensor:
    """[n_layers, hidden], zeros where there is no vector.

    Raises:
        InputError: nothing says how many blocks the model has.
    """
    import torch

    if steering.n_layers is None:
        raise InputError(
            f"This format has a row for every block, and only {blocks_text(steering.layers)} are known.",
            "Say how many blocks the model has: --model FOLDER or --blocks N.",
        )
    rows = torch.zeros(steering.n_layers, steering.hidden)
    for layer, vector in steering.vectors.items():
        rows[layer] = vector
    return rows


def missing_rows(steering: Steering) -> list[str]:
    """What to say of rows that are zero for want of a vector."""
    absent = set(range(steering.n_layers or 0)) - set(steering.vectors)
    if not absent:
        return []
    return [
        f"vectors of the blocks {blocks_text(absent)}, which are not known: their rows are zero. To read the file "
        f"again, name the others: --layers {steering.layers[0]}-{steering.layers[-1]}"
    ]


def read_thresholds(path: Path, max_bytes: int) -> Thresholds:
    """Read thresholds from a `.pt` dict of block to number, or from a stats JSON.

    Raises:
        ArtifactError: neither. MissingError: no such file.
    """
    if path.suffix == ".json":
        return _from_stats(path, max_bytes)
    raw = read_torch(path, max_bytes)
    if not isinstance(raw, Mapping) or not raw:
        raise ArtifactError(
            f"{path} holds a {type(raw).__name__}, expected a dict of block to threshold.",
            "Give the original's thresholds .pt, or its axis_stats.json.",
        )
    values = {layer: number(t, path, f"block {layer}") for layer, t in by_layer(raw, path, "the dict").items()}
    return Thresholds(values)


def _from_stats(path: Path, max_bytes: int) -> Thresholds:
    require_file(path, max_bytes)
    try:
        stats = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} is not JSON ({error}).", "Give the original's axis_stats.json.") from None
    group, key = _RECALIBRATED
    recalibrated = stats.get(group) if isinstance(stats, dict) else None
    again = recalibrated.get(key) if isinstance(recalibrated, dict) else None
    raw = again if again is not None else stats.get("thresholds") if isinstance(stats, dict) else None
    if not isinstance(raw, dict) or not raw:
        raise ArtifactError(f"{path} has no thresholds.", f"Expected `thresholds` or `{group}.{key}`: block -> number.")
    values = {}
    for layer, value in by_layer(raw, path, "thresholds").items():
        t = value.get("tau") if isinstance(value, dict) else value
        values[layer] = number(t, path, f"the threshold of block {layer}")
    notes: tuple[str, ...] = (f"thresholds are the recalibrated ones ({group})",) if again is not None else ()
    if "capping_layers" in stats:
        values, more = _capped_only(values, stats["capping_layers"], path)
        notes += more
    n_layers = stats.get("n_layers")
    alpha = stats.get("alpha")
    return Thresholds(
        values,
        alpha=None if alpha is None else number(alpha, path, "alpha"),
        n_layers=n_layers if isinstance(n_layers, int) else None,
        about=_about(stats),
        notes=notes,
    )


def _capped_only(values: dict[int, float], capped: object, path: Path) -> tuple[dict[int, float], tuple[str, ...]]:
    """Thresholds of the blocks that the stats call capped; a capped block without one is an error."""
    if not isinstance(capped, list) or not capped or not all(isinstance(layer, int | str) for layer in capped):
        raise ArtifactError(f"{path}: capping_layers is {str(capped)[:40]}, expected a list of blocks.", "")
    layers = set(by_layer(dict.fromkeys(capped), path, "capping_layers"))
    if missing := layers - set(values):
        raise ArtifactError(f"{path}: blocks {blocks_text(missing)} are capped and have no threshold.", "")
    left = set(values) - layers
    notes = (f"thresholds of the blocks {blocks_text(left)} are left out: they are not capped",) if left else ()
    return {layer: t for layer, t in values.items() if layer in layers}, notes


def _about(stats: Mapping[str, Any]) -> About:
    prompts, n = stats.get("generic_prompts"), stats.get("n_samples")
    persona = next((stats[key] for key in _PERSONA_PROMPTS if isinstance(stats.get(key), str)), "")
    return About(
        model=UNKNOWN,
        toward=persona,
        away=tuple(p for p in prompts if isinstance(p, str)) if isinstance(prompts, list) else (),
        n=n if isinstance(n, int) and n >= 0 else 0,
    )


def _beside(folder: Path, options: ReadOptions) -> Path | None:
    """The thresholds in a folder: the named file, else the only one; two that agree count as one."""
    if options.thresholds is not None:
        return options.thresholds
    if not (folder / AXIS).is_file():
        raise MissingError(f"{folder} has no {AXIS}.", "Give the axis file itself.")
    there = [file for file in (folder / STATS, folder / THRESHOLDS) if file.is_file()]
    if len(there) == 2:
        first, second = (read_thresholds(file, options.max_bytes).values for file in there)
        if first != second:
            raise InputError(
                f"{there[0]} and {there[1]} have different thresholds.", "Say which with --thresholds FILE."
            )
    return there[0] if there else None
