"""Progress of long work: a bar on a terminal, a line every few seconds elsewhere, nothing in tests."""

from __future__ import annotations

import sys
import time
from typing import Protocol, TextIO


class Progress(Protocol):
    """What a stage reports to. Stages never print."""

    def update(self, done: int, total: int, note: str = "") -> None:
        """`done` of `total` steps are finished; `note` is a few words on the current one."""

    def say(self, text: str) -> None:
        """A line that stays."""


class Silent:
    """Reports nothing."""

    def update(self, done: int, total: int, note: str = "") -> None:
        """Ignore."""

    def say(self, text: str) -> None:
        """Ignore."""


class Console:
    """Writes to a stream: a redrawn bar on a terminal, else a line at most every `interval_s` seconds."""

    def __init__(self, stream: TextIO | None = None, interval_s: float = 10.0) -> None:
        self._stream = stream if stream is not None else sys.stderr
        self._interval_s = interval_s if not self._stream.isatty() else 0.1
        self._started = time.monotonic()
        self._last = self._started
        self._first: tuple[int, float] | None = None  # steps done at the first report of this work, and when
        self._open_line = False

    def update(self, done: int, total: int, note: str = "") -> None:
        """Show `done` of `total`, with elapsed and remaining time.

        What remains goes by the steps since the first report: what came before that step is no measure of the others,
        be it that work is continued, or that it began with something else.
        """
        now = time.monotonic()
        if done == 0:
            self._started = now
        if self._first is None or done < self._first[0]:
            self._first = done, now
        if now - self._last < self._interval_s and done < total:
            return
        self._last = now
        elapsed = now - self._started
        done_before, then = self._first
        each = (now - then) / (done - done_before) if done > done_before else 0.0
        remaining = f", {each * (total - done):.0f} s left" if each and done < total else ""
        text = f"{done}/{total} {note} ({elapsed:.0f} s{remaining})"
        if self._stream.isatty():
            width = 24
            filled = int(width * done / total) if total else width
            self._stream.write(f"\r\x1b[K  [{'#' * filled}{'.' * (width - filled)}] {text}")
            self._open_line = True
            if done >= total:
                self._close_line()
        else:
            self._stream.write(f"  {text}\n")
        self._stream.flush()

    def say(self, text: str) -> None:
        """Print a line, below any open bar."""
        self._close_line()
        self._started = time.monotonic()
        self._first = None
        self._stream.write(text + "\n")
        self._stream.flush()

    def _close_line(self) -> None:
        if self._open_line:
            self._stream.write("\n")
            self._open_line = False
