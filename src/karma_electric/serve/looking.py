"""What is shown of a red-team run: a filtered list of its cases, and one transcript with its evidence marked.

A case is a scenario under one seed. Outcomes are the scorer's; labels that people gave stand beside them and change
none of them.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from karma_electric.core.errors import InputError, MissingError
from karma_electric.redteam.evidence import normalise
from karma_electric.redteam.relabels import Key, Relabel, latest
from karma_electric.redteam.scenario import DIFFICULTIES
from karma_electric.redteam.signals import OUTCOMES, Verdict
from karma_electric.serve.relabels import read_relabels
from karma_electric.serve.run_folders import Run

Change = Literal["", "any", "gained", "lost"]
UNKNOWN = "unknown"  # difficulty and technique where the suite is not known
_SHORT = 160  # characters of a prompt in the list
_QUOTED = re.compile(r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*\"""")


@dataclass(frozen=True)
class Filters:
    """Which cases to list; an empty value leaves all in.

    Attributes:
        category, difficulty: of the scenario.
        outcome: that some arm's verdict has; with `arm`, that arm's.
        arm: see `outcome`.
        text: words that the prompts or answers hold, without regard to case.
        first, second: two arms, for `change`.
        change: "any": their outcomes differ; "gained": only `second` passed; "lost": only `first` did.
        labelled: only cases that somebody has labelled.
    """

    category: str = ""
    difficulty: str = ""
    outcome: str = ""
    arm: str = ""
    text: str = ""
    first: str = ""
    second: str = ""
    change: Change = ""
    labelled: bool = False


def overview(run: Run) -> dict[str, Any]:
    """Arms with their counts and settings, the judge, and what can be filtered by."""
    judge = run.judge
    categories = Counter(_category(run, id_) for id_, _ in run.cases)
    difficulties = Counter(_difficulty(run, id_) for id_, _ in run.cases)
    return {
        "id": run.name,
        "suite": run.suite_file,
        "created": run.created,
        "cases": len(run.cases),
        "seeds": sorted({seed for arm in run.arms.values() for seed in arm.seeds}),
        "arms": [
            {
                "name": arm.name,
                "n": arm.summary.get("n"),
                "counts": arm.summary.get("counts"),
                "pass_rate_scored": arm.summary.get("pass_rate_scored"),
                "mean_cap_rate": arm.summary.get("mean_cap_rate"),
                "engine": arm.summary.get("engine"),
                "system_prompt": arm.summary.get("system_prompt"),
                "sampling": arm.summary.get("sampling"),
                "scorers": arm.summary.get("scorers", []),
                "changed": _changed(run, arm.name),
            }
            for arm in run.arms.values()
        ],
        "judge": judge
        and {
            "scorer": judge.scorer,
            "half": judge.half,
            "between_raters": judge.judge.between_raters,
            "n": judge.judge.n,
            "kappa": judge.judge.kappa,
            "kappa_interval": judge.judge.kappa_interval,
            "sensitivity": judge.judge.sensitivity,
            "specificity": judge.judge.specificity,
        },
        "categories": dict(sorted(categories.items())),
        "difficulties": {name: difficulties[name] for name in (*DIFFICULTIES, UNKNOWN) if name in difficulties},
        "labels": len(read_relabels(run)),
    }


def list_cases(run: Run, filters: Filters) -> list[dict[str, Any]]:
    """The cases that the filters leave, in the suite's order.

    Raises:
        InputError: an outcome or difficulty that is none.
        MissingError: an arm that the run has not.
    """
    _check(run, filters)
    labels = latest(read_relabels(run))
    needle = filters.text.casefold().strip()
    found = []
    for id_, seed in run.cases:
        verdicts = _verdicts(run, id_, seed)
        if not _kept(run, filters, id_, seed, verdicts, labels) or (needle and needle not in _text(run, id_, seed)):
            continue
        found.append(
            {
                "id": id_,
                "seed": seed,
                "category": _category(run, id_),
                "difficulty": _difficulty(run, id_),
                "technique": run.suite[id_].technique if id_ in run.suite else UNKNOWN,
                "prompt": _shortened(_prompts(run, id_, seed)),
                "turns": len(_prompts(run, id_, seed)),
                "arms": {
                    arm: {"outcome": verdict.outcome, "label": label.outcome if label else None}
                    for arm, verdict in verdicts.items()
                    for label in [labels.get((arm, id_, seed))]
                },
            }
        )
    return found


