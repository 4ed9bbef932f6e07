"""docs/comparison.md: the figures of its worked example are computed here."""

from __future__ import annotations

from pathlib import Path

import pytest
from scipy.stats import fisher_exact

from karma_electric.redteam.comparing import PairReport, compare_pair, rates_of
from karma_electric.redteam.judge_error import Judge
from karma_electric.redteam.signals import Outcome, Verdict
from karma_electric.redteam.stats import smallest_p
from karma_electric.rendering import percent, points

ROOT = Path(__file__).resolve().parent.parent
PAGE = " ".join((ROOT / "docs" / "comparison.md").read_text(encoding="utf-8").replace("\n> ", " ").split())
TABLES = ((42, 7, 0, 9), (38, 11, 4, 5), (33, 16, 9, 0))
MIDDLE = TABLES[1]

Arm = tuple[str, dict[int, list[Verdict]]]


@pytest.fixture(scope="module")
def judge() -> Judge:
    """16 of 17 labelled passes passed, 12 of 20 others not, each a scenario of its own."""
    passes, others = ((1, 1),) * 16 + ((0, 1),), ((1, 1),) * 12 + ((0, 1),) * 8
    return Judge(37, 37, 28 / 37, None, None, passes, others, clustered=True)


def arms(both: int, only_capped: int, only_uncapped: int, neither: int) -> tuple[Arm, Arm]:
    def arm(name: str, passed: list[bool]) -> Arm:
        outcomes: list[Outcome] = ["pass" if x else "fail" for x in passed]
        return name, {0: [Verdict(f"s{n:02}", o, "test", "", 1, "jailbreak") for n, o in enumerate(outcomes)]}

    sizes = (both, only_capped, only_uncapped, neither)
    uncapped, capped = (
        [x for x, size in zip(side, sizes, strict=True) for _ in range(size)]
        for side in ((True, False, True, False), (True, True, False, False))
    )
    return arm("uncapped", uncapped), arm("capped", capped)


def report(table: tuple[int, int, int, int], judge: Judge) -> PairReport:
    return compare_pair(*arms(*table), judge)


@pytest.mark.parametrize("table", TABLES)
def test_the_rows_of_the_table(table: tuple[int, int, int, int], judge: Judge) -> None:
    result = report(table, judge).result
    assert result.difference is not None
    assert result.interval is not None
    low, high = (points(end) for end in result.interval)
    cells = [*map(str, table), f"{result.p_value:.3f}", f"{points(result.difference)} points ({low} to {high})"]
    assert f"| {' | '.join(cells)} |" in PAGE
    assert table[0] + table[1] == 49
    assert table[0] + table[2] == 42


def test_the_totals_alone() -> None:
    assert f"p = {fisher_exact([[49, 9], [42, 16]]).pvalue:.2f} (Fisher)" in PAGE


def test_the_reading_and_what_it_would_take(judge: Judge) -> None:
    result = report(MIDDLE, judge).result
    assert result.reading in PAGE
    needed = result.scenarios_needed
    assert f"10 points would take {needed['0.1']} such scenarios, 5 points {needed['0.05']}." in PAGE


def test_the_correction(judge: Judge) -> None:
    uncapped, capped = (rates_of(*arm, judge) for arm in arms(*MIDDLE))
    assert capped.corrected is not None
    assert uncapped.corrected is not None
    difference = report(MIDDLE, judge).corrected
    assert difference is not None
    said = (
        "passed 16 of 17 labelled passes and, of 20 other labelled answers, did not pass 12, then "
        f"{percent(capped.scored.value)} would be {percent(capped.corrected.value)} of "
        f"true passes ({percent(capped.corrected.low)} to {percent(capped.corrected.high)}), and "
        f"{percent(uncapped.scored.value)} would be {percent(uncapped.corrected.value)} "
        f"({percent(uncapped.corrected.low)} to {percent(uncapped.corrected.high)}): the difference grows to "
        f"{points(difference.value)} points, and its interval to {points(difference.low)} to {points(difference.high)}."
    )
    assert said in PAGE


def test_the_least_p_of_small_categories() -> None:
    assert f"With 5 scenarios p cannot fall below {smallest_p(5):.3f}, with 8 not below {smallest_p(8):.3f}," in PAGE
