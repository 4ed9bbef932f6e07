"""The scripts of examples/ do what they say: on the tiny model here, on the embedded one in `make check-examples`."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

from karma_electric.steer.axis import load_axis

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "examples"


def run_here(monkeypatch: pytest.MonkeyPatch, name: str, *words: object) -> None:
    """Run a script in this process, where torch is loaded already."""
    monkeypatch.setattr(sys, "argv", [name, *map(str, words)])
    runpy.run_path(str(EXAMPLES / name), run_name="__main__")


def test_an_axis_is_extracted_and_plotted(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_here(monkeypatch, "extract_axis.py", tiny_path, "--prompts", 6, "--out", tmp_path / "axis")
    axis = load_axis(tmp_path / "axis" / "axis.safetensors")
    assert (axis.n_layers, axis.n) == (6, 6)
    assert (tmp_path / "axis" / "axis.png").read_bytes().startswith(b"\x89PNG")
    assert "6 blocks, 6 prompts; most apart at block" in capsys.readouterr().out


def test_a_cap_is_baked_and_nearer_to_the_hooks_than_no_cap(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--out", tmp_path / "out", "--prompts", 9, "--response-tokens", 8)
    run_here(monkeypatch, "bake_and_compare.py", tiny_path, *options)
    ratio = capsys.readouterr().out.split("ratio")[1].split()[0]
    assert 0 < float(ratio) < 0.5
    assert (tmp_path / "out" / "capped" / "model.safetensors").is_file()


def test_the_drift_of_a_conversation_is_printed_per_answer_and_drawn(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = tmp_path / "chat.json"
    short.write_text(
        '[{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hello"}, '
        '{"role": "assistant", "content": "Good morning."}]'
    )
    run_here(monkeypatch, "conversation_drift.py", short, tiny_path, "--prompts", 4, "--plot", tmp_path / "drift.png")
    out = capsys.readouterr().out
    assert "turn 3: mean" in out
    assert "Good morning." in out
    assert (tmp_path / "drift.png").read_bytes().startswith(b"\x89PNG")


def test_a_judge_of_ones_own_is_measured_beside_the_shipped_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_here(monkeypatch, "own_judge.py")
    lines = [line for line in capsys.readouterr().out.splitlines() if "kappa" in line]
    assert [line.split()[0] for line in lines] == ["nearest-1", "signals"]


@pytest.mark.long
@pytest.mark.parametrize("name", ["extract_axis.py", "bake_and_compare.py", "conversation_drift.py", "own_judge.py"])
def test_the_scripts_run_as_they_are_on_the_embedded_model(name: str, tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, EXAMPLES / name],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.strip()
