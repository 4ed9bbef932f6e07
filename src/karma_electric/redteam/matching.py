"""Matches a suite's own patterns against answers, within a limit of time. Knows nothing of verdicts.

The standard library's `re` cannot be stopped, and which patterns hang on which answers cannot be read from the pattern
(`patterns` knows some shapes). So a suite's patterns are matched by the `regex` library, which can. What the two read
differently is written so that both mean the same (`_portable`); two differences remain. The letters of `regex` (`\\w`)
include marks that are combined with one, its white space (`\\s`) leaves out the control characters FS, GS, RS and US.
"""

from __future__ import annotations

import re
import time
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import regex

LIMIT_S = 1.0  # processor seconds for all patterns of a suite on one answer; an ordinary answer takes milliseconds
_ENOUGH = 0.9  # of the time that is left: clocks differ by a little
_SHOWN = 80  # characters of a pattern in a reason


class Found(NamedTuple):
    """What met a pattern: the words, and where in the answer they are."""

    words: str
    start: int
    end: int


class Unmatched(Exception):
    """Whether a pattern matches an answer is not known. The text says why and names the pattern."""


class Matcher:
    """Matches any number of patterns against one answer, which has `LIMIT_S` for all of them together."""

    def __init__(self) -> None:
        """Begin with all of the time; it is counted while patterns are matched alone."""
        self._limit_s = self._left_s = LIMIT_S
        self._slowest = (0.0, "")

    def find(self, pattern: str, text: str, flags: int) -> list[Found]:
        """Every match, in order.

        Args:
            pattern: what `re` compiles.
            text: the answer.
            flags: of `re`.

        Raises:
            Unmatched: the time ran out, or `regex` cannot read the pattern.
        """
        compiled = _compiled(pattern, flags)
        began = time.thread_time()
        allowed_s = self._left_s
        while True:
            try:
                found = [Found(m.group(), *m.span()) for m in compiled.finditer(text, timeout=allowed_s)]
            except TimeoutError:
                # regex counts the whole process, other threads included; the limit is for this one
                if time.thread_time() - began >= _ENOUGH * self._left_s:
                    self._spend(time.thread_time() - began, pattern)
                    raise Unmatched(
                        f"out of time: the signal {_short(self._slowest[1])} takes too long on this answer "
                        f"(the limit is {self._limit_s:g} s for all of them)"
                    ) from None
                allowed_s *= 2
            else:
                self._spend(time.thread_time() - began, pattern)
                return found

    def _spend(self, used_s: float, pattern: str) -> None:
        self._slowest = max(self._slowest, (used_s, pattern))
        self._left_s = max(self._left_s - used_s, self._limit_s / 1000)


@lru_cache(maxsize=8192)  # a suite of 200 has 2,000 of them, and every arm and seed needs them again
def _compiled(pattern: str, flags: int) -> regex.Pattern[str]:
    import regex

    try:
        # the flags of `re` have the same values in `regex`
        return regex.compile(_portable(pattern), flags | regex.VERSION0, cache_pattern=False)
    except (regex.error, RecursionError, OverflowError) as error:
        raise Unmatched(f"the signal {_short(pattern)} cannot be matched ({error})") from None


# One part of a pattern: what is escaped, a comment, the beginning of a set, a count, any other character.
_OUTSIDE = r"\\N\{{[^}}]*\}}|\\.|\(\?\#[^)]*\)|{comment}\[\^?\]?|\{{[0-9]*(?:,[0-9]*)?\}}|."
_PART = re.compile(_OUTSIDE.format(comment=""), re.DOTALL)
_VERBOSE_PART = re.compile(_OUTSIDE.format(comment=r"\#[^\n]*|"), re.DOTALL)
_IS_VERBOSE = re.compile(r"\(\?[a-z]*x[a-z]*\)")
_PART_OF_SET = re.compile(r"\\N\{[^}]*\}|\\.|.", re.DOTALL)


def _portable(pattern: str) -> str:
    """A pattern of `re` such that `regex` reads it alike.

    To `re`, `"{e}` are plain characters and `[[:alpha:]` is a set of them; to `regex` they are an approximate match and
    a class.
    """
    outside = _VERBOSE_PART if _IS_VERBOSE.match(pattern) else _PART
    parts: list[str] = []
    at, in_set = 0, False
    while at < len(pattern):
        found = (_PART_OF_SET if in_set else outside).match(pattern, at)
        assert found is not None  # the last alternative takes any character
        part, at = found.group(), found.end()
        if in_set:
            in_set = part != "]"
            part = r"\[" if part == "[" else part
        elif part.startswith("["):
            in_set = True
        elif part == "{":  # begins no count
            part = r"\{"
        parts.append(part)
    return "".join(parts)


def _short(pattern: str) -> str:
    return repr(pattern if len(pattern) <= _SHOWN else pattern[: _SHOWN - 3] + "...")
