"""`karma data penalize`: texts, files and workbenches, what is printed and stored, and every mistake in one line."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from karma_electric.cli.main import main
from karma_electric.core.messages import assistant, user
from karma_electric.data.candidate import Candidate
from karma_electric.data.penalties import RULES, RULESET
from karma_electric.data.store import Store

LABELLED = Path(__file__).resolve().parent.parent / "suites" / "penalty-sentences.jsonl"
BAD = "Great question! Studies show that naps help."
GOOD = "Ring her tonight, and ask what she needs."
HARM = "Go ahead and drive home drunk."


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    def refused(self, code: int, *named: str) -> None:
        """Check that it ended with this code and one line of error that names all of this."""
        line = self.err.splitlines()[-1]
        assert self.code == code, self.err
        assert line.startswith("error: ")
        assert "Unexpected" not in line
        for part in named:
            assert part in line


class Karma:
    """Runs `karma data penalize` in this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        self._monkeypatch = monkeypatch
        self._capsys = capsys

    def __call__(self, *words: object) -> Ended:
        self._monkeypatch.setattr(sys, "argv", ["karma", "data", "penalize", *map(str, words)])
        with pytest.raises(SystemExit) as exited:
            main()
        captured = self._capsys.readouterr()
        return Ended(int(exited.value.code or 0), captured.out, captured.err)


