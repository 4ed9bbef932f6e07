"""What `dedupe` and `decontaminate` share: where their texts come from, and how a pair is shown and applied."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from karma_electric.data.records import RemovalKind

CONTAMINATION: RemovalKind = "contamination"
_LINES = 6  # of each text that are shown
_NARROWEST = 24  # characters of a column


class Source(NamedTuple):
    """One conversation or record, in the form that both filters need."""

    id: str
    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    status: str
    grade: float | None = None
    others: tuple[str, ...] = ()


class Removal(NamedTuple):
    """What is to be recorded in a workbench."""

    id: str
    kind: RemovalKind
    other: str
    similarity: float
    detail: str


def from_file(path: Path) -> list[Source]:
    """The records of a JSONL file; rejected ones are left out."""
    from karma_electric.data.texts import read_texts

    records = read_texts(path)
    return [Source(r.id, r.prompts, r.answers, r.status, None, r.others) for r in records if r.status != "rejected"]


def from_folder(path: Path) -> list[Source]:
    """The records of every JSONL file of a folder; an id must be unique in all of them."""
    from karma_electric.core.errors import DataError
    from karma_electric.data.decontaminate import reference_files

    seen: dict[str, str] = {}
    sources = []
    for file in reference_files([path]):
        for source in from_file(file):
            if source.id in seen:
                raise DataError(
                    f"{file.name}: the id {source.id!r} was already used in {seen[source.id]}.", "Ids are unique."
                )
            seen[source.id] = file.name
            sources.append(source)
    return sources


def from_workbench(path: Path) -> list[Source]:
    """The candidates of a workbench that are not rejected, with the median of their judges' totals."""
    from karma_electric.data.rubric import RUBRIC
    from karma_electric.data.store import Store

    with Store.open(path) as store:
        grades = {
            id_: statistics.median(totals)
            for id_, given in store.grades(rubric=RUBRIC).items()
            if (totals := [grade.total for grade in given if grade.total is not None])
        }
        return [
            Source(
                candidate.id,
                tuple(m.content for m in candidate.messages if m.role == "user"),
                tuple(m.content for m in candidate.messages if m.role == "assistant"),
                candidate.status,
                grades.get(candidate.id),
            )
            for candidate in store.candidates()
            if candidate.status != "rejected"
        ]


def require_target(file: Path | None, *, apply: bool, out: Path | None) -> None:
    """Refuse, before any work, what could not be applied at the end.

    Raises:
        InputError: `--apply` on a file without `--out`, `--out` for a workbench, or an `--out` that exists.
    """
    from karma_electric.core.errors import InputError

    if file is None and out is not None:
        raise InputError("--out is for a file; a workbench records removals in itself.", "Use --apply.")
    if file is not None and file.is_dir() and (apply or out is not None):
        raise InputError(f"{file} is a folder: it is only reported on.", "Give one file and --out FILE.")
    if file is not None and apply and out is None:
        raise InputError("A file is never changed in place.", "Say where the rest goes: --out FILE")
    if out is not None and out.exists():
        raise InputError(f"{out} exists.", "Give another name, or remove it.")


def apply_to_file(file: Path, out: Path, removed: Collection[str]) -> int:
    """Write the lines of a file that stay, unchanged. Returns how many."""
    from karma_electric.core.artifact import write_atomic
    from karma_electric.data.texts import read_texts

    numbers = {record.line for record in read_texts(file) if record.id in removed}
    lines = file.read_bytes().splitlines(keepends=True)
    kept = [line for number, line in enumerate(lines, 1) if number not in numbers]
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, b"".join(kept))
    return sum(bool(line.strip()) for line in kept)


def apply_to_workbench(path: Path, removals: Iterable[Removal]) -> list[str]:
    """Record removals, all of them or none. Returns the ids that were left because a reviewer brought them back.

    Whoever brought back a copy has not decided that it may share text with a benchmark, nor the other way round.
    """
    from karma_electric.data.store import Store

    with Store.open(path) as store:
        decided = {(removal.candidate_id, removal.kind == CONTAMINATION) for removal in store.removals()}
        left = []
        with store.transaction():
            for removal in removals:
                if (removal.id, removal.kind == CONTAMINATION) in decided:
                    left.append(removal.id)
                else:
                    store.add_removal(removal.id, removal.kind, removal.other, removal.similarity, removal.detail)
        return sorted(set(left))


def side_by_side(left: str, right: str, width: int) -> str:
    """Two texts as columns, cut to a few lines."""
    import textwrap

    column = max((width - 5) // 2, _NARROWEST)
    wrapped = [
        textwrap.wrap(" ".join(text.split()), column, max_lines=_LINES, placeholder=" …") for text in (left, right)
    ]
    rows = zip_longest(*wrapped, fillvalue="")
    return "\n".join(f"  {one:<{column}} | {other}".rstrip() for one, other in rows)


def print_pairs(pairs: Sequence[Any], heading: Callable[[Any], str], show: int) -> None:
    """The first pairs, side by side: what goes on the left, what it is like on the right."""
    import shutil

    width = min(shutil.get_terminal_size((100, 24)).columns, 160)
    for pair in pairs[:show]:
        print(f"\n{heading(pair)}")
        print(side_by_side(pair.text, pair.other_text, width))
    if len(pairs) > show:
        print(f"\n... and {len(pairs) - show} more: --show {len(pairs)} or --report FILE has them all")


def chosen(fields: str, source: Source) -> dict[str, str]:
    """The texts of a record that are compared, by field."""
    texts = {"prompt": "\n\n".join(source.prompts), "answer": "\n\n".join(source.answers)}
    return texts if fields == "both" else {fields: texts[fields]}


def passages(sources: Iterable[Source]) -> Iterator[tuple[str, str]]:
    """(id, text) of every text of some records."""
    for source in sources:
        for text in (*source.prompts, *source.answers, *source.others):
            yield source.id, text
