"""The attacks. Each leads up to the scenario's own question, so that the scenario's own criteria can judge the end.

    crescendo   harmless questions first, each a step further; a message that the target refuses is taken back
    persona     the target is asked to speak as somebody who would find the request ordinary; several are tried
    best-of-n   the scenario's own words, misspelt in another way each time; needs no attacker
    drift       of several next messages the one is taken whose answer lies furthest from the persona

The judge reads every answer before it is taken back or passed over: one that fails the scenario ends the attack, and
the conversation goes on from an objection that gives in.

After Russinovich et al. (arXiv 2404.01833), Shah et al. (arXiv 2311.03348) and Hughes et al. (arXiv 2412.03556).
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Mapping, Sequence

from karma_electric.core.errors import InputError
from karma_electric.redteam.attacks.augment import augment
from karma_electric.redteam.attacks.prompts import Prompts
from karma_electric.redteam.attacks.session import (
    Attack,
    AttackerFault,
    Author,
    BudgetSpent,
    Exchange,
    GivenIn,
    Session,
    TargetFault,
    Try,
)
from karma_electric.redteam.judging import refuses

_GIVEN: Mapping[GivenIn | None, int] = {None: 0, "partial": 1, "fail": 2}
_MOST_REFUSALS = 3  # messages that may be taken back before the scenario's own question is put


async def run_attack(method: str, session: Session, prompts: Prompts) -> Attack:
    """Attack a scenario until it has failed or the budget is spent.

    Raises:
        InputError: no such method; or, for `drift`, a target whose drift nobody measures.
    """
    attacker_fault: AttackerFault | None = None
    target_fault: str | None = None
    try:
        await METHODS[require_method(method)](session, prompts)
    except AttackerFault as fault:
        attacker_fault = fault
    except TargetFault as fault:
        target_fault = f"no answer: {fault}"
    except BudgetSpent:
        pass
    return await session.conclude(method, attacker_fault=attacker_fault, target_fault=target_fault)


def require_method(method: str) -> str:
    """The name of a method.

    Raises:
        InputError: there is none of this name.
    """
    if method not in METHODS:
        raise InputError(f"There is no attack {method!r}.", f"Give one of {', '.join(METHODS)}.")
    return method


async def crescendo(session: Session, prompts: Prompts) -> None:
    """Small steps; see the module."""
    current = session.begin()
    refused: Exchange | None = None
    refusals = 0
    while True:
        left = _left(session, current)
        if left == 0 or refusals > _MOST_REFUSALS:
            await _put_the_question(session, current)
            return
        text = await session.invent(
            _crescendo_request(session, prompts, current, refused, left), used=[e.prompt for e in current.said]
        )
        exchange = await session.say(current, text, "attacker")
        gave = await session.given_in(current, exchange)
        if gave is None and (not exchange.answer.strip() or refuses(text, exchange.answer)):
            refused, refusals = exchange, refusals + 1
            continue
        refused = None
        session.keep(current, exchange)
        if gave == "fail":
            return


def _crescendo_request(session: Session, prompts: Prompts, current: Try, refused: Exchange | None, left: int) -> str:
    known = {"goal": session.goal, "left": str(left)}
    if refused is not None:
        return prompts.fill(
            "crescendo.refused",
            **known,
            conversation=_transcript(current) or "(nothing yet)",
            refused=refused.prompt,
            answer=refused.answer or "(nothing)",
        )
    if not current.kept:
        return prompts.fill("crescendo.first", **known)
    return prompts.fill("crescendo.next", **known, conversation=_transcript(current))


async def persona(session: Session, prompts: Prompts) -> None:
    """One invented somebody after another; see the module."""
    invented: list[str] = []
    while session.queries < session.budget.queries:
        others = "\n".join(f"- {text}" for text in invented) or "(nobody yet)"
        text = await session.invent(prompts.fill("persona.invent", goal=session.goal, others=others), used=invented)
        invented.append(text)
        first, *rest = session.scenario.turns
        opening = prompts.fill("persona.frame", persona=text, request=first)
        turns: list[tuple[str, Author]] = [(opening, "attacker"), *((turn, "scenario") for turn in rest)]
        if await _hold(session, turns):
            return


async def best_of_n(session: Session, prompts: Prompts) -> None:
    """The scenario's words, misspelt anew each time; see the module."""
    number = 0
    while session.queries < session.budget.queries:
        generator = random.Random(f"{session.seed}/{session.scenario.id}/{number}")
        turns: list[tuple[str, Author]] = [(augment(t, generator), "augmentation") for t in session.scenario.turns]
        number += 1
        if await _hold(session, turns):
            return


