"""`karma redteam`: comparing arms on disk, running the red-team alone, rendering the report again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fake_run
from karma_electric.core.artifact import MANIFEST, seal, write_json
from karma_electric.redteam.runner import SUMMARY
from karma_electric.redteam.signals import Outcome
from karma_electric.redteam.stats import wilson
from test_chain import write_workplace
from test_cli import Ended, karma_here

pytestmark = pytest.mark.usefixtures("few_resamples")

Karma = Callable[..., Ended]
N = 60
BASE: list[Outcome] = ["pass"] * 30 + ["fail"] * 24 + ["unscored"] * 6
TUNED: list[Outcome] = ["fail"] * 3 + ["pass"] * 46 + ["fail"] * 8 + ["unscored"] * 3
CAPPED: list[Outcome] = ["pass"] * 31 + ["fail"] * 26 + ["unscored"] * 3


@pytest.fixture
def karma(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Karma:
    monkeypatch.chdir(tmp_path)
    return lambda *words: karma_here(monkeypatch, capsys, "redteam", *words)


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    return fake_run.write_suite(tmp_path / "suite.jsonl", N)


@pytest.fixture
def run(tmp_path: Path, suite: Path) -> Path:
    """Three arms of one seed, and the judge measured beside them."""
    outcomes = {"base": BASE, "tuned": TUNED, "capped": CAPPED}
    fake_run.write_run(tmp_path / "run", fake_run.recipe_for(suite), outcomes, stages=("redteam",))
    fake_run.write_judge(tmp_path / "run" / "redteam" / "judge", suite)
    return tmp_path / "run"


def reseal(arm: Path, *, suite: str | None = None, **changed: Any) -> None:
    """Change keys of an arm's summary, or the suite it was asked, as if it had been made so."""
    summary = json.loads((arm / SUMMARY).read_text()) | changed
    inputs = json.loads((arm / MANIFEST).read_text())["inputs"]
    (arm / MANIFEST).unlink()
    write_json(arm / SUMMARY, summary)
    seal(arm, kind="redteam", config={"arm": arm.name}, inputs={"suite": suite} if suite else inputs)


# What it says


def test_arms_of_a_run_are_compared_with_the_first(karma: Karma, run: Path) -> None:
    ended = karma("compare", run, "base", "tuned", "capped")
    assert ended.code == 0, ended.err
    assert "tuned against base" in ended.out
    assert "capped against base" in ended.out
    assert "base        1        60    30       0   24        6  56% [42%, 68%]" in ended.out
    assert "tuned passed 46 and base 30 of the 54 scenarios scored in both (6 more dropped as unscored)" in ended.out
    assert "tuned passes more often than base on this suite under this scorer" in ended.out
    assert "a difference may not be claimed, nor that they are equal" in ended.out
    assert "exact McNemar test: p = <0.001, 0.002 after Holm for 2" in ended.out
    assert "kappa 0.71" in ended.out
    assert "jailbreak" in ended.out


def test_the_json_report_holds_every_figure_and_is_what_out_writes(karma: Karma, run: Path, tmp_path: Path) -> None:
    ended = karma("compare", run / "redteam" / "base", run / "redteam" / "tuned", "--json", "--out", "report.json")
    report = json.loads(ended.out)
    assert json.loads((tmp_path / "report.json").read_text()) == report
    [pair], [base, tuned] = report["comparisons"], report["arms"]
    assert (pair["a"], pair["b"], base["name"], tuned["name"]) == ("base", "tuned", "base", "tuned")
    result = pair["result"]
    assert (result["only_a_passed"], result["only_b_passed"], result["n_pairs"], result["n_unscored"]) == (3, 19, 54, 6)
    assert result["difference"] == pytest.approx(16 / 54)
    assert result["interval"][0] < 16 / 54 < result["interval"][1]
    assert result["bounds"] == pytest.approx(
        {"all_fail": 16 / 60, "all_pass": 13 / 60, "lowest": 10 / 60, "highest": 19 / 60}
    )
    assert (base["scored"]["low"], base["scored"]["high"]) == pytest.approx(wilson(30, 54))
    assert (base["all_fail"], base["all_pass"]) == (0.5, 0.6)
    # 18 of 20 passes passed, 18 of 22 others not: (30/54 + s - 1) / (t + s - 1)
    sensitivity, specificity = report["judge"]["sensitivity"], report["judge"]["specificity"]
    assert base["corrected"]["value"] == pytest.approx((30 / 54 + specificity - 1) / (sensitivity + specificity - 1))
    assert base["corrected"]["high"] - base["corrected"]["low"] > base["scored"]["high"] - base["scored"]["low"]
    assert pair["corrected"]["value"] == pytest.approx(16 / 54 / (sensitivity + specificity - 1))
    assert result["smallest_effect"] > 0.1
    assert result["scenarios_needed"]["0.05"] > result["scenarios_needed"]["0.1"] > N
    assert set(base["folder"].split("/")) >= {"redteam", "base"}


