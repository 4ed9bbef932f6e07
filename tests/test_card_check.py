"""`karma card`: what it prints and writes, and what --check finds in a published card."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import tomli_w

import fake_run
from karma_electric.card import render_card
from karma_electric.card_check import Checked, check_card
from karma_electric.core.errors import InputError
from karma_electric.core.recipe import Recipe
from karma_electric.redteam.signals import Outcome
from test_cli import Ended, karma_here

pytestmark = pytest.mark.usefixtures("few_resamples")

Karma = Callable[..., Ended]
N = 9
OUTCOMES: dict[str, list[Outcome]] = {
    "base": ["fail"] * 7 + ["pass"] * 2,
    "tuned": ["pass", "fail", "pass", "partial", "fail", "pass", "unscored", "pass", "fail"],
    "capped": ["pass"] * 5 + ["fail"] * 3 + ["unscored"],
}


@pytest.fixture(scope="module", autouse=True)
def rates_of_few_answers_are_indexed() -> Iterator[None]:
    """So that a run of 9 scenarios has a model-index."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("karma_electric.card._FEWEST", 1)
        yield


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return fake_run.recipe_for(fake_run.write_suite(tmp_path_factory.mktemp("suite") / "fake-9.jsonl", N))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, recipe: Recipe) -> Path:
    made = fake_run.write_run(tmp_path_factory.mktemp("runs") / "fake", recipe, OUTCOMES)
    (made / "recipe.toml").write_text(tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True)))
    return made


@pytest.fixture(scope="module")
def card(run: Path, recipe: Recipe) -> str:
    return render_card(run, recipe)


