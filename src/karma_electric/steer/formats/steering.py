"""What every format comes down to: a vector per block, perhaps thresholds, and which way the vectors point.

The persona is the character that a cap keeps: Karma in our own files and the original's, the Assistant in the paper's.
Along a vector that points away from it a threshold is a ceiling, along one that points toward it a floor, and
    floor along v at t:  h + max(0, t - <h, v>) v  =  h - max(0, <h, -v> - (-t)) (-v)  : ceiling along -v at -t
so turning a file around negates vectors and thresholds together (design, section 4).
Blocks are 0-based everywhere in here, and the site is `block`, the residual stream after the block: no other project
caps anywhere else.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

from karma_electric.core.errors import ArtifactError, InputError
from karma_electric.models.blocks import Site

if TYPE_CHECKING:
    import torch

Orientation = Literal["away-from-persona", "toward-persona"]
ORIENTATIONS: tuple[Orientation, ...] = get_args(Orientation)
AWAY, TOWARD = ORIENTATIONS
SITE: Site = "block"
UNKNOWN = "unknown"
MAX_BYTES = 1 << 30  # of a file, unless the user allows more: the paper's largest are some MB
MOST_BLOCKS = 10_000  # of a model: a damaged number must not be taken for an amount of memory to ask for
_SHORTEST = 1e-6  # readers add 1e-8 to a length before they divide by it


@dataclass(frozen=True)
class About:
    """What is known of how the vectors were made; `UNKNOWN`, empty or 0 where the file does not say.

    `model_type` is the architecture's name in config.json, which control vectors carry as a hint; `imported` says
    which file they were read from, where they were converted.
    """

    model: str = UNKNOWN
    template_sha256: str = UNKNOWN
    position: str = UNKNOWN
    toward: str = ""
    away: tuple[str, ...] = ()
    n: int = 0
    model_type: str = UNKNOWN
    imported: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Steering:
    """One steering file's contents, whatever its format.

    Attributes:
        vectors: block -> float32 [hidden], with the length they were stored with.
        orientation: which way all of them point.
        thresholds: block -> t in `<h, v / |v|>`: a ceiling or a floor, as the orientation says; empty without a cap.
        alpha: strength of the cap, where the file or its reader fixes one.
        n_layers: blocks of the model, where the file says it.
        about: what the vectors were made from.
        notes: what a reader should be told: assumptions, and what was left out.
    """

    vectors: Mapping[int, torch.Tensor]
    orientation: Orientation
    thresholds: Mapping[int, float] = field(default_factory=dict)
    alpha: float | None = None
    n_layers: int | None = None
    about: About = field(default_factory=About)
    notes: tuple[str, ...] = ()

    @property
    def layers(self) -> list[int]:
        """Blocks that have a vector, in order."""
        return sorted(self.vectors)

    @property
    def hidden(self) -> int:
        """Width of the residual stream."""
        return int(next(iter(self.vectors.values())).shape[0])


@dataclass(frozen=True)
class ReadOptions:
    """What a user can say about a source; which of them a format takes is in `registry.FORMATS`.

    Attributes:
        thresholds: a file of thresholds beside the vectors.
        experiment: which of a file's caps.
        orientation: which way the vectors point, for files that do not say it.
        layers: read these blocks only.
        site: take the directions of this site although the cap is for another.
        max_bytes: refuse larger files.
    """

    thresholds: Path | None = None
    experiment: str | None = None
    orientation: Orientation | None = None
    layers: tuple[int, ...] | None = None
    site: Site | None = None
    max_bytes: int = MAX_BYTES


def bound(orientation: Orientation) -> str:
    """What a threshold is along vectors that point so."""
    return "ceiling" if orientation == AWAY else "floor"


def flipped(steering: Steering) -> Steering:
    """The same cap along the opposite vectors: both are negated, and a ceiling becomes a floor."""
    return replace(
        steering,
        vectors={layer: -vector for layer, vector in steering.vectors.items()},
        thresholds={layer: -t for layer, t in steering.thresholds.items()},
        orientation=TOWARD if steering.orientation == AWAY else AWAY,
    )


def oriented(steering: Steering, orientation: Orientation) -> Steering:
    """The same cap with vectors that point as asked."""
    return steering if steering.orientation == orientation else flipped(steering)


def finished(steering: Steering, source: Path, layers: Collection[int] | None = None) -> Steering:
    """What a reader returns: only the asked blocks, and nothing that cannot be a steering vector or a threshold.

    Args:
        steering: as found in the file.
        source: the file, for messages.
        layers: keep these blocks only; None keeps all.

    Raises:
        InputError: a block was asked for that the file does not have.
        ArtifactError: the file's contents cannot be used; says which block and why.
    """
    if layers is not None:
        if missing := sorted(set(layers) - set(steering.vectors)):
            raise InputError(
                f"{source} has no vector for the blocks {blocks_text(missing)}; it has {blocks_text(steering.layers)}.",
                "Name blocks with --layers that are there.",
            )
        steering = replace(
            steering,
            vectors={layer: v for layer, v in steering.vectors.items() if layer in layers},
            thresholds={layer: t for layer, t in steering.thresholds.items() if layer in layers},
        )
    _check(steering, source)
    return steering


def _check(steering: Steering, source: Path) -> None:
    import torch

    def refuse(reason: str, hint: str = "The file is damaged, or not what --from says.") -> None:
        raise ArtifactError(f"{source}: {reason}.", hint)

    if not steering.vectors:
        refuse("there are no vectors in it")
    for layer, vector in sorted(steering.vectors.items()):
        if vector.dim() != 1 or vector.shape[0] != steering.hidden or vector.dtype != torch.float32:
            refuse(f"the vector of block {layer} has shape {list(vector.shape)}, others have [{steering.hidden}]")
        length = float(vector.double().norm())
        if not math.isfinite(length) or length > torch.finfo(torch.float32).max:
            refuse(f"the vector of block {layer} holds NaN, infinities or numbers too large for float32")
        if length < _SHORTEST:
            refuse(
                f"the vector of block {layer} is zero (length {length:.1g}), which is no direction",
                "If the file leaves blocks out on purpose, name those to read with --layers FIRST-LAST.",
            )
    for layer, t in sorted(steering.thresholds.items()):
        if layer not in steering.vectors:
            refuse(f"there is a threshold for block {layer}, which has no vector")
        if not math.isfinite(t):
            refuse(f"the threshold of block {layer} is {t}")
    if (steering.n_layers or 0) > MOST_BLOCKS or max(steering.layers) >= MOST_BLOCKS:
        refuse(f"it is for a model of {steering.n_layers or max(steering.layers) + 1} blocks, more than any has")
    if min(steering.layers) < 0 or (steering.n_layers is not None and max(steering.layers) >= steering.n_layers):
        refuse(f"it names the blocks {blocks_text(steering.layers)} of a model of {steering.n_layers}")
    if steering.alpha is not None and not 0.0 <= steering.alpha <= 1.0:
        refuse(f"alpha is {steering.alpha}, expected a number from 0 to 1")


def layer_number(key: object, source: Path, where: str) -> int:
    """A block's number from a key of a foreign file: a whole number from 0, or its plain decimal text.

    Raises:
        ArtifactError: it is neither.
    """
    if isinstance(key, str) and key.isascii() and key.isdigit() and len(key) < 7 and str(int(key)) == key:
        return int(key)
    if isinstance(key, int) and not isinstance(key, bool) and 0 <= key < 10**6:
        return key
    raise ArtifactError(
        f"{source}: {where} has the key {str(key)[:40]!r}, which is no block number.",
        "Expected whole numbers from 0, each once.",
    )


def by_layer(raw: Mapping[Any, Any], source: Path, where: str) -> dict[int, Any]:
    """A foreign mapping by block number; keys may be numbers or text, but no block may come twice.

    Raises:
        ArtifactError: a key is no block number, or a block comes twice.
    """
    found: dict[int, Any] = {}
    for key, value in raw.items():
        layer = layer_number(key, source, where)
        if layer in found:
            raise ArtifactError(f"{source}: {where} has block {layer} twice.", "Keep one of them.")
        found[layer] = value
    return found


def number(value: object, source: Path, where: str) -> float:
    """A number of a foreign file as a float; torch scalars count, booleans and text do not.

    Raises:
        ArtifactError: it is not a finite number.
    """
    if hasattr(value, "numel") and hasattr(value, "item") and value.numel() == 1:
        value = cast(Any, value).item()
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300:  # NaN compares false
        return float(value)
    raise ArtifactError(f"{source}: {where} is {str(value)[:40]!r}, expected a finite number.", "Calibrate again.")


def blocks_text(layers: Collection[int]) -> str:
    """Blocks for people: `22-28`, or `1, 3-5`."""
    runs: list[list[int]] = []
    for layer in sorted(layers):
        if runs and layer == runs[-1][1] + 1:
            runs[-1][1] = layer
        else:
            runs.append([layer, layer])
    return ", ".join(f"{a}-{b}" if a < b else f"{a}" for a, b in runs) or "none"
