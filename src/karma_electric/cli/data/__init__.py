"""`karma data ...`: the workbench that grows, grades, filters and freezes a corpus. One module per verb."""

from __future__ import annotations

import typer

from karma_electric.cli.data import (
    card,
    check,
    decontaminate,
    dedupe,
    diff,
    export,
    generate,
    imports,
    judge,
    penalize,
    release,
    review,
    search,
    stats,
)

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Grow, grade, filter and freeze a corpus.\n\nExample: karma data import chats.jsonl --db workbench.db",
)
# in the order of the work: in, grown, graded, filtered, read, frozen, out
app.command("import")(imports.import_)
app.command("generate")(generate.generate)
app.command("judge")(judge.judge)
app.command("penalize")(penalize.penalize)
app.command("dedupe")(dedupe.dedupe)
app.command("decontaminate")(decontaminate.decontaminate)
app.command("review")(review.review)
app.command("search")(search.search)
app.command("stats")(stats.stats)
app.command("check")(check.check)
app.command("card")(card.card)
app.command("release")(release.release)
app.command("diff")(diff.diff)
app.command("export")(export.export)
