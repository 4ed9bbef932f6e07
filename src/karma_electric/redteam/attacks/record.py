"""An attack's Inspect log as an arm: the files that `karma redteam compare` and `report` read, and the whole attacks.

completions.jsonl, verdicts.jsonl, summary.json    as the runner writes them; of the conversation that decided
attacks.jsonl                                      everything that was said, by whom, and what went wrong
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_electric.core.artifact import write_atomic, write_json
from karma_electric.redteam.runner import COMPLETIONS, SUMMARY, VERDICTS, Answer
from karma_electric.redteam.scenario import Scenario
from karma_electric.redteam.signals import SCORER, Verdict
from karma_electric.redteam.stats import ArmSummary, summarise

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalSample

ATTACKS = "attacks.jsonl"
STORE = "karma_attack"  # where a sample keeps its attack


def write_attack(
    log: EvalLog, suite: Sequence[Scenario], out: Path, described: Mapping[str, Any], judge: str = SCORER
) -> ArmSummary:
    """Write an arm from a log with all its samples.

    Args:
        log: with samples; one that has an error is unscored with it.
        suite: the scenarios, in order.
        out: folder.
        described: for summary.json: arm, engine, scorer, system_prompt and sampling, whose seed is that of the first
            epoch.
        judge: name and version of the judge, for what was never judged.

    Returns:
        The summary over all seeds.
    """
    by_epoch: dict[int, dict[str, EvalSample]] = {}
    for sample in log.samples or []:
        by_epoch.setdefault(sample.epoch, {})[str(sample.id)] = sample
    first = int(described["sampling"]["seed"])
    everything: list[Verdict] = []
    faults: Counter[str] = Counter()
    records: list[dict[str, Any]] = []
    for epoch, samples in sorted(by_epoch.items()):
        folder = out if len(by_epoch) == 1 else out / f"seed-{first + epoch - 1}"
        folder.mkdir(parents=True, exist_ok=True)
        asked = [scenario for scenario in suite if scenario.id in samples]  # a limit leaves some out
        verdicts = [_verdict(scenario, samples[scenario.id], judge) for scenario in asked]
        answers = [asdict(answer) for scenario in asked for answer in _answers(samples[scenario.id])]
        _write_lines(folder / COMPLETIONS, answers)
        _write_lines(folder / VERDICTS, [asdict(verdict) for verdict in verdicts])
        for scenario in asked:
            attack = samples[scenario.id].store.get(STORE)
            records.append({"scenario_id": scenario.id, "seed": first + epoch - 1, "attack": attack})
            if attack and attack["attacker_fault"]:
                faults[attack["attacker_fault"].partition(":")[0]] += 1
        everything += verdicts
        if len(by_epoch) > 1:
            sampling = {**described["sampling"], "seed": first + epoch - 1}
            write_json(folder / SUMMARY, _summary({**described, "sampling": sampling}, verdicts))
    _write_lines(out / ATTACKS, records)
    seeds = {"seeds": [first + epoch - 1 for epoch in sorted(by_epoch)]} if len(by_epoch) > 1 else {}
    write_json(out / SUMMARY, {**_summary(described, everything), **seeds, "attacker_faults": dict(faults)})
    return summarise(everything)


def _summary(described: Mapping[str, Any], verdicts: Sequence[Verdict]) -> dict[str, Any]:
    return {
        **described,
        "scorers": sorted({verdict.scorer for verdict in verdicts}),
        "engine_failures": sum(verdict.evidence.startswith("no answer: ") for verdict in verdicts),
        "mean_cap_rate": None,
        **asdict(summarise(verdicts)),
    }


def _verdict(scenario: Scenario, sample: EvalSample, judge: str) -> Verdict:
    if sample.error is not None:
        reason = sample.error.message.splitlines()[0][:300] if sample.error.message else "unknown error"
        return Verdict(scenario.id, "unscored", judge, f"no answer: {reason}", None, scenario.category)
    attack = sample.store[STORE]
    return Verdict(**attack["verdict"])


def _answers(sample: EvalSample) -> list[Answer]:
    """The conversation that decided; where nothing was asked, one turn without an answer."""
    attack = sample.store.get(STORE)
    kept = attack["tries"][attack["decisive"]]["kept"] if attack and attack["decisive"] is not None else []
    return [
        Answer(str(sample.id), turn, one["prompt"], one["answer"], "stop", 0, 0, None)
        for turn, one in enumerate(kept, 1)
    ]


def _write_lines(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    write_atomic(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
