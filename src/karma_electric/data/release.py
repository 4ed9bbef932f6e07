"""Freezes a release: picks examples, splits them, injects the system prompt. The same inputs give the same bytes."""

from __future__ import annotations

import hashlib
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from karma_electric.core.artifact import write_atomic, write_json
from karma_electric.core.errors import DataError, MissingError
from karma_electric.core.messages import as_dicts, system
from karma_electric.core.recipe import ReleaseSection
from karma_electric.data.candidate import Candidate
from karma_electric.data.corpus import dump_lines, read_corpus
from karma_electric.data.example import CATEGORIES
from karma_electric.data.families import families
from karma_electric.data.grades import read_grades, totals
from karma_electric.data.rubric import RUBRIC

TRAIN = "train.jsonl"
VALIDATION = "validation.jsonl"
GRADES_FOLDER = "grades"
UNRELEASED = "unreleased"  # the version of what has not been in a release yet: candidates of a workbench


def read_source(path: Path, *, graded: bool = True, force: bool = False) -> tuple[list[Candidate], dict[str, float]]:
    """The conversations a release can be made from, and their grades (the median total over judges).

    Args:
        path: a corpus folder with its `grades/`, or a workbench file.
        graded: whether the grades will decide anything.
        force: use grades of a workbench judge that has not passed its check.

    Raises:
        DataError: a line that cannot be used.
        GateError: a workbench whose judge has not passed `karma data judge --check`.
    """
    if path.is_dir():
        items = [Candidate.from_example(example) for example in read_corpus(path)]
        folder = path / GRADES_FOLDER
        contents = {item.id: item.content_sha256 for item in items}
        return items, totals(read_grades(folder), contents) if folder.is_dir() else {}
    from karma_electric.data.judge_check import require_trusted
    from karma_electric.data.store import Store

    with Store.open(path) as store:
        items = [item for item in store.candidates() if item.messages[-1].role == "assistant"]
        found = store.grades(rubric=RUBRIC)
        for judge in sorted({grade.judge for grades in found.values() for grade in grades}) if graded else ():
            require_trusted(store, judge, force=force)
    known = {id_: [grade.total for grade in grades if grade.total is not None] for id_, grades in found.items()}
    return items, {id_: statistics.median(values) for id_, values in known.items() if values}


def select(
    items: Sequence[Candidate], section: ReleaseSection, grades: Mapping[str, float] | None = None
) -> list[Candidate]:
    """The accepted conversations a recipe asks for.

    Args:
        items: what there is.
        section: status, categories, versions and minimum grade asked for.
        grades: id -> total out of 40; what has none is left out when a minimum is asked for.

    Raises:
        DataError: an unknown category, a minimum grade where nothing is graded, or nothing left.
    """
    for category in section.categories or ():
        if category not in CATEGORIES:
            raise DataError(f"release.categories: {category!r} is unknown.", f"Known: {', '.join(CATEGORIES)}.")
    wanted = [
        item
        for item in items
        if item.status == "accepted"
        and item.category in (CATEGORIES if section.categories is None else section.categories)
        and (section.versions is None or (item.added_in or UNRELEASED) in section.versions)
    ]
    if not wanted:
        reasons = ", ".join(f"{reason} {n}" for reason, n in _left_out(items, [], section, {}).items())
        raise DataError(
            f"The release would be empty: no accepted example matches (of {len(items)}: {reasons or 'none'}).",
            "Widen release.categories or release.versions, or accept and categorise: karma data review.",
        )
    if section.minimum_grade is None:
        return wanted
    graded = grades or {}
    chosen = [item for item in wanted if graded.get(item.id, -1.0) >= section.minimum_grade]
    if not chosen:
        found = f"{sum(item.id in graded for item in wanted)} of {len(wanted)} matching examples are graded"
        raise DataError(
            f"The release would be empty: {found}, none with {section.minimum_grade:g} or more.",
            "Grade them with karma data judge, or lower release.minimum_grade.",
        )
    return chosen


