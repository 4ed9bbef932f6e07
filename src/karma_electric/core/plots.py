"""The look of every figure: one size, one palette (readable without colour vision), PNG without a display."""

from __future__ import annotations

from pathlib import Path
from typing import Any

# Okabe-Ito colours: distinct for the common forms of colour blindness.
COLOURS = {
    "base": "#7f7f7f",
    "tuned": "#0072b2",
    "capped": "#d55e00",
    "pass": "#009e73",
    "partial": "#e69f00",
    "fail": "#cc3311",
    "unscored": "#bbbbbb",
    "muted": "#c7d7e5",
}


def figure(rows: int, columns: int, *, width: float = 5.0, height: float = 3.4) -> tuple[Any, Any]:
    """A figure and its axes; `width` and `height` are per panel, in inches."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    fig, axes = pyplot.subplots(rows, columns, figsize=(width * columns, height * rows), layout="constrained")
    for panel in axes.flat if rows * columns > 1 else [axes]:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.25)
    return fig, axes


def save(fig: Any, path: Path) -> None:
    """Write a PNG and release the figure."""
    from matplotlib import pyplot

    fig.savefig(path, dpi=130)
    pyplot.close(fig)
