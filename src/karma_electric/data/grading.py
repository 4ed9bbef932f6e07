"""Grades the candidates of a workbench with a judge: several samples each, every answer kept, continued after a kill.

An answer is in the workbench before the next question goes out on the same connection, so a kill costs what was in
flight and no more; the same command asks for what is missing. An answer that cannot be understood is kept too, is
asked for again, and never counts as a grade.
"""

from __future__ import annotations

import asyncio
import re
import statistics
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from karma_electric.core.judging import Unparseable
from karma_electric.core.messages import Message
from karma_electric.core.progress import Progress
from karma_electric.data.candidate import Candidate
from karma_electric.data.judge import Scores, judge_prompt, read_scores, response_schema
from karma_electric.data.records import Reply
from karma_electric.data.rubric import KEPT_FROM, RUBRIC
from karma_electric.data.store import Store
from karma_electric.models.asking import Asker, NoAnswer, Outage, Said, in_parallel

_SEEDS_PER_ATTEMPT = 1000  # so that a second attempt is another draw than any sample


@dataclass(frozen=True)
class Answer:
    """One answer of a judge, and what could be read from it: `scores`, or `error` where nothing could."""

    attempt: int
    said: Said
    scores: Scores | None
    error: str | None


@dataclass
class Spending:
    """Requests and tokens of one run, and what they cost.

    Attributes:
        requests: made, those that failed included.
        prompt_tokens, completion_tokens: of the answers that came.
        cost: in the currency of the prices; None without prices.
    """

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float | None = None

    def add(self, said: Said) -> None:
        """Count an answer."""
        self.prompt_tokens += said.prompt_tokens
        self.completion_tokens += said.completion_tokens

    def price(self, price_in: float | None, price_out: float | None) -> None:
        """Work out the cost from prices per million tokens; one that is not given is 0, two are no prices."""
        if price_in is not None or price_out is not None:
            spent = self.prompt_tokens * (price_in or 0.0) + self.completion_tokens * (price_out or 0.0)
            self.cost = spent / 1e6

    def in_words(self) -> str:
        """One line for a report."""
        cost = "not priced (give --price-in and --price-out)" if self.cost is None else f"cost {self.cost:.4f}"
        return f"{self.requests} requests, {self.prompt_tokens} tokens in, {self.completion_tokens} out, {cost}"


@dataclass(frozen=True)
class Failure:
    """A candidate, or a pair, that the endpoint gave no answer about."""

    id: str
    kind: str
    reason: str


@dataclass
class GradingReport:
    """What one run of a judge left behind, for the candidates it was asked to grade.

    Attributes:
        judge, rubric, samples: what was asked.
        selected: candidates that were chosen.
        graded: those that now have a grade of this judge.
        partly: graded ones with fewer samples than asked for.
        kept: graded ones with a total of `kept_from` or more.
        ungraded: ids of those whose every answer could not be understood.
        failed: those that a request failed for, with the reason; they are asked about again by the same command.
        without_answer: ids of conversations that end with the person's turn: nothing to grade.
        new_answers, unparseable_answers: of this run.
        unparseable_reasons: how often each was given in this run.
        spread: mean over candidates of the mean distance of their samples' totals from the median, in points of 40;
            None where no candidate has two samples.
        spending: requests and tokens of this run.
    """

    judge: str
    samples: int
    rubric: str = RUBRIC
    kept_from: float = KEPT_FROM
    selected: int = 0
    graded: int = 0
    partly: int = 0
    kept: int = 0
    ungraded: list[str] = field(default_factory=list)
    failed: list[Failure] = field(default_factory=list)
    without_answer: list[str] = field(default_factory=list)
    new_answers: int = 0
    unparseable_answers: int = 0
    unparseable_reasons: dict[str, int] = field(default_factory=dict)
    spread: float | None = None
    spending: Spending = field(default_factory=Spending)

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)


@dataclass(frozen=True)
class _Due:
    """A sample that is still to be had."""

    candidate_id: str
    sample: int
    attempts: range


async def grade_sample(
    asker: Asker,
    messages: Sequence[Message],
    *,
    sample: int,
    attempts: Iterable[int],
    keep: Callable[[Answer], None],
) -> Scores | None:
    """Ask a judge for one sample of a grade, again while its answers cannot be understood.

    Args:
        asker: the judge.
        messages: the conversation, its last turn the answer to grade.
        sample: number of the sample.
        attempts: numbers of the attempts that may be made.
        keep: told of every answer at once.

    Returns:
        The scores, or None where no attempt gave any.

    Raises:
        NoAnswer: the endpoint gave none.
    """
    for attempt in attempts:
        said = await asker.ask(
            judge_prompt(messages), seed=sample + _SEEDS_PER_ATTEMPT * attempt, schema=response_schema()
        )
        scores, error = None, None
        try:
            scores = read_scores(said.text)
        except Unparseable as reason:
            error = f"cut off after {said.completion_tokens} tokens" if said.finish == "length" else str(reason)
        keep(Answer(attempt, said, scores, error))
        if scores is not None:
            return scores
    return None


