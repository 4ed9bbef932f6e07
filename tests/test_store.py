"""The workbench: nothing is overwritten or lost, and a file that cannot be used is refused with what to do."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import sqlite_utils
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from karma_electric.core.errors import ArtifactError, BusyError, DataError, InputError, MissingError, SpaceError
from karma_electric.core.messages import assistant, user
from karma_electric.core.resources import resource_root
from karma_electric.data import migrations
from karma_electric.data.candidate import Candidate
from karma_electric.data.corpus import read_corpus
from karma_electric.data.database import Database
from karma_electric.data.store import Reply, Store


def candidate(id: str = "a", answer: str = "Yes.", **fields: object) -> Candidate:
    """A candidate of one question and one answer."""
    return Candidate(id=id, messages=[user("May I?"), assistant(answer)], **fields)  # type: ignore[arg-type]


def reply(to: Candidate, sample: int = 0, total: float | None = 30.0, judge: str = "j", **fields: object) -> Reply:
    """A judge's answer."""
    scores = None if total is None else {"help": total}
    return Reply(to.id, to.content_sha256, "r", judge, sample, scores, total, "Because.", **fields)  # type: ignore[arg-type]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the workbench is."""
    return tmp_path / "workbench.db"


@pytest.fixture
def store(path: Path) -> Iterator[Store]:
    """An empty workbench."""
    with Store.open(path, create=True) as opened:
        yield opened


# --- candidates


def test_the_shipped_corpus_comes_back_as_it_went_in_and_in_its_order(store: Store) -> None:
    corpus = [Candidate.from_example(example) for example in read_corpus(resource_root("corpus"))]
    store.add(reversed(corpus), origin="corpus")
    assert list(store.candidates(order="import")) == corpus[::-1]
    assert list(store.candidates()) == sorted(corpus, key=lambda c: c.id)


@pytest.mark.parametrize(
    "text",
    [
        "\x00 and after",
        "\U0001f44d\u200d",
        "line\u2028separator\r\n",
        '"quoted" \\ \'',
        "<NULL>",
        "\u202e right to left",
    ],
)
def test_any_text_comes_back(store: Store, text: str) -> None:
    wanted = candidate(answer=text, system=text, tags=(text,), source=text, extra={text: [text, None, 1.5, 10**30]})
    store.add([wanted], origin="x")
    assert store.get("a") == wanted


def test_adding_again_adds_nothing(store: Store) -> None:
    first = store.add([candidate("a"), candidate("b")], origin="x")
    again = store.add([candidate("a"), candidate("b"), candidate("c")], origin="x")
    assert (first.new, first.unchanged, first.conflicts) == (2, 0, [])
    assert (again.new, again.unchanged, again.conflicts) == (1, 2, [])


def test_the_same_id_with_other_contents_is_kept_out_and_reported(store: Store) -> None:
    store.add([candidate(tags=("one",))], origin="first.jsonl")
    added = store.add([candidate(answer="No.", tags=("two",))], origin="second.jsonl")
    (conflict,) = added.conflicts
    assert (conflict.id, conflict.origin, conflict.differs) == ("a", "second.jsonl", ("tags", "messages"))
    assert store.get("a") == candidate(tags=("one",))


def test_what_a_record_does_not_say_is_no_conflict(store: Store) -> None:
    full = candidate(system="Be kind.", source="me", category="adversarial", extra={"lang": "de"})
    store.add([full], origin="x")
    assert store.add([candidate()], origin="corpus").unchanged == 1
    assert store.get("a") == full


def test_importing_again_after_an_edit_and_a_decision_changes_neither(store: Store) -> None:
    imported = candidate(answer="Old.", status="accepted")
    store.add([imported], origin="x")
    store.replace(candidate(answer="New.", status="accepted"), reason="clearer", reviewer="me")
    store.decide("a", "rejected", reason="no", reviewer="me")
    assert store.add([imported], origin="x").unchanged == 1
    assert store.get("a") == candidate(answer="New.", status="rejected")


