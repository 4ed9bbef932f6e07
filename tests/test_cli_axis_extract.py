"""`karma axis extract`: an artifact from a model and prompts, alone or together, and what it refuses."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import tiny
from karma_electric.core.artifact import damage, read_manifest
from karma_electric.core.jsonl import append_jsonl
from karma_electric.models.blocks import SITES
from karma_electric.models.refs import resolve
from karma_electric.steer.axis import load_axis
from test_cli import ENVIRONMENT, Ended, karma_here

if TYPE_CHECKING:
    from collections.abc import Callable

Run = Any
TOWARD = ("--toward", tiny.PERSONA)


@pytest.fixture(scope="module")
def contrast(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 user prompts: three chunks."""
    path = tmp_path_factory.mktemp("contrast") / "contrast.jsonl"
    append_jsonl(path, ({"id": p.id, "kind": p.kind, "prompt": p.text} for p in tiny.prompts(60)))
    return path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tiny_path: Path, contrast: Path) -> Run:
    """Run `karma axis extract` on the tiny model in this process, in float32."""

    def extracted(out: Path, *words: object) -> Ended:
        words = ("--contrast", contrast, "--dtype", "float32", *words)
        return karma_here(monkeypatch, capsys, "axis", "extract", tiny_path, out, *words)

    return extracted


def test_an_axis_is_made_once(run: Run, tiny_path: Path, tmp_path: Path) -> None:
    out = tmp_path / "axis"
    ended = run(out, *TOWARD, "--away", "You are a helpful AI assistant.", "--away", "Hi.", "--json")
    assert ended.code == 0, ended.err
    report = json.loads(ended.out)
    assert (report["n"], report["position"], report["shortened"]) == (60, "last-prompt", [])
    assert report["away"] == ["", "You are a helpful AI assistant.", "Hi."]
    assert [len(report["sites"][site]["d_prime"]) for site in SITES] == [tiny.LAYERS] * 2
    axis = load_axis(out / "axis.safetensors")
    assert (axis.toward, axis.model) == (tiny.PERSONA, resolve(str(tiny_path)).fingerprint)
    assert {p.name for p in out.iterdir()} == {
        "axis.safetensors",
        "diagnostics.json",
        "norms.png",
        "manifest.json",
    }
    assert damage(out) == []
    assert read_manifest(out).kind == "axis"
    again = run(out, *TOWARD, "--away", "You are a helpful AI assistant.", "--away", "Hi.")
    assert again.code == 0
    assert "already there, skipped" in again.err
    assert "60 prompts under 4 system prompts" in again.out
    run(out, *TOWARD).refused(2, "was made from something else", "away")
    assert run(out, *TOWARD, "--force").code == 0
    assert load_axis(out / "axis.safetensors").away == ("",)


def test_prompts_come_from_files_and_recipes(run: Run, tmp_path: Path) -> None:
    (tmp_path / "persona.txt").write_text("Be a gardener.\n")
    assert run(tmp_path / "a", "--toward", f"@{tmp_path / 'persona.txt'}", "--recipe", "demo.toml").code == 0
    axis = load_axis(tmp_path / "a" / "axis.safetensors")
    assert axis.toward == "Be a gardener."
    assert "You are a helpful AI assistant." in axis.away, "what is not given is the recipe's"
    assert run(tmp_path / "b", "--recipe", "demo.toml", "--away", "Hi.", "--max-length", "300").code == 0
    axis = load_axis(tmp_path / "b" / "axis.safetensors")
    assert axis.toward.startswith("You are Karma Electric.")
    assert axis.away == ("", "Hi.")


def test_responses_are_generated_or_given(run: Run, tmp_path: Path) -> None:
    words = (*TOWARD, "--position", "response")
    made = run(tmp_path / "made", *words, "--response-tokens", "4")
    assert made.code == 0, made.err
    answers = tmp_path / "made" / "contrast-responses.jsonl"
    assert len(answers.read_text().splitlines()) == 2 * 60
    assert run(tmp_path / "given", *words, "--responses", answers).code == 0
    one, other = (load_axis(tmp_path / name / "axis.safetensors") for name in ("made", "given"))
    assert one.position == other.position == "response"
    assert one.directions["mlp"].equal(other.directions["mlp"])
    assert "responses" in read_manifest(tmp_path / "given").inputs


