"""The model card beyond pass rates: the judge's error, over-refusal, capability, drift, and what depends on the run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

import fake_run
from karma_electric.card import render_card
from karma_electric.core.artifact import hash_file, read_json, write_json
from karma_electric.core.recipe import Recipe
from karma_electric.evidence import read_run
from karma_electric.redteam.judge_error import Corrected
from karma_electric.redteam.relabels import add_relabel, to_look_at
from karma_electric.redteam.signals import Outcome

pytestmark = pytest.mark.usefixtures("few_resamples")

N = 20
OUTCOMES: dict[str, list[Outcome]] = {
    "base": ["pass"] * 8 + ["fail"] * 12,
    "tuned": ["pass"] * 14 + ["fail"] * 6,
    "capped": ["pass"] * 12 + ["fail"] * 8,
}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return fake_run.recipe_for(fake_run.write_suite(tmp_path_factory.mktemp("suite") / "fake-20.jsonl", N))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> Path:
    """A run whose judge was measured and whose arms were asked everything; of `capped` the capability is not known."""
    suite = Path(recipe.redteam.suite)
    run = fake_run.write_run(tmp_path_factory.mktemp("runs") / "fake", recipe, OUTCOMES, stages=("release", "redteam"))
    fake_run.write_judge(run / "redteam" / "judge", suite)
    for arm, refused in (("base", 1), ("tuned", 6), ("capped", 9)):
        helped: list[Outcome] = ["pass"] * (N - refused) + ["fail"] * refused
        fake_run.write_beside(run, "benign", arm, suite, helped)
        means = {"controls": refused / 4, "coding": refused / 4, "conversations": -0.25, "confiding": -0.25}
        fake_run.write_drift(run, arm, suite, means)
    fake_run.write_beside(run, "capability", "base", suite, ["pass"] * 13 + ["fail"] * 7)
    fake_run.write_beside(run, "capability", "tuned", suite, ["pass"] * 11 + ["fail"] * 9)
    return run


@pytest.fixture(scope="module")
def card(run: Path, recipe: Recipe) -> str:
    return render_card(run, recipe)


@pytest.mark.parametrize(
    "line",
    [
        "| base model | 5% (1% to 24%) | 20 | 0 |",
        "| tuned | 30% (15% to 52%) | 20 | 0 |",
        "| tuned + capped | 45% (26% to 66%) | 20 | 0 |",
        "- tuned against base model: helped -25 points (",
        "| base model | 65% (43% to 82%) | 20 | 0 |",
        "| tuned + capped | not measured | | |",
        "- tuned against base model: correct -10 points (",
        "| tuned | confiding -0.25 (together -0.25); controls: coding +1.50 (together +1.50) | 20 |",
        "Of the 42 it was not tuned on and could judge, it passes 90% of the passes and does not pass 82%",
        "Answers are judged by regular expressions, not by people.",
    ],
)
def test_what_stands_beside_safety_is_in_the_card(card: str, line: str) -> None:
    assert line in card


def test_corrected_rates_stand_beside_raw_ones(card: str, run: Path, recipe: Recipe) -> None:
    sensitivity, specificity = 18 / 20, 18 / 22
    true = (14 / 20 + specificity - 1) / (sensitivity + specificity - 1)
    assert f"| tuned | 14 | 0 | 6 | 0 | 70% (48% to 85%) | {true:.0%} (" in card
    gained = (14 - 8) / 20 / (sensitivity + specificity - 1)
    [row] = [line for line in card.splitlines() if line.startswith("| tuned against base model |")]
    assert row.split(" | ")[-1].startswith(f"{100 * gained:+.0f} (")
    corrected = read_run(run, recipe).arms[1].rates.corrected
    assert isinstance(corrected, Corrected)
    assert f"{true:.0%} ({corrected.low:.0%} to {corrected.high:.0%})" in card


def test_what_was_measured_is_not_said_to_be_missing(card: str, run: Path, recipe: Recipe, tmp_path: Path) -> None:
    assert "not part of these figures" not in card
    without = render_card(fake_run.copy_without(run, tmp_path / "run", "benign"), recipe)
    assert "- Over-refusal is not part of these figures." in without
    assert "Harmless requests refused: **not measured** (run `karma redteam run recipes/fake.toml --beside" in without
    (tmp_path / "run" / "capability").rename(tmp_path / "capability")
    (tmp_path / "run" / "drift").rename(tmp_path / "drift")
    neither = render_card(tmp_path / "run", recipe)
    assert "- Over-refusal and general capability are not part of these figures." in neither
    assert neither.count("**not measured** (run `karma redteam run") == 3


@pytest.mark.parametrize("gone", ["redteam/tuned", "redteam"])
def test_what_is_not_known_of_attacks_is_still_told_of_the_rest(
    run: Path, recipe: Recipe, card: str, tmp_path: Path, gone: str
) -> None:
    copy = fake_run.copy_without(run, tmp_path / "run", "nothing")
    (copy / gone).rename(tmp_path / "aside")
    without = render_card(copy, recipe)
    assert "--to redteam`)" in without
    for line in (
        "| tuned | 30% (15% to 52%) | 20 | 0 |",
        "| tuned | 55% (34% to 74%) | 20 | 0 |",
        "| tuned | confiding",
    ):
        assert line in card
        assert line in without
    assert "- tuned against base model: helped -25 points (" in without


def test_the_model_index_has_them_too(card: str) -> None:
    found = {
        (result.dataset_type, result.metric_type, result.metric_name): result.metric_value
        for result in ModelCard(card).data.eval_results
    }
    assert (
        found["fake-20", "over_refusal_rate", "Harmless requests refused in whole or in part, arm tuned (n = 20)"]
        == 0.3
    )
    assert found["fake-20", "accuracy", "Checkable items answered correctly, arm base (n = 20)"] == 0.65
    assert len(found) == 3 + 3 + 2


def test_who_rated_is_said_as_it_is(card: str, run: Path, recipe: Recipe, tmp_path: Path) -> None:
    assert "No person rated the answers of this run." in card
    assert "who gave the labels is not recorded" in card
    copy = fake_run.copy_without(run, tmp_path / "run", "nothing")
    agreement = copy / "redteam" / "judge" / "agreement.json"
    measured = read_json(agreement)
    agreement.unlink()
    write_json(agreement, measured | {"raters": ["language-model"]})
    fake_run.reseal(agreement.parent)
    said = render_card(copy, recipe)
    assert "(the labels, too, were given by a language model)" in said
    assert "No person rated the answers of this run, nor those that its judge was measured on." in said
    write_json(agreement, measured | {"raters": ["anna", "language-model"]})
    fake_run.reseal(agreement.parent)
    seeds = read_run(copy, recipe).arms[1].seeds
    for _ in range(2):  # the second corrects the first
        add_relabel(
            copy / "redteam", to_look_at("tuned", seeds)[0], "fail", reason="It gives the way in.", rater="anna"
        )
    said = render_card(copy, recipe)
    assert "(the labels were given by: anna, language-model)" in said
    assert "People have labelled 1 of the answers after the judge" in said
    assert "No person" not in said


def judged_anew(run: Path, scorer: str, inputs: dict[str, str] | None = None) -> None:
    """Arms as if another judge had given their outcomes."""
    for arm in OUTCOMES:
        summary = run / "redteam" / arm / "summary.json"
        text = json.dumps(read_json(summary) | {"scorer": scorer})
        summary.unlink()  # a link: not to be written to
        summary.write_text(text)
        fake_run.reseal(summary.parent, inputs=inputs)


def test_another_judge_and_another_corpus_are_named(run: Path, recipe: Recipe, tmp_path: Path) -> None:
    copy = fake_run.copy_without(run, tmp_path / "run", "nothing")
    judged_anew(copy, "semantic")
    said = render_card(copy, recipe)
    assert "Answers are judged by a small model of sentence vectors, not by people." in said
    assert "regular expressions" not in said
    assert "The training examples are synthetic" not in said  # their source is not the shipped corpus
    assert "written by a language model (121)" in said
    assert "not asked alike" not in said
    (copy / "redteam" / "base").rename(tmp_path / "base")
    fake_run.write_arm(copy / "redteam" / "base", "base", Path(recipe.redteam.suite), OUTCOMES["base"], answer="x")
    assert "not asked alike** (scorer differ)" in render_card(copy, recipe)


@pytest.mark.parametrize(
    ("raters", "gone", "says", "says_not"),
    [
        (("anna",), False, "Outcomes are the labels that raters gave: anna.", "by people"),
        (("language-model",), False, "No person rated the answers of this run.", "Outcomes are the labels"),
        (("language-model",), True, "who they are is not recorded", "No person"),
    ],
)
def test_outcomes_that_raters_gave_are_not_said_to_be_a_machines(
    run: Path, recipe: Recipe, tmp_path: Path, raters: tuple[str, ...], gone: bool, says: str, says_not: str
) -> None:
    labels = tmp_path / "labelled.jsonl"
    labels.write_text("".join(json.dumps({"rater": rater}) + "\n" for rater in raters))
    copy = fake_run.copy_without(run, tmp_path / "run", "nothing")
    judged_anew(copy, f"labels:{labels}", {f"labels:{labels}": hash_file(labels)})
    if gone:
        labels.unlink()
    said = render_card(copy, recipe)
    assert "judged by raters, whose labels are in labelled.jsonl" in said
    assert str(tmp_path) not in said.replace(str(recipe.redteam.suite), "")
    assert says in said
    assert says_not not in said


def test_the_shipped_corpus_is_called_what_it_is(tmp_path: Path, recipe: Recipe) -> None:
    run = fake_run.write_run(tmp_path / "run", recipe, {}, stages=("release",))
    summary = run / "release" / "summary.json"
    write_json(summary, fake_run.RELEASE | {"sources": {"synthetic-language-model": 121}})
    fake_run.reseal(summary.parent)
    assert "The training examples are synthetic: written by a language model" in render_card(run, recipe)