def test_an_edit_keeps_every_version_before_it(store: Store) -> None:
    versions = [candidate(answer=text, extra={"n": number}) for number, text in enumerate(("One.", "Two.", "Three."))]
    store.add(versions[:1], origin="x")
    for version in versions[1:]:
        store.replace(version, reason="better", reviewer="me")
    store.replace(versions[-1], reason="nothing new", reviewer="me")
    assert store.get("a") == versions[-1]
    assert [(r.number, r.candidate, r.reason, r.reviewer) for r in store.revisions("a")] == [
        (1, versions[0], "better", "me"),
        (2, versions[1], "better", "me"),
    ]


def test_decisions_are_kept_with_their_reason_and_the_words_they_were_about(store: Store) -> None:
    store.add([candidate(answer="One.")], origin="x")
    store.decide("a", "rejected", reason="invents a law", reviewer="ann")
    store.replace(candidate(answer="Two.", status="rejected"), reason="law removed", reviewer="ben")
    store.decide("a", "accepted", reason="", reviewer="ben")
    decided = [(r.status, r.reason, r.reviewer, r.content_sha256) for r in store.reviews("a")]
    assert decided == [
        ("rejected", "invents a law", "ann", candidate(answer="One.").content_sha256),
        ("accepted", "", "ben", candidate(answer="Two.").content_sha256),
    ]
    assert store.get("a").status == "accepted"


def test_candidates_are_found_by_status_category_and_id(store: Store) -> None:
    store.add([candidate("a", category="adversarial"), candidate("b"), candidate("c", status="accepted")], origin="x")
    assert [c.id for c in store.candidates(status="candidate")] == ["a", "b"]
    assert [c.id for c in store.candidates(category="adversarial")] == ["a"]
    assert [c.id for c in store.candidates(ids=["c", "a", "c"])] == ["a", "c"]
    assert [c.id for c in store.candidates(ids=["c", "a"], status="accepted")] == ["c"]
    with pytest.raises(InputError, match="no candidate 'z'"):
        list(store.candidates(ids=["a", "z"]))


@pytest.mark.slow
def test_writing_while_reading_skips_and_repeats_nothing(store: Store) -> None:
    store.add((candidate(f"{number:04}") for number in range(1000)), origin="x")
    seen = []
    for found in store.candidates(status="candidate"):
        seen.append(found.id)
        store.decide(found.id, "accepted", reason="", reviewer="me")
    assert seen == [f"{number:04}" for number in range(1000)]


def test_half_of_a_surrogate_pair_is_refused_and_the_others_of_its_batch_are_not_lost_silently(store: Store) -> None:
    with pytest.raises(DataError, match="surrogate"):
        store.add([candidate("a"), candidate("b", answer="\ud83d")], origin="x")
    assert store.count() == 0  # the batch is undone as a whole, and the caller knows


@pytest.mark.parametrize(
    "action",
    [
        lambda s: s.get("z"),
        lambda s: s.decide("z", "accepted", reason="", reviewer=""),
        lambda s: s.replace(candidate("z"), reason="", reviewer=""),
        lambda s: s.add_reply(reply(candidate("z"))),
        lambda s: s.add_penalties("z", "", "rules", []),
        lambda s: s.add_removal("z", "exact", "a", 1.0, ""),
        lambda s: s.add_release("v1", {}, ["z"]),
    ],
)
def test_an_unknown_candidate_is_named(store: Store, action: Callable[[Store], object]) -> None:
    with pytest.raises(InputError, match="no candidate 'z'"):
        action(store)


def test_an_unknown_status_is_refused(store: Store) -> None:
    store.add([candidate()], origin="x")
    with pytest.raises(InputError, match="'great' is unknown"):
        store.decide("a", "great", reason="", reviewer="")


# --- grades, penalties, removals


