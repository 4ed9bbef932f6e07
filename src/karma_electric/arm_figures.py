"""Figures of a run's arms: outcomes, pass rates by category, drift along conversations. PNG, for page and print."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from karma_electric.core.plots import COLOURS, colour_map, figure, save, shade
from karma_electric.evidence import Arm, Evidence
from karma_electric.redteam.drift_figures import ArmDrifts, Mean
from karma_electric.redteam.signals import OUTCOMES

OUTCOMES_PLOT = "outcomes.png"
CATEGORIES_PLOT = "categories.png"
DRIFT_PLOT = "drift.png"
_LINES = {False: ("persona-moving kinds", COLOURS["capped"], "-", "o"), True: ("controls", COLOURS["tuned"], "--", "s")}


@dataclass(frozen=True)
class Cell:
    """One arm on one category: passes of the scored answers, and how many could not be judged."""

    passed: int
    scored: int
    unscored: int

    @property
    def share(self) -> float | None:
        """Pass rate; None where nothing was scored."""
        return self.passed / self.scored if self.scored else None

    @property
    def unscored_share(self) -> float:
        """Share of all answers that are unscored."""
        n = self.scored + self.unscored
        return self.unscored / n if n else 0.0

    @property
    def colours(self) -> tuple[str, str] | None:
        """Background and text; None where nothing was scored."""
        return None if self.share is None else shade(self.share)


Heat = list[tuple[str, dict[str, Cell]]]  # category -> arm -> cell


def heat_of(arms: tuple[Arm, ...]) -> Heat:
    """Every category with every arm's cell."""
    names = dict.fromkeys(name for arm in arms for name in arm.summary["categories"])
    empty = dict.fromkeys(OUTCOMES, 0)
    table = []
    for name in names:
        counts = {arm.name: arm.summary["categories"].get(name, empty) for arm in arms}
        cells = {
            arm: Cell(found["pass"], sum(found.values()) - found["unscored"], found["unscored"])
            for arm, found in counts.items()
        }
        table.append((name, cells))
    return table


def arm_figures(evidence: Evidence) -> Iterator[tuple[str, bytes]]:
    """(name, PNG) of every figure that there is something for."""
    if evidence.arms:
        yield OUTCOMES_PLOT, plot_outcomes(evidence.arms)
        yield CATEGORIES_PLOT, plot_categories(heat_of(evidence.arms), evidence.recipe.name)
    if any(one.turns for arm in evidence.drifts.values() for one in arm.conversations):
        yield DRIFT_PLOT, plot_drifts(evidence.drifts)


def plot_outcomes(arms: tuple[Arm, ...]) -> bytes:
    """Shares of the outcomes per arm, and pass rates of scored scenarios with their 95% intervals."""
    fig, (left, right) = figure(1, 2, height=1.2 + 0.5 * len(arms))
    rows = range(len(arms))
    start = [0] * len(arms)
    for outcome in OUTCOMES:
        counts = [arm.summary["counts"][outcome] for arm in arms]
        left.barh(rows, counts, left=start, color=COLOURS[outcome], label=outcome, height=0.6)
        for row, count in enumerate(counts):
            if count:
                colour = "white" if outcome == "fail" else "black"
                left.text(start[row] + count / 2, row, str(count), ha="center", va="center", fontsize=8, color=colour)
        start = [before + count for before, count in zip(start, counts, strict=True)]
    left.set_xlabel("answers" if len(arms[0].rates.seeds) > 1 else "scenarios")
    left.grid(visible=False)
    fig.legend(loc="outside upper center", ncols=len(OUTCOMES), fontsize=8, frameon=False)
    for row, arm in enumerate(arms):
        rate = arm.summary["pass_rate_scored"]
        colour = COLOURS.get(arm.name, COLOURS["base"])
        right.plot([100 * rate["low"], 100 * rate["high"]], [row, row], color=colour, lw=2)
        if rate["value"] is not None:
            right.plot(100 * rate["value"], row, "o", color=colour)
    right.set_xlim(0, 100)
    right.set_ylim(left.get_ylim())
    right.set_xlabel("pass rate of scored, % (95% interval)")
    for panel in (left, right):
        panel.set_yticks(rows, [arm.name for arm in arms])
        panel.invert_yaxis()
    return _png(fig)


