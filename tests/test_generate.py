"""Candidates from seed prompts: what is added, what is left out and why, and that a killed run loses nothing."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

pytest.importorskip("inspect_ai")
pytest.importorskip("datasketch")

from chat_server import ChatServer, Response, chat_server, html, said
from karma_electric.core.errors import DataError, MissingError
from karma_electric.core.messages import assistant, system, user
from karma_electric.core.progress import Silent
from karma_electric.data.answers_seen import AnswersSeen
from karma_electric.data.candidate import Candidate
from karma_electric.data.dedupe import Item, find_duplicates
from karma_electric.data.generate import GenerationReport, Plan, Prompt, generate_candidates, read_prompts
from karma_electric.data.store import Store
from karma_electric.models.asking import Asker, Endpoint

# Inspect calls tenacity in a form that tenacity means to drop.
pytestmark = pytest.mark.filterwarnings("ignore:The 'initial' parameter is deprecated:DeprecationWarning")

PROMPTS = [Prompt(f"p{number}", [user(f"question {number}?")]) for number in range(3)]
TEXTS = (
    "Soak the lentils for an hour, then boil them with a pinch of baking soda until they give way.",
    "Call your sister tonight, tell her what the letter said, and let her decide about the house herself.",
    "Take the 14:05 train and change in Lyon; the later one misses the ferry on Sundays.",
    "The rash needs a doctor today, because it spreads and you have a fever.",
    "Write down the three numbers, subtract the rent first, and only then look at the loan.",
    "Leave the hive closed until the evening; bees that fly at noon are the ones that sting.",
)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(tmp_path / "w.db", create=True) as opened:
        yield opened


def plan(server: ChatServer, **changes: Any) -> Plan:
    endpoint = Endpoint("openai-api/local/writer", base_url=server.url, max_connections=1, retries=0, timeout_s=30)
    made = Plan(endpoint, samples=2, seed=0, system_prompt="Be kind.", category=None, license="mit")
    return replace(made, **changes)


def generate(store: Store, made: Plan, prompts: list[Prompt] | None = None) -> GenerationReport:
    asker = Asker(made.endpoint, wait_s=lambda _: 0.01)
    return generate_candidates(store, asker, PROMPTS if prompts is None else prompts, made, progress=Silent())


def writer(*texts: str) -> Any:
    """Give each text in turn."""
    remaining = iter(texts)
    return lambda _: said(next(remaining))


# what is added


def test_every_sample_becomes_a_candidate_with_its_origin(store: Store) -> None:
    with chat_server(writer(*TEXTS)) as server:
        report = generate(store, plan(server, category="adversarial"))
    assert (len(report.added), report.not_added, report.failed) == (6, [], [])
    found = list(store.candidates())
    assert len(found) == 6
    first = next(item for item in found if item.messages[-1].content == TEXTS[0])
    assert first.messages == [user("question 0?"), assistant(TEXTS[0])]
    assert (first.source, first.license, first.status) == ("openai-api/local/writer", "mit", "candidate")
    assert (first.category, first.system) == ("adversarial", "Be kind.")
    assert first.extra["generated"]["prompt"] == "p0"
    assert first.id.startswith("p0-")


def test_the_model_reads_the_system_prompt_the_turns_and_another_seed_per_sample(store: Store) -> None:
    turns = [user("one"), assistant("two"), user("three")]
    with chat_server(writer(*TEXTS)) as server:
        generate(store, plan(server, seed=40), [Prompt("p", turns)])
    sent = [[(m["role"], m["content"]) for m in request["messages"]] for request in server.requests]
    assert sent[0] == [("system", "Be kind."), ("user", "one"), ("assistant", "two"), ("user", "three")]
    assert [request["seed"] for request in server.requests] == [40, 41]


def test_a_prompts_own_category_and_tags_come_first(store: Store) -> None:
    with chat_server(writer(*TEXTS)) as server:
        prompt = Prompt("p", [user("q")], category="crisis-response", tags=("night",))
        generate(store, plan(server, category="adversarial"), [prompt])
    assert {(item.category, item.tags) for item in store.candidates()} == {("crisis-response", ("night",))}


# what is left out


@pytest.mark.parametrize(
    ("response", "reason"),
    [
        (said(""), "empty"),
        (said(" \n"), "empty"),
        (said("The whole truth is that", finish_reason="length"), "cut off"),
        (said("I cannot", finish_reason="content_filter"), "content_filter"),
    ],
)
def test_an_answer_that_is_none_is_not_added_and_is_reported(store: Store, response: Response, reason: str) -> None:
    with chat_server(lambda _: response) as server:
        report = generate(store, plan(server), PROMPTS[:1])
    assert (report.added, list(store.candidates())) == ([], [])
    assert report.reasons() == {reason: 2}


def test_an_answer_equal_to_one_that_is_there_is_not_added(store: Store) -> None:
    store.add([Candidate("old", [user("x"), assistant(TEXTS[0].upper() + "\n")], status="rejected")], origin="t")
    with chat_server(writer(TEXTS[0], TEXTS[1])) as server:
        report = generate(store, plan(server), PROMPTS[:1])
    assert len(report.added) == 1
    assert [(item.reason, item.other) for item in report.not_added] == [("exact copy", "old")]


def test_an_answer_close_to_one_of_the_same_run_is_not_added(store: Store) -> None:
    with chat_server(writer(TEXTS[0], TEXTS[0].replace("an hour", "two hours"))) as server:
        report = generate(store, plan(server), PROMPTS[:1])
    (left_out,) = report.not_added
    assert (left_out.reason, left_out.other) == ("near copy", report.added[0])
    assert left_out.similarity is not None
    assert 0.7 <= left_out.similarity < 1


def test_answers_about_the_same_thing_in_other_words_are_both_added(store: Store) -> None:
    other = "An hour in water with baking soda, then a rolling boil, and your lentils will be soft by seven."
    with chat_server(writer(TEXTS[0], other)) as server:
        assert len(generate(store, plan(server), PROMPTS[:1]).added) == 2


@given(st.lists(st.sampled_from(TEXTS).flatmap(lambda t: st.integers(20, len(t)).map(lambda n: t[:n])), max_size=12))
def test_copies_are_found_as_dedupe_finds_them(texts: list[str]) -> None:
    seen = AnswersSeen([])
    kept: list[str] = []
    for number, text in enumerate(texts):
        if seen.copy_of(text) is None:
            seen.add(f"a{number}", text)
            kept.append(text)
    items = [Item(f"a{number}", {"answer": text}) for number, text in enumerate(kept)]
    assert find_duplicates(items, semantic=None) == []


# again


def test_the_same_command_again_asks_nothing(store: Store) -> None:
    with chat_server(writer(*TEXTS)) as server:
        generate(store, plan(server))
        report = generate(store, plan(server))
        assert len(server.requests) == 6
    assert (report.there_already, report.added, report.spending.requests) == (6, [], 0)


@pytest.mark.parametrize(
    "change", [{"system_prompt": "Be brief."}, {"seed": 9}, {"system_prompt": None}], ids=["persona", "seed", "none"]
)
def test_another_setting_gives_other_candidates(store: Store, change: dict[str, Any]) -> None:
    with chat_server(writer(*TEXTS)) as server:
        generate(store, plan(server), PROMPTS[:1])
        report = generate(store, plan(server, **change), PROMPTS[:1])
    assert (report.there_already, len(report.added)) == (0, 2)


def test_a_prompt_whose_words_changed_is_asked_again(store: Store) -> None:
    with chat_server(writer(*TEXTS)) as server:
        generate(store, plan(server), PROMPTS[:1])
        report = generate(store, plan(server), [Prompt("p0", [user("another question?")])])
    assert len(report.added) == 2


def test_what_failed_is_reported_and_asked_for_by_the_same_command(store: Store) -> None:
    broken = True
    texts = iter(TEXTS)

    def respond(request: dict[str, Any]) -> Response:
        bad = broken and "question 1?" in request["messages"][-1]["content"]
        return html() if bad else said(next(texts))

    with chat_server(respond) as server:
        first = generate(store, plan(server))
        broken = False
        second = generate(store, plan(server))
    assert [failure.id.split("-")[0] for failure in first.failed] == ["p1", "p1"]
    assert (len(first.added), len(second.added), second.failed) == (4, 2, [])
    assert len(list(store.candidates())) == 6


def test_an_endpoint_that_is_not_there_stops_the_work(store: Store) -> None:
    prompts = [Prompt(f"p{number}", [user(f"q{number}")]) for number in range(200)]
    with chat_server(lambda _: html()) as server, pytest.raises(MissingError, match="does not answer"):
        generate(store, plan(server), prompts)
    assert len(server.requests) < 10


# prompts


def written(tmp_path: Path, *lines: object) -> Path:
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def test_prompts_are_texts_or_turns(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    file = written(
        tmp_path,
        {"id": "one", "prompt": "Why?", "category": "adversarial", "tags": ["x"], "kind": "everyday"},
        {"id": "two", "messages": turns, "category": "gardening"},
    )
    one, two = read_prompts(file)
    assert one == Prompt("one", [user("Why?")], "adversarial", ("x",))
    assert two == Prompt("two", [user("a"), assistant("b"), user("c")])


def test_a_prompt_without_an_id_gets_one_from_its_words(tmp_path: Path) -> None:
    first, second = read_prompts(written(tmp_path, {"prompt": "Why?"}, {"prompt": "How?"}))
    assert first.id != second.id
    assert read_prompts(written(tmp_path, {"prompt": "Why?"}))[0].id == first.id


@pytest.mark.parametrize(
    ("line", "why"),
    [
        ("text", "found str"),
        ({}, "either 'prompt' or 'messages'"),
        ({"prompt": "a", "messages": []}, "either"),
        ({"prompt": ""}, "'prompt' is ''"),
        ({"prompt": 3}, "'prompt' is 3"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
            "last turn is an answer",
        ),
        ({"messages": [system("x").as_dict(), user("y").as_dict()]}, "system prompt is among the turns"),
        ({"id": 4, "prompt": "a"}, "'id' is 4"),
        ({"id": "first", "prompt": "b"}, "'first' was already used"),
    ],
)
def test_a_line_that_asks_nothing_is_refused_with_its_number(tmp_path: Path, line: object, why: str) -> None:
    with pytest.raises(DataError, match=f"line 2: .*{why}"):
        read_prompts(written(tmp_path, {"id": "first", "prompt": "a"}, line))


def test_a_file_without_prompts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no prompts"):
        read_prompts(written(tmp_path))
