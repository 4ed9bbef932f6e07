"""The original's axis for its llama.cpp fork (`--acap`): `direction.N` with a ceiling `acap.threshold.N` each.

The fork scales the vectors to unit length, caps fully (alpha 1) after block N, and has nothing for block 0. A block
without a threshold is capped only if a global one is given on its command line. Its own converter writes no
architecture; here it is `acap`, so that repeng does not take the file for a control vector, which would be added.
"""

from __future__ import annotations

import re
import struct
from pathlib import Path

from karma_electric.core.errors import ArtifactError, InputError
from karma_electric.steer.formats.control_vector import BLOCKS, FIRST_BLOCK, MODEL_HINT, ORIENTATION, block_count
from karma_electric.steer.formats.gguf_file import Contents, Value, read_directions, write_directions
from karma_electric.steer.formats.original import read_thresholds
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

ARCHITECTURE = "acap"
PREFIX = "acap.threshold."
_ALPHA = 1.0


def read(path: Path, options: ReadOptions) -> Steering:
    """Read an axis with its thresholds; older files have none, and take them from `options.thresholds`.

    Raises:
        InputError: thresholds in the file and beside it.
        ArtifactError: not such a file, or one for another purpose. MissingError: no such file.
    """
    contents = read_directions(path, options.max_bytes)
    stored = contents.metadata.get(ORIENTATION, AWAY)
    if contents.metadata.get("general.architecture") == "controlvector" or stored != AWAY:
        raise ArtifactError(
            f"{path} is a control vector, which is added; a cap's axis points {AWAY}.",
            "Read it with --from control-vector.",
        )
    thresholds = _thresholds(contents, path)
    notes: list[str] = []
    if options.thresholds is not None:
        if thresholds:
            raise InputError(f"{path} has thresholds of its own.", "Leave out --thresholds.")
        found = read_thresholds(options.thresholds, options.max_bytes)
        thresholds = dict(found.values)
        notes += found.notes
    if bare := sorted(set(contents.vectors) - set(thresholds)):
        notes.append(f"blocks {blocks_text(bare)} have no threshold in the file and are not capped")
    steering = Steering(
        vectors=contents.vectors,
        orientation=AWAY,
        thresholds=thresholds,
        alpha=_ALPHA if thresholds else None,
        n_layers=block_count(contents, path),
        about=About(model_type=str(contents.metadata.get(MODEL_HINT, UNKNOWN))),
        notes=tuple(notes),
    )
    return finished(steering, path, options.layers)


def write(steering: Steering, path: Path) -> list[str]:
    """Write the capped blocks with their ceilings.

    Returns:
        What the file does not carry, a line each.

    Raises:
        InputError: there are no thresholds, or block 0 is capped.
    """
    away = oriented(steering, AWAY)
    layers = sorted(away.thresholds)
    if not layers:
        raise InputError(
            "There are no thresholds, and this format is a cap.",
            "Set them first: karma axis calibrate --site block, or give --thresholds.",
        )
    if layers[0] < FIRST_BLOCK:
        raise InputError("Block 0 is capped, and the fork cannot cap it.", "Leave it out: --layers FIRST-LAST.")
    metadata: dict[str, Value] = {ORIENTATION: AWAY}
    if steering.n_layers is not None:
        metadata[BLOCKS] = steering.n_layers
    metadata |= {f"{PREFIX}{layer}": float(away.thresholds[layer]) for layer in layers}
    write_directions(path, ARCHITECTURE, metadata, {layer: away.vectors[layer] for layer in layers})
    lost = []
    if away.alpha not in (None, _ALPHA):
        lost.append(f"alpha {away.alpha:g}: the fork always caps fully (alpha 1), so it acts more strongly")
    if set(away.layers) - set(layers):
        lost.append("the vectors of blocks that are not capped")
    if any(struct.unpack("<f", struct.pack("<f", t))[0] != t for t in away.thresholds.values()):
        lost.append("digits of the thresholds beyond float32")
    return lost


def _thresholds(contents: Contents, path: Path) -> dict[int, float]:
    raw = {key.removeprefix(PREFIX): value for key, value in contents.metadata.items() if key.startswith(PREFIX)}
    if any(not isinstance(value, float) for value in raw.values()):  # the fork stops at any other type
        raise ArtifactError(f"{path}: a threshold is not stored as a floating-point number.", "Convert it again.")
    return {layer: number(t, path, f"{PREFIX}{layer}") for layer, t in by_layer(raw, path, "acap.threshold").items()}


def has_thresholds(contents: Contents) -> bool:
    """Whether a GGUF file of directions is this format beyond doubt."""
    return any(re.match(re.escape(PREFIX) + r"\d", key) for key in contents.metadata)
