"""The record of a training run: one JSON line per optimiser step, kept true across kills, and its plot."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from karma_electric.core.errors import GateError
from karma_electric.core.jsonl import append_jsonl

FILE = "trajectory.jsonl"
_WINDOW = 10  # steps: single batches may be hard
_DIVERGED = 2.0  # times the best mean of a window so far, and
_RISEN_NATS = 1.0  # above it (a corpus learned by heart has losses near 0, where a factor says little)
_ADVICE = (
    "The last good checkpoint is in the run's .partial folder. Lower train.learning_rate (halve it), or raise "
    "train.warmup_fraction, and run again."
)


class Trajectory:
    """Appends records to a file; on resume, forgets the steps after the checkpoint that is resumed from."""

    def __init__(self, path: Path, *, resume_at: int) -> None:
        """`resume_at` is the last step that is kept; 0 starts over."""
        self._path = path
        kept = [r for r in read_trajectory(path) if r["step"] <= resume_at] if path.exists() else []
        path.write_text("".join(json.dumps(r) + "\n" for r in kept), encoding="utf-8")
        self._losses = [r["loss"] for r in kept if r["split"] == "train"]
        means = [sum(self._losses[i : i + _WINDOW]) / _WINDOW for i in range(len(self._losses) - _WINDOW + 1)]
        self._best = min(means, default=math.inf)

    def append(self, record: dict[str, Any]) -> None:
        """Add one record and flush it to disk.

        Raises:
            GateError: the loss is not finite, or has risen far above its best; the last checkpoint is kept.
        """
        loss = float(record["loss"])
        if not math.isfinite(loss):
            raise GateError(f"The loss is {loss} at step {record['step']}: training diverged.", _ADVICE)
        append_jsonl(self._path, [record])
        if record["split"] != "train":
            return
        self._losses.append(loss)
        if len(self._losses) >= _WINDOW:
            mean = sum(self._losses[-_WINDOW:]) / _WINDOW
            if mean > max(_DIVERGED * self._best, self._best + _RISEN_NATS):
                raise GateError(
                    f"The mean loss of the last {_WINDOW} steps is {mean:.3g} at step {record['step']}, after a best "
                    f"of {self._best:.3g}: training diverged.",
                    _ADVICE,
                )
            self._best = min(self._best, mean)


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