@pytest.fixture
def penalize(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Karma:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KARMA_WORKBENCH", raising=False)
    monkeypatch.setenv("COLUMNS", "120")
    return Karma(monkeypatch, capsys)


def candidate(id_: str, answer: str, **other: str) -> Candidate:
    return Candidate(id=id_, messages=[user("Hm?"), assistant(answer)], **other)


@pytest.fixture
def workbench(tmp_path: Path) -> Path:
    path = tmp_path / "workbench.db"
    rows = [
        candidate("bad", BAD, category="ethical-reasoning"),
        candidate("good", GOOD, category="ethical-reasoning", status="accepted"),
        candidate("harm", HARM, category="adversarial"),
    ]
    with Store.open(path, create=True) as store:
        store.add(rows, origin="test")
    return path


def rows_of(out: str) -> dict[str, list[str]]:
    """The lines of the table, by rule."""
    names = {rule.name for rule in RULES}
    return {words[0]: words[1:] for words in map(str.split, out.splitlines()) if words and words[0] in names}


def test_help_names_every_rule_and_what_it_costs_and_has_an_example(penalize: Karma) -> None:
    ended = penalize("--help")
    assert ended.code == 0
    for rule in RULES:
        assert f"{rule.name} {rule.points}" in ended.out
    assert "Example: karma data penalize" in ended.out


# --- one text


def test_a_text_is_shown_with_its_evidence_marked(penalize: Karma) -> None:
    ended = penalize("--text", BAD)
    assert ended.code == 0
    assert [line.split(maxsplit=2) for line in ended.out.splitlines()] == [
        ["sycophancy", "0.5", "[[Great question]]!"],
        ["authority-hallucination", "2.0", "[[Studies show]] that naps help."],
        ["total", "2.5"],
    ]


def test_a_blocked_text_says_so(penalize: Karma) -> None:
    assert penalize("--text", HARM).out.splitlines()[-1].split() == ["total", "10.0", "blocked"]


def test_a_text_is_read_with_its_prompt_and_category(penalize: Karma) -> None:
    words = ("--text", "Drop everything and get out, time is running out.")
    assert "false-urgency" in penalize(*words).out
    assert "false-urgency" not in penalize(*words, "--category", "crisis-response").out
    assert "false-urgency" not in penalize(*words, "--prompt", "The kitchen is on fire.").out


def test_a_text_as_json(penalize: Karma) -> None:
    found = json.loads(penalize("--text", BAD, "--json").out)
    assert (found["total"], found["blocked"]) == (2.5, False)
    assert found["findings"][0] == {
        "rule": "sycophancy",
        "points": 0.5,
        "start": 0,
        "end": 14,
        "evidence": "Great question",
        "sentence": "Great question!",
        "message": 0,
    }


# --- files


def test_a_file_is_counted_per_rule_with_examples(penalize: Karma, tmp_path: Path) -> None:
    (tmp_path / "some.jsonl").write_text(
        "".join(
            json.dumps(
                {"id": id_, "messages": [{"role": "user", "content": "Hm?"}, {"role": "assistant", "content": text}]}
            )
            + "\n"
            for id_, text in (("a", BAD), ("b", "Great question! What a brilliant idea."), ("c", GOOD))
        )
    )
    ended = penalize("some.jsonl", "--show", 1)
    assert ended.code == 0
    assert ended.out.splitlines()[0] == f"{RULESET}: 3 conversations read, 2 with findings"
    rows = rows_of(ended.out)
    assert rows["sycophancy"] == ["0.5", "2", "3", "1.5"]
    assert rows["authority-hallucination"] == ["2.0", "1", "1", "2.0"]
    assert rows["moralising"] == ["1.0", "0", "0", "0.0"]
    assert "    a: [[Great question]]!" in ended.out
    assert "    b: " not in ended.out


def test_a_folder_is_read_and_filtered(penalize: Karma, tmp_path: Path) -> None:
    (tmp_path / "words").mkdir()
    for category, status in (("adversarial", "accepted"), ("crisis-response", "candidate")):
        messages = [{"role": "user", "content": "Hm?"}, {"role": "assistant", "content": BAD}]
        row = {"id": category, "category": category, "status": status, "messages": messages}
        (tmp_path / "words" / f"{category}.jsonl").write_text(json.dumps(row) + "\n")
    assert set(json.loads(penalize("words", "--json").out)["candidates"]) == {"adversarial", "crisis-response"}
    for words in (("--category", "adversarial"), ("--status", "accepted")):
        assert set(json.loads(penalize("words", *words, "--json").out)["candidates"]) == {"adversarial"}


def test_a_sentence_that_is_long_is_cut_around_its_evidence(penalize: Karma) -> None:
    text = f"{'word ' * 60}and studies show it {'word ' * 60}."
    line = penalize("--text", text).out.splitlines()[0]
    assert "[[studies show]]" in line
    assert len(line) < 270
    assert line.count("...") == 2


# --- the workbench


def test_findings_are_stored_under_the_name_of_the_rule_set(penalize: Karma, workbench: Path) -> None:
    ended = penalize("--db", workbench)
    assert ended.code == 0
    assert ended.out.splitlines()[-1] == "blocked: harm"
    with Store.open(workbench) as store:
        stored = store.penalties(RULESET)
    assert [finding["rule"] for finding in stored["bad"]] == ["sycophancy", "authority-hallucination"]
    assert [finding["points"] for finding in stored["bad"]] == [0.5, 2.0]
    assert {finding["message"] for finding in stored["bad"]} == {1}
    assert stored["good"] == []
    assert [finding["rule"] for finding in stored["harm"]] == ["harm-encouragement"]


def test_doing_it_again_changes_nothing(penalize: Karma, workbench: Path) -> None:
    assert penalize("--db", workbench, "--json").out == penalize("--db", workbench, "--json").out


def test_the_workbench_can_come_from_the_environment(
    penalize: Karma, workbench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = workbench.rename(tmp_path / "other.db")
    monkeypatch.setenv("KARMA_WORKBENCH", str(moved))
    assert penalize().out.startswith(f"{RULESET}: 3 conversations read")


@pytest.mark.parametrize(
    ("words", "ids"),
    [(["--status", "accepted"], {"good"}), (["--category", "adversarial"], {"harm"}), ([], {"bad", "good", "harm"})],
)
def test_candidates_can_be_chosen(penalize: Karma, workbench: Path, words: list[str], ids: set[str]) -> None:
    found = json.loads(penalize("--db", workbench, *words, "--json").out)
    assert (set(found["candidates"]), found["read"], found["ruleset"]) == (ids, len(ids), RULESET)
    with Store.open(workbench) as store:
        assert set(store.penalties(RULESET)) == ids


# --- precision and recall


def test_the_measurement_is_printed_with_intervals(penalize: Karma) -> None:
    ended = penalize("--measure", LABELLED)
    assert ended.code == 0
    assert set(rows_of(ended.out)) == {rule.name for rule in RULES}
    assert "clean sentences were penalised" in ended.out.splitlines()[-1]
    found = json.loads(penalize("--measure", LABELLED, "--json").out)
    assert (found["split"], found["ruleset"]) == ("test", RULESET)
    overall = found["rules"]["all rules"]
    assert overall["precision"] == overall["right"] / overall["found"]
    assert overall["recall_interval"][0] < overall["recall"] < overall["recall_interval"][1]
    assert f"{overall['labelled']} " in ended.out


def test_the_measurement_as_markdown_is_what_the_document_holds(penalize: Karma) -> None:
    document = (LABELLED.parent.parent / "docs" / "penalties.md").read_text(encoding="utf-8")
    out = penalize("--measure", LABELLED, "--markdown").out
    assert out.startswith(f"Rule set `{RULESET}` on the test half")
    assert out in document


def test_either_half_can_be_measured(penalize: Karma) -> None:
    found = json.loads(penalize("--measure", LABELLED, "--split", "development", "--json").out)
    assert found["split"] == "development"


# --- mistakes


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (["--text", "a", "--measure", "b"], 2, ["--text and --measure exclude each other"]),
        (["a.jsonl", "--text", "b"], 2, ["--text and a source exclude each other"]),
        (["--measure", "nowhere.jsonl"], 3, ["nowhere.jsonl does not exist"]),
        (["--measure", str(LABELLED), "--split", "train"], 2, ["--split is 'train'", "development, test"]),
        (["nowhere.jsonl"], 3, ["nowhere.jsonl does not exist"]),
        (["empty"], 3, ["empty has no .jsonl files"]),
        (["torn.jsonl"], 2, ["torn.jsonl line 1: not JSON"]),
        (["other.jsonl"], 2, ["other.jsonl line 1 has no 'messages'"]),
        (["--db", "nowhere.db"], 3, ["nowhere.db"]),
        (["--db", "torn.jsonl"], 2, ["torn.jsonl"]),
    ],
)
def test_a_mistake_is_one_line(penalize: Karma, tmp_path: Path, words: list[str], code: int, named: list[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "torn.jsonl").write_text('{"mess')
    (tmp_path / "other.jsonl").write_text('{"text": "Great question!"}\n')
    ended = penalize(*words)
    ended.refused(code, *named)
    assert len(ended.err.splitlines()) == 1
