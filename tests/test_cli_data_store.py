"""`karma data import`, `export`, `stats`, `search` and `diff`: what they write, what they report, how they end."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from karma_electric.cli.main import main
from karma_electric.core.errors import DataError
from karma_electric.core.messages import assistant, user
from karma_electric.core.progress import Silent
from karma_electric.core.resources import resource_root
from karma_electric.data.candidate import Candidate
from karma_electric.data.corpus import read_corpus
from karma_electric.data.exporting import Selection, export_corpus
from karma_electric.data.formats.columnar import read_rows
from karma_electric.data.importing import Wishes, import_files, plan_files
from karma_electric.data.rubric import DIMENSIONS, RUBRIC
from karma_electric.data.store import Reply, Store

CORPUS = resource_root("corpus")
TURNS = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yo"}]


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """What it printed."""
        return json.loads(self.out)

    def refused(self, code: int, *named: str) -> None:
        """Check that it ended with this code and one line of error that names all of this."""
        assert self.code == code, self.err
        line = self.err.splitlines()[-1]
        assert line.startswith("error: ")
        assert "Unexpected" not in line
        for part in named:
            assert part in line


Karma = Callable[..., Ended]


@pytest.fixture
def karma(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Karma:
    """Runs `karma data ...` in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KARMA_WORKBENCH", raising=False)

    def run(*words: object) -> Ended:
        monkeypatch.setattr(sys, "argv", ["karma", "data", *map(str, words)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as exited:
            main()
        captured = capsys.readouterr()
        return Ended(int(exited.value.code or 0), captured.out, captured.err)

    return run


def write_lines(path: Path, *records: Mapping[str, Any] | str) -> Path:
    """A JSONL file; text stands as it is."""
    lines = [record if isinstance(record, str) else json.dumps(record) for record in records]
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def files(folder: Path) -> dict[str, bytes]:
    """The JSONL files of a folder."""
    return {file.name: file.read_bytes() for file in folder.glob("*.jsonl")}


def grade(store: Store, id: str, score: float, judge: str = "ollama/judge") -> None:
    """A grade of four times this score."""
    scores = dict.fromkeys(DIMENSIONS, score)
    content = store.get(id).content_sha256
    store.add_reply(Reply(id, content, RUBRIC, judge, 0, scores, 4 * score, "Because.", raw="{...}"))


# --- import


def test_the_corpus_goes_in_and_comes_out_with_the_same_bytes(karma: Karma, tmp_path: Path) -> None:
    done = karma("import", CORPUS)
    assert done.code == 0, done.err
    assert "workbench.db has" in done.out
    assert karma("export", "out").code == 0
    assert files(tmp_path / "out") == files(CORPUS)


def test_importing_again_adds_nothing(karma: Karma) -> None:
    first = karma("import", CORPUS, "--json").json
    again = karma("import", CORPUS, "--json").json
    assert first["candidates"] == again["candidates"] == len(read_corpus(CORPUS))
    assert sum(file["new"] for file in again["files"]) == 0
    assert sum(file["unchanged"] for file in again["files"]) == sum(file["new"] for file in first["files"])


def test_bad_records_are_reported_by_line_and_the_others_go_in(karma: Karma, tmp_path: Path) -> None:
    write_lines(
        tmp_path / "chats.jsonl",
        {"id": "a", "messages": TURNS},
        '{"id": "b", "messages": [{"role": "tool", "content": "x"}]}',
        {"id": "a", "messages": TURNS[:1]},
        "no json",
        {"id": "c", "messages": TURNS, "lang": "de"},
    )
    done = karma("import", "chats.jsonl")
    done.refused(1, "3 of 5 records were left out", "--skip-bad")
    lines = [line.strip() for line in done.out.splitlines()]
    assert lines[0] == "chats.jsonl: messages: 2 new, 3 left out"
    assert lines[1].startswith("chats.jsonl line 2: turn 1 has role 'tool', expected one of system, user, assistant.")
    assert lines[2].startswith("chats.jsonl line 3: the id 'a' is in the workbench with other contents (messages).")
    assert lines[3].startswith("chats.jsonl line 4: not JSON")
    report = karma("import", "chats.jsonl", "--skip-bad", "--json")
    assert report.code == 0
    (file,) = report.json["files"]
    assert [problem["line"] for problem in file["problems"]] == [2, 3, 4]
    assert (file["unchanged"], file["left_out"]) == (2, 3)


@pytest.mark.parametrize("suffix", ["jsonl", "json"])
def test_broken_encodings_and_a_line_of_50_mb_cost_only_themselves(karma: Karma, tmp_path: Path, suffix: str) -> None:
    good = json.dumps({"messages": TURNS}).encode()
    records = [good, b'{"prompt": "\xff"}', b'{"messages": "' + b"x" * 50_000_000 + b'"}', good.replace(b"yo", b"ok")]
    content = b"\n".join(records) if suffix == "jsonl" else b"[" + b",\n".join(records) + b"]"
    (tmp_path / f"x.{suffix}").write_bytes(b"\xef\xbb\xbf" + content)
    done = karma("import", f"x.{suffix}", "--json")
    done.refused(1, "2 of 4 records")
    assert done.json["candidates"] == 2
    assert [problem["line"] for problem in done.json["files"][0]["problems"]] == [2, 3]


def test_a_file_that_cannot_be_read_does_not_stop_the_others(karma: Karma, tmp_path: Path) -> None:
    (tmp_path / "bad.jsonl").write_bytes("{}".encode("utf-16"))
    write_lines(tmp_path / "good.jsonl", {"messages": TURNS})
    done = karma("import", "bad.jsonl", "good.jsonl")
    done.refused(2, "bad.jsonl", "UTF-16", "iconv")
    assert "good.jsonl: messages: 1 new" in done.out


@pytest.mark.parametrize(
    ("record", "format"),
    [
        ({"messages": TURNS}, "messages"),
        ({"conversations": [{"from": "human", "value": "hi"}]}, "sharegpt"),
        ({"id": "1", "source": "b", "category": "c", "conversations": TURNS}, "original"),
        ({"instruction": "hi", "output": "yo"}, "alpaca"),
        ({"id": "p1", "prompt": "hi"}, "prompts"),
    ],
)
def test_the_format_is_told_by_the_first_good_record_and_said(
    karma: Karma, tmp_path: Path, record: dict[str, Any], format: str
) -> None:
    write_lines(tmp_path / "x.jsonl", "broken", {"nothing": "known"}, record)
    done = karma("import", "x.jsonl", "--skip-bad")
    assert done.out.startswith(f"x.jsonl: {format}: 1 new, 2 left out")
    assert "found the keys nothing, none of the known formats. Known: karma, messages" in done.out
    assert karma("import", "x.jsonl", "--skip-bad", "--format", format).out.startswith(f"x.jsonl: {format}: 0 new")
    karma("import", "x.jsonl", "--format", "chatml").refused(2, "'chatml'", "sharegpt")


@pytest.mark.parametrize("format", ["messages", "sharegpt", "alpaca", "original", "karma", "parquet"])
def test_an_export_imported_and_exported_again_has_the_same_bytes(karma: Karma, tmp_path: Path, format: str) -> None:
    karma("import", CORPUS)
    name = f"x.{format if format == 'parquet' else 'jsonl'}"
    assert karma("export", name, "--format", format).code == 0
    assert karma("import", name, "--db", "second.db").code == 0
    assert karma("export", f"again-{name}", "--format", format, "--db", "second.db").code == 0
    if format != "parquet":
        assert (tmp_path / f"again-{name}").read_bytes() == (tmp_path / name).read_bytes()
    assert karma("export", "corpus", "--db", "second.db").code == 0
    assert files(tmp_path / "corpus") == files(CORPUS)


def test_prompts_without_answers_are_conversations_of_one_turn(karma: Karma, tmp_path: Path) -> None:
    write_lines(tmp_path / "p.jsonl", {"id": "p1", "prompt": "How?"}, {"id": "p2", "prompt": "Why?"})
    assert karma("import", "p.jsonl", "--format", "prompts", "--source", "prompts-6k", "--license", "CC0-1.0").code == 0
    with Store.open(tmp_path / "workbench.db") as store:
        found = store.get("p1")
    assert (found.messages, found.source, found.license) == ([user("How?")], "prompts-6k", "CC0-1.0")
    assert karma("export", "back.jsonl", "--format", "prompts").code == 0
    assert json.loads((tmp_path / "back.jsonl").read_text().splitlines()[0])["prompt"] == "How?"


def test_options_fill_what_records_do_not_say_and_overrule_nothing(karma: Karma, tmp_path: Path) -> None:
    own = {"id": "own", "messages": TURNS, "source": "me", "license": "MIT", "category": "adversarial"}
    write_lines(tmp_path / "x.jsonl", own, {"id": "bare", "messages": TURNS})
    options = ("--source", "web", "--license", "CC0-1.0", "--category", "cross-cultural")
    assert karma("import", "x.jsonl", *options).code == 0
    with Store.open(tmp_path / "workbench.db") as store:
        said = {c.id: (c.source, c.license, c.category) for c in store.candidates()}
    assert said == {"own": ("me", "MIT", "adversarial"), "bare": ("web", "CC0-1.0", "cross-cultural")}
    assert "2 there already" in karma("import", "x.jsonl").out
    karma("import", "x.jsonl", "--category", "fun").refused(2, "'fun'", "adversarial")


def test_replace_takes_the_files_version_and_keeps_the_other(karma: Karma, tmp_path: Path) -> None:
    write_lines(tmp_path / "x.jsonl", {"id": "a", "messages": TURNS, "source": "me"})
    karma("import", "x.jsonl")
    write_lines(tmp_path / "x.jsonl", {"id": "a", "messages": TURNS[:1]}, {"id": "a", "messages": TURNS})
    done = karma("import", "x.jsonl", "--replace")
    done.refused(1, "1 of 2")
    assert "1 replaced, 1 left out" in done.out
    assert "line 2: the id 'a' was already used in this file" in done.out
    with Store.open(tmp_path / "workbench.db") as store:
        assert (store.get("a").messages, store.get("a").source) == ([user("hi")], "me")
        assert [revision.candidate.messages for revision in store.revisions("a")] == [[user("hi"), assistant("yo")]]


def test_replacing_twice_accepts_no_more_than_once(karma: Karma, tmp_path: Path) -> None:
    record = {"id": "a", "messages": TURNS, "category": "adversarial", "status": "accepted", "tags": ["x"]}
    record |= {"source": "me", "license": "MIT", "added_in": "v1", "analysis": {}}
    record["analysis"] = {"direct": "a", "downstream": "b", "inaction": "c"}
    write_lines(tmp_path / "x.jsonl", record)
    assert karma("import", "x.jsonl").code == 0
    write_lines(tmp_path / "x.jsonl", {**record, "messages": [TURNS[0], {**TURNS[1], "content": "changed"}]})
    for replaced in (1, 0, 0):
        (file,) = karma("import", "x.jsonl", "--replace", "--json").json["files"]
        assert (file["replaced"], file["unchanged"]) == (replaced, 1 - replaced)
        with Store.open(tmp_path / "workbench.db") as store:
            assert store.get("a").status == "candidate"
            assert len(store.revisions("a")) == 1
    with Store.open(tmp_path / "workbench.db") as store:
        store.decide("a", "accepted", reason="read", reviewer="me")
    karma("import", "x.jsonl", "--replace")
    with Store.open(tmp_path / "workbench.db") as store:
        assert store.get("a").status == "accepted"


def test_a_folder_is_read_as_strictly_as_a_release_reads_it(karma: Karma, tmp_path: Path) -> None:
    shutil.copytree(CORPUS, tmp_path / "corpus", ignore=shutil.ignore_patterns("grades"))
    file = tmp_path / "corpus" / "adversarial.jsonl"
    first, second, *rest = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    del first["analysis"]
    second["category"] = "cross-cultural"
    write_lines(file, first, second, *rest)
    done = karma("import", "corpus")
    done.refused(1, "2 of")
    assert f"{Path('corpus') / file.name} line 1: 'analysis' is missing" in done.out
    assert "line 2: category 'cross-cultural' does not belong in adversarial.jsonl" in done.out


def test_a_folder_of_another_format_is_read_when_that_is_said(karma: Karma, tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    write_lines(tmp_path / "many" / "one.jsonl", {"instruction": "a", "output": "b"})
    write_lines(tmp_path / "many" / "two.jsonl", {"instruction": "c", "output": "d"})
    refused = karma("import", "many")
    refused.refused(1, "2 of 2")
    assert "Give --format alpaca" in refused.out
    assert karma("import", "many", "--format", "alpaca").out.count("1 new") == 2


def test_categories_of_others_are_kept_and_counted(karma: Karma, tmp_path: Path) -> None:
    record = {"id": "1", "source": "b", "category": "moral-dilemmas", "conversations": TURNS}
    write_lines(tmp_path / "x.jsonl", record)
    assert "1 have a category of their own" in karma("import", "x.jsonl").out
    karma("export", "y.jsonl", "--format", "original")
    assert json.loads((tmp_path / "y.jsonl").read_text()) == record


def test_what_is_not_there_leaves_no_workbench_behind(karma: Karma, tmp_path: Path) -> None:
    karma("import", "nothing.jsonl").refused(3, "nothing.jsonl does not exist")
    (tmp_path / "empty").mkdir()
    karma("import", "empty").refused(3, "empty has no .jsonl")
    karma("stats").refused(3, "workbench.db does not exist", "karma data import corpus")
    assert [path.name for path in tmp_path.iterdir()] == ["empty"]


def test_the_workbench_can_be_named_by_the_environment(
    karma: Karma, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KARMA_WORKBENCH", str(tmp_path / "mine.db"))
    write_lines(tmp_path / "x.jsonl", {"messages": TURNS})
    karma("import", "x.jsonl")
    assert (tmp_path / "mine.db").exists()
    assert karma("stats", "--json").json["candidates"] == 1


def test_a_damaged_parquet_file_gives_what_came_before_the_damage(karma: Karma, tmp_path: Path) -> None:
    with Store.open(tmp_path / "workbench.db", create=True) as store:
        texts = (" " if n == 7 else f"{n} {os.urandom(400).hex()}" for n in range(2000))  # 7 cannot be imported
        store.add((Candidate(f"{n:04}", [user(text)]) for n, text in enumerate(texts)), origin="x")
    karma("export", "x.parquet")
    data = bytearray((tmp_path / "x.parquet").read_bytes())
    middle = len(data) * 6 // 10
    data[middle : middle + 200_000] = bytes(200_000)
    (tmp_path / "x.parquet").write_bytes(data)
    done = karma("import", "x.parquet", "--db", "y.db")
    done.refused(2, "no readable Parquet")
    readable = 0
    with contextlib.suppress(DataError):
        for _ in read_rows(tmp_path / "x.parquet"):
            readable += 1
    with Store.open(tmp_path / "y.db") as store:
        assert 0 < store.count() == readable - 1 < 1999


@pytest.mark.slow
def test_a_kill_during_an_import_loses_nothing_that_was_written(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "x.jsonl",
        *({"messages": [{"role": "user", "content": f"{n} " + "w " * 400}]} for n in range(20_000)),
    )
    words = [sys.executable, "-m", "karma_electric", "data", "import", str(path), "--db", str(tmp_path / "w.db")]
    running = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and running.poll() is None:
        wal = tmp_path / "w.db-wal"
        if wal.exists() and wal.stat().st_size > 3_000_000:
            break
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    assert running.wait() == -signal.SIGKILL
    with Store.open(tmp_path / "w.db") as store:
        there = store.count()
        assert store.rows("PRAGMA integrity_check")[0][0] == "ok"
        assert 0 < there < 20_000
        assert there % 500 == 0
        wishes = Wishes()
        (report,) = import_files(store, plan_files([path], wishes), wishes, Silent())
        assert (report.unchanged, report.new) == (there, 20_000 - there)


# --- export


def test_a_corpus_keeps_its_order_and_what_the_workbench_does_not_have(karma: Karma, tmp_path: Path) -> None:
    examples = read_corpus(CORPUS)[:4]
    (tmp_path / "corpus").mkdir()
    lines = [example.as_dict() for example in examples]
    write_lines(tmp_path / "corpus" / "adversarial.jsonl", lines[2], lines[0], lines[3])
    wanted = [Candidate.from_example(examples[n]) for n in (3, 1, 0)]
    changed = Candidate(**{**vars(wanted[2]), "tags": ("other",), "status": "rejected"})
    with Store.open(tmp_path / "workbench.db", create=True) as store:
        store.add([*wanted[:2], changed], origin="x")
    assert karma("export", "corpus", "--status", "accepted").code == 0
    found = read_corpus(tmp_path / "corpus")
    assert [example.id for example in found] == [examples[n].id for n in (2, 0, 3, 1)]
    assert (found[1].tags, found[1].status) == (("other",), "rejected")
    assert found[0] == examples[2]


def test_a_changed_category_moves_an_example_to_the_other_file_and_loses_it_at_no_moment(
    karma: Karma, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    karma("import", CORPUS)
    karma("export", "corpus")
    ids = sorted(example.id for example in read_corpus(CORPUS))
    moved = "adversarial-0001"
    with Store.open(tmp_path / "workbench.db") as store:
        category = Candidate(**{**vars(store.get(moved)), "category": "cross-cultural"})
        store.replace(category, reason="", reviewer="")

        from karma_electric.data import exporting

        write, written = exporting.write_atomic, []

        def killed(path: Path, text: str) -> None:
            if written:
                raise KeyboardInterrupt
            written.append(path.name)
            write(path, text)

        monkeypatch.setattr(exporting, "write_atomic", killed)
        with pytest.raises(KeyboardInterrupt):
            export_corpus(store, tmp_path / "corpus", Selection())
        texts = b"".join(files(tmp_path / "corpus").values()).decode()
        assert moved in texts
        monkeypatch.setattr(exporting, "write_atomic", write)
        export_corpus(store, tmp_path / "corpus", Selection())
    found = read_corpus(tmp_path / "corpus")
    assert sorted(example.id for example in found) == ids
    assert [example.category for example in found if example.id == moved] == ["cross-cultural"]


def test_candidates_that_are_no_examples_yet_are_reported_and_left_out_of_a_corpus(
    karma: Karma, tmp_path: Path
) -> None:
    karma("import", CORPUS)
    write_lines(tmp_path / "x.jsonl", {"id": "raw", "messages": TURNS})
    karma("import", "x.jsonl")
    done = karma("export", "corpus")
    done.refused(1, "1 candidates were left out", "--skip-bad")
    assert "raw lacks category, tags, analysis, added_in" in done.out
    assert karma("export", "corpus", "--skip-bad").code == 0
    assert karma("export", "corpus", "--status", "accepted").code == 0
    assert karma("export", "all.jsonl").code == 0
    assert len((tmp_path / "all.jsonl").read_text().splitlines()) == len(read_corpus(CORPUS)) + 1


def test_a_folder_that_is_no_corpus_is_left_alone(karma: Karma, tmp_path: Path) -> None:
    karma("import", CORPUS)
    (tmp_path / "other").mkdir()
    write_lines(tmp_path / "other" / "notes.jsonl", {"a": 1})
    karma("export", "other").refused(2, "notes.jsonl is no file of a corpus")
    write_lines(tmp_path / "other" / "adversarial.jsonl", {"a": 1})
    (tmp_path / "other" / "notes.jsonl").unlink()
    karma("export", "other").refused(2, "adversarial.jsonl line 1")
    assert files(tmp_path / "other") == {"adversarial.jsonl": b'{"a": 1}\n'}


def test_a_file_is_replaced_only_when_asked_and_never_half_written(
    karma: Karma, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    karma("import", CORPUS)
    (tmp_path / "x.jsonl").write_text("mine")
    karma("export", "x.jsonl", "--format", "messages").refused(2, "x.jsonl exists", "--force")
    assert (tmp_path / "x.jsonl").read_text() == "mine"

    from karma_electric.data.formats import FORMATS, Format

    count = []

    def fails(candidate: Candidate) -> dict[str, Any]:
        count.append(candidate.id)
        if len(count) == 50:
            raise KeyboardInterrupt
        return {}

    with monkeypatch.context() as failing:
        failing.setitem(FORMATS, "messages", Format(FORMATS["messages"].read, fails))
        assert karma("export", "x.jsonl", "--format", "messages", "--force").code == 130
    assert (tmp_path / "x.jsonl").read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["workbench.db", "x.jsonl"]
    assert karma("export", "x.jsonl", "--format", "messages", "--force").code == 0
    karma("export", "no/x.jsonl", "--format", "messages").refused(3, "mkdir -p no")


def test_a_dataset_folder_replaces_only_a_dataset(karma: Karma, tmp_path: Path) -> None:
    karma("import", CORPUS)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    karma("export", "mine", "--format", "datasets", "--force").refused(2, "no dataset")
    assert (tmp_path / "mine" / "thesis.txt").exists()
    assert karma("export", "set", "--format", "datasets").code == 0
    karma("export", "set", "--format", "datasets").refused(2, "set exists")
    assert karma("export", "set", "--format", "datasets", "--force").code == 0
    assert (tmp_path / "set" / "dataset_info.json").is_file()


def test_choosing_by_status_category_and_grade(karma: Karma, tmp_path: Path) -> None:
    with Store.open(tmp_path / "workbench.db", create=True) as store:
        for name, fields in (
            ("a", {"status": "accepted", "category": "adversarial"}),
            ("b", {"status": "accepted"}),
            ("c", {}),
            ("d", {}),
        ):
            store.add([Candidate(name, [user(name), assistant("x")], **fields)], origin="x")  # type: ignore[arg-type]
        grade(store, "a", 8)
        grade(store, "c", 7)
        grade(store, "c", 9, judge="other")
        grade(store, "d", 7)

    def exported(*options: str) -> list[str]:
        karma("export", "x.jsonl", "--format", "messages", "--force", *options)
        return [json.loads(line)["id"] for line in (tmp_path / "x.jsonl").read_text().splitlines()]

    assert exported() == ["a", "b", "c", "d"]
    assert exported("--status", "accepted") == ["a", "b"]
    assert exported("--category", "adversarial") == ["a"]
    assert exported("--min-grade", "30") == ["a", "c"]
    assert exported("--min-grade", "30", "--status", "candidate") == ["c"]
    karma("export", "y.jsonl", "--status", "good").refused(2, "'good'", "accepted")
    karma("export", "y.jsonl", "--format", "csv").refused(2, "'csv'", "parquet")


def test_grades_travel_as_text(karma: Karma, tmp_path: Path) -> None:
    karma("import", *sorted(CORPUS.glob("*.jsonl")))
    with Store.open(tmp_path / "workbench.db") as store:
        grade(store, "adversarial-0001", 8)
        grade(store, "adversarial-0001", 6.5, judge="other")
        unread = store.get("adversarial-0002")
        store.add_reply(Reply(unread.id, unread.content_sha256, RUBRIC, "other", 0, None, None, "", error="no JSON"))
        wanted = {
            id_: [(g.judge, g.total, dict(g.scores)) for g in gs] for id_, gs in store.grades(rubric=RUBRIC).items()
        }
    (tmp_path / "corpus" / "grades").mkdir(parents=True)
    assert "3 grades" in karma("export", "corpus", "--grades", "corpus/grades/all.jsonl").out
    done = karma("import", "corpus", "--db", "second.db")
    assert done.code == 0
    assert "all.jsonl: grades: 3 new" in done.out
    with Store.open(tmp_path / "second.db") as store:
        found = {
            id_: [(g.judge, g.total, dict(g.scores)) for g in gs] for id_, gs in store.grades(rubric=RUBRIC).items()
        }
    assert found == wanted
    karma("export", "again", "--grades", "again.jsonl", "--db", "second.db")
    assert (tmp_path / "again.jsonl").read_bytes() == (tmp_path / "corpus" / "grades" / "all.jsonl").read_bytes()
    assert "grades: 0 new, 3 there already" in karma("import", "again.jsonl", "--db", "second.db").out


def test_grades_that_do_not_fit_are_reported_and_change_nothing(karma: Karma, tmp_path: Path) -> None:
    with Store.open(tmp_path / "workbench.db", create=True) as store:
        store.add([Candidate("a", [user("x"), assistant("y")])], origin="x")
        grade(store, "a", 8)
        content = store.get("a").content_sha256
    scores = dict.fromkeys(DIMENSIONS, 5)
    line = {
        "id": "a",
        "content_sha256": content,
        "rubric": RUBRIC,
        "judge": "ollama/judge",
        "scores": scores,
        "total": 20,
        "rationale": "",
    }
    write_lines(tmp_path / "g.jsonl", line, {**line, "id": "z"}, {**line, "judge": "new", "total": 21})
    done = karma("import", "g.jsonl")
    done.refused(1, "3 of 3")
    assert "line 1: 'ollama/judge' graded 'a' with 32.0 in the workbench, 20 here" in done.out
    assert "line 2: a grade of 'z', which is not in the workbench" in done.out
    assert "line 3: the total is 21" in done.out
    with Store.open(tmp_path / "workbench.db") as store:
        assert [g.total for g in store.grades(rubric=RUBRIC)["a"]] == [32]


def test_a_damaged_workbench_says_how_to_save_what_can_be_read_and_that_works(karma: Karma, tmp_path: Path) -> None:
    with Store.open(tmp_path / "workbench.db", create=True) as store:
        store.add((Candidate(f"{n:03}", [user("word " * 300)]) for n in range(300)), origin="x")
    data = bytearray((tmp_path / "workbench.db").read_bytes())
    start = len(data) // 2 // 4096 * 4096
    data[start : start + 4096] = b"\xff" * 4096
    (tmp_path / "workbench.db").write_bytes(data)
    karma("stats").refused(2, "is damaged", "karma data export saved.jsonl --salvage --db workbench.db")
    done = karma("export", "saved.jsonl", "--salvage")
    done.refused(1, "could not be read")
    karma("import", "saved.jsonl", "--db", "new.db")
    with Store.open(tmp_path / "new.db") as store:
        assert 250 < store.count() < 300
    karma("export", "corpus", "--salvage").refused(2, "--salvage", "saved.jsonl")


def test_a_workbench_of_a_newer_version_is_refused(karma: Karma, tmp_path: Path) -> None:
    Store.open(tmp_path / "workbench.db", create=True).close()
    plain = sqlite3.connect(tmp_path / "workbench.db")
    plain.execute("PRAGMA user_version = 99")
    plain.close()
    karma("stats").refused(2, "newer version (schema 99", "Upgrade karma-electric")


def test_a_bad_element_of_an_array_is_named_by_its_number(karma: Karma, tmp_path: Path) -> None:
    records = [{"messages": [{"role": "user", "content": text}]} for text in ("a", " ", "c", "d", "")]
    (tmp_path / "x.json").write_text(json.dumps(records))
    done = karma("import", "x.json", "--json")
    assert done.code == 1
    (file,) = done.json["files"]
    assert [(problem["line"], problem["where"]) for problem in file["problems"]] == [
        (2, "x.json line 1 (element 2)"),
        (5, "x.json line 1 (element 5)"),
    ]
    shown = karma("import", "x.json").out
    assert shown.count("x.json line 1 (element 2)") == 1
    assert "x.json line 1 (element 2): turn 1 (user) is empty" in shown


# --- stats and search


def test_stats_count_what_is_there(karma: Karma, tmp_path: Path) -> None:
    karma("import", *sorted(CORPUS.glob("*.jsonl")))
    with Store.open(tmp_path / "workbench.db") as store:
        content = store.get("adversarial-0001").content_sha256
        grade(store, "adversarial-0001", 8)
        grade(store, "adversarial-0002", 7)
        store.add_penalties("adversarial-0001", content, "rules-v1", [{"rule": "urgency"}, {"rule": "urgency"}])
        store.add_removal("adversarial-0003", "near", "adversarial-0001", 0.9, "")
        store.add_release("v1", {}, ["adversarial-0001"])
    counted = karma("stats", "--json").json
    total = len(read_corpus(CORPUS))
    assert counted["candidates"] == total
    assert counted["by"]["status"] == {"accepted": total - 1, "rejected": 1}
    assert sum(counted["by"]["category"].values()) == total
    assert counted["turns"]["shortest"] == 2
    (judge,) = counted["grades"]
    assert (judge["judge"], judge["graded"], judge["median"], judge["share_kept"]) == ("ollama/judge", 2, 30, 0.5)
    assert counted["penalties"] == {"rules-v1": {"checked": 1, "penalised": 1, "rules": {"urgency": 1}}}
    assert counted["removals"] == {"near": 1}
    assert counted["releases"] == {"v1": 1}
    shown = karma("stats").out
    for part in ("ollama/judge", "50%", "rules-v1: 1 of 1", "removals", "words per answer", "crisis-response"):
        assert part in shown


def test_stats_of_an_empty_workbench(karma: Karma, tmp_path: Path) -> None:
    Store.open(tmp_path / "workbench.db", create=True).close()
    assert "0 candidates" in karma("stats").out
    assert karma("stats", "--json").json["turns"] is None


def test_search_shows_where_the_words_stand(karma: Karma) -> None:
    karma("import", CORPUS)
    shown = karma("search", "lodgers", "dentist")
    assert shown.out.startswith("adversarial-0001  adversarial, accepted\n")
    assert "[dentist]" in shown.out
    assert [hit["id"] for hit in karma("search", "lodgers dentist", "--json").json] == ["adversarial-0001"]
    assert karma("search", "xyzzy").out == "0 found\n"
    assert karma("search", "C++", "well-being").code == 0
    karma("search", "++").refused(2, "no letter or digit", "karma data search")


def test_escape_codes_in_a_conversation_do_not_reach_the_terminal(karma: Karma, tmp_path: Path) -> None:
    write_lines(tmp_path / "x.jsonl", {"id": "a", "messages": [{"role": "user", "content": "word \x1b[2J"}]})
    karma("import", "x.jsonl")
    assert "\x1b" not in karma("search", "word").out


# --- diff


def write_release(folder: Path, train: list[Candidate], validation: list[Candidate], system: str = "Be kind.") -> Path:
    """The files of a release that a comparison reads."""
    folder.mkdir(parents=True)
    for name, members in (("train", train), ("validation", validation)):
        write_lines(
            folder / f"{name}.jsonl",
            *(
                {
                    "id": member.id,
                    "category": member.category,
                    "messages": [{"role": "system", "content": system}, *(m.as_dict() for m in member.messages)],
                }
                for member in members
            ),
        )
    return folder


def member(id: str, answer: str = "x", category: str = "adversarial") -> Candidate:
    """A member of a release."""
    return Candidate(id, [user("q"), assistant(answer)], category=category, status="accepted")


def test_diff_of_two_release_folders(karma: Karma, tmp_path: Path) -> None:
    write_release(tmp_path / "v1", [member("same"), member("goes"), member("words")], [member("moves")])
    write_release(
        tmp_path / "v2",
        [member("same"), member("moves"), member("words", "y"), member("comes", category="crisis-response")],
        [member("new")],
        system="Be kinder.",
    )
    found = karma("diff", "v1", "v2", "--json").json
    assert found == {
        "added": ["comes", "new"],
        "removed": ["goes"],
        "changed": ["words"],
        "recategorised": {},
        "moved": {"moves": ["validation", "train"]},
        "categories": {"adversarial": [4, 4], "crisis-response": [0, 1]},
        "system_prompt_changed": True,
    }
    shown = karma("diff", "v1", "v2").out
    for part in ("added: 2", "removed: 1", "moves (validation -> train)", "system prompt", "crisis-response"):
        assert part in shown
    assert "the same" in karma("diff", "v1", "v1").out


def test_diff_of_releases_by_name_and_of_a_name_with_a_folder(karma: Karma, tmp_path: Path) -> None:
    with Store.open(tmp_path / "workbench.db", create=True) as store:
        store.add([member("a"), member("b")], origin="x")
        store.add_release("v1", {}, ["a", "b"], validation=["b"])
        store.replace(member("a", "changed", category="cross-cultural"), reason="", reviewer="")
        store.add_release("v2", {}, ["a", "b"], validation=["a"])
    found = karma("diff", "v1", "v2", "--json").json
    assert found["changed"] == ["a"]
    assert found["recategorised"] == {"a": ["adversarial", "cross-cultural"]}
    assert found["moved"] == {"a": ["train", "validation"], "b": ["validation", "train"]}
    write_release(tmp_path / "folder", [member("a")], [member("b")])
    assert "the same" in karma("diff", "v1", "folder").out
    karma("diff", "v1", "v9").refused(2, "no release 'v9'", "v1, v2")
    karma("diff", "v1", tmp_path).refused(3, "train.jsonl")
    karma("diff", "v1", "v2", "--db", "other.db").refused(3, "v1 is no folder", "other.db")


def test_a_release_is_recorded_only_with_the_words_that_the_workbench_has(karma: Karma, tmp_path: Path) -> None:
    shutil.copytree(CORPUS, tmp_path / "corpus", ignore=shutil.ignore_patterns("README.md", "releases"))
    file = tmp_path / "corpus" / "adversarial.jsonl"
    first, *rest = file.read_text(encoding="utf-8").splitlines()
    earlier = {**json.loads(first), "messages": TURNS}
    write_lines(file, earlier, *rest)
    karma("import", "corpus")
    write_lines(file, first, *rest)  # corrected since
    recipe = resource_root("recipes") / "smollm2-v3.toml"
    words = ("release", recipe, "--set", "release.corpus=corpus", "--run-dir", "run", "--db", "workbench.db")
    karma(*words).refused(2, "for 1 of its", f"({earlier['id']})", "--replace", "leave out --db")
    karma("import", "corpus", "--replace")
    with Store.open(tmp_path / "workbench.db") as store:
        assert store.releases() == []
        replaced = store.get(earlier["id"])
        for category in ("cross-cultural", "adversarial"):
            store.replace(Candidate(**{**vars(replaced), "category": category}), reason="", reviewer="")
            ended = karma(*words)
            assert ended.code == (0 if category == "adversarial" else 2), ended.err
    assert "the same" in karma("diff", "smollm2-v3", "run").out
    karma(*words[:-1], "nowhere.db").refused(3, "nowhere.db does not exist")


def test_diff_of_a_release_that_the_pipeline_made(karma: Karma, tmp_path: Path) -> None:
    from karma_electric.core.recipe import ReleaseSection
    from karma_electric.data.release import write_release as freeze

    one, two = tmp_path / "run" / "release", tmp_path / "two"
    for seed, folder in enumerate((one, two)):
        folder.mkdir(parents=True)
        freeze(ReleaseSection(seed=seed), CORPUS, "Be kind.", folder)
    found = karma("diff", one.parent, two, "--json").json
    assert (found["added"], found["removed"], found["changed"]) == ([], [], [])
    assert found["moved"]
