"""`karma judge ...`: what is known of the judge of a red-team. One module per verb."""

from __future__ import annotations

import typer

from karma_electric.cli import judge_calibrate

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="How far the judge of a red-team may be trusted.\n\nExample: karma judge calibrate",
)


@app.callback()
def _group() -> None:
    """Keeps the verb a word of its own while there is only one."""


app.command("calibrate")(judge_calibrate.calibrate)
