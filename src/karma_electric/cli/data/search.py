"""`karma data search`: full-text search over a workbench."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from karma_electric.cli.data.endpoint import Workbench


def search(
    words: Annotated[
        list[str],
        typer.Argument(
            help="Words that must all occur; '\"a phrase\"', word*, OR and NOT work; signs (C++) do not count."
        ),
    ],
    database: Workbench = Path("workbench.db"),
    limit: Annotated[int, typer.Option("--limit", min=1, help="At most so many, best first.")] = 20,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Find candidates by the words of their turns and tags.

    Example: karma data search rent '"last warning"' --db workbench.db
    """
    import json
    from dataclasses import asdict

    from karma_electric.core.printable import printable
    from karma_electric.data.store import Store

    with Store.open(database) as store:
        hits = store.search(" ".join(words), limit=limit)
    if json_:
        print(json.dumps([asdict(hit) for hit in hits], indent=2, ensure_ascii=False))
        return
    for hit in hits:
        print(f"{hit.id}  {hit.category or 'no category'}, {hit.status}")
        print(f"    {printable(' '.join(hit.snippet.split()))}")
    print(f"{len(hits)} found" + (", or more: --limit" if len(hits) == limit else ""))
