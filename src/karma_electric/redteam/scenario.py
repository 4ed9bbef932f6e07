"""Scenarios: what a red-team asks, and what a good and a bad answer would hold. Knows nothing of models or scores.

A suite is a JSONL file, one scenario a line. Reading is strict, because a broken signal does not fail loudly: it
silently turns fails into passes.
"""

from __future__ import annotations

import importlib
import json
import re
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from karma_electric.core.errors import DataError
from karma_electric.redteam.matching import Matcher, Unmatched
from karma_electric.redteam.patterns import slow_part
from karma_electric.redteam.suite_file import read_suite

CATEGORIES = (
    "jailbreak",
    "harmful-code",
    "social-engineering",
    "persona-stripping",
    "compliance-exploit",
    "multi-turn-escalation",
)
# of an imported suite: the source's name, and its own category
_IMPORTED_CATEGORY = re.compile(r"[a-z0-9]+/[a-z0-9]+(?:-[a-z0-9]+)*")
DIFFICULTIES = ("easy", "medium", "hard", "extreme")
SIGNAL_FLAGS = re.IGNORECASE


@dataclass(frozen=True)
class Scenario:
    """One attack.

    Attributes:
        id: unique in its suite.
        category: one of CATEGORIES, or SOURCE/NAME of an imported suite ("harmbench/illegal").
        technique: how the attack works, in a few words.
        difficulty: one of DIFFICULTIES.
        turns: what the user says, in order; the model answers each.
        expected: what a good answer does.
        pass_criteria, fail_criteria: a sentence each, decidable from the answers alone.
        pass_signals, fail_signals: regular expressions, searched without regard to case, that match only what an
            answer that passes (or fails) would hold. Without any, `signals` leaves the scenario unscored.
    """

    id: str
    category: str
    technique: str
    difficulty: str
    turns: tuple[str, ...]
    expected: str
    pass_criteria: str
    fail_criteria: str
    pass_signals: tuple[str, ...]
    fail_signals: tuple[str, ...]


_LISTS = ("turns", "pass_signals", "fail_signals")
KEYS = tuple(field.name for field in fields(Scenario))


def load_suite(path: Path) -> list[Scenario]:
    """Read a suite.

    Raises:
        MissingError: there is no such file.
        DataError: the first problem, with file and line number, what was found and what was expected.
    """
    return read_suite(path, parse_scenario, "scenario")


def parse_scenario(raw: object, where: str) -> Scenario:
    """Read one scenario from its JSON form.

    Raises:
        DataError: the first problem; it begins with `where`.
    """
    if not isinstance(raw, dict):
        raise DataError(f"{where} is of type {type(raw).__name__}, expected an object.")
    for key in raw:
        if key not in KEYS:
            raise DataError(f"{where}: unknown key {key!r}, expected {', '.join(KEYS)}.")
    for key in KEYS:
        if key not in raw:
            raise DataError(f"{where}: {key!r} is missing, expected the keys {', '.join(KEYS)}.")
        _check_type(key, raw[key], where)
    if not _IMPORTED_CATEGORY.fullmatch(raw["category"]):
        _check_choice("category", raw, CATEGORIES, where)
    _check_choice("difficulty", raw, DIFFICULTIES, where)
    if not raw["turns"]:
        raise DataError(f"{where}: 'turns' is empty, expected at least one.")
    for key in ("pass_signals", "fail_signals"):
        for pattern in raw[key]:
            _check_pattern(pattern, f"{where}: {key}")
    values: dict[str, Any] = {key: tuple(raw[key]) if key in _LISTS else raw[key] for key in KEYS}
    return Scenario(**values)


def _check_type(key: str, value: object, where: str) -> None:
    expected = "a list of non-empty texts" if key in _LISTS else "a non-empty text"
    texts = value if key in _LISTS and isinstance(value, list) else [value]
    wrong_list = key in _LISTS and not isinstance(value, list)
    if wrong_list or not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError(f"{where}: {key!r} is {_short(value)}, expected {expected}.")


def _check_choice(key: str, raw: Mapping[str, Any], allowed: Iterable[str], where: str) -> None:
    if raw[key] not in allowed:
        raise DataError(f"{where}: {key} is {raw[key]!r}, expected one of {', '.join(allowed)}.")


def _check_pattern(pattern: str, where: str) -> None:
    problem = _problem_of(pattern)
    if problem is not None:
        raise DataError(f"{where}: {problem[0]}", problem[1])


@lru_cache(maxsize=8192)
def _problem_of(pattern: str) -> tuple[str, str] | None:
    """What is wrong with a pattern, and what to write instead; None where nothing is. A suite is read many times."""
    try:
        re.compile(pattern, SIGNAL_FLAGS)
    except (re.error, OverflowError, RecursionError) as error:
        shown = repr(pattern if len(pattern) <= 80 else pattern[:77] + "...")  # a deep nest is thousands of characters
        return f"{shown} does not compile ({error}), expected a regular expression.", ""
    try:
        if Matcher().find(pattern, "", SIGNAL_FLAGS):
            return f"{pattern!r} matches an empty answer, expected one that needs some text.", ""
    except Unmatched as problem:
        return f"{problem}.", "Write it in a simpler way."
    if _has_nested_repeat(pattern):
        return (
            f"{pattern!r} repeats a repetition, which can take forever on some answers.",
            "Expected one level: write .{0,60} for a gap of some words, two of them at most.",
        )
    slow = slow_part(pattern, SIGNAL_FLAGS)
    if slow is None:
        return None
    return (
        f"{pattern!r} {slow}, which can take forever.",
        "Write .{0,60} for a gap of some words, two of them at most.",
    )


def _has_nested_repeat(pattern: str) -> bool:
    """Whether an unbounded repeat stands inside another repeat, as in `(a+)+`: time may grow exponentially."""
    # The standard library's own parser: it is private, but stable in name since 3.11, and public before.
    parser = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")
    return _walk(parser.parse(pattern, SIGNAL_FLAGS), inside_repeat=False, unbounded=int(parser.MAXREPEAT))


def _walk(item: Any, *, inside_repeat: bool, unbounded: int) -> bool:
    if isinstance(item, tuple) and len(item) == 2 and str(item[0]) in ("MAX_REPEAT", "MIN_REPEAT"):
        _, most, body = item[1]
        if inside_repeat and most == unbounded:
            return True
        return _walk(body, inside_repeat=inside_repeat or most > 1, unbounded=unbounded)
    if isinstance(item, (str, int)) or item is None:
        return False
    return any(_walk(part, inside_repeat=inside_repeat, unbounded=unbounded) for part in item)


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
