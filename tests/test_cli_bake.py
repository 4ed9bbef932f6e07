"""`karma bake`: several strengths from one calibration, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import tiny
from karma_electric.core.jsonl import append_jsonl
from karma_electric.core.messages import Conversation
from karma_electric.steer.axis import save_axis
from karma_electric.steer.responses import FILE, Response
from karma_electric.steer.spec import AXIS_FILE, CAP_FILE, save_spec
from test_cli import Ended, karma_here

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Run = Any


def responses(conversations: list[Conversation], split: str) -> list[dict[str, str]]:
    return [
        asdict(Response(f"{split}{n}", split, c[0].content, c[1].content, c[2].content))
        for n, c in enumerate(conversations)
    ]


@pytest.fixture(scope="module")
def axis_path(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """What `karma run --to axis` leaves: axis, cap and the responses it was calibrated on."""
    folder = tmp_path_factory.mktemp("axis")
    calibration, heldout = tiny.chats(40, seed=41), tiny.chats(6, seed=42)
    save_axis(tiny.random_axis(), folder / AXIS_FILE)
    save_spec(tiny.cap_at(model, tokenizer, "mlp", quantile=0.75, conversations=calibration).spec, folder / CAP_FILE)
    append_jsonl(folder / FILE, responses(calibration, "calibration") + responses(heldout, "heldout"))
    return folder


@pytest.fixture
def bake(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `karma bake` in this process."""

    def run(*words: object) -> Ended:
        return karma_here(monkeypatch, capsys, "bake", *words)

    return run


def test_several_strengths_come_from_one_calibration(
    bake: Run, tiny_path: Path, axis_path: Path, tmp_path: Path
) -> None:
    out = tmp_path / "baked"
    ended = bake(tiny_path, axis_path, out, "--alpha", "0.3,1", "--max-kl-ratio", "1", "--json")
    assert ended.code == 0, ended.err
    reports = json.loads(ended.out)
    assert [report["alpha"] for report in reports.values()] == [0.3, 1.0]
    for name in ("alpha-0.3", "alpha-1"):
        config = json.loads((out / name / "config.json").read_text())
        assert config["intermediate_size"] == 192
        assert (out / name / "manifest.json").exists()
    kl = [report["all"]["kl_hooked_uncapped_nats"] for report in reports.values()]
    assert kl[1] > kl[0] > 0
    again = bake(tiny_path, axis_path, out, "--alpha", "0.3,1", "--max-kl-ratio", "1")
    assert again.code == 0
    assert "fitting" not in again.err
    assert "KL ratio" in again.out


def test_one_strength_goes_straight_into_the_folder(
    bake: Run, tiny_path: Path, axis_path: Path, tmp_path: Path
) -> None:
    ended = bake(tiny_path, axis_path, tmp_path / "b", "--placement", "replace", "--force")
    assert ended.code == 0, ended.err
    report = json.loads((tmp_path / "b" / "fidelity.json").read_text())
    assert report["placement"] == "replace"
    assert report["alpha"] == 0.5
    assert set(report["replaced"]) == {"2", "3", "4"}
    assert report["ordinary_text"]["tokens"] > 100


def test_an_unfaithful_cap_is_refused_unless_forced(
    bake: Run, tiny_path: Path, axis_path: Path, tmp_path: Path
) -> None:
    words = (tiny_path, axis_path, tmp_path / "b", "--max-kl-ratio", "1e-9")
    bake(*words).refused(1, "not faithful", "at most 1e-09")
    assert not (tmp_path / "b").exists()
    assert bake(*words, "--force").code == 0


@pytest.mark.parametrize("alpha", ["0", "1.5", "half", "0.3,0.3", "", "nan"])
def test_a_strength_outside_0_to_1_is_refused(
    bake: Run, tiny_path: Path, axis_path: Path, tmp_path: Path, alpha: str
) -> None:
    bake(tiny_path, axis_path, tmp_path / "b", "--alpha", alpha).refused(2, "--alpha", "0.3,0.5,1")


def test_wrong_settings_and_missing_parts_are_named(
    bake: Run, tiny_path: Path, axis_path: Path, tmp_path: Path
) -> None:
    bake(tiny_path, axis_path, tmp_path / "b", "--placement", "sideways").refused(2, "--placement", "sideways")
    bake(tiny_path, tmp_path, tmp_path / "b").refused(3, "does not exist")
    bake(tmp_path / "none", axis_path, tmp_path / "b").refused(3, "none")


def test_a_cap_without_its_responses_says_what_is_missing(
    bake: Run, tiny_path: Path, axis_path: Path, tmp_path: Path
) -> None:
    for name in (AXIS_FILE, CAP_FILE):
        (tmp_path / name).write_bytes((axis_path / name).read_bytes())
    bake(tiny_path, tmp_path, tmp_path / "b").refused(3, FILE)


def test_an_axis_of_another_shape_is_refused(bake: Run, tiny_path: Path, axis_path: Path, tmp_path: Path) -> None:
    for name in (CAP_FILE, FILE):
        (tmp_path / name).write_bytes((axis_path / name).read_bytes())
    save_axis(replace(tiny.random_axis(hidden=32)), tmp_path / AXIS_FILE)
    bake(tiny_path, tmp_path, tmp_path / "b").refused(2, "hidden size 32", "does not transfer")
