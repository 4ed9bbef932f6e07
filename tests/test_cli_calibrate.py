"""`karma axis calibrate`: a new cap from an axis that is there, resumed, reused, on changed models, and refused."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import tiny
from karma_electric.cli.main import main
from karma_electric.core.jsonl import append_jsonl
from karma_electric.export.gguf import export_gguf
from karma_electric.models.blocks import SITES
from karma_electric.models.chat_template import template_sha256
from karma_electric.models.loading import load_model, load_tokenizer
from karma_electric.models.refs import folder_fingerprint
from karma_electric.steer.axis import save_axis
from karma_electric.steer.contrast import KINDS
from karma_electric.steer.responses import FILE, RESPONSE_KINDS, by_split, load_responses
from karma_electric.steer.spec import AXIS_FILE, CAP_FILE, load_cap, load_spec, save_spec
from test_cli import Ended, karma_here

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Run = Any
N_RESPONSES = 24  # of 12 and 6 prompts, a third of them adversarial: half of the ordinary ones are asked twice


@pytest.fixture(scope="module")
def place(tiny_path: Path, tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an axis of the tiny model and prompts of all kinds."""
    folder = tmp_path_factory.mktemp("place")
    projections = torch.randn(2, 40, tiny.LAYERS, generator=torch.Generator().manual_seed(3))
    axis = replace(
        tiny.random_axis(),
        model=folder_fingerprint(tiny_path),
        template_sha256=template_sha256(tokenizer),
        projections={site: projections + number for number, site in enumerate(SITES)},
    )
    (folder / "axis").mkdir()
    save_axis(axis, folder / "axis" / AXIS_FILE)
    for name, n, seed in (("calibration", 12, 1), ("heldout", 6, 2)):
        prompts = tiny.prompts(n, seed, prefix=name)
        rows = [{"id": p.id, "kind": KINDS[i % 3], "prompt": f"{name}: {p.text}"} for i, p in enumerate(prompts)]
        append_jsonl(folder / f"{name}.jsonl", rows)
    return folder


def options(place: Path) -> list[object]:
    return [
        *("--calibration", place / "calibration.jsonl", "--heldout", place / "heldout.jsonl"),
        *("--response-tokens", 12, "--layers", "2-4", "--dtype", "float32"),
    ]


