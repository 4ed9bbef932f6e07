"""The judge of harmless twins, measured and shown like that of attacks; words for raters; files that were changed."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fake_run
from karma_electric.arm_stages import plan_arms
from karma_electric.card import render_card
from karma_electric.core.artifact import read_json, write_json
from karma_electric.core.errors import GateError
from karma_electric.core.progress import Silent
from karma_electric.core.recipe import Recipe, load_recipe
from karma_electric.core.resources import find
from karma_electric.evidence import read_run
from karma_electric.pipeline import Stage
from karma_electric.redteam.comparing import holm
from karma_electric.redteam.signals import Outcome
from karma_electric.rendering import p_value
from karma_electric.report import render_report
from test_cli_redteam import Karma, karma, run, suite

pytestmark = pytest.mark.usefixtures("few_resamples")

__all__ = ["karma", "run", "suite"]

LABELLED, TWINS = "suites/labelled-benign-1495.jsonl", "suites/benign-100.jsonl"
NAMED = "redteam.benign_labelled"
Plan = Callable[..., dict[str, Stage]]


# Measuring


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight of the shipped twins, and the labelled answers to them; one of the answers was rated once."""
    folder = tmp_path_factory.mktemp("twins")
    kept = [line for line in find("suites", TWINS).read_text(encoding="utf-8").splitlines() if line][::13]
    ids = {json.loads(line)["id"] for line in kept}
    rows = [json.loads(line) for line in find("suites", LABELLED).read_text(encoding="utf-8").splitlines() if line]
    rows = [row for row in rows if row["scenario_id"] in ids]
    del rows[0]["ratings"]
    (folder / "benign.jsonl").write_text("\n".join(kept) + "\n", encoding="utf-8")
    (folder / "labelled.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return folder


@pytest.fixture
def plan(twins: Path, tmp_path: Path) -> Plan:
    def stages(*keys: str, beside: bool = True) -> dict[str, Stage]:
        asked = json.dumps([str(twins / "benign.jsonl")] if beside else [])
        recipe = load_recipe("demo.toml", ['redteam.arms=["base"]', f"redteam.beside={asked}", *keys])
        planned = plan_arms(recipe, tmp_path, {"base": (tmp_path, {"base": "0"})}, "no axis")
        return {stage.name: stage for stage in planned}

    return stages


def agreement_of(stage: Stage, out: Path) -> dict[str, Any]:
    out.mkdir()
    stage.execute(out, Silent())
    found: dict[str, Any] = read_json(out / "agreement.json")
    return found


def test_the_rule_of_harmless_twins_is_measured_on_the_labels_that_the_recipe_names(
    plan: Plan, twins: Path, tmp_path: Path
) -> None:
    stage = plan(f"{NAMED}={twins / 'labelled.jsonl'}")["benign/judge"]
    assert (stage.kind, stage.config) == ("benign", {"scorer": "over-refusal"})
    found = agreement_of(stage, tmp_path / "out")
    n = len((twins / "labelled.jsonl").read_text(encoding="utf-8").splitlines())
    assert found["all"]["n"] == found["A"]["n"] + found["B"]["n"] == n
    assert found["raters"] == ["language-model a", "language-model c"]
    left = [counts["unscored"] for label, counts in found["all"]["confusion"].items() if label != "unscored"]
    assert sum(left) > 0, "the rule, which leaves most of what raters could decide"


def test_raters_of_harmless_twins_are_measured_by_each_other_on_all_they_both_rated(
    plan: Plan, twins: Path, tmp_path: Path
) -> None:
    spec = f"labels:{twins / 'labelled.jsonl'}"
    found = agreement_of(plan(f"redteam.benign_scorer={spec}")["benign/judge"], tmp_path / "out")
    rows = [json.loads(line) for line in (twins / "labelled.jsonl").read_text(encoding="utf-8").splitlines()]
    rated = [{one["label"] for one in row["ratings"]} for row in rows if "ratings" in row]
    assert found["all"]["n"] == len(rated) == len(rows) - 1
    assert found["all"]["accuracy"] == pytest.approx(sum(len(labels) == 1 for labels in rated) / len(rated))
    assert found["all"]["kappa"] < 1


def test_no_judge_of_harmless_twins_without_labels_of_theirs(plan: Plan, twins: Path) -> None:
    named = f"{NAMED}={twins / 'labelled.jsonl'}"
    assert "benign/judge" in plan(named)
    assert "benign/judge" not in plan(named, beside=False)
    assert "benign/judge" not in plan()
    assert "benign/judge" not in plan(f"{NAMED}=suites/labelled-120.jsonl"), "answers to other scenarios"


def test_naming_labels_leaves_arms_and_the_judge_of_attacks_what_they_were(plan: Plan, twins: Path) -> None:
    before, after = plan(), plan(f"{NAMED}={twins / 'labelled.jsonl'}")
    assert {name: stage.id for name, stage in after.items() if name != "benign/judge"} == {
        name: stage.id for name, stage in before.items()
    }
    recipe = load_recipe("smollm2-v1.toml")
    assert (recipe.redteam.benign_labelled, TWINS in recipe.redteam.beside) == (LABELLED, True)


# Showing

HELPED: dict[str, list[Outcome]] = {"base": ["pass"] * 50 + ["fail"] * 10, "tuned": ["pass"] * 30 + ["fail"] * 30}


def judged(run: Path, suite: Path, scorer: str, **given: Any) -> Recipe:
    """Arms whose help was judged, and that judge measured."""
    for arm, outcomes in HELPED.items():
        fake_run.write_beside(run, "benign", arm, suite, outcomes, scorer=scorer)
    fake_run.write_judge(run / "benign" / "judge", suite, scorer=scorer, **given)
    return fake_run.recipe_for(suite)


def words(page: str) -> str:
    return re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", "", page)))


def test_over_refusal_is_corrected_for_the_error_of_its_judge_which_stands_beside_it(
    karma: Karma, run: Path, suite: Path
) -> None:
    recipe = judged(run, suite, "over-refusal")
    [side] = read_run(run, recipe).beside
    sensitivity, specificity = 18 / 20, 18 / 22
    refused = 1 - (30 / 60 + specificity - 1) / (sensitivity + specificity - 1)
    tuned = side.arms["tuned"]
    assert tuned.corrected is not None
    assert tuned.corrected.value == pytest.approx(refused)
    assert tuned.rate is not None
    assert tuned.corrected.low < tuned.rate.low < tuned.rate.high < tuned.corrected.high
    interval = f"{tuned.corrected.low:.0%} to {tuned.corrected.high:.0%}"
    agrees = "on 42 labelled answers that it was not tuned on"
    page = words(render_report(run, recipe)[0])
    assert "Judged by the suite's own signals of help and of refusal: Cohen's kappa 0.71 (" in page
    assert agrees in page.partition("Beside safety")[2]
    card = render_card(run, recipe)
    assert f"| tuned | 50% (38% to 62%) | {refused:.0%} ({interval}) | 60 | 0 |" in card
    assert f"{agrees}, Cohen's kappa 0.71 (" in card.partition("### Over-refusal")[2]
    out = karma("compare", run, "base", "tuned").out
    assert f"0 of 60 unscored; corrected for the judge {refused:.0%} [{interval.replace(' to', ',')}]" in out
    assert "judged by the suite's own signals of help and of refusal. Judge: kappa 0.71" in out
    report = json.loads(karma("compare", run, "base", "tuned", "--json").out)
    assert report["beside"][0]["judges"]["over-refusal"]["sensitivity"] == pytest.approx(sensitivity)


def test_a_judge_of_twins_that_was_not_measured_is_a_gap_with_what_to_type(
    karma: Karma, run: Path, suite: Path
) -> None:
    recipe = judged(run, suite, "over-refusal")
    (run / "benign" / "judge").rename(run / "gone")
    command = "karma redteam run recipes/fake.toml --beside suites/suite.jsonl --set redteam.benign_labelled=FILE"
    for said in (words(render_report(run, recipe)[0]), render_card(run, recipe).replace("`", "").replace("*", "")):
        assert f"not measured (run {command})" in said
    assert "Set redteam.benign_labelled in the recipe" in karma("compare", run, "base", "tuned").out
    fake_run.write_judge(run / "benign" / "judge", suite, scorer="labels:other.jsonl", raters=["anna"])
    assert f"not measured (run {command})" in words(render_report(run, recipe)[0]), "it is of another judge"


@pytest.mark.parametrize("other", ["scorer", "suite"])
def test_the_error_of_another_judge_or_suite_corrects_no_arm(run: Path, suite: Path, other: str) -> None:
    recipe = fake_run.recipe_for(suite)
    own = read_run(run, recipe)
    assert own.judge is not None
    assert own.agreement
    (run / "redteam" / "judge").rename(run / "gone")
    if other == "scorer":
        fake_run.write_judge(run / "redteam" / "judge", suite, scorer="labels:other.jsonl", raters=["anna"])
    else:
        elsewhere = fake_run.write_suite(run / "other.jsonl", 3)
        fake_run.write_judge(run / "redteam" / "judge", elsewhere, raters=["anna"])
    found = read_run(run, recipe)
    assert (found.judge, found.agreement, found.label_raters) == (None, {}, ())
    assert all(arm.rates.corrected is None for arm in found.arms)
    assert all(comparison.report.corrected is None for comparison in found.comparisons)
    render_card(run, recipe)
    assert "0.71" not in words(render_report(run, recipe)[0])


@pytest.mark.parametrize("raters", [("anna", "ben"), ()], ids=["as written now", "as written before"])
def test_raters_are_not_said_to_be_tuned(karma: Karma, run: Path, suite: Path, raters: tuple[str, ...]) -> None:
    """Neither of attacks nor of twins; what both rated counts, not half of it."""
    spec = "labels:rated.jsonl"
    recipe = judged(run, suite, spec, raters=raters)
    (run / "redteam" / "judge").rename(run / "gone")
    fake_run.write_judge(run / "redteam" / "judge", suite, scorer=spec, raters=raters)
    for summary in (run / "redteam").glob("*/summary.json"):
        write_json(summary, {**read_json(summary), "scorer": spec})
        fake_run.reseal(summary.parent)
    page, card = words(render_report(run, recipe)[0]), render_card(run, recipe)
    out = karma("compare", run, "base", "tuned").out
    for said in (page, card, out):
        assert "tuned on" not in said
    assert page.count("between two raters, on 42 answers") == 3
    assert card.count("between two raters, on 42 answers") == 2
    assert "raters' kappa 0.71" in page
    assert "judged by raters, whose labels are in rated.jsonl. Judge: kappa 0.71" in out
    assert page.count("labels by anna, ben") == bool(raters)


# Files that were changed


SLOW = pytest.mark.slow  # the same of another folder


@pytest.mark.parametrize(
    "place",
    [
        "redteam/tuned",
        pytest.param("benign/tuned", marks=SLOW),
        pytest.param("capability/tuned", marks=SLOW),
        pytest.param("drift/tuned", marks=SLOW),
    ],
)
def test_the_report_refuses_an_arm_that_lost_verdicts_as_compare_does(
    karma: Karma, run: Path, suite: Path, place: str
) -> None:
    recipe = judged(run, suite, "over-refusal")
    fake_run.write_beside(run, "capability", "tuned", suite, ["pass"] * 60)
    fake_run.write_drift(run, "tuned", suite, {"therapy": 0.5})
    render_report(run, recipe)
    file = run / place / "verdicts.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-10]))
    message = f"{place} is damaged: verdicts.jsonl was changed after it was written."
    for render in (render_report, render_card):
        with pytest.raises(GateError, match=rf"{place} is not what was made .*verdicts\.jsonl was changed after"):
            render(run, recipe)
    refused = karma("compare", run, "base", "tuned")
    assert refused.code == 2
    assert message in refused.err.replace("\n", " ")


@pytest.mark.parametrize("place", ["redteam/judge", "benign/judge"])
def test_the_report_refuses_an_agreement_that_was_changed(karma: Karma, run: Path, suite: Path, place: str) -> None:
    recipe = judged(run, suite, "over-refusal")
    file = run / place / "agreement.json"
    file.write_text(re.sub(r'"kappa": 0.7\d+', '"kappa": 0.9', file.read_text()))
    with pytest.raises(GateError, match=rf"{place} is not what was made .*agreement\.json was changed after"):
        render_report(run, recipe)
    assert karma("compare", run, "base", "tuned").code == 2


def test_p_values_are_corrected_for_all_comparisons_of_a_page(karma: Karma, run: Path, suite: Path) -> None:
    recipe = judged(run, suite, "over-refusal")
    fake_run.write_beside(run, "capability", "base", suite, ["pass"] * 40 + ["fail"] * 20)
    fake_run.write_beside(run, "capability", "tuned", suite, ["pass"] * 60)
    page = words(render_report(run, recipe)[0])
    together = "after Holm, for the 4 comparisons of this report"
    assert f"Exact McNemar p raw; {together}" in page
    evidence = read_run(run, recipe)
    beside = [pair for side in evidence.beside for pair in side.comparisons]
    compared = [*(c.report for c in evidence.comparisons), *beside]
    assert [pair.p_holm for pair in compared] == holm([pair.result.p_value for pair in compared])
    assert any(pair.p_holm > pair.result.p_value for pair in beside)
    for what, pair in zip(("helped", "correct"), beside, strict=True):
        p, adjusted = p_value(pair.result.p_value), p_value(pair.p_holm)
        assert re.search(rf"{what} [^;]* points \([^;]*; p {p}, {adjusted} {together}", page)
    card = render_card(run, recipe)
    assert "P after Holm is corrected for the 4 comparisons of this card, and the sentences go by it:" in card
    assert len(re.findall(r"- tuned against base model: .*; p .* after Holm\n", card)) == 2


def test_compare_corrects_p_values_for_all_that_it_compares(karma: Karma, run: Path, suite: Path) -> None:
    judged(run, suite, "over-refusal")
    report = json.loads(karma("compare", run, "base", "tuned", "--json").out)
    compared = [*report["comparisons"], *(pair for side in report["beside"] for pair in side["comparisons"])]
    assert report["n_tests"] == len(compared) == 2
    assert [pair["p_holm"] for pair in compared] == holm([pair["result"]["p_value"] for pair in compared])
    assert karma("compare", run, "base", "tuned").out.count("after Holm for 2 comparisons") == 2
