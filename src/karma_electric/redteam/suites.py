"""What a suite's file holds: which kind of lines, how many, and how they spread. Knows nothing of models.

Scenarios and capability items are read by their own strict loaders, so that describing a file checks it; the others are
counted by the keys they have.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karma_electric.core.errors import DataError
from karma_electric.core.jsonl import read_jsonl
from karma_electric.redteam.capability import load_items
from karma_electric.redteam.scenario import DIFFICULTIES, load_suite

SCENARIOS = "red-team scenarios"
ITEMS = "capability items"
_KINDS = (  # by keys of the first line, in this order
    (("pass_criteria", "turns"), SCENARIOS),
    (("check", "prompt"), ITEMS),
    (("response", "label"), "labelled answers"),
    (("better", "worse"), "pairs of answers"),
    (("prompt",), "prompts"),
)
_OTHER = "other lines"
_SPREAD = ("category", "kind", "difficulty", "label")


@dataclass(frozen=True)
class SuiteFacts:
    """What is in one file.

    Attributes:
        file: its name.
        holds: kind of lines.
        lines: how many.
        counts: of each of category, kind, difficulty and label that its lines have.
        without_signals: scenarios that only a judge reading criteria can score; None where lines are no scenarios.
    """

    file: str
    holds: str
    lines: int
    counts: dict[str, dict[str, int]]
    without_signals: int | None = None


def describe(path: Path) -> SuiteFacts:
    """Read a suite's file.

    Raises:
        MissingError: no such file.
        DataError: the first line that cannot be read, or, of scenarios and capability items, used.
    """
    rows = [row for _, row in read_jsonl(path)]
    if not rows or not isinstance(rows[0], dict):
        raise DataError(f"{path.name} does not begin with a line that holds an object.", "Expected JSON Lines.")
    holds = next((kind for keys, kind in _KINDS if all(key in rows[0] for key in keys)), _OTHER)
    without_signals = None
    if holds == SCENARIOS:
        suite = load_suite(path)
        without_signals = sum(not (scenario.pass_signals or scenario.fail_signals) for scenario in suite)
    elif holds == ITEMS:
        load_items(path)
    return SuiteFacts(path.name, holds, len(rows), dict(_counts(rows)), without_signals)


def _counts(rows: list[Any]) -> Iterable[tuple[str, dict[str, int]]]:
    for key in _SPREAD:
        if all(isinstance(row, Mapping) and isinstance(row.get(key), str) for row in rows):
            found = Counter(row[key] for row in rows)
            order = DIFFICULTIES if key == "difficulty" else ()
            yield key, {name: found[name] for name in (*order, *(n for n in found if n not in order)) if name in found}
