"""Writes candidates of a workbench to files: whole or not at all, and what a format cannot hold is reported."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from karma_electric.core.artifact import sync_folder, write_atomic
from karma_electric.core.errors import ArtifactError, DataError, MissingError
from karma_electric.core.jsonl import read_jsonl
from karma_electric.data.candidate import Candidate
from karma_electric.data.corpus import dump_lines
from karma_electric.data.example import CATEGORIES, Example, parse_example
from karma_electric.data.formats import FORMATS
from karma_electric.data.formats.columnar import write_dataset, write_parquet
from karma_electric.data.grades import GradeLine
from karma_electric.data.rubric import RUBRIC
from karma_electric.data.store import Store

PARQUET, DATASETS = "parquet", "datasets"
_DATASET_SIGN = "dataset_info.json"


@dataclass(frozen=True)
class Selection:
    """Which candidates to export. `minimum_grade` is of the median over judges; without a grade, none passes it."""

    status: str | None = None
    category: str | None = None
    minimum_grade: float | None = None


@dataclass
class Exported:
    """What an export wrote.

    Attributes:
        ids: of the candidates, in their order.
        left_out: id -> why the format cannot hold it.
        files: written file -> number of records.
        prompts_dropped: system prompts that a corpus has no place for.
    """

    ids: list[str] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    prompts_dropped: int = 0


def select(store: Store, selection: Selection) -> Iterator[Candidate]:
    """The wanted candidates, in the order in which they came in."""
    totals = median_totals(store) if selection.minimum_grade is not None else {}
    for candidate in store.candidates(status=selection.status, category=selection.category, order="import"):
        if selection.minimum_grade is None or totals.get(candidate.id, -1.0) >= selection.minimum_grade:
            yield candidate


def median_totals(store: Store, rubric: str = RUBRIC) -> dict[str, float]:
    """Per candidate the median total over its judges; those without a readable grade are not there."""
    found = {}
    for id_, grades in store.grades(rubric=rubric).items():
        totals = [grade.total for grade in grades if grade.total is not None]
        if totals:
            found[id_] = statistics.median(totals)
    return found


def export_file(candidates: Iterable[Candidate], out: Path, format: str, *, force: bool) -> Exported:
    """Write one file (or, for `datasets`, one folder).

    Args:
        candidates: what to write.
        out: where to; its folder must exist.
        format: a key of `FORMATS`, "parquet" or "datasets".
        force: replace what is there.

    Raises:
        ArtifactError: something is there.
        MissingError: the folder for it is not there.
    """
    _check_target(out, format, force)
    done = Exported()

    def written(candidate: Candidate) -> Candidate:
        done.ids.append(candidate.id)
        return candidate

    with _replacing(out) as temporary:
        if format == DATASETS:
            write_dataset(temporary, map(written, candidates))
        elif format == PARQUET:
            write_parquet(temporary, map(written, candidates))
        else:
            with temporary.open("w", encoding="utf-8", newline="\n") as file:
                for candidate in candidates:
                    try:
                        record = FORMATS[format].write(candidate)
                    except DataError as problem:
                        done.left_out[candidate.id] = str(problem)
                        continue
                    written(candidate)
                    file.write(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
    done.files[str(out)] = len(done.ids)
    return done


def export_corpus(store: Store, folder: Path, selection: Selection) -> Exported:
    """Bring a corpus folder up to date: one file per category.

    Examples that are there keep their place and get what the workbench now says of them, their status too; those the
    workbench does not have stay as they are. The selected ones that are not there are appended, by id; a new file has
    the order in which they came in. Nothing is removed.

    Raises:
        DataError: the folder holds something that is no corpus.
    """
    if folder.exists() and not folder.is_dir():
        raise ArtifactError(
            f"{folder} is a file, expected a corpus folder.",
            "One file in our format: --force --format karma FILE.jsonl",
        )
    there = _read_files(folder)
    done = Exported()
    files: dict[str, list[Example]] = {category: [] for category in CATEGORIES}
    placed: set[str] = set()
    moved: list[Example] = []
    known = {row[0] for row in store.rows("SELECT id FROM candidates")}
    for stem, examples in there.items():
        for example in examples:
            if example.id in placed:
                continue
            now = example
            if example.id in known and selection.category in (None, example.category):
                now = _as_example(store.get(example.id), done) or example
            if now.category == stem:
                files[stem].append(now)
                placed.add(now.id)
            else:
                moved.append(now)
    added: dict[str, list[Example]] = {}
    for candidate in select(store, selection):
        if candidate.id not in placed and (fresh := _as_example(candidate, done)):
            added.setdefault(fresh.category, []).append(fresh)
            placed.add(fresh.id)
    for example in moved:
        if example.id not in placed:
            added.setdefault(example.category, []).append(example)
            placed.add(example.id)
    for category, examples in added.items():
        is_new = not files[category]
        files[category] += examples if is_new else sorted(examples, key=lambda example: example.id)
    if any(files.values()):
        folder.mkdir(parents=True, exist_ok=True)
    # Files that gain come first: a kill between two of them can then double an example that moves, never lose it.
    for category in sorted(files, key=lambda name: (name not in added, name)):
        if files[category] or category in there:
            _write_category(folder / f"{category}.jsonl", files[category], done)
    return done


def export_grades(store: Store, ids: Iterable[str], path: Path, rubric: str = RUBRIC) -> int:
    """Write the grades of some candidates as text, a line per candidate and judge. Returns the number of lines."""
    grades = store.grades(rubric=rubric)
    lines = [
        GradeLine(id_, store.get(id_).content_sha256, grade).as_dict()
        for id_ in sorted(set(ids))
        for grade in grades.get(id_, [])
    ]
    if not path.absolute().parent.is_dir():
        raise MissingError(f"The folder {path.parent} does not exist.", f"Make it: mkdir -p {path.parent}")
    write_atomic(path, dump_lines(lines))
    return len(lines)


def _read_files(folder: Path) -> Mapping[str, list[Example]]:
    there: dict[str, list[Example]] = {}
    for file in sorted(folder.glob("*.jsonl")) if folder.is_dir() else []:
        if file.stem not in CATEGORIES:
            raise DataError(
                f"{file} is no file of a corpus: those are named {', '.join(CATEGORIES)}.", "Give an empty folder."
            )
        there[file.stem] = [parse_example(item, f"{file.name} line {number}") for number, item in read_jsonl(file)]
    return there


def _as_example(candidate: Candidate, done: Exported) -> Example | None:
    try:
        example = candidate.to_example()
    except DataError as problem:
        done.left_out[candidate.id] = problem.message
        return None
    done.ids.append(candidate.id)
    done.prompts_dropped += candidate.system is not None
    return example


def _write_category(path: Path, examples: list[Example], done: Exported) -> None:
    text = dump_lines([example.as_dict() for example in examples])
    if not path.exists() or path.read_bytes() != text.encode():
        write_atomic(path, text)
        done.files[str(path)] = len(examples)


def _check_target(out: Path, format: str, force: bool) -> None:
    if not out.absolute().parent.is_dir():
        raise MissingError(f"The folder {out.parent} does not exist.", f"Make it: mkdir -p {out.parent}")
    if not out.exists():
        return
    ours = (out / _DATASET_SIGN).is_file() or not any(out.iterdir()) if out.is_dir() else format != DATASETS
    if out.is_dir() and format != DATASETS:
        raise ArtifactError(f"{out} is a folder, expected a file to write.", f"Give a name in it: {out}/{format}.jsonl")
    if not ours:
        raise ArtifactError(f"{out} is there, and no dataset that could be replaced.", "Give a new folder.")
    if not force and not (out.is_dir() and not any(out.iterdir())):
        raise ArtifactError(f"{out} exists.", "Replace it with --force, or give another name.")


@contextlib.contextmanager
def _replacing(out: Path) -> Iterator[Path]:
    """A temporary path that takes the place of `out` once all is written to it."""
    temporary = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        if temporary.is_dir():
            if out.exists():
                shutil.rmtree(out)
        else:
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
        temporary.replace(out)
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        temporary.unlink(missing_ok=True)
    sync_folder(out.absolute().parent)
