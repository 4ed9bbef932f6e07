"""The formats by name, what each is like, and how a file is recognised: by its contents, where they leave no doubt."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from karma_electric.core.artifact import canonical_json, hash_file, hash_text
from karma_electric.core.errors import ArtifactError, InputError, MissingError
from karma_electric.steer.axis import FORMAT as KARMA_FORMAT
from karma_electric.steer.formats import acap, control_vector, karma, original, paper
from karma_electric.steer.formats.gguf_file import is_gguf, read_directions
from karma_electric.steer.formats.steering import (
    AWAY,
    MOST_BLOCKS,
    TOWARD,
    Orientation,
    ReadOptions,
    Steering,
    blocks_text,
    oriented,
)
from karma_electric.steer.formats.torch_file import is_torch_file, read_torch
from karma_electric.steer.spec import AXIS_FILE, CAP_FILE

_ROW = "row N is block N, counted from 0"
_DIRECTION = "direction.N is block N, counted from 0; block 0 has none"


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        name: what `--from` and `--to` take.
        what: the files, for people.
        orientation: which way its vectors point, by its reader's formula; None where each file may differ.
        written: which way they point when written here.
        indexing: how the file names blocks.
        takes: fields of `ReadOptions` it can use, beside `layers` and `max_bytes`.
        caps: whether it has a place for thresholds.
        folder: whether it is written as a folder.
        read: source, options -> contents.
        write: contents, file or folder -> what is not carried.
        caution: what to know before the written file is used.
    """

    name: str
    what: str
    orientation: Orientation | None
    written: Orientation
    indexing: str
    takes: frozenset[str]
    caps: bool
    folder: bool
    read: Callable[[Path, ReadOptions], Steering]
    write: Callable[[Steering, Path], list[str]]
    caution: str = ""


_ALL = (
    Format(
        name="karma",
        what=f"our folder with {AXIS_FILE} and {CAP_FILE}",
        orientation=AWAY,
        written=AWAY,
        indexing=_ROW,
        takes=frozenset({"site"}),
        caps=True,
        folder=True,
        read=karma.read,
        write=karma.write,
    ),
    Format(
        name="original",
        what=f"the original's {original.AXIS}, with {original.THRESHOLDS} or {original.STATS}",
        orientation=AWAY,
        written=AWAY,
        indexing=_ROW,
        takes=frozenset({"thresholds"}),
        caps=True,
        folder=True,
        read=original.read,
        write=original.write,
    ),
    Format(
        name="paper-axis",
        what="the paper's assistant_axis.pt",
        orientation=TOWARD,
        written=TOWARD,
        indexing=_ROW,
        takes=frozenset(),
        caps=False,
        folder=False,
        read=paper.read_axis,
        write=paper.write_axis,
    ),
    Format(
        name="paper-capping",
        what="the paper's capping_config.pt",
        orientation=AWAY,
        written=AWAY,
        indexing="`layer` is the block, counted from 0",
        takes=frozenset({"experiment"}),
        caps=True,
        folder=False,
        read=paper.read_capping,
        write=paper.write_capping,
    ),
    Format(
        name="control-vector",
        what="control-vector GGUF of llama.cpp and repeng",
        orientation=None,
        written=TOWARD,
        indexing=_DIRECTION,
        takes=frozenset({"orientation"}),
        caps=False,
        folder=False,
        read=control_vector.read,
        write=control_vector.write,
        caution="it is added to every token in its full length; weaken it with --control-vector-scaled FILE 0.3",
    ),
    Format(
        name="acap",
        what="axis GGUF of the original's llama.cpp fork",
        orientation=AWAY,
        written=AWAY,
        indexing=_DIRECTION,
        takes=frozenset({"thresholds"}),
        caps=True,
        folder=False,
        read=acap.read,
        write=acap.write,
        caution="only for --acap: given as --control-vector, llama.cpp would add it, away from the persona",
    ),
)
FORMATS: Mapping[str, Format] = {f.name: f for f in _ALL}


def named(name: str) -> Format:
    """A format by name.

    Raises:
        InputError: there is none of that name.
    """
    if name not in FORMATS:
        raise InputError(f"There is no format {name!r}.", f"One of: {', '.join(FORMATS)}.")
    return FORMATS[name]


