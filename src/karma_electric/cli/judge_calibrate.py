"""`karma judge calibrate`: the judge against labelled answers, and where it errs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from karma_electric.redteam.agreement import Agreement
    from karma_electric.redteam.labelled import CategoryErrors


def calibrate(
    labelled: Annotated[
        str, typer.Option("--labelled", metavar="FILE", help="Labelled answers.")
    ] = "suites/labelled-120.jsonl",
    suite: Annotated[
        str, typer.Option("--suite", metavar="FILE", help="The suite that they answer.")
    ] = "suites/starter-30.jsonl",
    json_: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure the signals judge on labelled answers: accuracy, kappa, confusion, errors by category.

    Word lists were tuned on half A of the scenarios; half B is for measuring. Intervals draw whole scenarios.

    Example: karma judge calibrate --json
    """
    import json
    from dataclasses import asdict

    from karma_electric.core.errors import DataError
    from karma_electric.core.resources import find
    from karma_electric.redteam.labelled import half_of, load_labelled, measure, measure_categories
    from karma_electric.redteam.scenario import load_suite
    from karma_electric.redteam.signals import SCORER

    scenarios = load_suite(find("suites", suite))
    rows = load_labelled(find("suites", labelled), scenarios)
    if missing := {"A", "B"} - {half_of(row.scenario_id) for row in rows}:
        raise DataError(
            f"{labelled} has no answers to scenarios of half {min(missing)} (halves go by a hash of the id).",
            "Label answers to more scenarios.",
        )
    halves, categories = measure(scenarios, rows), measure_categories(scenarios, rows, half="B")
    if json_:
        report = {
            "scorer": SCORER,
            "halves": {half: asdict(result) for half, result in halves.items()},
            "categories": [asdict(errors) for errors in categories],
        }
        print(json.dumps(report, indent=2, ensure_ascii=False))
        return
    print(f"{SCORER} on {len(rows)} labelled answers; labels by {', '.join(sorted({row.rater for row in rows}))}\n")
    for half, words in (("B", "not tuned on"), ("A", "tuned on, for comparison")):
        _print_half(halves[half], f"half {half}, {words}")  # type: ignore[index]
    _print_categories(categories)


def _print_half(found: Agreement, title: str) -> None:
    from karma_electric.redteam.signals import OUTCOMES

    print(f"{title}: {found.n} answers")
    for name, value, interval, note in (
        ("accuracy", found.accuracy, found.accuracy_interval, ""),
        ("kappa", found.kappa, found.kappa_interval, "over all four outcomes"),
        (
            "quadratic kappa",
            found.weighted_kappa,
            found.weighted_kappa_interval,
            f"fail < partial < pass, {found.weighted_n} answers that neither side leaves unscored",
        ),
    ):
        shown = "undefined" if value is None else f"{value:.2f}"
        span = "" if interval is None else f" [95%: {interval[0]:.2f} to {interval[1]:.2f}]"
        print(f"  {name:<16} {shown}{span}  {note}".rstrip())
    print(f"  {'label / judged':<16}" + "".join(f"{outcome:>9}" for outcome in OUTCOMES))
    for label in OUTCOMES:
        print(f"  {label:<16}" + "".join(f"{found.confusion[label][judged]:>9}" for judged in OUTCOMES))
    print()


def _print_categories(categories: list[CategoryErrors]) -> None:
    print("errors by category, half B")
    print(f"  {'category':<24}{'answers':>8}{'right':>7}{'bad passed':>12}{'good failed':>13}{'unscored':>10}")
    for found in categories:
        print(
            f"  {found.category:<24}{found.n:>8}{found.right:>7}{found.bad_passed:>12}{found.good_failed:>13}"
            f"{found.left_unscored:>10}"
        )
