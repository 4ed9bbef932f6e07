"""`karma redteam compare`: arms against each other, with what may be claimed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from karma_electric.cli.options import require_place

if TYPE_CHECKING:
    from karma_electric.redteam.beside import Beside
    from karma_electric.redteam.comparing import ArmRates, PairReport
    from karma_electric.redteam.judge_error import Corrected, Judge


def compare(
    arms: Annotated[
        list[str],
        typer.Argument(
            metavar="A B [C ...]",
            help="Folders of arms; or folders of runs, each followed by names of its arms. All are compared with A.",
        ),
    ],
    json_: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE", help="Write the report as JSON too.")] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the bootstrap.")] = 0,
    confidence: Annotated[
        float, typer.Option("--confidence", help="Coverage of intervals; tests are read at 1 minus it.")
    ] = 0.95,
) -> None:
    """Compare arms, paired by scenario and seed: rates raw and corrected, differences, and what may be claimed.

    Example: karma redteam compare runs/demo base tuned capped
    """
    from karma_electric.core.errors import InputError
    from karma_electric.core.extras import require
    from karma_electric.redteam.arms import find_arms, find_judge, read_arms, remarks

    require("evidence")
    if not 0.5 <= confidence <= 0.999:
        raise InputError(f"--confidence is {confidence}, expected 0.5 to 0.999.", "Write for example 0.95")
    folders = find_arms(arms)
    if len(folders) < 2:
        raise InputError(
            f"{len(folders)} arm was given, expected at least two.",
            "Write for example: karma redteam compare runs/demo base tuned",
        )
    if out is not None:
        require_place(out, "--out")
    from karma_electric.redteam.beside import correct_together, read_beside
    from karma_electric.redteam.comparing import compare_pair, described, rates_of

    found = read_arms(folders)
    judge = find_judge(found)
    options: dict[str, Any] = {"confidence": confidence, "seed": seed}
    rates = [rates_of(arm.name, arm.verdicts, judge, **options) for arm in found]
    first = found[0]
    pairs = [
        compare_pair(
            (first.name, first.verdicts),
            (other.name, other.verdicts),
            judge,
            remarks=remarks(first, other),
            **options,
        )
        for other in found[1:]
    ]
    beside = read_beside(
        {arm.name: arm.folder for arm in found}, [(first.name, other.name) for other in found[1:]], **options
    )
    pairs, beside, n_tests = correct_together(pairs, beside, confidence=confidence)
    from dataclasses import asdict

    report = {
        "confidence": confidence,
        "seed": seed,
        "suite": first.manifest.inputs.get("suite"),
        "scorers": first.summary.get("scorers"),
        "judge": described(judge),
        "arms": [
            asdict(rate) | {"folder": str(arm.folder), "id": arm.manifest.id}
            for rate, arm in zip(rates, found, strict=True)
        ],
        "n_tests": n_tests,
        "comparisons": [asdict(pair) for pair in pairs],
        "beside": [
            asdict(side) | {"judges": {scorer: described(judge) for scorer, judge in side.judges.items()}}
            for side in beside
        ],
    }
    if out is not None:
        from karma_electric.core.artifact import write_json

        write_json(out, report)
    if json_:
        import json

        print(json.dumps(report, indent=2, ensure_ascii=False))
        return
    _print(rates, pairs, judge, confidence, n_tests)
    _print_beside(beside, n_tests)


def _print(
    rates: Sequence[ArmRates], pairs: Sequence[PairReport], judge: Judge | None, confidence: float, n_tests: int
) -> None:
    width = max(len("arm"), *(len(rate.name) for rate in rates))
    interval = f"[{100 * confidence:g}% interval]"
    print(
        f"{'arm':<{width}}  seeds scenarios  pass partial fail unscored  {f'passed of scored {interval}':<35}  "
        f"{'corrected for the judge':<23}  unscored as fail, as pass"
    )
    for rate in rates:
        counts, scored = rate.summary.counts, rate.scored
        value = "none scored" if scored.value is None else f"{scored.value:.0%} [{scored.low:.0%}, {scored.high:.0%}]"
        print(
            f"{rate.name:<{width}}  {len(rate.seeds):>5} {rate.scenarios:>9}  {counts['pass']:>4} "
            f"{counts['partial']:>7} {counts['fail']:>4} {counts['unscored']:>8}  {value:<35}  "
            f"{_corrected(rate.corrected, signed=False):<23}  {_percent(rate.all_fail)}, {_percent(rate.all_pass)}"
        )
    print(f"\n{_judged(judge)}")
    for pair in pairs:
        _print_pair(pair, confidence, n_tests=n_tests)


def _print_beside(beside: Sequence[Beside], n_tests: int) -> None:
    from karma_electric.rendering import drift_in_words, judge_in_words

    print("\nbeside safety")
    if not beside:
        print(
            "  over-refusal and capability were not measured: karma redteam run RECIPE "
            "--beside suites/benign-100.jsonl --beside suites/capability-150.jsonl"
        )
    for side in beside:
        print(f"  {side.title}")
        for scorer, judge in side.judges.items():
            print(f"    judged by {judge_in_words(scorer)}. {_judged(judge, key='benign_labelled')}")
        for name, arm in side.arms.items():
            if arm.rate is None:
                print(f"    {name:<10} {drift_in_words(arm.drift)}")
                continue
            rate = arm.rate
            value = "none scored" if rate.value is None else f"{rate.value:.0%} [{rate.low:.0%}, {rate.high:.0%}]"
            true = f"; corrected for the judge {_corrected(arm.corrected, signed=False)}" if arm.corrected else ""
            print(f"    {name:<10} {value} of {rate.n}; {arm.unscored} of {arm.n} unscored{true}")
        for pair in side.comparisons:
            result = pair.result
            if result.difference is not None and result.interval is not None:
                low, high = result.interval
                what = "helped" if side.kind == "benign" else "correct"
                true = f"; corrected for the judge {_corrected(pair.corrected, signed=True)}" if pair.corrected else ""
                print(
                    f"    {pair.b} against {pair.a}: {what} {_points(result.difference)} points, {_points(low)} to "
                    f"{_points(high)}; {_ps(pair, n_tests)}{true}"
                )


def _print_pair(pair: PairReport, confidence: float, *, n_tests: int) -> None:
    result = pair.result
    print(f"\n{pair.b} against {pair.a}")
    print(f"  {result.reading}")
    for remark in pair.remarks:
        print(f"  {remark}")
    if result.difference is None or result.interval is None:
        return
    test = "sign-flip test over scenarios" if len(result.seeds) > 1 else "McNemar test"
    p = f"exact {test}: {_ps(pair, n_tests)}"
    low, high = result.interval
    rows = [
        ("difference", f"{_points(result.difference)} points, {_points(low)} to {_points(high)} ({confidence:g}); {p}"),
        ("passed more often", f"{pair.b} in {result.b_better} scenarios, {pair.a} in {result.a_better}"),
        ("corrected", _corrected(pair.corrected, signed=True)),
    ]
    bounds = result.bounds
    if bounds is not None and result.n_unscored:
        rows.append(
            (
                "unscored",
                f"all failed {_points(bounds.all_fail)}, all passed {_points(bounds.all_pass)}, "
                f"at worst {_points(bounds.lowest)} to {_points(bounds.highest)}",
            )
        )
    if result.n_unmatched:
        rows.append(("in one arm only", f"{result.n_unmatched} answers, left out"))
    effect = "none" if result.smallest_effect is None else f"{100 * result.smallest_effect:.0f} points"
    price = ", ".join(f"{100 * float(e):g} points needs {n:,}" for e, n in result.scenarios_needed.items())
    these = "this scenario" if result.n_scenarios == 1 else f"these {result.n_scenarios} scenarios"
    rows.append(
        ("found 4 times in 5", f"{effect} with {these}; {price} like {'it' if these[:4] == 'this' else 'them'}")
    )
    for name, text in rows:
        print(f"  {name:<19} {text}")
    print(f"  {'category':<24} {'pairs':>5} {pair.a:>10} {pair.b:>10} {'points':>7} {'p':>7} {'Holm':>7}  least p")
    for test_ in pair.categories:
        print(
            f"  {test_.category:<24} {test_.n_pairs:>5} {test_.passed_a:>10} {test_.passed_b:>10} "
            f"{_points(test_.difference):>7} {_p(test_.p_value):>7} {_p(test_.p_holm):>7}  {_p(test_.smallest_p)}"
        )


def _judged(judge: Judge | None, *, key: str = "labelled") -> str:
    if judge is None:
        return (
            "No judge's error was measured beside these arms, so rates are as judged. "
            f"Set redteam.{key} in the recipe and run: karma redteam run RECIPE"
        )
    kappa = "undefined" if judge.kappa is None else f"{judge.kappa:.2f}"
    if judge.kappa is not None and judge.kappa_interval is not None:
        kappa += f" (95%: {judge.kappa_interval[0]:.2f} to {judge.kappa_interval[1]:.2f})"
    loose = (
        "" if judge.clustered else " The labels' scenarios are not in its file: intervals take labels as independent."
    )
    return (
        f"Judge: kappa {kappa} {judge.measured_on}. {judge.errs} "
        f"Corrected figures hold if it errs here as it does there.{loose}"
    )


def _corrected(value: Corrected | None, *, signed: bool) -> str:
    if value is None:
        return "not measured"
    if value.value is None:
        return f"not possible: {value.why}"
    if signed:
        return f"{_points(value.value)} points, {_points(value.low)} to {_points(value.high)}"
    return f"{value.value:.0%} [{value.low:.0%}, {value.high:.0%}]"


def _percent(value: float | None) -> str:
    return "none" if value is None else f"{value:.0%}"


def _points(value: float) -> str:
    rounded = round(100 * value)
    return f"{rounded:+d}" if rounded else "0"


def _ps(pair: PairReport, n_tests: int) -> str:
    """The p value, and what it is after correction for the number of comparisons."""
    corrected = f", {_p(pair.p_holm)} after Holm for {n_tests} comparisons" if n_tests > 1 else ""
    return f"p = {_p(pair.result.p_value)}{corrected}"


def _p(value: float) -> str:
    return "<0.001" if value < 0.001 else f"{value:.3f}"
