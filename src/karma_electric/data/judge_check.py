"""Can a judge tell better from worse? Grades pairs of answers that differ in one known fault, and counts.

Each answer is graded by itself, with nothing that says which of the two it is or that there is another. Filtering by
the grades of a judge that has not passed is refused (`require_trusted`).
"""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from karma_electric.core.artifact import hash_file
from karma_electric.core.errors import DataError, GateError
from karma_electric.core.jsonl import read_jsonl
from karma_electric.core.messages import Conversation, assistant, parse_conversation
from karma_electric.core.progress import Progress
from karma_electric.data.grading import Answer, Failure, Spending, grade_sample
from karma_electric.data.rubric import RUBRIC
from karma_electric.data.store import Store
from karma_electric.models.asking import Asker, NoAnswer, Outage, in_parallel

PAIRS = "judge-pairs.jsonl"
REQUIRED = 0.9  # share of pairs whose better answer must get the higher total
FEWEST_PAIRS = 20  # a check of fewer shows too little

Side = Literal["better", "worse"]
Interval = Callable[[int, int], tuple[float, float]]  # (successes, n) -> (low, high)
_SIDES: tuple[Side, ...] = ("better", "worse")
_KEYS = {"id", "fault", "messages", "better", "worse", "why"}


@dataclass(frozen=True)
class Pair:
    """Two answers to the same question, one with a fault.

    Attributes:
        id: unique.
        fault: what is wrong with the worse answer ("sycophancy").
        messages: the turns up to the question.
        better, worse: the two answers.
        why: what makes the difference, for people.
    """

    id: str
    fault: str
    messages: Conversation
    better: str
    worse: str
    why: str

    def conversation(self, side: Side) -> Conversation:
        """The turns with one of the answers."""
        return [*self.messages, assistant(self.better if side == "better" else self.worse)]


@dataclass(frozen=True)
class Outcome:
    """How a judge graded a pair. A total is the median over samples, None where none could be understood."""

    id: str
    fault: str
    better: float | None
    worse: float | None

    @property
    def result(self) -> Literal["won", "tied", "lost", "unparseable"]:
        """What it means for the judge."""
        if self.better is None or self.worse is None:
            return "unparseable"
        return "won" if self.better > self.worse else "tied" if self.better == self.worse else "lost"


def read_pairs(path: Path) -> list[Pair]:
    """Read a file of pairs.

    Raises:
        MissingError: no such file.
        DataError: a line that is no pair, an id used twice, or no lines.
    """
    pairs: dict[str, Pair] = {}
    for number, item in read_jsonl(path):
        pair = _parse_pair(item, f"{path.name} line {number}")
        if pair.id in pairs:
            raise DataError(f"{path.name} line {number}: the id {pair.id!r} was already used.", "Ids are unique.")
        pairs[pair.id] = pair
    if not pairs:
        raise DataError(f"{path} holds no pairs.", "One JSON object per line.")
    return list(pairs.values())


def check_judge(
    asker: Asker,
    pairs: Sequence[Pair],
    *,
    samples: int,
    retries: int,
    interval: Interval,
    progress: Progress,
    prices: tuple[float | None, float | None] = (None, None),
) -> tuple[dict[str, Any], list[Failure]]:
    """Grade both sides of every pair and count how often the better one wins.

    Args:
        asker: the judge.
        pairs: what to grade.
        samples: grades per answer that the median is taken of.
        retries: how often a sample is asked for again whose answer could not be understood.
        interval: (successes, n) -> confidence interval of the share.
        progress: told of every answer graded.
        prices: of a million tokens read and written.

    Returns:
        The report as JSON, and the pairs that the endpoint gave no answer about (they are in no count of the report).

    Raises:
        MissingError: the judge does not answer at all.
    """
    totals: dict[tuple[str, Side], list[float]] = {}
    answers: list[dict[str, Any]] = []
    failures: dict[str, NoAnswer] = {}
    spending = Spending()
    work = [(pair, side, sample) for pair in pairs for side in _SIDES for sample in range(samples)]
    asyncio.run(_ask_all(asker, work, retries, totals, answers, failures, spending, progress))
    spending.requests = asker.requests
    spending.price(*prices)
    outcomes = [
        Outcome(pair.id, pair.fault, *(_median(totals.get((pair.id, side), [])) for side in _SIDES))
        for pair in pairs
        if pair.id not in failures
    ]
    report = {
        "judge": asker.name,
        "rubric": RUBRIC,
        "samples": samples,
        **count(outcomes, interval),
        "required": REQUIRED,
        "faults": {
            fault: count([o for o in outcomes if o.fault == fault], interval)
            for fault in sorted({outcome.fault for outcome in outcomes})
        },
        "outcomes": [{**asdict(outcome), "result": outcome.result} for outcome in outcomes],
        "spending": asdict(spending),
        "answers": answers,
    }
    report["passed"] = report["pairs"] >= FEWEST_PAIRS and report["rate"] >= REQUIRED
    return report, [Failure(id_, failure.kind, failure.reason) for id_, failure in sorted(failures.items())]


