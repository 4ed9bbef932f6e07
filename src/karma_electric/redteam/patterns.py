"""Which regular expressions may take very long on some answer: read from the pattern itself, nothing is run.

An error when a suite is read is better than an answer that is left unscored, as the time limit of `matching` leaves it.
Three shapes are known: an unbounded repeat inside a repeat (found by `scenario`), alternatives that begin alike inside
a repeat, and many open gaps in a row. Others may take as long: bounded repeats inside one another (`(a{0,9}){0,9}b`),
and rows of bounded or narrow ones (`[a-z]+` five times). They pass here, and the time limit holds for them.
"""

from __future__ import annotations

import importlib
import itertools
import re
import sys
from collections.abc import Iterable
from typing import Any

_MANY = 10  # a repeat of up to this many is no danger
_WIDE_CATEGORIES = ("CATEGORY_WORD", "CATEGORY_NOT_WORD", "CATEGORY_NOT_DIGIT", "CATEGORY_NOT_SPACE")
_MOST_GAPS = 2  # open gaps (.* and the like) in one sequence


def slow_part(pattern: str, flags: int = re.IGNORECASE) -> str | None:
    """What makes a pattern slow, in words, or None. The pattern must compile."""
    # The standard library's own parser: it is private, but stable in name since 3.11, and public before.
    parser = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")
    tree = parser.parse(pattern, flags)
    if any(_alike(branch) for branch in _repeated_branches(tree, inside=False)):
        return "has alternatives that begin alike inside a repetition"
    if _most_gaps(tree, int(parser.MAXREPEAT)) > _MOST_GAPS:
        return f"has more than {_MOST_GAPS} open gaps in a row"
    return None


def _children(item: Any) -> Iterable[Any]:
    if isinstance(item, (str, int)) or item is None:
        return ()
    return item  # type: ignore[no-any-return]


def _name(item: Any) -> str:
    return str(item[0]) if isinstance(item, tuple) and len(item) == 2 else ""


def _repeated_branches(item: Any, *, inside: bool) -> Iterable[list[Any]]:
    """The alternatives of every choice that is repeated often."""
    if _name(item) in ("MAX_REPEAT", "MIN_REPEAT"):
        _, most, body = item[1]
        yield from _repeated_branches(body, inside=inside or most > _MANY)
        return
    if _name(item) == "BRANCH":
        if inside:
            yield item[1][1]
        for alternative in item[1][1]:
            yield from _repeated_branches(alternative, inside=inside)
        return
    if _name(item) in ("ASSERT", "ASSERT_NOT"):  # left once for all: nothing in it is tried again
        inside = False
    for child in _children(item):
        yield from _repeated_branches(child, inside=inside)


def _alike(alternatives: list[Any]) -> bool:
    """Whether one of them could begin where another does; the parser has taken common beginnings out already."""
    begun = sorted(_leading(list(alternative)) for alternative in alternatives)
    return any(other.startswith(one) for one, other in itertools.pairwise(begun))


def _leading(sequence: list[Any]) -> str:
    """The letters that a sequence begins with, up to what is no plain letter."""
    letters = ""
    for item in sequence:
        name, value = _name(item), item[1]
        if name == "SUBPATTERN":
            return letters + _leading(list(value[-1]))
        if name != "LITERAL":
            return letters
        letters += chr(value).lower()
    return letters


def _most_gaps(item: Any, unbounded: int) -> int:
    """The most open gaps that stand in one sequence: unbounded repeats of a wide class of characters."""
    if _name(item) in ("MAX_REPEAT", "MIN_REPEAT"):
        _, most, body = item[1]
        if most == unbounded and _is_wide(body):
            return 1
        return _most_gaps(body, unbounded)
    if _name(item) == "BRANCH":
        return max((_most_gaps(alternative, unbounded) for alternative in item[1][1]), default=0)
    return sum(_most_gaps(child, unbounded) for child in _children(item))


def _is_wide(body: Any) -> bool:
    parts = list(body)
    if len(parts) != 1:
        return False
    name, value = _name(parts[0]), parts[0][1]
    if name == "SUBPATTERN":
        return _is_wide(value[-1])
    if name == "IN":
        return any(_name(p) == "NEGATE" or str(p[1]) in _WIDE_CATEGORIES for p in value)
    return name in ("ANY", "NOT_LITERAL")
