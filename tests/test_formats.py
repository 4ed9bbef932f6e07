"""Formats: reading and writing again gives an equal record, and what cannot be read is said with its place."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from karma_electric.core.errors import DataError
from karma_electric.core.messages import Conversation, assistant, user
from karma_electric.core.resources import resource_root
from karma_electric.data.candidate import Candidate
from karma_electric.data.corpus import read_corpus
from karma_electric.data.example import CATEGORIES, STATUSES, Analysis
from karma_electric.data.formats import FORMATS, detect
from karma_electric.data.formats.columnar import read_rows, write_dataset, write_parquet
from karma_electric.data.formats.karma import read_complete
from karma_electric.data.records import FORM, as_record, from_record
from karma_electric.data.store import Store

CHARACTERS = st.characters(exclude_categories=("Cs",))
TEXT = st.text(CHARACTERS, max_size=30)
WORDS = st.text(CHARACTERS, min_size=1, max_size=30).filter(lambda text: text.strip())
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
    max_leaves=4,
)
RESERVED = {"messages", "conversations", "system", "instruction", "input", "output", "history", "prompt", "id", FORM}
ANALYSIS = st.fixed_dictionaries(dict.fromkeys(("direct", "downstream", "inaction"), WORDS))
SQUEEZED = settings(suppress_health_check=[HealthCheck.too_slow], max_examples=150)

# What may stand around a conversation: what we know, the same keys with what we do not know, and anything else.
AROUND = st.fixed_dictionaries(
    {},
    optional={
        "id": WORDS | st.integers(),
        "category": st.sampled_from(CATEGORIES) | JSON,
        "tags": st.lists(WORDS, max_size=2) | JSON,
        "analysis": ANALYSIS | st.none() | JSON,
        "source": WORDS | JSON,
        "license": WORDS | st.just("unknown") | JSON,
        "added_in": WORDS | JSON,
        "status": st.sampled_from(STATUSES) | JSON,
    },
)
OTHERS = st.dictionaries(TEXT.filter(lambda key: key not in RESERVED), JSON, max_size=2)


@st.composite
def around(draw: st.DrawFn, body: dict[str, Any]) -> dict[str, Any]:
    """A whole record, its keys in any order."""
    record = {**draw(OTHERS), **draw(AROUND), **body}
    return {key: record[key] for key in draw(st.permutations(list(record)))}


@st.composite
def turns(
    draw: st.DrawFn, keys: tuple[str, str], names: dict[str, st.SearchStrategy[str]], *, ends: int | None = None
) -> list[dict[str, Any]]:
    """Turns that alternate, with a system prompt or without; `ends` 0 for an answer at the end."""
    count = draw(st.integers(1, 5).filter(lambda n: ends is None or n % 2 == ends))
    found = []
    if draw(st.booleans()):
        found.append({keys[0]: "system", keys[1]: draw(TEXT)})
    for number in range(count):
        role = "assistant" if number % 2 else "user"
        found.append({keys[0]: draw(names[role]), keys[1]: draw(WORDS)})
    for turn in found:
        turn.update(draw(st.fixed_dictionaries({}, optional={"weight": st.integers(0, 1), "name": TEXT | st.none()})))
    return found


PLAIN = {"user": st.just("user"), "assistant": st.just("assistant")}
ANY = {
    "user": st.sampled_from(["human", "user"]),
    "assistant": st.sampled_from(["gpt", "assistant", "chatgpt", "bing"]),
}
CHAT = turns(("role", "content"), PLAIN)
SHARED = turns(("from", "value"), ANY) | turns(("role", "content"), ANY)
SYSTEM_KEY = st.fixed_dictionaries({}, optional={"system": TEXT | st.none()})


@st.composite
def messages_records(draw: st.DrawFn) -> dict[str, Any]:
    return draw(around({"messages": draw(CHAT), **draw(SYSTEM_KEY)}))


@st.composite
def sharegpt_records(draw: st.DrawFn) -> dict[str, Any]:
    return draw(around({"conversations": draw(SHARED), **draw(SYSTEM_KEY)}))


@st.composite
def original_records(draw: st.DrawFn) -> dict[str, Any]:
    record = {"id": draw(WORDS), "source": draw(WORDS | JSON), "category": draw(WORDS), "conversations": draw(SHARED)}
    return {**draw(OTHERS), **record}


@st.composite
def alpaca_records(draw: st.DrawFn) -> dict[str, Any]:
    pairs = st.lists(st.tuples(WORDS, WORDS).map(list), max_size=2)
    body = {"instruction": draw(WORDS), "output": draw(WORDS)}
    body |= draw(st.fixed_dictionaries({}, optional={"input": TEXT | st.none(), "history": pairs | st.none()}))
    return draw(around({**body, **draw(SYSTEM_KEY)}))


@st.composite
def prompts_records(draw: st.DrawFn) -> dict[str, Any]:
    return draw(around({"prompt": draw(WORDS)}))


@st.composite
def karma_records(draw: st.DrawFn) -> dict[str, Any]:
    record = {
        "id": draw(WORDS),
        "category": draw(st.none() | st.sampled_from(CATEGORIES)),
        "tags": draw(st.lists(WORDS, max_size=2)),
        "messages": [t for t in draw(turns(("role", "content"), PLAIN)) if t["role"] != "system"],
        "analysis": draw(st.none() | ANALYSIS),
        "source": draw(WORDS),
        "license": draw(WORDS),
        "added_in": draw(st.none() | WORDS),
        "status": draw(st.sampled_from(STATUSES)),
    }
    record["messages"] = [{"role": t["role"], "content": t["content"]} for t in record["messages"]]
    others = st.dictionaries(TEXT.filter(lambda key: key != FORM), JSON, min_size=1, max_size=2)
    optional = {"system": TEXT, "extra": others}
    return record | draw(st.fixed_dictionaries({}, optional=optional))


RECORDS = {
    "karma": karma_records(),
    "messages": messages_records(),
    "sharegpt": sharegpt_records(),
    "alpaca": alpaca_records(),
    "original": original_records(),
    "prompts": prompts_records(),
}


@st.composite
def conversations(draw: st.DrawFn, *, whole: bool = False) -> Conversation:
    count = draw(st.integers(1, 3))
    found = [turn for _ in range(count) for turn in (user(draw(WORDS)), assistant(draw(WORDS)))]
    return found if whole or draw(st.booleans()) else found[:-1]


@st.composite
def candidates(draw: st.DrawFn) -> Candidate:
    parts = draw(st.none() | ANALYSIS)
    return Candidate(
        id=draw(WORDS),
        messages=draw(conversations()),
        system=draw(st.none() | TEXT),
        category=draw(st.none() | st.sampled_from(CATEGORIES)),
        tags=tuple(draw(st.lists(WORDS, max_size=2))),
        analysis=None if parts is None else Analysis(**parts),
        source=draw(WORDS),
        license=draw(WORDS),
        added_in=draw(st.none() | WORDS),
        status=draw(st.sampled_from(STATUSES)),
        extra=draw(OTHERS),
    )


# --- round trips


def test_every_format_has_records_to_try() -> None:
    assert set(RECORDS) == set(FORMATS)


@pytest.mark.parametrize("name", FORMATS)
def test_a_record_read_and_written_again_is_equal(name: str) -> None:
    @SQUEEZED
    @given(RECORDS[name])
    def check(record: dict[str, Any]) -> None:
        given_in = copy.deepcopy(record)
        candidate = FORMATS[name].read(record, "x")
        assert FORMATS[name].write(candidate) == given_in
        assert json.dumps(FORMATS[name].write(candidate), sort_keys=True) == json.dumps(given_in, sort_keys=True)
        assert record == given_in  # and reading changes nothing

    check()


@pytest.mark.parametrize("name", FORMATS)
def test_a_record_comes_back_equal_from_the_workbench_too(name: str, tmp_path: Path) -> None:
    with Store.open(tmp_path / "w.db", create=True) as store:

        @settings(SQUEEZED, max_examples=40)
        @given(RECORDS[name])
        def check(record: dict[str, Any]) -> None:
            candidate = FORMATS[name].read({**record, "id": "same"}, "x")
            store.add([candidate], origin="x")
            store.replace(candidate, reason="", reviewer="")
            assert store.get("same") == candidate
            written = FORMATS[name].write(store.get("same"))
            assert json.dumps(written, sort_keys=True) == json.dumps({**record, "id": "same"}, sort_keys=True)

        check()


@SQUEEZED
@given(candidates())
def test_any_candidate_survives_our_own_format(candidate: Candidate) -> None:
    assert FORMATS["karma"].read(json.loads(json.dumps(FORMATS["karma"].write(candidate))), "x") == candidate
    assert from_record(json.loads(json.dumps(as_record(candidate)))) == candidate


@SQUEEZED
@given(candidates())
@pytest.mark.parametrize("name", ["messages", "sharegpt", "original"])
def test_any_conversation_survives_a_chat_format(name: str, candidate: Candidate) -> None:
    again = FORMATS[name].read(FORMATS[name].write(candidate), "x")
    assert (again.id, again.system, again.messages) == (candidate.id, candidate.system, candidate.messages)
    assert (again.category, again.tags, again.analysis) == (candidate.category, candidate.tags, candidate.analysis)
    assert (again.source, again.license, again.status) == (candidate.source, candidate.license, candidate.status)


@SQUEEZED
@given(candidates(), conversations(whole=True))
def test_any_conversation_with_an_answer_survives_alpaca(candidate: Candidate, messages: Conversation) -> None:
    candidate = Candidate(**{**vars(candidate), "messages": messages})
    again = FORMATS["alpaca"].read(FORMATS["alpaca"].write(candidate), "x")
    assert again.messages == messages
    assert (again.system or "") == (candidate.system or "") or not (candidate.system or "").strip()


def test_every_shipped_example_keeps_its_bytes_in_our_format_and_its_words_in_the_others() -> None:
    for example in read_corpus(resource_root("corpus")):
        candidate = Candidate.from_example(example)
        assert json.dumps(FORMATS["karma"].write(candidate)) == json.dumps(example.as_dict())
        for name in ("messages", "sharegpt", "alpaca", "original"):
            again = FORMATS[name].read(FORMATS[name].write(candidate), "x")
            assert Candidate(**{**vars(again), "extra": {}}) == candidate, name


def test_keys_come_back_in_their_order() -> None:
    record = {"lang": "de", "messages": [{"role": "user", "content": "x"}], "id": "a", "source": "me", "z": 1}
    assert list(FORMATS["messages"].write(FORMATS["messages"].read(record, "x"))) == list(record)


# --- Parquet and datasets


@settings(SQUEEZED, max_examples=25)
@given(st.lists(candidates(), max_size=4, unique_by=lambda c: c.id))
def test_candidates_survive_parquet(tmp_path_factory: pytest.TempPathFactory, wanted: list[Candidate]) -> None:
    path = tmp_path_factory.mktemp("parquet") / "x.parquet"
    write_parquet(path, wanted)
    assert [FORMATS["karma"].read(row.value, "x") for row in read_rows(path)] == wanted


def test_parquet_and_dataset_folders_open_with_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    corpus = [Candidate.from_example(example) for example in read_corpus(resource_root("corpus"))[:10]]
    write_parquet(tmp_path / "x.parquet", corpus)
    write_dataset(tmp_path / "folder", corpus)
    datasets.disable_progress_bars()
    one = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "x.parquet"), cache_dir=str(tmp_path / "cache"), split="train"
    )
    two = datasets.load_from_disk(str(tmp_path / "folder"))
    for opened in (one, two):
        assert opened["id"][:] == [candidate.id for candidate in corpus]
        assert opened[0]["messages"] == [m.as_dict() for m in corpus[0].messages]


def test_parquet_of_others_is_read_as_records_without_the_nulls(tmp_path: Path) -> None:
    rows = [
        {"conversations": [{"from": "human", "value": "hi", "weight": None}], "score": 0.5, "lang": None},
        {"conversations": [{"from": "human", "value": "yo", "weight": 1}], "score": None, "lang": "de"},
    ]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    assert [row.value for row in read_rows(tmp_path / "x.parquet")] == [
        {"conversations": [{"from": "human", "value": "hi"}], "score": 0.5},
        {"conversations": [{"from": "human", "value": "yo", "weight": 1}], "lang": "de"},
    ]


def test_parquet_values_that_json_cannot_hold_are_reported_by_row(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "blob": b"\xff"}, {"prompt": "b", "blob": None}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "x.parquet")
    bad, good = read_rows(tmp_path / "x.parquet")
    assert "row 1: 'blob'" in str(bad.problem)
    assert good.value == {"prompt": "b"}


def test_a_damaged_parquet_file_is_reported(tmp_path: Path) -> None:
    write_parquet(tmp_path / "x.parquet", [Candidate("a", [user("x")])])
    data = (tmp_path / "x.parquet").read_bytes()
    for content in (b"PAR1 no", data[: len(data) // 2], b""):
        (tmp_path / "y.parquet").write_bytes(content)
        with pytest.raises(DataError, match="no readable Parquet"):
            list(read_rows(tmp_path / "y.parquet"))


# --- reading


@pytest.mark.parametrize(
    ("name", "record", "system", "roles"),
    [
        ("messages", {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]}, "s", "u"),
        ("messages", {"system": "s", "messages": [{"role": "user", "content": "u"}]}, "s", "u"),
        ("sharegpt", {"conversations": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "a"}]}, None, "ua"),
        ("sharegpt", {"conversations": [{"from": "user", "value": "u"}, {"from": "bing", "value": "a"}]}, None, "ua"),
        ("sharegpt", {"conversations": [{"role": "human", "content": "u"}], "system": "s"}, "s", "u"),
        ("alpaca", {"instruction": "u", "input": "", "output": "a", "system": "s"}, "s", "ua"),
        ("alpaca", {"instruction": "u", "output": "a", "history": [["b", "c"]]}, None, "uaua"),
    ],
)
def test_roles_and_system_prompts_are_understood(
    name: str, record: dict[str, Any], system: str | None, roles: str
) -> None:
    candidate = FORMATS[name].read(record, "x")
    assert candidate.system == system
    assert "".join(message.role[0] for message in candidate.messages) == roles


def test_instruction_and_input_are_one_question() -> None:
    record = {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day"}
    candidate = FORMATS["alpaca"].read(record, "x")
    assert candidate.messages[0].content == "Translate.\n\nGuten Tag"


def test_an_edited_question_is_written_whole_as_the_instruction() -> None:
    record = {"instruction": "Translate.", "input": "Guten Tag", "output": "Good day"}
    candidate = FORMATS["alpaca"].read(record, "x")
    edited = Candidate(**{**vars(candidate), "messages": [user("Say good day"), assistant("Good day")]})
    assert FORMATS["alpaca"].write(edited) == {"instruction": "Say good day", "input": "", "output": "Good day"}


def test_content_in_parts_comes_out_in_parts() -> None:
    """OpenAI's other form of a message: a list of typed parts."""
    said = [{"type": "text", "text": "Who?"}]
    record = {"messages": [{"role": "system", "content": "a"}, {"role": "user", "content": said}]}
    format = FORMATS["messages"]
    candidate = format.read(record, "x")
    assert (candidate.system, candidate.messages) == ("a", [user("Who?")])
    assert format.write(candidate) == record
    record["messages"][1]["content"] = [*said, *said]
    with pytest.raises(DataError, match=r"turn 2 \(user\): 'content' has 2 parts of text"):
        format.read(record, "x")


