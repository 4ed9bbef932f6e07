"""Freezes a release: picks examples, splits them, injects the system prompt. The same inputs give the same bytes."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from karma_electric.core.artifact import write_atomic, write_json
from karma_electric.core.errors import DataError
from karma_electric.core.messages import as_dicts, system
from karma_electric.core.recipe import ReleaseSection
from karma_electric.data.corpus import dump_lines, read_corpus
from karma_electric.data.example import CATEGORIES, Example

TRAIN = "train.jsonl"
VALIDATION = "validation.jsonl"


def select(examples: Sequence[Example], section: ReleaseSection) -> list[Example]:
    """The accepted examples a recipe asks for.

    Raises:
        DataError: an unknown category, or nothing left.
    """
    for category in section.categories or ():
        if category not in CATEGORIES:
            raise DataError(f"release.categories: {category!r} is unknown.", f"Known: {', '.join(CATEGORIES)}.")
    chosen = [
        example
        for example in examples
        if example.status == "accepted"
        and (section.categories is None or example.category in section.categories)
        and (section.versions is None or example.added_in in section.versions)
    ]
    if not chosen:
        raise DataError("The release would be empty: no accepted example matches.", "Widen categories or versions.")
    return chosen


def split(examples: Sequence[Example], fraction: float, seed: int) -> tuple[list[Example], list[Example]]:
    """Train and validation, the same share of every category, by a hash of seed and id.

    An example keeps its place in the order of hashes when others are added.
    """
    train: list[Example] = []
    validation: list[Example] = []
    for category in CATEGORIES:
        members = sorted((e for e in examples if e.category == category), key=lambda e: _rank(seed, e.id))
        held_out = round(len(members) * fraction) if len(members) > 1 else 0
        held_out = max(held_out, 1) if len(members) > 1 else 0
        validation += members[:held_out]
        train += members[held_out:]
    if not train or not validation:
        raise DataError(
            f"{len(examples)} examples cannot be split into train and validation.",
            "Use at least 2 of some category.",
        )
    return sorted(train, key=lambda e: _rank(seed, e.id)), sorted(validation, key=lambda e: e.id)


def write_release(section: ReleaseSection, corpus: Path, system_prompt: str, out: Path) -> dict[str, Any]:
    """Write train.jsonl, validation.jsonl and summary.json to `out`. Returns the summary."""
    chosen = select(read_corpus(corpus), section)
    train, validation = split(chosen, section.validation_fraction, section.seed)
    for name, part in ((TRAIN, train), (VALIDATION, validation)):
        write_atomic(out / name, dump_lines([_record(example, system_prompt) for example in part]))
    summary = {
        "examples": len(chosen),
        "train": len(train),
        "validation": len(validation),
        "multi_turn": sum(len(example.messages) > 2 for example in chosen),
        "categories": dict(Counter(example.category for example in chosen)),
        "licenses": dict(Counter(example.license for example in chosen)),
        "sources": dict(Counter(example.source for example in chosen)),
        "answer_words": _words(chosen),
        "system_prompt": system_prompt,
    }
    write_json(out / "summary.json", summary)
    return summary


def _record(example: Example, system_prompt: str) -> dict[str, Any]:
    messages = as_dicts([system(system_prompt), *example.messages])
    return {"id": example.id, "category": example.category, "messages": messages}


def _words(examples: Sequence[Example]) -> dict[str, float]:
    lengths = sorted(len(m.content.split()) for e in examples for m in e.messages if m.role == "assistant")
    return {
        "shortest": lengths[0],
        "median": lengths[len(lengths) // 2],
        "longest": lengths[-1],
        "total": sum(lengths),
    }


def _rank(seed: int, example_id: str) -> str:
    return hashlib.sha256(f"{seed}:{example_id}".encode()).hexdigest()
