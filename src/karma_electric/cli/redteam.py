"""`karma redteam ...`: one module per verb."""

from __future__ import annotations

import typer

from karma_electric.cli import redteam_suites

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Red-team suites: list them, and import public benchmarks.\n\nExample: karma redteam suites",
)
app.command("suites")(redteam_suites.suites)
app.command("import")(redteam_suites.import_)
