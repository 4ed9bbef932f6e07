"""The corpus: what the shipped one promises, and what the reader refuses, with file and line."""

from __future__ import annotations

import ast
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from karma_electric.core.errors import DataError, MissingError
from karma_electric.core.jsonl import read_jsonl
from karma_electric.core.messages import assistant, user
from karma_electric.core.resources import resource_root
from karma_electric.data.corpus import dump_lines, read_corpus
from karma_electric.data.example import CATEGORIES, Example

SHARES = {  # the writing guide's
    "ethical-reasoning": 0.30,
    "crisis-response": 0.20,
    "coding-assistance": 0.15,
    "adversarial": 0.20,
    "cross-cultural": 0.15,
}
# Names and numbers that are reserved for documentation (RFC 2606, 5737, 3849), or evidently to be filled in.
RESERVED_HOST = re.compile(r"^(localhost|([\w-]+\.)*(example(\.(com|org|net))?|test|invalid|local))$", re.IGNORECASE)
PLACEHOLDER = re.compile(r"/[A-Z]{2,}\b|<|\{|\$")
E_MAIL = re.compile(r"[\w.+-]+@([\w-]+(?:\.[\w-]+)+)")
URL = re.compile(r"(?:https?://|\bwww\.)([\w.-]+)(\S*)", re.IGNORECASE)
PHONE = re.compile(r"(?<![\w.,])\+?\(?\d[\d() ./-]{6,}\d(?![\w.,]\d)")
DATE_OR_ADDRESS = re.compile(r"\b\d{4}-\d{2}-\d{2}\b|\b\d{2}[-./]\d{2}[-./]\d{4}\b|\b\d{1,3}(\.\d{1,3}){3}\b")
SPAN = 13  # words in a row that count as the same text


# --- the shipped corpus


@pytest.fixture(scope="module")
def corpus() -> list[Example]:
    """Every shipped example."""
    return read_corpus(resource_root("corpus"))


def answers(examples: Iterable[Example]) -> list[str]:
    """All assistant turns."""
    return [m.content for example in examples for m in example.messages if m.role == "assistant"]


def words(text: str) -> list[str]:
    """Lower-case words, without punctuation."""
    return re.findall(r"\w+", text.lower())


def telephone_numbers(text: str) -> list[str]:
    """What could be dialled: nine digits or more in groups, or after a plus; fictional 555-01xx apart."""
    found = [match.group() for match in PHONE.finditer(DATE_OR_ADDRESS.sub(" ", text))]
    grouped = [number for number in found if number.startswith("+") or re.search(r"\d[() ./-]+\d", number)]
    return [n for n in grouped if sum(c.isdigit() for c in n) >= 9 and not re.search(r"555[ .-]?01\d\d$", n)]


def addresses(text: str) -> list[str]:
    """E-mail addresses and URLs that could be somebody's."""
    mail = [m.group() for m in E_MAIL.finditer(text) if not RESERVED_HOST.match(m.group(1))]
    urls = [m for m in URL.finditer(text) if not RESERVED_HOST.match(m.group(1)) and not PLACEHOLDER.search(m.group(2))]
    return mail + [m.group() for m in urls]


def test_the_categories_have_the_guides_shares(corpus: list[Example]) -> None:
    assert len(corpus) >= 80
    counts = Counter(example.category for example in corpus)
    assert set(counts) == set(CATEGORIES) == set(SHARES)
    for category, share in SHARES.items():
        assert counts[category] / len(corpus) == pytest.approx(share, abs=0.03), category


def test_a_third_is_multi_turn(corpus: list[Example]) -> None:
    assert sum(len(example.messages) > 2 for example in corpus) / len(corpus) >= 1 / 3


def test_no_opening_is_shared_by_3_percent_of_the_answers(corpus: list[Example]) -> None:
    openings = Counter(tuple(words(answer)[:3]) for answer in answers(corpus))
    opening, count = openings.most_common(1)[0]
    assert count / len(answers(corpus)) <= 0.03, opening


