"""Runs one arm of a red-team: asks the scenarios in batches, keeps every answer, has a judge score them, summarises.

Turn 1 of all scenarios first, then turn 2 of those that have one, each with its own history; those that go on come
first, and of each the longest. Every finished batch is on disk before the next begins, so that a killed run loses at
most one. Knows nothing of how answers are judged, nor of what model is behind the engine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from karma_electric.core.artifact import read_json, write_atomic, write_json
from karma_electric.core.errors import ArtifactError, MissingError
from karma_electric.core.jsonl import append_jsonl, drop_torn_line, whole_characters
from karma_electric.core.messages import Conversation, assistant, system, user
from karma_electric.core.progress import Progress
from karma_electric.models.engines.protocol import Completion, Engine, Sampling, SeededEngine
from karma_electric.redteam.judging import Broken, withheld
from karma_electric.redteam.scenario import Scenario
from karma_electric.redteam.scorers.protocol import Case, Scorer
from karma_electric.redteam.scorers.signals import SignalsScorer
from karma_electric.redteam.signals import Verdict
from karma_electric.redteam.stats import ArmSummary, summarise

COMPLETIONS = "completions.jsonl"
VERDICTS = "verdicts.jsonl"
SUMMARY = "summary.json"
JOURNAL = "judgements.jsonl"  # what a slow judge has found so far


@dataclass(frozen=True)
class Answer:
    """One assistant turn of one scenario: a line of completions.jsonl. `error` is None unless the engine failed."""

    scenario_id: str
    turn: int  # 1-based
    prompt: str
    text: str
    finish_reason: str | None
    prompt_tokens: int
    completion_tokens: int
    cap_rate: float | None
    error: str | None = None


Answers = dict[tuple[str, int], Answer]  # (scenario id, turn) -> answer


def run_arm(
    engine: Engine,
    suite: Sequence[Scenario],
    out: Path,
    *,
    arm: str,
    system_prompt: str,
    sampling: Sampling,
    batch_size: int,
    progress: Progress,
    scorer: Scorer | None = None,
) -> ArmSummary:
    """Ask `suite`, score the answers, and write completions, verdicts and summary to `out`.

    A run that was interrupted continues where it stopped; turns that failed are asked again. The caller keys the
    folder: one folder holds one suite, engine, system prompt and sampling.

    Args:
        engine: answers the conversations.
        suite: the scenarios, with unique ids.
        out: folder, made if absent.
        arm: name of the arm, for messages and the summary.
        system_prompt: first message of every conversation; sent even when empty, so that no template default
            takes its place.
        sampling: how tokens are chosen, for every turn.
        batch_size: conversations generated together.
        progress: told of every batch and every failure.
        scorer: judges the answers, once all are there; `signals` when None.

    Returns:
        The summary. A scenario the engine failed on is unscored there (unless an earlier turn already failed it).

    Raises:
        ArtifactError: `out` holds answers to something else, or damaged ones.
    """
    answers = ask_suite(
        engine,
        suite,
        {sampling.seed: out},
        arm=arm,
        system_prompt=system_prompt,
        sampling=sampling,
        batch_size=batch_size,
        progress=progress,
    )[sampling.seed]
    return judge_arm(
        engine,
        suite,
        answers,
        out,
        arm=arm,
        system_prompt=system_prompt,
        sampling=sampling,
        progress=progress,
        scorer=scorer,
    )


def ask_suite(
    engine: Engine,
    suite: Sequence[Scenario],
    folders: Mapping[int, Path],
    *,
    arm: str,
    system_prompt: str,
    sampling: Sampling,
    batch_size: int,
    progress: Progress,
) -> dict[int, Answers]:
    """Ask `suite` under every seed of `folders`, and write completions.jsonl to each seed's folder. See `run_arm`.

    Several seeds are asked together, so that a batch is full and what they share is read once.

    Args:
        engine: one of `SeededEngine` where there are several seeds.
        folders: by seed, which takes the place of the sampling's.

    Returns:
        By seed, the answers by scenario id and turn.
    """
    answers = {}
    for seed, folder in folders.items():
        folder.mkdir(parents=True, exist_ok=True)
        answers[seed] = _load(folder / COMPLETIONS, suite)
    total = len(folders) * sum(len(scenario.turns) for scenario in suite)
    progress.update(sum(map(len, answers.values())), total, arm)
    for turn in range(1, max((len(scenario.turns) for scenario in suite), default=0) + 1):
        due = [_Due(s, seed, turn) for s in suite for seed in folders if _is_due(s, turn, answers[seed])]
        # those that go on first: an engine may remember what comes first; then like lengths together
        due.sort(key=lambda one: (len(one.scenario.turns) > turn, _length(one, answers[one.seed])), reverse=True)
        for start in range(0, len(due), batch_size):
            batch = due[start : start + batch_size]
            asked = list(_ask(engine, batch, answers, system_prompt=system_prompt, sampling=sampling))
            for seed, folder in folders.items():
                append_jsonl(folder / COMPLETIONS, (asdict(answer) for one, answer in asked if one.seed == seed))
            for one, answer in asked:
                answers[one.seed][answer.scenario_id, turn] = answer
                if answer.error is not None:
                    progress.say(f"{arm}: {answer.scenario_id} turn {turn} failed and is unscored: {answer.error}")
            progress.update(sum(map(len, answers.values())), total, arm)
    if sum(map(len, answers.values())) < total:  # turns after a failed one are never asked
        progress.update(total, total, arm)
    return answers


def judge_arm(
    engine: Engine,
    suite: Sequence[Scenario],
    answers: Answers,
    out: Path,
    *,
    arm: str,
    system_prompt: str,
    sampling: Sampling,
    progress: Progress,
    scorer: Scorer | None,
) -> ArmSummary:
    """Have the answers of one seed judged, and write verdicts and summary. See `run_arm`."""
    scorer = scorer or SignalsScorer()
    verdicts = judge_answers(scorer, suite, answers, journal=out / JOURNAL, progress=progress)
    summary = summarise(verdicts)
    write_verdicts(verdicts, out / VERDICTS)
    described = _describe(engine, arm, system_prompt, sampling, answers, scorer)
    write_json(out / SUMMARY, described | asdict(summary) | figures(scorer, verdicts))
    return summary


def figures(scorer: Scorer, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """What a judge adds to a summary: the figure that its kind of suite is for."""
    added: dict[str, Any] = getattr(scorer, "figures", lambda _: {})(verdicts)
    return added


def write_verdicts(verdicts: Sequence[Verdict], path: Path) -> None:
    """Write verdicts.jsonl, as a whole."""
    write_atomic(path, "".join(json.dumps(asdict(verdict), ensure_ascii=False) + "\n" for verdict in verdicts))


def read_verdicts(folder: Path) -> list[Verdict]:
    """The verdicts of a finished arm, for `stats.compare`.

    Raises:
        MissingError: the arm has not finished, or never ran.
    """
    read_json(folder / SUMMARY)  # written last: its presence means the verdicts are whole
    lines = (folder / VERDICTS).read_bytes().splitlines()  # bytes: answers may hold U+2028, a line break in text
    return [Verdict(**json.loads(line)) for line in lines]


@dataclass(frozen=True)
class _Due:
    """One turn of a scenario that is to be asked under one seed."""

    scenario: Scenario
    seed: int
    turn: int


def _is_due(scenario: Scenario, turn: int, answers: Answers) -> bool:
    """Whether this turn exists, is not answered yet, and the turns before it were answered."""
    if turn > len(scenario.turns) or (scenario.id, turn) in answers:
        return False
    earlier = [answers.get((scenario.id, number)) for number in range(1, turn)]
    return all(answer is not None and answer.error is None for answer in earlier)


def _ask(
    engine: Engine,
    batch: Sequence[_Due],
    answers: Mapping[int, Answers],
    *,
    system_prompt: str,
    sampling: Sampling,
) -> Iterator[tuple[_Due, Answer]]:
    """Answer what is due; where the batch fails, each alone, so that one cannot take the others."""
    conversations = [_conversation(one, answers[one.seed], system_prompt) for one in batch]
    try:
        completions = _generate(engine, conversations, sampling, [one.seed for one in batch])
    except (MemoryError, MissingError):  # a model that is not there any more: the run continues when it is back
        raise
    except Exception as error:
        if len(batch) == 1:
            yield batch[0], _failed(batch[0], error)
            return
        for one in batch:
            yield from _ask(engine, [one], answers, system_prompt=system_prompt, sampling=sampling)
        return
    for one, completion in zip(batch, completions, strict=True):
        yield (
            one,
            Answer(
                scenario_id=one.scenario.id,
                turn=one.turn,
                prompt=one.scenario.turns[one.turn - 1],
                text=whole_characters(completion.text),
                finish_reason=completion.finish_reason,
                prompt_tokens=completion.usage.prompt_tokens,
                completion_tokens=completion.usage.completion_tokens,
                cap_rate=completion.cap_rate,
            ),
        )


def _generate(
    engine: Engine, conversations: list[Conversation], sampling: Sampling, seeds: Sequence[int]
) -> list[Completion]:
    if len(set(seeds)) == 1:
        completions = engine.generate(conversations, replace(sampling, seed=seeds[0]))
    else:
        if not isinstance(engine, SeededEngine):
            raise TypeError(f"{engine.name} answers under one seed at a time")
        completions = engine.generate_seeds(conversations, sampling, seeds)
    if len(completions) != len(conversations):
        raise RuntimeError(f"{engine.name} gave {len(completions)} answers to {len(conversations)} conversations")
    return completions


def _failed(one: _Due, error: Exception) -> Answer:
    return Answer(
        scenario_id=one.scenario.id,
        turn=one.turn,
        prompt=one.scenario.turns[one.turn - 1],
        text="",
        finish_reason=None,
        prompt_tokens=0,
        completion_tokens=0,
        cap_rate=None,
        error=whole_characters(f"{type(error).__name__}: {error}"),
    )


def _conversation(one: _Due, answers: Answers, system_prompt: str) -> Conversation:
    conversation, turns = [system(system_prompt)], one.scenario.turns
    for number in range(1, one.turn):
        conversation += [user(turns[number - 1]), assistant(answers[one.scenario.id, number].text)]
    return [*conversation, user(turns[one.turn - 1])]


def _length(one: _Due, answers: Answers) -> int:
    """Characters of the conversation that this turn ends."""
    said = sum(len(answers[one.scenario.id, number].text) for number in range(1, one.turn))
    return said + sum(map(len, one.scenario.turns[: one.turn]))


def judge_answers(
    scorer: Scorer,
    suite: Sequence[Scenario],
    answers: Answers,
    *,
    journal: Path | None,
    progress: Progress,
) -> list[Verdict]:
    """A verdict per scenario. A turn the engine failed on leaves it unscored, unless an earlier turn had failed it."""
    given = [
        [answers[scenario.id, turn] for turn in range(1, len(scenario.turns) + 1) if (scenario.id, turn) in answers]
        for scenario in suite
    ]
    cases = [
        Case(scenario, tuple(answer.text for answer in found))  # the text of a failed turn is empty
        for scenario, found in zip(suite, given, strict=True)
    ]
    verdicts = scorer.score(cases, journal=journal, progress=progress)
    judged = []
    for verdict, found in zip(verdicts, given, strict=True):
        failure = next((answer for answer in found if answer.error is not None), None)
        broken = None if failure is None or failure.error is None else Broken(failure.turn, failure.error)
        judged.append(withheld(verdict, broken))
    return judged


def _describe(
    engine: Engine,
    arm: str,
    system_prompt: str,
    sampling: Sampling,
    answers: Answers,
    scorer: Scorer,
) -> dict[str, Any]:
    """What was asked of whom: the part of summary.json that is not counts."""
    rates = [answer.cap_rate for answer in answers.values() if answer.cap_rate is not None]
    return {
        "arm": arm,
        "engine": engine.name,
        "scorer": scorer.spec,
        "scorers": [scorer.name],
        "system_prompt": system_prompt,
        "sampling": asdict(sampling),
        "engine_failures": sum(answer.error is not None for answer in answers.values()),
        "mean_cap_rate": sum(rates) / len(rates) if rates else None,  # mean over answers
    }


def _load(path: Path, suite: Sequence[Scenario]) -> Answers:
    """The answers of an interrupted run. Cuts a torn last line off the file; leaves failed turns to be redone."""
    if not path.exists():
        return {}
    drop_torn_line(path)
    prompts = {(scenario.id, turn): text for scenario in suite for turn, text in enumerate(scenario.turns, 1)}
    answers: Answers = {}
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        try:
            answer = Answer(**json.loads(line))
        except (ValueError, TypeError) as error:
            raise ArtifactError(
                f"{path} line {number} is not an answer ({error}).", "Delete the file, or run with --force."
            ) from None
        key = (answer.scenario_id, answer.turn)
        if prompts.get(key) != answer.prompt:
            raise ArtifactError(
                f"{path} line {number} answers {answer.scenario_id} turn {answer.turn}, which this suite does not ask.",
                "Run with --force, or into another folder.",
            )
        if answer.error is None:
            answers[key] = answer
    return answers