def test_a_grade_is_the_median_of_a_judges_samples(store: Store) -> None:
    store.add([candidate()], origin="x")
    for sample, total in enumerate((30.0, 10.0, None, 32.0)):
        store.add_reply(reply(candidate(), sample, total))
    store.add_reply(reply(candidate(), 0, 4.0, judge="other"))
    grades = store.grades(rubric="r")["a"]
    assert [(grade.judge, grade.total) for grade in grades] == [("j", 30.0), ("other", 4.0)]
    assert [grade.total for grade in store.grades(rubric="r", judge="other")["a"]] == [4.0]
    assert store.grades_of("a") == grades
    assert store.grades(rubric="another") == {}


def test_an_unreadable_judge_gives_no_total(store: Store) -> None:
    store.add([candidate()], origin="x")
    store.add_reply(reply(candidate(), total=None, error="no JSON"))
    assert [grade.total for grade in store.grades(rubric="r")["a"]] == [None]


def test_grades_and_penalties_hold_for_the_words_they_were_given_for(store: Store) -> None:
    before, after = candidate(answer="One."), candidate(answer="Two.")
    store.add([before], origin="x")
    store.add_reply(reply(before))
    store.add_penalties("a", before.content_sha256, "rules", [{"rule": "x"}])
    assert store.penalties("rules") == store.penalties("rules") == {"a": [{"rule": "x"}]}
    store.replace(after, reason="", reviewer="")
    assert store.grades(rubric="r") == {}
    assert store.penalties("rules") == {}
    assert store.penalties_of("a") == {}
    assert [r.content_sha256 for r in store.replies(rubric="r", judge="j")] == [before.content_sha256]
    store.replace(before, reason="", reviewer="")
    assert [grade.total for grade in store.grades(rubric="r")["a"]] == [30.0]


def test_a_reply_comes_back_whole_and_the_same_sample_again_replaces_it(store: Store) -> None:
    store.add([candidate()], origin="x")
    first = reply(candidate(), raw="{", prompt_tokens=7, completion_tokens=2, error="cut off", total=None)
    second = replace(first, total=3.0, scores={"help": 3.0}, error=None)
    store.add_reply(first)
    assert list(store.replies(rubric="r", judge="j")) == [first]
    store.add_reply(second)
    assert list(store.replies(rubric="r", judge="j", candidate_id="a")) == [second]
    assert store.judges() == [("r", "j")]


def test_no_findings_are_remembered_as_looked_at(store: Store) -> None:
    store.add([candidate()], origin="x")
    store.add_penalties("a", candidate().content_sha256, "rules", [])
    assert store.penalties("rules") == {"a": []}
    assert store.rulesets() == ["rules"]


def test_a_removal_rejects_once_and_a_person_can_overrule_it(store: Store) -> None:
    store.add([candidate("a"), candidate("b")], origin="x")
    store.add_removal("b", "near", "a", 0.93, "same but for a name")
    assert store.get("b").status == "rejected"
    assert store.reviews("b")[0].reason == "near: same but for a name"
    store.decide("b", "accepted", reason="it is not", reviewer="me")
    store.add_removal("b", "near", "a", 0.93, "same but for a name")
    assert store.get("b").status == "accepted"
    assert [(r.candidate_id, r.kind, r.other, r.similarity) for r in store.removals()] == [("b", "near", "a", 0.93)]


# --- releases


def test_a_release_remembers_the_words_it_had(store: Store) -> None:
    store.add([candidate("a"), candidate("b")], origin="x")
    store.add_release("v1", {"seed": 1}, ["b", "a"], validation=["a"])
    store.replace(candidate("a", answer="Other."), reason="", reviewer="")
    assert store.release_members("v1") == ["b", "a"]
    assert [(row.split, row.content_sha256) for row in store.release_rows("v1")] == [
        ("train", candidate().content_sha256),
        ("validation", candidate().content_sha256),
    ]
    (release,) = store.releases()
    assert (release.name, release.manifest, release.members) == ("v1", {"seed": 1}, 2)


