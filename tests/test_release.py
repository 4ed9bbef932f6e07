"""Releases: what is chosen, how it is split, and that the same inputs give the same bytes."""

from __future__ import annotations

import itertools
import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karma_electric.core.errors import DataError
from karma_electric.core.messages import assistant, user
from karma_electric.core.recipe import ReleaseSection, load_recipe
from karma_electric.core.resources import resource_root
from karma_electric.data.candidate import Candidate
from karma_electric.data.corpus import dump_lines, read_corpus
from karma_electric.data.example import CATEGORIES, Analysis, Example
from karma_electric.data.families import families
from karma_electric.data.grades import GradeLine, parse_grade, read_grades
from karma_electric.data.release import TRAIN, VALIDATION, read_source, select, split, write_release
from karma_electric.data.rubric import DIMENSIONS, RUBRIC, Grade, median_grade
from karma_electric.data.store import Store
from karma_electric.stages import plan_release

PROMPT = "Be kind, ünd brief."


def example(number: int, category: str = "adversarial", *, status: str = "accepted", added_in: str = "v1") -> Example:
    """A small example; its id is unique for number and category."""
    return Example(
        id=f"{category}-{number:04d}",
        category=category,
        tags=("test",),
        messages=[user(f"Question {number} on {category}?"), assistant("An answer.")],
        analysis=Analysis("a", "b", "c"),
        source="test",
        license="CC0-1.0",
        added_in=added_in,
        status=status,
    )


def write_corpus(folder: Path, examples: list[Example]) -> Path:
    """A corpus folder, one file per category."""
    folder.mkdir(exist_ok=True)
    for category in {e.category for e in examples}:
        members = [e.as_dict() for e in examples if e.category == category]
        (folder / f"{category}.jsonl").write_text(dump_lines(members), encoding="utf-8")
    return folder


