"""Renders a run as one HTML page that needs nothing beside it: no script, no network, images inside.

What models answered is untrusted text. The template escapes everything, and the page forbids itself scripts and
foreign content besides.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from karma_electric.core.artifact import write_atomic
from karma_electric.core.plots import COLOURS, figure, save
from karma_electric.core.recipe import Recipe
from karma_electric.evidence import Arm, Evidence, Transcript, read_run
from karma_electric.rendering import environment

PAGE = "index.html"
OUTCOMES_PLOT = "outcomes.png"
_TEMPLATE = "report.html.jinja"
_OUTCOMES = ("pass", "partial", "fail", "unscored")
_FIGURES = (
    ("adapter", "loss.png", "Loss and token accuracy over training"),
    (
        "axis",
        "norms.png",
        "Length of the axis per block before it is made a unit vector, and how far it sets the two sides apart",
    ),
    ("axis", "projections.png", "Projections of response tokens on the axis, and the thresholds"),
    ("axis", "cap_rates.png", "How often and how hard the cap acts on held-out responses, by kind of response"),
)


def write_report(run: Path, recipe: Recipe, out: Path) -> None:
    """Write index.html, and outcomes.png (the outcomes of all arms, for use elsewhere), to `out`.

    Args:
        run: folder of the run; stages that are missing leave visible gaps.
        recipe: the recipe of the run.
        out: folder, made if absent.

    Raises:
        ArtifactError: a damaged file in the run.
    """
    evidence = read_run(run, recipe)
    out.mkdir(parents=True, exist_ok=True)
    if evidence.arms:
        plot_outcomes(evidence.arms, out / OUTCOMES_PLOT)
    write_atomic(out / PAGE, _page(evidence))


def render_report(run: Path, recipe: Recipe) -> str:
    """The page alone, as `write_report` writes it.

    Raises:
        ArtifactError: a damaged file in the run.
    """
    return _page(read_run(run, recipe))


def _page(evidence: Evidence) -> str:
    recipe = evidence.recipe
    return (
        environment(autoescape=True)
        .get_template(_TEMPLATE)
        .render(
            e=evidence,
            recipe=recipe,
            colours=COLOURS,
            outcomes=_OUTCOMES,
            categories=_categories(evidence),
            flips=flips(evidence),
            figures={name: (evidence.image(stage, name), stage, title) for stage, name, title in _FIGURES},
            settings=_settings(recipe),
        )
    )


def flips(evidence: Evidence) -> list[tuple[str, str, dict[str, list[Transcript]]]]:
    """Per compared pair of arms and per scenario, the transcripts whose outcome is not the same in both."""
    found = []
    for c in evidence.comparisons:
        changed: dict[str, list[Transcript]] = {}
        for transcript in evidence.transcripts:
            if transcript.differs(c.first, c.second):
                changed.setdefault(transcript.id, []).append(transcript)
        found.append((c.first, c.second, changed))
    return found


def plot_outcomes(arms: tuple[Arm, ...], path: Path) -> None:
    """Shares of the outcomes per arm, and pass rates of scored scenarios with their 95% intervals, as a PNG."""
    fig, (left, right) = figure(1, 2, height=1.2 + 0.5 * len(arms))
    rows = range(len(arms))
    start = [0] * len(arms)
    for outcome in _OUTCOMES:
        counts = [arm.summary["counts"][outcome] for arm in arms]
        left.barh(rows, counts, left=start, color=COLOURS[outcome], label=outcome, height=0.6)
        for row, count in enumerate(counts):
            if count:
                colour = "white" if outcome == "fail" else "black"
                left.text(start[row] + count / 2, row, str(count), ha="center", va="center", fontsize=8, color=colour)
        start = [before + count for before, count in zip(start, counts, strict=True)]
    left.set_xlabel("scenarios")
    left.grid(visible=False)
    fig.legend(loc="outside upper center", ncols=len(_OUTCOMES), fontsize=8, frameon=False)
    for row, arm in enumerate(arms):
        rate = arm.summary["pass_rate_scored"]
        colour = COLOURS.get(arm.name, COLOURS["base"])
        right.plot([100 * rate["low"], 100 * rate["high"]], [row, row], color=colour, lw=2)
        if rate["value"] is not None:
            right.plot(100 * rate["value"], row, "o", color=colour)
    right.set_xlim(0, 100)
    right.set_ylim(left.get_ylim())
    right.set_xlabel("pass rate of scored scenarios, % (95% interval)")
    for panel in (left, right):
        panel.set_yticks(rows, [arm.name for arm in arms])
        panel.invert_yaxis()
    save(fig, path)


def _categories(evidence: Evidence) -> list[tuple[str, dict[str, dict[str, Any]]]]:
    """Per category and arm: passes, scored answers, and the share for the colour of the cell (None unscored)."""
    names = dict.fromkeys(name for arm in evidence.arms for name in arm.summary["categories"])
    table = []
    for name in names:
        cells = {}
        for arm in evidence.arms:
            counts = arm.summary["categories"].get(name, dict.fromkeys(_OUTCOMES, 0))
            scored = sum(counts.values()) - counts["unscored"]
            share = counts["pass"] / scored if scored else None
            cells[arm.name] = {"passed": counts["pass"], "scored": scored, "share": share}
        table.append((name, cells))
    return table


def _settings(recipe: Recipe) -> dict[str, dict[str, str]]:
    """Section -> key -> value as JSON, for every key of the recipe."""
    values = recipe.model_dump(mode="json")
    sections = {name: section for name, section in values.items() if isinstance(section, dict)}
    return {
        section: {
            key: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            for key, value in keys.items()
        }
        for section, keys in sections.items()
    }
