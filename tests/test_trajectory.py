"""The record of a training: when it says that training has diverged, and which steps were good until then."""

from __future__ import annotations

import json
import math
from collections import deque
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from karma_electric.core.errors import GateError
from karma_electric.train.trajectory import WINDOW, Diverged, Trajectory, checkpoints_kept


def step(number: int, loss: float, **more: Any) -> dict[str, Any]:
    return {"step": number, "split": "train", "loss": loss, "grad_norm": 1.0, **more}


def sound_after(path: Path, losses: list[float], **last: Any) -> tuple[int, ...]:
    """The steps that are said to be good when the last of these losses shows a divergence."""
    trajectory = Trajectory(path / "trajectory.jsonl", resume_at=0)
    for number, loss in enumerate(losses[:-1], 1):
        trajectory.append(step(number, loss))
    with pytest.raises(Diverged) as caught:
        trajectory.append(step(len(losses), losses[-1], **last))
    return caught.value.sound


def test_the_weights_of_a_step_are_judged_by_the_loss_of_the_next(tmp_path: Path) -> None:
    assert sound_after(tmp_path, [3.0, 2.9, 2.8, math.nan]) == (2, 1), "what step 3 left gave the loss that is none"
    assert sound_after(tmp_path, [3.0, 900.0, math.nan]) == (), "finite weights are not good ones"
    assert sound_after(tmp_path, [3.0] * 12 + [20.0, 3.0, math.inf]) == (13, *range(11, 0, -1))


def test_steps_without_any_gradient_end_training(tmp_path: Path) -> None:
    trajectory = Trajectory(tmp_path / "trajectory.jsonl", resume_at=0)
    for number, norm in enumerate([0.0, 0.0, 1.0, 0.0, 0.0], 1):
        trajectory.append(step(number, 3.0, grad_norm=norm))
    with pytest.raises(GateError, match="exactly zero for 3 steps, up to step 6: nothing is trained"):
        trajectory.append(step(6, 3.0, grad_norm=0.0))


def test_a_gradient_that_is_not_finite_ends_training_before_its_weights_are_saved(tmp_path: Path) -> None:
    """The loss of that step is still a number, and says that the weights before it were good."""
    assert sound_after(tmp_path, [3.0, 2.9, 2.8], grad_norm=math.nan) == (2, 1)
    text = (tmp_path / "trajectory.jsonl").read_text()
    assert [r["step"] for r in map(json.loads, text.splitlines())] == [1, 2]
    assert "NaN" not in text, "no other reader takes it"


def test_of_a_rise_the_newest_step_before_the_best_window_ended_comes_first(tmp_path: Path) -> None:
    """Then what is from before the window that rose; what lies in that window is never good."""
    losses = [2.0] * 20 + [1.0] * 10 + [1.5] * 15 + [9.0]
    sound = sound_after(tmp_path, losses)
    assert sound[0] == 29
    assert sound[:29] == tuple(range(29, 0, -1))
    assert sound[29:] == tuple(range(46 - WINDOW, 29, -1))


def test_a_run_that_was_continued_remembers_its_best_window(tmp_path: Path) -> None:
    path = tmp_path / "trajectory.jsonl"
    first = Trajectory(path, resume_at=0)
    for number in range(1, 21):
        first.append(step(number, 1.0 if number <= 15 else 1.2))
    second = Trajectory(path, resume_at=20)
    rising = (step(number, 5.0) for number in range(21, 40))
    with pytest.raises(Diverged) as caught:
        deque(map(second.append, rising), maxlen=0)
    assert caught.value.sound[0] == 14


@given(save_steps=st.integers(1, 60), found=st.integers(WINDOW + 1, 500))
def test_enough_checkpoints_stay_to_have_one_from_before(save_steps: int, found: int) -> None:
    saved = list(range(save_steps, found, save_steps))
    kept = saved[-checkpoints_kept(save_steps) :]
    earlier = [s for s in saved if s < found - WINDOW]
    assert not earlier or kept[0] < found - WINDOW


def test_a_kill_while_the_steps_after_a_checkpoint_are_forgotten_loses_no_other(tmp_path: Path) -> None:
    """The file is replaced, never emptied and written again: what was open or linked before is as it was."""
    path, before = tmp_path / "trajectory.jsonl", tmp_path / "before.jsonl"
    text = "".join(json.dumps(step(n, 1.0)) + "\n" for n in (1, 2, 3))
    path.write_text(text)
    before.hardlink_to(path)
    Trajectory(path, resume_at=2)
    assert before.read_text() == text
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["before.jsonl", "trajectory.jsonl"]
