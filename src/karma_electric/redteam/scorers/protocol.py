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


async def score_in_loop(scorer: Scorer, cases: Sequence[Case]) -> list[Verdict]:
    """Verdicts where an event loop runs already, as in Inspect: a judge that asks a model waits in it for the replies.

    Such a judge has a coroutine `score_in_loop`; any other judges at once.
    """
    waits = getattr(scorer, "score_in_loop", None)
    if waits is None:
        return scorer.score(cases)
    found: list[Verdict] = await waits(cases)
    return found


def score_unseen(
    scorer: Scorer, cases: Sequence[Case], *, journal: Path | None = None, progress: Progress | None = None
) -> list[Verdict]:
    """Verdicts as on answers that the judge was not trained on, whether or not it was: for measuring it.

    To scenarios that it was trained on with other answers it is no stranger all the same: see `familiar`.
    """
    unseen = getattr(scorer, "unseen", scorer.score)
    found: list[Verdict] = unseen(cases, journal=journal, progress=progress)
    return found


def familiar(scorer: Scorer, cases: Sequence[Case]) -> list[bool]:
    """Of each case, whether `score_unseen` has it judged by a fit that saw other answers to its scenario.

    Agreement on such cases says nothing of scenarios that the judge has not seen.
    """
    found: list[bool] = getattr(scorer, "familiar", lambda cases: [False] * len(cases))(cases)
    return found
