"""Runs one arm of a red-team: asks the scenarios in batches, keeps every answer, scores, summarises.

Turn 1 of all scenarios first, then turn 2 of those that have one, each with its own history. Every finished batch
is on disk before the next begins, so that a killed run loses at most one. Knows nothing of how answers are judged,
nor of what model is behind the engine.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from karma_electric.core.artifact import read_json, write_atomic, write_json
from karma_electric.core.errors import ArtifactError
from karma_electric.core.jsonl import append_jsonl, drop_torn_line
from karma_electric.core.messages import Conversation, assistant, system, user
from karma_electric.core.progress import Progress
from karma_electric.models.engines.protocol import Completion, Engine, Sampling
from karma_electric.redteam.scenario import Scenario
from karma_electric.redteam.signals import Verdict, score
from karma_electric.redteam.stats import ArmSummary, summarise

COMPLETIONS = "completions.jsonl"
VERDICTS = "verdicts.jsonl"
SUMMARY = "summary.json"


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


_Answers = dict[tuple[str, int], Answer]  # (scenario id, turn) -> answer


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

    Returns:
        The summary. A scenario the engine failed on is unscored there (unless an earlier turn already failed it).

    Raises:
        ArtifactError: `out` holds answers to something else, or damaged ones.
    """
    out.mkdir(parents=True, exist_ok=True)
    answers = _load(out / COMPLETIONS, suite)
    total = sum(len(scenario.turns) for scenario in suite)
    progress.update(len(answers), total, arm)
    for turn in range(1, max((len(scenario.turns) for scenario in suite), default=0) + 1):
        due = [scenario for scenario in suite if _is_due(scenario, turn, answers)]
        for start in range(0, len(due), batch_size):
            batch = due[start : start + batch_size]
            asked = list(_ask(engine, batch, turn, answers, system_prompt=system_prompt, sampling=sampling))
            append_jsonl(out / COMPLETIONS, (asdict(answer) for answer in asked))
            for answer in asked:
                answers[answer.scenario_id, turn] = answer
                if answer.error is not None:
                    progress.say(f"{arm}: {answer.scenario_id} turn {turn} failed and is unscored: {answer.error}")
            progress.update(len(answers), total, arm)
    if len(answers) < total:  # turns after a failed one are never asked
        progress.update(total, total, arm)
    verdicts = [_judge(scenario, answers) for scenario in suite]
    summary = summarise(verdicts)
    lines = [json.dumps(asdict(verdict), ensure_ascii=False) for verdict in verdicts]
    write_atomic(out / VERDICTS, "".join(line + "\n" for line in lines))
    write_json(out / SUMMARY, _describe(engine, arm, system_prompt, sampling, answers, verdicts) | asdict(summary))
    return summary


def read_verdicts(folder: Path) -> list[Verdict]:
    """The verdicts of a finished arm, for `stats.compare`.

    Raises:
        MissingError: the arm has not finished, or never ran.
    """
    read_json(folder / SUMMARY)  # written last: its presence means the verdicts are whole
    lines = (folder / VERDICTS).read_bytes().splitlines()  # bytes: answers may hold U+2028, a line break in text
    return [Verdict(**json.loads(line)) for line in lines]


def _is_due(scenario: Scenario, turn: int, answers: _Answers) -> bool:
    """Whether this turn exists, is not answered yet, and the turns before it were answered."""
    if turn > len(scenario.turns) or (scenario.id, turn) in answers:
        return False
    earlier = [answers.get((scenario.id, number)) for number in range(1, turn)]
    return all(answer is not None and answer.error is None for answer in earlier)


def _ask(
    engine: Engine,
    batch: Sequence[Scenario],
    turn: int,
    answers: _Answers,
    *,
    system_prompt: str,
    sampling: Sampling,
) -> Iterator[Answer]:
    """Answer one turn of each scenario; where the batch fails, each alone, so that one cannot take the others."""
    conversations = [_conversation(scenario, turn, answers, system_prompt) for scenario in batch]
    try:
        completions = _generate(engine, conversations, sampling)
    except MemoryError:
        raise
    except Exception as error:
        if len(batch) == 1:
            yield _failed(batch[0], turn, error)
            return
        for scenario in batch:
            yield from _ask(engine, [scenario], turn, answers, system_prompt=system_prompt, sampling=sampling)
        return
    for scenario, completion in zip(batch, completions, strict=True):
        yield Answer(
            scenario_id=scenario.id,
            turn=turn,
            prompt=scenario.turns[turn - 1],
            text=completion.text,
            finish_reason=completion.finish_reason,
            prompt_tokens=completion.usage.prompt_tokens,
            completion_tokens=completion.usage.completion_tokens,
            cap_rate=completion.cap_rate,
        )


def _generate(engine: Engine, conversations: list[Conversation], sampling: Sampling) -> list[Completion]:
    completions = engine.generate(conversations, sampling)
    if len(completions) != len(conversations):
        raise RuntimeError(f"{engine.name} gave {len(completions)} answers to {len(conversations)} conversations")
    return completions


def _failed(scenario: Scenario, turn: int, error: Exception) -> Answer:
    return Answer(
        scenario_id=scenario.id,
        turn=turn,
        prompt=scenario.turns[turn - 1],
        text="",
        finish_reason=None,
        prompt_tokens=0,
        completion_tokens=0,
        cap_rate=None,
        error=f"{type(error).__name__}: {error}",
    )


def _conversation(scenario: Scenario, turn: int, answers: _Answers, system_prompt: str) -> Conversation:
    conversation = [system(system_prompt)]
    for number in range(1, turn):
        conversation += [user(scenario.turns[number - 1]), assistant(answers[scenario.id, number].text)]
    return [*conversation, user(scenario.turns[turn - 1])]


def _judge(scenario: Scenario, answers: _Answers) -> Verdict:
    """Score a scenario. A turn the engine failed on leaves it unscored, unless an earlier turn had failed it."""
    given = [answers[scenario.id, turn] for turn in range(1, len(scenario.turns) + 1) if (scenario.id, turn) in answers]
    verdict = score(scenario, [answer.text for answer in given])  # the text of a failed turn is empty
    broken = next((answer for answer in given if answer.error is not None), None)
    if broken is None or verdict.outcome == "fail":
        return verdict
    return replace(verdict, outcome="unscored", evidence=f"no answer: {broken.error}", turn=broken.turn)


def _describe(
    engine: Engine,
    arm: str,
    system_prompt: str,
    sampling: Sampling,
    answers: _Answers,
    verdicts: Sequence[Verdict],
) -> dict[str, Any]:
    """What was asked of whom: the part of summary.json that is not counts."""
    rates = [answer.cap_rate for answer in answers.values() if answer.cap_rate is not None]
    return {
        "arm": arm,
        "engine": engine.name,
        "scorers": sorted({verdict.scorer for verdict in verdicts}),
        "system_prompt": system_prompt,
        "sampling": asdict(sampling),
        "engine_failures": sum(answer.error is not None for answer in answers.values()),
        "mean_cap_rate": sum(rates) / len(rates) if rates else None,  # mean over answers
    }


def _load(path: Path, suite: Sequence[Scenario]) -> _Answers:
    """The answers of an interrupted run. Cuts a torn last line off the file; leaves failed turns to be redone."""
    if not path.exists():
        return {}
    drop_torn_line(path)
    prompts = {(scenario.id, turn): text for scenario in suite for turn, text in enumerate(scenario.turns, 1)}
    answers: _Answers = {}
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
