"""`karma judge calibrate`: judges against labelled answers, where they err, and how far raters agree."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from karma_electric.redteam.agreement import Agreement
    from karma_electric.redteam.labelled import CategoryErrors, Labelled
    from karma_electric.redteam.scenario import Scenario
    from karma_electric.redteam.signals import Verdict

DEFAULT = ("signals",)


def calibrate(
    labelled: Annotated[
        list[str] | None,
        typer.Option("--labelled", metavar="FILE", help="Labelled answers; the shipped ones else. May be given again."),
    ] = None,
    suite: Annotated[
        list[str] | None,
        typer.Option(
            "--suite",
            metavar="FILE",
            help="The suite that they answer; starter-30 and standard-200 else. May be given again.",
        ),
    ] = None,
    scorer: Annotated[
        list[str] | None,
        typer.Option(
            "--scorer",
            metavar="JUDGE",
            help="signals, semantic, semantic:FOLDER, llm:PROVIDER/MODEL, ensemble:A+B, signals-original; "
            "signals when not given. May be given again.",
        ),
    ] = None,
    scorer_url: Annotated[
        str | None, typer.Option("--scorer-url", metavar="URL", help="Address of an llm judge's API.")
    ] = None,
    samples: Annotated[int, typer.Option("--samples", min=2, help="Replies of an llm judge per answer.")] = 4,
    json_: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Measure judges on labelled answers: accuracy, kappa, confusion, errors by category; and the raters.

    Word lists were tuned on half A of the scenarios; half B is for measuring. Answers that a judge was trained on are
    judged by fits that had not seen the scenario. Other answers to those scenarios are not: the report counts them.
    Intervals draw whole scenarios.

    Example: karma judge calibrate --scorer signals --scorer semantic
    """
    import json
    from dataclasses import asdict

    from karma_electric.cli.judge_train import read_labels, read_suites
    from karma_electric.core.errors import DataError
    from karma_electric.core.progress import Console
    from karma_electric.core.resources import find
    from karma_electric.redteam.labelled import SHIPPED, SHIPPED_SUITES, rater_agreement
    from karma_electric.redteam.scorers.named import open_scorer

    files = labelled or list(SHIPPED)
    scenarios = read_suites([find("suites", name) for name in suite or SHIPPED_SUITES])
    rows = read_labels([find("suites", name) for name in files], scenarios)
    if not rows:
        raise DataError(f"{', '.join(files)} holds no labelled answers.", "Label some: karma redteam relabel --help")
    judges = [open_scorer(spec, base_url=scorer_url, samples=samples) for spec in scorer or DEFAULT]
    measured = [measure_judge(judge, scenarios, rows, Console()) for judge in judges]
    raters = rater_agreement(rows)
    if json_:
        reports = [
            {
                "scorer": one["scorer"],
                "all": asdict(one["all"]),
                "halves": {half: found and asdict(found) for half, found in one["halves"].items()},
                "categories": [asdict(errors) for errors in one["categories"]],
                "familiar": one["familiar"],
            }
            for one in measured
        ]
        others = {"judges": reports, "raters": None if raters is None else asdict(raters)}
        print(json.dumps({**reports[0], **others}, indent=2, ensure_ascii=False))
        return
    print(f"{len(rows)} labelled answers; labels by {', '.join(sorted({row.rater for row in rows}))}")
    _print_raters(raters, rows)
    for one in measured:
        print(f"\n=== {one['scorer']}\n")
        if one["familiar"]:
            print(
                f"{one['familiar']} of {len(rows)} answers are to scenarios that it was trained on with other answers, "
                "and are judged by that fit.\n"
            )
        _print_half(one["halves"]["B"], "half B, to measure on")
        _print_half(one["halves"]["A"], "half A, which word lists were tuned on")
        _print_half(one["all"], "both halves")
        _print_categories(one["categories"])
    if len(measured) > 1:
        _print_table(measured)


