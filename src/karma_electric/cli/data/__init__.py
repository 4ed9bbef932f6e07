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
app.command("import", short_help="Import conversations into a workbench.")(imports.import_)
app.command("generate", short_help="Have a model write candidates from seed prompts.")(generate.generate)
app.command("judge", short_help="Grade candidates in four dimensions.")(judge.judge)
app.command("penalize", short_help="Take points off for what no grade should hide.")(penalize.penalize)
app.command("dedupe", short_help="Find records that are there twice.")(dedupe.dedupe)
app.command("decontaminate", short_help="Find records that share text with test suites.")(decontaminate.decontaminate)
app.command("review", short_help="Accept or reject candidates one at a time.")(review.review)
app.command("search", short_help="Find candidates by their words and tags.")(search.search)
app.command("stats", short_help="Count candidates, grades, lengths and removals.")(stats.stats)
app.command("check", short_help="Check a corpus: form, repeats, contamination and more.")(check.check)
app.command("card", short_help="Render the dataset card of a corpus folder.")(card.card)
app.command("release", short_help="Freeze the examples that a recipe asks for.")(release.release)
app.command("diff", short_help="Compare two releases.")(diff.diff)
app.command("export", short_help="Write candidates to a file, or update a corpus folder.")(export.export)
