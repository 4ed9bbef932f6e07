"""`karma redteam ...`: suites, arms that are asked them, comparison, report. One module per verb."""

from __future__ import annotations

import typer

from karma_electric.cli import redteam_compare, redteam_report, redteam_run, redteam_suites

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Ask attacks of arms, compare arms, render the report; list suites and import public ones.\n\n"
    "Example: karma redteam compare runs/demo base tuned capped",
)
app.command("run")(redteam_run.run)
app.command("compare")(redteam_compare.compare)
app.command("report")(redteam_report.report)
app.command("suites")(redteam_suites.suites)
app.command("import")(redteam_suites.import_)
