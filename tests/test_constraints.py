"""Each constraint decides as its definition says, at its edges."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from karma_electric.redteam.constraints import Constraint, paragraphs, sentences, violations, words

ADAPTER: TypeAdapter[Any] = TypeAdapter(Constraint)

# constraint, a text that meets it, a text that does not
CASES: list[tuple[dict[str, Any], str, str]] = [
    ({"name": "words", "min": 2, "max": 2}, "Don't well-known.", "one"),
    ({"name": "words", "max": 3}, "a b c", "a b c d"),
    ({"name": "sentences", "min": 2, "max": 2}, "Dr. Roe paid 3.50. She left!", "One. Two. Three."),
    ({"name": "sentences", "min": 2, "max": 2}, "- One point\n- Another point", "One point\nwrapped over lines"),
    ({"name": "paragraphs", "min": 2, "max": 2}, "One.\n \nTwo.", "One.\nTwo."),
    ({"name": "lines", "min": 2, "max": 2}, "one\n\ntwo", "one"),
    ({"name": "bullets", "min": 2, "max": 2}, "Here:\n- one\n  * two", "-one\n-two"),
    ({"name": "numbered", "min": 2, "max": 2}, "1. one\n2) two", "1. one\n3. two"),
    ({"name": "numbered", "max": 2, "min": 2}, "1. a\n2. b", "1. a\n2. b\n\nAgain:\n1. a\n2. b"),
    ({"name": "numbered", "min": 3}, "1. a\n2. b\n3. c", "1. a\n1. b\n1. c"),
    ({"name": "placeholders", "min": 2}, "[name] of [street]", "[] and [a"),
    ({"name": "occurrences", "term": "book", "min": 2, "max": 2}, "Book and book, bookish", "book books"),
    ({"name": "contains", "terms": ["red", ["cat", "dog"]]}, "A RED dog", "A red horse"),
    ({"name": "contains", "terms": ["red"]}, "red", "hundred"),
    ({"name": "lacks", "terms": ["because"]}, "since", "Because"),
    ({"name": "lacks_characters", "characters": "z,"}, "none", "Zebra"),
    ({"name": "starts_with", "text": "Yes, it’s"}, "yes,  it's so", "Oh yes"),
    ({"name": "ends_with", "text": "?"}, "Who is it?", "It is he."),
    ({"name": "case", "style": "upper"}, "STOP 3 TIMES!", "STOP Now"),
    ({"name": "case", "style": "lower"}, "all small, ü too", "123"),
    ({"name": "json", "keys": {"a": "text", "n": "number"}}, '```json\n{"a": "x", "n": 1.5}\n```', '{"a": "x"}'),
    ({"name": "json", "keys": {"n": "number"}}, '{"n": 1}', '{"n": true}'),
    ({"name": "json", "keys": {"b": "boolean", "l": "list"}}, '{"b": false, "l": []}', '{"b": 0, "l": []}'),
    ({"name": "json", "keys": {"a": "text"}}, ' {"a": "x"} ', 'Here: {"a": "x"}'),
    ({"name": "json", "keys": {"a": "text"}}, '{"a": ""}', '{"a": "x", "a": "y"}'),
    ({"name": "json", "keys": {"a": "text"}}, '{"a": ""}', "[" * 100_000),
    (
        {"name": "language", "code": "fr"},
        "Je mange du pain avec une pomme.",
        "I eat bread with the apple and the pear.",
    ),
    ({"name": "language", "code": "de"}, "Ich esse das Brot mit der Birne.", "Ich esse."),
    ({"name": "language", "code": "es"}, "Yo como una manzana y el pan con mi hermana.", "Oui, et la pomme du jardin."),
    ({"name": "language", "code": "it"}, "Non mi piace la mela, ma il pane è buono per me.", "Yo no como pan."),
    ({"name": "language", "code": "en"}, "The bread is on the table and it is warm.", "Das Brot ist auf dem Tisch."),
    ({"name": "in_order", "terms": ["one", "two"]}, "one and two", "two and one"),
    ({"name": "initials", "letters": "AB"}, "apple\n\nbread", "bread\napple"),
    ({"name": "quoted"}, '"All of it."', '"One" and "two"'),
    ({"name": "quoted"}, "“All of it.”", '"Open'),
    ({"name": "alphabetical"}, "- apple\n- Bread\n- corn", "bread\napple"),
    ({"name": "alphabetical"}, "a\nb", "a"),
]


@pytest.mark.parametrize(("raw", "good", "bad"), CASES, ids=lambda value: str(value)[:40])
def test_a_constraint_is_met_by_the_one_and_violated_by_the_other(raw: dict[str, Any], good: str, bad: str) -> None:
    constraint = ADAPTER.validate_python(raw)
    assert violations([constraint], good) == []
    [said] = violations([constraint], bad)
    assert said


def test_every_constraint_has_such_a_pair() -> None:
    members = get_args(get_args(Constraint)[0])
    assert {member.model_fields["name"].annotation.__args__[0] for member in members} == {c[0]["name"] for c in CASES}


def test_all_violations_are_reported() -> None:
    constraints = [
        ADAPTER.validate_python(raw) for raw in ({"name": "words", "max": 1}, {"name": "case", "style": "upper"})
    ]
    assert violations(constraints, "two words") == ["2 words, wanted 0 to 1", "not all upper case"]


@pytest.mark.parametrize(
    "raw",
    [
        {"name": "words"},
        {"name": "words", "min": 3, "max": 1},
        {"name": "words", "min": -1},
        {"name": "words", "min": "3"},
        {"name": "words", "mni": 3},
        {"name": "contains", "terms": []},
        {"name": "case", "style": "title"},
        {"name": "json", "keys": {"a": "string"}},
        {"name": "language", "code": "xx"},
        {"name": "starts_with", "text": ""},
    ],
    ids=str,
)
def test_a_constraint_that_cannot_be_is_refused(raw: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        ADAPTER.validate_python(raw)


def test_sentences_words_and_paragraphs_are_as_defined() -> None:
    assert sentences('He said "Go!" and left. Then, e.g. at 5 p.m. on Monday, rain') == [
        'He said "Go!"',
        "and left.",
        "Then, e.g. at 5 p.m. on Monday, rain",
    ]
    assert words("It's 3 o'clock — well-known, isn’t it?") == ["It's", "3", "o'clock", "well-known", "isn’t", "it"]
    assert paragraphs("\n\na\nb\n\n\n\nc\n") == ["a\nb", "c"]


@given(st.text(max_size=300))
def test_any_text_is_decided_without_an_error(text: str) -> None:
    for raw, _, _ in CASES:
        found = violations([ADAPTER.validate_python(raw)], text)
        assert all(isinstance(violation, str) and violation for violation in found)
