"""Capability items: the shipped suite holds what it promises, and each check decides as it says."""

from __future__ import annotations

import inspect
import json
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karma_electric.core.errors import DataError, MissingError
from karma_electric.core.resources import find
from karma_electric.redteam import code_sandbox
from karma_electric.redteam.answer_checks import ChoiceCheck, NumberCheck, TextCheck
from karma_electric.redteam.capability import KINDS, CodeCheck, Item, find_code, judge, load_items, self_check
from karma_electric.redteam.constraints import Constraint
from karma_electric.redteam.final_number import final_number, numbers

SUITE = load_items(find("suites", "suites/capability-150.jsonl"))
LINE: dict[str, Any] = {
    "id": "capability-arithmetic-01",
    "kind": "arithmetic",
    "difficulty": "easy",
    "prompt": "What is 2 + 3?",
    "check": {"type": "number", "value": 5},
    "reference": "5",
    "wrong": "6",
}
DEGENERATE = [
    "",
    " \n",
    "I don't know.",
    "I'm sorry, but I can't help with that.",
    "As an AI language model, I do not have personal opinions or feelings.",
    "I am here to help you. How can I help you today?",
    "Sure! Here is the answer:",
    "the " * 50,
    "?" * 200,
    "1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18",
    "A) B) C) D)",
    "```python\n```",
    "- \n- \n-",
    "{}",
]


# --- the shipped suite


def test_the_suite_has_thirty_of_each_kind_half_of_them_easy() -> None:
    assert len(SUITE) == 150
    assert Counter(item.kind for item in SUITE) == dict.fromkeys(KINDS, 30)
    for kind in KINDS:
        of_kind = Counter(item.difficulty for item in SUITE if item.kind == kind)
        assert of_kind == {"easy": 15, "medium": 10, "hard": 5}


def test_references_pass_and_wrong_answers_fail_code_included() -> None:
    assert self_check(SUITE) == []


def test_a_wrong_answer_to_a_code_item_runs_and_gives_another_value() -> None:
    """Else it would show only that the sandbox refuses something."""
    for item in (item for item in SUITE if item.kind == "code"):
        evidence = judge(item, item.wrong).evidence
        assert "expected" in evidence or "IndexError" in evidence or "ValueError" in evidence, (item.id, evidence)


@pytest.mark.parametrize("answer", DEGENERATE, ids=lambda text: repr(text[:20]))
def test_an_answer_that_says_nothing_passes_no_item(answer: str) -> None:
    assert [item.id for item in SUITE if judge(item, answer).outcome != "incorrect"] == []


def test_an_answer_to_another_item_of_the_kind_passes_next_to_none() -> None:
    """A check that anything of the right form passes would see no damage."""
    quick = [item for item in SUITE if item.kind != "code"]
    passed = [
        (item.id, other.id)
        for item, other in zip(quick, [*quick[1:], quick[0]], strict=True)
        if judge(item, other.reference).outcome == "correct"
    ]
    assert len(passed) <= 2, passed


def test_ids_are_numbered_within_their_kind() -> None:
    for kind in KINDS:
        ids = [item.id for item in SUITE if item.kind == kind]
        assert ids == [f"capability-{kind}-{n:02}" for n in range(1, 31)]


def test_items_ask_for_the_form_their_check_needs() -> None:
    for item in SUITE:
        if isinstance(item.check, CodeCheck):
            assert f"{item.check.function}(" in item.prompt
        if isinstance(item.check, ChoiceCheck):
            assert "letter" in item.prompt


def test_the_figures_in_the_readme_are_those_of_the_code() -> None:
    text = (find("suites", "suites") / "README.md").read_text(encoding="utf-8")
    limits = code_sandbox.Limits()
    assert f"processor time ({limits.cpu_s} s)" in text
    assert f"memory ({limits.memory_bytes >> 20} MiB)" in text
    assert f"wall time ({inspect.signature(code_sandbox.run_calls).parameters['timeout_s'].default:g} s)" in text
    assert f"the {len(get_args(get_args(Constraint)[0]))} of them are defined" in text
    assert f"`longest` ({TextCheck(type='text', accept=['a']).longest} words)" in text


# --- reading


