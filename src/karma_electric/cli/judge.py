"""`karma judge ...`: the judges of a red-team: what is known of them, and how one is trained. One module per verb."""

from __future__ import annotations

import typer

from karma_electric.cli import judge_calibrate, judge_train

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="How far the judge of a red-team may be trusted.\n\nExample: karma judge calibrate",
)


app.command("calibrate", short_help="Measure judges on labelled answers.")(judge_calibrate.calibrate)
app.command("train", short_help="Train the semantic judge, and measure it.")(judge_train.train)
