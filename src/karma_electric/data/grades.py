"""Grades as text: one line per example and judge, kept beside the corpus they belong to."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karma_electric.core.errors import DataError
from karma_electric.core.jsonl import read_jsonl
from karma_electric.data.rubric import DIMENSIONS, HIGHEST, LOWEST, RUBRIC, Grade

_KEYS = ("id", "content_sha256", "rubric", "judge", "scores", "total", "rationale")


@dataclass(frozen=True)
class GradeLine:
    """A grade with the example and the very words it was given to."""

    id: str
    content_sha256: str
    grade: Grade

    def as_dict(self) -> dict[str, Any]:
        """The JSON form, keys in the order of the files."""
        return {
            "id": self.id,
            "content_sha256": self.content_sha256,
            "rubric": self.grade.rubric,
            "judge": self.grade.judge,
            "scores": dict(self.grade.scores),
            "total": self.grade.total,
            "rationale": self.grade.rationale,
        }


def parse_grade(item: object, where: str) -> GradeLine:
    """Read one grade line.

    Raises:
        DataError: what is wrong, with `where`: keys, scores outside 0 to 10, a total that is not their sum.
    """
    if not isinstance(item, Mapping) or set(item) != set(_KEYS):
        raise DataError(f"{where}: expected an object with exactly the keys {', '.join(_KEYS)}.")
    for key in ("id", "content_sha256", "rubric", "judge", "rationale"):
        if not isinstance(item[key], str):
            raise DataError(f"{where}: {key!r} is {item[key]!r}, expected text.")
    scores, total = item["scores"], item["total"]
    if item["rubric"] == RUBRIC and (
        not isinstance(scores, Mapping) or ((scores or total) and set(scores) != set(DIMENSIONS))
    ):
        raise DataError(f"{where}: 'scores' is {scores!r}, expected the dimensions {', '.join(DIMENSIONS)}.")
    if not isinstance(scores, Mapping):
        raise DataError(f"{where}: 'scores' is {scores!r}, expected an object of names and numbers.")
    for name, score in scores.items():
        if isinstance(score, bool) or not isinstance(score, int | float) or not LOWEST <= score <= HIGHEST:
            raise DataError(f"{where}: {name} is {score!r}, expected a number from {LOWEST} to {HIGHEST}.")
    if total is not None and (not isinstance(total, int | float) or abs(total - sum(scores.values())) > 1e-6):
        raise DataError(
            f"{where}: the total is {total!r}, the scores add up to {sum(scores.values())}.", "Correct that line."
        )
    grade = Grade(item["rubric"], dict(scores), total, item["rationale"], item["judge"])
    return GradeLine(item["id"], item["content_sha256"], grade)


def read_grades(path: Path) -> list[GradeLine]:
    """All grades of a file, or of the .jsonl files of a folder, by file name, then line.

    Raises:
        DataError: a line that cannot be used, or two grades of one judge for the same words.
    """
    lines: list[GradeLine] = []
    seen: dict[tuple[str, str, str, str], str] = {}
    for file in sorted(path.glob("*.jsonl")) if path.is_dir() else [path]:
        for number, item in read_jsonl(file):
            where = f"{file.name} line {number}"
            line = parse_grade(item, where)
            key = (line.id, line.content_sha256, line.grade.rubric, line.grade.judge)
            if key in seen:
                raise DataError(
                    f"{where}: {line.id!r} was already graded by {line.grade.judge!r} in {seen[key]}.",
                    "Keep one of the two.",
                )
            seen[key] = where
            lines.append(line)
    return lines


def totals(lines: Iterable[GradeLine], contents: Mapping[str, str], rubric: str = RUBRIC) -> dict[str, float]:
    """Per example the median total over its judges; grades given to other words than the present ones do not count.

    Args:
        lines: grades.
        contents: id -> `content_sha256` of the present turns.
        rubric: only grades under this rubric.
    """
    found: dict[str, list[float]] = {}
    for line in lines:
        if (
            line.grade.rubric == rubric
            and line.grade.total is not None
            and contents.get(line.id) == line.content_sha256
        ):
            found.setdefault(line.id, []).append(line.grade.total)
    return {id_: statistics.median(values) for id_, values in found.items()}
