"""What a test would recognise: 13 words in a row, a short text as a whole, or the same meaning."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from embedded import sentence_model
from karma_electric.cli.main import app
from karma_electric.core.errors import GateError, InputError, KarmaError, MissingError
from karma_electric.core.messages import assistant, user
from karma_electric.core.resources import resource_root
from karma_electric.data.candidate import Candidate
from karma_electric.data.decontaminate import SPAN, Overlap, Passage, find_overlaps, read_references
from karma_electric.data.store import Store
from karma_electric.data.texts import words

REFERENCE = (
    "My landlord wants to keep the deposit because of a stain that was there when I moved in, and I have photographs."
)


def overlaps(text: str, *references: str) -> list[Overlap]:
    """What a text shares with references, by words."""
    return find_overlaps(
        [Passage("mine", text)], [Passage(f"r{n}", r) for n, r in enumerate(references)], semantic=None
    )


def test_thirteen_words_in_a_row_are_found_whatever_stands_around_and_between_them() -> None:
    shared = " ".join(REFERENCE.split()[3:16]).upper().replace(" ", " -- ")
    [found] = overlaps(f"Hello! {shared}? What now", REFERENCE)
    assert (found.id, found.other, found.kind) == ("mine", "r0", "words")
    assert found.detail == "13 words in a row: to keep the deposit because of a stain that was there when i"
    assert found.other_text == REFERENCE


def test_twelve_words_in_a_row_are_not() -> None:
    assert overlaps("Hello! " + " ".join(REFERENCE.split()[3:15]) + " elsewhere", REFERENCE) == []


def test_of_several_references_the_one_with_the_longer_run_is_named() -> None:
    beginning = "Tell me: " + " ".join(REFERENCE.split()[:13])
    [found] = overlaps("Well, " + REFERENCE, beginning, REFERENCE)
    assert found.other == "r1"


def test_a_short_text_counts_as_a_whole_and_only_as_a_whole() -> None:
    assert [o.detail for o in overlaps("How do I whittle a spoon?", "how do I WHITTLE a spoon")] == [
        "6 words in a row: how do i whittle a spoon"
    ]
    assert overlaps("How do I whittle a spoon from ash?", "How do I whittle a spoon?") == []
    assert overlaps("Yes, please do.", "Yes, please do.") == []  # three words are nobody's


def test_chinese_is_compared_character_by_character() -> None:
    text = "我的房东因为一块早就有的污渍不肯退押金"
    assert len(overlaps(f"你好。{text}，怎么办", text)) == 1


WORDS = st.lists(st.sampled_from(["ka", "lo", "mi", "run", "te"]), min_size=1, max_size=40)


@given(WORDS, WORDS)
def test_a_run_is_reported_exactly_when_there_is_one(mine: list[str], other: list[str]) -> None:
    runs = {tuple(other[i : i + SPAN]) for i in range(len(other) - SPAN + 1)}
    expected = any(tuple(mine[i : i + SPAN]) in runs for i in range(len(mine) - SPAN + 1))
    expected |= mine == other and len(mine) >= 4
    found = overlaps(" ".join(mine), " ".join(other))
    assert bool(found) is expected
    for overlap in found:
        length = int(overlap.detail.split()[0])
        assert length <= min(len(mine), len(other))
        assert overlap.similarity == length / min(len(mine), len(other))


def test_a_paraphrase_is_found_by_its_meaning_and_another_question_is_not() -> None:
    references = [Passage("r0", REFERENCE), Passage("r1", "How do I bake bread without an oven?")]
    mine = [
        Passage("a", "My landlord won't return my deposit over a stain that was already there; I've got photos of it."),
        Passage("b", "My landlord wants to raise the rent in spring. Can he?"),
        Passage("c", "What is the way to bake bread when you have no oven?"),
    ]
    found = find_overlaps(mine, references, model=sentence_model())
    assert [(o.id, o.other, o.kind) for o in found] == [("a", "r0", "semantic"), ("c", "r1", "semantic")]
    assert all(0.85 <= o.similarity <= 1 for o in found)
    assert find_overlaps(mine, references, semantic=None) == []


# --- references


def test_every_text_of_every_suite_counts(tmp_path: Path) -> None:
    rows = [
        {"id": "s", "turns": ["turn one", "turn two"], "expected": "what is expected", "difficulty": "easy"},
        {"id": "l", "prompt": "a prompt", "response": "a response", "label": "pass", "reason": "no text"},
        {"id": "j", "messages": [{"role": "user", "content": "asked"}], "better": "this", "worse": "that"},
    ]
    (tmp_path / "suite.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert {(p.id, p.text) for p in read_references([tmp_path])} == {
        ("suite.jsonl:s", "turn one"),
        ("suite.jsonl:s", "turn two"),
        ("suite.jsonl:s", "what is expected"),
        ("suite.jsonl:l", "a prompt"),
        ("suite.jsonl:l", "a response"),
        ("suite.jsonl:j", "asked"),
        ("suite.jsonl:j", "this"),
        ("suite.jsonl:j", "that"),
    }


def test_every_shipped_suite_can_be_a_reference() -> None:
    files = {file.name for file in resource_root("suites").glob("*.jsonl")}
    read = read_references([resource_root("suites")])
    # all of the one is in standard-200 too, of the other in labelled-releases-2591
    contained = {"standard-58.jsonl", "labelled-v1-867.jsonl"}
    assert {passage.id.split(":")[0] for passage in read} == files - contained
    texts = {passage.text for passage in read}
    alone = read_references([resource_root("suites") / "standard-58.jsonl"])
    assert {passage.text for passage in alone} < texts


# --- the command


def run(*arguments: str | Path) -> str:
    """The command's output."""
    result = CliRunner().invoke(app, ["data", "decontaminate", *map(str, arguments)])
    if isinstance(result.exception, KarmaError):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A file of which the second line is contaminated, and what with."""
    mine, suite = tmp_path / "mine.jsonl", tmp_path / "suite.jsonl"
    mine.write_text(
        '{"id": "a", "prompt": "How do I whittle a spoon?"}\n' + json.dumps({"id": "b", "prompt": REFERENCE}) + "\n"
    )
    suite.write_text(json.dumps({"id": "s1", "turns": [REFERENCE]}) + "\n")
    return mine, suite


def test_contamination_fails_the_gate_and_names_both_sides(files: tuple[Path, Path], tmp_path: Path) -> None:
    mine, suite = files
    report = tmp_path / "report.json"
    with pytest.raises(GateError, match="1 of 2 records are contaminated"):
        run(mine, "--against", suite, "--no-semantic", "--report", report)
    [pair] = json.loads(report.read_text())["pairs"]
    assert (pair["id"], pair["other"], pair["kind"]) == ("b", "suite.jsonl:s1", "words")


def test_what_is_clean_is_written(files: tuple[Path, Path], tmp_path: Path) -> None:
    mine, suite = files
    run(mine, "--against", suite, "--no-semantic", "--out", tmp_path / "clean.jsonl")
    assert (tmp_path / "clean.jsonl").read_text() == mine.read_text().splitlines(keepends=True)[0]
    assert "none shares text" in run(tmp_path / "clean.jsonl", "--against", suite)


def test_removals_are_recorded_in_the_workbench(files: tuple[Path, Path], tmp_path: Path) -> None:
    database = tmp_path / "w.db"
    with Store.open(database, create=True) as store:
        store.add(
            [
                Candidate("a", [user("Hi there, you."), assistant("Indeed: " + REFERENCE)]),
                Candidate("b", [user("Hm?"), assistant("No.")]),
            ],
            origin="test",
        )
    run("--db", database, "--against", files[1], "--no-semantic", "--apply")
    with Store.open(database) as store:
        [removal] = store.removals()
        assert (removal.candidate_id, removal.kind, removal.other) == ("a", "contamination", "suite.jsonl:s1")
        assert [c.id for c in store.candidates(status="rejected")] == ["a"]
    assert "1 records: none shares text" in run("--db", database, "--against", files[1], "--no-semantic")


def test_what_a_reviewer_brought_back_stays_and_still_fails_the_gate(files: tuple[Path, Path], tmp_path: Path) -> None:
    database = tmp_path / "w.db"
    with Store.open(database, create=True) as store:
        store.add([Candidate("a", [user(REFERENCE), assistant("Ask for the inventory.")])], origin="test")
        store.add_removal("a", "near", "b", 0.9, "a copy")
        store.decide("a", "accepted", reason="no copy", reviewer="me")  # says nothing of a test
    apply = ("--db", database, "--against", files[1], "--no-semantic", "--apply")
    assert "1 records removed" in run(*apply)
    with Store.open(database) as store:
        assert store.get("a").status == "rejected"
        store.decide("a", "accepted", reason="it may stay", reviewer="me")
    with pytest.raises(GateError, match=r"1 contaminated records stay: a reviewer brought them back \(a\)"):
        run(*apply)
    with Store.open(database) as store:
        assert store.get("a").status == "accepted"


def test_a_reference_that_is_not_there_is_named(files: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="nowhere does not exist"):
        run(files[0], "--against", tmp_path / "nowhere", "--no-semantic")
    with pytest.raises(InputError, match="is a folder: it is only reported on"):
        run(tmp_path, "--against", files[1], "--no-semantic", "--apply")


def test_words_are_letters_marks_and_digits() -> None:
    assert words("Don't—STOP, it's 5.30 o’clock!") == ["don", "t", "stop", "it", "s", "5", "30", "o", "clock"]
    assert words("हिन्दी में") == ["हिन्दी", "में"]
    assert words("日本2x") == ["日", "本", "2x"]
