"""Progress as it is written where no terminal is: a line every few seconds, with what remains."""

from __future__ import annotations

import io
import time
from collections.abc import Callable

import pytest

from karma_electric.core.progress import Console


@pytest.fixture
def at(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Sets the clock."""
    clock = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    return lambda seconds: clock.__setitem__(0, seconds)


def test_what_remains_goes_by_the_steps_since_the_first_report(at: Callable[[float], None]) -> None:
    written = io.StringIO()
    console = Console(written)
    console.say("[1/1] work")
    for seconds, done in ((300, 1), (310, 2), (320, 3)):  # five minutes of something else, then ten seconds a step
        at(seconds)
        console.update(done, 11, "steps")
    assert written.getvalue().splitlines()[1:] == [
        "  1/11 steps (300 s)",
        "  2/11 steps (310 s, 90 s left)",
        "  3/11 steps (320 s, 80 s left)",
    ]


def test_work_that_is_continued_is_as_slow_as_it_is_now(at: Callable[[float], None]) -> None:
    written = io.StringIO()
    console = Console(written)
    for seconds, done in ((10, 90), (40, 91)):
        at(seconds)
        console.update(done, 100)
    assert "91/100  (40 s, 270 s left)" in written.getvalue()


def test_every_stage_is_measured_by_itself(at: Callable[[float], None]) -> None:
    written = io.StringIO()
    console = Console(written, interval_s=0)
    for start, each in ((0, 100), (1000, 1)):
        at(start)
        console.say("stage")
        for done in range(4):
            at(start + done * each)
            console.update(done, 4)
    lines = written.getvalue().splitlines()
    assert lines[3].endswith("(200 s, 200 s left)")
    assert lines[-2].endswith("(2 s, 2 s left)")
    console.update(4, 4)
    assert "left" not in written.getvalue().splitlines()[-1]


def test_lines_are_no_more_frequent_than_asked_and_the_last_is_never_left_out(at: Callable[[float], None]) -> None:
    written = io.StringIO()
    console = Console(written, interval_s=10)
    for done in range(1, 6):
        at(done * 4)
        console.update(done, 5)
    assert [line.split()[0] for line in written.getvalue().splitlines()] == ["3/5", "5/5"]
