"""Runs one arm under several seeds, and reads it back: a folder per seed, or, with one seed, none.

    redteam/base/summary.json                             over all seeds, with the key `seeds`
    redteam/base/seed-0/{completions,verdicts}.jsonl      as the runner writes them; seed-1, seed-2, ...

An arm of one seed is what the runner writes, flat, and its summary has no key `seeds`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from karma_electric.core.artifact import read_json, write_json
from karma_electric.core.errors import ArtifactError, InputError
from karma_electric.core.jsonl import read_jsonl
from karma_electric.core.progress import Progress
from karma_electric.models.engines.protocol import Engine, Sampling, SeededEngine
from karma_electric.redteam.runner import COMPLETIONS, SUMMARY, Answer, ask_suite, figures, read_verdicts, run_arm
from karma_electric.redteam.scenario import Scenario
from karma_electric.redteam.scorers.protocol import Scorer
from karma_electric.redteam.scorers.signals import SignalsScorer
from karma_electric.redteam.signals import Verdict
from karma_electric.redteam.stats import ArmSummary, summarise


@dataclass(frozen=True)
class SeedResult:
    """What an arm did under one seed: per scenario id the verdict, and the answers by turn."""

    verdicts: dict[str, Verdict]
    answers: dict[str, dict[int, Answer]]


def run_seeds(
    engine: Engine,
    suite: Sequence[Scenario],
    out: Path,
    *,
    arm: str,
    system_prompt: str,
    sampling: Sampling,
    seeds: int,
    batch_size: int,
    progress: Progress,
    scorer: Scorer | None = None,
) -> ArmSummary:
    """Run an arm under `seeds` seeds, from `sampling.seed` upward, each as `run_arm` does, and summarise them.

    An engine that can answer under several seeds at once is asked so. A run that was interrupted continues where it
    stopped, at most one batch back.

    Args:
        engine, suite, arm, system_prompt, batch_size, progress, scorer: as in `run_arm`.
        out: folder, made if absent.
        sampling: how tokens are chosen; its seed is the first.
        seeds: how many.

    Raises:
        InputError: several seeds of greedy decoding, which would be one answer counted several times.
        ArtifactError: `out` holds answers to something else, or damaged ones.
    """
    if seeds > 1 and sampling.temperature == 0:
        raise InputError(
            f"{seeds} seeds at temperature 0: greedy decoding gives the same answer under every seed.",
            "Ask for one seed, or for a temperature above 0.",
        )
    if seeds == 1:
        return run_arm(
            engine,
            suite,
            out,
            arm=arm,
            system_prompt=system_prompt,
            sampling=sampling,
            batch_size=batch_size,
            progress=progress,
            scorer=scorer,
        )
    numbers = range(sampling.seed, sampling.seed + seeds)
    if isinstance(engine, SeededEngine):
        ask_suite(
            engine,
            suite,
            {number: out / _folder(number) for number in numbers},
            arm=f"{arm}, {seeds} seeds",
            system_prompt=system_prompt,
            sampling=sampling,
            batch_size=batch_size,
            progress=progress,
        )
    for position, number in enumerate(numbers, 1):  # asks what is not answered, and judges
        run_arm(
            engine,
            suite,
            out / _folder(number),
            arm=f"{arm}, seed {number} ({position} of {seeds})",
            system_prompt=system_prompt,
            sampling=replace(sampling, seed=number),
            batch_size=batch_size,
            progress=progress,
            scorer=scorer,
        )
    verdicts = [verdict for number in numbers for verdict in read_verdicts(out / _folder(number))]
    summary = summarise(verdicts)
    parts = [read_json(out / _folder(number) / SUMMARY) for number in numbers]
    rates = [part["mean_cap_rate"] for part in parts if part["mean_cap_rate"] is not None]
    described = {
        "arm": arm,
        "engine": engine.name,
        "scorer": parts[0]["scorer"],
        "scorers": sorted({name for part in parts for name in part["scorers"]}),
        "system_prompt": system_prompt,
        "sampling": asdict(sampling),
        "seeds": list(numbers),
        "engine_failures": sum(part["engine_failures"] for part in parts),
        "mean_cap_rate": sum(rates) / len(rates) if rates else None,  # mean over seeds
    }
    write_json(out / SUMMARY, described | asdict(summary) | figures(scorer or SignalsScorer(), verdicts))
    return summary


def read_seeds(folder: Path) -> dict[int, SeedResult]:
    """The results of a finished arm, by seed.

    Raises:
        MissingError: the arm has not finished, or never ran.
        ArtifactError: a file of it is not what the runner writes.
    """
    summary = read_json(folder / SUMMARY)
    try:
        numbers = summary.get("seeds")
        folders = (
            {summary["sampling"]["seed"]: folder} if numbers is None else {n: folder / _folder(n) for n in numbers}
        )
        return {number: _read(part) for number, part in folders.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{folder} does not hold what the red-team writes ({type(error).__name__}: {error}).",
            "Make it again with --force.",
        ) from None


def _read(folder: Path) -> SeedResult:
    answers: dict[str, dict[int, Answer]] = {}
    for _, line in read_jsonl(folder / COMPLETIONS):
        answer = Answer(**line)
        answers.setdefault(answer.scenario_id, {})[answer.turn] = answer  # a turn asked again replaces the first
    return SeedResult({verdict.scenario_id: verdict for verdict in read_verdicts(folder)}, answers)


def _folder(seed: int) -> str:
    return f"seed-{seed}"
