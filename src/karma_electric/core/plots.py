"""The look of every figure: one size, one palette (readable without colour vision), PNG without a display."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

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

# One hue from light to dark: the order stays without colour vision, and in print without colour.
_SHADES = ("#eff5fa", "#a9cbe5", "#4088c0", "#0a3f73")


def shade(share: float) -> tuple[str, str]:
    """Background and text colour, as #rrggbb, for a share from 0 to 1; whichever of black and white reads better."""
    at = min(max(share, 0.0), 1.0) * (len(_SHADES) - 1)
    lower = min(int(at), len(_SHADES) - 2)
    low, high = (_channels(_SHADES[lower + step]) for step in (0, 1))
    mixed = [round(a + (b - a) * (at - lower)) for a, b in zip(low, high, strict=True)]
    return "#" + "".join(f"{value:02x}" for value in mixed), "#000000" if _luminance(mixed) > 0.18 else "#ffffff"


def _channels(colour: str) -> list[int]:
    return [int(colour[place : place + 2], 16) for place in (1, 3, 5)]


def _luminance(channels: list[int]) -> float:
    """Relative luminance of sRGB (WCAG 2.2); at 0.18 black and white stand out alike."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (c / 255 for c in channels)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


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


def colour_map() -> Any:
    """The colours of `shade` for matplotlib."""
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("shades", _SHADES)


def save(fig: Any, path: Path | IO[bytes]) -> None:
    """Write a PNG, to a file or a buffer, and release the figure."""
    from matplotlib import pyplot

    fig.savefig(path, dpi=130)
    pyplot.close(fig)
