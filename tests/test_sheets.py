"""Answers read blind by two raters: the sheet, what the ratings come to, and the judge that repeats them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from typer.testing import CliRunner

from karma_electric.cli.main import app
from karma_electric.core.errors import DataError
from karma_electric.redteam.labelled import Rating, load_labelled
from karma_electric.redteam.runner import Answer
from karma_electric.redteam.scorers.labels import NOT_RATED
from karma_electric.redteam.scorers.named import open_scorer
from karma_electric.redteam.scorers.protocol import Case, score_unseen
from karma_electric.redteam.seeds import SeedResult
from karma_electric.redteam.sheets import as_line, combine, make_sheet, read_ratings, read_sheet
from karma_electric.redteam.signals import Outcome
from test_redteam_runner import SUITE


def arm(said: str, *, failed: str = "") -> Mapping[int, SeedResult]:
    """An arm of two seeds: under seed 1 it says the same to everything as every other arm."""
    return {
        seed: SeedResult(
            {},
            {
                s.id: {
                    turn: Answer(
                        s.id,
                        turn,
                        prompt,
                        f"{said if seed == 0 else 'I will not.'} {turn}",
                        "stop",
                        1,
                        1,
                        None,
                        "broken" if s.id == failed else None,
                    )
                    for turn, prompt in enumerate(s.turns, 1)
                }
                for s in SUITE
            },
        )
        for seed in (0, 1)
    }


def ratings(path: Path, labels: Mapping[str, Outcome]) -> Path:
    path.write_text(
        "".join(json.dumps({"id": i, "label": label, "reason": f"{label}."}) + "\n" for i, label in labels.items())
    )
    return path


def write(path: Path, rows: object) -> Path:
    path.write_text("".join(json.dumps(as_line(row)) + "\n" for row in rows))  # type: ignore[attr-defined]
    return path


def test_a_sheet_holds_every_different_answer_once_and_does_not_tell_whose_it_is() -> None:
    rows = make_sheet(SUITE, [arm("Sure."), arm("No.", failed="s3")], source="model:x", seeds=None)
    assert len(rows) == 5 + 4 + 5  # under seed 1 both say the same
    assert [row.id for row in rows] == sorted(row.id for row in rows)
    assert {row.source for row in rows} == {"model:x"}
    assert not any(word in json.dumps([as_line(row) for row in rows]) for word in ("base", "tuned", "seed", "verdict"))
    assert {len(row.answers) for row in rows if row.scenario_id == "s2"} == {3}
    assert len(make_sheet(SUITE, [arm("Sure."), arm("No.")], source="model:x", seeds=[1])) == 5


def test_two_ratings_that_agree_are_a_label_and_a_third_decides_the_others(tmp_path: Path) -> None:
    rows = make_sheet(SUITE, [arm("Sure."), arm("No.")], source="model:x", seeds=[0])
    assert read_sheet(write(tmp_path / "sheet.jsonl", rows)) == rows
    same: dict[str, Outcome] = {row.id: "fail" if "Sure." in row.answers[0] else "pass" for row in rows}
    other: dict[str, Outcome] = {**same, rows[0].id: "partial"}
    first = read_ratings(ratings(tmp_path / "a.jsonl", same), "anna")
    second = read_ratings(ratings(tmp_path / "b.jsonl", other), "ben")
    found = combine(rows, first, second, {})
    assert found.undecided == rows[:1]
    assert found.agreement.accuracy == 1 - 1 / len(rows)
    found = combine(rows, first, second, {rows[0].id: Rating("cleo", "unscored", "Babble.")})
    assert found.undecided == []
    decided = next(row for row in found.labelled if row.id == f"rated-{rows[0].id}")
    assert (decided.label, decided.rater, len(decided.ratings)) == ("unscored", "cleo", 3)
    loaded = load_labelled(write(tmp_path / "labelled.jsonl", found.labelled), SUITE)
    assert loaded == found.labelled

    judge = open_scorer(f"labels:{tmp_path / 'labelled.jsonl'}")
    cases = [Case(scenario, tuple(f"Sure. {turn}" for turn in range(1, len(scenario.turns) + 1))) for scenario in SUITE]
    expected = {row.scenario_id: row.label for row in found.labelled if "Sure." in row.response}
    assert {v.scenario_id: v.outcome for v in judge.score(cases)} == expected
    whose = [Case(SUITE[[s.id for s in SUITE].index(r.scenario_id)], r.all_answers) for r in found.labelled]
    differing = [v.outcome != r.label for v, r in zip(score_unseen(judge, whose), found.labelled, strict=True)]
    assert differing == [r.id == f"rated-{rows[0].id}" for r in found.labelled]
    [unknown] = judge.score([Case(SUITE[0], ("Something else.",))])
    assert (unknown.outcome, unknown.evidence) == ("unscored", NOT_RATED)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('{"id": "x", "label": "good", "reason": ""}', "label is 'good'"),
        ('{"id": "x", "label": "pass"}', "is no rating"),
        ('["x"]', "is no rating"),
        ('{"id": "x", "label": "pass", "reason": ""}\n' * 2, "x is rated twice"),
    ],
)
def test_what_is_no_rating_is_told_with_its_line(tmp_path: Path, text: str, found: str) -> None:
    (tmp_path / "a.jsonl").write_text(text)
    with pytest.raises(DataError, match=found):
        read_ratings(tmp_path / "a.jsonl", "anna")


def test_a_rater_who_left_something_out_or_rated_something_else_is_told() -> None:
    rows = make_sheet(SUITE, [arm("Sure.")], source="model:x", seeds=[0])
    whole = {row.id: Rating("anna", "fail", "It helps.") for row in rows}
    part = dict(list(whole.items())[1:])
    with pytest.raises(DataError, match="The second rater left out 1 of 5"):
        combine(rows, whole, part, {})
    found = combine(rows, whole, part, {}, sample=True)
    assert found.agreement.n == len(rows) - 1
    assert [len(row.ratings) for row in found.labelled] == [0] + [2] * (len(rows) - 1)
    with pytest.raises(DataError, match="The first rater left out 1 of 5"):
        combine(rows, part, whole, {}, sample=True)
    with pytest.raises(DataError, match="The second rater has rated nothing"):
        combine(rows, whole, {}, {}, sample=True)
    with pytest.raises(DataError, match="Rating nothing is of no line"):
        combine(rows, whole, {**whole, "nothing": whole[rows[0].id]}, {})


def test_a_changed_sheet_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "sheet.jsonl", make_sheet(SUITE, [arm("Sure.")], source="model:x", seeds=[0]))
    path.write_text(path.read_text().replace("Sure.", "Never.", 1))
    with pytest.raises(DataError, match="the answers are not those of id"):
        read_sheet(path)
    path.write_text('{"id": "x"}\n')
    with pytest.raises(DataError, match="line 1 is not a line of a sheet"):
        read_sheet(path)
    path.write_text("")
    with pytest.raises(DataError, match=r"sheet\.jsonl has no lines"):
        read_sheet(path)


def test_the_verbs_go_from_a_run_to_labels_that_judge_it(tmp_path: Path) -> None:
    def karma(*words: object, code: int = 0) -> str:
        done = CliRunner().invoke(app, ["redteam", *map(str, words)])
        assert done.exit_code == code, done.output
        return done.output

    sheet, out = tmp_path / "sheet.jsonl", tmp_path / "labelled.jsonl"
    said = karma("sheet", "results/demo", "--seed", 0, "--out", sheet)
    rows = read_sheet(sheet)
    assert f"{len(rows)} different answers" in said
    assert 30 < len(rows) <= 90
    first = ratings(tmp_path / "a.jsonl", {row.id: "fail" for row in rows})
    second = ratings(tmp_path / "b.jsonl", {row.id: "fail" if n else "pass" for n, row in enumerate(rows)})
    left = tmp_path / "left.jsonl"
    assert "1 are not decided" in karma("rated", sheet, first, second, "--out", out, "--undecided", left, code=1)
    assert not out.exists()
    third = ratings(tmp_path / "c.jsonl", {row.id: "partial" for row in read_sheet(left)})
    said = karma("rated", sheet, first, second, "--third", third, "--out", out)
    assert f"0 pass, 1 partial, {len(rows) - 1} fail, 0 unscored" in said
    assert karma_error("sheet", "results/demo", "--seed", 7, "--out", sheet) == 2
    assert karma_error("rated", sheet, first, first, "--out", tmp_path / "alone.jsonl") == 2


def test_answers_to_harmless_twins_are_found_by_their_suite(tmp_path: Path) -> None:
    words = ["redteam", "sheet", "results/smollm2-v1", "--suite", "suites/benign-100.jsonl", "--seed", "0"]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "sheet.jsonl")])
    assert done.exit_code == 0, done.output
    rows = read_sheet(tmp_path / "sheet.jsonl")
    assert {row.scenario_id.partition("-")[0] for row in rows} == {"benign"}
    assert 100 < len(rows) <= 300


def test_a_sheet_of_several_runs_names_them_all(tmp_path: Path) -> None:
    arms = ["results/smollm2-v1/redteam/tuned", "results/smollm2-v3/redteam/tuned", "results/smollm2-v3/redteam/base"]
    words = ["redteam", "sheet", *arms, "--suite", "suites/standard-58.jsonl", "--seed", "0"]
    done = CliRunner().invoke(app, [*words, "--out", str(tmp_path / "sheet.jsonl")])
    assert done.exit_code == 0, done.output
    assert {row.source for row in read_sheet(tmp_path / "sheet.jsonl")} == {"model:smollm2-v1+smollm2-v3"}


def karma_error(*words: object) -> int:
    """Exit code of a command that ends in an error of ours, as the program gives it."""
    import subprocess
    import sys

    return subprocess.run(
        [sys.executable, "-m", "karma_electric", "redteam", *map(str, words)], check=False, capture_output=True
    ).returncode
