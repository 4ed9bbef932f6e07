"""Figures in the README come from results/, by a command."""

from __future__ import annotations

import importlib.util
import json
import re
import shutil
from pathlib import Path

import pytest
import tomli_w

import fake_run
from karma_electric.card import render_card
from karma_electric.core.errors import ArtifactError
from karma_electric.core.recipe import load_recipe
from karma_electric.report import render_report

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "results" / "demo"


@pytest.fixture
def results():
    spec = importlib.util.spec_from_file_location("results_tool", ROOT / "tools" / "results.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_readme_says_what_the_results_say(results):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert results.replaced(readme) == readme


def test_the_pages_of_docs_say_what_the_results_say(results):
    pages = [(ROOT / name).read_text(encoding="utf-8") for name in results.PAGES]
    assert [results.with_benchmarks(page) for page in pages] == pages
    begun, ended = (sum(page.count(f"<!-- results: {mark} ") for page in pages) for mark in ("begin", "end"))
    assert begun == ended == len(results.BENCHMARKS)


def test_another_result_makes_another_readme(results, tmp_path, monkeypatch):
    shutil.copytree(ROOT / "results", tmp_path / "results")
    fidelity = tmp_path / "results" / "demo" / "capped" / "fidelity.json"
    values = json.loads(fidelity.read_text())
    values["all"]["kl_ratio"] = 0.9876
    fidelity.write_text(json.dumps(values))
    monkeypatch.setattr(results, "ROOT", tmp_path)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "0.9876" in results.replaced(readme)
    assert results.replaced(readme) != readme


@pytest.fixture
def elsewhere(results, tmp_path, monkeypatch):
    """The tool, with an empty results/ of its own."""
    (tmp_path / "results").mkdir()
    monkeypatch.setattr(results, "ROOT", tmp_path)
    return results


def trained(folder, *stages):
    """A run of a few stages with its recipe."""
    recipe = fake_run.recipe_for(fake_run.write_suite(folder.parent / "suite.jsonl", 9))
    outcomes = {"base": ["fail"] * 9, "tuned": ["pass"] * 6 + ["fail"] * 2 + ["unscored"]}
    fake_run.write_run(folder, recipe, outcomes, stages=stages)
    (folder / "adapter" / "trajectory.jsonl").write_text('{"step": 0}\n')
    fake_run.reseal(folder / "adapter")
    (folder / "recipe.toml").write_text(tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True)))
    return recipe


def test_an_unfinished_run_is_not_kept_unless_that_is_said(elsewhere, tmp_path, capsys):
    run = tmp_path / "smollm2-v2"
    trained(run, "release", "adapter")
    with pytest.raises(SystemExit, match=r"not a finished run.*keep --partial"):
        elsewhere.keep(run)
    elsewhere.keep(run, partial=True)
    assert "smollm2-v2 lacks merged, axis, capped, gguf, redteam, report, card" in capsys.readouterr().out
    kept = tmp_path / "results" / "smollm2-v2"
    names = {path.relative_to(kept).as_posix() for path in kept.rglob("*") if path.is_file()}
    assert names >= {"kept.json", "recipe.toml", "adapter/trajectory.jsonl", "adapter/loss.png", "release/summary.json"}
    assert not names & {"adapter/adapter_model.safetensors", "release/train.jsonl"}
    (run / "adapter" / "training.json").write_text("cut off")
    elsewhere.keep(run, partial=True)
    assert not (kept / "adapter").exists(), "an artifact that is not whole is not kept"


@pytest.mark.parametrize("files", [(), ("recipe.toml",)])
def test_a_folder_without_a_finished_stage_is_not_kept(elsewhere, tmp_path, files):
    for name in files:
        (tmp_path / name).write_text("")
    with pytest.raises(SystemExit, match="nothing to keep"):
        elsewhere.keep(tmp_path, partial=True)