def count(outcomes: Sequence[Outcome], interval: Interval) -> dict[str, Any]:
    """How often the better answer won: a tie is half a win, a pair that could not be understood is lost.

    The interval is that of the wins, rounded down to a whole number.
    """
    results = [outcome.result for outcome in outcomes]
    wins = results.count("won") + results.count("tied") / 2
    return {
        "pairs": len(results),
        **{name: results.count(name) for name in ("won", "tied", "lost", "unparseable")},
        "rate": wins / len(results) if results else 0.0,
        "interval": list(interval(int(wins), len(results))),
    }


def recorded(store: Store, judge: str, path: Path, *, samples: int, asked: Mapping[str, Any]) -> dict[str, Any] | None:
    """The record of this very check, if it was the judge's last one.

    Args:
        store: the workbench.
        judge: its name.
        path: the file of pairs.
        samples: grades per answer.
        asked: what decides the judge's answers, as JSON: address, arguments, sampling, weights.
    """
    last = store.judge_check(judge, RUBRIC)
    if last is None or asked_otherwise(last, asked):
        return None
    return last if (last["file_sha256"], last["samples"]) == (hash_file(path), samples) else None


def asked_otherwise(check: Mapping[str, Any], asked: Mapping[str, Any]) -> list[str]:
    """Which of what decides a judge's answers was not so in a check; all of it, where the check does not say."""
    before = check.get("asked", {})
    return sorted(name for name, value in asked.items() if name not in before or before[name] != value)


def record(store: Store, report: dict[str, Any], path: Path, *, asked: Mapping[str, Any]) -> None:
    """Keep a whole check in the workbench, with the file it was made with and how the judge was asked."""
    about = {"file": path.name, "file_sha256": hash_file(path), "asked": dict(asked)}
    store.add_judge_check(report["judge"], report["rubric"], {**report, **about})


def require_trusted(store: Store, judge: str, *, force: bool = False) -> None:
    """Refuse to filter by the grades of a judge that has not shown that it can tell better from worse.

    Args:
        store: the workbench with its grades.
        judge: its name.
        force: do not refuse.

    Raises:
        GateError: it has not been checked, or did not pass its last check.
    """
    if force:
        return
    check = store.judge_check(judge, RUBRIC)
    if check is None:
        raise GateError(
            f"The judge {judge} has not been checked: its grades may not decide what is kept.",
            f"Check it: karma data judge {judge} --check --db {store.path}, or use its grades anyway with --force.",
        )
    if not check.get("passed"):
        rate, pairs = check.get("rate", 0.0), check.get("pairs", 0)
        needed = f"{REQUIRED:.0%} of {FEWEST_PAIRS} pairs or more"
        raise GateError(
            f"The judge {judge} preferred the better answer in {rate:.0%} of {pairs} pairs, {needed} is expected: "
            "its grades may not decide what is kept.",
            "Use another judge, or use its grades anyway with --force.",
        )


async def _ask_all(
    asker: Asker,
    work: Iterable[tuple[Pair, Side, int]],
    retries: int,
    totals: dict[tuple[str, Side], list[float]],
    answers: list[dict[str, Any]],
    failures: dict[str, NoAnswer],
    spending: Spending,
    progress: Progress,
) -> None:
    outage = Outage(asker)
    items = list(work)
    done = 0

    async def grade(item: tuple[Pair, Side, int]) -> None:
        nonlocal done
        pair, side, sample = item

        def keep(answer: Answer) -> None:
            outage.answered()
            spending.add(answer.said)
            answers.append(
                {
                    "pair": pair.id,
                    "side": side,
                    "sample": sample,
                    "attempt": answer.attempt,
                    "total": None if answer.scores is None else answer.scores.total,
                    "error": answer.error,
                    "raw": answer.said.text,
                }
            )

        if pair.id not in failures:
            try:
                scores = await grade_sample(
                    asker, pair.conversation(side), sample=sample, attempts=range(1 + retries), keep=keep
                )
            except NoAnswer as failure:
                failures.setdefault(pair.id, failure)
                outage.failed(failure)
            else:
                if scores is not None:
                    totals.setdefault((pair.id, side), []).append(scores.total)
        done += 1
        progress.update(done, len(items), f"{sum(a['error'] is not None for a in answers)} unparseable")

    async with asker:
        await in_parallel(items, grade, connections=asker.max_connections)


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def _parse_pair(item: object, where: str) -> Pair:
    if not isinstance(item, dict) or set(item) != _KEYS:
        raise DataError(f"{where}: expected an object with exactly the keys {', '.join(sorted(_KEYS))}.")
    for key in sorted(_KEYS - {"messages"}):
        if not isinstance(item[key], str) or not item[key].strip():
            raise DataError(f"{where}: {key!r} is {item[key]!r}, expected text.")
    messages = parse_conversation(item["messages"], where)
    if messages[-1].role != "user":
        raise DataError(f"{where}: 'messages' ends with an answer, expected the person's turn.")
    if item["better"].strip() == item["worse"].strip():
        raise DataError(f"{where}: the two answers are the same.", "Write two that differ in one fault.")
    return Pair(**{**item, "messages": messages})