def split(examples: Sequence[Candidate], fraction: float, seed: int) -> tuple[list[Candidate], list[Candidate]]:
    """Train and validation, the same share of every category, whole families on one side, by a hash of seed and id.

    A family (families.py) goes with its first member by that hash, which also decides its category. An example keeps
    its place in the order of hashes when others are added.

    Raises:
        DataError: one of the two would be empty.
    """
    ranked = sorted(examples, key=lambda e: _rank(seed, e.id))
    groups = [[ranked[i] for i in group] for group in families([e.messages for e in ranked])]
    train: list[Candidate] = []
    validation: list[Candidate] = []
    for category in CATEGORIES:
        members = [group for group in groups if group[0].category == category]
        size = sum(len(group) for group in members)
        wanted = max(round(size * fraction), 1) if len(members) > 1 else 0
        taken = 0
        for group in members:
            # the smallest family is let in when nothing else would be held out
            fits = taken + len(group) <= wanted or (taken == 0 and len(group) == min(map(len, members)))
            if taken < wanted and fits:
                validation += group
                taken += len(group)
            else:
                train += group
    if not train or not validation:
        raise DataError(
            f"{len(examples)} examples cannot be split into train and validation.",
            "Use at least 2 of some category that do not repeat one another.",
        )
    return sorted(train, key=lambda e: _rank(seed, e.id)), sorted(validation, key=lambda e: e.id)


def write_release(
    section: ReleaseSection, source: Path, system_prompt: str, out: Path, *, force: bool = False
) -> dict[str, Any]:
    """Write train.jsonl, validation.jsonl and summary.json to `out`. Returns the summary.

    Args:
        section: what to choose.
        source: a corpus folder or a workbench file.
        system_prompt: put in front of every conversation.
        out: an existing folder.
        force: see `read_source`.
    """
    if not source.exists():
        raise MissingError(f"{source} does not exist.", "Give a corpus folder or a workbench file.")
    items, grades = read_source(source, graded=section.minimum_grade is not None, force=force)
    chosen = select(items, section, grades)
    train, validation = split(chosen, section.validation_fraction, section.seed)
    for name, part in ((TRAIN, train), (VALIDATION, validation)):
        write_atomic(out / name, dump_lines([_record(example, system_prompt) for example in part]))
    summary = {
        "examples": len(chosen),
        "train": len(train),
        "validation": len(validation),
        "multi_turn": sum(len(example.messages) > 2 for example in chosen),
        "families_of_several": sum(len(group) > 1 for group in families([e.messages for e in chosen])),
        "categories": _counts(example.category for example in chosen),
        "versions": _counts(example.added_in or UNRELEASED for example in chosen),
        "licenses": _counts(example.license for example in chosen),
        "sources": _counts(example.source for example in chosen),
        "left_out": _left_out(items, chosen, section, grades),
        "answer_words": _words(chosen),
        "system_prompt": system_prompt,
    }
    write_json(out / "summary.json", summary)
    return summary


def _left_out(
    items: Sequence[Candidate], chosen: Sequence[Candidate], section: ReleaseSection, grades: Mapping[str, float]
) -> dict[str, int]:
    """Why examples are not in the release, the first reason that applies to each."""
    taken = {item.id for item in chosen}
    reasons: Counter[str] = Counter()
    for item in items:
        if item.id in taken:
            continue
        if item.status != "accepted":
            reasons[f"status {item.status}"] += 1
        elif section.versions is not None and (item.added_in or UNRELEASED) not in section.versions:
            reasons["other version"] += 1
        elif item.category not in (CATEGORIES if section.categories is None else section.categories):
            reasons["other category" if item.category else "no category"] += 1
        else:
            reasons["below minimum grade" if item.id in grades else "not graded"] += 1
    return dict(sorted(reasons.items()))


def _record(example: Candidate, system_prompt: str) -> dict[str, Any]:
    messages = as_dicts([system(system_prompt), *example.messages])
    return {"id": example.id, "category": example.category, "messages": messages}


def _counts(values: Any) -> dict[str, int]:
    return dict(sorted(Counter(str(value) for value in values).items()))


def _words(examples: Sequence[Candidate]) -> dict[str, float]:
    lengths = sorted(len(m.content.split()) for e in examples for m in e.messages if m.role == "assistant")
    return {
        "shortest": lengths[0],
        "median": lengths[len(lengths) // 2],
        "longest": lengths[-1],
        "total": sum(lengths),
    }


def _rank(seed: int, example_id: str) -> str:
    return hashlib.sha256(f"{seed}:{example_id}".encode()).hexdigest()
