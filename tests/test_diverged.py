"""When training diverges, the last good adapter is kept where nothing removes it, and the message says where."""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from karma_electric.core.errors import GateError
from karma_electric.core.progress import Silent
from karma_electric.core.recipe import load_recipe
from karma_electric.models.loading import load_model, quiet_transformers
from karma_electric.pipeline import run_stages
from karma_electric.stages import plan_run
from karma_electric.train.disk import FLOAT32_MOMENTS, adapter_bytes, checkpoint_bytes
from karma_electric.train.last_good import checkpoint_steps, keep_last_good
from karma_electric.train.trajectory import read_trajectory
from test_chain import write_workplace
from test_cli import karma_here
from test_train import Killed, Reaper, release, train  # noqa: F401  (release: a fixture)

# The learning rate rises from 0: step 1 changes nothing, step 2 ruins the weights, step 3 finds that out.
RUINED = {"learning_rate": 1e30, "warmup_fraction": 0.34, "gradient_accumulation": 1}
KEPT = ["adapter_config.json", "adapter_model.safetensors", "trajectory.jsonl"]


# Where it is kept


@pytest.fixture(scope="module")
def cut(tiny_path: Path, release: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811
    """A training of which every step was saved, killed in its sixth and last."""
    out = tmp_path_factory.mktemp("cut")
    with pytest.raises(Killed):
        train(tiny_path, release, out, Reaper(6, Killed()), save_steps=1)
    return out


def test_checkpoints_in_the_window_that_rose_do_not_push_out_those_before_it(cut: Path) -> None:
    assert checkpoint_steps(cut / "checkpoints") == [1, 2, 3, 4, 5]


def test_the_disk_they_take_is_no_more_than_was_asked_for(cut: Path) -> None:
    """Weights and the optimiser's two moments in float32 are nearly all of a checkpoint."""
    whole = sum(f.stat().st_size for f in (cut / "checkpoints").rglob("*") if f.is_file())
    trained = sum(t.numel() for t in load_file(cut / "checkpoints/checkpoint-1/adapter_model.safetensors").values())
    weights = sum(f.stat().st_size for f in (cut / "checkpoints").glob("*/adapter_model.safetensors"))
    moments = sum(f.stat().st_size for f in (cut / "checkpoints").glob("*/optimizer.pt"))
    assert weights == pytest.approx(5 * adapter_bytes(trained), rel=0.2)
    assert moments == pytest.approx(5 * FLOAT32_MOMENTS * trained, rel=0.3)
    assert whole < checkpoint_bytes(trained, save_steps=1)


def test_a_checkpoint_with_weights_that_are_no_numbers_is_passed_over(cut: Path, tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(cut / "checkpoints", checkpoints)
    file = checkpoints / "checkpoint-4" / "adapter_model.safetensors"
    tensors = load_file(file)
    next(iter(tensors.values()))[0, 0] = math.nan
    save_file(tensors, file)
    (checkpoints / "checkpoint-3" / "trainer_state.json").write_text('{"global_step": 3')  # torn by a kill
    record = cut / "trajectory.jsonl"
    found = keep_last_good(checkpoints, record, (9, 4, 3, 2, 1), tmp_path / "diverged")
    assert found == tmp_path / "diverged" / "adapter-step-2"
    assert sorted(p.name for p in found.iterdir()) == KEPT
    assert keep_last_good(checkpoints, record, (4,), tmp_path / "none") is None
    assert not (tmp_path / "none").exists()


def test_what_was_kept_before_is_never_replaced(cut: Path, tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    shutil.copytree(cut / "checkpoints", checkpoints)
    record, to = cut / "trajectory.jsonl", tmp_path / "diverged"
    first = keep_last_good(checkpoints, record, (2,), to)
    assert first == keep_last_good(checkpoints, record, (2,), to), "the same weights"
    shutil.copyfile(*(checkpoints / f"checkpoint-{n}" / "adapter_model.safetensors" for n in (4, 2)))
    assert keep_last_good(checkpoints, record, (2,), to) == to / "adapter-step-2-2"
    assert sorted(p.name for p in to.iterdir()) == ["adapter-step-2", "adapter-step-2-2"]


def test_a_diverged_training_keeps_the_adapter_from_before(tiny_path: Path, release: Path, tmp_path: Path) -> None:  # noqa: F811
    """Finite but ruined weights were saved after step 2: those of step 1 are the last good ones."""
    from peft import PeftModel

    with pytest.raises(GateError, match="at step 3: training diverged") as caught:
        train(tiny_path, release, tmp_path, save_steps=1, **RUINED)
    kept = tmp_path / "diverged" / "adapter-step-1"
    assert f"The adapter of the last good checkpoint is in {kept}" in caught.value.message
    assert "--set train.learning_rate=5e+29" in caught.value.hint
    assert checkpoint_steps(tmp_path / "checkpoints") == [1, 2]
    assert sorted(p.name for p in kept.iterdir()) == KEPT
    assert [r["step"] for r in read_trajectory(kept / "trajectory.jsonl") if r["split"] == "train"] == [1, 2]
    with quiet_transformers():
        adapted = PeftModel.from_pretrained(load_model(tiny_path, dtype="float32", device="cpu"), str(kept))
    with torch.no_grad():
        assert torch.isfinite(adapted(input_ids=torch.tensor([[1, 5, 9]])).logits).all()


def test_without_a_checkpoint_that_is_said(tiny_path: Path, release: Path, tmp_path: Path) -> None:  # noqa: F811
    with pytest.raises(GateError, match=r"No checkpoint had been saved yet: train\.save_steps is 20\."):
        train(tiny_path, release, tmp_path / "a", save_steps=20, **RUINED)
    with pytest.raises(
        GateError, match=r"Of the checkpoints \(step 2\) none is from before that; train\.save_steps is 2\."
    ):
        train(tiny_path, release, tmp_path / "b", save_steps=2, **RUINED)
    assert not list(tmp_path.glob("*/diverged"))


def test_a_changed_recipe_leaves_it_there(
    tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the advice says: another learning rate is another stage, which wipes the checkpoints and nothing else."""
    write_workplace(tmp_path, tiny_path)
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "runs" / "tiny"

    def go(*changes: str) -> None:
        recipe = load_recipe(tmp_path / "tiny.toml", ["train.epochs=1", *changes])
        run_stages(run, plan_run(recipe, run), last="adapter", progress=Silent())

    with pytest.raises(GateError, match=r"runs/tiny/diverged/adapter-step-1, where it stays"):
        go("train.save_steps=1", *(f"train.{key}={value}" for key, value in RUINED.items()))
    kept = run / "diverged" / "adapter-step-1"
    before = {p.name: p.read_bytes() for p in kept.iterdir()}
    assert sorted(before) == KEPT
    go()
    assert not (run / ".partial").exists()
    assert {p.name: p.read_bytes() for p in kept.iterdir()} == before

    verified = karma_here(monkeypatch, capsys, "verify", "runs/tiny")
    assert verified.code == 0
    assert "diverged" not in verified.out
    assert "diverged" not in karma_here(monkeypatch, capsys, "show", "runs/tiny").out
    merged = karma_here(monkeypatch, capsys, "merge", tiny_path, "runs/tiny/diverged/adapter-step-1", "by-hand")
    assert merged.code == 0, merged.err
