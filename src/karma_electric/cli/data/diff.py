"""`karma data diff`: how a release differs from another one."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from karma_electric.cli.data.endpoint import Workbench

if TYPE_CHECKING:
    from karma_electric.data.release_diff import ReleaseView

_SHOWN = 10  # ids per list; --json has them all


def diff(
    ctx: typer.Context,
    before: Annotated[str, typer.Argument(help="A release's folder, or its name in the workbench.")],
    after: Annotated[str, typer.Argument(help="The release to compare it with.")],
    database: Workbench = Path("workbench.db"),
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare two releases: added, removed, changed, moved between training and validation, counts per category.

    Example: karma data diff runs/smollm2-v1/release runs/smollm2-v2/release
    """
    import json

    from karma_electric.cli.data.given import refuse_unused
    from karma_electric.data.release_diff import compare

    if Path(before).is_dir() and Path(after).is_dir():
        refuse_unused(ctx, "database", why="both releases are folders", hint="Leave it out.")
    first, second = _open(before, database), _open(after, database)
    found = compare(first, second)
    if json_:
        print(json.dumps(found.as_dict(), indent=2, ensure_ascii=False))
        return
    print(f"{first.name}: {len(first.members)} examples    {second.name}: {len(second.members)} examples")
    if found.is_empty:
        print("the same")
        return
    _list("added", found.added)
    _list("removed", found.removed)
    _list("changed", found.changed)
    _list("another category", [f"{id_} ({a} -> {b})" for id_, (a, b) in found.recategorised.items()])
    _list("moved", [f"{id_} ({a} -> {b})" for id_, (a, b) in found.moved.items()])
    if found.system_prompt_changed:
        print("the system prompt is another one")
    print(f"\n{'category':<20} {'before':>7} {'after':>7}")
    for name, (old, new) in found.categories.items():
        print(f"{name:<20} {old:>7} {new:>7}  {f'{new - old:+d}' if new != old else ''}".rstrip())


def _open(name: str, database: Path) -> ReleaseView:
    from karma_electric.core.errors import MissingError
    from karma_electric.data.release_diff import read_recorded_release, read_release_folder
    from karma_electric.data.store import Store

    if Path(name).is_dir():
        return read_release_folder(Path(name))
    if not database.exists():
        raise MissingError(
            f"{name} is no folder, and there is no workbench {database} that could know it by name.",
            "Give the folder of a release (runs/NAME/release), or a workbench with --db.",
        )
    with Store.open(database) as store:
        return read_recorded_release(store, name)


def _list(title: str, items: Collection[str]) -> None:
    if items:
        print(f"{title}: {len(items)}")
        for item in list(items)[:_SHOWN]:
            print(f"  {item}")
        if len(items) > _SHOWN:
            print(f"  and {len(items) - _SHOWN} more: --json lists them")
