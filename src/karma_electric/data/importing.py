"""Brings files of any known format into a workbench: what cannot be used is reported with its line, the rest goes in.

Written in transactions of some hundred records: a kill leaves whole ones, the same command again adds nothing twice.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from karma_electric.core.errors import DataError, InputError, MissingError
from karma_electric.core.progress import Progress
from karma_electric.core.tolerant import Line, read_tolerant
from karma_electric.data.candidate import Candidate
from karma_electric.data.formats import FORMATS, GRADES, detect, karma
from karma_electric.data.formats.columnar import read_rows
from karma_electric.data.grades import GradeLine, parse_grade
from karma_electric.data.records import filled_from
from karma_electric.data.rubric import median_grade
from karma_electric.data.store import Reply, Store

AUTO = "auto"
SUFFIXES = (".jsonl", ".json", ".parquet")
_IMPORTED = "import of "  # why a revision was replaced, before the file
KEPT_PROBLEMS = 10_000  # per file; beyond, they are only counted
_BATCH, _BATCH_BYTES = 500, 8 << 20  # what one transaction holds at most


@dataclass(frozen=True)
class Problem:
    """A record that was left out: where in which file, what was found and expected, and what to do.

    `line` is its number there: the line, of a table the row, of a JSON array the element.
    """

    where: str
    line: int
    found: str
    hint: str = ""

    def __str__(self) -> str:
        return f"{self.found if self.where in self.found else f'{self.where}: {self.found}'} {self.hint}".strip()


@dataclass
class FileReport:
    """What became of one file.

    Attributes:
        own_category: records whose category is none of ours; it stays in `extra`.
        unreadable: why nothing of the file could be read, or its rest could not; None if it could.
    """

    file: str
    format: str | None = None
    new: int = 0
    unchanged: int = 0
    replaced: int = 0
    left_out: int = 0
    own_category: int = 0
    unreadable: Problem | None = None
    problems: list[Problem] = field(default_factory=list)

    def leave_out(self, where: str, line: int, problem: InputError) -> None:
        """Count a record that cannot be used."""
        self.left_out += 1
        if len(self.problems) < KEPT_PROBLEMS:
            self.problems.append(Problem(where, line, problem.message, problem.hint))


@dataclass(frozen=True)
class Wishes:
    """How to import.

    Attributes:
        format: one of `FORMATS`, "grades", or "auto": by the keys of the first good record of each file.
        source, license, category: for records that do not say.
        replace: an imported record takes the place of another one with its id, which stays in `revisions`.
        reviewer: who replaces.
    """

    format: str = AUTO
    source: str | None = None
    license: str | None = None
    category: str | None = None
    replace: bool = False
    reviewer: str = "import"


@dataclass(frozen=True)
class PlannedFile:
    """A file to import; one that is `in_corpus` must hold whole examples of the category it is named after."""

    path: Path
    in_corpus: bool


def plan_files(paths: Iterable[Path], wishes: Wishes) -> list[PlannedFile]:
    """The files to import: those given, and of a folder, read as a corpus, its files by name and then its `grades`.

    Raises:
        MissingError: a path that is not there, or a folder without files to import.
    """
    return [planned for path in paths for planned in _files(path, wishes)]


def import_files(
    store: Store, files: Iterable[PlannedFile], wishes: Wishes, progress: Progress
) -> Iterator[FileReport]:
    """Import files one after another; yields the report of each when it is done. A bad one does not stop the others."""
    for planned in files:
        importing = _Import(store, planned, wishes, progress)
        try:
            importing.run()
        except DataError as problem:
            if isinstance(problem.__cause__, sqlite3.Error):
                raise  # the workbench's own
            importing.report.unreadable = Problem(str(planned.path), 0, problem.message, problem.hint)
        yield importing.report


def _files(path: Path, wishes: Wishes) -> list[PlannedFile]:
    if not path.exists():
        raise MissingError(f"{path} does not exist.", "Give a .jsonl, .json or .parquet file, or a corpus folder.")
    if not path.is_dir():
        return [PlannedFile(path, False)]
    found = sorted(file for file in path.iterdir() if file.suffix in SUFFIXES and file.is_file())
    if not found:
        raise MissingError(f"{path} has no {', '.join(SUFFIXES)} files.", "A corpus is one JSONL file per category.")
    if wishes.format not in (AUTO, karma.NAME):
        return [PlannedFile(file, False) for file in found]
    grades = sorted(path.glob("grades/*.jsonl"))
    return [PlannedFile(file, True) for file in found] + [PlannedFile(file, False) for file in grades]


class _Import:
    """The import of one file."""

    def __init__(self, store: Store, planned: PlannedFile, wishes: Wishes, progress: Progress) -> None:
        self._store = store
        self._file = planned.path
        self._in_corpus = planned.in_corpus
        self._wishes = wishes
        self._progress = progress
        self.report = FileReport(str(planned.path))
        self._unit = "row" if planned.path.suffix == ".parquet" else "line"
        self._seen: set[str] = set()

    def run(self) -> None:
        """Read it all; `report` tells what became of it."""
        self._format = None if self._wishes.format == AUTO else self._wishes.format
        self._waiting: list[tuple[int, str, Any]] = []
        try:
            self._read()
        except DataError:
            self._flush()  # what was read before the file turned out to be damaged
            raise
        finally:
            self.report.format = self._format
            self.report.problems.sort(key=lambda problem: problem.line)  # conflicts are found a batch later

    def _read(self) -> None:
        size = max(self._file.stat().st_size, 1)
        written = 0  # bytes of the file that are in the workbench
        for line in self._lines():
            place = f"row {line.number}" if self._unit == "row" else line.place
            where, number = f"{self._file} {place}", line.element or line.number
            try:
                if line.problem is not None:
                    raise line.problem
                self._format = self._format or self._detect(line.value, where)
                self._waiting.append((number, where, self._reader(self._format)(line.value, where)))
            except InputError as problem:
                self.report.leave_out(where, number, problem)
            except RecursionError:
                self.report.leave_out(
                    where, number, DataError(f"{where}: brackets are nested too deeply.", "Correct it.")
                )
            if len(self._waiting) >= _BATCH or line.read_bytes - written > _BATCH_BYTES:
                self._flush()
                written = line.read_bytes
                self._progress.update(min(written * 100 // size, 99), 100, f"% of {self._file.name}")
        self._flush()
        if written:  # a bar was shown
            self._progress.update(100, 100, f"% of {self._file.name}")

    def _lines(self) -> Iterator[Line]:
        return read_rows(self._file) if self._unit == "row" else read_tolerant(self._file)

    def _detect(self, record: object, where: str) -> str:
        found = detect(record)
        if self._in_corpus:
            if found in (None, karma.NAME, "messages"):
                return karma.NAME  # a line of a corpus that lacks a key is no other format
            raise DataError(
                f"{where}: a record of the format {found}, in a folder that is read as a corpus.",
                f"Give --format {found} for this folder.",
            )
        if found is None:
            keys = f"the keys {', '.join(map(str, list(record)[:8]))}" if isinstance(record, dict) else "no object"
            raise DataError(f"{where}: found {keys}, none of the known formats.", f"Known: {', '.join(FORMATS)}.")
        return found

    def _reader(self, format: str) -> Callable[[object, str], Any]:
        if format == GRADES:
            return parse_grade
        return self._corpus_line if self._in_corpus else FORMATS[format].read

    def _corpus_line(self, record: object, where: str) -> Candidate:
        candidate = karma.read_complete(record, where)
        if candidate.category != self._file.stem:
            raise DataError(
                f"{where}: category {candidate.category!r} does not belong in {self._file.name}.",
                f"Move it to {candidate.category}.jsonl.",
            )
        return candidate

    def _flush(self) -> None:
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        with self._store.transaction():
            for number, where, item in waiting:
                try:
                    if isinstance(item, GradeLine):
                        self._add_grade(item, where)
                    else:
                        self._add(item, where)
                except DataError as problem:
                    if isinstance(problem.__cause__, sqlite3.Error):
                        raise  # the workbench's own
                    self.report.leave_out(where, number, problem)

    def _add(self, candidate: Candidate, where: str) -> None:
        wishes, report = self._wishes, self.report
        report.own_category += candidate.extra.get("category") is not None
        candidate = replace(
            candidate,
            category=candidate.category or wishes.category,
            source=wishes.source if wishes.source and candidate.source == "unknown" else candidate.source,
            license=wishes.license if wishes.license and candidate.license == "unknown" else candidate.license,
        )
        added = self._store.add([candidate], origin=str(self._file))
        report.new += added.new
        report.unchanged += added.unchanged
        for conflict in added.conflicts:
            differs = ", ".join(conflict.differs)
            if not wishes.replace:
                raise DataError(
                    f"{where}: the id {candidate.id!r} is in the workbench with other contents ({differs}).",
                    "Give it another id, or take the file's version with --replace.",
                )
            if candidate.id in self._seen:
                raise DataError(
                    f"{where}: the id {candidate.id!r} was already used in this file ({differs}).", "Ids are unique."
                )
            before = self._store.get(candidate.id)
            candidate = filled_from(before, candidate)
            if candidate.content_sha256 != before.content_sha256 and candidate.status == before.status == "accepted":
                candidate = replace(candidate, status="candidate")  # nobody has accepted these words
            if candidate.status == "accepted" and before.status == "candidate" and self._brought(before):
                candidate = replace(candidate, status="candidate")  # nor since
            if candidate == before:
                report.unchanged += 1
                continue
            self._store.replace(candidate, reason=f"{_IMPORTED}{self._file}", reviewer=wishes.reviewer)
            report.replaced += 1
        if wishes.replace:
            self._seen.add(candidate.id)

    def _brought(self, candidate: Candidate) -> bool:
        """Whether its words came by an import, in the place of others that had been accepted."""
        last = self._store.revisions(candidate.id)[-1:]
        return any(
            revision.reason.startswith(_IMPORTED)
            and revision.candidate.status == "accepted"
            and revision.candidate.content_sha256 != candidate.content_sha256
            for revision in last
        )

    def _add_grade(self, line: GradeLine, where: str) -> None:
        grade, report = line.grade, self.report
        try:
            self._store.get(line.id)
        except InputError:
            raise DataError(
                f"{where}: a grade of {line.id!r}, which is not in the workbench.", "Import the conversations first."
            ) from None
        before = [
            reply
            for reply in self._store.replies(rubric=grade.rubric, judge=grade.judge, candidate_id=line.id)
            if reply.content_sha256 == line.content_sha256
        ]
        if before:
            total = median_grade([reply.as_grade() for reply in before], grade.judge).total
            if total != grade.total:
                raise DataError(
                    f"{where}: {grade.judge!r} graded {line.id!r} with {total} in the workbench, {grade.total} here.",
                    "The workbench's grade stays.",
                )
            report.unchanged += 1
            return
        readable = grade.total is not None
        reply = Reply(
            candidate_id=line.id,
            content_sha256=line.content_sha256,
            rubric=grade.rubric,
            judge=grade.judge,
            sample=0,
            scores=dict(grade.scores) if readable else None,
            total=grade.total,
            rationale=grade.rationale,
        )
        self._store.add_reply(reply)
        report.new += 1
