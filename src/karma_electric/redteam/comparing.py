"""Everything that is said of arms against each other, gathered: rates raw and corrected, differences, categories."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from karma_electric.redteam.judge_error import Corrected, Judge, correct_difference, correct_rate
from karma_electric.redteam.paired import Pair, PairedComparison, Seeded, compare, gains_by_scenario, pair_up, read
from karma_electric.redteam.stats import ArmSummary, Rate, rate, sign_flip, smallest_p, summarise

RESAMPLES = 10_000


@dataclass(frozen=True)
class ArmRates:
    """What one arm did.

    Attributes:
        name: the arm.
        seeds: its seeds.
        scenarios: how many.
        summary: counts and rates over all seeds, at 95%.
        scored: passes over scored answers, at the confidence asked for.
        corrected: the same, corrected for the judge's error; None where no judge was measured.
        all_fail, all_pass: the pass rate over all answers, were the unscored ones all not passed, or all passed.
    """

    name: str
    seeds: tuple[int, ...]
    scenarios: int
    summary: ArmSummary
    scored: Rate
    corrected: Corrected | None
    all_fail: float | None
    all_pass: float | None


@dataclass(frozen=True)
class CategoryTest:
    """One category of a comparison. No interval: a bootstrap over so few scenarios would not cover what it promises.

    Attributes:
        category: its name.
        n_scenarios, n_pairs: scenarios and answers scored in both arms.
        passed_a, passed_b: of the pairs.
        difference: of the rates, b minus a.
        p_value: exact sign-flip test; `p_holm` is corrected for the number of categories (Holm 1979).
        smallest_p: what `p_value` could fall to at best with as many scenarios.
    """

    category: str
    n_scenarios: int
    n_pairs: int
    passed_a: int
    passed_b: int
    difference: float
    p_value: float
    p_holm: float
    smallest_p: float


@dataclass(frozen=True)
class PairReport:
    """Arm `b` against arm `a`.

    Attributes:
        a, b: names.
        result: the comparison. Its reading goes by `p_holm`.
        p_holm: p corrected for the number of comparisons made together (Holm 1979).
        corrected: the difference, corrected for the judge's error; None where no judge was measured.
        categories: in alphabetical order.
        remarks: what else sets the arms apart, or was left out.
    """

    a: str
    b: str
    result: PairedComparison
    p_holm: float
    corrected: Corrected | None
    categories: tuple[CategoryTest, ...]
    remarks: tuple[str, ...]


def rates_of(name: str, arm: Seeded, judge: Judge | None, *, confidence: float = 0.95, seed: int = 0) -> ArmRates:
    """Rates of one arm.

    Args:
        name: the arm.
        arm: its verdicts by seed.
        judge: what is known of the judge, or None.
        confidence: coverage of the intervals.
        seed: seed of the bootstrap.
    """
    verdicts = [verdict for of_seed in arm.values() for verdict in of_seed]
    passes: dict[str, list[int]] = {}
    for verdict in verdicts:
        counted = passes.setdefault(verdict.scenario_id, [0, 0])
        counted[0] += verdict.outcome == "pass"
        counted[1] += verdict.outcome != "unscored"
    groups = [(passed, scored) for passed, scored in passes.values()]
    summary = summarise(verdicts)
    n, passed, unscored = summary.n, summary.counts["pass"], summary.counts["unscored"]
    return ArmRates(
        name=name,
        seeds=tuple(arm),
        scenarios=len(passes),
        summary=summary,
        scored=rate(groups, confidence),
        corrected=None
        if judge is None
        else correct_rate(groups, judge, confidence=confidence, resamples=RESAMPLES, seed=seed),
        all_fail=passed / n if n else None,
        all_pass=(passed + unscored) / n if n else None,
    )


def compare_pair(
    a: tuple[str, Seeded],
    b: tuple[str, Seeded],
    judge: Judge | None,
    *,
    remarks: Sequence[str] = (),
    confidence: float = 0.95,
    seed: int = 0,
) -> PairReport:
    """One comparison, in all and per category.

    Args:
        a, b: name and verdicts by seed of each arm; differences are b minus a.
        judge: what is known of the judge, or None.
        remarks: see `PairReport`.
        confidence: coverage of the intervals; tests are read at 1 minus it.
        seed: seed of the bootstraps.

    Raises:
        DataError: an arm holds two verdicts on one scenario under one seed.
    """
    result = compare(a[1], b[1], name_a=a[0], name_b=b[0], confidence=confidence, resamples=RESAMPLES, seed=seed)
    scored = [pair for pair in pair_up(a[1], b[1]) if pair.is_scored]
    gains, sizes = gains_by_scenario(scored)
    corrected = (
        None
        if judge is None
        else correct_difference(gains, sizes, judge, confidence=confidence, resamples=RESAMPLES, seed=seed)
    )
    return PairReport(a[0], b[0], result, result.p_value, corrected, _categories(scored), tuple(remarks))


def correct_for_many(reports: Sequence[PairReport], *, confidence: float = 0.95) -> list[PairReport]:
    """Comparisons made together, with p values corrected for their number, and readings that go by those."""
    adjusted = holm([report.result.p_value for report in reports])
    return [
        replace(
            report,
            p_holm=p,
            result=replace(report.result, reading=read(report.result, report.a, report.b, p=p, alpha=1 - confidence)),
        )
        for report, p in zip(reports, adjusted, strict=True)
    ]


def holm(p_values: Sequence[float]) -> list[float]:
    """P values corrected for their number by Holm's step-down method."""
    from statsmodels.stats.multitest import multipletests

    return [float(p) for p in multipletests(list(p_values), method="holm")[1]] if p_values else []


def described(judge: Judge | None) -> dict[str, Any] | None:
    """A judge as JSON, with its rates written out."""
    if judge is None:
        return None
    return asdict(judge) | {"sensitivity": judge.sensitivity, "specificity": judge.specificity}


def _categories(scored: Sequence[Pair]) -> tuple[CategoryTest, ...]:
    by_name: dict[str, list[Pair]] = {}
    for pair in scored:
        by_name.setdefault(pair.category, []).append(pair)
    tests = []
    for name, pairs in sorted(by_name.items()):
        gains, _ = gains_by_scenario(pairs)
        p = sign_flip(gains)
        tests.append(
            CategoryTest(
                category=name,
                n_scenarios=len(gains),
                n_pairs=len(pairs),
                passed_a=sum(pair.a == "pass" for pair in pairs),
                passed_b=sum(pair.b == "pass" for pair in pairs),
                difference=sum(gains) / len(pairs),
                p_value=p,
                p_holm=p,
                smallest_p=smallest_p(len(gains)),
            )
        )
    adjusted = holm([test.p_value for test in tests])
    return tuple(replace(test, p_holm=p) for test, p in zip(tests, adjusted, strict=True))