def test_a_release_is_final(store: Store) -> None:
    store.add([candidate("a"), candidate("b")], origin="x")
    store.add_release("v1", {}, ["a"])
    store.add_release("v1", {}, ["a"])
    with pytest.raises(InputError, match="other contents"):
        store.add_release("v1", {}, ["a", "b"])
    with pytest.raises(InputError, match="no release 'v2'") as refused:
        store.release_members("v2")
    assert "v1" in refused.value.hint


# --- search


def test_search_finds_words_in_any_turn_and_in_tags_best_first(store: Store) -> None:
    store.add(
        [candidate("a", "The lodger left.", tags=("rent-arrears",)), candidate("b", "Nothing of it.")], origin="x"
    )
    (hit,) = store.search("lodgers may", limit=5)
    assert (hit.id, hit.status) == ("a", "candidate")
    assert "[lodger]" in hit.snippet
    assert [hit.id for hit in store.search("arrears", limit=5)] == ["a"]
    assert len(store.search("may", limit=1)) == 1
    assert store.search("absent", limit=5) == []


def test_search_follows_edits_even_after_the_file_was_vacuumed(path: Path, store: Store) -> None:
    store.add([candidate(f"{n}", f"word{n}") for n in range(20)], origin="x")
    store.replace(candidate("7", "changed"), reason="", reviewer="")
    store.close()
    with sqlite3.connect(path, isolation_level=None) as plain:
        plain.execute("VACUUM")
    plain.close()
    with Store.open(path) as again:
        assert [hit.id for hit in again.search("changed", limit=5)] == ["7"]
        assert again.search("word7", limit=5) == []
        assert [hit.id for hit in again.search("word13", limit=5)] == ["13"]


@pytest.mark.parametrize("query", ["", "*", "(", "\x00", '"', '""', "+ - ++", '"*"'])
def test_a_query_without_words_is_refused_with_what_to_type(store: Store, query: str) -> None:
    with pytest.raises(InputError, match="no letter or digit to search for") as refused:
        store.search(query, limit=5)
    assert "karma data search" in refused.value.hint


SIGNS = "They don't know C++, said O'Brien: my well-being is 5\" (or so) AND a/b@c.org, 100% -- naïve?"


@pytest.mark.parametrize("word", [*SIGNS.split(), *SIGNS.replace(",", "").split(), "well-be*", SIGNS, '"C++, said'])
def test_words_with_signs_are_found(store: Store, word: str) -> None:
    store.add([candidate("signs", SIGNS), candidate("other", "Nothing of the kind.")], origin="x")
    if any(character.isalnum() for character in word):
        assert [hit.id for hit in store.search(word, limit=5)] == ["signs"]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("C++ OR rust*", {"a", "b"}),
        ("c++ NOT rusty", {"a"}),
        ('"don\'t know" C++', {"a"}),
        ('"know don\'t" C++', set()),
        ("a AND", {"a"}),
        ("nosuch: word", set()),
    ],
)
def test_operators_and_phrases_work_beside_words_with_signs(store: Store, query: str, found: set[str]) -> None:
    store.add([candidate("a", "I don't know C++ and a."), candidate("b", "A rusty one.")], origin="x")
    assert {hit.id for hit in store.search(query, limit=5)} == found


@given(query=st.text(max_size=12) | st.text(alphabet="aB1+-*\"'():^{},. ANDORT", max_size=16))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_query_finds_what_is_there_or_is_refused(store: Store, query: str) -> None:
    if not list(store.candidates()):  # the store is the same for every query
        store.add([candidate("a", "One aB1 more.")], origin="x")
    try:
        found = store.search(query, limit=5)
    except InputError:  # nothing to look for in it
        return
    assert {hit.id for hit in found} <= {"a"}


# --- the file