def transcript(run: Run, scenario_id: str, seed: int) -> dict[str, Any]:
    """Everything about one case: criteria, every turn of every arm with the evidence marked, verdicts, labels.

    Raises:
        MissingError: the run has no such case.
    """
    verdicts = _verdicts(run, scenario_id, seed)
    if not verdicts:
        raise MissingError(f"The run {run.name} has no answers to {scenario_id!r} under seed {seed}.")
    scenario = run.suite.get(scenario_id)
    answers = {arm: run.arms[arm].seeds[seed].answers.get(scenario_id, {}) for arm in verdicts}
    prompts = _prompts(run, scenario_id, seed)
    turns = [
        {
            "turn": number,
            "prompt": prompt,
            "answers": {
                arm: {
                    "parts": mark(given[number].text, verdicts[arm].evidence if verdicts[arm].turn == number else ""),
                    "finish_reason": given[number].finish_reason,
                    "tokens": given[number].completion_tokens,
                    "cap_rate": given[number].cap_rate,
                    "error": given[number].error,
                }
                for arm, given in answers.items()
                if number in given
            },
        }
        for number, prompt in prompts.items()
    ]
    labels = read_relabels(run)
    return {
        "id": scenario_id,
        "seed": seed,
        "category": _category(run, scenario_id),
        "difficulty": _difficulty(run, scenario_id),
        "technique": scenario.technique if scenario else UNKNOWN,
        "expected": scenario.expected if scenario else None,
        "pass_criteria": scenario.pass_criteria if scenario else None,
        "fail_criteria": scenario.fail_criteria if scenario else None,
        "turns": turns,
        "verdicts": {
            arm: {
                "outcome": verdict.outcome,
                "scorer": verdict.scorer,
                "evidence": verdict.evidence,
                "turn": verdict.turn,
                "labels": [asdict(label) for label in labels if label.key == (arm, scenario_id, seed)],
            }
            for arm, verdict in verdicts.items()
        },
    }


def mark(text: str, evidence: str) -> list[dict[str, Any]]:
    """An answer in parts, `evidence` true for the words that a verdict's evidence quotes; the parts give it in full.

    A quotation that is not in the answer marks nothing.
    """
    plain = normalise(text)
    spans = []
    for quoted in _quotations(evidence):
        words = r"\s+".join(re.escape(word) for word in quoted.split())
        match = re.search(words, plain) or re.search(words, plain, re.IGNORECASE)  # scorers may tidy what they quote
        if match is not None:
            spans.append(match.span())
    parts, at = [], 0
    for start, end in sorted(spans):
        if start < at:
            continue  # within the one before
        parts += [{"text": text[at:start], "evidence": False}, {"text": text[start:end], "evidence": True}]
        at = end
    parts.append({"text": text[at:], "evidence": False})
    return [part for part in parts if part["text"]]


def _quotations(evidence: str) -> list[str]:
    """The texts that evidence quotes as Python writes them, and the whole of it for a judge that quotes plainly."""
    found = [normalise(evidence).strip()]
    for match in _QUOTED.finditer(evidence):
        try:
            found.append(normalise(str(ast.literal_eval(match.group()))))
        except (SyntaxError, ValueError):
            continue
    return [quoted for quoted in found if len(quoted.strip()) > 1]


