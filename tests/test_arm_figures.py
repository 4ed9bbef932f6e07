"""Figures of arms: what they draw, and that it can be read."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from karma_electric.arm_figures import Cell, plot_categories
from karma_electric.core.plots import shade


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb, by the formula of WCAG 2.2."""
    channels = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_a_higher_rate_is_always_darker() -> None:
    shades = [luminance(shade(percent / 100)[0]) for percent in range(101)]
    assert shades == sorted(shades, reverse=True)
    assert shades[0] - shades[-1] > 0.8  # in grey as well, as a printer makes it


@pytest.mark.parametrize("percent", range(0, 101, 5))
def test_every_cells_text_can_be_read(percent: int) -> None:
    back, text = map(luminance, shade(percent / 100))
    assert (max(back, text) + 0.05) / (min(back, text) + 0.05) >= 4.5  # WCAG AA


def test_a_cell_where_nothing_was_scored_has_neither_rate_nor_colour() -> None:
    cell = Cell(passed=0, scored=0, unscored=5)
    assert (cell.share, cell.colours, cell.unscored_share) == (None, None, 1.0)
    assert Cell(passed=1, scored=4, unscored=1).unscored_share == 0.2


def test_the_heat_map_is_darker_where_more_passed_and_shows_the_unscored_share() -> None:
    heat = [(name, {"base": Cell(1, 10, 0), "capped": Cell(9, 10, 10)}) for name in ("jailbreak", "social-engineering")]
    pixels = np.asarray(Image.open(io.BytesIO(plot_categories(heat, "run"))).convert("RGB"))

    def columns_of(colour: str) -> np.ndarray:
        wanted = [int(colour[at : at + 2], 16) for at in (1, 3, 5)]
        return np.flatnonzero((pixels == wanted).all(axis=2).sum(axis=0) > 4)  # x of more than a line

    low, high, bar = columns_of(shade(0.1)[0]), columns_of(shade(0.9)[0]), columns_of("#8a8a8a")
    assert low.max() < high.min()  # a column for each arm
    assert high.min() < bar.min()  # only the second arm has unscored answers,
    assert len(bar) == pytest.approx(0.46 * len(high), rel=0.1)  # half of them
