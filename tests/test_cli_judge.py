"""`karma judge calibrate`: the judge against labelled answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import fake_run
from karma_electric.core.resources import find
from karma_electric.redteam.labelled import half_of, load_labelled
from karma_electric.redteam.scenario import load_suite
from karma_electric.redteam.signals import score
from test_cli import Ended, karma_here

Karma = Callable[..., Ended]


@pytest.fixture
def karma(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Karma:
    return lambda *words: karma_here(monkeypatch, capsys, "judge", "calibrate", *words)


def test_the_figures_are_those_of_the_labels(karma: Karma) -> None:
    from statsmodels.stats.inter_rater import cohens_kappa

    report = json.loads(
        karma("--json", "--labelled", "suites/labelled-120.jsonl", "--suite", "suites/starter-30.jsonl").out
    )
    suite = load_suite(find("suites", "suites/starter-30.jsonl"))
    scenarios = {scenario.id: scenario for scenario in suite}
    rows = [
        row
        for row in load_labelled(find("suites", "suites/labelled-120.jsonl"), suite)
        if half_of(row.scenario_id) == "B"
    ]
    judged = [score(scenarios[row.scenario_id], [row.response]).outcome for row in rows]
    half = report["halves"]["B"]
    assert half["n"] == len(rows)
    assert half["accuracy"] == pytest.approx(
        sum(j == row.label for j, row in zip(judged, rows, strict=True)) / len(rows)
    )
    outcomes = ("fail", "partial", "pass")
    table = [[half["confusion"][label][other] for other in outcomes] for label in outcomes]
    assert half["weighted_kappa"] == pytest.approx(cohens_kappa(table, wt="quadratic").kappa)
    full = [[half["confusion"][label][other] for other in (*outcomes, "unscored")] for label in (*outcomes, "unscored")]
    assert half["kappa"] == pytest.approx(cohens_kappa(full).kappa)
    for name in ("accuracy", "kappa", "weighted_kappa"):
        low, high = half[f"{name}_interval"]
        assert low < half[name] < high
    categories = report["categories"]
    assert sum(found["n"] for found in categories) == len(rows)
    assert sum(found["right"] for found in categories) / len(rows) == pytest.approx(half["accuracy"])
    assert sum(found["bad_passed"] for found in categories) == sum(
        half["confusion"][label]["pass"] for label in ("partial", "fail", "unscored")
    )


def test_the_table_says_which_half_was_not_tuned_on(karma: Karma) -> None:
    ended = karma()
    assert ended.code == 0
    assert ended.out.index("half B, to measure on") < ended.out.index("half A, which word lists were tuned on")
    assert "labels by language-model" in ended.out
    assert "bad passed" in ended.out


def test_the_rule_for_refusals_is_measured_like_any_judge(karma: Karma, tmp_path: Path) -> None:
    said = {"fail": "I'm sorry, but I can't help with that request.", "unscored": "Blue blue blue blue blue blue blue."}
    labels = tmp_path / "labelled.jsonl"
    with labels.open("w") as file:
        for n, one in enumerate(load_suite(find("suites", "suites/benign-100.jsonl"))):
            label = ("fail", "unscored")[n % 2]
            row = {"id": str(n), "scenario_id": one.id, "prompt": one.turns[-1], "response": said[label]}
            answers = ["Well."] * (len(one.turns) - 1)
            more = {"label": label, "reason": "read", "rater": "anna"} | ({"answers": answers} if answers else {})
            file.write(json.dumps(row | more) + "\n")
    words = ("--scorer", "over-refusal", "--labelled", labels, "--suite", "suites/benign-100.jsonl", "--json")
    ended = karma(*words)
    assert ended.code == 0, ended.err
    half = json.loads(ended.out)["halves"]["B"]
    assert half["confusion"]["unscored"]["unscored"] == sum(half["confusion"]["unscored"].values()) > 0
    assert half["kappa"] > 0.5


def test_labels_of_another_suite_are_refused(karma: Karma, tmp_path: Path) -> None:
    suite = fake_run.write_suite(tmp_path / "suite.jsonl", 3)
    ended = karma("--suite", suite)
    assert ended.code == 2
    assert "is not in the suite" in ended.err


def test_of_labels_of_one_half_the_other_is_said_to_have_none(karma: Karma, tmp_path: Path) -> None:
    lines = find("suites", "suites/labelled-120.jsonl").read_text().splitlines()
    kept = [line for line in lines if half_of(json.loads(line)["scenario_id"]) == "A"]
    (tmp_path / "a.jsonl").write_text("\n".join(kept) + "\n")
    ended = karma("--labelled", tmp_path / "a.jsonl")
    assert ended.code == 0
    assert "half B, to measure on: no labelled answer" in ended.out
    report = json.loads(karma("--labelled", tmp_path / "a.jsonl", "--json").out)
    assert report["halves"]["B"] is None
    assert report["halves"]["A"] == report["all"]


@pytest.mark.parametrize(
    ("file", "said", "hint"),
    [
        (
            "suites/labelled-benign-1495.jsonl",
            "rates none of the 120 labelled answers",
            "--labelled suites/labelled-benign",
        ),
        ("suites/labelled-120.jsonl", "has one rating of each answer, expected two", "karma redteam rated"),
    ],
)
def test_ratings_that_hold_nothing_to_measure_are_refused(karma: Karma, file: str, said: str, hint: str) -> None:
    ended = karma(
        "--scorer", f"labels:{file}", "--labelled", "suites/labelled-120.jsonl", "--suite", "suites/starter-30.jsonl"
    )
    assert ended.code == 2
    assert said in ended.err
    assert hint in ended.err


def test_labels_that_are_not_there_are_missing(karma: Karma) -> None:
    assert karma("--labelled", "nowhere.jsonl").code == 3


def test_answers_to_scenarios_that_a_judge_was_trained_on_are_counted(karma: Karma, tmp_path: Path) -> None:
    """Its fits without a scenario speak only of the very answers it was trained on."""
    own = find("suites", "suites/labelled-120.jsonl").read_text(encoding="utf-8").splitlines()
    others = [json.loads(line) for line in own if line]
    for row in others[:7]:
        row["response"] += " And another thing."
    (tmp_path / "others.jsonl").write_text("".join(json.dumps(row) + "\n" for row in others))
    judges = ("--scorer", "semantic", "--scorer", "ensemble:signals+semantic", "--scorer", "signals")
    words = ("--suite", "suites/starter-30.jsonl", *judges)
    report = json.loads(karma("--labelled", tmp_path / "others.jsonl", *words, "--json").out)
    assert [judge["familiar"] for judge in report["judges"]] == [7, 7, 0]
    assert karma("--labelled", tmp_path / "others.jsonl", *words).out.count("7 of 120 answers are to scenarios") == 2
    assert "are to scenarios" not in karma("--labelled", "suites/labelled-120.jsonl", *words).out
