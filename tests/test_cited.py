"""Figures typed beside the name of a file under results/ are in that file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import cited

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for version, losses in (("v1", [4.4091, 3.8171]), ("v2", [4.3261, 3.6304])):
        folder = tmp_path / "results" / version
        folder.mkdir(parents=True)
        (folder / "training.json").write_text(json.dumps({"loss": losses, "kl": 0.00046, "name": "9.99"}))
        (folder / "steps.jsonl").write_text('{"share": 0.203}\n{"share": 0.5}\n')
    return tmp_path


@pytest.mark.parametrize(
    "text",
    [
        "From 4.409 to 3.82 nats (`results/v1/training.json`).",
        "KL 4.6e-04, a share of 20% or 20.3% (`results/v1`).",
        "Losses of 3.817 and 3.630 (`results/*/training.json`).",
        "Nothing is named here, so 1.234 is nobody's.",
        "An item of another file:\n- 1.234 is another item\n- 3.817 is here (`results/v1/training.json`)",
        "`--alpha 0.77` is code (`results/v1`), 2.0.1 a version, and 12 a count.",
        "<!-- results: begin x -->\n1.234 (`results/v1`)\n<!-- results: end x -->",
        "```\n1.234 `results/v1`\n```",
    ],
)
def test_figures_that_are_there_or_are_nobodys_pass(root: Path, text: str) -> None:
    assert list(cited.uncited(text, root)) == []


@pytest.mark.parametrize(
    ("text", "figure"),
    [
        ("From 4.409 to 3.83 nats\n(`results/v1/training.json`).", "3.83"),
        ("KL 4.7e-04 (`results/v1`).", "4.7e-04"),
        ("21% (`results/v1`).", "21%"),
        ("3.630 (`results/v1/training.json`).", "3.630"),
        ("9.99 is a text there (`results/v1`).", "9.99"),
        ("3.817 (`results/v9/training.json`).", "3.817"),
    ],
)
def test_a_figure_that_its_file_does_not_have_is_found(root: Path, text: str, figure: str) -> None:
    [(line, found, _)] = cited.uncited(f"A title\n\n{text}", root)
    assert (line, found) == (3, figure)


def test_figures_of_no_file_are_listed() -> None:
    page = "Set 0.5 or 1.0.\n\n- 3.817 (`results/v1`)\n- 75% of them\n"
    assert list(cited.listed(page)) == [(1, "0.5"), (1, "1.0"), (4, "75%")]


def test_the_repositorys_own_pages_vouch_for_their_figures() -> None:
    pages = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").rglob("*.md")]
    assert [found for page in pages for found in cited.uncited(page.read_text(encoding="utf-8"), ROOT)] == []
