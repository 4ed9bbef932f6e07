"""Arms on suites of other kinds, what stands beside safety, and verdicts that a person corrects."""

from __future__ import annotations

import builtins
import json
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

import fake_run
import tiny
from karma_electric.arm_stages import plan_arms
from karma_electric.core.artifact import MANIFEST, content_hash, damage, read_manifest, seal
from karma_electric.core.progress import Silent
from karma_electric.core.recipe import load_recipe
from karma_electric.core.resources import find
from karma_electric.pipeline import run_stages
from karma_electric.redteam.labelled import load_labelled
from karma_electric.redteam.scenario import load_suite
from karma_electric.report import render_report
from test_chain import write_workplace
from test_cli import karma_here
from test_cli_redteam import Karma, karma, run, suite

pytestmark = pytest.mark.usefixtures("few_resamples")

__all__ = ["karma", "run", "suite"]


@pytest.fixture
def workplace(tmp_path: Path, tiny_path: Path) -> Path:
    write_workplace(tmp_path, tiny_path)
    for name in ("benign-100", "capability-150"):
        lines = find("suites", f"suites/{name}.jsonl").read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if len(json.loads(line).get("turns", "1")) == 1 and '"code"' not in line][:6]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(kept) + "\n", encoding="utf-8")
    return tmp_path


def test_every_kind_of_suite_is_asked_with_its_own_judge_and_figure(karma: Karma, workplace: Path) -> None:
    words = ("run", "tiny.toml", "--arms", "base", "--beside", "benign-100.jsonl", "--beside", "capability-150.jsonl")
    ended = karma(*words, "--scorer", "semantic", "--json")
    assert ended.code == 0, ended.err
    report = json.loads(ended.out)
    assert report["stages"] == {
        "redteam/base": "made",
        "benign/base": "made",
        "capability/base": "made",
        "redteam/judge": "made",
    }
    assert report["redteam"]["base"]["scorer"] == "semantic"
    assert report["benign"]["base"]["scorer"] == "over-refusal"
    assert 0 <= report["benign"]["base"]["over_refusal"]["rate"]["low"] <= 1
    assert report["capability"]["base"]["scorers"] == ["capability-1"]
    assert report["capability"]["base"]["n"] == 6
    run_dir = workplace / "runs" / "tiny"
    assert damage(run_dir / "benign" / "base") == []
    table = karma(*words, "--scorer", "semantic").out
    assert "over-refusal" in table
    assert "correct of checked" in table
    assert "scorer: semantic" in karma(*words, "--scorer", "signals").err.replace('"', "").replace("->", "")


def test_another_judge_reads_the_same_answers_without_asking_again(karma: Karma, workplace: Path) -> None:
    words = ("run", "tiny.toml", "--arms", "base", "--set", "redteam.temperature=1.0", "--seeds", 2)
    first = karma(*words, "--json")
    assert first.code == 0, first.err
    other = karma(*words, "--original-verdicts", "--out", "other", "--json")
    assert "only judged anew" in other.err + other.out
    base = Path("redteam") / "base" / "seed-1" / "completions.jsonl"
    assert (workplace / "other" / base).read_bytes() == (workplace / "runs" / "tiny" / base).read_bytes()
    longer = karma(*words, "--set", "redteam.max_new_tokens=7", "--out", "longer", "--json")
    assert "only judged anew" not in longer.err + longer.out


