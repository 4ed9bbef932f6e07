"""Releases against each other: every answer by one file of labels, whatever verdict its arm was given before."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import fake_run
from evidence_page import releases
from karma_electric.core.artifact import damage, read_json
from karma_electric.redteam.seeds import read_seeds
from karma_electric.redteam.signals import Outcome

ROOT = Path(__file__).resolve().parent.parent
N = 6
PASSED = {"smollm2-v1": 0, "smollm2-v2": 2, "smollm2-v3": 6}  # scenarios that tuned and capped pass under every seed


def label_of(release: str, arm: str, scenario: int) -> Outcome:
    """What the raters of the test say."""
    return "fail" if arm == "base" or scenario >= PASSED[release] else "pass"


@pytest.fixture
def root(tmp_path: Path, few_resamples: None) -> Path:
    (tmp_path / "suites").mkdir()
    suite = fake_run.write_suite(tmp_path / releases.SUITE, N)
    lines = []
    for release in releases.RELEASES:
        for arm in releases.ARMS:
            folder = tmp_path / "results" / release / "redteam" / f"{release}-{arm}"  # its name is in its answers
            fake_run.write_seeds(folder, suite, {0: ["unscored"] * N, 1: ["partial"] * N})
            folder.rename(folder.parent / arm)
            for result in read_seeds(folder.parent / arm).values():
                for number, (scenario, answers) in enumerate(result.answers.items()):
                    texts = [answers[turn].text for turn in sorted(answers)]
                    label = label_of(release, arm, number)
                    rating = {"rater": "a", "label": label, "reason": "r"}
                    line = {"id": f"rated-{len(lines)}", "scenario_id": scenario, "prompt": answers[1].prompt}
                    line |= {"response": texts[-1], "label": label, "reason": "r", "rater": "a"}
                    line |= {"answers": texts[:-1], "source": "model:x", "ratings": [rating, {**rating, "rater": "b"}]}
                    lines.append(json.dumps(line))
    (tmp_path / "labelled.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return tmp_path


def test_rates_go_by_the_labels_of_all_and_not_by_earlier_verdicts(root: Path) -> None:
    found = releases.measure("labelled.jsonl", root)
    assert {name: arm["summary"]["counts"]["pass"] for name, arm in found["arms"].items()} == {
        f"{release}/{arm}": 0 if arm == "base" else 2 * PASSED[release]
        for release in releases.RELEASES
        for arm in releases.ARMS
    }
    assert all(arm["summary"]["counts"]["unscored"] == 0 for arm in found["arms"].values())
    assert found["raters"]["kappa"] == 1
    by_pair = {(pair["a"], pair["b"]): pair for pair in found["comparisons"]}
    assert len(by_pair) == 15
    assert by_pair["smollm2-v1/tuned", "smollm2-v3/tuned"]["result"]["difference"] == 1
    assert by_pair["smollm2-v1/base", "smollm2-v3/base"]["result"]["difference"] == 0
    raw = by_pair["smollm2-v3/base", "smollm2-v3/tuned"]
    assert raw["result"]["p_value"] == 2 / 2**N, "six scenarios, all one way"
    assert raw["p_holm"] > raw["result"]["p_value"]
    failures = {(pair["a"], pair["b"]): pair["result"]["difference"] for pair in found["failures"]}
    assert failures["smollm2-v3/base", "smollm2-v3/tuned"] == -1
    assert failures["smollm2-v1/base", "smollm2-v1/tuned"] == 0


def test_what_is_written_is_an_artifact_with_what_it_was_made_from(root: Path) -> None:
    folder = releases.write("labelled.jsonl", root)
    assert damage(folder) == []
    inputs = read_json(folder / "manifest.json")["inputs"]
    assert {"labelled.jsonl", releases.SUITE, "smollm2-v2/capped"} <= set(inputs)
    lines = list(releases.table(root))
    assert "| smollm2-v2 | tuned | 33% (10% to 70%) of 12 | 12 | 4 | 0 | 8 | 0 |" in lines
    assert any(
        line.startswith("| smollm2-v3/tuned against smollm2-v1/tuned | 12 answers to 6 scenarios | +100")
        for line in lines
    )


def test_an_answer_without_a_label_is_no_unscored_one(root: Path) -> None:
    labels = root / "labelled.jsonl"
    labels.write_text("".join(labels.read_text(encoding="utf-8").splitlines(keepends=True)[:-1]), encoding="utf-8")
    with pytest.raises(SystemExit, match=r"no label for 1 answers of .*smollm2-v3/redteam/capped"):
        releases.write("labelled.jsonl", root)
    assert not (root / "results" / releases.FOLDER).exists()


def test_without_figures_the_page_says_how_to_get_them(tmp_path: Path) -> None:
    assert list(releases.table(tmp_path)) == ["*not measured* (`python tools/results.py releases LABELS`)"]


@pytest.mark.slow
def test_the_kept_figures_are_what_the_kept_answers_and_labels_give() -> None:
    kept = read_json(ROOT / "results" / releases.FOLDER / releases.RATES)
    assert json.loads(json.dumps(releases.measure(kept["labels"], ROOT))) == kept
    assert damage(ROOT / "results" / releases.FOLDER) == []