def test_a_closed_workbench_is_one_file_in_a_form_that_opens_read_only(path: Path, store: Store) -> None:
    store.add([candidate()], origin="x")
    assert path.with_name("workbench.db-wal").exists()
    store.close()
    assert [file.name for file in path.parent.iterdir()] == ["workbench.db"]
    plain = sqlite3.connect(f"file:{path}?immutable=1", uri=True)
    assert plain.execute("SELECT id, status FROM candidates").fetchall() == [("a", "candidate")]
    plain.close()
    assert path.read_bytes()[18:20] == b"\x01\x01"  # the header: needs no -wal file, 2 would


def test_datasette_finds_tables_keys_and_search(path: Path, store: Store) -> None:
    store.close()
    database = sqlite_utils.Database(path)
    assert database["candidates"].detect_fts() == "candidates_fts"
    assert database["candidates"].pks == ["id"]
    for name in ("reviews", "revisions", "replies", "penalties", "removals", "release_members"):
        assert "candidates" in [key.other_table for key in database[name].foreign_keys], name
    assert "COLLATE" not in database.schema.upper()
    database.close()


def test_others_can_read_while_a_long_write_goes_on(path: Path, store: Store) -> None:
    store.add([candidate("a")], origin="x")
    with store.transaction():
        store.add([candidate("b")], origin="x")
        with Store.open(path) as other:
            assert other.count() == 1
    assert store.count() == 2


def test_a_transaction_that_fails_leaves_nothing(store: Store) -> None:
    def fails() -> None:
        with store.transaction():
            store.add([candidate("a")], origin="x")
            store.decide("a", "accepted", reason="", reviewer="")
            store.decide("z", "accepted", reason="", reviewer="")

    with pytest.raises(InputError):
        fails()
    assert store.count() == 0


def test_two_writers_take_turns(path: Path, store: Store) -> None:
    def write(name: str) -> None:
        with Store.open(path) as mine:
            for number in range(40):
                mine.add([candidate(f"{name}{number}")], origin=name)

    threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.count() == 80


