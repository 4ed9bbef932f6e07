"""Plots of an axis and of a cap: where in depth the direction lives, and how much of the text the cap touches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from karma_electric.core.plots import COLOURS, figure, save
from karma_electric.models.blocks import Site
from karma_electric.steer.axis import Axis
from karma_electric.steer.spec import CapSpec


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


def plot_projections(projections: dict[str, dict[int, list[float]]], spec: CapSpec, out: Path) -> None:
    """Distribution of the projection of response tokens per capped block, with the threshold."""
    columns = min(3, len(spec.layers))
    rows = -(-len(spec.layers) // columns)
    fig, axes = figure(rows, columns, width=3.6, height=2.6)
    panels = list(axes.flat) if rows * columns > 1 else [axes]
    for panel, layer in zip(panels, spec.layers, strict=False):
        for split, colour in (("calibration", COLOURS["tuned"]), ("heldout", COLOURS["capped"])):
            panel.hist(
                projections[split][layer],
                bins=60,
                density=True,
                histtype="step",
                color=colour,
                label=f"{split} tokens",
            )
        panel.axvline(spec.thresholds[layer], color="black", lw=1, ls="--", label="threshold t")
        rate = spec.cap_rate[str(layer)]
        panel.set_title(f"block {layer}: {rate:.0%} of held-out tokens capped", fontsize=9)
        panel.set_yticks([])
    for panel in panels[len(spec.layers) :]:
        panel.set_visible(False)
    panels[0].legend(fontsize=7)
    fig.supxlabel("projection <h, v> of response tokens; higher is further from the persona", fontsize=9)
    save(fig, out)