def test_turns_that_were_added_get_the_usual_names() -> None:
    record = {"conversations": [{"from": "user", "value": "u", "weight": 1}, {"from": "bing", "value": "a"}]}
    candidate = FORMATS["sharegpt"].read(record, "x")
    longer = Candidate(**{**vars(candidate), "messages": [*candidate.messages, user("more")]})
    assert [turn["from"] for turn in FORMATS["sharegpt"].write(longer)["conversations"]] == ["human", "gpt", "human"]


def test_a_multi_turn_conversation_goes_to_alpaca_by_its_history() -> None:
    candidate = Candidate("a", [user("1"), assistant("2"), user("3"), assistant("4")])
    assert FORMATS["alpaca"].write(candidate) == {
        "id": "a",
        "instruction": "3",
        "input": "",
        "output": "4",
        "history": [["1", "2"]],
    }


def test_a_category_of_others_stays_theirs() -> None:
    record = {
        "id": "o1",
        "source": "batch-3",
        "category": "moral-dilemmas",
        "conversations": [{"role": "user", "content": "u"}],
    }
    candidate = FORMATS["original"].read(record, "x")
    assert (candidate.category, candidate.source, candidate.extra["category"]) == (None, "batch-3", "moral-dilemmas")
    known = FORMATS["original"].read({**record, "category": "adversarial"}, "x")
    assert known.category == "adversarial"


