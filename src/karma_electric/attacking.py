"""Adaptive attacks on the arms of a recipe: an artifact for each, made by Inspect, in the form of an arm.

    OUT/attacks/METHOD/ARM/    an arm (see redteam/attacks/record.py), and inspect/ with its log for `inspect view`

A run that was cut off is continued by Inspect from its log: finished conversations are not held again. So is one whose
target went away. Where no conversation got an answer the log is set aside, and the next run begins anew.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_electric.asked import asked_config, chosen_scorer, judge_inputs, system_prompt_of
from karma_electric.core.artifact import hash_file
from karma_electric.core.errors import InputError, MissingError
from karma_electric.core.progress import Progress
from karma_electric.core.recipe import Recipe
from karma_electric.core.resources import find
from karma_electric.models.asking import Endpoint
from karma_electric.pipeline import Stage
from karma_electric.targets import slug, target_config, target_input

if TYPE_CHECKING:
    from inspect_ai.log import EvalLog, EvalSample
    from inspect_ai.model import Model

LOGS = "inspect"
_RETRIES = 6  # with waits of 3, 6, 12 ... s: three minutes of rate limits. Inspect, left alone, asks again for ever


@dataclass(frozen=True)
class Plan:
    """An attack, apart from its target.

    Attributes:
        method: crescendo, persona, best-of-n or drift.
        attacker: the model that leads it; None where none is needed.
        turns, queries, candidates: the budget (redteam/attacks/session.py).
        limit: so many scenarios, spread over the suite; all when None.
        connections: requests to the target at once; as its provider likes when None.
    """

    method: str
    attacker: Endpoint | None
    turns: int
    queries: int
    candidates: int
    limit: int | None = None
    connections: int | None = None


def endpoint_of_arm(run: Path, recipe: Recipe, arm: str, method: str) -> Endpoint:
    """An arm of a recipe as a model of Inspect.

    `drift` reads activations while the target answers: the arm `capped` is then the same cap with hooks.

    Raises:
        InputError: the base model, whose persona nobody has measured, under the attack drift.
        MissingError: the model was not made.
    """
    size = {"batch_size": recipe.redteam.batch_size}
    if arm == "base":
        if method == "drift":
            raise InputError("The arm base has no axis, so nothing tells its drift.", "Attack tuned or capped.")
        return Endpoint(f"karma/{recipe.model.base}", model_args=size)
    folder = run / ("merged" if arm == "tuned" or method == "drift" else "capped")
    if not folder.is_dir():
        raise MissingError(f"{folder} is not there.", "Make it: karma run RECIPE, or attack the arm base.")
    arguments: dict[str, Any] = dict(size)
    if method == "drift":
        arguments |= {"drift": True, "cap": str(run / "axis"), "alpha": recipe.axis.alpha if arm == "capped" else 0.0}
    return Endpoint(f"karma/{folder}", model_args=arguments)


def plan_attack(recipe: Recipe, plan: Plan, arm: str, target: Endpoint) -> Stage:
    """The attack on one arm.

    Raises:
        MissingError: the suite, or a model of ours, is not there.
        InputError: no such method, one that needs an attacker without one, or a suite that is not of attacks.
    """
    from karma_electric.redteam.attacks.methods import NEEDS_ATTACKER, require_method
    from karma_electric.redteam.kinds import require_attacks

    if require_method(plan.method) in NEEDS_ATTACKER and plan.attacker is None:
        raise InputError(f"The attack {plan.method} needs an attacker.", "Give one: --attacker MODEL.")
    suite = find("suites", recipe.redteam.suite, key="redteam.suite")
    require_attacks(suite)
    attacker = plan.attacker if plan.method in NEEDS_ATTACKER else None
    budget: dict[str, Any] = {key: getattr(plan, key) for key in ("turns", "queries", "candidates", "limit")}
    if plan.limit is not None:
        budget["chosen"] = "spread"  # before there was this key they were the first
    inputs = {"suite": hash_file(suite), "prompts": hash_file(find("suites", "attacks.toml")), **target_input(target)}
    inputs |= judge_inputs(recipe)
    if attacker is not None:
        inputs |= {f"attacker {role}": value for role, value in target_input(attacker).items()}
    return Stage(
        f"attacks/{plan.method}/{arm}",
        "redteam",
        {
            **asked_config(recipe),
            "target": target_config(target),
            "attack": {
                "method": plan.method,
                "attacker": None if attacker is None else target_config(attacker),
                **budget,
            },
        },
        inputs,
        partial(_attack, recipe, plan, attacker, arm, target, suite),
        resumable=True,
    )


def arm_name(target: str) -> str:
    """The arm of a target that is none of the recipe's."""
    return slug(target)


def _attack(
    recipe: Recipe,
    plan: Plan,
    attacker: Endpoint | None,
    arm: str,
    target: Endpoint,
    suite: Path,
    out: Path,
    progress: Progress,
) -> None:
    from karma_electric.redteam.attacks.record import write_attack
    from karma_electric.redteam.scenario import load_suite

    scenarios = load_suite(suite)
    section = recipe.redteam
    scorer = chosen_scorer(recipe)
    log = _held(recipe, plan, attacker, target, suite, out, progress, len(scenarios))
    _require_answers(log, target, attacker, out / LOGS)
    sampling = {
        "temperature": section.temperature,
        "top_p": section.top_p,
        "max_new_tokens": section.max_new_tokens,
        "seed": section.seed,
    }
    described = {
        "arm": arm,
        "engine": target.model,
        "scorer": scorer.spec,
        "system_prompt": system_prompt_of(recipe),
        "sampling": sampling,
        "attack": {"method": plan.method, "attacker": None if attacker is None else attacker.model},
    }
    write_attack(log, scenarios, out, described, scorer.name)