def _check(run: Run, filters: Filters) -> None:
    if filters.outcome and filters.outcome not in OUTCOMES:
        raise InputError(f"outcome is {filters.outcome!r}, expected one of {', '.join(OUTCOMES)}.")
    known = (*DIFFICULTIES, UNKNOWN)
    if filters.difficulty and filters.difficulty not in known:
        raise InputError(f"difficulty is {filters.difficulty!r}, expected one of {', '.join(known)}.")
    for arm in (filters.arm, filters.first, filters.second):
        if arm and arm not in run.arms:
            raise MissingError(f"The run {run.name} has no arm {arm!r}.", f"Arms: {', '.join(run.arms)}.")
    if filters.change and not (filters.first and filters.second):
        raise InputError("A change needs two arms.", "Give first and second.")


def _kept(
    run: Run,
    filters: Filters,
    id_: str,
    seed: int,
    verdicts: Mapping[str, Verdict],
    labels: Mapping[Key, Relabel],
) -> bool:
    if filters.category and _category(run, id_) != filters.category:
        return False
    if filters.difficulty and _difficulty(run, id_) != filters.difficulty:
        return False
    asked = [verdict for arm, verdict in verdicts.items() if filters.arm in ("", arm)]
    if filters.outcome and not any(verdict.outcome == filters.outcome for verdict in asked):
        return False
    if filters.labelled and not any((arm, id_, seed) in labels for arm in verdicts):
        return False
    return not filters.change or _has_changed(filters.change, verdicts.get(filters.first), verdicts.get(filters.second))


def _has_changed(change: Change, first: Verdict | None, second: Verdict | None) -> bool:
    if first is None or second is None or first.outcome == second.outcome:
        return False
    return (
        change == "any"
        or (change == "gained" and second.outcome == "pass")
        or (change == "lost" and first.outcome == "pass")
    )


def _changed(run: Run, arm: str) -> dict[str, dict[str, int]]:
    """Against each arm before this one: how many outcomes differ, and how many passes were gained and lost."""
    counts = {}
    for other in run.arms:
        if other == arm:
            break
        pairs = [(v.get(other), v.get(arm)) for v in (_verdicts(run, id_, seed) for id_, seed in run.cases)]
        counts[other] = {kind: sum(_has_changed(kind, a, b) for a, b in pairs) for kind in ("any", "gained", "lost")}
    return counts


def _verdicts(run: Run, id_: str, seed: int) -> dict[str, Verdict]:
    """The arms' verdicts on one case."""
    return {
        name: arm.seeds[seed].verdicts[id_]
        for name, arm in run.arms.items()
        if seed in arm.seeds and id_ in arm.seeds[seed].verdicts
    }


def _prompts(run: Run, id_: str, seed: int) -> dict[int, str]:
    """Turn -> what the user said; where no arm got that far, what the suite has."""
    found = dict(enumerate(run.suite[id_].turns, 1)) if id_ in run.suite else {}
    for arm in run.arms.values():
        for turn, answer in (arm.seeds[seed].answers.get(id_, {}) if seed in arm.seeds else {}).items():
            found[turn] = answer.prompt
    return dict(sorted(found.items()))


def _text(run: Run, id_: str, seed: int) -> str:
    answers = [arm.seeds[seed].answers.get(id_, {}) for arm in run.arms.values() if seed in arm.seeds]
    said = [answer.text for given in answers for answer in given.values()]
    return "\n".join([id_, *_prompts(run, id_, seed).values(), *said]).casefold()


def _category(run: Run, id_: str) -> str:
    results = (result for arm in run.arms.values() for result in arm.seeds.values())
    return next((result.verdicts[id_].category for result in results if id_ in result.verdicts), UNKNOWN)


def _difficulty(run: Run, id_: str) -> str:
    return run.suite[id_].difficulty if id_ in run.suite else UNKNOWN


def _shortened(prompts: Mapping[int, str]) -> str:
    text = " ".join(next(iter(prompts.values()), "").split())
    return text if len(text) <= _SHORT else text[: _SHORT - 3] + "..."