def test_a_record_without_an_id_has_the_same_one_every_time_and_another_record_another() -> None:
    record = {"prompt": "hi"}
    one, again = FORMATS["prompts"].read(record, "x"), FORMATS["prompts"].read(dict(record), "y")
    other = FORMATS["prompts"].read({"prompt": "ho"}, "x")
    assert one.id == again.id != other.id
    assert len(one.id) == 16


def test_what_another_format_cannot_hold_is_said() -> None:
    with pytest.raises(DataError, match="c1 ends with a user turn"):
        FORMATS["alpaca"].write(Candidate("c1", [user("x")]))
    with pytest.raises(DataError, match="c1 is more than one user turn"):
        FORMATS["prompts"].write(Candidate("c1", [user("x"), assistant("y")]))


def test_a_form_that_somebody_made_up_breaks_nothing() -> None:
    for form in (
        7,
        {},
        {"format": "sharegpt", "keys": 3},
        {"format": "sharegpt", "keys": [], "names": [1, {}], "turns": "x", "style": []},
    ):
        record = FORMATS["sharegpt"].write(Candidate("a", [user("x")], extra={FORM: form}))
        assert record["conversations"] == [{"from": "human", "value": "x"}]


BAD = [
    ("messages", [], "expected a JSON object"),
    ("messages", {}, "'messages' is missing"),
    ("messages", {"messages": []}, "'messages' is empty"),
    ("messages", {"messages": "x"}, "of type str"),
    ("messages", {"messages": ["x"]}, "turn 1 is of type str"),
    ("messages", {"messages": [{"content": "x"}]}, "turn 1 has role missing"),
    ("messages", {"messages": [{"role": "tool", "content": "x"}]}, "turn 1 has role 'tool', expected one of"),
    ("messages", {"messages": [{"role": ["user"], "content": "x"}]}, "turn 1 has role"),
    ("messages", {"messages": [{"role": "human", "content": "x"}]}, "'human'"),
    ("messages", {"messages": [{"role": "user"}]}, "'content' is missing"),
    ("messages", {"messages": [{"role": "user", "content": None}]}, "of type NoneType"),
    (
        "messages",
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        "has the keys type, expected type and text",
    ),
    ("messages", {"messages": [{"role": "user", "content": " \n"}]}, "turn 1 (user) is empty"),
    ("messages", {"messages": [{"role": "assistant", "content": "x"}]}, "assistant turn after nothing"),
    ("messages", {"messages": [{"role": "user", "content": "x"}] * 2}, "user turn after user"),
    ("messages", {"messages": [{"role": "system", "content": "x"}]}, "only a system message"),
    ("messages", {"messages": [{"role": "user", "content": "x"}], "id": " "}, "'id' is ' '"),
    ("messages", {"messages": [{"role": "user", "content": "x"}], "id": True}, "'id' is True"),
    ("messages", {"messages": [{"role": "user", "content": "x"}], FORM: 1}, "workbench's own"),
    ("sharegpt", {"messages": []}, "'conversations' is missing"),
    ("sharegpt", {"conversations": [{"from": "function", "value": "x"}]}, "turn 1 has from 'function'"),
    (
        "sharegpt",
        {"conversations": [{"from": "human", "value": "x"}, {"role": "gpt", "content": "y"}]},
        "turn 2 has from",
    ),
    ("original", {"conversations": [], "id": "a", "source": "x"}, "'category' is missing"),
    ("alpaca", {"instruction": "x"}, "'output' is missing"),
    ("alpaca", {"instruction": "x", "output": ""}, "'output' is empty"),
    ("alpaca", {"instruction": "x", "output": "y", "input": 3}, "'input' is of type int"),
    ("alpaca", {"instruction": "x", "output": "y", "history": [["a"]]}, "'history' 1"),
    ("alpaca", {"instruction": "x", "output": "y", "history": "a"}, "'history' 1"),
    ("prompts", {"prompt": ["x"]}, "'prompt' is ['x']"),
    ("karma", {"messages": [{"role": "user", "content": "x"}], "lang": "de"}, "unknown key 'lang'"),
    ("karma", {"messages": [{"role": "user", "content": "x"}], "category": "fun"}, "category 'fun' is unknown"),
    ("karma", {"messages": [{"role": "user", "content": "x"}], "tags": "a"}, "'tags' is 'a'"),
    ("karma", {"messages": [{"role": "user", "content": "x"}], "analysis": {"direct": "x"}}, "'analysis' must"),
    ("karma", {"messages": [{"role": "user", "content": "x"}], "system": 3}, "'system' is of type int"),
    ("karma", {"messages": [{"role": "user", "content": "x"}], "extra": []}, "'extra' is of type list"),
    ("karma", {"messages": [{"role": "user", "content": "x"}], "id": 3}, "'id' is 3"),
    ("karma", {"messages": [{"role": "system", "content": "x"}, {"role": "user", "content": "x"}]}, "system prompt"),
]