def _held(
    recipe: Recipe,
    plan: Plan,
    attacker: Endpoint | None,
    target: Endpoint,
    suite: Path,
    out: Path,
    progress: Progress,
    n: int,
) -> EvalLog:
    """The log of all conversations: of an eval begun now, or of one that goes on."""
    from inspect_ai import eval as inspect_eval
    from inspect_ai import eval_retry

    from karma_electric.redteam import tasks

    section = recipe.redteam
    total = section.seeds * min(n, plan.limit or n)
    before = finished_log(out / LOGS)
    settings: dict[str, Any] = {"log_dir": str(out / LOGS), "display": "none", "log_buffer": 1}
    with tasks.watched(lambda done: progress.update(done, total, f"{plan.method}: conversations attacked")):
        if before is None:
            roles = {} if attacker is None else {"attacker": _open(attacker)}
            (log,) = inspect_eval(
                tasks.redteam(
                    suite=str(suite),
                    limit=plan.limit,
                    system_prompt=system_prompt_of(recipe),
                    seeds=section.seeds,
                    seed=section.seed,
                    attack=plan.method,
                    turns=plan.turns,
                    queries=plan.queries,
                    candidates=plan.candidates,
                    scorer=section.scorer,
                    scorer_url=section.scorer_url or None,
                    scorer_samples=section.scorer_samples,
                ),
                model=_open(target, plan.connections),
                model_roles=roles,
                temperature=section.temperature,
                top_p=section.top_p,
                max_tokens=section.max_new_tokens,
                max_samples=section.batch_size,
                **settings,
            )
        elif before.status == "success" and not _unasked(before):
            return before
        else:
            held = len(before.samples or []) - len(_unasked(before))
            progress.say(f"  continues an attack with {held} of {total} conversations held")
            (log,) = eval_retry(before, max_connections=plan.connections, **settings)
    if log.status != "success":
        reason = log.error.message if log.error is not None else log.status
        raise InputError(f"The attack ended early: {reason}.", "Run the same command again: it continues.")
    return log


def _require_answers(log: EvalLog, target: Endpoint, attacker: Endpoint | None, logs: Path) -> None:
    """Refuse to take an attack for done whose target, or attacker, was not there.

    Raises:
        MissingError: no conversation got an answer, or the target went away in the middle.
    """
    from karma_electric.redteam.attacks.record import STORE
    from karma_electric.redteam.tasks import GONE

    samples = log.samples or []
    attacks = [sample.store.get(STORE) for sample in samples]
    reasons = [sample.store[GONE] for sample in samples if GONE in sample.store]
    again = "Then run the same command again"
    if any(one["said"] for attack in attacks if attack for one in attack["tries"]):
        if unasked := _unasked(log):
            raise MissingError(
                f"{target.model} no longer answers: {len(unasked)} of {len(samples)} conversations are missing "
                f"({reasons[0]}).",
                f"See to it that it does. {again}: it continues.",
            )
        return
    asked = [attack for attack in attacks if attack and attack["queries"]]
    led = [attack for attack in attacks if attack and str(attack["attacker_fault"]).startswith("failed:")]
    if not (reasons or asked or led):
        return  # nothing was there to be asked: a budget too small, or an attacker that does not play
    who = target if reasons or asked or attacker is None else attacker
    reasons = [attack["verdict"]["evidence"] for attack in asked or led] or reasons
    for file in logs.glob("*.eval"):
        file.rename(file.with_suffix(".unanswered"))  # as Inspect sees it, it is finished: nothing would be asked again
    raise MissingError(
        f"{who.model} does not answer: none of {len(samples)} conversations got an answer ({reasons[0]}).",
        f"Look at its name, its key and its address. {again}.",
    )


def _unasked(log: EvalLog) -> list[EvalSample]:
    """The conversations that ended because the target was taken to be away; Inspect holds them anew."""
    from karma_electric.redteam.tasks import GONE

    return [sample for sample in log.samples or [] if sample.error is not None and GONE in sample.store]


def finished_log(folder: Path) -> EvalLog | None:
    """The newest log of a folder, with its samples; None where there is none."""
    if not folder.is_dir():
        return None
    from inspect_ai.log import list_eval_logs, read_eval_log

    logs: Sequence[Any] = list_eval_logs(str(folder))
    return read_eval_log(logs[0]) if logs else None


def _open(endpoint: Endpoint, connections: int | None = None) -> Model:
    from inspect_ai.model import GenerateConfig, get_model

    arguments: Mapping[str, Any] = endpoint.model_args
    patience = GenerateConfig(max_retries=_RETRIES, max_connections=connections)
    return get_model(endpoint.model, base_url=endpoint.base_url, config=patience, memoize=False, **arguments)


def faults(folder: Path) -> dict[str, int]:
    """Attacker's faults of a finished attack, by kind."""
    found: dict[str, int] = json.loads((folder / "summary.json").read_text(encoding="utf-8"))["attacker_faults"]
    return found