def test_a_workbench_locked_by_another_process_is_reported(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("karma_electric.data.database.WAIT_S", 0.2)
    with Store.open(path, create=True) as store:
        store.add([candidate()], origin="x")
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
            "c.execute('BEGIN EXCLUSIVE'); print('held', flush=True); sys.stdin.read()",
            str(path),
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(BusyError, match="locked by another process"):
            Store.open(path)
    finally:
        holder.communicate()
    with Store.open(path) as store:
        assert store.count() == 1


def test_a_writer_that_finds_another_one_writing_is_told_so(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("karma_electric.data.database.WAIT_S", 0.1)
    with Store.open(path, create=True) as one, Store.open(path) as other:
        one.add([candidate("a")], origin="x")
        with one.transaction():
            with pytest.raises(BusyError):
                other.add([candidate("b")], origin="x")
            one.decide("a", "accepted", reason="", reviewer="")
        other.add([candidate("b")], origin="x")
        assert one.count() == 2


def test_a_missing_file_is_not_made_by_reading(path: Path) -> None:
    with pytest.raises(MissingError, match="does not exist"):
        Store.open(path)
    assert not path.exists()


@pytest.mark.parametrize(
    "content", [b"not a database, but long enough to look like one" * 100, b"SQLite format 3\0" * 9]
)
def test_a_file_that_is_no_database_is_refused_and_left_alone(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(DataError):
        Store.open(path, create=True)
    assert path.read_bytes() == content


def test_the_database_of_another_program_is_refused_and_left_alone(path: Path) -> None:
    plain = sqlite3.connect(path)
    plain.execute("CREATE TABLE theirs (x)")
    plain.commit()
    plain.close()
    before = path.read_bytes()
    with pytest.raises(DataError, match="no workbench"):
        Store.open(path, create=True)
    assert path.read_bytes() == before


def test_an_empty_file_becomes_a_workbench_only_when_asked(path: Path) -> None:
    path.touch()
    with pytest.raises(MissingError, match="is empty"):
        Store.open(path)
    with Store.open(path, create=True) as store:
        assert store.count() == 0


def test_a_folder_and_a_path_without_one_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is a folder"):
        Store.open(tmp_path, create=True)
    with pytest.raises(MissingError, match="mkdir"):
        Store.open(tmp_path / "no" / "w.db", create=True)


def fill_a_page_with_noise(path: Path, part: float) -> None:
    """Damage one page of a database, at this part of its length."""
    data = bytearray(path.read_bytes())
    start = int(len(data) * part) // 4096 * 4096
    data[start : start + 4096] = b"\xff" * 4096
    path.write_bytes(data)


def test_a_damaged_workbench_is_reported_and_all_that_can_be_read_is_saved(path: Path) -> None:
    wanted = [candidate(f"{n:03}", f"answer {n} " + "word " * 300) for n in range(300)]
    with Store.open(path, create=True) as store:
        store.add(wanted, origin="x")
    fill_a_page_with_noise(path, 0.5)
    with Store.open(path) as store:
        with pytest.raises(DataError, match="is damaged") as refused:
            list(store.candidates())
        assert "--salvage" in refused.value.hint
        saved = [found for found in store.salvage() if found is not None]
    assert 250 < len(saved) < 300
    assert all(found in wanted for found in saved)


def test_a_torn_off_file_is_reported(path: Path) -> None:
    with Store.open(path, create=True) as store:
        store.add((candidate(f"{n}", "word " * 200) for n in range(100)), origin="x")
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(DataError, match="is damaged"), Store.open(path) as store:
        list(store.candidates())


def test_a_row_that_another_program_has_spoilt_is_named(path: Path, store: Store) -> None:
    store.add([candidate()], origin="x")
    store.close()
    plain = sqlite3.connect(path)
    plain.execute("UPDATE candidates SET messages = 'no JSON'")
    plain.commit()
    plain.close()
    with Store.open(path) as again, pytest.raises(DataError, match="'a' is damaged"):
        again.get("a")


def test_a_kill_while_adding_leaves_whole_batches_and_the_same_command_finishes(path: Path) -> None:
    script = (
        "import sys; from pathlib import Path\n"
        "from karma_electric.core.messages import user\n"
        "from karma_electric.data.candidate import Candidate\n"
        "from karma_electric.data.store import Store\n"
        "def many():\n"
        "    for n in range(5000):\n"
        "        if n == int(sys.argv[2]): print('there', flush=True); sys.stdin.read()\n"
        "        yield Candidate(id=f'{n:05}', messages=[user('q')])\n"
        "with Store.open(Path(sys.argv[1]), create=True) as store: print(store.add(many(), origin='x').new)\n"
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", script, str(path), "1700"], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"there\n"
    writer.kill()
    writer.communicate()
    with Store.open(path) as store:
        assert [c.id for c in store.candidates()] == [f"{n:05}" for n in range(1500)]
    again = subprocess.run(
        [sys.executable, "-c", script, str(path), "-1"], check=True, capture_output=True, stdin=subprocess.DEVNULL
    )
    assert again.stdout == b"3500\n"


def test_a_read_only_workbench_can_be_read_and_says_that_it_cannot_be_written(store: Store) -> None:
    store.add([candidate()], origin="x")
    store.rows("PRAGMA query_only = ON")
    assert store.get("a") == candidate()
    with pytest.raises(InputError, match="read-only"):
        store.decide("a", "accepted", reason="", reviewer="")


def test_a_full_disk_is_reported_and_what_was_there_stays(store: Store) -> None:
    store.add([candidate()], origin="x")
    pages = store.rows("PRAGMA page_count")[0][0]
    store.rows(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(SpaceError, match="is full"):
        store.add((candidate(f"{n}", "word " * 2000) for n in range(50)), origin="x")
    assert [c.id for c in store.candidates()] == ["a"]


# --- versions


def test_a_newer_version_is_refused_and_left_alone(path: Path, store: Store) -> None:
    store.close()
    plain = sqlite3.connect(path)
    plain.execute(f"PRAGMA user_version = {migrations.VERSION + 1}")
    plain.commit()
    plain.close()
    before = path.read_bytes()
    with pytest.raises(ArtifactError, match="newer version") as refused:
        Store.open(path, create=True)
    assert "Upgrade" in refused.value.hint
    assert path.read_bytes() == before


def first_version(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A workbench as the first release made it, with a row in every table."""
    with monkeypatch.context() as old:
        old.setattr(migrations, "STEPS", migrations.STEPS[:1])
        old.setattr(migrations, "VERSION", 1)
        Database.open(path, create=True).close()
    plain = sqlite3.connect(path)
    sha = candidate("old").content_sha256
    plain.execute(
        "INSERT INTO candidates (id, status, tags, turns, text, messages, source, license, extra, content_sha256)"
        " VALUES ('old', 'accepted', '[]', 2, 'May I?\n\nYes.', ?, 'me', 'MIT', '{}', ?)",
        ('[{"role": "user", "content": "May I?"}, {"role": "assistant", "content": "Yes."}]', sha),
    )
    for sql in (
        "INSERT INTO reviews VALUES (1, 'old', 'accepted', 'good', 'me', ?, '2026-01-01')",
        "INSERT INTO replies VALUES (1, 'old', ?, 'r', 'j', 0, '{\"help\": 8}', 8.0, 'Fine.', '{}', 5, 6, NULL, 'now')",
        "INSERT INTO penalties VALUES ('old', 'rules', ?, '[{\"rule\": \"x\"}]', 'now')",
        "INSERT INTO release_members VALUES ('v1', 'old', 0, 'train', NULL, ?)",
    ):
        plain.execute(sql, (sha,))
    plain.execute("INSERT INTO releases VALUES ('v1', '{}', 'now')")
    plain.execute("INSERT INTO removals VALUES ('old', 'near', 'b', 0.9, '', 'now')")
    plain.commit()
    assert plain.execute("PRAGMA user_version").fetchone() == (1,)
    plain.close()


def test_a_workbench_of_the_first_version_is_brought_up_to_date_without_loss(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first_version(path, monkeypatch)
    with Store.open(path) as store:
        assert store.rows("PRAGMA user_version")[0][0] == migrations.VERSION
        assert store.get("old") == candidate("old", status="accepted", source="me", license="MIT")
        assert [grade.total for grade in store.grades(rubric="r")["old"]] == [8.0]
        assert store.penalties("rules") == {"old": [{"rule": "x"}]}
        assert [review.reason for review in store.reviews("old")] == ["good"]
        assert store.release_members("v1") == ["old"]
        assert [removal.other for removal in store.removals()] == ["b"]
        assert [hit.id for hit in store.search("yes", limit=5)] == ["old"]  # the index came later
        assert store.rows("PRAGMA foreign_key_check") == []


def test_a_step_that_fails_leaves_the_old_version_as_it_was(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first_version(path, monkeypatch)

    def fails(database: sqlite_utils.Database) -> None:
        database.execute("DROP TABLE reviews")
        raise RuntimeError("power cut")

    monkeypatch.setattr(migrations, "STEPS", (*migrations.STEPS, fails))
    monkeypatch.setattr(migrations, "VERSION", migrations.VERSION + 1)
    with pytest.raises(RuntimeError):
        Store.open(path)
    plain = sqlite3.connect(path)
    assert plain.execute("PRAGMA user_version").fetchone() == (1,)
    assert plain.execute("SELECT count(*) FROM reviews").fetchone() == (1,)
    assert plain.execute("SELECT count(*) FROM sqlite_master WHERE name LIKE '%fts%'").fetchone() == (0,)
    plain.close()