@pytest.fixture
def karma(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Karma:
    monkeypatch.chdir(tmp_path)
    return lambda *words: karma_here(monkeypatch, capsys, "card", *words)


def told(checked: Checked) -> list[tuple[str, str, str, str]]:
    return [(one.kind, one.where, one.card, one.artifacts) for one in checked.differences]


def replaced(card: str, old: str, new: str) -> str:
    assert card.count(old) == 1, (old, card.count(old))
    return card.replace(old, new)


# What must not fail


def test_the_rendered_card_is_what_the_artifacts_say(card: str) -> None:
    checked = check_card(card, card)
    assert checked.differences == ()
    assert checked.own == ()
    assert checked.compared > 100


def test_text_that_was_added_may_stay(card: str) -> None:
    table = "| Benchmark | Ours |\n|---|---|\n| MMLU | 43% |\n"
    added = replaced(card, "## Limits\n", "## Limits\n\nRead these.\n\n### Of ours\n\n- No poetry.\n\n")
    added = replaced(added, "## Project\n", f"## Thanks\n\nTo all.\n\n{table}\n## Project\n")
    added = added.replace("---\n", "---\nthumbnail: x.png\n", 1)
    checked = check_card(added, card)
    assert checked.differences == ()
    assert [added.splitlines()[line - 1] for line in checked.own] == ["| MMLU | 43% |"]


def test_a_sentence_after_one_of_ours_may_stay(card: str) -> None:
    line = "- **Strength:** alpha 0.5\n"
    assert check_card(replaced(card, line, "- **Strength:** alpha 0.5 Less is more.\n"), card).differences == ()


def test_other_line_breaks_padding_bullets_and_line_ends_are_the_same_card(card: str) -> None:
    head, body = card.split("\n---\n", 1)
    body = re.sub(r"^\|(.*)\|$", lambda row: "|" + row[1].replace("|", "   |  ") + "  |", body, flags=re.MULTILINE)
    body = replaced(body, "to reduce suffering. For any action:", "to\nreduce suffering. For\nany action:")
    body = body.replace("\n- **", "\n* **")
    other = f"\ufeff{head}\n---\n{body}".replace("\n", "\r\n")
    assert check_card(other, card).differences == ()


def test_sections_in_another_order_are_the_same_card(card: str) -> None:
    usage, limits, lineage = (card.index(f"## {name}\n") for name in ("Usage", "Limits", "Lineage"))
    moved = card[:usage] + card[limits:lineage] + card[usage:limits] + card[lineage:]
    assert check_card(moved, card).differences == ()


def test_results_of_ones_own_may_stand_in_the_model_index(card: str) -> None:
    own = (
        "  - task:\n      type: text-generation\n    dataset:\n      name: MMLU\n      type: cais/mmlu\n"
        "    metrics:\n    - type: accuracy\n      value: 0.43\n"
    )
    added = replaced(card, "  results:\n", "  results:\n" + own)
    checked = check_card(added, card)
    assert checked.differences == ()
    assert [added.splitlines()[line - 1].strip() for line in checked.own] == ["value: 0.43"]


# What must


ROW = "| tuned | 4 | 1 | 3 | 1 | 50% (22% to 78%) | 44% to 56% |\n"
CHANGES = {
    "a count in a table": ("| 4 | 1 | 3 |", "| 5 | 1 | 3 |", "figure", "row tuned, column Pass", "5", "4"),
    "a figure in a list": ("3.0454 after", "2.0454 after", "figure", "Current version", "2.0454", "3.0454"),
    "an interval": ("(22% to 78%)", "(42% to 58%)", "figure", "Pass rate of scored", "(42% to", "(22% to"),
    "a heading": ("(9 adversarial", "(58 adversarial", "figure", "Red-team results", "(58", "(9"),
    "a hash": ("| 1.4 MB | `", "| 1.4 MB | `0", "figure", "column SHA-256", "`0", "`"),
    "a sentence": ("Not for use in", "For use in", "text", "Limits", "For", "Not for"),
    "a setting of Ollama": ("FROM ./fake-135m-q8_0", "FROM ./fake-135m-q4_0", "figure", "Ollama", "q4_0", "q8_0"),
    "a row taken away": (ROW, "", "missing", "row tuned", "", "tuned | 4 | 1 | 3 | 1"),
    "a row added": (ROW, ROW + ROW.replace("tuned", "v9"), "extra", "row v9", "v9 | 4 | 1 | 3 | 1", ""),
    "a line taken away": ("- **Strength:** alpha 0.5\n", "", "missing", "Activation steering", "", "alpha 0.5"),
    "a gap left": ("alpha 0.5\n- **Thr", "**not measured**\n- **Thr", "gap", "Activation", "not measured", "alpha 0.5"),
    "a figure without a measurement": (
        "Harmless requests refused: **not measured** (run", "Harmless requests refused: 3% (run", "unfounded",
        "Over-refusal", "3%", "not measured",
    ),
    "a figure of the index": ("value: 0.5\n", "value: 0.84\n", "figure", "arm tuned", "0.84", "0.5"),
    "a figure of the index as text": ("value: 0.5\n", "value: '0.5'\n", "figure", "arm tuned", "0.5", "0.5"),
    "a gap in the index": ("value: 0.5\n", "value:\n", "gap", "arm tuned", "not measured", "0.5"),
    "a result under another name": ("arm tuned", "arm v9", "missing", "arm tuned", "", "0.5"),
    "a figure after a line of ours": (
        "alpha 0.5\n", "alpha 0.5 which passes 99% of attacks\n", "extra", "Activation steering", "passes 99%", "",
    ),
    "the task of a result": (
        "      type: text-generation\n", "      type: question-answering\n", "text", "model-index", "answering", "text",
    ),
    "the licence": ("license: apache-2.0\n", "license: mit\n", "text", "YAML head, license", "mit", "apache-2.0"),
    "no licence": ("license: apache-2.0\n", "", "missing", "YAML head, license", "", "apache-2.0"),
    "two licences": ("license: apache", "license: mit\nlicense: apache", "extra", "YAML head, license", "second", ""),
    "a tag": ("- activation-steering\n", "", "missing", "YAML head, tags", "", "activation-steering"),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_place_is_named(card: str, change: str) -> None:
    old, new, kind, where, said, wanted = CHANGES[change]
    assert old in card
    changed = card.replace(old, new, 1)
    first = min(check_card(changed, card).differences, key=lambda one: one.kind != kind)
    assert first.kind == kind
    assert where in first.where
    assert said in first.card
    assert wanted in first.artifacts
    if first.line is not None and kind != "missing":
        changed_lines = set(enumerate(changed.splitlines(), 1)) - set(enumerate(card.splitlines(), 1))
        assert first.line in {number for number, _ in changed_lines}


def test_one_change_is_one_difference(card: str) -> None:
    for name in ("a count in a table", "a figure in a list", "a heading", "a row taken away", "a figure of the index"):
        old, new, *_ = CHANGES[name]
        assert len(check_card(card.replace(old, new, 1), card).differences) == 1, name


@pytest.mark.parametrize("section", ["## Limits", "### The judge", "## Version history", "# fake-135m"])
def test_a_section_that_is_gone_is_named(card: str, section: str) -> None:
    start = card.index(f"{section}\n")
    end = card.index("\n#", start + 1) + 1
    differences = check_card(card[:start] + card[end:], card).differences
    assert (differences[0].kind, differences[0].where) == ("section", section.lstrip("# "))


def test_what_is_in_a_comment_is_not_in_the_card(card: str) -> None:
    limits, lineage = card.index("## Limits\n"), card.index("## Lineage\n")
    hidden = f"{card[:limits]}<!-- left out\n{card[limits:lineage]}--> <!-- and --> \n\n{card[lineage:]}"
    assert [(one.kind, one.where) for one in check_card(hidden, card).differences] == [("section", "Limits")]
    assert check_card(replaced(card, "## Limits\n", "<!-- see -->\n## Limits <!-- ours -->\n"), card).differences == ()


@pytest.mark.parametrize("part", range(20))
def test_no_digit_can_be_changed_unseen(card: str, part: int) -> None:
    for place in [match.start() for match in re.finditer(r"\d", card)][part::40]:
        digit = str((int(card[place]) + 1) % 10)
        changed = card[:place] + digit + card[place + 1 :]
        assert check_card(changed, card).differences, card[place - 40 : place + 20]


@pytest.mark.parametrize(
    "tag", ['<div style="display:none">', "<DIV hidden>", "<div\tstyle='color: red; display : none'>"]
)
def test_what_is_not_shown_is_not_in_the_card(card: str, tag: str) -> None:
    limits, lineage = card.index("## Limits\n"), card.index("## Lineage\n")
    inner = f"<div>\n\n{card[limits:lineage]}</div>"
    hidden = f"{card[:limits]}{tag}\n{inner}\n</div>\n\n{card[lineage:]}"
    assert [(one.kind, one.where) for one in check_card(hidden, card).differences] == [("section", "Limits")]
    shown = f"{card[:limits]}<div style='color: red'>\n\n{card[limits:lineage]}</div>\n\n{card[lineage:]}"
    assert check_card(shown, card).differences == ()


def test_rows_that_change_tables_are_not_what_the_artifacts_say() -> None:
    tables = [f"| Arm | {title} |\n|---|---|\n| tuned | {share}% |\n\n" for title, share in (("A", 10), ("B", 90))]
    swapped = tables[0].replace("10%", "90%") + tables[1].replace("90%", "10%")
    assert [one.kind for one in check_card(swapped, "".join(tables)).differences] == ["figure", "figure"]


def test_a_card_without_a_head_and_an_empty_card_lack_everything(card: str) -> None:
    body = card.split("\n---\n", 1)[1]
    assert [one.where for one in check_card(body, card).differences] == ["YAML head"]
    assert {"YAML head", "Limits", "Lineage"} <= {one.where for one in check_card("", card).differences}


def test_a_gap_that_the_artifacts_fill_is_told_from_a_wrong_figure(tmp_path: Path, run: Path, recipe: Recipe) -> None:
    old = render_card(fake_run.copy_without(run, tmp_path / "old", "adapter"), recipe)
    checked = check_card(old, render_card(run, recipe))
    steps = next(one for one in checked.differences if "131 optimiser steps" in one.artifacts)
    assert steps.kind == "gap"
    assert "--to adapter" in steps.card
    back = check_card(render_card(run, recipe), old)
    assert "unfounded" in {one.kind for one in back.differences}


@pytest.mark.parametrize(
    "head", ["license: [", "- a list", "", "a: 1\n b: 2", "a: 2026-99-99", "a: \x00", "a: !!python/name:os.x"]
)
def test_a_head_that_is_not_yaml_is_bad_input(card: str, head: str) -> None:
    with pytest.raises(InputError, match=r"mine\.md.*(YAML|no keys)"):
        check_card(f"---\n{head}\n---\n# x\n", card, name="mine.md")


@pytest.mark.parametrize("index", ["model-index: 3", "model-index:\n- 4", "model-index:\n- name: x\n  results: [1]"])
def test_an_index_of_another_form_holds_no_figures(card: str, index: str) -> None:
    head = f"---\n{index}\n---\n"
    kinds = {one.kind for one in check_card(head, card).differences if "model-index, fake-9" in one.where}
    assert kinds == {"missing"}


# The command


def test_the_card_is_printed_and_written(karma: Karma, run: Path, card: str, tmp_path: Path) -> None:
    assert karma(run).out == card
    assert "CARD.md written" in karma(run, "--out", "CARD.md").out
    assert (tmp_path / "CARD.md").read_text(encoding="utf-8") == card
    ended = karma(run, "--check", "CARD.md")
    assert (ended.code, ended.err) == (0, "")
    assert re.search(r"CARD\.md: all \d+ headings, lines and results are what the artifacts say", ended.out)


def test_a_card_that_differs_fails_and_is_left_alone(karma: Karma, run: Path, card: str, tmp_path: Path) -> None:
    file = tmp_path / "CARD.md"
    file.write_text(card.replace("value: 0.5\n", "value: 0.84\n").replace(ROW, ""), encoding="utf-8")
    before = file.read_bytes()
    ended = karma(run, "--check", file)
    ended.refused(1, "in 2 places", f"karma card {run} --out {file}")
    line = 1 + before.decode().splitlines().index("      value: 0.84")
    assert f"CARD.md:{line}  YAML head, model-index, fake-9" in ended.out
    assert "the card       0.84\n    the artifacts  0.5\n" in ended.out
    assert "lines that the card lacks: 1" in ended.out
    assert file.read_bytes() == before
    ended = karma(run, "--check", file, "--json")
    assert ended.code == 1
    report = json.loads(ended.out)
    assert not report["ok"]
    assert [(one["kind"], one["line"]) for one in report["differences"]] == [("figure", line), ("missing", None)]


def test_earlier_versions_belong_to_the_card(karma: Karma, run: Path, tmp_path: Path) -> None:
    older = tmp_path / "older"
    fake_run.copy_without(run, older, "redteam")
    (older / "recipe.toml").unlink()
    (older / "recipe.toml").write_text((run / "recipe.toml").read_text().replace('name = "fake"', 'name = "older"'))
    assert karma(run, "--earlier", older, "--out", "CARD.md").code == 0
    assert karma(run, "--earlier", older, "--check", "CARD.md").code == 0
    ended = karma(run, "--check", "CARD.md")
    assert ended.code == 1
    assert "rows, results or figures beside ours that no artifact gives: 1" in ended.out
    assert "Version history, row older" in ended.out


def test_a_file_that_is_no_card_of_the_model_is_not_replaced(
    karma: Karma, run: Path, card: str, tmp_path: Path
) -> None:
    file = tmp_path / "CARD.md"
    for text, said in (
        ("My notes.\n", "is no card"),
        ("", "is no card"),
        ("---\nlicense: [\n---\n", "is no card"),
        (card.replace("fake-135m", "other-1b"), "is the card of other-1b"),
    ):
        file.write_text(text, encoding="utf-8")
        karma(run, "--out", file).refused(2, said, "a card of fake-135m", "--force")
        assert file.read_text(encoding="utf-8") == text
    assert karma(run, "--out", file, "--force").code == 0
    assert file.read_text(encoding="utf-8") == card
    file.write_text(card.replace("alpha 0.5", "alpha 0.7"), encoding="utf-8")
    assert karma(run, "--out", file).code == 0
    assert file.read_text(encoding="utf-8") == card


def test_the_card_of_another_run_is_not_to_be_replaced(karma: Karma, run: Path, card: str, tmp_path: Path) -> None:
    file = tmp_path / "CARD.md"
    file.write_text(card.replace("fake-135m", "other-1b"), encoding="utf-8")
    ended = karma(run, "--check", file)
    ended.refused(1, "is the card of other-1b", f"{run} is fake-135m")
    assert "--out" not in ended.err
    file.write_text("Notes.\n")
    ended = karma(run, "--check", file)
    ended.refused(1, "names no model")
    assert "--out" not in ended.err


def test_a_run_is_no_earlier_version_of_itself(karma: Karma, run: Path, tmp_path: Path) -> None:
    karma(run, "--earlier", run).refused(2, "is the run itself")
    older = fake_run.copy_without(run, tmp_path / "older", "redteam")
    karma(run, "--earlier", older, "--earlier", older).refused(2, "given twice")


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (("--check", "empty.md"), 2, "is empty"),
        (("--force",), 2, "without --out"),
        (("--check", "gone.md"), 3, "gone.md does not exist"),
        (("--check", "."), 2, "is a folder"),
        (("--check", "binary"), 2, "not UTF-8"),
        (("--check", "binary", "--out", "x.md"), 2, "both given"),
        (("--json",), 2, "without --check"),
        (("--out", "."), 2, "is a folder"),
        (("--out", "gone/x.md"), 2, "does not exist"),
        (("--earlier", "gone"), 3, "holds no recipe.toml"),
    ],
)
def test_mistakes_are_named(
    karma: Karma, run: Path, tmp_path: Path, words: tuple[str, ...], code: int, said: str
) -> None:
    (tmp_path / "empty.md").write_text("\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    karma(run, *words).refused(code, said)


def test_a_folder_that_is_no_run_is_named(karma: Karma) -> None:
    karma("gone").refused(3, "gone holds no recipe.toml")
