"""`karma bake`: several strengths from one calibration, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

import tiny
from karma_electric.core.artifact import read_manifest, seal
from karma_electric.core.jsonl import append_jsonl
from karma_electric.core.lineage import problems_of
from karma_electric.core.messages import Conversation
from karma_electric.models import loading
from karma_electric.models.chat_template import conversation_ids
from karma_electric.steer.axis import save_axis
from karma_electric.steer.responses import FILE, Response
from karma_electric.steer.spec import AXIS_FILE, CAP_FILE, CapSpec, save_spec
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
    assert [path.name for path in sorted(tmp_path.rglob("*")) if path.parent in (tmp_path, out)] == [
        "baked",
        "alpha-0.3",
        "alpha-1",
    ]


def test_a_finished_bake_is_skipped_before_anything_is_loaded(
    bake: Run, tiny_path: Path, axis_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cap is of another model, for which the model would be loaded and run to say how far projections shifted."""
    loaded: list[object] = []
    spied = loading.load_model

    def spy(*arguments: Any, **keywords: Any) -> Any:
        loaded.append(arguments)
        return spied(*arguments, **keywords)

    monkeypatch.setattr(loading, "load_model", spy)
    words = (tiny_path, axis_path, tmp_path / "b", "--force")
    first = bake(*words)
    assert "warning: The cap was calibrated on another model" in first.err
    assert loaded, "the spy sees what is loaded"
    loaded.clear()
    again = bake(*words)
    assert (again.code, again.out) == (0, first.out)
    assert "already there, skipped" in again.err
    assert "warning" not in again.err
    assert loaded == []