@pytest.fixture
def calibrate(place: Path, tiny_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `karma axis calibrate` in this process, on the tiny model and the axis of `place`."""

    def run(out: Path, *words: object, model: object = tiny_path, axis: object = place / "axis") -> Ended:
        return karma_here(monkeypatch, capsys, "axis", "calibrate", model, axis, out, *options(place), *words)

    return run


@pytest.fixture(scope="module")
def made(place: Path, tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished calibration, read only."""
    out = tmp_path_factory.mktemp("made") / "cap"
    words = [tiny_path, place / "axis", out, *options(place)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["karma", "axis", "calibrate", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code
    return out


def test_the_folder_has_all_that_a_cap_needs(made: Path, place: Path) -> None:
    files = {"axis.safetensors", "cap.json", "responses.jsonl", "projections.png", "cap_rates.png", "manifest.json"}
    assert {file.name for file in made.iterdir()} == files
    assert (made / AXIS_FILE).read_bytes() == (place / "axis" / AXIS_FILE).read_bytes()
    cap, _ = load_cap(made)
    assert cap.spec.layers == (2, 3, 4)
    assert cap.spec.method == {"name": "runtime-q", "quantile": 0.75}
    assert set(cap.spec.measured["heldout"]["kinds"]) == set(RESPONSE_KINDS)
    rows = load_responses(made / FILE)
    assert len(rows) <= N_RESPONSES
    assert {row.kind for row in rows} == set(RESPONSE_KINDS)
    assert {row.system for row in rows if row.kind == "generic"} == set(tiny.AWAY)


def test_it_can_be_baked(made: Path, tiny_path: Path, tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    ended = karma_here(monkeypatch, capsys, "bake", tiny_path, made, tmp_path / "b", "--max-kl-ratio", "1", "--force")
    assert ended.code == 0, ended.err
    assert "another model" not in ended.err
    assert sum(map(len, by_split(made / FILE).values())) > 15


def test_the_same_again_is_skipped_and_prints_the_same_table(calibrate: Run, made: Path) -> None:
    first, second = calibrate(made), calibrate(made)
    assert "already there, skipped" in first.err
    assert first.out == second.out
    spec = load_spec(made / CAP_FILE)
    for layer in spec.layers:
        line = next(line for line in first.out.splitlines() if line.split()[:1] == [str(layer)])
        assert f"{spec.thresholds[layer]:.3f}" in line
        assert f"{spec.measured['threshold_sd'][str(layer)]:+.2f}" in line
        assert f"{spec.cap_rate[str(layer)]:.1%}" in line
    assert f"{spec.cap_rate['mean']:.1%}" in first.out
    assert json.loads(calibrate(made, "--json").out) == json.loads((made / CAP_FILE).read_text())


def test_something_else_in_the_folder_is_refused_unless_forced(calibrate: Run, made: Path, tmp_path: Path) -> None:
    out = tmp_path / "cap"
    assert calibrate(out, "--responses", made / FILE).code == 0
    calibrate(out, "--responses", made / FILE, "--alpha", 0.3).refused(2, "alpha: 0.5 -> 0.3", "--force")
    assert calibrate(out, "--responses", made / FILE, "--alpha", 0.3, "--force").code == 0
    assert load_spec(out / CAP_FILE).alpha == 0.3


def test_responses_of_an_earlier_calibration_give_the_same_cap(calibrate: Run, made: Path, tmp_path: Path) -> None:
    ended = calibrate(tmp_path / "again", "--responses", made / FILE)
    assert ended.code == 0, ended.err
    assert "warning" not in ended.err, "axis, model and responses belong together"
    assert load_spec(tmp_path / "again" / CAP_FILE) == load_spec(made / CAP_FILE)
    assert (tmp_path / "again" / FILE).read_bytes() == (made / FILE).read_bytes()


def test_a_target_is_solved_for_and_reported(calibrate: Run, made: Path, tmp_path: Path) -> None:
    ended = calibrate(tmp_path / "cap", "--responses", made / FILE, "--target-cap-rate", 0.3)
    assert ended.code == 0, ended.err
    method = load_spec(tmp_path / "cap" / CAP_FILE).method
    assert method["reached_on_calibration"] == pytest.approx(0.3, abs=0.02)
    assert (
        f"target cap rate 30.0%: {method['reached_on_calibration']:.1%} on calibration text, "
        f"{method['reached_on_heldout']:.1%} held-out, at q = {method['quantile']:.4f}"
    ) in ended.out


def test_persona_p25_needs_no_quantile(calibrate: Run, made: Path, place: Path, tmp_path: Path) -> None:
    ended = calibrate(tmp_path / "cap", "--responses", made / FILE, "--method", "persona-p25", "--site", "block")
    assert ended.code == 0, ended.err
    cap, axis = load_cap(tmp_path / "cap")
    assert cap.spec.site == "block"
    persona = axis.projections["block"][0].double().numpy()
    for layer, threshold in cap.spec.thresholds.items():
        assert threshold == pytest.approx(np.percentile(persona[:, layer], 25), abs=1e-6)


def test_weights_leave_kinds_out(calibrate: Run, tmp_path: Path) -> None:
    ended = calibrate(tmp_path / "cap", "--weights", "deployment=3,adversarial=1")
    assert ended.code == 0, ended.err
    assert load_spec(tmp_path / "cap" / CAP_FILE).calibrated_on["mixture"] == {
        "deployment": 0.75,
        "generic": 0.0,
        "adversarial": 0.25,
    }
    assert {row.kind for row in load_responses(tmp_path / "cap" / FILE)} == {"deployment", "adversarial"}


def test_what_is_not_given_is_taken_from_the_cap_beside_the_axis(calibrate: Run, made: Path, tmp_path: Path) -> None:
    beside = tmp_path / "axis"
    beside.mkdir()
    (beside / AXIS_FILE).write_bytes((made / AXIS_FILE).read_bytes())
    spec = load_spec(made / CAP_FILE)
    save_spec(replace(spec, site="block", alpha=0.8), beside / CAP_FILE)
    assert calibrate(tmp_path / "cap", "--responses", made / FILE, axis=beside).code == 0
    found = load_spec(tmp_path / "cap" / CAP_FILE)
    assert (found.site, found.alpha) == ("block", 0.8)


def test_depth_names_blocks_as_in_a_recipe(
    place: Path, tiny_path: Path, made: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    words = (tiny_path, place / "axis" / AXIS_FILE, tmp_path / "cap", "--responses", made / FILE, "--depth", "0.5-0.88")
    assert karma_here(monkeypatch, capsys, "axis", "calibrate", *words).code == 0
    assert load_spec(tmp_path / "cap" / CAP_FILE).layers == (3, 4, 5)


@pytest.mark.slow
def test_killed_with_sigkill_it_continues_with_the_answers_it_had(
    place: Path, tiny_path: Path, made: Path, calibrate: Run, tmp_path: Path
) -> None:
    """Killed while the second batch of answers is generated, in a process of its own."""
    out = tmp_path / "cap"
    words = ["karma", "axis", "calibrate", *map(str, [tiny_path, place / "axis", out, *options(place)])]
    code = (
        "import os, signal, sys\n"
        "import karma_electric.steer.calibrate as module\n"
        "from karma_electric.models.engines.hf import HfEngine\n"
        "generate, calls = HfEngine.generate, []\n"
        "def dying(*arguments, **more):\n"
        "    calls.append(1)\n"
        "    return generate(*arguments, **more) if len(calls) == 1 else os.kill(os.getpid(), signal.SIGKILL)\n"
        "module._BATCH, HfEngine.generate = 5, dying\n"
        f"sys.argv = {words!r}\n"
        "from karma_electric.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, env=dict(os.environ))
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert not out.exists()
    kept = (tmp_path / ".partial" / "cap" / FILE).read_bytes()
    assert kept.count(b"\n") == 5
    ended = calibrate(out)
    assert ended.code == 0, ended.err
    assert "continuing where the last attempt stopped" in ended.err
    assert (out / FILE).read_bytes().startswith(kept)
    whole = load_responses(made / FILE)
    assert [(r.id, r.kind) for r in load_responses(out / FILE)] == [(r.id, r.kind) for r in whole]


# Changed models


def other_model(folder: Path) -> Path:
    return tiny.write_checkpoint(folder, seed=1)


def test_another_checkpoint_of_the_same_shape_is_calibrated_anew_with_a_warning(
    calibrate: Run, made: Path, tmp_path: Path
) -> None:
    other = other_model(tmp_path / "other")
    ended = calibrate(tmp_path / "cap", "--responses", made / FILE, model=other)
    assert ended.code == 0, ended.err
    assert "warning: The axis was extracted from another model" in ended.err
    spec = load_spec(tmp_path / "cap" / CAP_FILE)
    assert spec.calibrated_on["model"] == folder_fingerprint(other)
    assert spec.calibrated_on["axis_model"] != spec.calibrated_on["model"]
    assert spec.thresholds != pytest.approx(load_spec(made / CAP_FILE).thresholds, rel=1e-3)


def test_bake_warns_about_a_cap_of_another_model_with_the_shift(
    made: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    ended = karma_here(
        monkeypatch,
        capsys,
        "bake",
        other_model(tmp_path / "other"),
        made,
        tmp_path / "b",
        "--max-kl-ratio",
        "1",
        "--force",
    )
    assert ended.code == 0, ended.err
    assert "warning: The cap was calibrated on another model" in ended.err
    assert " sd at blocks 2-4): calibrate again: karma axis calibrate" in ended.err


def test_chat_warns_about_a_cap_of_another_model_with_the_shift(
    made: Path, tiny_path: Path, tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    words = ("--cap", made, "--prompt", "Why?", "--max-new-tokens", 2)
    ended = karma_here(monkeypatch, capsys, "chat", other_model(tmp_path / "other"), *words)
    assert ended.code == 0, ended.err
    assert "warning: The cap was calibrated on another model" in ended.err
    assert "Projections have shifted (on 8 fixed conversations" in ended.err
    assert "another model" not in karma_here(monkeypatch, capsys, "chat", tiny_path, *words).err


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="needs bitsandbytes")
def test_a_model_in_4_bits_is_calibrated_as_it_is(calibrate: Run, made: Path, tmp_path: Path) -> None:
    wide = tiny.write_checkpoint(tmp_path / "wide", intermediate=192)  # NF4 on a CPU needs a multiple of 64
    plain = calibrate(tmp_path / "plain", "--responses", made / FILE, model=wide)
    ended = calibrate(tmp_path / "nf4", "--responses", made / FILE, "--load-in", "nf4", model=wide)
    assert (plain.code, ended.code) == (0, 0), ended.err
    first, second = (load_spec(tmp_path / name / CAP_FILE) for name in ("plain", "nf4"))
    assert (first.calibrated_on["quantisation"], second.calibrated_on["quantisation"]) == ("none", "nf4")
    assert first.calibrated_on["model"] == second.calibrated_on["model"]
    assert first.thresholds != second.thresholds
    for layer in first.layers:
        assert second.thresholds[layer] == pytest.approx(first.thresholds[layer], rel=0.5, abs=2.0)


def test_4_bits_on_a_shape_that_would_crash_are_refused(calibrate: Run, made: Path, tmp_path: Path) -> None:
    pytest.importorskip("bitsandbytes")
    if torch.cuda.is_available():
        pytest.skip("NF4 runs at any shape there")
    calibrate(tmp_path / "cap", "--responses", made / FILE, "--load-in", "nf4").refused(2, "intermediate_size is 160")


def test_a_gguf_file_is_calibrated_with_its_rounded_weights(
    calibrate: Run,
    made: Path,
    tiny_path: Path,
    tmp_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    file = tmp_path / "tiny-q8_0.gguf"
    export_gguf(tiny_path, file, file_type="q8_0", name="tiny")
    plain, rounded = (load_model(path, dtype="float32", device="cpu") for path in (tiny_path, file))
    for exact, near in zip(plain.parameters(), rounded.parameters(), strict=True):
        assert (exact - near).abs().max() <= exact.abs().max() / 127
    text = "My neighbour lost 1234 letters.\n\nToday!"
    assert load_tokenizer(file)(text)["input_ids"] == tokenizer(text)["input_ids"]
    ended = calibrate(tmp_path / "cap", "--responses", made / FILE, model=file)
    assert ended.code == 0, ended.err
    spec, before = load_spec(tmp_path / "cap" / CAP_FILE), load_spec(made / CAP_FILE)
    assert spec.calibrated_on["quantisation"] == "gguf"
    assert spec.calibrated_on["template_sha256"] == before.calibrated_on["template_sha256"]
    assert spec.thresholds != before.thresholds
    assert spec.thresholds == pytest.approx(before.thresholds, abs=1.0)
    words = ("--cap", tmp_path / "cap", "--prompt", "Why?", "--max-new-tokens", 2)
    chat = karma_here(monkeypatch, capsys, "chat", file, *words)
    assert chat.code == 0, chat.err
    assert "quantisation" not in chat.err
    assert "quantisation gguf, this model's is none" in karma_here(monkeypatch, capsys, "chat", tiny_path, *words).err
    calibrate(tmp_path / "x", "--load-in", "nf4", model=file).refused(2, "quantised already")
    (tmp_path / "torn.gguf").write_bytes(file.read_bytes()[:1000])
    calibrate(tmp_path / "x", "--responses", made / FILE, model=tmp_path / "torn.gguf").refused(2, "torn.gguf")


# What cannot be


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--target-cap-rate", 0), ("--target-cap-rate is 0.0", "greater than 0")),
        (("--target-cap-rate", 1), ("--target-cap-rate is 1.0", "less than 1")),
        (("--target-cap-rate", 0.2, "--quantile", 0.5), ("both given: keep one",)),
        (("--target-cap-rate", 0.2, "--method", "persona-p25"), ("runtime-q",)),
        (("--quantile", "nan"), ("--quantile",)),
        (("--method", "p50"), ("--method is 'p50'", "persona-p25")),
        (("--layers", "4-9"), ("4-9 do not exist", "blocks 0-5")),
        (("--layers", "four"), ("--layers is 'four'", "21-26")),
        (("--depth", "0.5-0.9"), ("both given: keep one",)),
        (("--weights", "deployment=0"), ("--weights", "all weights are 0")),
        (("--weights", "deployment=-1"), ("--weights", "greater than or equal to 0")),
        (("--weights", "all=1"), ("--weights", "deployment, generic, adversarial")),
        (("--site", "attention"), ("--site is 'attention'",)),
        (("--alpha", 2), ("--alpha is 2.0",)),
        (("--dtype", "int8"), ("--dtype is 'int8'", "bfloat16")),
        (("--load-in", "int8"), ("--load-in is 'int8'", "nf4")),
    ],
)
def test_settings_that_cannot_be_are_named(
    calibrate: Run, tmp_path: Path, words: tuple[object, ...], named: tuple[str, ...]
) -> None:
    calibrate(tmp_path / "cap", *words).refused(2, *named)
    assert not (tmp_path / "cap").exists()
    assert not (tmp_path / ".partial").exists()


def test_what_is_missing_or_unusable_is_named(
    calibrate: Run, place: Path, made: Path, tmp_path: Path, model: PreTrainedModel
) -> None:
    out = tmp_path / "cap"
    calibrate(out, model=tmp_path / "none").refused(3, "none")
    calibrate(out, axis=tmp_path).refused(3, AXIS_FILE)
    calibrate(out, "--responses", tmp_path / "none.jsonl").refused(3, "none.jsonl")
    calibrate(out, "--heldout", place / "calibration.jsonl").refused(2, "in both calibration and heldout")
    save_axis(tiny.random_axis(hidden=32), tmp_path / "narrow.safetensors")
    calibrate(out, axis=tmp_path / "narrow.safetensors").refused(2, "hidden size 32", "does not transfer")
    save_axis(tiny.random_axis(), tmp_path / "bare.safetensors")
    calibrate(out, "--method", "persona-p25", axis=tmp_path / "bare.safetensors").refused(2, "no contrast projections")
    (tmp_path / "empty.jsonl").write_text("")
    calibrate(out, "--responses", tmp_path / "empty.jsonl").refused(2, "no calibration responses")
    calibrate(place / "axis").refused(2, "the folder the axis is in")
    assert not out.exists()
