"""`karma train --dry-run`: the checks of the real run, and what that would make."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from test_chain import write_workplace
from test_cli import karma_here


@pytest.fixture
def folder(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A recipe on the tiny model, from where the command is given."""
    write_workplace(tmp_path, tiny_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_plan_says_what_the_real_run_would_do(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def planned(*words: str) -> dict[str, str]:
        ended = karma_here(monkeypatch, capsys, "train", "tiny.toml", "--dry-run", "--json", *words)
        assert ended.code == 0, ended.err
        stages: dict[str, str] = json.loads(ended.out)["stages"]
        return stages

    other = ("--set", "release.seed=1")
    assert planned() == {"release": "would be made", "adapter": "would be made"}
    assert not (folder / "runs").exists()
    assert karma_here(monkeypatch, capsys, "run", "tiny.toml", "--to", "release").code == 0
    assert planned()["release"] == "already there"
    assert planned(*other)["release"] == "differs: would be refused without --force"
    assert planned(*other, "--force")["release"] == "would be replaced"
    said = karma_here(monkeypatch, capsys, "train", "tiny.toml", "--dry-run", *other).out.splitlines()
    assert said[0].split(maxsplit=1) == ["release", "differs: would be refused without --force"]


@pytest.mark.parametrize("words", [["--dry-run"], []], ids=["dry", "real"])
def test_a_folder_that_cannot_be_one_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    ended = karma_here(monkeypatch, capsys, "train", "tiny.toml", "--run-dir", "tiny.toml/x", *words)
    ended.refused(2, "tiny.toml is a file, expected a folder.", "--run-dir")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("words", [["--dry-run"], []], ids=["dry", "real"])
def test_a_place_where_nothing_may_be_written_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    (folder / "locked").mkdir(mode=0o555)
    ended = karma_here(monkeypatch, capsys, "train", "tiny.toml", "--run-dir", "locked/x", *words)
    ended.refused(2, "locked/x cannot be made", "--run-dir")