@pytest.mark.parametrize(("name", "record", "said"), BAD)
def test_what_is_wrong_is_said_with_its_place(name: str, record: Any, said: str) -> None:
    with pytest.raises(DataError) as refused:
        FORMATS[name].read(record, "chats.jsonl line 7")
    assert refused.value.message.startswith("chats.jsonl line 7: ")
    assert said in refused.value.message


@pytest.mark.parametrize("name", FORMATS)
@settings(SQUEEZED, max_examples=100)
@given(JSON | st.dictionaries(st.sampled_from(sorted(RESERVED | {"tags", "extra", "analysis"})), JSON, max_size=5))
def test_no_record_whatever_breaks_a_reader(name: str, record: Any) -> None:
    try:
        FORMATS[name].read(record, "x")
    except DataError as error:
        assert error.message.startswith("x: ")  # noqa: PT017  either outcome is right


def test_a_line_of_a_corpus_must_be_a_whole_example() -> None:
    record = read_corpus(resource_root("corpus"))[0].as_dict()
    assert read_complete(record, "x").id == record["id"]
    del record["analysis"]
    assert FORMATS["karma"].read(record, "x").analysis is None
    with pytest.raises(DataError, match="'analysis' is missing"):
        read_complete(record, "x")


# --- telling formats apart


