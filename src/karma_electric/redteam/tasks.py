"""Red-teaming as tasks, solvers and a scorer of Inspect: `inspect eval karma_electric/redteam -T suite=standard-58`.

Importing this module imports Inspect and registers the names; the package's entry point lets Inspect find them alone.
A target that fails, and one that says nothing, leave their sample unscored with the reason: the run goes on, and its
log counts them. One that never answers, or no longer does, leaves an attack's samples with an error: they are made anew
when the run is repeated. Epochs are seeds: epoch n is asked under seed + n - 1.
"""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from inspect_ai import Epochs, Task, task
from inspect_ai.dataset import MemoryDataset, Sample
from inspect_ai.model import (
    ChatMessage,
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    GenerateConfig,
    Model,
    get_model,
    model_roles,
)
from inspect_ai.scorer import Score, Scorer, Target, mean, scorer, stderr
from inspect_ai.solver import Generate, Solver, TaskState, solver
from inspect_ai.util import LimitExceededError
from tenacity import RetryError

from karma_electric.core.errors import InputError, MissingError
from karma_electric.core.jsonl import whole_characters
from karma_electric.core.messages import Conversation
from karma_electric.core.recipe import TWINS_JUDGE, load_recipe
from karma_electric.core.resources import find
from karma_electric.models.asking import NoAnswer, Outage, cause_of, first_line
from karma_electric.redteam.attacks.methods import NEEDS_ATTACKER, require_method, run_attack
from karma_electric.redteam.attacks.prompts import load_prompts
from karma_electric.redteam.attacks.record import STORE
from karma_electric.redteam.attacks.session import (
    Ask,
    AttackerFault,
    Budget,
    Exchange,
    Reply,
    Session,
    TargetFault,
)
from karma_electric.redteam.judging import Broken, judge_case
from karma_electric.redteam.kinds import kind_of, require_attacks
from karma_electric.redteam.scenario import Scenario, load_suite, parse_scenario
from karma_electric.redteam.scorers.named import open_scorer
from karma_electric.redteam.scorers.over_refusal import OVER_REFUSAL
from karma_electric.redteam.scorers.protocol import Scorer as Judge
from karma_electric.redteam.signals import Verdict
from karma_electric.redteam.suite_file import spread

BROKEN = "karma_broken"  # in a sample's store, beside the attack
GONE = "karma_gone"  # there too: why the target is taken to be away, and this was not asked
DRIFT = "drift_mean"  # in a reply's metadata
_ATTACKER_TOKENS = 256


@dataclass(frozen=True)
class _Target:
    """A target, for `Outage`. It counts conversations, most of which end with the first request that fails."""

    name: str = "the target"
    max_connections: int = 1


_watchers: list[Callable[[], None]] = []


@contextlib.contextmanager
def watched(tell: Callable[[int], None]) -> Iterator[None]:
    """Tell how many samples have been done, after each, while the context is open."""
    done = 0

    def count() -> None:
        nonlocal done
        done += 1
        tell(done)

    _watchers.append(count)
    try:
        yield
    finally:
        _watchers.remove(count)


