"""Copies: which pairs count, which of a pair stays, and that nothing else goes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from embedded import sentence_model
from karma_electric.cli.main import app
from karma_electric.core.errors import DataError, InputError, KarmaError
from karma_electric.core.messages import assistant, user
from karma_electric.data.candidate import Candidate
from karma_electric.data.dedupe import NEAR, Duplicate, Item, find_duplicates, jaccard
from karma_electric.data.store import Store
from karma_electric.data.texts import normalised, read_texts, words

PUBLIC = Path(__file__).parents[2] / "shared" / "data" / "prompts-6k.jsonl"
needs_public = pytest.mark.skipif(not PUBLIC.is_file(), reason=f"{PUBLIC} is not here")

PARAPHRASES = [
    (
        "How can I remove red wine stains from a white cotton shirt?",
        "What is the best way to get red wine stains out of a white cotton shirt?",
    ),
    (
        "What are the health benefits of drinking green tea every day?",
        "What health benefits does drinking green tea daily have?",
    ),
    ("Explain how photosynthesis works in simple terms.", "In simple terms, explain how photosynthesis works to me."),
    (
        "How do I reset my router to factory settings?",
        "What steps do I follow to reset my router to its factory settings?",
    ),
    ("Why did the Roman Empire fall?", "What caused the fall of the Roman Empire?"),
    (
        "How long should I boil an egg to get a soft yolk?",
        "For how long do I need to boil an egg so the yolk stays soft?",
    ),
]
OTHER_QUESTIONS = [
    ("What is 7 + 5?", "What is 7 + 6?"),
    ("Convert 10 miles to kilometres.", "Convert 12 miles to kilometres."),
    ("Who won the 1998 World Cup?", "Who won the 2002 World Cup?"),
    ("How do I sort a list in C?", "How do I sort a list in C#?"),
    ("What is the capital of France?", "What is the capital of Finland?"),
    ("Translate 'good morning' into French.", "Translate 'good morning' into Spanish."),
    ("How do I prevent mould in the bathroom?", "How do I remove mould in the bathroom?"),
    ("Write a poem about the sea in winter.", "Write a story about the sea in winter."),
    ("Is it safe to take ibuprofen with alcohol?", "Is it safe to take paracetamol with alcohol?"),
    ("How do I lock a door?", "How do I unlock a door?"),
    ("Describe the causes of the First World War.", "Describe the causes of the Second World War."),
    ("Thanks!", "Thank you!"),
]
LONG = (
    "I run a small bakery in Cork and my flour supplier has changed the blend without telling anyone. The loaves come "
    "out flat, two regulars have complained, and the contract runs to March. What can I ask of them, and what should "
    "I put in writing before I call?"
)


def items(*texts: str) -> list[Item]:
    """Items a, b, c ... with these prompts."""
    return [Item(chr(ord("a") + number), {"prompt": text}) for number, text in enumerate(texts)]


def removed(found: list[Duplicate]) -> dict[str, tuple[str, str]]:
    """id -> (kind, the one that stays)."""
    return {duplicate.id: (duplicate.kind, duplicate.other) for duplicate in found}


def by_words(*texts: str) -> dict[str, tuple[str, str]]:
    """What goes of some prompts when no model is asked."""
    return removed(find_duplicates(items(*texts), semantic=None))


# --- exact


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("How are  you?", "how are you"),
        ("“Fine”, she said…", "Fine, she said..."),
        ("Wait — what?", "Wait, what?"),
        ("ＦＵＬＬ width", "full width"),
        ("don’t", "don't"),
        ("何ですか？", "何ですか。"),
        ("**Help**", "help"),
    ],
)
def test_case_spaces_width_and_sentence_punctuation_make_no_other_text(one: str, other: str) -> None:
    [(kind, _)] = by_words(one, other).values()
    assert kind == "exact"


@pytest.mark.parametrize(
    ("one", "other"),
    [("C", "C#"), ("C", "C++"), ("5", "-5"), ("2+2", "2*2"), ("कि", "की"), ("?", "!"), ("👍", "👎"), ("5-3", "5/3")],
)
def test_what_makes_another_word_of_it_stays(one: str, other: str) -> None:
    assert normalised(one) != normalised(other)
    assert by_words(one, other) == {}


def test_empty_texts_are_copies_of_nothing() -> None:
    assert by_words("", " ", "\n") == {}


@given(st.text(max_size=60))
def test_normalising_twice_changes_nothing(text: str) -> None:
    once = normalised(text)
    assert normalised(once) == once or not words(text)


# --- near


def test_a_few_edits_in_a_long_text_are_a_near_copy() -> None:
    edited = LONG.replace("two regulars", "three regulars").replace("before I call", "before I ring them")
    assert by_words(LONG, edited) == {"a": ("near", "b")}  # the longer stays


def test_the_same_beginning_alone_is_no_near_copy() -> None:
    assert by_words(LONG, LONG[:80] + " They will not answer my letters, so I am thinking of going there myself.") == {}


def test_items_of_one_group_are_not_compared_with_each_other() -> None:
    edited = LONG.replace("two regulars", "three regulars")
    texts = {"a": LONG, "b": edited, "c": edited, "d": PARAPHRASES[0][0], "e": PARAPHRASES[0][1]}

    def found(groups: str) -> dict[str, tuple[str, str]]:
        chosen = [Item(name, {"prompt": text}, group=g) for (name, text), g in zip(texts.items(), groups, strict=True)]
        return removed(find_duplicates(chosen, model=sentence_model()))

    assert found("11122") == {}
    assert found("11222") == {"c": ("exact", "b")}
    assert found("12223") == {"a": ("near", "b"), "d": ("semantic", "e")}


@pytest.mark.parametrize(("one", "other"), OTHER_QUESTIONS)
def test_short_questions_that_differ_in_what_they_ask_stay(one: str, other: str) -> None:
    assert find_duplicates(items(one, other), model=sentence_model()) == []


def test_a_long_text_with_another_number_is_still_a_near_copy() -> None:
    assert by_words(LONG + " It is 3 weeks now.", LONG + " It is 4 weeks now.") == {"b": ("near", "a")}


def test_the_reported_similarity_is_the_true_one() -> None:
    edited = LONG.replace("flat", "dense")
    [found] = find_duplicates(items(LONG, edited), semantic=None)
    assert found.similarity == jaccard(LONG, edited)
    a, b = normalised(LONG), normalised(edited)
    shingles = [{f"    {t}    "[i : i + 5] for i in range(len(t) + 4)} for t in (a, b)]
    assert found.similarity == len(shingles[0] & shingles[1]) / len(shingles[0] | shingles[1])


SYLLABLES = st.lists(st.sampled_from(["ka", "lo", "mi", "run", "te", "sa", "po", "ni", "bel"]), min_size=8, max_size=40)


@given(st.lists(st.tuples(SYLLABLES, st.integers(0, 39)), min_size=2, max_size=6), st.floats(0.4, 0.9))
def test_every_near_copy_is_found_and_nothing_else_goes(rows: list[tuple[list[str], int]], threshold: float) -> None:
    """What goes has a kept text that near; no two that stay are that near; the order of the input is nothing."""
    texts = []
    for syllables, place in rows:
        texts.append(" ".join(syllables))
        texts.append(" ".join([*syllables[:place], "zu", *syllables[place:]]))  # an edit of the first
    given_items = [Item(f"{number:02}", {"prompt": text}) for number, text in enumerate(texts)]
    found = find_duplicates(given_items, near=threshold, semantic=None)
    gone = {duplicate.id for duplicate in found}
    kept = [item for item in given_items if item.id not in gone]
    for duplicate in found:
        assert duplicate.other in {item.id for item in kept}
        assert duplicate.similarity >= threshold or duplicate.kind == "exact"
    for number, item in enumerate(kept):
        for other in kept[:number]:
            assert jaccard(item.texts["prompt"], other.texts["prompt"]) < threshold
    assert find_duplicates(given_items[::-1], near=threshold, semantic=None) == found


# --- semantic


@pytest.mark.parametrize(("one", "other"), PARAPHRASES)
def test_a_paraphrase_is_a_semantic_copy_and_no_near_one(one: str, other: str) -> None:
    assert by_words(one, other) == {}
    [found] = find_duplicates(items(one, other), model=sentence_model())
    assert (found.kind, {found.id, found.other}) == ("semantic", {"a", "b"})
    assert 0.92 <= found.similarity <= 1.0


def test_answers_are_compared_to_their_ends() -> None:
    beginning = "Thank you for asking so openly; here is what I would do in your place this week. " * 25
    one = beginning + "Soak the beans overnight and cook them without salt. " * 30
    other = beginning + "Ring the landlord and ask for the meter reading in writing. " * 30
    assert find_duplicates(items(one, other), model=sentence_model()) == []


# --- which one stays


@pytest.mark.parametrize(
    ("one", "other", "stays"),
    [
        ({"status": "candidate", "grade": 40.0}, {"status": "accepted", "grade": 30.0}, "b"),
        ({"grade": 31.0}, {"grade": 35.0}, "b"),
        ({"grade": None}, {"grade": 2.0}, "b"),
        ({"grade": 31.0}, {"grade": 31.0}, "a"),
    ],
)
def test_accepted_before_candidate_then_the_better_graded_then_the_lower_id(
    one: dict[str, Any], other: dict[str, Any], stays: str
) -> None:
    pair = [Item("a", {"prompt": "The same words."}, **one), Item("b", {"prompt": "The same words."}, **other)]
    assert [duplicate.other for duplicate in find_duplicates(pair, semantic=None)] == [stays]


def test_the_longer_stays() -> None:
    assert by_words(LONG, LONG + " Thanks!") == {"a": ("near", "b")}


def test_of_a_cluster_one_stays() -> None:
    assert by_words(LONG, LONG.upper(), LONG + " Thanks.", LONG.replace("Cork", "Kerry")) == {
        "a": ("near", "c"),
        "b": ("near", "c"),
        "d": ("near", "c"),
    }


def test_a_chain_does_not_pull_its_far_end_out() -> None:
    """a is like b and b like c, but a is not like c: b goes and both ends stay, so nothing is lost."""
    units = [f"sentence number {number} says this" for number in range(9)]
    a, b, c = " ".join(units[:8]), " ".join(units[1:8]), " ".join(units[1:9])
    assert jaccard(a, b) >= NEAR <= jaccard(b, c)
    threshold = jaccard(a, c) + 0.01
    assert removed(find_duplicates(items(a, b, c), near=threshold, semantic=None)).keys() == {"b"}


def test_prompt_answer_or_either() -> None:
    rows = [
        Item("a", {"prompt": "Same question here?", "answer": "One answer of its own, indeed."}),
        Item("b", {"prompt": "Same question here?", "answer": "Quite another reply."}),
        Item("c", {"prompt": "Something else", "answer": "One answer of its own: indeed"}),
    ]
    for fields, gone in ((["prompt"], ["b"]), (["answer"], ["c"]), (["prompt", "answer"], ["b", "c"])):
        chosen = [Item(row.id, {field: row.texts[field] for field in fields}) for row in rows]
        found = find_duplicates(chosen, semantic=None)
        assert {(d.id, d.field) for d in found} == {(i, {"b": "prompt", "c": "answer"}[i]) for i in gone}


# --- a public set of prompts, with copies planted in it


def planted(rows: list[tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """id -> (kind, text): copies of some prompts, as people make them."""
    long = [(id_, text) for id_, text in rows if 150 < len(text) < 600 and len(text.split()) > 25]
    found: dict[str, tuple[str, str]] = {}
    for id_, text in long[:40]:
        found[f"{id_}-exact"] = ("exact", "  " + text.upper().replace(" ", "  ") + "!")
    for number, (id_, text) in enumerate(long[40:80]):
        parts = text.split(" ")
        parts.insert(len(parts) // 2, "really")
        if number % 2:
            del parts[len(parts) // 3]
        found[f"{id_}-near"] = ("near", " ".join(parts))
    return found


@pytest.mark.slow
@needs_public
def test_copies_planted_in_6000_public_prompts_are_found_and_other_questions_stay() -> None:
    rows = [(record.id, record.prompts[0]) for record in read_texts(PUBLIC)]
    copies = planted(rows)
    others = [text for pair in OTHER_QUESTIONS for text in pair]
    together = [Item(id_, {"prompt": text}) for id_, text in rows]
    together += [Item(id_, {"prompt": text}) for id_, (_, text) in copies.items()]
    together += [Item(f"other-{number}", {"prompt": text}) for number, text in enumerate(others)]
    found = {d.id: d for d in find_duplicates(together, semantic=None)}
    pairs = {frozenset((d.id, d.other)) for d in found.values()}
    for id_, (kind, _) in copies.items():
        original = id_.rsplit("-", 1)[0]
        assert frozenset((id_, original)) in pairs or {id_, original} <= found.keys(), id_
        assert found.get(id_, found.get(original)).kind in (kind, "exact")  # type: ignore[union-attr]
    assert not [id_ for id_ in found if id_.startswith("other-")]
    for duplicate in found.values():  # nothing is reported that is not so
        if duplicate.kind == "near":
            assert jaccard(duplicate.text, duplicate.other_text) >= NEAR


@pytest.mark.slow
@needs_public
def test_paraphrases_planted_in_public_prompts_are_found() -> None:
    rows = [(record.id, record.prompts[0]) for record in read_texts(PUBLIC)][:250]
    together = [Item(id_, {"prompt": text}) for id_, text in rows]
    for number, pair in enumerate(PARAPHRASES):
        together += [Item(f"pair-{number}-{side}", {"prompt": text}) for side, text in enumerate(pair)]
    found = find_duplicates(together, near=None, model=sentence_model())
    gone = {(d.id[:6], d.other[:6]) for d in found if d.id.startswith("pair-")}
    assert gone == {(f"pair-{number}", f"pair-{number}") for number in range(len(PARAPHRASES))}


# --- the command


def run(*arguments: str | Path, code: int = 0) -> str:
    """The command's output."""
    result = CliRunner().invoke(app, ["data", "dedupe", *map(str, arguments)])
    if isinstance(result.exception, KarmaError):
        raise result.exception
    assert result.exit_code == code, result.output
    return result.stdout


