"""`karma data`: options that would do nothing beside others are refused before anything is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from test_cli import karma_here

LABELLED = Path(__file__).resolve().parent.parent / "suites" / "penalty-sentences.jsonl"
MEASURE = ("penalize", "--measure", LABELLED)
MODEL = "karma/scripted:none.json"


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    (tmp_path / "x.jsonl").write_text('{"id": "a", "messages": [{"role": "user", "content": "Who?"}]}\n')


@pytest.mark.parametrize(
    ("words", "option", "why"),
    [
        (("check", "one", "--no-semantic", "--model", "m"), "--model", "loads no model"),
        (("dedupe", "x.jsonl", "--no-semantic", "--semantic", 0.9), "--semantic", "loads no model"),
        (("dedupe", "x.jsonl", "--no-semantic", "--model", "m"), "--model", "loads no model"),
        (("dedupe", "x.jsonl", "--db", "w.db"), "--db", "x.jsonl is read"),
        (("decontaminate", "x.jsonl", "--no-semantic", "--semantic", 0.85), "--semantic", "loads no model"),
        (("decontaminate", "x.jsonl", "--db", "w.db"), "--db", "x.jsonl is read"),
        (("penalize", "x.jsonl", "--db", "w.db"), "--db", "x.jsonl is read"),
        (("penalize", "x.jsonl", "--prompt", "a"), "--prompt", "belongs to an answer"),
        (("penalize", "x.jsonl", "--split", "test"), "--split", "belongs to a measurement"),
        (("penalize", "--text", "a", "--markdown"), "--markdown", "belongs to a measurement"),
        (("penalize", "--text", "a", "--status", "accepted"), "--status", "reads one answer"),
        (("penalize", "--text", "a", "--db", "w.db"), "--db", "reads one answer"),
        ((*MEASURE, "--category", "adversarial"), "--category", "labelled sentences"),
        ((*MEASURE, "--prompt", "a"), "--prompt", "belongs to an answer"),
        ((*MEASURE, "--show", 2), "--show", "labelled sentences"),
        ((*MEASURE, "--json", "--markdown"), "--markdown", "as JSON"),
        (("penalize", "x.jsonl", "--json", "--show", 1), "--show", "as JSON"),
        (("judge", MODEL, "--force"), "--force", "repeats a check"),
        (("review", "--accept", "a", "--status", "all"), "--status", "name the candidates"),
        (("review", "--reject", "a", "--reason", "x", "--category", "adversarial"), "--category", "name the candid"),
        (("review", "--reason", "x"), "--reason", "on the screen"),
        (("review", "--json"), "--json", "on the screen"),
        (
            ("generate", MODEL, "--prompts", "x.jsonl", "--system-prompt", "x.jsonl", "--recipe", "demo.toml"),
            "--recipe",
            "takes the place of its persona",
        ),
        (("export", "one", "--force"), "--force", "brought up to date"),
        (("import", "x.jsonl", "--format", "grades", "--license", "mit"), "--license", "grades belong"),
        (("import", "x.jsonl", "--format", "grades", "--replace"), "--replace", "grades belong"),
        (("diff", "one", "two", "--db", "w.db"), "--db", "both releases are folders"),
    ],
    ids=lambda value: " ".join(map(str, value[:1])) if isinstance(value, tuple) else None,
)
def test_an_option_without_effect_is_refused(
    words: tuple[object, ...],
    option: str,
    why: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    before = sorted(tmp_path.rglob("*"))
    karma_here(monkeypatch, capsys, "data", *words).refused(2, f"{option} has no effect: ", why)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_workbench_named_in_the_environment_is_no_request(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("KARMA_WORKBENCH", "mine.db")
    ended = karma_here(monkeypatch, capsys, "data", "dedupe", "x.jsonl", "--no-semantic")
    assert ended.code == 0, ended.err
