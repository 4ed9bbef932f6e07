"""`karma data check`: what a corpus must hold to before it is trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from karma_electric.core.errors import DataError

_SHOWN = 20  # malformed lines; --json has them all


def check(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(help="A corpus folder: one .jsonl file per category.")] = Path("corpus"),
    against: Annotated[
        list[Path] | None,
        typer.Option(
            "--against",
            metavar="PATH",
            help="A file or folder that must stay unseen; the shipped suites else. Repeatable.",
        ),
    ] = None,
    no_semantic: Annotated[
        bool, typer.Option("--no-semantic", help="Compare texts by words only; no model is loaded.")
    ] = False,
    model: Annotated[
        Path | None, typer.Option("--model", help="Folder of another sentence-transformers model.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Check a corpus: form, openings, lengths, repeats, likeness, contamination, code, telephone numbers, addresses.

    Exit code 1 if anything is to be corrected, 2 for lines that are no examples: those are all named first.

    Example: karma data check corpus
    """
    import json

    from karma_electric.cli.data.given import refuse_unused_semantic
    from karma_electric.core.errors import GateError
    from karma_electric.core.extras import require
    from karma_electric.core.progress import Console
    from karma_electric.core.resources import resource_root
    from karma_electric.data.checks import run_checks
    from karma_electric.data.corpus import scan_corpus
    from karma_electric.data.decontaminate import read_references

    refuse_unused_semantic(ctx, no_semantic=no_semantic)
    examples, malformed = scan_corpus(folder)
    if malformed:
        raise _report_malformed(malformed, len(examples), json_=json_)
    references = read_references(against or [resource_root("suites")])
    loaded = None
    if not no_semantic:
        require("data")
        from karma_electric.models.sentences import SentenceModel

        loaded = SentenceModel.load(model)
    report = run_checks(examples, references, model=loaded, progress=Console())
    if json_:
        print(json.dumps(report.as_dict(), indent=2, ensure_ascii=False))
    else:
        for finding in report.findings:
            print(f"{finding.check}: {finding.id + ': ' if finding.id else ''}{finding.what}")
            if finding.evidence:
                print(f"    {finding.evidence}")
        for note in report.notes:
            print(f"note: {note.id}: {note.what}")
        if report.lengths:
            words = report.lengths
            print(
                f"{report.examples} examples, {report.answers} answers of {words.shortest} to {words.longest} words "
                f"(10% {words.p10}, median {words.median}, 90% {words.p90}); "
                f"{sum(sum(c.values()) for c in report.code.values())} code blocks, {len(report.notes)} unchecked"
            )
    if report.findings:
        raise GateError(f"{len(report.findings)} findings.", "Correct them in the files and check again.")


def _report_malformed(problems: list[DataError], good: int, *, json_: bool) -> DataError:
    """Print what is wrong with each line, unless it is a single one; returns the error to end with."""
    import json

    from karma_electric.core.errors import DataError

    if json_:
        print(json.dumps({"examples": good, "malformed": [str(problem) for problem in problems]}, indent=2))
    elif len(problems) > 1:
        for problem in problems[:_SHOWN]:
            print(problem)
        if len(problems) > _SHOWN:
            print(f"and {len(problems) - _SHOWN} more: --json lists them")
    if len(problems) == 1:
        return problems[0]
    return DataError(
        f"{len(problems)} of {good + len(problems)} lines are no examples.", "Correct them and check again."
    )
