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
app.command("extract", short_help="Extract the axis of a model from its activations.")(extract.extract)
app.command("show", short_help="Show what an axis is made from, and whether it is real.")(show.show)
app.command("calibrate", short_help="Set the thresholds of a cap on a model's own responses.")(calibrate.calibrate)
app.command("convert", short_help="Convert an axis or a cap to and from other formats.")(convert.convert)
