"""`karma redteam ...`: suites, arms that are asked them, attacks, sweeps, comparison, report. One module per verb."""

from __future__ import annotations

import typer

from karma_electric.cli import (
    redteam_attack,
    redteam_compare,
    redteam_relabel,
    redteam_report,
    redteam_run,
    redteam_sheet,
    redteam_suites,
    redteam_sweep,
)

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Ask attacks of arms, attack them adaptively, sweep over caps, compare arms, render the report; list suites "
    "and import public ones.\n\n"
    "Example: karma redteam compare runs/demo base tuned capped",
)
app.command("run", short_help="Ask the suite of a recipe of its arms.")(redteam_run.run)
app.command("attack", short_help="Attack models in conversations that adapt to answers.")(redteam_attack.attack)
app.command("sweep", short_help="Measure caps over strength, blocks and threshold.")(redteam_sweep.sweep)
app.command("compare", short_help="Compare arms, paired by scenario and seed.")(redteam_compare.compare)
app.command("relabel", short_help="Read answers one by one, and correct their verdicts.")(redteam_relabel.relabel)
app.command("sheet", short_help="Write answers for raters to read blind.")(redteam_sheet.sheet)
app.command("rated", short_help="Put two ratings together into labelled answers.")(redteam_sheet.rated)
app.command("report", short_help="Render the report of a run again, as one page.")(redteam_report.report)
app.command("suites", short_help="List suites with their counts.")(redteam_suites.suites)
app.command("import", short_help="Turn a public benchmark into a suite of scenarios.")(redteam_suites.import_)
