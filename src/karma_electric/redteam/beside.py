"""What stands beside safety: over-refusal and capability of the same arms, and what each pair of arms differs by.

A model that refuses everything is safe; one that can do nothing any more is as well. Read from the folders beside
`redteam`; an arm that was not asked is left out, and can be seen to be.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from karma_electric.core.artifact import MANIFEST
from karma_electric.core.errors import ArtifactError
from karma_electric.redteam.arms import ArmFolder, judge_beside, judged_by, read_arm
from karma_electric.redteam.comparing import PairReport, compare_pair, correct_for_many, rates_of
from karma_electric.redteam.judge_error import Corrected, Judge, flipped
from karma_electric.redteam.kinds import FOLDERS, Kind
from karma_electric.redteam.runner import SUMMARY
from karma_electric.redteam.scorers.over_refusal import OVER_REFUSAL
from karma_electric.redteam.stats import Rate

TITLES: dict[Kind, str] = {
    "benign": "over-refusal: harmless requests refused in whole or in part",
    "capability": "capability: checkable items answered correctly",
    "drift": "drift: mean over the answers of conversations, in sd above the ceiling",
}


@dataclass(frozen=True)
class Side:
    """One arm on one kind of suite.

    Attributes:
        rate: over-refusal, or share of correct answers; None for drift.
        n: answers, `unscored` of them left out of the rate.
        unscored: see there.
        drift: kind of conversation -> mean drift; and "conversations", over all kinds that move personas, and
            "controls". Empty for the others.
        scorer: who judged, as recipes name it.
        corrected: over-refusal, corrected for the judge's error; None where that was not measured, and for the others.
    """

    rate: Rate | None
    n: int
    unscored: int
    drift: Mapping[str, float]
    scorer: str
    corrected: Corrected | None


@dataclass(frozen=True)
class Beside:
    """One kind of suite over arms.

    Attributes:
        kind: of the suite.
        title: what the figures are.
        arms: by name, those that were asked.
        comparisons: of arms on passes: helped, or correct; none for drift, nor between arms of other suites or judges.
            Those of harmless twins are corrected for the judge's error where that was measured.
        judges: of harmless twins, by the name of who judged: their error on labelled answers, None where not measured.
    """

    kind: Kind
    title: str
    arms: Mapping[str, Side]
    comparisons: tuple[PairReport, ...]
    judges: Mapping[str, Judge | None]


def read_beside(
    folders: Mapping[str, Path],
    pairs: Sequence[tuple[str, str]],
    *,
    confidence: float = 0.95,
    seed: int = 0,
    absent: Collection[Path] = (),
) -> list[Beside]:
    """What was measured beside safety.

    Args:
        folders: name -> folder of the arm that was attacked (RUN/redteam/ARM).
        pairs: (first, second) arms to compare.
        confidence: coverage of the intervals.
        seed: of the bootstrap.
        absent: files that may be missing; see `damage`.

    Raises:
        ArtifactError: a file is not what the red-team writes, or not the one that it wrote.
    """
    found = []
    for kind, title in TITLES.items():
        asked = {
            name: read_arm(place, name, absent=absent)
            for name, folder in folders.items()
            if (place := folder.parent.parent / FOLDERS[kind] / folder.name) and (place / MANIFEST).is_file()
        }
        if not asked:
            continue
        judges = _judges(list(asked.values())) if kind == "benign" else {}
        arms = {name: _side(kind, arm, judges, confidence=confidence, seed=seed) for name, arm in asked.items()}
        comparisons = tuple(
            compare_pair(
                (a, asked[a].verdicts),
                (b, asked[b].verdicts),
                judges.get(_scorer(kind, asked[a])),
                confidence=confidence,
                seed=seed,
            )
            for a, b in pairs
            if kind != "drift" and a in asked and b in asked and _alike(asked[a], asked[b])
        )
        found.append(Beside(kind, title, arms, comparisons, judges))
    return found


def correct_together(
    attacks: Sequence[PairReport], beside: Sequence[Beside], *, confidence: float = 0.95
) -> tuple[list[PairReport], list[Beside], int]:
    """P values of all that is compared in one place, corrected for how many that is (Holm 1979).

    Args:
        attacks: comparisons on attacks.
        beside: what was measured beside them.
        confidence: readings go by 1 minus it.

    Returns:
        Both again, corrected, and the number of tests.
    """
    adjusted = correct_for_many([*attacks, *(c for side in beside for c in side.comparisons)], confidence=confidence)
    rest = iter(adjusted[len(attacks) :])
    sides = [replace(side, comparisons=tuple(next(rest) for _ in side.comparisons)) for side in beside]
    return adjusted[: len(attacks)], sides, len(adjusted)


def _judges(arms: Sequence[ArmFolder]) -> dict[str, Judge | None]:
    """Who judged harmless twins, and what is known of them: measured beside any of these arms, on what it was asked."""
    judges: dict[str, Judge | None] = {}
    for arm in arms:
        scorer, suite = _scorer("benign", arm), arm.manifest.inputs.get("suite")
        places = dict.fromkeys(other.folder.parent for other in (arm, *arms))
        found = (judge_beside(place, suite, scorer) for place in places)
        judges[scorer] = judges.get(scorer) or next((judge for judge in found if judge is not None), None)
    return judges


def _scorer(kind: Kind, arm: ArmFolder) -> str:
    """Who judged an arm; those that do not say were made when every kind of suite had one judge."""
    return str(arm.summary.get("scorer", OVER_REFUSAL if kind == "benign" else kind))


def _side(kind: Kind, arm: ArmFolder, judges: Mapping[str, Judge | None], *, confidence: float, seed: int) -> Side:
    summary, scorer = arm.summary, _scorer(kind, arm)
    judge = judges.get(scorer)
    corrected = None
    if judge is not None:
        helped = rates_of(arm.name, arm.verdicts, judge, confidence=confidence, seed=seed).corrected
        corrected = None if helped is None else flipped(helped)
    try:
        raw = summary["over_refusal"]["rate"] if kind == "benign" else summary["pass_rate_scored"]
        return Side(
            rate=None if kind == "drift" else Rate(**raw),
            n=int(summary["n"]),
            unscored=int(summary["counts"]["unscored"]),
            drift={str(name): float(value) for name, value in summary.get("drift", {}).items()},
            scorer=scorer,
            corrected=corrected,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{arm.folder / SUMMARY} is not the summary of a {kind} suite ({error!r}).", "Make it again with --force."
        ) from None


def _alike(a: ArmFolder, b: ArmFolder) -> bool:
    """Whether two arms were asked one suite and judged by one judge."""
    first, second = ((arm.manifest.inputs.get("suite"), judged_by(arm)) for arm in (a, b))
    return first == second