def detect(path: Path, max_bytes: int) -> tuple[Format, str]:
    """The format of a source and what gave it away.

    Raises:
        InputError: several formats look like this; says which, and what decides.
        ArtifactError: no known one does. MissingError: it is not there.
    """
    if not path.exists():
        raise MissingError(f"{path} does not exist.", "Give the file or folder that the other tool wrote.")
    if path.is_dir():
        names = {AXIS_FILE: "karma", CAP_FILE: "karma", original.AXIS: "original"}
        found = [(names[name], name) for name in names if (path / name).is_file()]
        if len({name for name, _ in found}) == 1:
            return FORMATS[found[0][0]], f"it holds {found[0][1]}"
        raise _undecided(
            path,
            sorted(set(names.values())),
            f"of {', '.join(names)} it holds {', '.join(n for _, n in found) or 'none'}",
        )
    if is_gguf(path):
        contents = read_directions(path, max_bytes)
        architecture = contents.metadata.get("general.architecture")
        if acap.has_thresholds(contents):
            return FORMATS["acap"], f"it has {acap.PREFIX}N"
        if architecture == control_vector.ARCHITECTURE:
            return FORMATS["control-vector"], f"its architecture is {architecture!r}"
        raise _undecided(
            path, ("acap", "control-vector"), f"it has directions, no thresholds, and the architecture {architecture!r}"
        )
    if is_torch_file(path):
        return _detect_torch(path, max_bytes)
    if path.name == CAP_FILE or (path.suffix == ".safetensors" and KARMA_FORMAT.encode() in _head(path)):
        return FORMATS["karma"], "it is one of ours"
    raise ArtifactError(
        f"{path} is in no format known here.", f"Known: {', '.join(f'{f.name} ({f.what})' for f in FORMATS.values())}."
    )


def _detect_torch(path: Path, max_bytes: int) -> tuple[Format, str]:
    raw = read_torch(path, max_bytes)
    if isinstance(raw, Mapping) and {"vectors", "experiments"} <= set(raw):
        return FORMATS["paper-capping"], "it has `vectors` and `experiments`"
    if isinstance(raw, Mapping) and "axis" in raw:
        return FORMATS["paper-axis"], "it is a dict with the key `axis`"
    raise _undecided(
        path,
        ("original", "paper-axis"),
        "the original's axis (which points away from the persona) and the paper's (which points toward it) "
        "are the same kind of tensor",
    )


def _undecided(path: Path, names: Iterable[str], why: str) -> InputError:
    return InputError(f"{path} could be more than one format: {why}.", f"Say which with --from: {', '.join(names)}.")


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(1 << 16)


def source_hash(path: Path) -> str:
    """One hash for a source: the file, or those files of a folder that some format reads."""
    if path.is_file():
        return hash_file(path)
    names = (AXIS_FILE, CAP_FILE, original.AXIS, original.THRESHOLDS, original.STATS)
    return hash_text(canonical_json({name: hash_file(path / name) for name in names if (path / name).is_file()}))


def read(source: Format, path: Path, options: ReadOptions) -> Steering:
    """Read a source.

    Raises:
        InputError: an option that this format has no use for, or that contradicts it.
        ArtifactError: the file cannot be used. MissingError: it is not there.
    """
    for name in ("thresholds", "experiment", "orientation", "site"):
        value = getattr(options, name)
        if value is None or name in source.takes or (name == "orientation" and value == source.orientation):
            continue
        if name == "orientation":
            raise InputError(
                f"Files of the format {source.name} point {source.orientation}, by what their reader does with them.",
                "Leave out --orientation, or choose another --from.",
            )
        if name == "site":
            raise InputError(
                f"Only our own folders hold several sites; {source.name} has the residual stream after the block.",
                "Leave out --site.",
            )
        raise InputError(f"--{name} is not for the format {source.name}.", "Leave it out.")
    return source.read(path, options)


def with_blocks(steering: Steering, n_layers: int | None) -> Steering:
    """The same with the model's number of blocks, said by the user.

    Raises:
        InputError: the file says another, or has vectors beyond it.
    """
    if n_layers is None:
        return steering
    if n_layers > MOST_BLOCKS:
        raise InputError(f"No model has {n_layers} blocks.", f"Give at most {MOST_BLOCKS}.")
    if steering.n_layers not in (None, n_layers) or max(steering.layers) >= n_layers:
        has = f"{steering.n_layers} blocks" if steering.n_layers else f"the blocks {blocks_text(steering.layers)}"
        raise InputError(f"The file is for {has}, not for a model of {n_layers}.", "Name the model it was made from.")
    return replace(steering, n_layers=n_layers)


def write(target: Format, steering: Steering, path: Path) -> list[str]:
    """Write a file, or the format's own files into an existing folder where it is written as one.

    Returns:
        What the format does not carry, a line each.

    Raises:
        InputError: the contents cannot be said in this format.
    """
    return target.write(oriented(steering, target.written), path)
