"""Figures in the README come from results/, by a command."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path

import pytest

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
    pages = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in results.PAGES]
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


def test_an_unfinished_run_is_not_kept(results, tmp_path):
    with pytest.raises(SystemExit, match="not a finished run"):
        results.keep(tmp_path)


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
