"""Reads a corpus: a folder of JSONL files, one per category."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from karma_electric.core.errors import DataError, MissingError
from karma_electric.core.jsonl import read_jsonl
from karma_electric.data.example import Example, parse_example


def read_corpus(folder: Path) -> list[Example]:
    """All examples of a corpus folder, by file name, then line.

    Raises:
        MissingError: no JSONL files there.
        DataError: a bad line, an id used twice, or an example in the file of another category.
    """
    if not folder.is_dir():
        found = "is a file" if folder.exists() else "does not exist"
        raise MissingError(f"{folder} {found}.", "A corpus is a folder with one JSONL file per category.")
    files = sorted(folder.glob("*.jsonl"))
    if not files:
        raise MissingError(f"{folder} has no .jsonl files.", "A corpus is one JSONL file per category.")
    examples: list[Example] = []
    seen: dict[str, str] = {}
    for file in files:
        for number, item in read_jsonl(file):
            where = f"{file.name} line {number}"
            example = parse_example(item, where)
            if example.id in seen:
                raise DataError(
                    f"{where}: the id {example.id!r} was already used in {seen[example.id]}.",
                    "Ids are unique.",
                )
            if example.category != file.stem:
                raise DataError(
                    f"{where}: category {example.category!r} does not belong in {file.name}.",
                    f"Move it to {example.category}.jsonl.",
                )
            seen[example.id] = where
            examples.append(example)
    if not examples:
        raise DataError(f"{folder} has no examples: its .jsonl files are empty.", "Write one JSON object per line.")
    return examples


def dump_lines(items: list[dict[str, Any]]) -> str:
    """JSONL text of some records, in the form the corpus files have."""
    return "".join(json.dumps(item, ensure_ascii=False) + "\n" for item in items)
