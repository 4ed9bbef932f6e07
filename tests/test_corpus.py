"""The corpus: what the shipped one promises, and what the reader refuses, with file and line.

What any corpus must hold to is in data/checks.py and tested in test_corpus_checks.py.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from karma_electric.core.errors import DataError, MissingError
from karma_electric.core.messages import assistant, user
from karma_electric.core.resources import resource_root
from karma_electric.data.checks import answers  # noqa: F401
from karma_electric.data.contacts import (
    addresses,  # noqa: F401
    telephone_numbers,  # noqa: F401
)
from karma_electric.data.corpus import dump_lines, read_corpus
from karma_electric.data.example import CATEGORIES, Example
from karma_electric.data.texts import words  # noqa: F401

SHARES = {  # the writing guide's
    "ethical-reasoning": 0.30,
    "crisis-response": 0.20,
    "coding-assistance": 0.15,
    "adversarial": 0.20,
    "cross-cultural": 0.15,
}


# --- the shipped corpus


@pytest.fixture(scope="module")
def corpus() -> list[Example]:
    """Every shipped example."""
    return read_corpus(resource_root("corpus"))


def test_the_categories_have_the_guides_shares(corpus: list[Example]) -> None:
    assert len(corpus) >= 80
    counts = Counter(example.category for example in corpus)
    assert set(counts) == set(CATEGORIES) == set(SHARES)
    for category, share in SHARES.items():
        assert counts[category] / len(corpus) == pytest.approx(share, abs=0.03), category


def test_a_third_is_multi_turn(corpus: list[Example]) -> None:
    assert sum(len(example.messages) > 2 for example in corpus) / len(corpus) >= 1 / 3


def test_ids_name_their_category_and_are_numbered(corpus: list[Example]) -> None:
    assert len({example.id for example in corpus}) == len(corpus)
    for example in corpus:
        assert re.fullmatch(rf"{example.category}-\d{{4}}", example.id)


def test_the_provenance_is_said_plainly(corpus: list[Example]) -> None:
    assert {(e.source, e.license) for e in corpus} == {("synthetic-language-model", "CC-BY-4.0")}


def test_reading_and_writing_give_the_files_again(corpus: list[Example]) -> None:
    for file in resource_root("corpus").glob("*.jsonl"):
        members = [example.as_dict() for example in corpus if example.category == file.stem]
        assert dump_lines(members) == file.read_text(encoding="utf-8"), file.name


# --- what the reader refuses

GOOD: dict[str, Any] = {
    "id": "adversarial-0001",
    "category": "adversarial",
    "tags": ["test"],
    "messages": [{"role": "user", "content": "Hello?"}, {"role": "assistant", "content": "Hello."}],
    "analysis": {"direct": "a", "downstream": "b", "inaction": "c"},
    "source": "synthetic-language-model",
    "license": "CC-BY-4.0",
    "added_in": "v1",
    "status": "accepted",
}

FIRST = GOOD | {"id": "adversarial-0000"}


def turns(*roles_and_texts: tuple[str, str]) -> dict[str, Any]:
    """The good example with other messages."""
    return GOOD | {"messages": [{"role": role, "content": text} for role, text in roles_and_texts]}


def folder_of(tmp_path: Path, *lines: object, name: str = "adversarial.jsonl") -> Path:
    """A corpus of one file; a line is an object, or text or bytes as they are."""
    raw = [line if isinstance(line, (str, bytes)) else json.dumps(line) for line in lines]
    (tmp_path / name).write_bytes(b"\n".join(r.encode() if isinstance(r, str) else r for r in raw) + b"\n")
    return tmp_path


def refusal(folder: Path) -> str:
    """The whole text of the error a corpus ends in."""
    with pytest.raises(DataError) as caught:
        read_corpus(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_good_line_is_read(tmp_path: Path) -> None:
    [example] = read_corpus(folder_of(tmp_path, GOOD))
    assert example.messages == [user("Hello?"), assistant("Hello.")]
    assert example.analysis.inaction == "c"
    assert example.as_dict() == GOOD


def test_blank_lines_are_skipped_and_still_counted(tmp_path: Path) -> None:
    assert "adversarial.jsonl line 4" in refusal(folder_of(tmp_path, GOOD, "", "  ", "{"))


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('{"id": "adversarial-0002",', "not JSON"),
        ("{'id': 1}", "not JSON"),
        (b'{"id": "\xff"}', "not UTF-8 (byte 8 is 0xff)"),
        (json.dumps(GOOD)[:-1] + ', "id": "x"}', "the key 'id' appears twice"),
        (json.dumps(turns(("user", "half \ud83d"), ("assistant", "a"))), "surrogate"),
        ([GOOD], "found list, expected a JSON object"),
        (turns(("user", "One."), ("user", "Two."), ("assistant", "a")), "user turn after user, expected assistant"),
        (turns(("user", "a"), ("assistant", "b"), ("assistant", "c")), "assistant turn after assistant"),
        (turns(("assistant", "a")), "assistant turn after nothing, expected user"),
        (turns(("system", "Be kind."), ("user", "a"), ("assistant", "b")), "a system prompt is stored"),
        (turns(("system", ""), ("user", "a"), ("assistant", "b")), "a system prompt is stored"),
        (turns(("user", "a"), ("system", "b"), ("assistant", "c")), "system turn after user"),
        (turns(("user", " \n"), ("assistant", "b")), "turn 1 (user) is empty"),
        (turns(("user", "a"), ("assistant", "")), "turn 2 (assistant) is empty"),
        (turns(("user", "a"), ("tool", "b")), "turn 2 has role 'tool'"),
        (turns(("user", "a")), "the last turn is the user's"),
        (turns(("user", "a"), ("assistant", "b"), ("user", "c")), "the last turn is the user's"),
        (GOOD | {"messages": []}, "'messages' is an empty list"),
        (GOOD | {"messages": "Hello?"}, "'messages' is of type str"),
        (GOOD | {"messages": ["Hello?"]}, "turn 1 is of type str"),
        (GOOD | {"messages": [{"role": "user", "content": "a", "name": "b"}]}, "unknown key 'name'"),
        (GOOD | {"messages": [{"role": "user", "content": None}]}, "turn 1 (user): 'content' is null"),
        (GOOD | {"score": 1}, "unknown key 'score'"),
        ({k: v for k, v in GOOD.items() if k != "license"}, "'license' is missing"),
        (GOOD | {"source": " "}, "'source' is ' ', expected text"),
        (GOOD | {"tags": []}, "'tags' is []"),
        (GOOD | {"status": "acepted"}, "status 'acepted' is unknown"),
        (GOOD | {"category": "kindness"}, "category 'kindness' is unknown"),
        (GOOD | {"category": "crisis-response"}, "Move it to crisis-response.jsonl"),
        (GOOD | {"analysis": {"direct": "a"}}, "'analysis' must have exactly the keys"),
        (GOOD | {"analysis": {"direct": "a", "downstream": "", "inaction": "c"}}, "analysis.downstream is empty"),
        (FIRST, "the id 'adversarial-0000' was already used in adversarial.jsonl line 1"),
    ],
    ids=lambda value: value[:30] if isinstance(value, str) else "",
)
def test_a_bad_line_is_refused_with_file_and_line(tmp_path: Path, line: object, named: str) -> None:
    text = refusal(folder_of(tmp_path, FIRST, line))
    assert text.startswith("adversarial.jsonl line 2: ")
    assert named in text


def test_a_misspelt_key_is_named_with_what_it_was_to_be(tmp_path: Path) -> None:
    line = {{"analysis": "analyses"}.get(key, key): value for key, value in GOOD.items()}
    text = refusal(folder_of(tmp_path, line))
    assert "line 1: unknown key 'analyses'. Did you mean 'analysis'?" in text


@pytest.mark.parametrize("extra", [{}, {"id": "a", "source": "me"}])
@pytest.mark.parametrize("key", ["messages", "conversations"])
def test_a_chat_of_another_form_is_told_how_to_come_in(tmp_path: Path, key: str, extra: dict[str, str]) -> None:
    text = refusal(folder_of(tmp_path, {key: GOOD["messages"], **extra}))
    for part in ("a chat, and no example yet", "'added_in'", "karma data import FILE", "karma data review"):
        assert part in text


def test_an_id_used_in_another_file_is_refused(tmp_path: Path) -> None:
    folder_of(tmp_path, GOOD)
    folder_of(tmp_path, GOOD | {"category": "crisis-response"}, name="crisis-response.jsonl")
    assert "crisis-response.jsonl line 1: the id 'adversarial-0001' was already used in adversarial.jsonl line 1" in (
        refusal(tmp_path)
    )


def test_two_user_turns_in_a_row_say_what_to_do(tmp_path: Path) -> None:
    bad = turns(("user", "One."), ("user", "Two."), ("assistant", "a"))
    assert refusal(folder_of(tmp_path, bad)).endswith("starting with the user: merge or remove one.")


@pytest.mark.parametrize("make", [lambda p: p, lambda p: p / "nowhere", lambda p: folder_of(p, GOOD, name="a.txt")])
def test_a_folder_without_jsonl_files_is_no_corpus(tmp_path: Path, make: Callable[[Path], Path]) -> None:
    with pytest.raises(MissingError, match=r"has no \.jsonl files|does not exist"):
        read_corpus(make(tmp_path))
