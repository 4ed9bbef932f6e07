"""Trackers: programs that draw a training while it runs. transformers talks to them; here they are chosen and placed.

What they write lies beside the artifacts of a run, never in one, and changes no artifact's id.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from karma_electric.core.errors import InputError, MissingError
from karma_electric.core.extras import is_present

TRACKERS = ("trackio", "tensorboard", "wandb")
FOLDER = "tracking"
PROJECT = "karma-electric"


def trackers(asked: Sequence[str]) -> tuple[str, ...]:
    """The trackers of `--report-to`, which may be given several times, or with commas.

    Raises:
        InputError: not one of them. MissingError: its package is not installed.
    """
    names = tuple(dict.fromkeys(name.strip() for value in asked for name in value.split(",")))
    for name in names:
        if name not in TRACKERS:
            raise InputError(f"--report-to {name!r} is not a tracker.", f"Trackers: {', '.join(TRACKERS)}.")
        if not is_present(name):
            raise MissingError(
                f"--report-to {name} needs {name}, which is not installed.",
                f"Install it with: pip install -c constraints.txt {name}",
            )
    return names


def place(names: Sequence[str], run: Path) -> None:
    """Let trackers write below `run`, unless their own variables name another place."""
    folder = (run / FOLDER).absolute()
    variables: dict[str, dict[str, str | Path]] = {
        "tensorboard": {"TENSORBOARD_LOGGING_DIR": folder / "tensorboard"},
        "trackio": {"TRACKIO_DIR": folder / "trackio"},
        "wandb": {"WANDB_DIR": folder, "WANDB_PROJECT": PROJECT},  # it adds a folder of its own name
    }
    for name in names:
        folder.mkdir(parents=True, exist_ok=True)
        for variable, value in variables[name].items():
            os.environ.setdefault(variable, str(value))