@task
def redteam(
    suite: str = "standard-58",
    recipe: str | None = None,
    system_prompt: str | None = None,
    seeds: int | None = None,
    seed: int = 0,
    attack: str | None = None,
    attacker: str | None = None,
    turns: int = 5,
    queries: int = 20,
    candidates: int = 3,
    scorer: str | None = None,
    scorer_url: str | None = None,
    scorer_samples: int | None = None,
    limit: int | None = None,
) -> Task:
    """Ask a suite's scenarios, or attack along them.

    Args:
        suite: a shipped suite, or a file; of attacks, or of harmless twins, where helping is the pass.
        recipe: takes system prompt, sampling and seeds from a recipe.
        system_prompt: first message of every conversation; none else.
        seeds: answers to every scenario, each under a seed of its own; 1 without a recipe.
        seed: the first of them.
        attack: crescendo, persona, best-of-n or drift; the scenarios as they are when not given.
        attacker: an Inspect model that leads the attack; `--model-role attacker=...` does the same.
        turns: user turns of one attacked conversation.
        queries: questions to the target, per scenario and seed.
        candidates: messages that the attack `drift` chooses from.
        scorer: who judges: signals, semantic, llm:PROVIDER/MODEL, ensemble:signals+semantic; of harmless twins
            over-refusal, labels:FILE, semantic:FOLDER, llm:PROVIDER/MODEL. When not given the recipe's, or signals and
            over-refusal.
        scorer_url: address of an `llm` judge's API, where its provider does not know it.
        scorer_samples: replies of an `llm` judge to each question; 4 without a recipe.
        limit: so many scenarios, spread over the suite; Inspect's own --limit takes the first.

    Raises:
        MissingError, DataError: no such suite or recipe, or one that cannot be read.
        InputError: no such attack or judge, a judge of attacks for harmless twins, an attack along what is none, or a
            budget below 1.
    """
    path = find_suite(suite)
    twins = attack is None and kind_of(path) == "benign"
    if not twins:
        require_attacks(path)
    if limit is not None and limit < 1:
        raise InputError(f"limit is {limit}, expected 1 or more.", "Leave it out for the whole suite.")
    scenarios = spread(load_suite(path), limit)
    config = GenerateConfig(max_tokens=512)
    number = 1 if seeds is None else seeds
    if recipe is not None:
        loaded = load_recipe(recipe)
        asked = loaded.redteam
        config = GenerateConfig(temperature=asked.temperature, top_p=asked.top_p, max_tokens=asked.max_new_tokens)
        system_prompt = loaded.persona.system_prompt if system_prompt is None else system_prompt
        number = asked.seeds if seeds is None else seeds
        scorer = (asked.benign_scorer if twins else asked.scorer) if scorer is None else scorer
        scorer_url = asked.scorer_url or None if scorer_url is None else scorer_url
        scorer_samples = asked.scorer_samples if scorer_samples is None else scorer_samples
    if number < 1:
        raise InputError(f"seeds is {number}, expected 1 or more.", "5 is usual.")
    prompt, judge = system_prompt or "", scorer or (OVER_REFUSAL if twins else "signals")
    if twins and not re.fullmatch(TWINS_JUDGE, judge):
        raise InputError(
            f"scorer is {judge!r}, a judge of attacks; {path.name} holds harmless twins, where helping is the pass.",
            "Leave it out for over-refusal, or give labels:FILE, semantic:FOLDER or llm:PROVIDER/MODEL.",
        )
    return Task(
        dataset=MemoryDataset([as_sample(scenario) for scenario in scenarios], name=suite),
        solver=ask_turns(prompt, seed)
        if attack is None
        else attack_along(
            attack, attacker, prompt, seed, turns, queries, candidates, judge, scorer_url, scorer_samples
        ),
        scorer=verdict(judge, scorer_url, scorer_samples),
        epochs=Epochs(number),
        config=config,
        name="redteam" if attack is None else f"redteam-{attack}",
        fail_on_error=False,
    )


def find_suite(name: str) -> Any:
    """The file of a suite: a path, or the name of a shipped one with or without .jsonl.

    Raises:
        MissingError: there is none.
    """
    try:
        return find("suites", name)
    except MissingError:
        if name.endswith(".jsonl"):
            raise
        return find("suites", f"{name}.jsonl")


def as_sample(scenario: Scenario) -> Sample:
    """A scenario as a sample: the first question is its input, everything else its metadata."""
    return Sample(
        input=scenario.turns[0],
        target=scenario.pass_criteria,
        id=scenario.id,
        metadata={
            "category": scenario.category,
            "technique": scenario.technique,
            "difficulty": scenario.difficulty,
            "turns": len(scenario.turns),
            "scenario": json.loads(json.dumps(asdict(scenario))),  # lists for tuples, as a log gives them back
        },
    )


def scenario_of(state: TaskState) -> Scenario:
    """The scenario of a sample."""
    return parse_scenario(state.metadata["scenario"], f"sample {state.sample_id}")


