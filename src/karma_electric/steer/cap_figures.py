"""Plots of a cap: where its thresholds lie among the projections, and how often and how hard it acts."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from karma_electric.core.plots import COLOURS, figure, save
from karma_electric.steer.projections import Action, Projections
from karma_electric.steer.responses import RESPONSE_KINDS
from karma_electric.steer.spec import CapSpec

_COLOURS = {"deployment": COLOURS["tuned"], "generic": COLOURS["base"], "adversarial": COLOURS["capped"]}
_NAMES = {"calibration": "calibration", "heldout": "held-out"}
_STYLES = {"calibration": "-", "heldout": ":"}


def plot_projections(uncapped: Mapping[str, Projections], spec: CapSpec, out: Path) -> None:
    """Distribution of the projections of response tokens without the cap, per capped block, split and kind.

    Args:
        uncapped: split -> projections.
        spec: the cap.
        out: a PNG.
    """
    import numpy as np

    columns = min(3, len(spec.layers))
    rows = -(-len(spec.layers) // columns)
    fig, axes = figure(rows, columns, width=3.8 if columns > 1 else 7.0, height=2.7)
    panels = list(axes.flat) if rows * columns > 1 else [axes]
    for panel, layer in zip(panels, spec.layers, strict=False):
        every = np.concatenate([seen.values[layer] for seen in uncapped.values()])
        low, high = np.quantile(every, [0.001, 0.999])
        edges = np.linspace(min(low, spec.thresholds[layer]), max(high, spec.thresholds[layer]), 46)
        for kind in RESPONSE_KINDS:
            for split, seen in uncapped.items():
                values = seen.values[layer][seen.token_kinds == kind]
                if len(values):
                    panel.hist(
                        values,
                        bins=edges,
                        density=True,
                        histtype="step",
                        color=_COLOURS[kind],
                        ls=_STYLES[split],
                        lw=1.3,
                        label=f"{kind}, {_NAMES[split]}",
                    )
        panel.axvline(spec.thresholds[layer], color="black", lw=1, ls="--", label="threshold t")
        panel.set_title(f"block {layer}: {spec.cap_rate[str(layer)]:.0%} of held-out tokens capped", fontsize=9)
        panel.set_yticks([])
    for panel in panels[len(spec.layers) :]:
        panel.set_visible(False)
    handles, labels = panels[0].get_legend_handles_labels()
    fig.legend(handles, labels, fontsize=7, ncols=4, loc="outside upper center", frameon=False)
    fig.supxlabel("projection <h, v> of response tokens, uncapped; higher is further from the persona", fontsize=9)
    save(fig, out)


def plot_cap_rates(heldout: Action, spec: CapSpec, out: Path) -> None:
    """Cap rate and dose per capped block on held-out responses while the cap acts, by kind and with their weights."""
    fig, (left, right) = figure(1, 2, width=4.6)
    blocks = [str(layer) for layer in spec.layers]
    lines: list[tuple[str, Action, dict[str, Any]]] = [
        (f"{kind} ({action.responses} responses)", action, {"color": _COLOURS[kind]})
        for kind, action in heldout.kinds.items()
    ]
    lines.append(("all, weighted", heldout, {"color": "black", "lw": 2}))
    for label, action, style in lines:
        left.plot(blocks, [action.cap_rate[block] for block in blocks], marker="o", ms=3, label=label, **style)
        right.plot(blocks, [action.dose[block] for block in blocks], marker="o", ms=3, **style)
    left.set_ylim(0, 1)
    left.set_ylabel("cap rate: share of tokens above t")
    right.set_ylim(bottom=0)
    right.set_ylabel(f"dose: mean |dh| / |h| at alpha {spec.alpha:g}")
    for panel in (left, right):
        panel.set_xlabel("decoder block")
    left.legend(fontsize=7)
    fig.suptitle("Held-out responses, measured while the cap acts", fontsize=10)
    save(fig, out)
