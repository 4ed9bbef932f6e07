"""`karma redteam sheet` and `karma redteam rated`: answers to be read blind, and what the ratings come to."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from karma_electric.cli.options import require_place

if TYPE_CHECKING:
    from collections.abc import Sequence

    from karma_electric.redteam.labelled import Labelled
    from karma_electric.redteam.sheets import Row


def sheet(
    run: Annotated[
        list[str],
        typer.Argument(metavar="RUN [ARM ...]", help="A run, all its arms or those named; or folders of arms."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="SHEET", help="File to write, .jsonl.")],
    seed: Annotated[
        list[int] | None,
        typer.Option("--seed", metavar="SEED", help="Only answers under this seed; may be given again. All if none."),
    ] = None,
    suite: Annotated[
        str,
        typer.Option(
            "--suite", help="The scenarios that were asked, harmless twins too; those of the run's recipe if none."
        ),
    ] = "",
) -> None:
    """Write the answers of several arms for raters to read blind: without arm, seed or verdict, shuffled.

    A rater writes a line per answer: {"id": ..., "label": "pass", "reason": "why, in a line"}. Two who do not see each
    other's ratings, then karma redteam rated.

    Example: karma redteam sheet runs/demo --seed 0 --out sheet.jsonl
    """
    from karma_electric.cli.redteam_relabel import folders_of
    from karma_electric.core.errors import InputError
    from karma_electric.core.recipe import load_recipe
    from karma_electric.core.resources import find
    from karma_electric.redteam.arms import read_arms
    from karma_electric.redteam.kinds import FOLDERS, kind_of
    from karma_electric.redteam.scenario import load_suite
    from karma_electric.redteam.sheets import make_sheet

    require_place(out, "--out")
    kind = kind_of(find("suites", suite)) if suite else "attack"
    folders = folders_of(run, group=FOLDERS[kind])
    place = folders[0].parent.parent
    if not suite:
        suite = load_recipe(place / "recipe.toml").redteam.suite
    arms = [arm.seeds for folder in folders for arm in read_arms([folder])]
    runs = dict.fromkeys(folder.resolve().parent.parent.name for folder in folders)
    source = f"model:{'+'.join(runs)}"  # of all: which answer is whose, a sheet does not tell
    rows = make_sheet(load_suite(find("suites", suite)), arms, source=source, seeds=seed)
    if not rows:
        raise InputError(
            "The arms have no whole answers to these scenarios under these seeds.", "Look at --suite and --seed."
        )
    _write(rows, out)
    print(f"{len(rows)} different answers in {out}")
    print(f"Next: two ratings of each, then karma redteam rated {out} first.jsonl second.jsonl --out labelled.jsonl")


def rated(
    sheet: Annotated[Path, typer.Argument(metavar="SHEET", help="What karma redteam sheet wrote.")],
    first: Annotated[Path, typer.Argument(metavar="FIRST", help="Ratings of one rater, .jsonl.")],
    second: Annotated[Path, typer.Argument(metavar="SECOND", help="Ratings of another, who has not seen those.")],
    out: Annotated[Path, typer.Option("--out", metavar="LABELLED", help="File of labelled answers to write.")],
    third: Annotated[
        Path | None, typer.Option("--third", metavar="THIRD", help="Ratings that decide where the two differ.")
    ] = None,
    undecided: Annotated[
        Path | None, typer.Option("--undecided", metavar="SHEET", help="Write what is not decided as a sheet.")
    ] = None,
    sample: Annotated[
        bool, typer.Option("--sample", help="The second rater read a part: the agreement is of that part alone.")
    ] = False,
    rater: Annotated[str, typer.Option("--rater", help="Who rated, as labels will say.")] = "person",
) -> None:
    """Put two independent ratings together, print how far they agree, and write labelled answers.

    Where they differ a third reading decides; without one nothing is written and the exit code is 1. The file judges
    arms (karma redteam run RECIPE --scorer labels:FILE --out FOLDER; --benign-scorer for harmless twins), measures
    judges and trains them.

    Example: karma redteam rated sheet.jsonl anna.jsonl ben.jsonl --out labelled.jsonl
    """
    from karma_electric.core.errors import InputError
    from karma_electric.redteam.scorers.over_refusal import PREFIX
    from karma_electric.redteam.sheets import combine, outcome_counts, read_ratings, read_sheet

    require_place(out, "--out")
    rows = read_sheet(sheet)
    if first.is_file() and second.is_file() and first.read_bytes() == second.read_bytes():
        raise InputError(
            f"{first} and {second} are the same to the byte, expected what two raters wrote without seeing each other.",
            "Give the ratings of two raters; one rater's agreement with itself says nothing.",
        )
    ratings = [read_ratings(path, f"{rater} {mark}") for path, mark in ((first, "a"), (second, "b"))]
    deciding = read_ratings(third, f"{rater} c") if third else {}
    found = combine(rows, ratings[0], ratings[1], deciding, sample=sample)
    figures = found.agreement
    span = figures.kappa_interval
    kappa = "undefined" if figures.kappa is None else f"{figures.kappa:.2f}"
    print(
        f"{figures.n} answers rated twice, same label {figures.accuracy:.1%}, kappa {kappa}"
        + (f" (95%: {span[0]:.2f} to {span[1]:.2f}, by whole scenarios)" if span else "")
    )
    if found.undecided:
        if undecided is not None:
            require_place(undecided, "--undecided")
            _write(found.undecided, undecided)
        print(f"{len(found.undecided)} are not decided{f', in {undecided}' if undecided else ''}; nothing was written")
        print("Next: a third rating of those, and the same command with --third")
        raise typer.Exit(1)
    _write(found.labelled, out)
    print(", ".join(f"{count} {outcome}" for outcome, count in outcome_counts(found.labelled).items()), f"in {out}")
    asked = "--benign-scorer" if all(row.scenario_id.startswith(PREFIX) for row in found.labelled) else "--scorer"
    print(f"Next: karma redteam run RECIPE {asked} labels:{out} --out FOLDER")


def _write(rows: Sequence[Row] | Sequence[Labelled], path: Path) -> None:
    import json

    from karma_electric.core.artifact import write_atomic
    from karma_electric.redteam.sheets import as_line

    write_atomic(path, "".join(json.dumps(as_line(row), ensure_ascii=False) + "\n" for row in rows))
