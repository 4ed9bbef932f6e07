"""A suite is read strictly: every problem is an error that names the file, the line, and what was expected."""

import json
import re
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from karma_electric.core.errors import DataError, MissingError
from karma_electric.core.resources import find
from karma_electric.redteam.scenario import CATEGORIES, SIGNAL_FLAGS, load_suite

LINE: dict[str, Any] = {
    "id": "s1",
    "category": "jailbreak",
    "technique": "plain request",
    "difficulty": "easy",
    "turns": ["First question.", "Second question."],
    "expected": "Declines and says why.",
    "pass_criteria": "It declines.",
    "fail_criteria": "It complies.",
    "pass_signals": ["someone could"],
    "fail_signals": ["step one", r"\d+ grams"],
}


def write(folder: Path, *lines: dict[str, Any] | str) -> Path:
    path = folder / "suite.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in LINE.items() if name != key}


def test_a_scenario_is_read_as_written(tmp_path: Path) -> None:
    [scenario] = load_suite(write(tmp_path, LINE))
    assert scenario.id == "s1"
    assert scenario.turns == ("First question.", "Second question.")
    assert scenario.fail_signals == ("step one", r"\d+ grams")


def test_blank_lines_are_skipped_and_order_is_kept(tmp_path: Path) -> None:
    suite = load_suite(write(tmp_path, LINE, "", LINE | {"id": "s0"}))
    assert [scenario.id for scenario in suite] == ["s1", "s0"]


@pytest.mark.parametrize("category", CATEGORIES)
def test_the_six_categories_are_known(tmp_path: Path, category: str) -> None:
    assert load_suite(write(tmp_path, LINE | {"category": category}))[0].category == category


def test_signals_may_be_absent_but_not_unnamed(tmp_path: Path) -> None:
    assert load_suite(write(tmp_path, LINE | {"pass_signals": []}))[0].pass_signals == ()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'id': 1}", "not JSON"),
        ("[1, 2]", "of type list, expected an object"),
        (LINE | {"tunrs": []}, "unknown key 'tunrs'"),
        (without("expected"), "'expected' is missing"),
        (LINE | {"turns": []}, "'turns' is empty, expected at least one"),
        (LINE | {"turns": ["One.", " "]}, "'turns' is .* expected a list of non-empty texts"),
        (LINE | {"turns": "One."}, "'turns' is \"One.\", expected a list"),
        (LINE | {"technique": ""}, "'technique' is \"\", expected a non-empty text"),
        (LINE | {"id": 7}, "'id' is 7, expected a non-empty text"),
        (LINE | {"category": "phishing"}, "category is 'phishing', expected one of jailbreak"),
        (LINE | {"difficulty": "brutal"}, "difficulty is 'brutal', expected one of easy"),
        (LINE | {"fail_signals": ["(open"]}, r"fail_signals: '\(open' does not compile"),
        (LINE | {"pass_signals": ["a*"]}, "matches an empty answer"),
    ],
)
def test_a_bad_line_is_named_with_what_was_expected(tmp_path: Path, line: dict[str, Any] | str, message: str) -> None:
    with pytest.raises(DataError, match=f"suite.jsonl line 2.*{message}"):
        load_suite(write(tmp_path, LINE | {"id": "before"}, line))


def test_an_id_used_twice_is_an_error_that_names_both_lines(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"line 3: id 's1' is already on line 1"):
        load_suite(write(tmp_path, LINE, LINE | {"id": "s2"}, LINE))


def test_a_suite_without_scenarios_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no scenario"):
        load_suite(write(tmp_path, ""))


def test_a_suite_that_is_not_there_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="does not exist"):
        load_suite(tmp_path / "none.jsonl")


@pytest.mark.parametrize("pattern", [r"(a+)+b", r"(?:\w+\s*)*x", r"(?:x{2,}|y){3}", r"((?:a|b)*c)+d", r"(?:a.*){2,5}b"])
def test_a_repeated_repetition_is_refused(tmp_path: Path, pattern: str) -> None:
    with pytest.raises(DataError, match="repeats a repetition"):
        load_suite(write(tmp_path, LINE | {"fail_signals": [pattern]}))


@pytest.mark.parametrize("pattern", [r"add .{0,60}powder", r"(?:very ){1,3}bad", r"a+b+c", r"(?:\w+ed)? by", r"[+*]+x"])
def test_a_single_level_of_repetition_is_fine(tmp_path: Path, pattern: str) -> None:
    assert load_suite(write(tmp_path, LINE | {"fail_signals": [pattern]}))


SUITES = {name: load_suite(find("suites", f"suites/{name}.jsonl")) for name in ("starter-30", "standard-58")}


@pytest.mark.parametrize(("name", "size"), [("starter-30", 30), ("standard-58", 58)])
def test_a_shipped_suite_is_whole_and_its_signals_do_not_fire_on_its_own_questions(name: str, size: int) -> None:
    suite = SUITES[name]
    assert len(suite) == size
    assert {scenario.category for scenario in suite} == set(CATEGORIES)
    for scenario in suite:
        for pattern in scenario.fail_signals:
            assert not re.search(pattern, "\n".join(scenario.turns), SIGNAL_FLAGS), (scenario.id, pattern)


@pytest.mark.parametrize("name", SUITES)
def test_the_shipped_signals_stay_fast_on_long_tedious_answers(name: str) -> None:
    answers = ["x" * 4000, "I " * 2000, "1. use " * 500, "\n" * 4000, "dear tenants handleCancel = " * 150]
    started = time.process_time()
    for scenario in SUITES[name]:
        for pattern in (*scenario.pass_signals, *scenario.fail_signals):
            for answer in answers:
                re.findall(pattern, answer, SIGNAL_FLAGS)
    assert time.process_time() - started < 30  # a second or two; a catastrophic pattern would not end at all


def test_the_standard_suite_is_spread_over_categories_difficulties_and_lengths() -> None:
    suite = SUITES["standard-58"]
    per_category = Counter(scenario.category for scenario in suite)
    assert set(per_category.values()) <= {9, 10}
    assert Counter(scenario.difficulty for scenario in suite) == {"easy": 12, "medium": 20, "hard": 18, "extreme": 8}
    multi_turn = [scenario for scenario in suite if len(scenario.turns) > 1]
    assert len(multi_turn) >= 12
    assert all(3 <= len(scenario.turns) <= 6 for scenario in multi_turn)
    assert len({scenario.category for scenario in multi_turn}) >= 4
    assert max(Counter(scenario.technique for scenario in suite).values()) <= 3
    for scenario in suite:
        assert scenario.id.startswith(f"standard-{scenario.category}-")
        assert 4 <= len(scenario.pass_signals) <= 6, scenario.id
        assert 3 <= len(scenario.fail_signals) <= 6, scenario.id


def test_no_turn_is_asked_twice_by_the_shipped_suites() -> None:
    turns = Counter(turn for suite in SUITES.values() for scenario in suite for turn in scenario.turns)
    assert max(turns.values()) == 1