def read(path: Path) -> list[dict[str, Any]]:
    """The records of a release file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def ids(examples: list[Example]) -> set[str]:
    """Ids of examples."""
    return {e.id for e in examples}


# --- selection


def test_only_accepted_examples_are_released() -> None:
    examples = [example(0), example(1, status="candidate"), example(2, status="rejected")]
    assert ids(select(examples, ReleaseSection())) == {"adversarial-0000"}


def test_categories_and_versions_narrow_the_choice() -> None:
    examples = [example(0), example(1, added_in="v2"), example(2, "crisis-response", added_in="v2")]
    assert ids(select(examples, ReleaseSection(categories=["adversarial"]))) == {"adversarial-0000", "adversarial-0001"}
    assert ids(select(examples, ReleaseSection(categories=["adversarial"], versions=["v2"]))) == {"adversarial-0001"}


@pytest.mark.parametrize(
    "section",
    [ReleaseSection(versions=["v9"]), ReleaseSection(categories=["crisis-response"]), ReleaseSection(categories=[])],
)
def test_an_empty_choice_says_what_to_widen(section: ReleaseSection) -> None:
    with pytest.raises(DataError, match="no accepted example matches") as caught:
        select([example(0)], section)
    assert "release.versions" in caught.value.hint


def test_an_unknown_category_lists_the_known_ones() -> None:
    with pytest.raises(DataError, match="'kindness' is unknown") as caught:
        select([example(0)], ReleaseSection(categories=["kindness"]))
    assert all(category in caught.value.hint for category in CATEGORIES)


# --- split

SIZES = st.lists(st.integers(0, 25), min_size=5, max_size=5).filter(lambda sizes: max(sizes) >= 2)
FRACTIONS = st.floats(0.02, 0.48)


def corpus_of(sizes: list[int]) -> list[Example]:
    """Some examples of every category."""
    return [example(n, category) for category, size in zip(CATEGORIES, sizes, strict=True) for n in range(size)]


@given(sizes=SIZES, fraction=FRACTIONS, seed=st.integers(0, 3))
def test_a_split_is_disjoint_and_whole(sizes: list[int], fraction: float, seed: int) -> None:
    examples = corpus_of(sizes)
    train, validation = split(examples, fraction, seed)
    assert Counter(e.id for e in train + validation) == Counter(e.id for e in examples)
    assert train
    assert validation


@given(sizes=SIZES, fraction=FRACTIONS, seed=st.integers(0, 3))
def test_every_category_gives_its_share(sizes: list[int], fraction: float, seed: int) -> None:
    """To the nearest example, and at least one, unless it is the only one: that is trained on."""
    held_out = Counter(e.category for e in split(corpus_of(sizes), fraction, seed)[1])
    for category, size in zip(CATEGORIES, sizes, strict=True):
        if size < 2:
            assert held_out[category] == 0
        else:
            assert 1 <= held_out[category] < size
            assert abs(held_out[category] - size * fraction) <= 0.5 or held_out[category] == 1


@given(sizes=SIZES, fraction=FRACTIONS, seed=st.integers(0, 3), category=st.sampled_from(CATEGORIES))
def test_an_added_example_moves_at_most_one_other(sizes: list[int], fraction: float, seed: int, category: str) -> None:
    """Releases of a growing corpus keep their validation sets comparable."""
    examples = corpus_of(sizes)
    before = split(examples, fraction, seed)
    after = split([*examples, example(9999, category)], fraction, seed)
    moved = (ids(before[0]) & ids(after[1])) | (ids(before[1]) & ids(after[0]))
    assert len(moved) <= 1
    assert all(name.startswith(category) for name in moved)


@given(sizes=SIZES, seed=st.integers(0, 3), order=st.randoms(use_true_random=False))
def test_the_order_of_the_corpus_does_not_matter(sizes: list[int], seed: int, order: Any) -> None:
    examples = corpus_of(sizes)
    shuffled = examples.copy()
    order.shuffle(shuffled)
    assert split(shuffled, 0.1, seed) == split(examples, 0.1, seed)


def test_another_seed_splits_and_orders_otherwise() -> None:
    examples = corpus_of([20] * 5)
    (train, validation), (other_train, other_validation) = (split(examples, 0.2, seed) for seed in (0, 1))
    assert ids(validation) != ids(other_validation)
    both = ids(train) & ids(other_train)
    assert [e.id for e in train if e.id in both] != [e.id for e in other_train if e.id in both]


def test_training_examples_come_shuffled_over_the_categories() -> None:
    train, _ = split(corpus_of([10] * 5), 0.1, 0)
    changes = sum(a.category != b.category for a, b in itertools.pairwise(train))
    assert changes > 2 * len(CATEGORIES)


def test_single_examples_cannot_be_split() -> None:
    with pytest.raises(DataError, match="2 examples cannot be split") as caught:
        split([example(0), example(0, "crisis-response")], 0.1, 0)
    assert "at least 2" in caught.value.hint


# --- families

STORY = "my neighbour has asked me to sign a paper that I do not understand and I fear for the house I was born in"


def asking(number: int, question: str, answer: str = "An answer.") -> Example:
    """An example with a question of its own."""
    return Example(**{**vars(example(number)), "messages": [user(question), assistant(answer)]})


def test_a_family_is_never_torn() -> None:
    """The same question, and a near copy of it: all in training, or all held out."""
    related = [asking(100, STORY, "One."), asking(101, STORY, "Two."), asking(102, STORY + " tell me", "Three.")]
    for seed in range(20):
        train, validation = split([*corpus_of([20, 0, 0, 20, 0]), *related], 0.25, seed)
        assert len(ids(related) & ids(train)) in (0, 3)
        assert ids(train) | ids(validation) >= ids(related)
        assert len(validation) == 11  # 5 of ethical-reasoning's 20, 6 of adversarial's 23


def test_kinship_goes_through_a_third() -> None:
    words = STORY.split()
    chain = [[user(" ".join(words[i : i + 18])), assistant("Yes.")] for i in (0, 3, 6)]
    assert families(chain) == [[0, 1, 2]]
    assert families([chain[0], chain[2]]) == [[0], [1]]


def test_similar_answers_make_a_family_and_short_ones_do_not() -> None:
    long = [[user("One thing?"), assistant(STORY)], [user("Another matter?"), assistant(STORY + " at last")]]
    short = [[user("One thing?"), assistant("Yes, do.")], [user("Another matter?"), assistant("Yes, do.")]]
    assert families(long) == [[0, 1]]
    assert families(short) == [[0], [1]]


def test_the_first_question_makes_a_family_whatever_follows() -> None:
    one = [user("Hello there?"), assistant("Hm."), user("Why?"), assistant("So.")]
    other = [user("hello, THERE"), assistant("Good day to you.")]
    assert families([one, other]) == [[0, 1]]


# --- grades


def graded(item: Example, total: float, judge: str = "a", content: str | None = None) -> GradeLine:
    """A grade of `total`, the dimensions a quarter each."""
    scores = dict.fromkeys(DIMENSIONS, total / 4)
    content = Candidate.from_example(item).content_sha256 if content is None else content
    return GradeLine(item.id, content, Grade(RUBRIC, scores, total, "because", judge))


def write_grades(corpus: Path, lines: list[GradeLine]) -> None:
    """The grades of a corpus folder."""
    (corpus / "grades").mkdir(exist_ok=True)
    (corpus / "grades" / "test.jsonl").write_text(dump_lines([line.as_dict() for line in lines]), encoding="utf-8")


def test_a_minimum_grade_keeps_what_reaches_it_and_nothing_ungraded(tmp_path: Path) -> None:
    examples = [example(n) for n in range(6)]
    corpus = write_corpus(tmp_path / "corpus", examples)
    totals = zip(examples, (40, 30, 29.9, 0), strict=False)
    write_grades(corpus, [graded(item, total) for item, total in totals] + [graded(examples[4], 40, content="other")])
    summary = write_release(ReleaseSection(minimum_grade=30), corpus, PROMPT, tmp_path)
    records = read(tmp_path / TRAIN) + read(tmp_path / VALIDATION)
    assert {record["id"] for record in records} == {"adversarial-0000", "adversarial-0001"}
    assert summary["left_out"] == {"below minimum grade": 2, "not graded": 2}


def test_several_judges_count_by_their_median(tmp_path: Path) -> None:
    examples = [example(n) for n in range(3)]
    corpus = write_corpus(tmp_path / "corpus", examples)
    by_judge = {"a": (40, 10, 30), "b": (20, 40, 30), "c": (28, 31, 30)}
    write_grades(corpus, [graded(e, t, j) for j, ts in by_judge.items() for e, t in zip(examples, ts, strict=True)])
    assert read_source(corpus)[1] == {e.id: t for e, t in zip(examples, (28, 31, 30), strict=True)}


def test_a_minimum_grade_without_grades_says_what_to_do(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", [example(n) for n in range(3)])
    with pytest.raises(DataError, match="0 of 3 matching examples are graded") as caught:
        write_release(ReleaseSection(minimum_grade=30), corpus, PROMPT, tmp_path)
    assert "karma data judge" in caught.value.hint


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scores": {"suffering": 10}}, "expected the dimensions"),
        ({"scores": dict.fromkeys(DIMENSIONS, 11)}, "expected a number from 0 to 10"),
        ({"scores": dict.fromkeys(DIMENSIONS, True)}, "expected a number from 0 to 10"),
        ({"total": 39}, "the total is 39, the scores add up to 40"),
        ({"total": "40"}, "the total is '40'"),
        ({"judge": None}, "'judge' is None, expected text"),
        ({"rubric": "another", "scores": None}, "line 1: 'scores' is None, expected an object of names and numbers"),
        ({"more": 1}, "exactly the keys"),
    ],
)
def test_a_grade_line_that_cannot_be_is_refused(change: dict[str, Any], message: str) -> None:
    line = {**graded(example(0), 40).as_dict(), "scores": dict.fromkeys(DIMENSIONS, 10), **change}
    with pytest.raises(DataError, match=re.escape(message)):
        parse_grade(line, "grades.jsonl line 1")


def test_one_judge_grades_the_same_words_once(tmp_path: Path) -> None:
    write_grades(tmp_path, [graded(example(0), 40), graded(example(0), 32)])
    with pytest.raises(DataError, match=r"test.jsonl line 2: 'adversarial-0000' was already graded by 'a'"):
        read_grades(tmp_path / "grades")


def test_the_median_grade_leaves_out_what_could_not_be_read() -> None:
    samples = [graded(example(0), total).grade for total in (12, 32, 36)]
    unreadable = Grade(RUBRIC, {}, None, "", "a", ("not json",))
    assert median_grade([*samples, unreadable], "a").total == 32
    assert median_grade([unreadable], "a").total is None
    assert median_grade([*samples, unreadable], "a").raw == ("not json",)


# --- the files


def test_the_system_prompt_is_injected_into_every_record(tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus", corpus_of([3] * 5))
    write_release(ReleaseSection(), corpus, PROMPT, tmp_path)
    records = read(tmp_path / TRAIN) + read(tmp_path / VALIDATION)
    assert len(records) == 15
    for record in records:
        assert [m["role"] for m in record["messages"]] == ["system", "user", "assistant"]
        assert record["messages"][0]["content"] == PROMPT


def test_the_same_inputs_give_the_same_bytes(tmp_path: Path) -> None:
    """Even when files and lines of the corpus come in another order."""
    examples = corpus_of([4] * 5)
    contents = []
    for name, order in (("a", examples), ("b", examples[::-1])):
        out = tmp_path / name
        out.mkdir()
        write_release(ReleaseSection(), write_corpus(tmp_path / f"corpus-{name}", order), PROMPT, out)
        contents.append({file: (out / file).read_bytes() for file in (TRAIN, VALIDATION)})
    assert contents[0] == contents[1]


def test_the_summary_counts_what_the_files_hold(tmp_path: Path) -> None:
    corpus = resource_root("corpus")
    summary = write_release(ReleaseSection(), corpus, PROMPT, tmp_path)
    train, validation = read(tmp_path / TRAIN), read(tmp_path / VALIDATION)
    assert (summary["train"], summary["validation"]) == (len(train), len(validation))
    assert summary["examples"] == len(train) + len(validation) == len(read_corpus(corpus))
    assert summary["categories"] == Counter(record["category"] for record in train + validation)
    assert summary["multi_turn"] == sum(len(record["messages"]) > 3 for record in train + validation)
    assert json.loads((tmp_path / "summary.json").read_text(encoding="utf-8")) == summary


def test_answer_lengths_are_counted_in_words(tmp_path: Path) -> None:
    examples = [example(n) for n in range(3)]
    summary = write_release(ReleaseSection(), write_corpus(tmp_path / "corpus", examples), PROMPT, tmp_path)
    assert summary["answer_words"] == {"shortest": 2, "median": 2, "longest": 2, "total": 6}


def test_text_is_kept_as_it_is(tmp_path: Path) -> None:
    """Line separators, emoji and quotes in a turn neither break a line nor are changed."""
    text = 'one\u2028two\r\nthree "four" \U0001f600 नमस्ते'
    odd = [Example(**{**vars(example(n)), "messages": [user(f"{text} {n}"), assistant(text)]}) for n in range(2)]
    write_release(ReleaseSection(), write_corpus(tmp_path / "corpus", odd), PROMPT, tmp_path)
    lines = (tmp_path / TRAIN).read_bytes().split(b"\n")
    assert [json.loads(line)["messages"][2]["content"] for line in lines if line] == [text]


def test_a_release_from_a_workbench_is_made_again_when_its_summary_would_say_something_else(tmp_path: Path) -> None:
    database = tmp_path / "w.db"
    recipe = load_recipe("recipes/smollm2-v3.toml", [f"release.corpus={database}"])
    seen = []
    with Store.open(database, create=True) as store:
        store.add([Candidate.from_example(example(n)) for n in range(3)], origin="test")
        seen.append(plan_release(recipe).inputs)
        assert plan_release(recipe).inputs == seen[0]
        for change in ({"license": "MIT"}, {"source": "me"}, {"status": "candidate"}, {"status": "rejected"}):
            item = Candidate(**{**vars(store.get("adversarial-0000")), **change})
            store.replace(item, reason="", reviewer="")
            seen.append(plan_release(recipe).inputs)
    assert len({inputs["corpus"] for inputs in seen}) == 5


# --- the shipped releases


def test_the_three_releases_tell_the_story_of_the_corpus() -> None:
    """v1 a quarter; v2 adds to it, v3 to that; what v3 adds is code safety and resistance to bypasses."""
    examples, grades = read_source(resource_root("corpus"))
    releases = [
        {e.id: e for e in select(examples, load_recipe(f"recipes/smollm2-v{n}.toml").release, grades)}
        for n in (1, 2, 3)
    ]
    assert all(grades[i] >= 30 for i in releases[0])
    assert len(examples) >= 600
    assert releases[0].keys() < releases[1].keys() < releases[2].keys() == {e.id for e in examples}
    assert 0.2 <= len(releases[0]) / len(examples) <= 0.3
    assert {e.category for i, e in releases[2].items() if i not in releases[1]} == {
        "adversarial",
        "coding-assistance",
    }


def test_no_family_of_the_shipped_corpus_straddles_the_split() -> None:
    examples = [Candidate.from_example(e) for e in read_corpus(resource_root("corpus"))]
    train, validation = split(examples, 0.1, 0)
    groups = families([e.messages for e in [*train, *validation]])
    sides = [{index < len(train) for index in group} for group in groups]
    assert all(len(side) == 1 for side in sides)


def test_what_was_in_no_release_yet_is_called_unreleased() -> None:
    items = [Candidate("a", [user("Q?"), assistant("A.")], category="adversarial", status="accepted")]
    assert select(items, ReleaseSection(versions=["unreleased"])) == items
    with pytest.raises(DataError, match="no accepted example matches"):
        select(items, ReleaseSection(versions=["v1"]))


def test_an_empty_choice_counts_why() -> None:
    items = [
        Candidate("a", [user("Q?"), assistant("A.")], status="accepted"),
        Candidate("b", [user("R?"), assistant("A.")], category="adversarial"),
    ]
    with pytest.raises(DataError, match=r"of 2: no category 1, status candidate 1"):
        select(items, ReleaseSection())