def test_kept_results_give_the_card_of_the_run(elsewhere, tmp_path):
    recipe = trained(tmp_path / "run", *fake_run.STAGES)
    elsewhere.keep(tmp_path / "run", partial=True)
    kept = tmp_path / "results" / "run"
    assert render_card(kept, recipe) == render_card(tmp_path / "run", recipe)
    (kept / "merged" / "merge.json").unlink()
    assert "--to merged`)" in render_card(kept, recipe), "what is missing without being left out is a gap"
    (kept / "kept.json").write_text('{"left_out": 3}')
    with pytest.raises(ArtifactError, match="no list left_out"):
        render_card(kept, recipe)


def test_the_kept_demo_gives_a_card():
    card = render_card(RESULTS, load_recipe(RESULTS / "recipe.toml"))
    training = json.loads((RESULTS / "adapter" / "training.json").read_text())
    assert f"{training['validation_loss']:.4f} after training" in card
    assert ".toml --to " not in card, "every stage of it was kept"


def test_versions_stand_in_the_readme_as_far_as_they_are_trained(elsewhere, tmp_path):
    gap = "not trained yet: `karma run recipes/smollm2-v2.toml`"
    assert gap in elsewhere.version_history()
    trained(tmp_path / "smollm2-v2", "release", "adapter")
    elsewhere.keep(tmp_path / "smollm2-v2", partial=True)
    table = elsewhere.version_history()
    assert gap not in table
    [row] = [line for line in table.splitlines() if line.startswith("| smollm2-v2 |")]
    assert row.startswith("| smollm2-v2 | 108 + 13 | 131 | 2.851 | 3.712 -> 3.045 | 42.8% | not measured | ")
    assert "not measured | 24 min (" in row
    assert "not trained yet: `karma run recipes/smollm2-v3.toml`" in table
    rates = {"base": {"value": 0.25, "low": 0.1, "high": 0.5, "n": 12}, "tuned": {"value": None, "n": 0}}
    arms = {f"smollm2-v2/{arm}": {"scored": rate} for arm, rate in rates.items()}
    file = tmp_path / "results" / "releases" / "rates.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"labels": "suites/all.jsonl", "arms": arms}))
    table = elsewhere.version_history()
    assert "| 25% (10% to 50%) of 12 | none of 0 | not measured |" in table
    assert "by one file of labels for all releases, `suites/all.jsonl`" in table


def test_the_kept_files_are_those_of_the_manifests():
    """A result that was edited by hand no longer has the hash its manifest gives."""
    from karma_electric.core.artifact import hash_file

    manifests = sorted(RESULTS.rglob("manifest.json"))
    assert len(manifests) >= 11
    for path in manifests:
        files = json.loads(path.read_text())["files"]
        kept = {name: digest for name, digest in files.items() if (path.parent / name).exists()}
        assert kept
        for name, digest in kept.items():
            assert hash_file(path.parent / name) == digest, f"{path.parent.name}/{name} was changed"


def test_the_session_in_the_readme_is_what_the_commands_print():
    spec = importlib.util.spec_from_file_location("session_tool", ROOT / "tools" / "session.py")
    session = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(session)
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert session.replaced(readme) == readme, "run: python tools/session.py write"


@pytest.mark.parametrize(
    "card",
    [
        pytest.param(card, id=card.parts[-3], marks=[] if card.parts[-3] == "demo" else pytest.mark.slow)
        for card in sorted((ROOT / "results").glob("*/card/README.md"))
    ],
)
def test_kept_cards_and_reports_say_what_their_results_say(card: Path) -> None:
    run = card.parent.parent
    recipe = load_recipe(run / "recipe.toml")
    text = card.read_text(encoding="utf-8")
    assert render_card(run, recipe) == text
    page = re.sub(r"data:image/png;base64,[^\"]+", "", (run / "report" / "index.html").read_text(encoding="utf-8"))
    assert re.sub(r"data:image/png;base64,[^\"]+", "", render_report(run, recipe)[0]) == page


def test_every_point_of_a_card_has_a_line_of_its_own() -> None:
    for card in (ROOT / "results").glob("*/card/README.md"):
        assert not re.findall(r".- \*\*.*", card.read_text(encoding="utf-8"))