def test_skipping_a_finished_bake_does_not_even_import_torch(
    bake: Run, tiny_path: Path, axis_path: Path, tmp_path: Path
) -> None:
    words = ["bake", *map(str, (tiny_path, axis_path, tmp_path / "b", "--force"))]
    assert bake(*words[1:]).code == 0
    code = (
        f"import sys\nsys.argv = ['karma', *{words!r}]\n"
        "from karma_electric.cli.main import main\n"
        "try:\n    main()\nfinally:\n    assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "already there, skipped" in done.stderr


@pytest.mark.slow
def test_each_strength_is_fitted_for_itself_and_is_what_it_would_be_alone(
    bake: Run, tiny_path: Path, axis_path: Path, tmp_path: Path
) -> None:
    """A capped block changes what the next one reads, and by how much depends on the strength."""
    ended = bake(tiny_path, axis_path, tmp_path / "many", "--alpha", "0.5,1", "--max-kl-ratio", "1")
    assert ended.code == 0, ended.err
    assert ended.err.count("fitting a neuron") == 2
    assert bake(tiny_path, axis_path, tmp_path / "one", "--alpha", "1", "--max-kl-ratio", "1").code == 0
    many, one, own = (
        load_file(tmp_path / name / "model.safetensors") for name in ("many/alpha-1", "one", "many/alpha-0.5")
    )
    assert all(torch.equal(many[name], one[name]) for name in one)
    gates = [f"model.layers.{layer}.mlp.gate_proj.weight" for layer in (2, 3, 4)]
    assert [torch.equal(many[gate], own[gate]) for gate in gates] == [True, False, False]


@pytest.mark.slow
def test_what_was_kept_by_force_is_held_to_the_gate_again(
    bake: Run, tiny_path: Path, axis_path: Path, tmp_path: Path
) -> None:
    words = (tiny_path, axis_path, tmp_path / "b", "--max-kl-ratio", "1e-9")
    bake(*words).refused(1, "not faithful", "remove it")
    assert bake(*words, "--force").code == 0
    bake(*words).refused(1, "not faithful")
    assert (tmp_path / "b" / "model.safetensors").is_file()


@pytest.mark.slow
def test_a_second_cap_goes_in_beside_the_first(
    bake: Run,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tiny_path: Path,
    axis_path: Path,
    tmp_path: Path,
) -> None:
    second = tmp_path / "second"
    second.mkdir()
    axis = tiny.random_axis(seed=7)
    save_axis(axis, second / AXIS_FILE)
    calibration = tiny.chats(40, seed=41)
    thresholds = {}
    for layer in (3, 4):
        a = torch.cat(
            [
                tiny.residuals(model, torch.tensor([conversation_ids(tokenizer, c)]), "mlp")[layer][0, 1:]
                for c in calibration
            ]
        )
        thresholds[layer] = float((a @ axis.directions["mlp"][layer]).quantile(0.6))
    save_spec(CapSpec(AXIS_FILE, "mlp", (3, 4), thresholds, 0.8), second / CAP_FILE)
    words = (tiny_path, axis_path, tmp_path / "b", "--with", second, "--max-kl-ratio", "1")
    ended = bake(*words)
    assert ended.code == 0, ended.err
    report = json.loads((tmp_path / "b" / "fidelity.json").read_text())
    assert report["caps"] == [{"layers": [2, 3, 4], "alpha": 0.5}, {"layers": [3, 4], "alpha": 0.8}]
    assert "further" not in report["neurons"]["2"]
    assert len(report["neurons"]["3"]["further"]) == 1
    weights = load_file(tmp_path / "b" / "model.safetensors")
    for layer, count in ((2, 1), (3, 2), (4, 2), (5, 0)):
        rows = weights[f"model.layers.{layer}.mlp.gate_proj.weight"][160:].abs().sum(1)
        assert int((rows > 0).sum()) == count
    bake(tiny_path, axis_path, tmp_path / "b").refused(2, "was made from something else")
    bake(tiny_path, axis_path, tmp_path / "c", "--with", tmp_path / "none").refused(3, "none", "does not exist")


def test_one_strength_goes_straight_into_the_folder(
    bake: Run, tiny_path: Path, axis_path: Path, tmp_path: Path
) -> None:
    ended = bake(tiny_path, axis_path, tmp_path / "b", "--placement", "replace", "--force")
    assert ended.code == 0, ended.err
    report = json.loads((tmp_path / "b" / "fidelity.json").read_text())
    assert report["placement"] == "replace"
    assert report["alpha"] == 0.5
    assert set(report["replaced"]) == {"2", "3", "4"}
    assert report["heldout_prompts"]["tokens"] > 100
    assert "ordinary_text" not in report, "the texts are user prompts"
    assert report["greedy"]["prompts"] == 6
    assert report["all"]["kl_ratio_interval"]["low"] <= report["all"]["kl_ratio"]
    assert {"prefill_ratio_baked_to_uncapped", "decode_ratio_baked_to_uncapped"} <= set(report["throughput"])


def test_a_bake_is_not_taken_for_one_along_another_axis_beside_it(
    bake: Run, tiny_path: Path, axis_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "axis").mkdir()
    seal(tmp_path / "axis", kind="axis", config={}, inputs={})  # a run's own, which is not baked
    ended = bake(tiny_path, axis_path, tmp_path / "b", "--placement", "replace", "--force")
    assert ended.code == 0, ended.err
    assert read_manifest(tmp_path / "b").parents == {}
    assert problems_of(tmp_path) == {"axis": [], "b": []}


def test_a_report_of_an_earlier_version_can_still_be_shown(
    bake: Run, tiny_path: Path, axis_path: Path, tmp_path: Path
) -> None:
    words = (tiny_path, axis_path, tmp_path / "b", "--max-kl-ratio", "1")
    shown = bake(*words).out
    file = tmp_path / "b" / "fidelity.json"
    file.write_text(file.read_text().replace('"heldout_prompts"', '"ordinary_text"'))
    manifest = tmp_path / "b" / "manifest.json"
    sizes = json.loads(manifest.read_text())
    sizes["sizes"]["fidelity.json"] = file.stat().st_size
    manifest.write_text(json.dumps(sizes))
    again = bake(*words)
    assert (again.code, again.out) == (0, shown)


def test_a_baked_model_and_a_quantised_one_are_refused(
    bake: Run, tiny_path: Path, axis_path: Path, tmp_path: Path
) -> None:
    assert bake(tiny_path, axis_path, tmp_path / "b", "--force").code == 0
    bake(tmp_path / "b", axis_path, tmp_path / "c").refused(2, "has its cap compiled into the weights")
    quantised = tmp_path / "quantised"
    quantised.mkdir()
    for file in tiny_path.iterdir():
        (quantised / file.name).write_bytes(file.read_bytes())
    config = json.loads((quantised / "config.json").read_text())
    (quantised / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
    bake(quantised, axis_path, tmp_path / "c").refused(2, "quantised (gptq)", "quantised from")


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