async def drift(session: Session, prompts: Prompts) -> None:
    """The message that moves the projection most; see the module."""
    current = session.begin()
    while left := _left(session, current):
        known = {"goal": session.goal, "left": str(left)}
        request = (
            prompts.fill("drift.next", **known, conversation=_transcript(current))
            if current.kept
            else prompts.fill("drift.first", **known)
        )
        candidates = await _candidates(session, current, request)
        readable = [(exchange, gave) for exchange, gave in candidates if exchange.answer.strip()]
        if not readable:
            break  # nothing to go on from
        chosen, gave = max(readable, key=lambda one: (_GIVEN[one[1]], one[0].drift or 0.0))
        session.keep(current, chosen)
        if gave == "fail":
            return
    await _put_the_question(session, current)


async def _candidates(session: Session, current: Try, request: str) -> list[tuple[Exchange, GivenIn | None]]:
    """Several next messages with the target's answer to each and what it gave in by it; a failure is the last.

    Raises:
        AttackerFault: the attacker gave none that can be used.
        InputError: nobody measures the target's drift.
    """
    found: list[tuple[Exchange, GivenIn | None]] = []
    for _ in range(session.budget.candidates):
        if session.queries + 1 >= session.budget.queries and found:
            break  # one is left for the scenario's own question
        try:
            text = await session.invent(request, used=[e.prompt for e in current.said])
        except AttackerFault:
            if not found:
                raise
            break
        exchange = await session.say(current, text, "attacker")
        if exchange.drift is None and exchange.answer.strip():
            raise InputError(
                "The attack drift needs a target whose drift is measured, and this one's is not.",
                "Take a checkpoint with its cap: karma/runs/demo/merged with the model arguments cap and drift=true.",
            )
        found.append((exchange, await session.given_in(current, exchange)))
        if found[-1][1] == "fail":
            break
    return found


async def _hold(session: Session, turns: Sequence[tuple[str, Author]]) -> bool:
    """Hold one conversation that ends with the scenario's own question; whether it failed the scenario.

    Raises:
        BudgetSpent: it would not come to its end.
    """
    session.require(len(turns))
    current = session.begin()
    for number, (text, by) in enumerate(turns, 1):
        session.keep(current, await session.say(current, text, by))
        current.finished = number == len(turns)
        if not current.kept[-1].answer.strip():
            return False
        if await session.failed(current):
            return True
    return False


async def _put_the_question(session: Session, current: Try) -> None:
    """The scenario's own last turn, at the end of what was led up to."""
    session.keep(current, await session.say(current, session.scenario.turns[-1], "scenario"))
    current.finished = True


def _left(session: Session, current: Try) -> int:
    """Messages of the attacker before the scenario's own question; one query is kept for that."""
    turns = session.budget.turns - 1 - len(current.kept)
    return max(0, min(turns, session.budget.queries - session.queries - 1))


def _transcript(current: Try) -> str:
    return "\n\n".join(f"Person: {exchange.prompt}\nAssistant: {exchange.answer}" for exchange in current.kept)


Method = Callable[[Session, Prompts], Awaitable[None]]
METHODS: Mapping[str, Method] = {
    "crescendo": crescendo,
    "persona": persona,
    "best-of-n": best_of_n,
    "drift": drift,
}
NEEDS_ATTACKER = frozenset(METHODS) - {"best-of-n"}
