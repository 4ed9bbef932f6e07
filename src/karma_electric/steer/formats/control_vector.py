"""Control-vector GGUF files, as repeng and llama.cpp read and write them: `direction.N` is *added* after block N.

The format has no thresholds and does not say which way its vectors point. What is written here points toward the
persona, because it is added: loading it strengthens the persona, where the cap's own direction would push it away.
"""

from __future__ import annotations

from pathlib import Path

from karma_electric.core.errors import ArtifactError, InputError
from karma_electric.steer.formats.gguf_file import Contents, Value, read_directions, write_directions
from karma_electric.steer.formats.steering import (
    ORIENTATIONS,
    TOWARD,
    UNKNOWN,
    About,
    Orientation,
    ReadOptions,
    Steering,
    finished,
    oriented,
)

ARCHITECTURE = "controlvector"
MODEL_HINT = "controlvector.model_hint"
LAYER_COUNT = "controlvector.layer_count"
ORIENTATION = "karma.orientation"
BLOCKS = "karma.block_count"
FIRST_BLOCK = 1  # llama.cpp has no direction for block 0


def read(path: Path, options: ReadOptions) -> Steering:
    """Read a control vector.

    Raises:
        InputError: nothing says which way it points, or the option says otherwise than the file.
        ArtifactError: not a control vector. MissingError: no such file.
    """
    contents = read_directions(path, options.max_bytes)
    architecture = contents.metadata.get("general.architecture")
    if architecture != ARCHITECTURE:
        raise ArtifactError(
            f"{path} has the architecture {architecture!r}, expected {ARCHITECTURE!r}.",
            "An axis for the original's llama.cpp fork is read with --from acap.",
        )
    hint = contents.metadata.get(MODEL_HINT, UNKNOWN)
    steering = Steering(
        vectors=contents.vectors,
        orientation=_orientation(contents, path, options.orientation),
        n_layers=block_count(contents, path),
        about=About(model_type=str(hint)),
    )
    return finished(steering, path, options.layers)


def write(steering: Steering, path: Path) -> list[str]:
    """Write a control vector: every capped block, or every block where there is no cap.

    Returns:
        What the file does not carry, a line each.

    Raises:
        InputError: only block 0 has a vector.
    """
    there = steering.layers
    blocks = sorted(steering.thresholds) or there
    kept = [layer for layer in blocks if layer >= FIRST_BLOCK]
    if not kept:
        raise InputError("Only block 0 has a vector, and a control vector has none for it.", "Use another format.")
    toward = oriented(steering, TOWARD)
    metadata: dict[str, Value] = {
        MODEL_HINT: steering.about.model_type,
        LAYER_COUNT: len(kept),
        ORIENTATION: toward.orientation,
    }
    if steering.n_layers is not None:
        metadata[BLOCKS] = steering.n_layers
    write_directions(path, ARCHITECTURE, metadata, {layer: toward.vectors[layer] for layer in kept})
    lost = []
    if steering.thresholds:
        lost.append("the thresholds and alpha: a control vector is added to every token, it caps nothing")
        if set(there) - set(blocks):
            lost.append("the vectors of blocks that are not capped")
    if 0 in blocks:
        lost.append("block 0: llama.cpp has no direction for it")
    if steering.about.model_type == UNKNOWN:
        lost.append("the model hint: it is 'unknown'; name the model with --model to write its architecture")
    return lost


def block_count(contents: Contents, path: Path) -> int | None:
    """Blocks of the model, where we wrote it into the file.

    Raises:
        ArtifactError: it is not a whole number.
    """
    value = contents.metadata.get(BLOCKS)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise ArtifactError(f"{path}: {BLOCKS} is {value!r}, expected a whole number.", "Convert it again.")


def _orientation(contents: Contents, path: Path, given: Orientation | None) -> Orientation:
    stored = contents.metadata.get(ORIENTATION)
    if stored is not None and stored not in ORIENTATIONS:
        raise ArtifactError(f"{path}: {ORIENTATION} is {stored!r}.", f"Expected one of {', '.join(ORIENTATIONS)}.")
    if stored is not None and given is not None and stored != given:
        raise InputError(f"{path} says that it points {stored}.", "Leave out --orientation, or give the same.")
    found = next((o for o in ORIENTATIONS if o in (stored, given)), None)
    if found is None:
        raise InputError(
            f"{path} does not say which way its vectors point, and control vectors have no convention.",
            "Give --orientation toward-persona if adding it strengthens the persona, else away-from-persona.",
        )
    return found