def test_categories_are_corrected_as_statsmodels_does(karma: Karma, run: Path) -> None:
    from statsmodels.stats.multitest import multipletests

    categories = json.loads(karma("compare", run, "base", "tuned", "--json").out)["comparisons"][0]["categories"]
    assert len(categories) == 3
    raw = [category["p_value"] for category in categories]
    assert [c["p_holm"] for c in categories] == pytest.approx(list(multipletests(raw, method="holm")[1]))
    assert sum(category["n_pairs"] for category in categories) == 54
    assert all(category["smallest_p"] <= category["p_value"] for category in categories)


@pytest.mark.slow
def test_one_bootstrap_seed_gives_one_report_and_another_nearly_the_same(karma: Karma, run: Path) -> None:
    first, again, other = (
        json.loads(karma("compare", run, "base", "tuned", "--json", "--seed", seed).out)["comparisons"][0]
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first["result"]["interval"] == pytest.approx(other["result"]["interval"], abs=0.03)
    assert first["corrected"] != other["corrected"]


def test_less_confidence_makes_narrower_intervals(karma: Karma, run: Path) -> None:
    wide, narrow = (
        json.loads(karma("compare", run, "base", "tuned", "--json", "--confidence", c).out)["comparisons"][0]["result"]
        for c in (0.95, 0.8)
    )
    assert narrow["interval"][1] - narrow["interval"][0] < 0.8 * (wide["interval"][1] - wide["interval"][0])


def test_arms_of_two_runs_are_told_apart(karma: Karma, run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "other")
    reseal(tmp_path / "other" / "redteam" / "base", engine="hf")
    ended = karma("compare", run, "base", "other", "base", "tuned")
    assert "other/base against run/base" in ended.out
    assert "other/tuned against run/base" in ended.out


def test_without_a_measured_judge_rates_stay_as_judged(karma: Karma, run: Path) -> None:
    shutil.rmtree(run / "redteam" / "judge")
    ended = karma("compare", run, "base", "tuned")
    assert "No judge's error was measured beside these arms" in ended.out
    assert json.loads(karma("compare", run, "base", "tuned", "--json").out)["judge"] is None


@pytest.mark.parametrize("what", ["scorer", "suite"])
def test_another_judge_or_another_suites_judge_corrects_nothing(
    karma: Karma, run: Path, tmp_path: Path, what: str
) -> None:
    shutil.rmtree(run / "redteam" / "judge")
    other = fake_run.write_suite(tmp_path / "other.jsonl", 3)
    fake_run.write_judge(
        run / "redteam" / "judge",
        other if what == "suite" else tmp_path / "suite.jsonl",
        scorer="model" if what == "scorer" else "signals",
    )
    assert json.loads(karma("compare", run, "base", "tuned", "--json").out)["judge"] is None


# Several seeds


def test_several_seeds_are_paired_by_scenario_and_seed(karma: Karma, tmp_path: Path, suite: Path) -> None:
    fake_run.write_seeds(tmp_path / "a", suite, {0: BASE, 1: TUNED, 2: BASE})
    fake_run.write_seeds(tmp_path / "b", suite, {0: TUNED, 1: TUNED, 2: TUNED})
    ended = karma("compare", "a", "b")
    assert ended.code == 0, ended.err
    assert "b passed 138 and a 106 of the 165 answers to 57 scenarios scored in both (15 more" in ended.out
    assert "exact sign-flip test over scenarios" in ended.out
    assert "a        3        60" in ended.out


def test_a_seed_of_one_arm_only_is_left_out_and_said(karma: Karma, tmp_path: Path, suite: Path) -> None:
    fake_run.write_seeds(tmp_path / "a", suite, {0: BASE, 1: BASE})
    fake_run.write_seeds(tmp_path / "b", suite, {0: TUNED, 1: TUNED, 2: TUNED})
    ended = karma("compare", "a", "b")
    assert "Only b was run under seed 2: left out, since a has no pair for it." in ended.out
    assert json.loads(karma("compare", "a", "b", "--json").out)["comparisons"][0]["result"]["seeds"] == [0, 1]


def test_one_seed_and_several_meet_in_the_one(karma: Karma, run: Path, tmp_path: Path, suite: Path) -> None:
    fake_run.write_seeds(tmp_path / "b", suite, {0: TUNED, 1: TUNED})
    result = json.loads(karma("compare", run / "redteam" / "base", "b", "--json").out)["comparisons"][0]["result"]
    assert (result["seeds"], result["n_pairs"]) == ([0], 54)


def test_one_scenario_is_told_in_the_singular(karma: Karma, tmp_path: Path) -> None:
    suite = fake_run.write_suite(tmp_path / "one.jsonl", 1)
    for arm, outcome in (("a", BASE[:1]), ("b", TUNED[:1])):
        fake_run.write_arm(tmp_path / arm, arm, suite, outcome, answer=arm)
    ended = karma("compare", "a", "b")
    assert ended.code == 0, ended.err
    assert "none with this scenario; " in ended.out
    assert "like it\n" in ended.out


# What it refuses


def refused(ended: Ended, code: int = 2) -> str:
    assert ended.code == code
    assert "Traceback" not in ended.err
    assert ended.out == ""
    return ended.err


def test_arms_asked_different_suites_are_refused(karma: Karma, run: Path, tmp_path: Path) -> None:
    reseal(run / "redteam" / "tuned", suite="f" * 64)
    err = refused(karma("compare", run, "base", "tuned"))
    assert "base and tuned were asked different suites" in err
    assert "60 of their scenario ids are the same" in err
    assert "--suite" in err


def test_arms_without_a_common_scenario_say_so(karma: Karma, run: Path, tmp_path: Path, suite: Path) -> None:
    other = tmp_path / "other.jsonl"
    other.write_text(suite.read_text().replace('"id": "s', '"id": "t'))
    fake_run.write_arm(tmp_path / "x", "x", other, BASE, answer="x")
    assert "they have no scenario in common" in refused(karma("compare", run / "redteam" / "base", "x"))


def test_arms_judged_by_different_scorers_are_refused(karma: Karma, run: Path) -> None:
    reseal(run / "redteam" / "tuned", scorers=["signals-2"])
    assert "that difference would be the judges'" in refused(karma("compare", run, "base", "tuned"))


def test_arms_judged_by_other_labels_are_refused(karma: Karma, run: Path) -> None:
    for arm, spec in (("base", "labels:a.jsonl"), ("tuned", "labels:b.jsonl")):
        reseal(run / "redteam" / arm, scorer=spec, scorers=["labels-1"])
    assert "labels-1 labels:a.jsonl" in refused(karma("compare", run, "base", "tuned"))
    reseal(run / "redteam" / "tuned", scorer="labels:a.jsonl", scorers=["labels-1"])
    assert karma("compare", run, "base", "tuned").code == 0


def test_arms_without_a_common_seed_are_refused(karma: Karma, tmp_path: Path, suite: Path) -> None:
    fake_run.write_seeds(tmp_path / "a", suite, {0: BASE, 1: BASE})
    fake_run.write_seeds(tmp_path / "b", suite, {2: BASE, 3: BASE})
    err = refused(karma("compare", "a", "b"))
    assert "a has the seeds 0, 1 and b 2, 3: none in common to pair" in err


def test_drift_over_all_kinds_stands_apart_from_the_kinds(karma: Karma, run: Path, suite: Path) -> None:
    means = {
        "confiding": 0.5,
        "conversations": 0.25,
        "role-play": 0.0,
        "coding": 1.0,
        "controls": 0.75,
        "planning": 0.5,
    }
    for arm in ("base", "tuned"):
        fake_run.write_drift(run, arm, suite, means)
    out = karma("compare", run, "base", "tuned").out
    told = "confiding +0.50, role-play +0.00 (together +0.25); controls: coding +1.00, planning +0.50 (together +0.75)"
    assert f"    base       {told}\n" in out


def test_other_sampling_is_said_and_not_hidden(karma: Karma, run: Path) -> None:
    arm = run / "redteam" / "tuned"
    sampling = json.loads((arm / SUMMARY).read_text())["sampling"]
    reseal(arm, sampling=sampling | {"temperature": 1.0}, system_prompt="")
    out = karma("compare", run, "base", "tuned").out
    assert "The arms also differ in temperature (0.0 in base, 1.0 in tuned)" in out
    assert "The arms also differ in system_prompt ('Be kind.' in base, '' in tuned)" in out


def test_an_arm_is_not_compared_with_itself(karma: Karma, run: Path, tmp_path: Path) -> None:
    assert "an arm cannot be compared with itself" in refused(karma("compare", run, "base", "base"))
    shutil.copytree(run / "redteam" / "base", tmp_path / "copy")
    assert "hold the same files to the byte" in karma("compare", run / "redteam" / "base", "copy").out


def test_a_whole_run_needs_the_names_of_its_arms(karma: Karma, run: Path) -> None:
    for words in ([run], [run, run / "redteam" / "base"], [run, "base", run], [run, run, "base"]):
        err = refused(karma("compare", *words))
        assert "is a whole run, expected an arm of it" in err
        assert "Arms there: base, capped, tuned" in err


def test_an_unknown_arm_lists_the_known_ones(karma: Karma, run: Path) -> None:
    err = refused(karma("compare", run, "base", "tunde"), 3)
    assert "has no arm 'tunde'" in err
    assert "base, capped, tuned" in err


def test_a_folder_that_is_no_finished_arm_is_refused(karma: Karma, run: Path, tmp_path: Path) -> None:
    base = run / "redteam" / "base"
    (tmp_path / "empty").mkdir()
    assert "empty has no manifest.json: it is not a finished arm" in refused(karma("compare", base, "empty"), 3)
    assert "nowhere does not exist" in refused(karma("compare", base, "nowhere"), 3)
    assert "holds redteam and no summary.json" in refused(karma("compare", base, run / "redteam" / "judge"))
    (base / "verdicts.jsonl").write_text("")
    assert "is damaged: verdicts.jsonl was changed" in refused(karma("compare", base, run / "redteam" / "tuned"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["base"], "1 arm was given, expected at least two"),
        (["base", "tuned", "--confidence", "95"], "--confidence is 95.0, expected 0.5 to 0.999"),
        (["base", "tuned", "--out", "."], "is a folder, expected a file"),
        (["base", "tuned", "--out", "no/where.json"], "does not exist, expected a file"),
    ],
)
def test_what_cannot_be_is_refused(karma: Karma, run: Path, words: list[str], message: str) -> None:
    assert message in refused(karma("compare", run, *words))


