"""docs/evidence.md: its statements follow from the figures, whichever way they fall."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

import evidence_page
import fake_run
from evidence_page.facts import Facts, facts_of, on_one_page
from karma_electric.core.artifact import read_json, write_json
from karma_electric.core.recipe import Recipe
from karma_electric.redteam.agreement import agreement
from karma_electric.redteam.comparing import holm
from karma_electric.redteam.drift_figures import DRIFT
from karma_electric.redteam.signals import Outcome

ROOT = Path(__file__).resolve().parent.parent
N = 100
Build = Callable[..., Facts]


def first(passes: int, otherwise: Outcome = "fail") -> list[Outcome]:
    """The first so many pass."""
    return ["pass"] * passes + [otherwise] * (N - passes)


def judges(*, right: int) -> dict[str, Any]:
    """What the benchmark of judges writes, of one that is right on so many in 20 outputs of each label."""
    labels: list[Outcome] = (["pass"] * 20 + ["fail"] * 20) * 2
    judged: list[Outcome] = (["pass"] * right + ["fail"] * 20 + ["pass"] * (20 - right)) * 2
    found = asdict(agreement(labels, judged, groups=[str(number) for number in range(80)]))
    return {"judges": [{"spec": "signals", "half B": found, "outputs": found}]}


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return fake_run.recipe_for(fake_run.write_suite(tmp_path_factory.mktemp("suite") / "fake.jsonl", N))


@pytest.fixture
def build(tmp_path: Path, recipe: Recipe, few_resamples: None) -> Build:
    suite = Path(recipe.redteam.suite)

    def make(kinds: Mapping[str, Mapping[str, list[Outcome]]], measured: Mapping[str, Any]) -> Facts:
        run = tmp_path / "fake"
        fake_run.write_run(run, recipe, kinds["redteam"], stages=("redteam",))
        fake_run.write_judge(run / "redteam" / "judge", suite)
        for kind in ("benign", "capability"):
            for arm, outcomes in kinds.get(kind, {}).items():
                fake_run.write_beside(run, kind, arm, suite, outcomes)
        return facts_of(run, recipe, measured)

    return make


def said(facts: Facts, section: str) -> str:
    return "\n".join(evidence_page.SECTIONS[section](facts))


def test_the_page_says_what_the_results_say() -> None:
    page = (ROOT / evidence_page.PAGE).read_text(encoding="utf-8")
    assert evidence_page.with_evidence(page, ROOT) == page
    for mark in ("begin", "end"):
        assert page.count(f"<!-- evidence: {mark} ") == len(evidence_page.SECTIONS) + len(evidence_page.WIDER) + 1, (
            "and the releases"
        )


SAFER = {"redteam": {"base": first(10), "tuned": first(50), "capped": first(50)}}


def test_a_difference_that_survives_everything_is_supported(build: Build) -> None:
    facts = build(SAFER, judges(right=19))
    assert "- tuned passes the attacks, more often than base: tuned against base +40 points" in said(facts, "supports")
    assert "tuned against base, attacks passed:" not in said(facts, "does-not")
    assert "kappa" not in said(facts, "does-not")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("measured", "reason"),
    [
        ({}, "how far the judge is right on outputs of the embedded model was not measured"),
        (judges(right=12), "corrected for the judge's error on outputs of the embedded model it is"),
        (judges(right=9), "the judge is no better than chance"),
    ],
)
def test_a_difference_that_its_judge_may_have_made_is_not(
    build: Build, measured: Mapping[str, Any], reason: str
) -> None:
    facts = build(SAFER, measured)
    assert said(facts, "supports") == "No difference between arms on this page meets the rules."
    [line] = [line for line in said(facts, "does-not").splitlines() if "tuned against base, attacks passed:" in line]
    assert "as judged +40 points" in line
    assert reason in line


@pytest.mark.slow
def test_a_difference_that_the_unscored_could_turn_round_is_not(build: Build) -> None:
    open_: list[Outcome] = [*first(30)[:40], *["unscored"] * 60]
    arms = {"base": [*first(10)[:40], *["unscored"] * 60], "tuned": open_, "capped": open_}
    facts = build({"redteam": arms}, judges(right=19))
    assert "passes the attacks" not in said(facts, "supports")
    assert "but the unscored answers could make it anything from -40 to +80 points" in said(facts, "does-not")
    assert "base: 60 of 100 answers to attacks are unscored" in said(facts, "does-not")


@pytest.mark.slow
def test_where_the_cap_harms_and_does_nothing_is_said(build: Build) -> None:
    kinds = {
        **SAFER,
        "benign": {arm: first(70) for arm in ("base", "tuned", "capped")},
        "capability": {"base": first(60), "tuned": first(60), "capped": first(20)},
    }
    capping = said(build(kinds, judges(right=19)), "capping")
    assert "**capability: the cap harms**, -40 points" in capping
    assert "**capability, jailbreak: worse with the cap, a lead and no finding**" in capping
    assert "**help with harmless requests: the cap does nothing of any size.** Whatever there is lies within" in capping
    assert "**drift**: *not measured* (`karma redteam run" in capping


@pytest.mark.slow
@pytest.mark.parametrize(
    ("lost", "words"),
    [
        (9, "**attacks passed: the cap may harm.** The difference, -8 points"),  # p = 0.021, one of six tests
        (16, "**attacks passed: the cap harms**, -15 points"),
    ],
)
def test_what_would_count_alone_is_said_so(build: Build, lost: int, words: str) -> None:
    worse = [*first(60 - lost)[:60], *first(1)[:40]]
    facts = build({"redteam": {"base": first(60), "tuned": first(60), "capped": worse}}, judges(right=19))
    assert words in said(facts, "capping")


@pytest.mark.slow
def test_failing_is_told_from_not_passing(build: Build) -> None:
    """More answers that can be judged and are failed: by the pass rate nothing, by the failures something."""
    base: list[Outcome] = ["unscored"] * 60 + ["partial"] * 40
    tuned: list[Outcome] = ["fail"] * 60 + ["partial"] * 40
    facts = build({"redteam": {"base": base, "tuned": tuned, "capped": tuned}}, judges(right=19))
    supported = said(facts, "supports")
    assert "- tuned fails the attacks, of all answers, more often than base: tuned against base +60 points" in supported
    assert "where both could be scored" not in supported
    assert "tuned against base, attacks passed: no difference" in said(facts, "does-not")
    assert "both rates lie within 5 points of 0" in said(facts, "does-not")


def test_what_another_run_of_the_page_found_stands_beside(build: Build) -> None:
    one = build(SAFER, judges(right=19))
    arms = {"redteam": {"base": first(10), "tuned": first(10), "capped": first(10)}}
    one.run.rename(one.run.with_name("first"))
    other = build(arms, judges(right=19))
    supported = said(on_one_page([one, other])[0], "supports")
    assert "Not found in `fake`: 0 points (" in supported
    assert "Found in `fake`: +40 points (" in said(on_one_page([one, one])[0], "supports")


def test_who_told_help_from_refusal_is_said_with_their_agreement(build: Build) -> None:
    facts = build({**SAFER, "benign": {"base": first(70), "tuned": first(50, "unscored")}}, {})
    told = said(facts, "over-refusal")
    assert "| base | 30% (22% to 40%) | 100 | 70 | 0 | 30 | 0 |" in told
    assert "| 100 | 50 | 0 | 0 | 50 |" in told
    assert "the unscored counted: base 70% helped and 30% refused; tuned 50% helped and 0% refused in whole" in told
    assert "Judged by `over-refusal`: how far it agrees with raters is *not measured*" in told
    labels: list[Outcome] = ["pass"] * 40 + ["fail"] * 40
    rule: list[Outcome] = ["pass"] * 30 + ["unscored"] * 10 + ["fail"] * 40
    scenarios = [str(number) for number in range(80)]
    measured = {
        "labelled": {"rated.jsonl": "..."},
        "raters": asdict(agreement(labels, labels, groups=scenarios)),
        "judges": [{"spec": "over-refusal", "all": asdict(agreement(labels, rule, groups=scenarios))}],
    }
    assert "it agrees with raters of 80 answers of these arms at kappa 0.78" in said(
        replace(facts, refusals=measured), "over-refusal"
    )
    section = facts.recipe.redteam.model_copy(update={"benign_scorer": "labels:suites/rated.jsonl"})
    rated = replace(facts.evidence, recipe=facts.recipe.model_copy(update={"redteam": section}))
    told = said(replace(facts, evidence=rated, refusals=measured), "over-refusal")
    assert "`labels:suites/rated.jsonl`: two of them agree on 80 answers at kappa 1.00" in told
    assert "leaves 10 of the 80 unscored that they could decide" in told
    others = replace(facts, evidence=rated, refusals={**measured, "labelled": {"others.jsonl": "..."}})
    assert "how far two of them agree is *not measured*" in said(others, "over-refusal")


def test_every_gap_names_the_command(build: Build) -> None:
    facts = build(SAFER, {})
    for section, suite in (("over-refusal", "benign-100"), ("capability", "capability-150"), ("drift", "drift-24")):
        assert said(facts, section) == (
            f"*not measured* (`karma redteam run recipes/fake.toml --beside suites/{suite}.jsonl`)"
        )
    assert "`python benchmarks/judges.py`" in said(facts, "judges")
    assert "`karma run recipes/fake.toml --to axis`" in said(facts, "cap")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moving", "words"),
    [(-0.5, "**that is about the persona**"), (0.0, "**nothing shows that this is about the persona**")],
)
def test_drift_that_falls_in_controls_alike_is_not_about_the_persona(
    build: Build, recipe: Recipe, moving: float, words: str
) -> None:
    run = build(SAFER, judges(right=19)).run
    for arm in ("tuned", "capped"):
        fake_run.write_drift(run, arm, Path(recipe.redteam.suite), {})
        fake_run.write_drifts(run / "drift" / arm, 0.0)
        fake_run.reseal(run / "drift" / arm)
    raw = read_json(run / "drift" / "capped" / DRIFT)
    fall = {
        name: value - 0.4 - 0.03 * int(name.split(" seed")[0][-1]) + (moving if "confiding" in name else 0)
        for name, value in raw["conversations"].items()
    }
    write_json(run / "drift" / "capped" / DRIFT, raw | {"conversations": fall})
    fake_run.reseal(run / "drift" / "capped")
    facts = facts_of(run, fake_run.recipe_for(Path("x")), judges(right=19))
    capping = said(facts, "capping")
    assert "**drift in controls: the cap lowers it**, -0.46 sd" in capping
    assert words in capping
    assert "The wider suite of attacks was not asked" in said(facts, "does-not")
    assert "| confiding | +0.78 sd" in said(facts, "drift")
    assert "drifts less" not in said(facts, "supports")
    assert "No finding: a cap lowers drift by construction." in said(facts, "does-not")


def test_p_values_of_two_runs_on_one_page_are_corrected_together(build: Build) -> None:
    one = build({"redteam": {"base": first(10), "tuned": first(17), "capped": first(17)}}, judges(right=19))
    both = on_one_page([one, one])
    raw = [effect.report.result.p_value for effect in one.effects] * 2
    assert [effect.p for facts in both for effect in facts.effects] == holm(raw)
    assert both[0].effects[0].p > one.effects[0].p
    assert "p after Holm counts the 12 tests of this page" in said(both[1], "comparisons")
    assert "The wider suite of attacks was not asked" in said(both[0], "does-not")
    asked = on_one_page([one, replace(one, wider_suite=True)])
    assert "wider suite" not in said(asked[0], "does-not")
