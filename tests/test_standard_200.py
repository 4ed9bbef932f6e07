"""The larger red-team suite: the 58 of `standard-58` and fresh scenarios after them, each its own situation."""

from __future__ import annotations

import re
import time
from collections import Counter

import pytest

from karma_electric.core.resources import find
from karma_electric.redteam.scenario import CATEGORIES, DIFFICULTIES, SIGNAL_FLAGS, Scenario, load_suite
from karma_electric.redteam.signals import score

PATH = find("suites", "suites/standard-200.jsonl")
SUITE = load_suite(PATH)
FRESH = SUITE[58:]


def opening(scenario: Scenario) -> str:
    return " ".join(re.findall(r"[^\W_]+(?:['’]\w+)?", scenario.turns[0].lower())[:3])


def test_it_holds_the_58_byte_for_byte_and_at_least_200_in_all() -> None:
    smaller = find("suites", "suites/standard-58.jsonl").read_bytes()
    assert PATH.read_bytes().startswith(smaller)
    assert len(SUITE) >= 200
    assert SUITE[:58] == load_suite(find("suites", "suites/standard-58.jsonl"))


def test_the_fresh_scenarios_are_spread_over_categories_difficulties_and_turns() -> None:
    assert set(Counter(scenario.category for scenario in FRESH)) == set(CATEGORIES)
    assert all(23 <= count <= 25 for count in Counter(scenario.category for scenario in FRESH).values())
    share = {name: count / len(FRESH) for name, count in Counter(s.difficulty for s in FRESH).items()}
    wanted = {"easy": 0.20, "medium": 0.35, "hard": 0.30, "extreme": 0.15}
    assert all(abs(share[name] - part) <= 0.05 for name, part in wanted.items()), share
    several = [scenario for scenario in FRESH if len(scenario.turns) > 1]
    assert len(several) >= 30
    assert all(3 <= len(scenario.turns) <= 6 for scenario in several)
    assert {scenario.category for scenario in several} == set(CATEGORIES)
    lengths = [len(" ".join(scenario.turns).split()) for scenario in FRESH]
    assert min(lengths) <= 15
    assert 200 <= max(lengths) <= 320


def test_ids_continue_the_numbers_of_the_58() -> None:
    for category in CATEGORIES:
        ids = [scenario.id for scenario in SUITE if scenario.category == category]
        assert ids == [f"standard-{category}-{number:02d}" for number in range(1, len(ids) + 1)]


def test_techniques_and_openings_are_its_own() -> None:
    assert max(Counter(scenario.technique for scenario in FRESH).values()) <= 2
    assert not [start for start, count in Counter(map(opening, SUITE)).items() if count > 1]
    assert max(Counter(turn for scenario in SUITE for turn in scenario.turns).values()) == 1


def test_the_table_of_the_readme_counts_this_suite() -> None:
    readme = find("suites", "suites/README.md").read_text(encoding="utf-8")
    for category in (*CATEGORIES, "all"):
        rows = [scenario for scenario in SUITE if category in (scenario.category, "all")]
        levels = Counter(scenario.difficulty for scenario in rows)
        several = sum(len(scenario.turns) > 1 for scenario in rows)
        cells = (category, *(levels[name] for name in DIFFICULTIES), len(rows), several)
        assert "| " + " | ".join(map(str, cells)) + " |" in readme


@pytest.mark.parametrize("scenario", FRESH, ids=lambda scenario: scenario.id)
def test_signals_are_short_few_and_silent_on_what_says_nothing(scenario: Scenario) -> None:
    assert 2 <= len(scenario.pass_signals) <= 5
    assert 2 <= len(scenario.fail_signals) <= 4
    assert all(len(pattern) <= 240 for pattern in (*scenario.pass_signals, *scenario.fail_signals))
    asked = "\n".join(scenario.turns)
    assert not [pattern for pattern in scenario.fail_signals if re.search(pattern, asked, SIGNAL_FLAGS)]
    idle = "That is a fair thing to ask. It depends on a few points, and there is more than one way of looking at them."
    assert score(scenario, [idle] * len(scenario.turns)).outcome == "unscored"


def test_the_signals_stay_fast_on_long_tedious_answers() -> None:
    answers = ["x" * 4000, "I " * 2000, "1. use " * 500, "\n" * 4000, "dear tenants she he they " * 150]
    started = time.process_time()
    for scenario in FRESH:
        for pattern in (*scenario.pass_signals, *scenario.fail_signals):
            for answer in answers:
                re.findall(pattern, answer, SIGNAL_FLAGS)
    assert time.process_time() - started < 60  # a catastrophic pattern would not end at all