# The report


def test_the_report_is_rendered_again_from_the_run(karma: Karma, run: Path, suite: Path, tmp_path: Path) -> None:
    import tomli_w

    recipe = fake_run.recipe_for(suite).model_dump(mode="json", exclude_none=True)
    (run / "recipe.toml").write_text(tomli_w.dumps(recipe))
    assert karma("report", run, "page.html").code == 0
    page = (tmp_path / "page.html").read_text()
    assert "tuned against base" in page
    assert "Corrected for the judge&#39;s error" in page or "Corrected for the judge's error" in page
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == []
    assert karma("report", run, "page.html", "--figures", "figures").code == 0
    assert sorted(path.name for path in tmp_path.rglob("*.png")) == ["categories.png", "outcomes.png"]
    assert "page.html is a file" in refused(karma("report", run, "page.html", "--figures", "page.html"))


def test_a_report_of_what_is_no_run_is_refused(karma: Karma, tmp_path: Path) -> None:
    assert "holds no recipe.toml: it is not a run" in refused(karma("report", ".", "page.html"), 3)
    (tmp_path / "recipe.toml").write_text("")
    assert "is a folder, expected a file" in refused(karma("report", ".", "."))


# Running


@pytest.fixture
def workplace(tmp_path: Path, tiny_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_workplace(tmp_path, tiny_path)
    return tmp_path


def test_arms_are_run_alone_under_several_seeds_and_can_be_compared(karma: Karma, workplace: Path) -> None:
    words = ("run", "tiny.toml", "--arms", "base", "--set", "redteam.temperature=1.0")
    ended = karma(*words, "--seeds", 2, "--json")
    assert ended.code == 0, ended.err
    report = json.loads(ended.out)
    assert report["stages"] == {"redteam/base": "made", "redteam/judge": "made"}
    assert report["redteam"]["base"]["seeds"] == [0, 1]
    assert report["redteam"]["base"]["n"] == 8
    base = workplace / "runs" / "tiny" / "redteam" / "base"
    texts = [(base / f"seed-{seed}" / "completions.jsonl").read_text() for seed in (0, 1)]
    assert texts[0] != texts[1]
    assert json.loads(karma(*words, "--seeds", 2, "--json").out)["stages"]["redteam/base"] == "skipped"
    err = refused(karma(*words, "--seeds", 3))
    assert "seeds: 2 -> 3" in err
    assert karma(*words, "--seeds", 1, "--out", "one").code == 0
    compared = karma("compare", base, "one", "base", "--json")
    assert json.loads(compared.out)["comparisons"][0]["result"]["seeds"] == [0]


def test_one_seed_is_the_stage_it_always_was(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from karma_electric.core.recipe import load_recipe
    from karma_electric.stages import plan_run

    monkeypatch.chdir(workplace)
    plain, one, five = (
        {stage.name: stage for stage in plan_run(load_recipe("tiny.toml", [*more]), Path("runs/tiny"))}
        for more in ((), ["redteam.seeds=1"], ["redteam.seeds=5", "redteam.temperature=0.7"])
    )
    assert "seeds" not in plain["redteam/base"].config
    assert {name: stage.id for name, stage in plain.items()} == {name: stage.id for name, stage in one.items()}
    assert five["redteam/base"].config["seeds"] == 5
    assert five["gguf"].id == plain["gguf"].id


def test_an_arm_whose_model_is_not_there_says_how_to_make_it(karma: Karma, workplace: Path) -> None:
    err = refused(karma("run", "tiny.toml"), 3)
    assert "runs/tiny/merged is not there, and an arm answers with it" in err
    assert "karma run tiny.toml --to merged" in err
    assert not (workplace / "runs").exists()


def test_another_suite_leaves_the_labels_of_the_recipes_own(karma: Karma, workplace: Path) -> None:
    fake_run.write_suite(workplace / "mine.jsonl", 3)
    ended = karma("run", "tiny.toml", "--arms", "base", "--suite", "mine.jsonl", "--dry-run", "--json")
    assert json.loads(ended.out)["stages"] == {"redteam/base": "would be made"}


def test_several_seeds_of_greedy_decoding_are_refused(karma: Karma, workplace: Path) -> None:
    err = refused(karma("run", "tiny.toml", "--arms", "base", "--seeds", 3))
    assert "seeds = 3 with temperature = 0: greedy decoding gives the same answer under every seed" in err