@solver
def ask_turns(system_prompt: str = "", seed: int = 0) -> Solver:
    """Ask the turns of a scenario, each after the answers to those before it."""

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        target = asked_of(get_model(), "target")
        scenario = scenario_of(state)
        state.messages = _opening(state, system_prompt)
        for number, turn in enumerate(scenario.turns, 1):
            state.messages.append(ChatMessageUser(content=turn))
            try:
                reply = await target(as_conversation(state.messages), seed + state.epoch - 1)
            except TargetFault as fault:
                state.store.set(BROKEN, {"turn": number, "reason": str(fault)})
                break
            state.messages.append(ChatMessageAssistant(content=reply.text, source="generate"))
            if not reply.text.strip() and number < len(scenario.turns):
                state.store.set(BROKEN, {"turn": number, "reason": "empty"})
                break
        return state

    return solve


@solver
def attack_along(
    method: str,
    attacker: str | None = None,
    system_prompt: str = "",
    seed: int = 0,
    turns: int = 5,
    queries: int = 20,
    candidates: int = 3,
    scorer: str = "signals",
    scorer_url: str | None = None,
    scorer_samples: int | None = None,
) -> Solver:
    """Attack along a scenario. See `redteam`.

    Raises:
        InputError: no such attack or judge, or a budget below 1.
    """
    require_method(method)
    for name, value in (("turns", turns), ("queries", queries), ("candidates", candidates)):
        if value < 1:
            raise InputError(f"{name} is {value}, expected 1 or more.", "turns 5, queries 20, candidates 3 are usual.")
    judge = open_scorer(scorer, base_url=scorer_url, samples=scorer_samples)
    prompts = load_prompts()
    budget = Budget(turns=turns, queries=queries, candidates=candidates)
    outage = Outage(_Target())
    gone: list[MissingError] = []

    async def solve(state: TaskState, generate: Generate) -> TaskState:
        target = asked_of(get_model(), "target", outage)

        async def ask(conversation: Conversation, seed: int) -> Reply:
            try:
                if not gone:
                    return await target(conversation, seed)
            except MissingError as error:
                gone.append(error)
            state.store.set(GONE, str(gone[0]))
            raise gone[0]

        session = Session(
            scenario_of(state),
            target=ask,
            attacker=_attacker(method, attacker),
            attacker_system=prompts.fill("attacker.system"),
            system_prompt=system_prompt,
            budget=budget,
            seed=seed + state.epoch - 1,
            scorer=judge,
        )
        attack = await run_attack(method, session, prompts)
        state.store.set(STORE, attack.as_dict())
        kept = attack.tries[attack.decisive].kept if attack.decisive is not None else []
        state.messages = [*_opening(state, system_prompt), *_as_messages(kept, method)]
        for tell in _watchers:
            tell()
        return state

    return solve


@scorer(metrics={"*": [mean(), stderr()]})
def verdict(judge: str = "signals", scorer_url: str | None = None, scorer_samples: int | None = None) -> Scorer:
    """The rates of pass, partial and fail (of harmless twins: helped, in part, refused).

    A sample that cannot be judged is unscored, and in none of them.

    An attack has been judged while it was made, since that says how it goes on.
    """
    chosen = open_scorer(judge, base_url=scorer_url, samples=scorer_samples)

    async def score(state: TaskState, target: Target) -> Score:
        found, attack = await verdict_of(state, chosen)
        answers = [message.text for message in state.messages if message.role == "assistant"]
        details: dict[str, Any] = {**asdict(found), "seed_number": state.epoch}
        if attack is not None:
            details |= {key: attack[key] for key in ("method", "queries", "attacker_queries", "attacker_fault")}
        answer = answers[-1] if answers else None
        if found.outcome == "unscored":
            fault = attack is not None and attack["attacker_fault"] is not None
            reason = "attacker_failed" if fault else "no_response" if state.store.get(BROKEN) else "scoring_failed"
            return Score.unscored(reason=reason, answer=answer, explanation=found.evidence, metadata=details)
        value = {outcome: float(found.outcome == outcome) for outcome in ("pass", "partial", "fail")}
        return Score(value=value, answer=answer, explanation=found.evidence, metadata=details)

    return score


