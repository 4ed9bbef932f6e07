"""Labelled responses, and how far a scorer, and those who labelled, agree on them.

The scenarios are split in two by a hash of their id. Word lists may be tuned on half A; half B is for measuring and
is not looked at while tuning. Both are always reported.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from karma_electric.core.errors import DataError
from karma_electric.core.jsonl import read_jsonl
from karma_electric.core.progress import Progress
from karma_electric.redteam.agreement import Agreement, agreement
from karma_electric.redteam.scenario import Scenario
from karma_electric.redteam.scorers.protocol import Case, Scorer, score_unseen
from karma_electric.redteam.scorers.signals import SignalsScorer
from karma_electric.redteam.signals import OUTCOMES, Outcome, Verdict

Half = Literal["A", "B"]
Part = Literal["A", "B", "all"]

# The labelled answers that are shipped, and the suites they answer.
SHIPPED = ("suites/labelled-120.jsonl", "suites/labelled-570.jsonl", "suites/labelled-demo-24.jsonl")
SHIPPED_SUITES = ("suites/starter-30.jsonl", "suites/standard-200.jsonl")


@dataclass(frozen=True)
class Rating:
    """One independent reading of an answer: by whom, the label, and why."""

    rater: str
    label: Outcome
    reason: str


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
        source: "written" for an answer that was written to be labelled, "model:NAME" for the output of a model.
        ratings: independent passes over the same answer, where there were several; `label` is what they came to.
        answers: the answers to the turns before the last, where the label is about those too.
    """

    id: str
    scenario_id: str
    prompt: str
    response: str
    label: Outcome
    reason: str
    rater: str
    source: str = "written"
    ratings: tuple[Rating, ...] = ()
    answers: tuple[str, ...] = ()

    @property
    def all_answers(self) -> tuple[str, ...]:
        """The answers in order; the response is the last."""
        return (*self.answers, self.response)


_TEXTS = {"id", "scenario_id", "prompt", "response", "label", "reason", "rater"}
_OPTIONAL = {"source", "ratings", "answers"}


def load_labelled(path: Path, suite: Sequence[Scenario], *, skip_others: bool = False) -> list[Labelled]:
    """Read labelled responses to the scenarios of `suite`; with `skip_others`, leave out those to other scenarios.

    Raises:
        MissingError: there is no such file.
        DataError: the first problem, with file and line number, what was found and what was expected.
    """
    known = {scenario.id for scenario in suite}
    rows: dict[str, Labelled] = {}
    for number, raw in read_jsonl(path):
        where = f"{path.name} line {number}"
        if not isinstance(raw, dict) or not _TEXTS <= raw.keys() <= _TEXTS | _OPTIONAL:
            found = ", ".join(raw) if isinstance(raw, dict) else type(raw).__name__
            raise DataError(
                f"{where} is not a labelled response: found {found}.",
                f"Expected texts under {', '.join(sorted(_TEXTS))}; optional are {', '.join(sorted(_OPTIONAL))}.",
            )
        wrong = next((key for key in sorted(_TEXTS) if not isinstance(raw[key], str)), None)
        if wrong is not None:
            raise DataError(f"{where}: {wrong!r} is {str(raw[wrong])[:40]!r}, expected a text.", "Correct it.")
        if raw["label"] not in OUTCOMES:
            raise DataError(f"{where}: label is {raw['label']!r}.", f"Expected one of {', '.join(OUTCOMES)}.")
        if raw["scenario_id"] not in known and skip_others:
            continue
        if raw["scenario_id"] not in known:
            raise DataError(
                f"{where}: scenario {raw['scenario_id']!r} is not in the suite.", "Labels belong to one suite."
            )
        if raw["id"] in rows:
            raise DataError(f"{where}: id {raw['id']!r} is already there.", "Ids are unique.")
        rows[raw["id"]] = Labelled(
            **{key: raw[key] for key in _TEXTS},
            source=_source(raw.get("source", "written"), where),
            ratings=_ratings(raw.get("ratings", []), where),
            answers=_answers(raw.get("answers", []), where),
        )
    return list(rows.values())


def _source(value: object, where: str) -> str:
    if isinstance(value, str) and (value == "written" or re.fullmatch(r"model:\S.*", value)):
        return value
    raise DataError(f"{where}: source is {value!r}.", 'Expected "written", or "model:NAME" for the output of a model.')


