"""Reads a corpus: a folder of JSONL files, one per category."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from karma_electric.core.errors import DataError, MissingError
from karma_electric.core.jsonl import parse_json
from karma_electric.data.example import Example, parse_example


def read_corpus(folder: Path) -> list[Example]:
    """All examples of a corpus folder, by file name, then line.

    Raises:
        MissingError: no JSONL files there.
        DataError: a bad line, an id used twice, or an example in the file of another category.
    """
    examples, problems = scan_corpus(folder)
    if problems:
        raise problems[0]
    return examples


def scan_corpus(folder: Path) -> tuple[list[Example], list[DataError]]:
    """The examples of a corpus folder, by file name, then line, and what is wrong with each line that is none.

    Raises:
        MissingError: no JSONL files there.
        DataError: they are empty.
    """
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise MissingError(f"{folder} {found}.", "A corpus is a folder with one JSONL file per category.")
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise MissingError(f"{folder} has no .jsonl files.", "A corpus is one JSONL file per category.")
    examples: list[Example] = []
    problems: list[DataError] = []
    seen: dict[str, str] = {}
    for file in files:
        with file.open("rb") as lines:
            for number, raw in enumerate(lines, 1):
                if not raw.strip():
                    continue
                where = f"{file.name} line {number}"
                try:
                    example = parse_example(parse_json(raw, where), where)
                    _require_new(example, seen, where)
                    _require_category(example, file, where)
                except DataError as problem:
                    problems.append(problem)
                else:
                    seen[example.id] = where
                    examples.append(example)
    if not examples and not problems:
        raise DataError(f"{folder} has no examples: its .jsonl files are empty.", "Write one JSON object per line.")
    return examples, problems


def _require_new(example: Example, seen: Mapping[str, str], where: str) -> None:
    if example.id in seen:
        raise DataError(
            f"{where}: the id {example.id!r} was already used in {seen[example.id]}.",
            "Ids are unique.",
        )


def _require_category(example: Example, file: Path, where: str) -> None:
    if example.category != file.stem:
        raise DataError(
            f"{where}: category {example.category!r} does not belong in {file.name}.",
            f"Move it to {example.category}.jsonl.",
        )


def dump_lines(items: list[dict[str, Any]]) -> str:
    """JSONL text of some records, in the form the corpus files have."""
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
