"""`karma redteam suites` and `import`: what can be asked, and how other benchmarks come in."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from karma_electric.redteam.suites import SuiteFacts

_SHOWN = 20  # problems; --json has them all


def suites(
    files: Annotated[
        list[Path] | None, typer.Argument(metavar="[FILE]...", help="Suites of yours; the shipped ones else.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List suites with their counts by category, kind and difficulty. Every line is checked for its keys; of
    scenarios, capability items and conversations, all of it.

    Example: karma redteam suites my-suite.jsonl
    """
    import json
    from dataclasses import asdict

    from karma_electric.core.resources import resource_root
    from karma_electric.redteam.suites import describe

    facts = [describe(file) for file in files or sorted(resource_root("suites").glob("*.jsonl"))]
    if json_:
        print(json.dumps([asdict(suite) for suite in facts], indent=2, ensure_ascii=False))
        return
    for suite in facts:
        print(f"{suite.file}: {suite.lines} {suite.holds}")
        _show_counts(suite)


def import_(
    file: Annotated[Path, typer.Argument(help="The benchmark's file: CSV, a JSON list or JSON Lines.")],
    out: Annotated[Path, typer.Argument(metavar="OUT.jsonl", help="The suite to write.")],
    format_: Annotated[
        str, typer.Option("--format", help="original, harmbench, strongreject, jailbreakbench or xstest.")
    ],
    benign: Annotated[
        bool,
        typer.Option(
            "--benign",
            help="A suite of harmless twins: xstest's safe prompts (the unsafe ones else), jailbreakbench's file of "
            "benign behaviours.",
        ),
    ] = False,
    skip_bad: Annotated[
        bool, typer.Option("--skip-bad", help="Write the others where some records cannot be used.")
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace OUT.jsonl if it is there.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Turn a public red-team benchmark into a suite of scenarios. The benchmark itself is not shipped: bring its file.

    Records that cannot be used are named with their lines; nothing is written then, unless --skip-bad says so.
    A suite is of attacks or of harmless twins: XSTest, which holds both, makes two. docs/redteam-suites.md tells what
    becomes of each column.

    Example: karma redteam import harmbench_behaviors_text_all.csv harmbench.jsonl --format harmbench
    """
    import json
    import sys
    import warnings
    from dataclasses import asdict

    from karma_electric.core.artifact import write_atomic
    from karma_electric.core.errors import DataError, InputError, MissingError
    from karma_electric.redteam.importers import FORMATS, as_line, import_scenarios
    from karma_electric.redteam.suites import describe

    if format_ not in FORMATS:
        raise InputError(f"--format {format_!r} is unknown.", f"Give one of {', '.join(FORMATS)}.")
    if benign and format_ not in ("jailbreakbench", "xstest"):
        raise InputError(f"--benign is given, and {format_} holds no harmless requests.", "Leave it out.")
    if out.is_dir():
        raise InputError(f"{out} is a folder, expected a file.", "Give a name ending in .jsonl.")
    if not out.parent.is_dir():
        raise MissingError(f"The folder {out.parent} does not exist.", "Make it, or write elsewhere.")
    if out.exists() and file.exists() and out.samefile(file):
        raise InputError(f"{out} is the file to import.", "Write elsewhere.")
    if out.exists() and not force:
        raise InputError(f"{out} is there already.", "Write elsewhere, or replace it with --force.")

    imported = import_scenarios(file, format_, benign=benign)
    problems = [str(problem) for problem in imported.problems]
    others, other_way = imported.of_other_kind, "without --benign" if benign else "with --benign"
    here, there = ("safe", "unsafe") if benign else ("unsafe", "safe")
    if not json_:
        for problem in problems[:_SHOWN]:
            print(problem, file=sys.stderr)
        if len(problems) > _SHOWN:
            print(f"and {len(problems) - _SHOWN} more: --json lists them", file=sys.stderr)
    writes = bool(imported.scenarios) and (skip_bad or not problems)
    if writes:
        lines = (json.dumps(as_line(scenario), ensure_ascii=False) + "\n" for scenario in imported.scenarios)
        write_atomic(out, "".join(lines))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of imported patterns; the importer has judged them
        facts = describe(out) if writes else None
    if json_:
        suite = None if facts is None else asdict(facts)
        report = {"out": str(out), "suite": suite, "problems": problems, "of_other_kind": others}
        print(json.dumps(report, indent=2, ensure_ascii=False))
    if facts is None:
        n = len(problems)
        if others and not (imported.scenarios or problems):
            raise DataError(f"{file.name} has no {here} prompt, {others} {there} ones.", f"Import it {other_way}.")
        if not imported.scenarios:
            raise DataError(f"{file.name} has no record that can be used, {n} that cannot.", "Check --format.")
        total = n + len(imported.scenarios)
        raise DataError(
            f"{n} of {total} records cannot be used; nothing was written.", "Correct them, or pass --skip-bad."
        )
    if not json_:
        left_out = f", {len(problems)} records left out" if problems else ""
        print(f"{out}: {facts.lines} {facts.holds}{left_out}")
        _show_counts(facts)
        if others:
            print(f"{others} {there} prompts are a suite of the other kind: import them {other_way} into another file")


def _show_counts(suite: SuiteFacts) -> None:
    for key, counts in suite.counts.items():
        print(f"  {key}: " + ", ".join(f"{name} {n}" for name, n in counts.items()))
    if suite.without_signals:
        from karma_electric.redteam.suites import TWINS

        option = "--benign-scorer" if suite.holds == TWINS else "--scorer"
        print(f"  {suite.without_signals} have no signals: only a judge that reads criteria can score them ({option})")
