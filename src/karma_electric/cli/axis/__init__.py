"""`karma axis ...`: extract a direction, look at it, set a cap's thresholds, exchange files. One module per verb."""

from __future__ import annotations

import typer

from karma_electric.cli.axis import calibrate, convert, extract, show

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Extract a direction, look at it, set a cap's thresholds, exchange files with other tools.\n\n"
    "Example: karma axis show runs/demo",
)
app.command("extract")(extract.extract)
app.command("show")(show.show)
app.command("calibrate")(calibrate.calibrate)
app.command("convert")(convert.convert)
