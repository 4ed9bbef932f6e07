"""Plots of an axis: where in depth the direction lives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from karma_electric.core.plots import COLOURS, figure, save
from karma_electric.models.blocks import Site
from karma_electric.steer.axis import Axis


def plot_norms(axis: Axis, layers: Sequence[int], out: Path) -> None:
    """Length of the direction and its separation of unseen prompts (d'), per block and site."""
    fig, (left, right) = figure(1, 2)
    blocks = range(axis.n_layers)
    styles: dict[Site, str] = {"mlp": "-", "block": "--"}
    for site, style in styles.items():
        left.plot(blocks, axis.norms[site].tolist(), style, color=COLOURS["tuned"], label=f"site {site}")
        right.plot(blocks, axis.stats[site]["d_prime"], style, color=COLOURS["tuned"], label=f"site {site}")
    for panel, label in (
        (left, "|d|, length of the direction"),
        (right, "d', persona against generic prompts"),
    ):
        panel.axvspan(layers[0] - 0.5, layers[-1] + 0.5, color=COLOURS["partial"], alpha=0.2, label="capped blocks")
        panel.set_xlabel("decoder block")
        panel.set_ylabel(label)
        panel.set_ylim(bottom=0)
    left.legend()
    save(fig, out)