def test_shortened_prompts_are_named(run: Run, tmp_path: Path) -> None:
    ended = run(tmp_path / "a", *TOWARD, "--max-length", "70")
    assert ended.code == 0
    (line,) = [line for line in ended.err.splitlines() if "shortened within the user text to fit 70 tokens" in line]
    shortened = load_axis(tmp_path / "a" / "axis.safetensors").stats["shortened"]
    assert shortened
    assert line.endswith(": " + ", ".join(shortened))


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        ((), 2, "--toward"),
        (("--toward", " "), 2, "empty"),
        (("--toward", "@nowhere.txt"), 3, "nowhere.txt"),
        ((*TOWARD, "--away", tiny.PERSONA), 2, "--away"),
        ((*TOWARD, "--position", "middle"), 2, "last-prompt, response"),
        ((*TOWARD, "--dtype", "int8"), 2, "float32"),
        ((*TOWARD, "--responses", "x.jsonl"), 2, "--position response"),
        ((*TOWARD, "--position", "response", "--responses", "x.jsonl"), 3, "x.jsonl"),
        ((*TOWARD, "--contrast", "nothing.jsonl"), 3, "nothing.jsonl"),
        (
            (*TOWARD, "--contrast", "empty.jsonl"),
            2,
            'empty.jsonl holds no prompts. One JSON object per line, such as {"id',
        ),
        ((*TOWARD, "--max-length", "9"), 2, "without any user text"),
        (("--recipe", "nothing.toml"), 3, "nothing.toml"),
    ],
)
def test_what_cannot_be_is_refused(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], code: int, named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").touch()
    run(tmp_path / "a", *words).refused(code, named)
    assert not (tmp_path / "a").exists()


def started(*words: object, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", *launcher, "karma_electric", "axis", "extract", *map(str, words)]
    environment = ENVIRONMENT | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.Popen(command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.slow
def test_two_processes_make_the_axis_of_one(run: Run, tiny_path: Path, contrast: Path, tmp_path: Path) -> None:
    """Three chunks and four batches of responses, shared by two processes on the CPU."""
    words = (*TOWARD, "--position", "response", "--response-tokens", "4")
    assert run(tmp_path / "one", *words).code == 0
    launcher = ("torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m")
    given = (tiny_path, tmp_path / "two", "--contrast", contrast, "--dtype", "float32", *words)
    with started(*given, launcher=launcher) as process:
        try:
            out, err = process.communicate(timeout=120)
        finally:
            process.terminate()
    assert process.returncode == 0, err
    assert out.count("60 prompts under 2 system prompts") == 1, "only the first prints"
    assert "2/2 chunks of contrast prompts" in err, "each has its share"
    one, two = (load_axis(tmp_path / name / "axis.safetensors") for name in ("one", "two"))
    for site in SITES:
        torch.testing.assert_close(two.directions[site], one.directions[site], rtol=1e-5, atol=1e-7)
        torch.testing.assert_close(two.projections[site], one.projections[site], rtol=1e-5, atol=1e-4)
    assert two.stats["mlp"]["away_higher"] == one.stats["mlp"]["away_higher"]
    assert damage(tmp_path / "two") == []
    answers = [(tmp_path / name / "contrast-responses.jsonl").read_text() for name in ("one", "two")]
    assert answers[0] == answers[1]


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.005)


@pytest.mark.slow
def test_a_killed_extraction_continues_and_gives_the_same(
    run: Run, tiny_path: Path, tmp_path: Path, contrast: Path
) -> None:
    assert run(tmp_path / "whole", *TOWARD).code == 0
    cut = tmp_path / "cut"
    words = (tiny_path, cut, "--contrast", contrast, "--dtype", "float32", *TOWARD)
    chunks = tmp_path / ".partial" / "cut" / "extraction"
    with started(*words) as process:
        wait_for((chunks / "0000.safetensors").exists, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert not cut.exists()
    ended = run(cut, *TOWARD)
    assert ended.code == 0, ended.err
    assert "continuing where the last attempt stopped" in ended.err
    whole, again = (load_axis(folder / "axis.safetensors") for folder in (tmp_path / "whole", cut))
    assert again.directions["block"].equal(whole.directions["block"])
    assert again.stats == whole.stats