@pytest.mark.parametrize(
    ("record", "name"),
    [
        (read_corpus(resource_root("corpus"))[0].as_dict(), "karma"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system"}], "analysis": None, "added_in": None}, "messages"),
        ({"messages": [], "analysis": 1, "added_in": 1, "lang": 1}, "messages"),
        ({"conversations": []}, "sharegpt"),
        ({"conversations": [], "id": 1, "source": 1}, "sharegpt"),
        ({"conversations": [], "id": 1, "source": 1, "category": 1}, "original"),
        ({"instruction": 1, "output": 1}, "alpaca"),
        ({"prompt": 1, "id": 1}, "prompts"),
        ({"id": 1, "content_sha256": 1, "rubric": 1, "judge": 1, "scores": 1, "total": 1, "rationale": 1}, "grades"),
        ({"text": 1}, None),
        ([], None),
        (None, None),
    ],
)
def test_a_format_is_told_by_its_keys(record: object, name: str | None) -> None:
    assert detect(record) == name


@pytest.mark.parametrize("name", FORMATS)
def test_what_we_write_is_told_to_be_what_it_is(name: str) -> None:
    messages = [user("x")] if name == "prompts" else [user("x"), assistant("y")]
    written = FORMATS[name].write(Candidate("a", messages, license="MIT"))
    assert detect(written) == name