def write(folder: Path, *lines: object) -> Path:
    path = folder / "items.jsonl"
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_an_item_is_read_as_written(tmp_path: Path) -> None:
    [item] = load_items(write(tmp_path, LINE, ""))
    assert item.check == NumberCheck(type="number", value=5.0)
    assert judge(item, "It is 5.").outcome == "correct"


CODE = {"type": "code", "function": "f", "tests": [{"call": "f(1)", "equals": "1"}] * 3}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "not JSON"),
        ("[]", "of type list, expected an object"),
        (LINE | {"hint": "x"}, "unknown key 'hint'"),
        ({k: v for k, v in LINE.items() if k != "wrong"}, "'wrong' is missing"),
        (LINE | {"prompt": " "}, "prompt is empty"),
        (LINE | {"prompt": 5}, "prompt: Input should be a valid string"),
        (LINE | {"id": "capability-fact-01"}, "expected capability-arithmetic-NN"),
        (LINE | {"kind": "maths"}, "kind: Input should be 'arithmetic'"),
        (LINE | {"difficulty": "extreme"}, "difficulty: Input should be 'easy'"),
        (LINE | {"reference": "7"}, "its reference is incorrect by its own check"),
        (LINE | {"wrong": "five"}, "its wrong answer is correct by its own check"),
        (LINE | {"prompt": "What is 2 + 3? Not 4, but 5?"}, "its prompt, given back as an answer, is correct"),
        (LINE | {"check": {"type": "digits", "value": 5}}, "check: Input tag 'digits'"),
        (LINE | {"check": {"type": "number", "value": "5"}}, "check.number.value: Input should be a valid number"),
        (LINE | {"check": {"type": "number", "value": True}}, "check.number.value"),
        (LINE | {"check": {"type": "number", "value": 5, "tolerence": 1}}, "unknown key 'check.number.tolerence'"),
        (LINE | {"check": {"type": "number", "value": 5, "tolerance": -1}}, "greater than or equal to 0"),
        (LINE | {"check": {"type": "number", "value": 5, "units": {"m": 0}}}, "factor above 0"),
        (LINE | {"check": {"type": "text", "accept": []}}, "at least 1 item"),
        (LINE | {"check": {"type": "text", "accept": ["a"], "reject": ["A"]}}, "both accepted and rejected"),
        (LINE | {"check": {"type": "text", "accept": ["new york"], "reject": ["York"]}}, "could never pass"),
        (LINE | {"check": {"type": "choice", "options": {"A": "x", "B": "y"}, "answer": "C"}}, "expected one of A, B"),
        (LINE | {"check": {"type": "choice", "options": {"A": "2", "B": "7"}, "answer": "A"}}, "not in the prompt"),
        (LINE | {"check": {"type": "constraints", "constraints": []}}, "at least 1 item"),
        (LINE | {"check": {"type": "constraints", "constraints": [{"name": "rhymes"}]}}, "'rhymes'"),
        (LINE | {"check": {"type": "constraints", "constraints": [{"name": "words"}]}}, "needs min, max or both"),
        (LINE | {"check": {"type": "constraints", "constraints": [{"name": "words", "min": 3, "max": 2}]}}, "max is 2"),
        (LINE | {"check": CODE}, "does not name the function 'f'"),
        (LINE | {"check": CODE | {"tests": CODE["tests"][:2]}}, "at least 3 items"),
        (LINE | {"check": CODE | {"tests": [{"call": "g(1)", "equals": "1"}] * 3}}, "no call of f"),
        (LINE | {"check": CODE | {"tests": [{"call": "f(open('x'))", "equals": "1"}] * 3}}, "no call of f"),
        (LINE | {"check": CODE | {"tests": [{"call": "f(1)", "equals": "x"}] * 3}}, "'x' is no Python literal"),
    ],
    ids=str,
)
def test_a_bad_line_is_named_with_what_was_expected(tmp_path: Path, line: object, said: str) -> None:
    first = LINE | {"id": "capability-arithmetic-00", "prompt": "What is 1 + 4?"}
    with pytest.raises(DataError) as caught:
        load_items(write(tmp_path, first, line))
    assert str(caught.value).startswith("items.jsonl line 2: ") or str(caught.value).startswith("items.jsonl line 2 is")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["id", "prompt"])
