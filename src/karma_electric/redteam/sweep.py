"""A grid of caps and the front of those that nothing else in it beats. Knows nothing of models."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from karma_electric.core.errors import InputError

MOST_CELLS = 200
UNCAPPED = "uncapped"

T = TypeVar("T")


@dataclass(frozen=True)
class Cell:
    """One setting of a cap. All are None for the uncapped model, which every sweep measures once.

    Attributes:
        alpha: strength.
        layers: first and last capped block.
        quantile: of the projections at runtime, where the threshold lies.
    """

    alpha: float | None
    layers: tuple[int, int] | None
    quantile: float | None

    @property
    def name(self) -> str:
        """As a folder."""
        if self.alpha is None or self.layers is None:
            return UNCAPPED
        return f"alpha-{self.alpha:g}_blocks-{self.layers[0]}-{self.layers[1]}_q-{self.quantile:g}"


def parse_grid(alphas: str, layers: str, quantiles: str, *, n_layers: int | None) -> list[Cell]:
    """The cells of a grid: the uncapped model first. Alpha 0 is the same model whatever else a cell says.

    Args:
        alphas: "0,0.25,0.5,1".
        layers: "18-23,21-26": first and last block of each range.
        quantiles: "0.5,0.75".
        n_layers: blocks of the model; where None, its last one is not held against the ranges.

    Raises:
        InputError: a value that cannot be, or is given twice; a grid without a cap, or with too many cells.
    """
    strengths = _values("--alphas", alphas, _number("--alphas", 0.0, 1.0, inclusive=True))
    places = _values("--quantiles", quantiles, _number("--quantiles", 0.0, 1.0, inclusive=False))
    ranges = _values("--layers", layers, lambda text: _range(text, n_layers))
    acting = [alpha for alpha in strengths if alpha > 0]
    if not acting:
        raise InputError("--alphas has no strength above 0: nothing would be capped.", "Example: --alphas 0,0.5,1")
    cells = [Cell(alpha, span, place) for span in ranges for place in places for alpha in acting]
    if len(cells) + 1 > MOST_CELLS:
        raise InputError(
            f"The grid has {len(cells) + 1} cells, expected {MOST_CELLS} at most.", "Make a coarse one first."
        )
    return [Cell(None, None, None), *cells]


def front(rows: Sequence[dict[str, Any]], goals: dict[str, int]) -> list[str]:
    """Names of the rows that no other one equals or beats in everything and beats in something (Pareto).

    Args:
        rows: each with `cell` and the keys of `goals`; one with a None among them is left out.
        goals: key -> 1 where more is better, -1 where less is.
    """
    known = [row for row in rows if all(row[key] is not None for key in goals)]

    def beats(a: dict[str, Any], b: dict[str, Any]) -> bool:
        differences = [sign * (a[key] - b[key]) for key, sign in goals.items()]
        return bool(min(differences) >= 0 and max(differences) > 0)

    return [row["cell"] for row in known if not any(beats(other, row) for other in known)]


def plot_front(rows: Sequence[dict[str, Any]], best: Sequence[str], path: Path) -> None:
    """Draw pass rate against over-refusal and capability; the front is ringed, the uncapped model grey."""
    from karma_electric.core.plots import COLOURS, figure, save

    fig, axes = figure(1, 2)
    strengths = sorted({row["alpha"] for row in rows if row["alpha"] is not None})
    palette = ("#56b4e9", COLOURS["tuned"], COLOURS["partial"], COLOURS["capped"], COLOURS["pass"], COLOURS["fail"])
    for panel, key, label in zip(axes, ("over_refusal", "capability"), ("over-refusal", "capability"), strict=True):
        seen: set[float | None] = set()
        for row in rows:
            if row[key] is None or row["pass_rate"] is None:
                continue
            alpha = row["alpha"]
            colour = COLOURS["base"] if alpha is None else palette[strengths.index(alpha) % len(palette)]
            name = UNCAPPED if alpha is None else f"alpha {alpha:g}"
            panel.scatter(
                row[key],
                row["pass_rate"],
                color=colour,
                s=40,
                edgecolors="black" if row["cell"] in best else "none",
                linewidths=1.6,
                label=None if alpha in seen else name,
            )
            seen.add(alpha)
        panel.set_xlabel(f"{label} (share)")
        panel.set_ylabel("pass rate of scored")
    if axes[0].get_legend_handles_labels()[0]:  # none where no cell has both figures
        axes[0].legend(frameon=False, fontsize=8)
    fig.suptitle(f"{len(rows)} settings; ringed: no other one is better in all three", fontsize=9)
    save(fig, path)


def _values(name: str, text: str, read: Callable[[str], T]) -> list[T]:
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise InputError(f"{name} is {text!r}, expected values with commas between them.", f"See {name} in --help.")
    values = [read(part) for part in parts]
    twice = next((part for part, value in zip(parts, values, strict=True) if values.count(value) > 1), None)
    if twice is not None:
        raise InputError(f"{name} has {twice} twice.", "Give every value once.")
    return values


def _number(name: str, low: float, high: float, *, inclusive: bool) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not (low <= value <= high) or (not inclusive and value in (low, high)):
            kind = "from" if inclusive else "between"
            joined = "to" if inclusive else "and"
            raise InputError(f"{name} has {text!r}, expected a number {kind} {low:g} {joined} {high:g}.", "Correct it.")
        return value

    return read


def _range(text: str, n_layers: int | None) -> tuple[int, int]:
    first, dash, last = text.partition("-")
    if not (first.isdecimal() and (last.isdecimal() or not dash)):
        raise InputError(f"--layers has {text!r}, expected a range of blocks.", "Example: --layers 18-23,21-26")
    span = int(first), int(last if dash else first)
    if n_layers is not None and not span[0] <= span[1] < n_layers:
        raise InputError(f"--layers has {text!r}; the model has blocks 0-{n_layers - 1}.", "Give first and last block.")
    if span[0] > span[1]:
        raise InputError(f"--layers has {text!r}, whose last block is before the first.", "Give first and last block.")
    return span
