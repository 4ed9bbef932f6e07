"""The record of a training run: one JSON line per optimiser step, kept true across kills, and its plot."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from karma_electric.core.artifact import write_atomic
from karma_electric.core.errors import GateError
from karma_electric.core.jsonl import append_jsonl

FILE = "trajectory.jsonl"
WINDOW = 10  # steps: single batches may be hard
_DIVERGED = 2.0  # times the best mean of a window so far, and
_STILL = 3  # steps with a gradient of exactly zero: nothing is trained
_RISEN_NATS = 1.0  # above it (a corpus learned by heart has losses near 0, where a factor says little)


class Diverged(GateError):
    """Training diverged.

    Attributes:
        sound: the steps after which the weights were still good, as far as losses tell; the best choice comes first.
    """

    def __init__(self, message: str, sound: Sequence[int]) -> None:
        super().__init__(message)
        self.sound = tuple(sound)


class Trajectory:
    """Appends records to a file; on resume, forgets the steps after the checkpoint that is resumed from.

    The loss of step n + 1 is measured with the weights that step n left: it is what tells whether those are good.
    """

    def __init__(self, path: Path, *, resume_at: int) -> None:
        """`resume_at` is the last step that is kept; 0 starts over."""
        self._path = path
        kept = [r for r in read_trajectory(path) if r["step"] <= resume_at] if path.exists() else []
        write_atomic(path, "".join(json.dumps(r) + "\n" for r in kept))
        self._still = 0  # steps in a row without any gradient
        self._losses: dict[int, float] = {}  # of training, by step
        self._best, self._best_end = math.inf, 0  # the lowest mean of a window, and its last step
        for record in kept:
            if record["split"] == "train":
                self._losses[record["step"]] = record["loss"]
                self._note_best(record["step"])

    def append(self, record: dict[str, Any]) -> None:
        """Add one record and flush it to disk.

        Raises:
            Diverged: the loss or the gradient's norm is not finite, or the loss has risen far above its best.
            GateError: there is no gradient, step after step.
        """
        step, loss = int(record["step"]), float(record["loss"])
        if record["split"] == "train":
            self._losses[step] = loss
        for key, what in (("loss", "loss"), ("grad_norm", "gradient's norm")):
            value = float(record.get(key, 0.0))
            if not math.isfinite(value):
                raise Diverged(f"The {what} is {value} at step {step}: training diverged.", self._sound(before=step))
        append_jsonl(self._path, [record])
        if record["split"] == "train":
            self._still = self._still + 1 if record.get("grad_norm") == 0 else 0
            if self._still == _STILL:
                raise GateError(
                    f"The gradient was exactly zero for {_STILL} steps, up to step {step}: nothing is trained.",
                    "Look at train.target_modules; with --set train.fused=false peft's own layers are trained.",
                )
        if record["split"] != "train" or len(self._losses) < WINDOW:
            return
        mean = self._mean()
        if mean > _limit(self._best):
            chosen = self._sound(before=self._best_end)
            chosen += [s for s in self._sound(before=step - WINDOW + 1) if s not in chosen]
            raise Diverged(
                f"The mean loss of the last {WINDOW} steps is {mean:.3g} at step {step}, after a best of "
                f"{self._best:.3g}: training diverged.",
                chosen,
            )
        self._note_best(step)

    def _mean(self) -> float:
        """Of the last window."""
        return sum(list(self._losses.values())[-WINDOW:]) / WINDOW

    def _note_best(self, step: int) -> None:
        if len(self._losses) >= WINDOW and (mean := self._mean()) <= self._best:
            self._best, self._best_end = mean, step

    def _sound(self, *, before: int) -> list[int]:
        """Steps before this one whose weights the next step found good, the newest first."""
        found, total = [], 0.0
        for number, (step, loss) in enumerate(self._losses.items(), 1):
            total += loss
            usual = self._best if math.isfinite(self._best) else total / number  # no whole window yet: the mean so far
            if step < before and self._losses.get(step + 1, math.inf) <= _limit(usual):
                found.append(step)
        return found[::-1]


def checkpoints_kept(save_steps: int) -> int:
    """How many checkpoints must stay so that the oldest is from before the window in which a divergence shows."""
    return math.ceil(WINDOW / save_steps) + 1


def _limit(usual: float) -> float:
    """The loss above which training has diverged, after one that was `usual`."""
    return max(_DIVERGED * usual, usual + _RISEN_NATS)


def read_trajectory(path: Path) -> list[dict[str, Any]]:
    """All whole records; a last line torn by a kill is left out."""
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def plot_trajectory(records: list[dict[str, Any]], out: Path) -> None:
    """Loss and token accuracy per step, train and validation, as a PNG."""
    from karma_electric.core.plots import COLOURS, figure, save

    train = [r for r in records if r["split"] == "train"]
    validation = [r for r in records if r["split"] == "validation"]
    fig, (left, right) = figure(1, 2)
    for axes, key, label in (
        (left, "loss", "loss (nats per learned token)"),
        (right, "accuracy", "token accuracy"),
    ):
        axes.plot(
            [r["step"] for r in train],
            [r[key] for r in train],
            color=COLOURS["muted"],
            lw=1,
            label="train, per step",
        )
        smooth = _running_mean([r[key] for r in train], 5)
        axes.plot([r["step"] for r in train], smooth, color=COLOURS["tuned"], lw=2, label="train, mean of 5")
        axes.plot(
            [r["step"] for r in validation],
            [r[key] for r in validation],
            "o--",
            color=COLOURS["capped"],
            label="validation",
        )
        axes.set_xlabel("optimiser step")
        axes.set_ylabel(label)
    left.legend()
    save(fig, out)


def _running_mean(values: list[float], width: int) -> list[float]:
    return [sum(part) / len(part) for i in range(len(values)) if (part := values[max(0, i - width + 1) : i + 1])]