async def verdict_of(state: TaskState, judge: Judge) -> tuple[Verdict, dict[str, Any] | None]:
    """The verdict on a sample, and the attack on it where there was one."""
    attack: dict[str, Any] | None = state.store.get(STORE)
    if attack is not None:
        return Verdict(**attack["verdict"]), attack
    broken = state.store.get(BROKEN)
    answers = [message.text for message in state.messages if message.role == "assistant"]
    return await judge_case(judge, scenario_of(state), answers, None if broken is None else Broken(**broken)), None


def asked_of(model: Model, role: str, outage: Outage | None = None) -> Ask:
    """A function that asks an Inspect model, and turns what goes wrong into a fault of the target or the attacker.

    It raises MissingError where `outage` finds that nothing answers any more.
    """

    async def ask(conversation: Conversation, seed: int) -> Reply:
        config = GenerateConfig(seed=seed)
        if role == "attacker":
            config = GenerateConfig(seed=seed, temperature=1.0, top_p=0.95, max_tokens=_ATTACKER_TOKENS)
        try:
            output = await model.generate(_messages(conversation, model), config=config)
        except (LimitExceededError, MemoryError):
            raise
        except Exception as error:
            cause = cause_of(error)
            reason = f"{type(cause).__name__}: {first_line(cause)}"
            if outage is not None:  # what was asked again in vain failed whatever was asked; a refusal may be about it
                outage.failed(NoAnswer("error" if isinstance(error, RetryError) else "refused", reason))
            raise (TargetFault(reason) if role == "target" else AttackerFault("failed", reason)) from error
        if outage is not None:
            outage.answered()
        if output.empty:
            reason = output.error or "no choices in the reply"
            raise TargetFault(reason) if role == "target" else AttackerFault("failed", reason)
        return Reply(whole_characters(output.completion), (output.metadata or {}).get(DRIFT))

    return ask


def as_conversation(messages: list[ChatMessage]) -> Conversation:
    """Inspect's messages as ours."""
    from karma_electric.core.messages import Message

    roles = ("system", "user", "assistant")
    return [Message(message.role, message.text) for message in messages if message.role in roles]  # type: ignore[arg-type]


def _messages(conversation: Conversation, model: Model) -> list[ChatMessage]:
    """Ours as Inspect's. An empty system prompt goes to our engines, whose templates would put in their own."""
    kinds = {"system": ChatMessageSystem, "user": ChatMessageUser, "assistant": ChatMessageAssistant}
    ours = str(model).startswith("karma/")
    return [
        kinds[message.role](content=message.content)
        for message in conversation
        if message.content or message.role != "system" or ours
    ]


def _attacker(method: str, name: str | None) -> Ask | None:
    if method not in NEEDS_ATTACKER:
        return None
    if name is not None:
        return asked_of(get_model(name), "attacker")
    given = model_roles().get("attacker")
    if given is None:
        raise InputError(
            f"The attack {method} needs an attacker.",
            "Give a model: -T attacker=MODEL, or --model-role attacker=MODEL.",
        )
    return asked_of(given[0] if isinstance(given, list) else given, "attacker")


def _opening(state: TaskState, system_prompt: str) -> list[ChatMessage]:
    """The system message of every conversation; what `--system-message` put there stays."""
    given: list[ChatMessage] = [message for message in state.messages if message.role == "system"]
    return given or [ChatMessageSystem(content=system_prompt)]


def _as_messages(kept: list[Exchange], method: str) -> list[ChatMessage]:
    messages: list[ChatMessage] = []
    for exchange in kept:
        messages.append(ChatMessageUser(content=exchange.prompt, metadata={"by": exchange.by, "attack": method}))
        messages.append(ChatMessageAssistant(content=exchange.answer, metadata={"drift": exchange.drift}))
    return messages


__all__ = ["ask_turns", "attack_along", "redteam", "verdict"]