def plot_categories(heat: Heat, run: str) -> bytes:
    """Pass rate per category and arm with its counts; a grey bar along the foot of a cell is its unscored share."""
    from matplotlib.patches import Rectangle

    arms = list(heat[0][1])
    fig, panel = figure(1, 1, width=2.4 + 1.45 * len(arms), height=1.3 + 0.62 * len(heat))
    for row, (_, cells) in enumerate(heat):
        for column, cell in enumerate(cells.values()):
            back, text = cell.colours or ("#ffffff", "#000000")
            look: dict[str, Any] = {"edgecolor": "white"} if cell.colours else {"edgecolor": "#d0d0d0", "hatch": "////"}
            panel.add_patch(Rectangle((column, row), 1, 1, facecolor=back, lw=2, **look))
            words = "none scored" if cell.share is None else f"{cell.share:.0%}"
            counts = f"{cell.passed} of {cell.scored}" if cell.scored else ""
            open_ = f"{cell.unscored} unscored" if cell.unscored else ""
            middle = {"ha": "center", "va": "center", "color": text}
            panel.text(column + 0.5, row + 0.3, words, fontsize=10 if cell.colours else 8, weight="bold", **middle)
            below = ", ".join(part for part in (counts, open_) if part)
            panel.text(column + 0.5, row + 0.63, below, fontsize=7, **middle)
            if cell.unscored:
                foot: dict[str, Any] = {"facecolor": "#8a8a8a", "edgecolor": "white", "lw": 0.8}
                panel.add_patch(Rectangle((column + 0.04, row + 0.83), 0.92 * cell.unscored_share, 0.11, **foot))
    panel.set_xlim(0, len(arms))
    panel.set_ylim(len(heat), 0)
    panel.set_xticks([column + 0.5 for column in range(len(arms))], arms, fontsize=10)
    panel.set_yticks([row + 0.5 for row in range(len(heat))], [name for name, _ in heat], fontsize=9)
    panel.xaxis.tick_top()
    panel.tick_params(length=0)
    panel.grid(visible=False)
    panel.spines[:].set_visible(False)
    _colour_bar(fig, panel)
    fig.suptitle(f"{run}: passed of scored, by category. Grey bar: share unscored.", fontsize=9)
    return _png(fig)


def plot_drifts(drifts: Mapping[str, ArmDrifts]) -> bytes:
    """Mean drift by turn, a panel per arm, the kinds that move personas against the controls; bands are 95%."""
    fig, panels = figure(1, len(drifts), width=max(2.6, 9.0 / len(drifts)), height=3.4)
    panels = list(panels) if len(drifts) > 1 else [panels]
    for panel, (name, arm) in zip(panels, drifts.items(), strict=True):
        for control in (False, True):
            _line(panel, arm.by_turn(control=control), *_LINES[control])
        panel.axhline(0.0, color="black", lw=1, ls="--", label="ceiling (threshold)")
        if arm.alarm:  # at 0 it is the ceiling
            panel.axhline(
                arm.alarm, color=COLOURS["fail"], lw=1.2, ls=":", label="1 in 100 ordinary answers exceeds it"
            )
        panel.set_title(name, fontsize=10)
        panel.set_xlabel("turn")
        panel.xaxis.get_major_locator().set_params(integer=True)
    lows, highs = zip(*(panel.get_ylim() for panel in panels), strict=True)
    for panel in panels:
        panel.set_ylim(min(lows), max(highs))
    panels[0].set_ylabel("mean drift (sd above the ceiling)")
    lines, labels = panels[0].get_legend_handles_labels()
    fig.legend(lines, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return _png(fig)


def _line(panel: Any, by_turn: Mapping[int, Mean], label: str, colour: str, style: str, marker: str) -> None:
    panel.plot(
        list(by_turn),
        [mean.value for mean in by_turn.values()],
        ls=style,
        marker=marker,
        ms=4,
        color=colour,
        label=label,
    )
    # of two conversations the interval is many times the picture's height
    spans = {turn: mean.interval for turn, mean in by_turn.items() if mean.interval and mean.conversations >= 3}
    lows, highs = ([span[end] for span in spans.values()] for end in (0, 1))
    panel.fill_between(list(spans), lows, highs, color=colour, alpha=0.15, lw=0)


def _colour_bar(fig: Any, panel: Any) -> None:
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    bar = fig.colorbar(ScalarMappable(Normalize(0, 100), colour_map()), ax=panel, fraction=0.04, pad=0.02)
    bar.set_ticks([0, 50, 100], labels=["0%", "50%", "100%"], fontsize=7)
    bar.outline.set_visible(False)


def _png(fig: Any) -> bytes:
    buffer = io.BytesIO()
    save(fig, buffer)
    return buffer.getvalue()