def grade_candidates(
    store: Store,
    asker: Asker,
    candidates: Iterable[Candidate],
    *,
    samples: int,
    retries: int,
    progress: Progress,
) -> GradingReport:
    """Grade candidates, as far as they have no grade of this judge yet.

    Args:
        store: the workbench that has them.
        asker: the judge.
        candidates: which ones.
        samples: grades per candidate that the median is taken of.
        retries: how often a sample is asked for again whose answer could not be understood.
        progress: told of every candidate.

    Raises:
        MissingError: the judge does not answer at all; what it answered before is kept.
    """
    report = GradingReport(judge=asker.name, samples=samples)
    asked = _asked(store, asker.name)
    contents: dict[str, str] = {}
    due: list[_Due] = []
    for candidate in candidates:
        report.selected += 1
        if candidate.messages[-1].role != "assistant":
            report.without_answer.append(candidate.id)
            continue
        contents[candidate.id] = candidate.content_sha256
        due += [
            _Due(candidate.id, sample, range(used, 1 + retries))
            for sample in range(samples)
            for used, understood in [asked.get((candidate.id, candidate.content_sha256, sample), (0, False))]
            if not understood and used <= retries
        ]
    failures: dict[str, NoAnswer] = {}
    asyncio.run(_grade_all(store, asker, due, report, failures, progress))
    report.failed = [Failure(id_, failure.kind, failure.reason) for id_, failure in sorted(failures.items())]
    report.spending.requests = asker.requests
    _summarise(store, report, contents, set(failures))
    return report


async def _grade_all(
    store: Store,
    asker: Asker,
    due: Sequence[_Due],
    report: GradingReport,
    failures: dict[str, NoAnswer],
    progress: Progress,
) -> None:
    outage = Outage(asker)
    reasons: Counter[str] = Counter()
    done = 0

    async def work(item: _Due) -> None:
        nonlocal done
        candidate = store.get(item.candidate_id)

        def keep(answer: Answer) -> None:
            outage.answered()
            report.new_answers += 1
            report.spending.add(answer.said)
            if answer.error is not None:
                report.unparseable_answers += 1
                reasons[_group(answer.error)] += 1
            store.add_reply(_reply(candidate, asker.name, item.sample, answer))

        try:
            await grade_sample(asker, candidate.messages, sample=item.sample, attempts=item.attempts, keep=keep)
        except NoAnswer as failure:
            failures.setdefault(item.candidate_id, failure)
            outage.failed(failure)
        done += 1
        progress.update(done, len(due), f"{report.unparseable_answers} unparseable, {len(failures)} failed")

    async with asker:
        await in_parallel(due, work, connections=asker.max_connections)
    report.unparseable_reasons = dict(reasons.most_common())


def _reply(candidate: Candidate, judge: str, sample: int, answer: Answer) -> Reply:
    said, scores = answer.said, answer.scores
    return Reply(
        candidate_id=candidate.id,
        content_sha256=candidate.content_sha256,
        rubric=RUBRIC,
        judge=judge,
        sample=sample,
        scores=None if scores is None else scores.scores,
        total=None if scores is None else scores.total,
        rationale="" if scores is None else scores.rationale,
        raw=said.text,
        prompt_tokens=said.prompt_tokens,
        completion_tokens=said.completion_tokens,
        error=answer.error,
        attempt=answer.attempt,
    )


def _asked(store: Store, judge: str) -> dict[tuple[str, str, int], tuple[int, bool]]:
    """(candidate, words, sample) -> attempts that were made, and whether one of them was understood."""
    rows = store.rows(
        "SELECT candidate_id, content_sha256, sample, max(attempt) + 1 AS used, max(total IS NOT NULL) AS understood"
        " FROM replies WHERE rubric = ? AND judge = ? GROUP BY candidate_id, content_sha256, sample",
        (RUBRIC, judge),
    )
    return {
        (row["candidate_id"], row["content_sha256"], row["sample"]): (row["used"], bool(row["understood"]))
        for row in rows
    }


def _summarise(store: Store, report: GradingReport, contents: Mapping[str, str], failed: set[str]) -> None:
    """Fill in what the workbench now has, earlier runs included."""
    rows = store.rows(
        "SELECT candidate_id, content_sha256, total FROM replies WHERE rubric = ? AND judge = ? AND total IS NOT NULL",
        (report.rubric, report.judge),
    )
    totals: dict[str, list[float]] = {}
    for row in rows:
        if contents.get(row["candidate_id"]) == row["content_sha256"]:
            totals.setdefault(row["candidate_id"], []).append(row["total"])
    grades = store.grades(rubric=report.rubric, judge=report.judge)
    report.graded = len(totals)
    report.partly = sum(len(values) < report.samples for values in totals.values())
    report.kept = sum((grades[id_][0].total or 0.0) >= report.kept_from for id_ in totals)
    report.ungraded = sorted(contents.keys() - totals.keys() - failed)
    spreads = [
        statistics.fmean(abs(value - statistics.median(values)) for value in values)
        for values in totals.values()
        if len(values) > 1
    ]
    report.spread = statistics.fmean(spreads) if spreads else None


def _group(error: str) -> str:
    """An error without what differs from answer to answer, for counting."""
    if error.startswith("cut off"):
        return "cut off at the token limit"
    return re.split(r" in ['\"]", error, maxsplit=1)[0]
