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
app.command("run")(redteam_run.run)
app.command("attack")(redteam_attack.attack)
app.command("sweep")(redteam_sweep.sweep)
app.command("compare")(redteam_compare.compare)
app.command("relabel")(redteam_relabel.relabel)
app.command("sheet")(redteam_sheet.sheet)
app.command("rated")(redteam_sheet.rated)
app.command("report")(redteam_report.report)
app.command("suites")(redteam_suites.suites)
app.command("import")(redteam_suites.import_)
