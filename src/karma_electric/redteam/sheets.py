"""Sheets of answers to be read blind: without the arm, the seed or any verdict, in an order that tells nothing.

    sheet.jsonl      a line per answer: id, scenario, criteria, the whole conversation
    ratings          a line per answer from each rater: {"id": ..., "label": ..., "reason": ...}
    labelled.jsonl   what two independent ratings, and a third where they differ, come to: as judges are trained on

The same answer of two arms, or under two seeds, is one line: it is read once, and both get its label.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from karma_electric.core.artifact import canonical_json, hash_text
from karma_electric.core.errors import DataError
from karma_electric.core.jsonl import read_jsonl
from karma_electric.redteam.agreement import Agreement, agreement
from karma_electric.redteam.labelled import Labelled, Rating
from karma_electric.redteam.scenario import Scenario
from karma_electric.redteam.seeds import SeedResult
from karma_electric.redteam.signals import OUTCOMES, Outcome


@dataclass(frozen=True)
class Row:
    """One answer to read.

    Attributes:
        id: of scenario and answers, by hash; the order of a sheet is that of the ids.
        scenario_id: which scenario.
        source: "model:NAME", the same for all lines of a sheet.
        pass_criteria, fail_criteria: what the scenario says of passing and failing.
        turns: what was said to the model.
        answers: what it said to each turn.
    """

    id: str
    scenario_id: str
    source: str
    pass_criteria: str
    fail_criteria: str
    turns: tuple[str, ...]
    answers: tuple[str, ...]


def make_sheet(
    suite: Sequence[Scenario], arms: Sequence[Mapping[int, SeedResult]], *, source: str, seeds: Sequence[int] | None
) -> list[Row]:
    """The answers of some arms under some seeds (None: all), each different one once. What failed is left out."""
    rows = {}
    for arm in arms:
        for seed, result in arm.items():
            if seeds is not None and seed not in seeds:
                continue
            for scenario in suite:
                given = result.answers.get(scenario.id, {})
                if len(given) < len(scenario.turns) or any(answer.error is not None for answer in given.values()):
                    continue
                answers = tuple(given[turn].text for turn in sorted(given))
                key = answers_key(scenario.id, answers)
                criteria = (scenario.pass_criteria, scenario.fail_criteria)
                rows[key] = Row(key, scenario.id, source, *criteria, scenario.turns, answers)
    return [rows[key] for key in sorted(rows)]


def answers_key(scenario_id: str, answers: Sequence[str]) -> str:
    """What an answer to a scenario is known by: the first 16 digits of a SHA-256."""
    return hash_text(canonical_json([scenario_id, list(answers)]))[:16]


def read_sheet(path: Path) -> list[Row]:
    """Read a sheet.

    Raises:
        MissingError: there is no such file.
        DataError: it is not one, or empty.
    """
    rows = []
    for number, raw in read_jsonl(path):
        try:
            row = Row(**{**raw, "turns": tuple(raw["turns"]), "answers": tuple(raw["answers"])})
        except (TypeError, KeyError):
            raise DataError(
                f"{path.name} line {number} is not a line of a sheet.", "Make one: karma redteam sheet RUN --out FILE"
            ) from None
        if row.id != answers_key(row.scenario_id, row.answers):
            raise DataError(f"{path.name} line {number}: the answers are not those of id {row.id}.", "Make it again.")
        rows.append(row)
    if not rows:
        raise DataError(f"{path.name} has no lines.", "Make a sheet: karma redteam sheet RUN --out FILE")
    return rows


def read_ratings(path: Path, rater: str) -> dict[str, Rating]:
    """Read one rater's labels, by id.

    Raises:
        MissingError: there is no such file.
        DataError: a line that is no rating, or an id rated twice.
    """
    found: dict[str, Rating] = {}
    for number, raw in read_jsonl(path):
        where = f"{path.name} line {number}"
        if not isinstance(raw, dict) or not {"id", "label", "reason"} <= raw.keys():
            raise DataError(f"{where} is no rating.", "Expected an object with id, label and reason.")
        if raw["label"] not in OUTCOMES or not isinstance(raw["reason"], str):
            raise DataError(f"{where}: label is {raw['label']!r}.", f"Expected one of {', '.join(OUTCOMES)}.")
        if raw["id"] in found:
            raise DataError(f"{where}: {raw['id']} is rated twice.", "Keep one of the two.")
        found[raw["id"]] = Rating(rater, raw["label"], raw["reason"].strip())
    return found


@dataclass(frozen=True)
class Rated:
    """What ratings come to.

    Attributes:
        labelled: the answers with a label.
        undecided: those whose ratings differ, and which no third one decides.
        agreement: of the second rater with the first, intervals by whole scenarios.
    """

    labelled: list[Labelled]
    undecided: list[Row]
    agreement: Agreement


def combine(
    rows: Sequence[Row],
    first: Mapping[str, Rating],
    second: Mapping[str, Rating],
    third: Mapping[str, Rating],
    *,
    sample: bool = False,
) -> Rated:
    """Put two independent ratings together; where they differ, the third decides.

    Args:
        rows: the sheet.
        first, second, third: ratings by id of a row.
        sample: whether the second rater may have read a part only. The others keep the first one's label and no
            `ratings`, and the agreement is of that part.

    Raises:
        DataError: an answer that one of the first two did not rate, or a rating of something else.
    """
    known = {row.id for row in rows}
    for ratings in (first, second, third):
        if stray := next((one for one in ratings if one not in known), None):
            raise DataError(f"Rating {stray} is of no line of the sheet.", "Give the sheet that was rated.")
    for ratings, name in ((first, "first"), (second, "second")):
        missing = [row.id for row in rows if row.id not in ratings]
        if missing and (ratings is first or not sample):
            hint = "Rate them." if ratings is first else "Rate them, or say --sample if that was meant."
            raise DataError(f"The {name} rater left out {len(missing)} of {len(rows)}: {missing[0]} ...", hint)
    twice = [row for row in rows if row.id in second]
    if not twice:
        raise DataError("The second rater has rated nothing, expected a part of the sheet.", "Rate some of it.")
    labelled, undecided = [], []
    for row in rows:
        a, b, c = first[row.id], second.get(row.id, first[row.id]), third.get(row.id)
        if a.label != b.label and c is None:
            undecided.append(row)
            continue
        decided = c if a.label != b.label and c is not None else a
        given: tuple[Rating, ...] = (a, b) if a.label == b.label or c is None else (a, b, c)
        labelled.append(
            Labelled(
                id=f"rated-{row.id}",
                scenario_id=row.scenario_id,
                prompt=row.turns[-1],
                response=row.answers[-1],
                label=decided.label,
                reason=decided.reason,
                rater=decided.rater,
                source=row.source,
                ratings=given if row.id in second else (),
                answers=row.answers[:-1],
            )
        )
    found = agreement(
        [first[row.id].label for row in twice],
        [second[row.id].label for row in twice],
        groups=[row.scenario_id for row in twice],
    )
    return Rated(labelled, undecided, found)


def as_line(row: Labelled | Row) -> dict[str, Any]:
    """As a line of a file; what is empty is left out of labelled answers."""
    values = asdict(row)
    return values if isinstance(row, Row) else {key: v for key, v in values.items() if v not in ((), [])}


def outcome_counts(rows: Sequence[Labelled]) -> dict[Outcome, int]:
    """How many there are of each label."""
    return cast("dict[Outcome, int]", {o: sum(row.label == o for row in rows) for o in OUTCOMES})