def test_a_model_that_was_made_again_is_asked_again(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its id is that of its recipe, and stays; its weights need not."""
    monkeypatch.chdir(workplace)
    recipe = load_recipe("tiny.toml", ['redteam.arms=["tuned"]', 'redteam.labelled=""'])
    run = workplace / "run"

    def merged(seed: int) -> str:
        shutil.rmtree(run / "merged", ignore_errors=True)
        tiny.write_checkpoint(run / "merged", seed=seed)
        seal(run / "merged", kind="merged", config={"one": 1}, inputs={})
        return read_manifest(run / "merged").id

    def answers(**options: Any) -> tuple[str, bytes]:
        models = {"tuned": (run / "merged", {"merged": read_manifest(run / "merged").id})}
        done = run_stages(run, plan_arms(recipe, run, models, "no axis"), progress=Silent(), **options)
        arm = run / "redteam" / "tuned"
        assert read_manifest(arm).parents == {"merged": content_hash(read_manifest(run / "merged"))}
        return dict(done)["redteam/tuned"], (arm / "completions.jsonl").read_bytes()

    first = merged(0)
    old = answers()
    assert answers() == ("skipped", old[1])
    assert merged(7) == first
    made, new = answers(force=True)
    assert made == "made"
    assert new != old[1]
    recipe = load_recipe("tiny.toml", ['redteam.arms=["tuned"]', 'redteam.labelled=""', 'redteam.scorer="semantic"'])
    assert answers(force=True) == ("made", new)  # another judge asks nothing
    (run / "redteam" / "tuned" / MANIFEST).write_text("{")
    assert answers(force=True) == ("made", new)  # of a damaged manifest nothing is kept, and it is no hindrance


def test_raters_may_judge_harmless_twins_without_the_arms_being_asked_again(karma: Karma, workplace: Path) -> None:
    """All that the sheet's two raters say refused is counted so, under the suite's own figure."""
    words = ("run", "tiny.toml", "--arms", "base", "--suite", "benign-100.jsonl")
    first = karma(*words, "--json")
    assert first.code == 0, first.err
    base = workplace / "runs" / "tiny" / "benign" / "base"
    sheet = karma("sheet", base, "--suite", "benign-100.jsonl", "--out", "sheet.jsonl")
    assert sheet.code == 0, sheet.err
    ids = [json.loads(line)["id"] for line in (workplace / "sheet.jsonl").read_text().splitlines()]
    for rater in ("anna", "ben"):
        ratings = [
            {"id": id_, "label": "fail" if n < 2 else "pass", "reason": f"read by {rater}"} for n, id_ in enumerate(ids)
        ]
        (workplace / f"{rater}.jsonl").write_text("".join(json.dumps(rating) + "\n" for rating in ratings))
    assert karma("rated", "sheet.jsonl", "anna.jsonl", "ben.jsonl", "--out", "labelled.jsonl").code == 0
    rated = karma(*words, "--benign-scorer", "labels:labelled.jsonl", "--out", "rated", "--json")
    assert rated.code == 0, rated.err
    assert "only judged anew" in rated.err + rated.out
    summary = json.loads(rated.out)["benign"]["base"]
    assert summary["scorer"] == "labels:labelled.jsonl"
    assert summary["counts"] == {"pass": 4, "partial": 0, "fail": 2, "unscored": 0}
    assert summary["over_refusal"]["rate"]["value"] == pytest.approx(1 / 3)
    (workplace / "labelled.jsonl").write_text((workplace / "labelled.jsonl").read_text().replace("fail", "pass"))
    again = karma(*words, "--benign-scorer", "labels:labelled.jsonl", "--out", "rated")
    assert again.code != 0, "other labels under the same name are another judge"
    assert "--force" in again.err
    attacks = karma("run", "tiny.toml", "--arms", "base", "--benign-scorer", "signals")
    assert attacks.code == 2
    assert "redteam.benign_scorer" in attacks.err


def test_a_benign_suite_alone_is_not_judged_as_an_attack(karma: Karma, workplace: Path) -> None:
    words = ("run", "tiny.toml", "--arms", "base", "--suite", "benign-100.jsonl")
    ended = karma(*words, "--json")
    assert ended.code == 0, ended.err
    assert json.loads(ended.out)["stages"] == {"benign/base": "made"}


def test_the_originals_verdicts_never_leave_an_answer_unscored(karma: Karma, workplace: Path) -> None:
    ended = karma("run", "tiny.toml", "--arms", "base", "--original-verdicts", "--json")
    assert ended.code == 0, ended.err
    base = json.loads(ended.out)["redteam"]["base"]
    assert base["scorer"] == "signals-original"
    assert base["counts"]["unscored"] == 0
    both = karma("run", "tiny.toml", "--arms", "base", "--original-verdicts", "--scorer", "semantic")
    assert both.code == 2
    assert "two judges" in both.err


@pytest.mark.parametrize("scorer", ["nobody", "llm:", "ensemble:signals"])
def test_an_unknown_judge_is_refused_before_anything_is_asked(karma: Karma, workplace: Path, scorer: str) -> None:
    ended = karma("run", "tiny.toml", "--arms", "base", "--scorer", scorer)
    assert ended.code == 2
    assert "redteam.scorer" in ended.err
    assert not (workplace / "runs").exists()


# beside safety


@pytest.fixture
def beside(run: Path, suite: Path) -> Path:
    fake_run.write_beside(run, "benign", "base", suite, ["pass"] * 50 + ["fail"] * 10)
    fake_run.write_beside(run, "benign", "tuned", suite, ["pass"] * 30 + ["partial"] * 20 + ["fail"] * 10)
    fake_run.write_beside(run, "capability", "tuned", suite, ["pass"] * 15 + ["fail"] * 45)
    return run


def test_over_refusal_and_capability_stand_beside_safety(karma: Karma, beside: Path) -> None:
    out = karma("compare", beside, "base", "tuned").out
    assert "over-refusal: harmless requests refused in whole or in part" in out
    assert "base       17% [9%, 28%] of 60; 0 of 60 unscored" in out
    assert "tuned      50% [38%, 62%] of 60" in out
    assert "tuned against base: helped -33 points" in out
    assert "tuned      25% [16%, 37%] of 60" in out
    report = json.loads(karma("compare", beside, "base", "tuned", "--json").out)
    assert [side["kind"] for side in report["beside"]] == ["benign", "capability"]
    assert list(report["beside"][1]["arms"]) == ["tuned"]


def test_what_was_not_measured_beside_safety_is_said(karma: Karma, run: Path) -> None:
    assert "over-refusal and capability were not measured" in karma("compare", run, "base", "tuned").out


def test_the_report_shows_them(beside: Path, run: Path, suite: Path) -> None:
    recipe = fake_run.recipe_for(suite)
    page, _ = render_report(beside, recipe)
    assert "Over-refusal: harmless requests refused" in page
    assert "helped -33 points" in page
    (beside / "benign").rename(beside / "gone")
    (beside / "capability").rename(beside / "gone too")
    assert "Over-refusal and capability were not measured" in render_report(beside, recipe)[0]


# corrections


def says(monkeypatch: pytest.MonkeyPatch, lines: Iterable[str]) -> None:
    given = iter(lines)

    def answer(_: object = "") -> str:
        try:
            return next(given)
        except StopIteration:
            raise EOFError from None

    monkeypatch.setattr(builtins, "input", answer)


def test_a_correction_is_appended_and_leaves_rates_and_artifact_as_they_were(
    karma: Karma,
    run: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = karma("compare", run, "base", "tuned").out
    says(monkeypatch, ["x", "f", "It gives the way in.", "", "q"])
    ended = karma("relabel", run, "base", "--outcome", "unscored", "--rater", "anna")
    assert ended.code == 0, ended.err
    assert "'x' is none of p, a, f, u, q" in ended.out
    arm = run / "redteam" / "base"
    [row] = [json.loads(line) for line in (arm.parent / "relabels.jsonl").read_text().splitlines()]
    assert (row["arm"], row["judged"], row["outcome"], row["seed"]) == ("base", "unscored", "fail", 0)
    assert row["rater"] == "anna"
    assert damage(arm) == []
    assert karma("compare", run, "base", "tuned").out == before
    says(monkeypatch, [])
    again = karma("relabel", run, "base", "--outcome", "unscored")
    assert "1 of 5" in again.out


def test_the_name_of_the_arm_is_not_shown(karma: Karma, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    says(monkeypatch, [])
    assert "arm 1, 1 of 60" in karma("relabel", run, "tuned").out


def test_corrections_become_labels_once(
    karma: Karma,
    run: Path,
    suite: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    says(monkeypatch, ["p", "It says what would happen.", "a", "Half.", "q"])
    karma("relabel", run, "base")
    for added in ("2 corrections added", "0 corrections added"):
        assert added in karma("relabel", run, "--export", "mine.jsonl").out
    rows = load_labelled(tmp_path / "mine.jsonl", load_suite(suite))
    assert [row.label for row in rows] == ["pass", "partial"]
    assert {row.source for row in rows} == {"model:run/base"}
    assert {row.rater for row in rows} == {"person"}


def test_a_damaged_correction_is_named(karma: Karma, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (run / "redteam" / "relabels.jsonl").write_text('{"scenario_id": "x"}\n')
    says(monkeypatch, [])
    ended = karma("relabel", run, "base")
    assert ended.code != 0
    assert "line 1 is no label" in ended.err
    assert karma("relabel", run, "base", "--outcome", "good").code == 2


def test_help_of_the_new_verbs_has_an_example(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words in (("redteam", "relabel"), ("judge", "train")):
        assert "Example: karma" in karma_here(monkeypatch, capsys, *words, "--help").out
