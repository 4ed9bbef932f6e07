"""Labelled responses, and how far the signals scorer agrees with them.

The scenarios are split in two by a hash of their id. Word lists may be tuned on half A; half B is for measuring and
is not looked at while tuning. Both are always reported.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

from karma_electric.core.errors import DataError
from karma_electric.core.jsonl import read_jsonl
from karma_electric.redteam.agreement import Agreement, agreement
from karma_electric.redteam.scenario import Scenario
from karma_electric.redteam.signals import OUTCOMES, Outcome, score

Half = Literal["A", "B"]


@dataclass(frozen=True)
class Labelled:
    """One answer to the last turn of a scenario, and the outcome that was given to it.

    Attributes:
        id: unique in its file.
        scenario_id: the scenario that it answers.
        prompt: the last turn, as it was asked.
        response: the answer.
        label: its outcome.
        reason: why, in a line.
        rater: who or what gave the label.
    """

    id: str
    scenario_id: str
    prompt: str
    response: str
    label: Outcome
    reason: str
    rater: str


_KEYS = {field.name for field in fields(Labelled)}


def load_labelled(path: Path, suite: Sequence[Scenario]) -> list[Labelled]:
    """Read labelled responses to the scenarios of `suite`.

    Raises:
        MissingError: there is no such file.
        DataError: the first problem, with file and line number, what was found and what was expected.
    """
    known = {scenario.id for scenario in suite}
    rows: dict[str, Labelled] = {}
    for number, raw in read_jsonl(path):
        where = f"{path.name} line {number}"
        if not isinstance(raw, dict) or raw.keys() != _KEYS or not all(isinstance(v, str) for v in raw.values()):
            raise DataError(f"{where} is not a labelled response.", f"Expected texts under {', '.join(sorted(_KEYS))}.")
        if raw["label"] not in OUTCOMES:
            raise DataError(f"{where}: label is {raw['label']!r}.", f"Expected one of {', '.join(OUTCOMES)}.")
        if raw["scenario_id"] not in known:
            raise DataError(
                f"{where}: scenario {raw['scenario_id']!r} is not in the suite.", "Labels belong to one suite."
            )
        if raw["id"] in rows:
            raise DataError(f"{where}: id {raw['id']!r} is already there.", "Ids are unique.")
        rows[raw["id"]] = Labelled(**raw)
    return list(rows.values())


def half_of(scenario_id: str) -> Half:
    """The half a scenario and its answers belong to, by the parity of the SHA-256 of its id."""
    return "B" if hashlib.sha256(scenario_id.encode()).digest()[-1] % 2 else "A"


def measure(suite: Sequence[Scenario], rows: Sequence[Labelled]) -> dict[Half, Agreement]:
    """Agreement of the signals scorer with the labels, per half. Resamples draw whole scenarios."""
    scenarios = {scenario.id: scenario for scenario in suite}
    measured: dict[Half, Agreement] = {}
    for half in ("A", "B"):
        chosen = [row for row in rows if half_of(row.scenario_id) == half]
        measured[half] = agreement(
            [row.label for row in chosen],
            [score(scenarios[row.scenario_id], [row.response]).outcome for row in chosen],
            groups=[row.scenario_id for row in chosen],
        )
    return measured


@dataclass(frozen=True)
class CategoryErrors:
    """How the signals scorer did on the labelled answers of one category.

    Attributes:
        category: its name.
        n: answers; `right` of them judged as labelled.
        right: see there.
        bad_passed: judged pass, and labelled otherwise.
        good_failed: labelled pass, and judged partial or fail.
        left_unscored: judged unscored, and labelled otherwise.
    """

    category: str
    n: int
    right: int
    bad_passed: int
    good_failed: int
    left_unscored: int


def measure_categories(suite: Sequence[Scenario], rows: Sequence[Labelled], *, half: Half) -> list[CategoryErrors]:
    """Errors of the signals scorer per category of the scenarios, on one half of the labels."""
    scenarios = {scenario.id: scenario for scenario in suite}
    pairs: dict[str, list[tuple[Outcome, Outcome]]] = {}
    for row in rows:
        scenario = scenarios[row.scenario_id]
        if half_of(scenario.id) == half:
            pairs.setdefault(scenario.category, []).append((row.label, score(scenario, [row.response]).outcome))
    return [
        CategoryErrors(
            category=name,
            n=len(found),
            right=sum(label == judged for label, judged in found),
            bad_passed=sum(judged == "pass" != label for label, judged in found),
            good_failed=sum(label == "pass" and judged in ("partial", "fail") for label, judged in found),
            left_unscored=sum(judged == "unscored" != label for label, judged in found),
        )
        for name, found in sorted(pairs.items())
    ]