def write(path: Path, *texts: str) -> Path:
    """A prompt file with the ids a, b, c ..."""
    rows = [{"id": item.id, "prompt": item.texts["prompt"]} for item in items(*texts)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_a_dry_run_shows_the_pair_side_by_side_and_changes_nothing(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", LONG, LONG.replace("Cork", "Kerry"), "Something else?")
    before = file.read_bytes()
    text = run(file, "--no-semantic")
    assert "near 0.9" in text
    assert "a goes, b stays" in text
    assert [line for line in text.splitlines() if "Cork" in line and "|" in line and "Kerry" in line]
    assert "3 records, 1 copies: exact 0, near 1, semantic 0" in text
    assert file.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["p.jsonl"]


def test_the_lines_that_stay_are_written_as_they_were(tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    lines = ['{"id": "a",   "prompt": "Same?", "more": 1}', "", '{"prompt": "same"}', '{"id": "c", "prompt": "Other"}']
    file.write_text("\n".join(lines))
    out = tmp_path / "new" / "kept.jsonl"
    run(file, "--no-semantic", "--out", out)
    assert out.read_text() == "\n".join([lines[0], "", lines[3]])


def test_the_report_holds_every_pair_with_its_reason(tmp_path: Path) -> None:
    file = write(tmp_path / "p.jsonl", "Same?", "same", PARAPHRASES[0][0], PARAPHRASES[0][1])
    report = tmp_path / "report.json"
    printed = json.loads(run(file, "--json", "--report", report))
    assert printed == json.loads(report.read_text())
    assert printed["removed"] == {"exact": 1, "near": 0, "semantic": 1}
    assert printed["applied"] is False
    assert {(p["id"], p["other"], p["kind"], p["text"]) for p in printed["pairs"]} == {
        ("b", "a", "exact", "same"),
        ("c", "d", "semantic", PARAPHRASES[0][0]),
    }


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--apply"], "never changed in place"),
        (["--out", "there.jsonl"], "exists"),
    ],
)
def test_what_could_not_be_applied_is_refused_before_any_work(
    options: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file = write(tmp_path / "p.jsonl", "Same?")
    (tmp_path / "there.jsonl").write_text("")
    with pytest.raises(InputError, match=named):
        run(file, "--no-semantic", *options)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('{"id": 3, "label": "x"}', "line 2: nothing to compare"),
        ("[]", "line 2: found list"),
        ('{"id": "a", "prompt": "x"}', "line 2: the id 'a' was already used on line 1"),
    ],
)
def test_a_line_that_cannot_be_compared_is_named(line: str, named: str, tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text('{"id": "a", "prompt": "One."}\n' + line + "\n")
    with pytest.raises(DataError, match=named):
        run(file, "--no-semantic")


@pytest.mark.parametrize(
    "record",
    [
        {"messages": [{"role": "user", "content": "Ask"}, {"role": "assistant", "content": "Reply"}]},
        {"conversations": [{"from": "human", "value": "Ask"}, {"from": "gpt", "value": "Reply"}]},
        {"instruction": "Ask", "input": "", "output": "Reply"},
        {"prompt": "Ask", "response": "Reply"},
        {"turns": ["Ask"], "expected": "x", "completion": "Reply"},
    ],
)
def test_the_usual_forms_of_records_are_read(record: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "p.jsonl"
    file.write_text(json.dumps(record))
    [read] = read_texts(file)
    assert (read.id, read.prompts, read.answers) == ("line 1", ("Ask",), ("Reply",))


def workbench(path: Path, *texts: str) -> Path:
    """A workbench with candidates a, b, c ... of these prompts."""
    with Store.open(path, create=True) as store:
        store.add(
            [Candidate(i.id, [user(i.texts["prompt"]), assistant(f"Answer {i.id}.")]) for i in items(*texts)],
            origin="test",
        )
    return path


def test_apply_records_removals_in_the_workbench_and_the_next_run_finds_none(tmp_path: Path) -> None:
    database = workbench(tmp_path / "w.db", "Same?", "same", "Other")
    assert "1 removals recorded" in run("--db", database, "--no-semantic", "--apply")
    with Store.open(database) as store:
        assert [c.id for c in store.candidates(status="rejected")] == ["b"]
        [removal] = store.removals()
    assert (removal.candidate_id, removal.kind, removal.other, removal.similarity) == ("b", "exact", "a", 1.0)
    assert "2 records, 0 copies" in run("--db", database, "--no-semantic")


def test_what_a_reviewer_brought_back_stays(tmp_path: Path) -> None:
    database = workbench(tmp_path / "w.db", "Same?", "same")
    run("--db", database, "--no-semantic", "--apply")
    with Store.open(database) as store:
        store.decide("b", "candidate", reason="not the same", reviewer="me")
    assert "a reviewer brought them back (b)" in run("--db", database, "--no-semantic", "--apply")
    with Store.open(database) as store:
        assert store.get("b").status == "candidate"


def test_removals_are_recorded_all_or_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    database = workbench(tmp_path / "w.db", "Same?", "same", "SAME")
    whole = Store.add_removal

    def stops_at_c(self: Store, id: str, *rest: Any) -> None:
        if id == "c":
            raise KeyboardInterrupt
        whole(self, id, *rest)

    monkeypatch.setattr(Store, "add_removal", stops_at_c)
    assert CliRunner().invoke(app, ["data", "dedupe", "--db", str(database), "--no-semantic", "--apply"]).exit_code
    with Store.open(database) as store:
        assert store.removals() == []
        assert [c.status for c in store.candidates()] == ["candidate"] * 3


@needs_public
@pytest.mark.slow
def test_6000_public_prompts_are_searched_by_meaning() -> None:
    together = [Item(record.id, {"prompt": record.prompts[0]}) for record in read_texts(PUBLIC)]
    for number, pair in enumerate(PARAPHRASES):
        together += [Item(f"pair-{number}-{side}", {"prompt": text}) for side, text in enumerate(pair)]
    found = find_duplicates(together, model=sentence_model())
    assert {d.id[:6] for d in found if d.id.startswith("pair-")} == {f"pair-{n}" for n in range(len(PARAPHRASES))}
    assert {duplicate.kind for duplicate in found} == {"exact", "near", "semantic"}
    assert len(found) < 0.02 * len(together)
