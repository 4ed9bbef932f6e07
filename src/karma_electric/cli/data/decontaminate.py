"""`karma data decontaminate`: what a test would recognise."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from karma_electric.cli.data.filters import Apply, AsJson, Out, Report, SentenceFolder, Show

if TYPE_CHECKING:
    from karma_electric.data.decontaminate import Overlap


def decontaminate(
    ctx: typer.Context,
    file: Annotated[
        Path | None,
        typer.Argument(help="A .jsonl file or a folder of them, such as corpus; the workbench when not given."),
    ] = None,
    database: Annotated[Path, typer.Option("--db", envvar="KARMA_WORKBENCH", help="The workbench.")] = Path(
        "workbench.db"
    ),
    against: Annotated[
        list[Path] | None,
        typer.Option(
            "--against",
            metavar="PATH",
            help="A file or folder that must stay unseen; the shipped suites else. Repeatable.",
        ),
    ] = None,
    semantic: Annotated[
        float, typer.Option("--semantic", min=0.5, max=1.0, help="Cosine similarity that gives a text away.")
    ] = 0.85,
    no_semantic: Annotated[bool, typer.Option("--no-semantic", help="Compare words only; no model is loaded.")] = False,
    model: SentenceFolder = None,
    apply: Apply = False,
    out: Out = None,
    report: Report = None,
    show: Show = 20,
    json_: AsJson = False,
) -> None:
    """Find records that share text with what is measured with: 13 words in a row, a whole short text, or the meaning.

    Every turn is compared with every text of the suites: prompts, turns, responses and what is expected. Nothing
    changes without --apply; exit code 1 if anything was found and stays.

    Example: karma data decontaminate corpus --against suites
    """
    import json

    from karma_electric.cli.data import pairs
    from karma_electric.cli.data.given import refuse_unused, refuse_unused_semantic
    from karma_electric.core.artifact import write_json
    from karma_electric.core.errors import GateError
    from karma_electric.core.extras import require
    from karma_electric.core.progress import Console
    from karma_electric.core.resources import resource_root
    from karma_electric.data.decontaminate import Passage, find_overlaps, read_references, reference_files

    refuse_unused_semantic(ctx, no_semantic=no_semantic)
    if file is not None:
        refuse_unused(ctx, "database", why=f"{file} is read, no workbench", hint="Leave out one of them.")
    pairs.require_target(file, apply=apply, out=out)
    paths = against or [resource_root("suites")]
    references = read_references(paths)
    if file is None:
        sources = pairs.from_workbench(database)
    else:
        sources = pairs.from_folder(file) if file.is_dir() else pairs.from_file(file)
    loaded = None
    if not no_semantic:
        require("data")
        from karma_electric.models.sentences import SentenceModel

        loaded = SentenceModel.load(model)
    found = find_overlaps(
        [Passage(id_, text) for id_, text in pairs.passages(sources)],
        references,
        semantic=None if no_semantic else semantic,
        model=loaded,
        progress=Console(),
    )
    removed = {overlap.id for overlap in found}
    left = _apply(found, file, database, apply=apply, out=out)
    applied = apply or out is not None
    result: dict[str, Any] = {
        "source": str(database if file is None else file),
        "against": [str(path) for path in reference_files(paths)],
        "references": len(references),
        "semantic": None if no_semantic else semantic,
        "records": len(sources),
        "removed": len(removed),
        "applied": applied,
        "brought_back": left,
        "pairs": [pair.as_dict() for pair in found],
    }
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        write_json(report, result)
    if json_:
        print(json.dumps(result, indent=2, ensure_ascii=False))
    else:
        pairs.print_pairs(found, _heading, show)
        shared = f"{len(removed)} share text" if removed else "none shares text"
        print(f"\n{len(sources)} records: {shared} with the {len(references)} texts of {len(result['against'])} files")
        if applied:
            print(f"{out or database}: {len(removed) - len(left)} records removed")
    if found and not applied:
        raise GateError(
            f"{len(removed)} of {len(sources)} records are contaminated.",
            f"Remove them with {'--out FILE' if file else '--apply'}, or correct them by hand.",
        )
    if left:
        named = ", ".join(left[:5]) + (", ..." if len(left) > 5 else "")
        raise GateError(
            f"{len(left)} contaminated records stay: a reviewer brought them back ({named}).",
            "Correct them by hand, or reject them: karma data review.",
        )


def _heading(pair: Overlap) -> str:
    return f"{pair.id} shares with {pair.other}: {pair.detail}"


def _apply(found: list[Overlap], file: Path | None, database: Path, *, apply: bool, out: Path | None) -> list[str]:
    from karma_electric.cli.data import pairs

    if file is not None and out is not None:
        pairs.apply_to_file(file, out, {pair.id for pair in found})
    if file is not None or not apply:
        return []
    worst: dict[str, Overlap] = {}
    for pair in found:
        if pair.id not in worst or pair.similarity > worst[pair.id].similarity:
            worst[pair.id] = pair
    removals = [pairs.Removal(p.id, pairs.CONTAMINATION, p.other, p.similarity, p.detail) for p in worst.values()]
    return pairs.apply_to_workbench(database, removals)
