"""`karma data stats`: what is in a workbench."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from karma_electric.cli.data.endpoint import Workbench

_ROWS = 12  # of a table; --json has all


def stats(
    database: Workbench = Path("workbench.db"),
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Count candidates by status, category, source and licence; lengths, grades, penalties, removals and releases.

    Example: karma data stats --db workbench.db
    """
    import json

    from karma_electric.data.rubric import KEPT_FROM
    from karma_electric.data.store import Store
    from karma_electric.data.summary import summarise

    with Store.open(database) as store:
        summary = summarise(store)
    if json_:
        print(json.dumps(summary, indent=2, ensure_ascii=False))
        return
    print(f"{summary['candidates']} candidates in {database}")
    for name, counts in summary["by"].items():
        _table(name.replace("_", " "), counts)
    for title, key in (("turns", "turns"), ("words per answer", "answer_words")):
        if spread := summary[key]:
            figures = ", ".join(f"{what} {value:g}" for what, value in spread.items())
            print(f"\n{title}: {figures}")
    if summary["system_prompts"]:
        print(f"with a system prompt: {summary['system_prompts']}")
    if summary["grades"]:
        print(f"\n{'judge':<36} {'graded':>7} {'median':>7} {f'kept (>= {KEPT_FROM:g})':>14} {'unreadable':>11}")
        for row in summary["grades"]:
            median = "" if row["median"] is None else f"{row['median']:g}"
            share = "" if row["share_kept"] is None else f"{row['share_kept']:.0%}"
            print(f"{row['judge'][:36]:<36} {row['graded']:>7} {median:>7} {share:>14} {row['unreadable']:>11}")
            if row["of_earlier_words"]:
                print(f"  {row['of_earlier_words']} candidates were edited after this judge read them")
    for ruleset, found in summary["penalties"].items():
        print(f"\npenalties by {ruleset}: {found['penalised']} of {found['checked']} candidates that were looked at")
        _rows(found["rules"])
    _table("removals", summary["removals"])
    _table("releases", summary["releases"])


def _table(title: str, counts: Mapping[str, Any]) -> None:
    if counts:
        print(f"\n{title}")
        _rows(counts)


def _rows(counts: Mapping[str, Any]) -> None:
    for name, count in list(counts.items())[:_ROWS]:
        print(f"  {count:>7}  {name}")
    if len(counts) > _ROWS:
        print(f"  {'':>7}  and {len(counts) - _ROWS} more: --json lists them")
