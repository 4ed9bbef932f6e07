"""Trackers are told what the trajectory says, write beside the artifacts, and change nothing about them."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from karma_electric.core.errors import InputError, MissingError
from karma_electric.core.extras import is_present
from karma_electric.core.progress import Silent
from karma_electric.core.recipe import Recipe, load_recipe
from karma_electric.pipeline import run_stages
from karma_electric.stages import plan_run
from karma_electric.train.tracking import place, trackers
from karma_electric.train.trajectory import read_trajectory
from test_chain import write_workplace
from test_cli import karma_here

VARIABLES = ("TENSORBOARD_LOGGING_DIR", "TRACKIO_DIR", "WANDB_DIR", "WANDB_PROJECT", "WANDB_MODE")


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the trackers read from the environment is unset, also after the test."""
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that what the test sets is undone
        monkeypatch.delenv(name)


@pytest.fixture
def folder(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_workplace(tmp_path, tiny_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def recipe(folder: Path) -> Recipe:
    return load_recipe(folder / "tiny.toml", ["train.epochs=1"])


def trained(folder: Path, *names: str) -> list[dict[str, Any]]:
    """The trajectory of a run that told these trackers."""
    run = folder / "run"
    run_stages(run, plan_run(recipe(folder), run, report_to=names), last="adapter", progress=Silent())
    return read_trajectory(run / "adapter" / "trajectory.jsonl")


# Choosing


def test_trackers_may_be_repeated_or_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("karma_electric.train.tracking.is_present", lambda module: True)
    assert trackers(["tensorboard,wandb", "trackio", "wandb"]) == ("tensorboard", "wandb", "trackio")
    assert trackers([]) == ()


def test_an_unknown_tracker_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="'mlflow' is not a tracker") as caught:
        trackers(["mlflow"])
    assert caught.value.hint == "Trackers: trackio, tensorboard, wandb."


@pytest.mark.parametrize("name", ["trackio", "tensorboard", "wandb"])
def test_a_tracker_that_is_not_installed_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("karma_electric.train.tracking.is_present", lambda module: module != name)
    with pytest.raises(MissingError) as caught:
        trackers([name])
    assert caught.value.hint == f"Install it with: pip install -c constraints.txt {name}"


@pytest.mark.parametrize("words", [["train"], ["run"], ["train", "--dry-run"]], ids=" ".join)
def test_that_is_checked_before_anything_is_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    monkeypatch.setattr("karma_electric.train.tracking.is_present", lambda module: False)
    ended = karma_here(monkeypatch, capsys, *words, "tiny.toml", "--report-to", "wandb")
    ended.refused(3, "--report-to wandb needs wandb", "pip install -c constraints.txt wandb")
    assert not (folder / "runs").exists()


def test_they_write_beside_the_artifacts_unless_told_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKIO_DIR", "mine")
    place(["tensorboard", "trackio", "wandb"], tmp_path)
    assert os.environ["TENSORBOARD_LOGGING_DIR"] == str(tmp_path / "tracking" / "tensorboard")
    assert os.environ["WANDB_DIR"] == str(tmp_path / "tracking")
    assert os.environ["TRACKIO_DIR"] == "mine"


def test_no_artifact_gets_another_id(folder: Path) -> None:
    plans = [plan_run(recipe(folder), folder / "run", report_to=names) for names in ((), ("tensorboard",))]
    assert len({tuple(stage.id for stage in stages) for stages in plans}) == 1


# For real, where they are installed (tensorboard is in the dev extra)


@pytest.fixture
def scalars(folder: Path) -> Iterator[Any]:
    """Reads TensorBoard's event files: tag -> [(step, value)]."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")

    def read() -> dict[str, list[tuple[int, float]]]:
        found = events.EventAccumulator(str(folder / "run" / "tracking" / "tensorboard"))
        found.Reload()
        return {tag: [(e.step, e.value) for e in found.Scalars(tag)] for tag in found.Tags()["scalars"]}

    return read


def test_tensorboard_is_told_what_the_trajectory_says(folder: Path, scalars: Any) -> None:
    records = trained(folder, "tensorboard")
    told = scalars()
    for split, prefix in (("train", "train/"), ("validation", "eval/")):
        wanted = [r for r in records if r["split"] == split]
        assert len(wanted) > 1
        for key, tag in (("loss", "loss"), ("accuracy", "mean_token_accuracy")):
            assert [step for step, _ in told[prefix + tag]] == [r["step"] for r in wanted]
            assert [value for _, value in told[prefix + tag]] == pytest.approx([r[key] for r in wanted])
    assert [value for _, value in told["train/learning_rate"]] == pytest.approx(
        [r["learning_rate"] for r in records if r["split"] == "train"]
    )
    assert [p.name for p in (folder / "run").iterdir() if p.name == "tracking"], "beside the artifacts"
    assert not list((folder / "run" / "adapter").rglob("*tfevents*"))


def test_nobody_is_told_unasked(folder: Path) -> None:
    trained(folder)
    assert not (folder / "run" / "tracking").exists()
    assert not list(folder.rglob("*tfevents*"))


def test_trackio_is_told_every_step(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if not is_present("trackio"):  # not imported here: it reads its folder when it is
        pytest.skip("trackio is not installed")
    records = trained(folder, "trackio")
    (file,) = (folder / "run" / "tracking" / "trackio").glob("*.db")
    with contextlib.closing(sqlite3.connect(file)) as database:
        told = [json.loads(row[0]) for row in database.execute("SELECT metrics FROM metrics ORDER BY id")]
    losses = [t["train/loss"] for t in told if "train/loss" in t]
    assert losses == pytest.approx([r["loss"] for r in records if r["split"] == "train"])
    assert capsys.readouterr().out == "", "standard output is for --json"


def test_wandb_keeps_its_record_offline(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    trained(folder, "wandb")
    (file,) = (folder / "run" / "tracking" / "wandb").glob("offline-run-*/run-*.wandb")
    assert file.stat().st_size > 0
