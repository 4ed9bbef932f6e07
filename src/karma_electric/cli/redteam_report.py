"""`karma redteam report`: the report of a run, rendered again."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from karma_electric.cli.options import require_place


def report(
    run: Annotated[Path, typer.Argument(help="Folder of a run.")],
    out: Annotated[Path, typer.Argument(help="The page to write, such as report.html.")],
    figures: Annotated[
        Path | None, typer.Option("--figures", help="Folder for outcomes, categories and drift as PNG files.")
    ] = None,
) -> None:
    """Render the report of a run again, as one page that needs nothing beside it; its figures as files if asked for.

    Example: karma redteam report runs/demo report.html --figures figures
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
    require_place(out)
    if figures is not None and figures.exists() and not figures.is_dir():
        raise InputError(f"{figures} is a file, expected a folder.", "Give --figures the name of a folder.")
    page, images = render_report(run, load_recipe(recipe))
    write_atomic(out, page)
    print(f"{out} written")
    if figures is not None:
        figures.mkdir(parents=True, exist_ok=True)
        for name, image in images.items():
            write_atomic(figures / name, image)
        print(f"{', '.join(images) or 'no figure'} written to {figures}")
