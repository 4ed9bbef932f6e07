"""Runs another program, line by line, so that it can be watched, and ends it when we are ended."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path


def run_watched(
    command: Sequence[str],
    each: Callable[[str], None],
    *,
    keep: int,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> tuple[int, list[str]]:
    """Run a program to its end.

    Args:
        command: program and arguments; no shell reads them.
        each: is given every line of its output and its errors, without the line's end.
        keep: how many of the last lines are returned.
        folder: where it runs; here when None.
        environment: its environment; ours when None.

    Returns:
        Its exit code and its last lines.
    """
    lines: list[str] = []
    with subprocess.Popen(
        command,
        cwd=folder,
        env=None if environment is None else dict(environment),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        try:
            for line in process.stdout or ():
                lines = [*lines, line.rstrip()][-keep:]
                each(line.rstrip())
        except BaseException:
            process.kill()
            raise
    return process.returncode, lines
