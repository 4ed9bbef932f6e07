"""`karma redteam report`: the report of a run, rendered again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[Path, typer.Argument(help="The page to write, such as report.html.")],
) -> None:
    """Render the report of a run again, as one page that needs nothing beside it.

    Example: karma redteam report runs/demo report.html
    """
    from karma_electric.core.artifact import write_atomic
    from karma_electric.core.errors import InputError, MissingError
    from karma_electric.core.extras import require
    from karma_electric.core.recipe import load_recipe
    from karma_electric.report import render_report

    require("evidence")
    recipe = run / "recipe.toml"
    if not recipe.is_file():
        raise MissingError(f"{run} holds no recipe.toml: it is not a run.", "Give a folder such as runs/demo.")
    if out.is_dir() or not out.absolute().parent.is_dir():
        what = "is a folder" if out.is_dir() else f"cannot be written: {out.absolute().parent} does not exist"
        raise InputError(f"{out} {what}, expected a file.", "Give the name of a file in a folder that exists.")
    write_atomic(out, render_report(run, load_recipe(recipe)))
    print(f"{out} written")
