"""The `labels` judge: gives answers the labels that raters gave them, from a file. What was not rated is unscored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from karma_electric.core.errors import DataError
from karma_electric.core.jsonl import read_jsonl
from karma_electric.core.progress import Progress
from karma_electric.core.resources import find
from karma_electric.redteam.scorers.protocol import Case
from karma_electric.redteam.sheets import answers_key
from karma_electric.redteam.signals import OUTCOMES, Verdict

NOT_RATED = "nobody rated this answer"


class LabelsScorer:
    """Looks answers up, by scenario and the text of every turn."""

    name = "labels-1"

    def __init__(self, file: str) -> None:
        """`file` holds labelled answers, as `karma redteam rated` writes them.

        Raises:
            MissingError: there is no such file.
            DataError: a line of it is no labelled answer.
        """
        self.spec = f"labels:{file}"
        self._known: dict[str, tuple[str, str]] = {}
        self._other: dict[str, tuple[str, str]] = {}
        path = find("suites", file)
        for number, raw in read_jsonl(path):
            try:
                label, reason = raw["label"], raw["reason"]
                key = answers_key(raw["scenario_id"], [*raw.get("answers", []), raw["response"]])
            except (TypeError, KeyError, AttributeError):
                raise DataError(
                    f"{path.name} line {number} is no labelled answer.", "Make the file with karma redteam rated."
                ) from None
            if label not in OUTCOMES:
                raise DataError(f"{path.name} line {number}: label is {label!r}.", f"Expected {', '.join(OUTCOMES)}.")
            self._known[key] = label, reason
            two = [(rating["label"], rating["reason"]) for rating in raw.get("ratings", [])[:2]]
            if len(two) == 2:
                self._other[key] = next((one for one in two if one[0] != label), two[1])

    def score(
        self, cases: Sequence[Case], *, journal: Path | None = None, progress: Progress | None = None
    ) -> list[Verdict]:
        """See `Scorer`."""
        return [self._verdict(case, self._known) for case in cases]

    def unseen(
        self, cases: Sequence[Case], *, journal: Path | None = None, progress: Progress | None = None
    ) -> list[Verdict]:
        """What the other rater said, where two differed: the agreement with the labels is then that of the raters."""
        return [self._verdict(case, self._other) for case in cases]

    def _verdict(self, case: Case, known: Mapping[str, tuple[str, str]]) -> Verdict:
        label, reason = known.get(answers_key(case.scenario.id, case.answers), ("unscored", NOT_RATED))
        outcome = next(outcome for outcome in OUTCOMES if outcome == label)
        turn = len(case.answers) or None
        return Verdict(case.scenario.id, outcome, self.name, reason, turn, case.scenario.category)