def _ratings(value: object, where: str) -> tuple[Rating, ...]:
    found = []
    for item in value if isinstance(value, list) else [value]:
        texts = isinstance(item, dict) and all(isinstance(text, str) for text in item.values())
        if not isinstance(item, dict) or item.keys() != {"rater", "label", "reason"} or not texts:
            raise DataError(
                f"{where}: ratings holds {str(item)[:60]!r}.",
                "Expected objects with the texts rater, label and reason.",
            )
        if item["label"] not in OUTCOMES:
            raise DataError(
                f"{where}: a rating's label is {item['label']!r}.", f"Expected one of {', '.join(OUTCOMES)}."
            )
        found.append(Rating(**item))
    return tuple(found)


def _answers(value: object, where: str) -> tuple[str, ...]:
    if isinstance(value, list) and all(isinstance(text, str) for text in value):
        return tuple(value)
    raise DataError(f"{where}: answers is {str(value)[:60]!r}.", "Expected a list of texts, one per earlier turn.")


def rater_agreement(rows: Sequence[Labelled]) -> Agreement | None:
    """How far the first two ratings of an answer agree, over the answers that have two; None where none has.

    Which rater is first does not matter to kappa; intervals draw whole scenarios.
    """
    rated = [row for row in rows if len(row.ratings) > 1]
    if not rated:
        return None
    return agreement(
        [row.ratings[0].label for row in rated],
        [row.ratings[1].label for row in rated],
        groups=[row.scenario_id for row in rated],
    )


def half_of(scenario_id: str) -> Half:
    """The half a scenario and its answers belong to, by the parity of the SHA-256 of its id."""
    return "B" if hashlib.sha256(scenario_id.encode()).digest()[-1] % 2 else "A"


def measure(
    suite: Sequence[Scenario],
    rows: Sequence[Labelled],
    scorer: Scorer | None = None,
    *,
    journal: Path | None = None,
    progress: Progress | None = None,
) -> dict[Part, Agreement]:
    """Agreement of a scorer (`signals` when None) with the labels, per half that has any, and with all of them.

    Resamples draw whole scenarios.

    A judge that was trained on these very answers is measured by fits that had not seen the scenario.
    """
    judged = judge_rows(suite, rows, scorer or SignalsScorer(), journal=journal, progress=progress)
    parts: dict[Part, list[int]] = {"A": [], "B": [], "all": list(range(len(rows)))}
    for number, row in enumerate(rows):
        parts[half_of(row.scenario_id)].append(number)
    return {
        part: agree([rows[i] for i in chosen], [judged[i] for i in chosen]) for part, chosen in parts.items() if chosen
    }


def judge_rows(
    suite: Sequence[Scenario],
    rows: Sequence[Labelled],
    scorer: Scorer,
    *,
    journal: Path | None = None,
    progress: Progress | None = None,
) -> list[Verdict]:
    """A scorer's verdicts on labelled answers, as on answers that it has never seen."""
    return score_unseen(scorer, as_cases(suite, rows), journal=journal, progress=progress)


def as_cases(suite: Sequence[Scenario], rows: Sequence[Labelled]) -> list[Case]:
    """Labelled answers as a judge reads them."""
    scenarios = {scenario.id: scenario for scenario in suite}
    return [Case(scenarios[row.scenario_id], row.all_answers) for row in rows]


def agree(rows: Sequence[Labelled], verdicts: Sequence[Verdict]) -> Agreement:
    """Agreement of verdicts with the labels of the same answers."""
    return agreement(
        [row.label for row in rows],
        [verdict.outcome for verdict in verdicts],
        groups=[row.scenario_id for row in rows],
    )


@dataclass(frozen=True)
class CategoryErrors:
    """How a scorer did on the labelled answers of one category.

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


def errors_by_category(
    suite: Sequence[Scenario], rows: Sequence[Labelled], verdicts: Sequence[Verdict]
) -> list[CategoryErrors]:
    """Errors of a scorer per category of the scenarios."""
    categories = {scenario.id: scenario.category for scenario in suite}
    pairs: dict[str, list[tuple[Outcome, Outcome]]] = {}
    for row, verdict in zip(rows, verdicts, strict=True):
        pairs.setdefault(categories[row.scenario_id], []).append((row.label, verdict.outcome))
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