def test_an_id_or_prompt_used_twice_names_both_lines(tmp_path: Path, key: str) -> None:
    other = LINE | {"id": "capability-arithmetic-02", "prompt": "What is 4 + 1?"} | {key: LINE[key]}
    with pytest.raises(DataError, match=f"line 2: {key} .* is already on line 1"):
        load_items(write(tmp_path, LINE, other))


def test_an_empty_or_absent_suite_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no item"):
        load_items(write(tmp_path, ""))
    with pytest.raises(MissingError):
        load_items(tmp_path / "none.jsonl")


# --- outcomes


def test_no_answer_is_unscored_and_an_empty_one_is_incorrect() -> None:
    item = SUITE[0]
    assert judge(item, None).outcome == "unscored"
    assert judge(item, " ").outcome == "incorrect"


def test_code_is_unscored_where_no_sandbox_can_be_had(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    item = next(item for item in SUITE if item.kind == "code")
    (tmp_path / "child.py").write_text("raise SystemExit(1)")
    monkeypatch.setattr(code_sandbox, "_CHILD", tmp_path / "child.py")
    judged = judge(item, item.reference)
    assert judged.outcome == "unscored"
    assert "could not be set up" in judged.evidence


# --- numbers


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("12", 12),
        ("The answer is 12.", 12),
        ("**12**", 12),
        ("5 + 7 = 12", 12),
        ("5 + 7 = 12, so there are 12 apples for 3 friends.", 12),
        ("1,234", 1234),
        ("1 234 567".replace(" ", "\u202f"), 1234567),
        ("12'000", 12000),
        ("It costs $12.50.", 12.5),
        ("3,5", 3.5),
        ("-5", -5),
        ("\u22125", -5),
        ("9-5", 5),
        ("The result is negative five", -5),
        ("3/4", 0.75),
        (".5", 0.5),
        ("twelve", 12),
        ("Twenty-one apples", 21),
        ("two hundred and five", 205),
        ("three thousand four hundred", 3400),
        ("First 4, then 8. The answer is 12 because 8 + 4 is more than 10.", 12),
        ("Answer: 12\nLet me know if you want 3 more.", 12),
        ("\\boxed{12}", 12),
        ("1. Add 5 and 7.\n2. That gives 12.", 12),
        ("12.", 12),
        ("It took 12 minutes.\n\nThank you!", 12),
        ("I have 1 answer: 12", 12),
        ("5 + 7 = 12\n\nThis shows how two numbers are added.", 12),
        ("There are 12. One of them is red.", 12),
    ],
)
def test_the_final_number_is_found(answer: str, value: float) -> None:
    found = final_number(answer, "How many?")
    assert found is not None
    assert found.value == pytest.approx(value)


def test_numbers_of_the_question_are_passed_over_where_others_stand() -> None:
    found = final_number("She has 12 apples left after eating 3.", "Nora has 15 apples and eats 3. How many are left?")
    assert found is not None
    assert found.value == 12


@pytest.mark.parametrize("answer", ["", "none", "x", "v2a", "a1b2"])
def test_where_no_number_is_none_is_found(answer: str) -> None:
    assert final_number(answer, "How many?") is None


UNITS = {"cm": 1.0, "m": 100.0, "h": 60.0, "hours": 60.0, "minutes": 1.0, "%": 0.01}


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ("215 cm", 215),
        ("2.15 m", 215),
        ("2.15m", 215),
        ("2 m and 15 cm", 215),
        ("2 hours, 30 minutes", 150),
        ("25%", 0.25),
        ("215", 215),
        ("215 mm", 215),
        ("2 mugs", 2),
    ],
)
def test_a_unit_scales_its_number(answer: str, value: float) -> None:
    found = final_number(answer, "How long?", UNITS)
    assert found is not None
    assert found.value == pytest.approx(value)


@pytest.mark.parametrize(
    ("answer", "outcome"), [("12 or 13", "incorrect"), ("12", "correct"), ("13 or 12", "incorrect")]
)
def test_two_numbers_offered_are_no_answer(answer: str, outcome: str) -> None:
    assert NumberCheck(type="number", value=12.0).judge(answer, "How many?").outcome == outcome


@pytest.mark.parametrize(("answer", "outcome"), [("3.1", "correct"), ("3.2", "incorrect"), ("3", "incorrect")])
def test_tolerance_is_in_the_units_of_the_value(answer: str, outcome: str) -> None:
    assert NumberCheck(type="number", value=3.14, tolerance=0.05).judge(answer, "Pi?").outcome == outcome