def measure_judge(judge: Any, scenarios: list[Scenario], rows: list[Labelled], progress: Any) -> dict[str, Any]:
    """Agreement of one judge on all labels and on each half (None: no label), and its errors by category on half B.

    `familiar` counts the answers to scenarios that it was trained on with other answers.
    """
    from karma_electric.redteam.labelled import agree, as_cases, errors_by_category, half_of, judge_rows
    from karma_electric.redteam.scorers.protocol import familiar

    verdicts = judge_rows(scenarios, rows, judge, progress=progress)
    _require_rated(judge, scenarios, rows, verdicts)
    pairs = list(zip(rows, verdicts, strict=True))
    halves = {half: [pair for pair in pairs if half_of(pair[0].scenario_id) == half] for half in ("A", "B")}
    return {
        "scorer": judge.name,
        "all": agree(rows, verdicts),
        "halves": {
            half: agree([r for r, _ in found], [v for _, v in found]) if found else None
            for half, found in halves.items()
        },
        "categories": errors_by_category(scenarios, [r for r, _ in halves["B"]], [v for _, v in halves["B"]]),
        "familiar": sum(familiar(judge, as_cases(scenarios, rows))),
    }


def _require_rated(judge: Any, scenarios: list[Scenario], rows: list[Labelled], verdicts: list[Verdict]) -> None:
    """Refuse a judge that only looks ratings up and has none: figures of nothing look like figures."""
    from karma_electric.core.errors import InputError
    from karma_electric.redteam.labelled import as_cases
    from karma_electric.redteam.scorers.labels import NOT_RATED

    if any(verdict.evidence != NOT_RATED for verdict in verdicts):
        return
    known = judge.score(as_cases(scenarios, rows))
    if any(verdict.evidence != NOT_RATED for verdict in known):
        raise InputError(
            f"{judge.spec}: its file has one rating of each answer, expected two: one is measured by the other.",
            "Put two ratings of every answer together: karma redteam rated --help",
        )
    raise InputError(
        f"{judge.spec}: its file rates none of the {len(rows)} labelled answers, expected ratings of these.",
        f"Give the answers that it rates: --labelled {judge.spec.partition(':')[2]} --suite THEIR_SUITE",
    )


def _print_raters(found: Agreement | None, rows: list[Labelled]) -> None:
    if found is None:
        print("Each answer has one rating: how far raters agree with each other is not known.")
        return
    who = sorted({rating.rater for row in rows for rating in row.ratings})
    print(f"Raters ({', '.join(who)}): two independent ratings of {found.n} answers")
    _print_half(found, "the second rating against the first")


def _print_table(measured: list[dict[str, Any]]) -> None:
    print(f"\n{'judge':<40} {'half B: kappa':<22} {'quadratic':<22} {'accuracy':<9} both halves: kappa")
    for one in measured:
        half, everything = one["halves"]["B"], one["all"]
        cells = ["none", "none", "none"]
        if half is not None:
            kappas = (half.kappa, half.kappa_interval), (half.weighted_kappa, half.weighted_kappa_interval)
            cells = [*(_figure(*kappa) for kappa in kappas), f"{half.accuracy:.0%}"]
        print(
            f"{one['scorer'][:40]:<40} {cells[0]:<22} {cells[1]:<22} {cells[2]:<9} "
            f"{_figure(everything.kappa, everything.kappa_interval)}"
        )


def _figure(value: float | None, interval: tuple[float, float] | None) -> str:
    if value is None:
        return "undefined"
    return f"{value:.2f}" + ("" if interval is None else f" [{interval[0]:.2f}, {interval[1]:.2f}]")


def _print_half(found: Agreement | None, title: str) -> None:
    from karma_electric.redteam.signals import OUTCOMES

    if found is None:
        print(f"{title}: no labelled answer (halves go by a hash of the scenario's id)\n")
        return
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
