"""What a suite's file holds: which kind of lines, how many, and how they spread. Knows nothing of models.

What can be asked is read by its own strict loader, so that describing a file checks it; of the other lines it is looked
whether they have their keys.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karma_electric.redteam.kinds import kind_of, read_asked
from karma_electric.redteam.scenario import DIFFICULTIES
from karma_electric.redteam.suite_lines import ASKED, SCENARIOS, read_lines

TWINS = "harmless twins"
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
        DataError: the first line that cannot be read, or, where lines can be asked, used; or lines of two kinds.
    """
    form, numbered = read_lines(path)
    rows = [row for _, row in numbered]
    holds, without_signals = form.holds, None
    if form in ASKED:
        suite = read_asked(path)
        if form is SCENARIOS:
            holds = TWINS if kind_of(path) == "benign" else holds
            without_signals = sum(not (scenario.pass_signals or scenario.fail_signals) for scenario in suite)
    return SuiteFacts(path.name, holds, len(rows), dict(_counts(rows)), without_signals)


def _counts(rows: list[dict[str, Any]]) -> Iterable[tuple[str, dict[str, int]]]:
    for key in _SPREAD:
        if all(isinstance(row.get(key), str) for row in rows):
            found = Counter(row[key] for row in rows)
            order = DIFFICULTIES if key == "difficulty" else ()
            yield key, {name: found[name] for name in (*order, *(n for n in found if n not in order)) if name in found}
