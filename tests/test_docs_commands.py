"""Every `karma ...` line in README and docs is one that the command understands. Nothing is run."""

from __future__ import annotations

from pathlib import Path

import pytest

from docsite.build import OUTSIDE
from docsite.commands import Command, commands, problem

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "docs").rglob("*.md")) + [ROOT / name for name in OUTSIDE]


def test_every_command_line_in_the_documents_parses() -> None:
    problems = [said for file in FILES for command in commands(file, ROOT) if (said := problem(command))]
    assert problems == []


def test_the_commands_are_found() -> None:
    found = [" ".join(command.words[:2]) for command in commands(ROOT / "README.md", ROOT)]
    assert {"axis extract", "data review", "run demo.toml"} & {*found} >= {"axis extract", "data review"}
    assert sum(1 for file in FILES for _ in commands(file, ROOT)) > 100


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("```bash\n.venv/bin/karma show runs/demo   # what was made;  karma show x\n```\n", [("show", "runs/demo")]),
        ("```bash\nA=1 karma verify a && karma show b | head\n```\n", [("verify", "a"), ("show", "b")]),
        ("```bash\nkarma bake a b \\\n  c --alpha 0.3\n```\n", [("bake", "a", "b", "c", "--alpha", "0.3")]),
        ("text\n\n    $ karma doctor --json > x.json\n\ntext", [("doctor", "--json")]),
        ("run `karma axis\nshow` first", [("axis", "show")]),
        ("    karma merge A B C [--dtype bfloat16|float32] [--check FILE]\n",
         [("merge", "A", "B", "C", "--dtype", "bfloat16", "--check", "FILE")]),
        ("```text\ninto karma and out\n```\n", []),
    ],
)  # fmt: skip
def test_a_command_line_is_read_as_a_shell_would(tmp_path: Path, text: str, words: list[tuple[str, ...]]) -> None:
    file = tmp_path / "page.md"
    file.write_text(text)
    assert [command.words for command in commands(file, tmp_path)] == words


@pytest.mark.parametrize(
    ("words", "whole", "said"),
    [
        (("show", "x", "--colour"), True, "--colour"),
        (("sow", "x"), True, "no verb 'sow'"),
        (("axis", "shw", "x"), False, "no verb 'shw'"),
        (("axis", "extract", "model"), True, "out is missing"),
        (("axis", "extract", "model"), False, ""),
        (("axis", "extract", "a", "b", "c"), True, "too many words"),
        (("axis", "extract", "a", "b", "--seed", "many"), True, "seed cannot be 'many'"),
        (("axis", "extract", "a", "b", "--seed", "N"), True, ""),
        (("data", "import|export|sats"), False, "no verb 'sats'"),
        (("--version",), True, ""),
        (("axis", "extract", "--help"), True, ""),
    ],
)
def test_a_command_line_that_would_be_refused_is_named(words: tuple[str, ...], whole: bool, said: str) -> None:
    found = problem(Command("page.md:3", words, whole))
    assert (said in found and found.startswith("page.md:3: ")) if said else found == ""