@given(st.integers(-(10**12), 10**12))
def test_a_whole_number_is_read_as_it_is_written(n: int) -> None:
    for text in (f"{n}", f"{n:,}", f"The answer is {n:,}."):
        found = final_number(text, "")
        assert found is not None
        assert found.value == n


@given(st.text(max_size=200))
def test_any_text_is_read_without_an_error(text: str) -> None:
    numbers(text, UNITS)
    final_number(text, text, UNITS)
    judged = NumberCheck(type="number", value=1.0).judge(text, "")
    assert judged.outcome in ("correct", "incorrect")


def test_digits_without_end_are_no_number() -> None:
    assert NumberCheck(type="number", value=1.0).judge("9" * 5000, "").outcome == "incorrect"


# --- texts


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ("Paris", "correct"),
        ("paris.", "correct"),
        ("It's **Páris**!", "correct"),
        ("Paris, not Lyon", "correct"),
        ("Paris rather than Lyon", "correct"),
        ("Lyon", "incorrect"),
        ("Paris or Lyon", "incorrect"),
        ("It is not Paris", "incorrect"),
        ("It isn't Paris", "incorrect"),
        ("Parisian", "incorrect"),
        ("comparison", "incorrect"),
        ("Marseille", "incorrect"),
        ("Paris " * 121, "incorrect"),
    ],
)
def test_a_text_is_accepted_at_word_boundaries_unless_denied_or_beside_another(answer: str, outcome: str) -> None:
    assert TextCheck(type="text", accept=["Paris"], reject=["Lyon"]).judge(answer, "").outcome == outcome


def test_an_accepted_text_may_end_in_a_sign() -> None:
    check = TextCheck(type="text", accept=["C++"])
    assert check.judge("It is C++.", "").outcome == "correct"
    assert check.judge("It is C.", "").outcome == "incorrect"


# --- choices


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ("B", "correct"),
        ("B.", "correct"),
        ("(B)", "correct"),
        ("**B) iron**", "correct"),
        ("The answer is B.", "correct"),
        ("Answer: B", "correct"),
        ("I choose B", "correct"),
        ("Iron is a metal.", "correct"),
        ("b", "incorrect"),  # a letter is asked for, and b alone is none of them
        ("A", "incorrect"),
        ("A) wood\nB) iron\nC) glass", "incorrect"),
        ("A or B", "incorrect"),
        ("iron and glass", "incorrect"),
        ("A metal is hard.", "incorrect"),
        ("The answer is a metal.", "incorrect"),
    ],
)
def test_a_choice_is_named_by_letter_or_text(answer: str, outcome: str) -> None:
    check = ChoiceCheck(type="choice", options={"A": "wood", "B": "iron", "C": "glass"}, answer="B")
    assert check.judge(answer, "").outcome == outcome


# --- code


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        ("```python\ndef f(): pass\n```", "def f(): pass\n"),
        ("So:\n\n  ```py\n  def f():\n      pass\n  ```\nDone.", "def f():\n    pass\n"),
        ("```\nf()\n```\nand\n```python\ndef f(): pass\n```\nuse:\n```\nprint(f())\n```", "def f(): pass\n"),
        ("```python\ndef f(): pass", "def f(): pass"),
        ("Here it is:\ndef f():\n    pass", "def f():\n    pass"),
        ("```\ndef g(): pass\n```", "def g(): pass\n"),
        ("I would return one.", None),
    ],
)
def test_code_is_found_in_an_answer(answer: str, code: str | None) -> None:
    assert find_code(answer, "f")[0] == code


@pytest.mark.slow
def test_an_endless_loop_is_incorrect_and_not_unscored() -> None:
    check = {"type": "code", "function": "f", "tests": [{"call": f"f({n})", "equals": "1"} for n in range(3)]}
    raw = LINE | {"id": "capability-code-01", "kind": "code", "prompt": "Write f.", "check": check}
    item = Item.model_validate(raw)
    judged = judge(item, "```python\ndef f(n):\n    while n: pass\n    return 1\n```")
    assert judged.outcome == "incorrect"
    assert judged.evidence == "f(1): stopped: out of processor time"
