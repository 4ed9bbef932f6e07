"""Renders a run as one HTML page that needs nothing beside it: no script, no network, images inside.

What models answered is untrusted text. The template escapes everything, and the page forbids itself scripts and
foreign content besides.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from html import escape
from pathlib import Path

from karma_electric.arm_figures import DRIFT_PLOT, arm_figures, heat_of
from karma_electric.core.artifact import write_atomic
from karma_electric.core.plots import COLOURS
from karma_electric.core.recipe import Recipe
from karma_electric.evidence import Evidence, Transcript, read_run
from karma_electric.rendering import environment, judge_in_words, judged_by_raters

PAGE = "index.html"
MOST_TEXT = 1_500_000  # bytes of transcripts on a page, so that it stays below 3 MB with its figures
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


def render_report(run: Path, recipe: Recipe) -> tuple[str, dict[str, bytes]]:
    """The page and the figures, as `write_report` writes them.

    Raises:
        GateError, ArtifactError: a file of the run is not what was made; see `read_run`.
    """
    evidence = read_run(run, recipe)
    figures = dict(arm_figures(evidence))
    return _page(evidence, figures.get(DRIFT_PLOT)), figures


def write_report(run: Path, recipe: Recipe, out: Path) -> None:
    """Write index.html, and the figures of the arms for use elsewhere (see `arm_figures`), to `out`.

    Args:
        run: folder of the run; stages that are missing leave visible gaps.
        recipe: the recipe of the run.
        out: folder, made if absent.

    Raises:
        GateError, ArtifactError: a file of the run is not what was made; see `read_run`.
    """
    page, figures = render_report(run, recipe)
    out.mkdir(parents=True, exist_ok=True)
    for name, image in figures.items():
        write_atomic(out / name, image)
    write_atomic(out / PAGE, page)


def _page(evidence: Evidence, drift: bytes | None) -> str:
    recipe = evidence.recipe
    return (
        environment(autoescape=True)
        .get_template(_TEMPLATE)
        .render(
            e=evidence,
            recipe=recipe,
            colours=COLOURS,
            outcomes=_OUTCOMES,
            heat=heat_of(evidence.arms),
            flips=flips(evidence),
            shown=shown(evidence, MOST_TEXT),
            figures={name: (evidence.image(stage, name), stage, title) for stage, name, title in _FIGURES},
            drift=drift,
            kinds=dict.fromkeys(kind for arm in evidence.drifts.values() for kind in arm.by_kind()),
            settings=_settings(recipe),
            judged_by=judge_in_words(evidence.scorer)
            + ("" if judged_by_raters(evidence.scorer) else ", not by people"),
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


def shown(evidence: Evidence, most: int) -> set[str]:
    """Anchors of the transcripts that the page holds in full: all, where there is room for `most` bytes of them.

    First, of every scenario that changed between two arms, the first seed under which it did; then one seed of every
    other scenario; then the rest of those that changed, and whatever still fits.
    """
    changed = [t for c in evidence.comparisons for t in evidence.transcripts if t.differs(c.first, c.second)]
    first = list({t.id: t for t in reversed(changed)}.values())[::-1]
    seen = {t.id for t in first}
    others = list({t.id: t for t in reversed(evidence.transcripts) if t.id not in seen}.values())[::-1]
    kept: set[str] = set()
    for tier in (first, others, changed, evidence.transcripts):
        for transcript in _in_turn(tier):
            size = _size(transcript) if transcript.anchor not in kept else 0
            if size <= most:
                kept.add(transcript.anchor)
                most -= size
    return kept


def _in_turn(transcripts: Sequence[Transcript]) -> list[Transcript]:
    """The categories by turns, so that none is left out because it comes last."""
    places: Counter[str] = Counter()
    ranked = []
    for transcript in transcripts:
        ranked.append((places[transcript.category], transcript))
        places[transcript.category] += 1
    return [transcript for _, transcript in sorted(ranked, key=lambda pair: pair[0])]


def _size(transcript: Transcript) -> int:
    """About how many bytes of the page a transcript takes: text, and what stands around it."""
    texts = [turn.prompt for turn in transcript.turns]
    texts += [answer.text for turn in transcript.turns for answer in turn.answers.values()]
    texts += [verdict.evidence for verdict in transcript.verdicts.values()]
    scenario = transcript.scenario
    texts += [scenario.pass_criteria, scenario.fail_criteria] if scenario else []
    around = 300 + len(transcript.verdicts) * (200 + 120 * len(transcript.turns))
    return around + sum(len(escape(text).encode()) for text in texts)


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
