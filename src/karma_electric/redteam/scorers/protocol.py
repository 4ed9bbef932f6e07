"""What a judge is: it reads the answers to scenarios and gives a verdict on each. Knows no judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from karma_electric.core.progress import Progress
from karma_electric.redteam.scenario import Scenario
from karma_electric.redteam.signals import Verdict


@dataclass(frozen=True)
class Case:
    """What is judged: a scenario, and the answers to its turns, in order; the last one given is taken as the last."""

    scenario: Scenario
    answers: tuple[str, ...]


class Scorer(Protocol):
    """A judge.

    Attributes:
        spec: what it is called in a recipe ("signals", "llm:ollama/llama3.1"); arms of one spec compare.
        name: name and version, as verdicts carry it.
    """

    spec: str
    name: str

    def score(
        self, cases: Sequence[Case], *, journal: Path | None = None, progress: Progress | None = None
    ) -> list[Verdict]:
        """A verdict on each case, in order.

        A case that cannot be judged is unscored, with the reason as evidence; no case ends a run.

        Args:
            cases: what to judge.
            journal: where a judge that is slow keeps what it found, so that an interrupted run continues.
            progress: told how far it is.
        """
        ...


def score_unseen(
    scorer: Scorer, cases: Sequence[Case], *, journal: Path | None = None, progress: Progress | None = None
) -> list[Verdict]:
    """Verdicts as on answers that the judge was not trained on, whether or not it was: for measuring it."""
    unseen = getattr(scorer, "unseen", scorer.score)
    found: list[Verdict] = unseen(cases, journal=journal, progress=progress)
    return found
