"""`karma data export`: candidates as files of any known format, and their grades as text."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from karma_electric.cli.data.endpoint import Workbench

if TYPE_CHECKING:
    from collections.abc import Iterator

    from karma_electric.data.candidate import Candidate

_SHOWN = 10  # candidates that were left out; --json has them all


def export(
    ctx: typer.Context,
    out: Annotated[Path, typer.Argument(help="File to write; with --format karma also a corpus folder.")],
    database: Workbench = Path("workbench.db"),
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            help="karma, messages, sharegpt, alpaca, original, prompts, parquet or datasets; parquet for a name that "
            "ends so, else karma.",
        ),
    ] = None,
    status: Annotated[
        str | None, typer.Option("--status", help="Only those with this status: candidate, accepted, rejected.")
    ] = None,
    category: Annotated[str | None, typer.Option("--category", help="Only those of this category.")] = None,
    min_grade: Annotated[
        float | None, typer.Option("--min-grade", min=0, max=40, help="Only those graded so or better, out of 40.")
    ] = None,
    grades: Annotated[
        Path | None, typer.Option("--grades", help="Also write the grades of what is exported to this .jsonl file.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a file that is there.")] = False,
    salvage: Annotated[
        bool, typer.Option("--salvage", help="Of a damaged workbench, all that can be read; into one new file.")
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="End with code 0 though candidates were left out.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Write candidates to a file, or bring a corpus folder up to date: one file per category, nothing removed.

    In a corpus what is there keeps its place, and new examples are appended by id. What a format cannot hold is left
    out and reported, with exit code 1. Parquet opens with datasets.load_dataset("parquet", data_files=...), a datasets
    folder with datasets.load_from_disk.

    Example: karma data export corpus --status accepted --db workbench.db
    """
    import json

    from karma_electric.cli.data.given import refuse_unused
    from karma_electric.core.errors import GateError, InputError
    from karma_electric.data.example import CATEGORIES, STATUSES
    from karma_electric.data.exporting import (
        DATASETS,
        PARQUET,
        Selection,
        export_corpus,
        export_file,
        export_grades,
        select,
    )
    from karma_electric.data.formats import FORMATS
    from karma_electric.data.store import Store

    format_ = format_ or (PARQUET if out.suffix == ".parquet" else "karma")
    for name, value, known in (
        ("--format", format_, (*FORMATS, PARQUET, DATASETS)),
        ("--status", status, STATUSES),
        ("--category", category, CATEGORIES),
    ):
        if value is not None and value not in known:
            raise InputError(f"{name} {value!r} is unknown.", f"Give one of {', '.join(known)}.")
    selection = Selection(status, category, min_grade)
    is_corpus = format_ == "karma" and out.suffix not in (".jsonl", ".json")
    if salvage and (is_corpus or grades or selection != Selection()):
        raise InputError(
            "--salvage saves everything, into one file.",
            "Leave out the other options: karma data export saved.jsonl --salvage",
        )
    if is_corpus:
        why = "a corpus is brought up to date, and nothing in it is removed"
        refuse_unused(ctx, "force", why=why, hint="Leave it out, or name a .jsonl file.")
    unreadable = 0

    def readable(store: Store) -> Iterator[Candidate]:
        nonlocal unreadable
        for candidate in store.salvage():
            if candidate is None:
                unreadable += 1
            else:
                yield candidate

    with Store.open(database) as store:
        if salvage:
            done = export_file(readable(store), out, format_, force=force)
        elif is_corpus:
            done = export_corpus(store, out, selection)
        else:
            done = export_file(select(store, selection), out, format_, force=force)
        lines = export_grades(store, done.ids, grades) if grades is not None else None
    if json_:
        report = {
            "format": format_,
            "exported": len(done.ids),
            "files": done.files,
            "left_out": done.left_out,
            "grades": lines,
            "unreadable": unreadable,
        }
        print(json.dumps(report, indent=2, ensure_ascii=False))
    else:
        print(f"{out}: {format_}: {len(done.ids)} candidates")
        for file, count in done.files.items():
            print(f"  wrote {file} with {count}")
        if not done.files:
            print("  nothing has changed")
        if done.prompts_dropped:
            print(
                f"  {done.prompts_dropped} have a system prompt; a corpus has no place for it: it stays in {database}"
            )
        if lines is not None:
            print(f"  wrote {grades} with {lines} grades")
        for reason in list(done.left_out.values())[:_SHOWN]:
            print(f"  left out: {reason}")
        if len(done.left_out) > _SHOWN:
            print(f"  and {len(done.left_out) - _SHOWN} more: --json lists them")
    if unreadable:
        raise GateError(f"Up to {unreadable} candidates could not be read.", "All others are saved.")
    if done.left_out and not skip_bad:
        why = "they are no whole examples" if is_corpus else f"{format_} cannot hold them"
        raise GateError(
            f"{len(done.left_out)} candidates were left out: {why}.",
            "Choose others with --status or --category, or pass --skip-bad.",
        )
