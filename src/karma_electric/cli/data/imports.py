"""`karma data import`: conversations of any usual format, and grades, into a workbench."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from karma_electric.cli.data.endpoint import Workbench

if TYPE_CHECKING:
    from karma_electric.data.importing import FileReport

_SHOWN = 20  # problems per file; --json has them all


def import_(
    ctx: typer.Context,
    paths: Annotated[
        list[Path], typer.Argument(help="JSON Lines, JSON arrays or Parquet; a folder is read as a corpus.")
    ],
    database: Workbench = Path("workbench.db"),
    format_: Annotated[
        str,
        typer.Option(
            "--format",
            help="auto (by the keys of the first good record), karma, messages, sharegpt, alpaca, original, prompts "
            "or grades.",
        ),
    ] = "auto",
    source: Annotated[str | None, typer.Option("--source", help="Who wrote it, where records do not say.")] = None,
    license_: Annotated[str | None, typer.Option("--license", help="Its licence, where records do not say.")] = None,
    category: Annotated[str | None, typer.Option("--category", help="Its category, where records do not say.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Take the file's version of a known id; the earlier one is kept too.")
    ] = False,
    skip_bad: Annotated[bool, typer.Option("--skip-bad", help="End with code 0 though records were left out.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Import conversations into a workbench, which is made if it is not there. Nothing is overwritten.

    A record that cannot be used is reported with its file and line, and the others go in. Running it again adds
    nothing twice. Without an id a record gets one from its content. Exit code 1 if any record was left out.

    Example: karma data import corpus --db workbench.db
    """
    import json
    from dataclasses import asdict

    from karma_electric.cli.data.given import refuse_unused
    from karma_electric.core.errors import DataError, GateError, InputError
    from karma_electric.core.progress import Console
    from karma_electric.data.example import CATEGORIES
    from karma_electric.data.formats import FORMATS, GRADES
    from karma_electric.data.importing import AUTO, Wishes, import_files, plan_files
    from karma_electric.data.store import Store

    known = (AUTO, *FORMATS, GRADES)
    if format_ not in known:
        raise InputError(f"--format {format_!r} is unknown.", f"Give one of {', '.join(known)}.")
    if category is not None and category not in CATEGORIES:
        raise InputError(f"--category {category!r} is unknown.", f"Give one of {', '.join(CATEGORIES)}.")
    if format_ == GRADES:
        why = "grades belong to conversations that are there already, and are never replaced"
        refuse_unused(ctx, "source", "license_", "category", "replace", why=why, hint="Leave it out.")
    wishes = Wishes(format=format_, source=source, license=license_, category=category, replace=replace)
    files = plan_files(paths, wishes)
    reports: list[FileReport] = []
    with Store.open(database, create=True) as store:
        for report in import_files(store, files, wishes, Console()):
            reports.append(report)
            if not json_:
                _show(report)
        total = store.count()
    left_out = sum(report.left_out for report in reports)
    if json_:
        print(
            json.dumps(
                {
                    "db": str(database),
                    "candidates": total,
                    "left_out": left_out,
                    "files": [asdict(report) for report in reports],
                },
                indent=2,
                ensure_ascii=False,
            )
        )
    else:
        print(f"{database} has {total} candidates")
    for report in reports:
        if report.unreadable is not None:
            raise DataError(report.unreadable.found, report.unreadable.hint)
    if left_out and not skip_bad:
        read = left_out + sum(report.new + report.unchanged + report.replaced for report in reports)
        raise GateError(
            f"{left_out} of {read} records were left out.",
            "Correct them and run the same command again, or pass --skip-bad.",
        )


def _show(report: FileReport) -> None:
    kind = report.format or "nothing to import"
    counts = [f"{report.new} new"]
    if report.unchanged:
        counts.append(f"{report.unchanged} there already")
    if report.replaced:
        counts.append(f"{report.replaced} replaced")
    if report.left_out:
        counts.append(f"{report.left_out} left out")
    print(f"{report.file}: {kind}: {', '.join(counts)}")
    for problem in report.problems[:_SHOWN]:
        print(f"  {problem}")
    if report.left_out > _SHOWN:
        print(f"  and {report.left_out - _SHOWN} more: --json lists them")
    if report.own_category:
        print(f"  {report.own_category} have a category of their own, which is kept but counts as none here")
    if report.unreadable is not None:
        print(f"  stopped: {report.unreadable}")