def test_answers_vary_in_length_with_need(corpus: list[Example]) -> None:
    lengths = sorted(len(answer.split()) for answer in answers(corpus))
    assert lengths[0] >= 5
    assert lengths[-1] <= 400
    assert lengths[len(lengths) * 9 // 10] >= 2 * lengths[len(lengths) // 10]


def test_no_question_or_answer_is_there_twice(corpus: list[Example]) -> None:
    texts = [" ".join(words(message.content)) for example in corpus for message in example.messages]
    assert [text for text, count in Counter(texts).items() if count > 1 and len(text.split()) > 5] == []


def test_python_in_answers_parses(corpus: list[Example]) -> None:
    blocks = [
        (example.id, code)
        for example in corpus
        for answer in answers([example])
        for code in re.findall(r"```python\n(.*?)```", answer, flags=re.DOTALL)
    ]
    assert blocks
    for example_id, code in blocks:
        try:
            ast.parse(code)
        except SyntaxError as error:
            pytest.fail(f"{example_id}: {error}")


def test_every_fence_that_is_opened_is_closed(corpus: list[Example]) -> None:
    assert [e.id for e in corpus if any(answer.count("```") % 2 for answer in answers([e]))] == []


def test_there_is_nobody_to_call_or_write_to(corpus: list[Example]) -> None:
    """A made-up number or address may be somebody's."""
    for example in corpus:
        text = "\n".join([*(m.content for m in example.messages), *vars(example.analysis).values()])
        assert telephone_numbers(text) + addresses(text) == [], example.id


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("call +44 20 7946 0958 now", True),
        ("call 0800 123 4567.", True),
        ("call (212) 736-5000", True),
        ("on 2025-03-09 or 08-03-2025, 86400000 ms, 10.20.0.15, 1.250,50", False),
        ("call 212-555-0134", False),
        ("from 2019 to 2023, 100 200 people", False),
    ],
)
def test_what_counts_as_a_telephone_number(text: str, found: bool) -> None:
    assert bool(telephone_numbers(text)) is found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("write to ana.perez@gmail.com", True),
        ("see https://bit.ly/3xYz", True),
        ("see www.hotline.org", True),
        ("write to me@example.org or see https://docs.example.com/a", False),
        ("git clone https://github.com/YOU/REPO.git", False),
        ("use the @property decorator", False),
    ],
)
def test_what_counts_as_an_address(text: str, found: bool) -> None:
    assert bool(addresses(text)) is found


def test_nothing_is_shared_with_the_suites(corpus: list[Example]) -> None:
    """Neither a prompt nor 13 words in a row: what a model was trained on is not measured."""
    seen: dict[tuple[str, ...], str] = {}
    prompts: dict[str, str] = {}
    for example in corpus:
        for message in example.messages:
            tokens = words(message.content)
            prompts[" ".join(tokens)] = example.id
            for i in range(len(tokens) - SPAN + 1):
                seen[tuple(tokens[i : i + SPAN])] = example.id
    suites = sorted(resource_root("suites").glob("*.jsonl"))
    assert len(suites) >= 4
    for suite in suites:
        for number, item in read_jsonl(suite):
            texts = [value for key, value in item.items() if key in ("prompt", "response", "expected")]
            texts += item.get("turns", [])
            assert texts, f"{suite.name} line {number}: nothing to compare"
            for text in texts:
                tokens = words(text)
                shared = {seen.get(tuple(tokens[i : i + SPAN])) for i in range(len(tokens) - SPAN + 1)}
                shared.add(prompts.get(" ".join(tokens)))
                assert shared == {None}, f"{suite.name} line {number}"


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
        (GOOD | {"messages": [{"role": "user", "content": None}]}, "turn 1 (user) is empty"),
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
    with pytest.raises(MissingError, match=r"has no \.jsonl files"):
        read_corpus(make(tmp_path))
