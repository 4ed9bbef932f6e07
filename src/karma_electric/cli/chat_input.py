"""What somebody types into a chat: one line, several, or a command; with lines of earlier sessions at hand."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_QUOTES = '"""'
_PROMPT, _MORE = "\nyou> ", "...> "
_KEPT = 1000  # lines of history


@dataclass(frozen=True)
class Typed:
    """A message or a command.

    Attributes:
        text: what was typed, without what marks several lines.
        command: whether it is a command: it starts with a slash and was not put in quotes.
    """

    text: str
    command: bool


def read_typed() -> Typed:
    r'''Read a message from the terminal, or from whatever stands for it.

    A line that ends with a backslash goes on in the next one; what begins with """ goes on to the line that ends with
    """. Text that is pasted into a terminal comes as one message by itself, where the terminal tells that it is pasted.

    Raises:
        EOFError: there is no more. KeyboardInterrupt: it was given up.
    '''
    line = input(_PROMPT)
    if line.lstrip().startswith(_QUOTES):
        return Typed(_quoted(line.lstrip().removeprefix(_QUOTES)), command=False)
    lines = [line]
    while lines[-1].endswith("\\"):
        lines[-1] = lines[-1][:-1]
        try:
            lines.append(input(_MORE))
        except EOFError:
            break
    text = "\n".join(lines).strip()
    return Typed(text, command=text.startswith("/"))


def _quoted(first: str) -> str:
    lines = [first]
    while not lines[-1].rstrip().endswith(_QUOTES):
        try:
            lines.append(input(_MORE))
        except EOFError:
            return "\n".join(lines).strip()
    lines[-1] = lines[-1].rstrip().removesuffix(_QUOTES)
    return "\n".join(lines).strip()


def history_file() -> Path:
    """Where lines are kept between sessions: $XDG_STATE_HOME, else ~/.local/state."""
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "karma-electric" / "chat-history"


@contextlib.contextmanager
def line_editing(*, keep: bool) -> Iterator[None]:
    """Edit lines with the arrow keys where there is a terminal and readline; `keep` lines between sessions.

    The file is readable by its owner alone. Where it cannot be read or written, it is told once and nothing is kept.
    """
    readline = _readline()
    if readline is None:
        yield
        return
    readline.parse_and_bind("set enable-bracketed-paste on")
    file = history_file() if keep else None
    if file is not None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            file.touch(mode=0o600)
            file.chmod(0o600)  # whoever made it
            readline.read_history_file(file)
        except OSError as error:
            print(f"warning: no history is kept: {file} cannot be used ({error.strerror}).", file=sys.stderr)
            file = None
    readline.set_history_length(_KEPT)
    try:
        yield
    finally:
        if file is not None:
            with contextlib.suppress(OSError):  # the session is over, and it was said if it could not be read
                readline.write_history_file(file)
                file.chmod(0o600)
        readline.clear_history()


def _readline() -> Any:
    """The module, where lines come from a terminal and it exists."""
    if not sys.stdin.isatty():
        return None
    try:
        import readline
    except ImportError:  # Windows
        return None
    return readline
