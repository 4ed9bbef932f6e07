"""Keeps the adapter of the last good checkpoint when training diverges, where no later attempt removes it.

Which steps were good is the trajectory's to say; here checkpoints are looked at, copied, and named in advice.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from karma_electric.core.artifact import flush, hash_file, read_json, sync_folder
from karma_electric.core.errors import ArtifactError, GateError, MissingError
from karma_electric.core.recipe import TrainSection
from karma_electric.models.weights import FLOATING, stored_tensors
from karma_electric.train.trajectory import FILE, Diverged

FOLDER = "diverged"  # beside the artifacts of a run
_WEIGHTS = "adapter_model.safetensors"
_FILES = ("adapter_config.json", _WEIGHTS)


def checkpoint_steps(checkpoints: Path) -> list[int]:
    """The steps of the whole checkpoints in a folder, oldest first."""
    steps = []
    for candidate in checkpoints.glob("checkpoint-*"):
        try:
            steps.append(int(read_json(candidate / "trainer_state.json")["global_step"]))
        except (ArtifactError, MissingError, KeyError, TypeError):  # torn by a kill
            continue
    return sorted(steps)


def keep_last_good(checkpoints: Path, trajectory: Path, sound: Sequence[int], to: Path) -> Path | None:
    """Copy the adapter of the first sound step that has a checkpoint with finite weights, and the trajectory so far.

    Args:
        checkpoints: the trainer's folder of checkpoints.
        trajectory: the record of the training.
        sound: steps, the best choice first.
        to: where a folder `adapter-step-N` is made, which peft can load. One with other contents is never replaced.

    Returns:
        That folder, or None where there is no such checkpoint.
    """
    there = checkpoint_steps(checkpoints)
    for step in sound:
        source = checkpoints / f"checkpoint-{step}"
        if step in there and all((source / name).is_file() for name in _FILES) and _is_finite(source / _WEIGHTS):
            return _copied(source, trajectory, to, f"adapter-step-{step}")
    return None


def divergence(error: Diverged, section: TrainSection, checkpoints: Path, kept: Path | None) -> GateError:
    """What a user is told: what was found, where the last good adapter is, and what to change."""
    there = checkpoint_steps(checkpoints)
    if kept is not None:
        where = f"The adapter of the last good checkpoint is in {kept}, where it stays."
    elif there:
        where = (
            f"Of the checkpoints (step {', '.join(map(str, there))}) none is from before that; train.save_steps is "
            f"{section.save_steps}."
        )
    else:
        where = f"No checkpoint had been saved yet: train.save_steps is {section.save_steps}."
    advice = (
        f"Halve the learning rate (--set train.learning_rate={section.learning_rate / 2:g}), or raise "
        "train.warmup_fraction, and run again: a changed key begins from the first step."
    )
    return GateError(f"{error.message} {where}", advice)


def _is_finite(weights: Path) -> bool:
    import torch

    found = stored_tensors(weights).values()
    return bool(found) and all(bool(torch.isfinite(t.read()).all()) for t in found if t.dtype in FLOATING)


def _copied(source: Path, trajectory: Path, to: Path, name: str) -> Path:
    folder, number = to / name, 1
    while folder.exists():
        if (folder / _WEIGHTS).is_file() and hash_file(folder / _WEIGHTS) == hash_file(source / _WEIGHTS):
            return folder  # the same training diverged again
        number += 1
        folder = to / f"{name}-{number}"
    temporary = to / ".copying"  # a fixed name: what a kill leaves, the next one replaces
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    for file in _FILES:
        shutil.copyfile(source / file, temporary / file)
    shutil.copyfile(trajectory, temporary / FILE)
    flush(temporary)
    temporary.replace(folder)
    sync_folder(to)
    return folder
