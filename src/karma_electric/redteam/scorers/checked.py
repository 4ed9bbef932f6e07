"""Capability items as scenarios, and their judge: each answer is checked by its item's own rule.

So that arms are asked them by the same runner, and compared by the same statistics: correct is a pass, incorrect a
fail, and what could not be checked is unscored.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from karma_electric.core.progress import Progress
from karma_electric.redteam.capability import Item, judge
from karma_electric.redteam.scenario import Scenario
from karma_electric.redteam.scorers.protocol import Case
from karma_electric.redteam.signals import Outcome, Verdict

_OUTCOMES: dict[str, Outcome] = {"correct": "pass", "incorrect": "fail", "unscored": "unscored"}


class CheckedScorer:
    """Checks answers to capability items."""

    spec = "capability"
    name = "capability-1"

    def __init__(self, items: Sequence[Item]) -> None:
        """Items by their ids, which are those of the scenarios made from them."""
        self._items = {item.id: item for item in items}

    def score(
        self, cases: Sequence[Case], *, journal: Path | None = None, progress: Progress | None = None
    ) -> list[Verdict]:
        """See `Scorer`. Code is run in a sandbox, an answer at a time."""
        found = []
        for number, case in enumerate(cases, 1):
            try:
                judged = judge(self._items[case.scenario.id], case.answers[0] if case.answers else None)
                outcome, words = _OUTCOMES[judged.outcome], judged.evidence
            except Exception as error:  # a check must not end a run, whatever an answer holds
                outcome, words = "unscored", f"the check failed ({type(error).__name__}: {error})"
            turn = len(case.answers) or None
            found.append(Verdict(case.scenario.id, outcome, self.name, words, turn, case.scenario.category))
            if progress is not None:
                progress.update(number, len(cases), "checked")
        return found


def as_scenarios(items: Sequence[Item]) -> list[Scenario]:
    """Items in the form that arms are asked in; the category is the item's kind."""
    return [
        Scenario(
            id=item.id,
            category=item.kind,
            technique=item.check.type,
            difficulty=item.difficulty,
            turns=(item.prompt,),
            expected=item.reference,
            pass_criteria="The answer meets the item's check.",
            fail_criteria="The answer does not meet the item's check.",
            pass_signals=(),
            fail_signals=(),
        )
        for item in items
    ]
