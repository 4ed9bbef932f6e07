"""Plots of an axis: where in depth the direction lives."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from karma_electric.core.plots import COLOURS, figure, save
from karma_electric.models.blocks import Site
from karma_electric.steer.axis import Axis
from karma_electric.steer.diagnostics import Diagnostics
from karma_electric.steer.verdict import STABLE_COSINE

_STYLES: dict[Site, str] = {"mlp": "-", "block": "--"}


def plot_norms(axis: Axis, layers: Sequence[int], out: Path, diagnostics: Diagnostics | None = None) -> None:
    """Length of the direction and its separation of unseen prompts (d'), per block and site.

    With diagnostics, d' is cross-fitted and stands beside what random directions and shuffled labels reach; without,
    it is what the extraction noted in the axis, or left out where that is nothing.
    """
    fig, (left, right) = figure(1, 2, height=3.8)
    blocks = range(axis.n_layers)
    for site, style in _STYLES.items():
        if site not in axis.directions:
            continue
        left.plot(blocks, axis.norms[site].tolist(), style, color=COLOURS["tuned"], label=f"site {site}")
        if diagnostics is not None:
            separated: Sequence[float] = diagnostics.sites[site].d_prime
        else:
            separated = axis.stats.get(site, {}).get("d_prime", [])
        right.plot(blocks[: len(separated)], separated, style, color=COLOURS["tuned"], label=f"site {site}")
    if diagnostics is not None:
        _shade_chance(right, diagnostics, "d_prime")
    for panel, label in (
        (left, "|d|, length of the direction"),
        (right, "d' on unseen prompts"),
    ):
        _mark(panel, layers)
        panel.set_xlabel("decoder block")
        panel.set_ylabel(label)
        panel.set_ylim(bottom=0)
    _legend(fig, right)
    save(fig, out)


def plot_separation(diagnostics: Diagnostics, layers: Sequence[int], out: Path) -> None:
    """Length against noise, AUC and d' of unseen prompts, per block and site, beside what chance reaches."""
    fig, (left, middle, right) = figure(1, 3, width=4.4, height=3.9)
    for site, style in _STYLES.items():
        if site not in diagnostics.sites:
            continue
        figures = diagnostics.sites[site]
        blocks = range(figures.n_layers)
        left.plot(blocks, figures.norm, style, color=COLOURS["tuned"], label=f"site {site}")
        left.plot(blocks, figures.noise, style, color=COLOURS["base"], label=f"noise alone, site {site}")
        middle.plot(blocks, figures.auc, style, color=COLOURS["tuned"])
        right.plot(blocks, figures.d_prime, style, color=COLOURS["tuned"])
    _shade_chance(middle, diagnostics, "auc")
    _shade_chance(right, diagnostics, "d_prime", label=False)
    for panel, label in (
        (left, "|d| and noise (log scale)"),
        (middle, "AUC on unseen prompts"),
        (right, "d' on unseen prompts"),
    ):
        _mark(panel, layers, label=panel is left)
        panel.set_xlabel("decoder block")
        panel.set_ylabel(label)
    left.set_yscale("log")
    middle.set_ylim(top=1.02)
    _legend(fig, left, middle)
    save(fig, out)


def plot_stability(diagnostics: Diagnostics, layers: Sequence[int], out: Path) -> None:
    """Cosine between the directions of two bootstrap resamples, with the range of 95% of the pairs."""
    sites = list(diagnostics.sites)
    fig, axes = figure(1, len(sites), width=4.4, height=3.8)
    panels = list(axes) if len(sites) > 1 else [axes]
    for panel, site in zip(panels, sites, strict=True):
        figures = diagnostics.sites[site]
        blocks = range(figures.n_layers)
        panel.fill_between(
            blocks,
            figures.resample_cosine_low,
            figures.resample_cosine_high,
            color=COLOURS["tuned"],
            alpha=0.25,
            lw=0,
            label="95% of the pairs",
        )
        panel.plot(blocks, figures.resample_cosine, color=COLOURS["tuned"], label="mean of all pairs")
        panel.axhline(STABLE_COSINE, color="black", lw=1, ls="--", label=f"expected: {STABLE_COSINE}")
        _mark(panel, layers)
        panel.set_title(f"site {site}", fontsize=10)
        panel.set_xlabel("decoder block")
    bottom = min(min(figures.resample_cosine_low) for figures in diagnostics.sites.values())
    for panel in panels:
        panel.set_ylim(min(bottom - 0.02, 0.89), 1.005)
    panels[0].set_ylabel(f"cosine of two resamples of {diagnostics.n} prompts")
    _legend(fig, panels[0])
    save(fig, out)


def plot_similarity(diagnostics: Diagnostics, layers: Sequence[int], out: Path) -> None:
    """Cosine between the directions of every two blocks, per site."""
    sites = list(diagnostics.sites)
    fig, axes = figure(1, len(sites), width=4.6, height=4.2)
    panels = list(axes) if len(sites) > 1 else [axes]
    image = None
    for panel, site in zip(panels, sites, strict=True):
        figures = diagnostics.sites[site]
        n_layers = figures.n_layers
        matrix = [[figures.cosine(a, b) for b in range(n_layers)] for a in range(n_layers)]
        # orange to white to blue: both ends differ in lightness from the middle, and in hue without red against green
        image = panel.imshow(matrix, vmin=-1, vmax=1, cmap="PuOr", origin="lower", interpolation="nearest")
        panel.add_patch(_square(layers))
        panel.grid(visible=False)
        panel.set_title(f"site {site}", fontsize=10)
        panel.set_xlabel("decoder block")
    panels[0].set_ylabel("decoder block")
    fig.colorbar(image, ax=panels, label="cosine of the directions", shrink=0.8)
    save(fig, out)


def plot_contrast(axis: Axis, site: Site, layers: Sequence[int], out: Path) -> None:
    """Distribution of the contrast prompts' projections at some blocks, persona-prompted and generic.

    These are the prompts the direction was made from: a picture of what the mean is a mean of, not of what it
    separates elsewhere.
    """
    columns = min(3, len(layers))
    rows = -(-len(layers) // columns)
    fig, axes = figure(rows, columns, width=3.6, height=2.6)
    panels = list(axes.flat) if rows * columns > 1 else [axes]
    both = axis.projections[site]  # [2, n, n_layers]
    for panel, layer in zip(panels, layers, strict=False):
        values = both[:, :, layer]
        low, high = float(values.min()), float(values.max())
        edges = [low + (high - low or 1.0) * step / 30 for step in range(31)]
        for side, colour, label in ((0, COLOURS["tuned"], "persona prompt"), (1, COLOURS["capped"], "generic prompts")):
            panel.hist(values[side].tolist(), bins=edges, color=colour, alpha=0.55, label=label)
        panel.set_axisbelow(True)
        panel.set_title(f"block {layer}", fontsize=9)
    for panel in panels[len(layers) :]:
        panel.set_visible(False)
    _legend(fig, panels[0], place="outside upper center")  # below is the label of the horizontal axes
    fig.supylabel("number of contrast prompts", fontsize=9)
    between = "; " if columns > 1 else "\n"
    fig.supxlabel(f"projection <h, v> at site {site}{between}higher is further from the persona", fontsize=9)
    save(fig, out)


def _shade_chance(panel: Any, diagnostics: Diagnostics, name: str, *, label: bool = True) -> None:
    """What random directions and shuffled labels reach: 95% of them, the wider of the sites."""
    chances = (
        ("random", "muted", "random directions (better sign), 95%"),
        ("shuffled", "unscored", "shuffled labels, 95%"),
    )
    for chance, colour, text in chances:
        lows, highs = (
            zip(*(getattr(f, f"{chance}_{name}_{end}") for f in diagnostics.sites.values()), strict=True)
            for end in ("low", "high")
        )
        low, high = [min(values) for values in lows], [max(values) for values in highs]
        named = {"label": text} if label else {}
        panel.fill_between(range(len(low)), low, high, color=COLOURS[colour], alpha=0.7, lw=0, **named)


def _mark(panel: Any, layers: Sequence[int], *, label: bool = True) -> None:
    """Shade the capped blocks."""
    if layers:
        named = {"label": "capped blocks"} if label else {}
        panel.axvspan(layers[0] - 0.5, layers[-1] + 0.5, color=COLOURS["partial"], alpha=0.2, lw=0, **named)


def _legend(fig: Any, *panels: Any, place: str = "outside lower center") -> None:
    """One legend for the whole figure, beside the panels: inside one it would cover what is drawn."""
    found = [pair for panel in panels for pair in zip(*panel.get_legend_handles_labels(), strict=True)]
    fig.legend(*zip(*found, strict=True), loc=place, ncols=min(len(found), 4), fontsize=8)


def _square(layers: Sequence[int]) -> Any:
    from matplotlib.patches import Rectangle

    start, size = (layers[0], layers[-1] - layers[0] + 1) if layers else (0, 0)
    return Rectangle((start - 0.5, start - 0.5), size, size, fill=False, lw=1.5, edgecolor="black")
