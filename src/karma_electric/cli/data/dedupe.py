"""`karma data dedupe`: what is there twice, and why."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from karma_electric.cli.data.filters import Apply, AsJson, Out, Report, SentenceFolder, Show

if TYPE_CHECKING:
    from karma_electric.data.dedupe import Duplicate


def dedupe(
    ctx: typer.Context,
    file: Annotated[
        Path | None, typer.Argument(help="A .jsonl file, or a folder of them; the workbench when not given.")
    ] = None,
    database: Annotated[Path, typer.Option("--db", envvar="KARMA_WORKBENCH", help="The workbench.")] = Path(
        "workbench.db"
    ),
    by: Annotated[
        Literal["prompt", "answer", "both"],
        typer.Option("--by", help="What makes two records copies: the prompt, the answer, or either of them."),
    ] = "prompt",
    near: Annotated[
        float, typer.Option("--near", min=0.3, max=1.0, help="Jaccard similarity from which two texts are near copies.")
    ] = 0.7,
    semantic: Annotated[
        float, typer.Option("--semantic", min=0.5, max=1.0, help="Cosine similarity from which two texts say the same.")
    ] = 0.92,
    no_semantic: Annotated[
        bool, typer.Option("--no-semantic", help="Exact and near copies only; no model is loaded.")
    ] = False,
    model: SentenceFolder = None,
    apply: Apply = False,
    out: Out = None,
    report: Report = None,
    show: Show = 20,
    json_: AsJson = False,
) -> None:
    """Find records that are there twice: exactly, nearly (MinHash), or in meaning. Nothing changes without --apply.

    Of two copies the accepted one stays, then the better graded, the longer, the lower id. Every record that goes is
    shown with the one that stays. Short texts that differ in a number are no copies.

    Example: karma data dedupe chats.jsonl --by both --out kept.jsonl
    """
    import json

    from karma_electric.cli.data import pairs
    from karma_electric.cli.data.given import refuse_unused, refuse_unused_semantic
    from karma_electric.core.artifact import write_json
    from karma_electric.core.extras import require
    from karma_electric.core.progress import Console
    from karma_electric.data.dedupe import Item, counts, find_duplicates

    refuse_unused_semantic(ctx, no_semantic=no_semantic)
    if file is not None:
        refuse_unused(ctx, "database", why=f"{file} is read, no workbench", hint="Leave out one of them.")
    require("data")
    pairs.require_target(file, apply=apply, out=out)
    if file is None:
        sources = pairs.from_workbench(database)
    else:
        sources = pairs.from_folder(file) if file.is_dir() else pairs.from_file(file)
    items = [Item(s.id, pairs.chosen(by, s), s.status, s.grade) for s in sources]
    progress = Console()
    found = find_duplicates(
        items,
        near=near,
        semantic=None if no_semantic else semantic,
        model=None if no_semantic else _load(model),
        progress=progress,
    )
    left = _apply(found, file, database, apply=apply, out=out)
    result: dict[str, Any] = {
        "source": str(database if file is None else file),
        "by": by,
        "near": near,
        "semantic": None if no_semantic else semantic,
        "records": len(items),
        "removed": counts(found),
        "applied": apply or out is not None,
        "brought_back": left,
        "pairs": [pair.as_dict() for pair in found],
    }
    if report is not None:
        report.parent.mkdir(parents=True, exist_ok=True)
        write_json(report, result)
    if json_:
        print(json.dumps(result, indent=2, ensure_ascii=False))
        return
    pairs.print_pairs(found, _heading, show)
    print(f"\n{len(items)} records, {len(found)} copies: " + ", ".join(f"{k} {n}" for k, n in counts(found).items()))
    if left:
        print(f"{len(left)} of them stay: a reviewer brought them back ({', '.join(left[:5])})")
    if out is not None:
        print(f"{out}: {len(items) - len(found)} records")
    elif apply:
        print(f"{database}: {len(found) - len(left)} removals recorded")
    elif found:
        print(f"Nothing was changed. To remove them: {'--out FILE' if file else '--apply'}")


def _heading(pair: Duplicate) -> str:
    similarity = "" if pair.kind == "exact" else f" {pair.similarity:.2f}"
    return f"{pair.kind}{similarity}, {pair.field}: {pair.id} goes, {pair.other} stays"


def _load(path: Path | None) -> Any:
    from karma_electric.models.sentences import SentenceModel

    return SentenceModel.load(path)


def _apply(found: list[Duplicate], file: Path | None, database: Path, *, apply: bool, out: Path | None) -> list[str]:
    from karma_electric.cli.data import pairs

    if file is not None and out is not None:
        pairs.apply_to_file(file, out, {pair.id for pair in found})
    if file is not None or not apply:
        return []
    return pairs.apply_to_workbench(
        database,
        [
            pairs.Removal(d.id, d.kind, d.other, d.similarity, f"{d.field} like that of {d.other} ({d.similarity:.2f})")
            for d in found
        ],
    )
