"""What the suites of benign twins and of drifting conversations hold to: counts, balance, openings, signals."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Iterable

import pytest

from benign_answers import HELPFUL, PLAIN_REFUSALS, REFUSALS
from karma_electric.core.resources import find, resource_root
from karma_electric.data.decontaminate import find_overlaps, read_references
from karma_electric.data.texts import words
from karma_electric.redteam.drift_suite import CONTROL_KINDS, KINDS, load_drift_suite
from karma_electric.redteam.scenario import CATEGORIES, DIFFICULTIES, SIGNAL_FLAGS, Scenario, load_suite
from karma_electric.redteam.signals import score

BENIGN = {scenario.id: scenario for scenario in load_suite(find("suites", "suites/benign-100.jsonl"))}
DRIFT = load_drift_suite(find("suites", "suites/drift-24.jsonl"))
RED_TEAM = {
    scenario.id for name in ("starter-30", "standard-58") for scenario in load_suite(find("suites", f"{name}.jsonl"))
}
CARD = (resource_root("suites") / "README.md").read_text(encoding="utf-8")


def matching(patterns: Iterable[str], text: str) -> list[str]:
    """The patterns that are found in a text."""
    return [pattern for pattern in patterns if re.search(pattern, text, SIGNAL_FLAGS)]


def openings(texts: Iterable[str]) -> Counter[str]:
    """How often each first two words occur."""
    return Counter(" ".join(words(text)[:2]) for text in texts)


# --- benign twins


def test_a_hundred_twins_are_spread_over_the_six_categories() -> None:
    assert len(BENIGN) == 100
    assert Counter(scenario.category for scenario in BENIGN.values()) == {
        "jailbreak": 17,
        "harmful-code": 17,
        "social-engineering": 17,
        "persona-stripping": 16,
        "compliance-exploit": 17,
        "multi-turn-escalation": 16,
    }
    for category in CATEGORIES:
        of_category = [scenario.id for scenario in BENIGN.values() if scenario.category == category]
        assert of_category == [f"benign-{category}-{n:02}" for n in range(1, len(of_category) + 1)]


def test_alarming_surfaces_are_graded_and_ten_have_several_turns() -> None:
    difficulties = Counter(scenario.difficulty for scenario in BENIGN.values())
    assert set(difficulties) == set(DIFFICULTIES)
    assert min(difficulties.values()) >= 8
    several = [scenario for scenario in BENIGN.values() if len(scenario.turns) > 1]
    assert len(several) == 10
    assert all(2 <= len(scenario.turns) <= 4 for scenario in several)


def test_no_kind_of_twin_is_used_for_more_than_a_few() -> None:
    kinds = Counter(scenario.technique for scenario in BENIGN.values())
    assert len(kinds) >= 60
    assert max(kinds.values()) <= 5


def test_the_card_names_the_red_team_scenario_of_most_twins() -> None:
    twins = {
        f"benign-{category}-{twin}": f"{suite}-{category}-{number}"
        for category in CATEGORIES
        for row in re.findall(rf"^\| {category} \| (\d\d s.+) \|$", CARD, re.MULTILINE)
        for twin, suite, number in re.findall(r"(\d\d) (starter|standard)-(\d\d)", row)
    }
    assert twins.keys() <= BENIGN.keys()
    assert set(twins.values()) <= RED_TEAM
    assert len(twins) == len(set(twins.values())) >= 50
    assert f"{len(twins)} are twins of one red-team scenario each" in CARD


def test_the_card_counts_what_is_there() -> None:
    for category in (*CATEGORIES, "all"):
        chosen = [scenario for scenario in BENIGN.values() if category in (scenario.category, "all")]
        counts = [sum(scenario.difficulty == difficulty for scenario in chosen) for difficulty in DIFFICULTIES]
        several = sum(len(scenario.turns) > 1 for scenario in chosen)
        assert f"| {category} | {' | '.join(map(str, [*counts, len(chosen), several]))} |" in CARD
    for kind in KINDS:
        turns = ", ".join(str(len(conversation.turns)) for conversation in DRIFT if conversation.kind == kind)
        assert f"| {kind} | {'yes' if kind in CONTROL_KINDS else 'no'} | {turns} |" in CARD


@pytest.mark.parametrize("scenario", BENIGN.values(), ids=BENIGN)
def test_signals_are_not_met_by_the_question_itself(scenario: Scenario) -> None:
    assert 3 <= len(scenario.pass_signals) <= 6
    assert 2 <= len(scenario.fail_signals) <= 4
    asked = "\n".join(scenario.turns)
    assert matching((*scenario.pass_signals, *scenario.fail_signals), asked) == []


@pytest.mark.parametrize("scenario", BENIGN.values(), ids=BENIGN)
def test_a_plain_refusal_is_seen_and_is_no_help(scenario: Scenario) -> None:
    for refusal in PLAIN_REFUSALS:
        assert matching(scenario.fail_signals, refusal), refusal
        assert matching(scenario.pass_signals, refusal) == []


def test_the_red_team_scorer_is_too_kind_to_refusals_as_the_card_says() -> None:
    outcomes = {score(scenario, [PLAIN_REFUSALS[0]]).outcome for scenario in BENIGN.values()}
    assert outcomes == {"partial"}
    assert "plain refusal comes out as partial" in CARD


def test_every_scenario_has_a_helpful_answer_and_five_of_each_category_a_refusal() -> None:
    assert HELPFUL.keys() == BENIGN.keys()
    assert Counter(BENIGN[id].category for id in REFUSALS) == dict.fromkeys(CATEGORIES, 5)


@pytest.mark.parametrize(("id", "answer"), [(id, answer) for id, answers in HELPFUL.items() for answer in answers])
def test_a_short_helpful_answer_is_seen_and_is_no_refusal(id: str, answer: str) -> None:
    assert len(matching(BENIGN[id].pass_signals, answer)) >= 2
    assert matching(BENIGN[id].fail_signals, answer) == []


@pytest.mark.parametrize("id", REFUSALS)
def test_a_refusal_that_names_what_it_refuses_is_seen_and_is_no_help(id: str) -> None:
    assert matching(BENIGN[id].fail_signals, REFUSALS[id])
    assert matching(BENIGN[id].pass_signals, REFUSALS[id]) == []


def test_help_with_one_thing_is_seldom_taken_for_help_with_another() -> None:
    answers = [(id, answer) for id, given in HELPFUL.items() for answer in given]
    others = [(scenario, answer) for id, answer in answers for scenario in BENIGN.values() if scenario.id != id]
    mistaken = sum(len(matching(scenario.pass_signals, answer)) >= 2 for scenario, answer in others)
    refused = sum(bool(matching(scenario.fail_signals, answer)) for scenario, answer in others)
    assert mistaken <= 0.02 * len(others)
    assert refused <= 0.01 * len(others)


def test_the_signals_stay_fast_on_long_tedious_answers() -> None:
    answers = ["x" * 4000, "I can't " * 1000, "1. use " * 500, "\n" * 4000, "mother: (whisper) 12 the bolt, " * 150]
    started = time.process_time()
    for scenario in BENIGN.values():
        for answer in answers:
            for pattern in (*scenario.pass_signals, *scenario.fail_signals):
                re.findall(pattern, answer, SIGNAL_FLAGS)
    assert time.process_time() - started < 30


# --- conversations


def test_four_conversations_of_each_of_the_six_kinds() -> None:
    assert Counter(conversation.kind for conversation in DRIFT) == dict.fromkeys(KINDS, 4)
    assert [conversation.id for conversation in DRIFT] == [
        f"drift-{kind}-{n:02}" for kind in KINDS for n in range(1, 5)
    ]
    assert sum(conversation.control for conversation in DRIFT) == 4 * len(CONTROL_KINDS)
    assert all(4 <= len(conversation.turns) <= 8 for conversation in DRIFT)


# --- both


def test_no_two_begin_with_the_same_words_and_no_turn_is_asked_twice() -> None:
    first = [scenario.turns[0] for scenario in BENIGN.values()] + [conversation.turns[0] for conversation in DRIFT]
    assert {opening for opening, n in openings(first).items() if n > 1} == set()
    assert max(Counter(text.split()[0].casefold() for text in first).values()) <= 0.1 * len(first)
    turns = [turn for scenario in BENIGN.values() for turn in scenario.turns]
    turns += [turn for conversation in DRIFT for turn in conversation.turns]
    assert max(Counter(" ".join(words(turn)) for turn in turns).values()) == 1


def test_nothing_is_shared_word_for_word_with_another_suite_or_the_corpus() -> None:
    ours = [find("suites", f"suites/{name}.jsonl") for name in ("benign-100", "drift-24")]
    files = [*resource_root("suites").glob("*.jsonl"), *resource_root("corpus").glob("*.jsonl")]
    own = {path.name for path in ours}
    others = sorted(  # labelled answers to twins repeat what they answer, which is benign-100
        file for file in files if file.name not in own and not file.name.startswith("labelled-benign-")
    )
    assert len(others) >= 10
    assert find_overlaps(read_references(ours), read_references(others), semantic=None) == []


def test_lengths_vary() -> None:
    lengths = sorted(len(words(scenario.turns[-1])) for scenario in BENIGN.values())
    assert lengths[10] <= 45
    assert lengths[90] >= 95
