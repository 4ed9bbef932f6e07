"""Pass rates with intervals, and paired comparison of two arms. Knows nothing of models or answers.

Unscored answers are never counted as passes, and never silently dropped: each figure says how many there were.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from karma_electric.core.errors import DataError
from karma_electric.redteam.signals import OUTCOMES, Verdict

SIGNIFICANCE = 0.05


@dataclass(frozen=True)
class Rate:
    """A proportion `successes / n` with its Wilson interval. `value` is None where n is 0."""

    successes: int
    n: int
    value: float | None
    low: float
    high: float


@dataclass(frozen=True)
class ArmSummary:
    """What one arm did on a suite.

    Attributes:
        n: scenarios.
        counts: how many of each outcome.
        pass_rate_scored: passes over pass + partial + fail.
        pass_rate_all: passes over all n, so that unscored answers count against the arm.
        categories: counts of each outcome per category.
    """

    n: int
    counts: dict[str, int]
    pass_rate_scored: Rate
    pass_rate_all: Rate
    categories: dict[str, dict[str, int]]


@dataclass(frozen=True)
class PairedComparison:
    """Arm b against arm a on the scenarios that both were scored on.

    Attributes:
        n_pairs: scenarios scored in both arms; everything below but the next two rests on these.
        n_unscored: scenarios in both arms but dropped because one or both answers are unscored.
        n_unmatched: scenarios in only one of the arms, dropped.
        pass_rate_a, pass_rate_b: shares of the pairs passed; None without pairs.
        difference: pass rate of b minus that of a; None without pairs.
        interval: its paired bootstrap interval (see `compare`); None without pairs.
        only_a_passed, only_b_passed: the discordant pairs, each way.
        p_value: exact two-sided McNemar test of pass against not pass.
        reading: one sentence on what may and may not be claimed.
    """

    n_pairs: int
    n_unscored: int
    n_unmatched: int
    pass_rate_a: float | None
    pass_rate_b: float | None
    difference: float | None
    interval: tuple[float, float] | None
    only_a_passed: int
    only_b_passed: int
    p_value: float
    reading: str


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of a proportion (Wilson 1927, without continuity correction).

    Args:
        successes: 0 to n.
        n: trials; with 0 nothing is known and the interval is (0, 1).
        confidence: coverage, between 0 and 1.

    Raises:
        ValueError: arguments out of range.
    """
    if not 0 <= successes <= n or not 0 < confidence < 1:
        raise ValueError(f"wilson({successes}, {n}, {confidence}): expected 0 <= successes <= n, 0 < confidence < 1")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    high = 1.0 if successes == n else min(1.0, centre + half)
    return low, high


def mcnemar(only_a: int, only_b: int) -> float:
    """Exact two-sided McNemar test: a binomial test of the discordant pairs against one half. Returns p."""
    n = only_a + only_b
    tail = sum(math.comb(n, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, float(2 * tail / 2**n))


def summarise(verdicts: Sequence[Verdict]) -> ArmSummary:
    """Count the verdicts of one arm."""
    counts = _count(verdicts)
    scored = len(verdicts) - counts["unscored"]
    categories = sorted({verdict.category for verdict in verdicts})
    return ArmSummary(
        n=len(verdicts),
        counts=counts,
        pass_rate_scored=_rate(counts["pass"], scored),
        pass_rate_all=_rate(counts["pass"], len(verdicts)),
        categories={name: _count([v for v in verdicts if v.category == name]) for name in categories},
    )


def compare(
    a: Sequence[Verdict],
    b: Sequence[Verdict],
    *,
    name_a: str = "a",
    name_b: str = "b",
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedComparison:
    """Compare two arms on the same scenarios, paired by scenario id.

    A pair with an unscored answer on either side is dropped and counted. The interval is a percentile bootstrap
    over pairs. Where no pair is discordant every resample gives 0, which would look like certainty; the Wilson
    bound of 0 in n then takes its place on both sides.

    Args:
        a, b: verdicts of the two arms; differences are b minus a.
        name_a, name_b: what the reading calls them.
        confidence: coverage of the interval.
        resamples: bootstrap draws.
        seed: seed of the bootstrap.

    Raises:
        DataError: an arm holds two verdicts on one scenario.
    """
    first, second = _by_scenario(a, name_a), _by_scenario(b, name_b)
    shared = [key for key in first if key in second]
    scored = [key for key in shared if "unscored" not in (first[key].outcome, second[key].outcome)]
    passed = [(first[key].outcome == "pass", second[key].outcome == "pass") for key in scored]
    only_a = sum(x and not y for x, y in passed)
    only_b = sum(y and not x for x, y in passed)
    both = sum(x and y for x, y in passed)
    n, p = len(passed), mcnemar(only_a, only_b)
    interval = _bootstrap(only_a, only_b, n, confidence=confidence, resamples=resamples, seed=seed) if n else None
    return PairedComparison(
        n_pairs=n,
        n_unscored=len(shared) - n,
        n_unmatched=len(first.keys() ^ second.keys()),
        pass_rate_a=(both + only_a) / n if n else None,
        pass_rate_b=(both + only_b) / n if n else None,
        difference=(only_b - only_a) / n if n else None,
        interval=interval,
        only_a_passed=only_a,
        only_b_passed=only_b,
        p_value=p,
        reading=_reading(name_a, name_b, both, only_a, only_b, n, len(shared) - n, p, interval),
    )


def _count(verdicts: Sequence[Verdict]) -> dict[str, int]:
    found = Counter(verdict.outcome for verdict in verdicts)
    return {outcome: found[outcome] for outcome in OUTCOMES}


def _rate(successes: int, n: int) -> Rate:
    low, high = wilson(successes, n)
    return Rate(successes=successes, n=n, value=successes / n if n else None, low=low, high=high)


def _by_scenario(verdicts: Sequence[Verdict], name: str) -> Mapping[str, Verdict]:
    found = {verdict.scenario_id: verdict for verdict in verdicts}
    if len(found) != len(verdicts):
        twice = next(key for key, times in Counter(v.scenario_id for v in verdicts).items() if times > 1)
        raise DataError(f"arm {name}: two verdicts on scenario {twice!r}, expected one.", "Run the arm again.")
    return found


def _bootstrap(
    only_a: int, only_b: int, n: int, *, confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    import numpy as np

    if only_a == only_b == 0:
        bound = wilson(0, n, confidence)[1]
        return -bound, bound
    # Drawing n pairs with replacement is a multinomial draw over (only a, only b, concordant).
    shares = [only_a / n, only_b / n, (n - only_a - only_b) / n]
    draws = np.random.default_rng(seed).multinomial(n, shares, size=resamples)
    differences = (draws[:, 1] - draws[:, 0]) / n  # [resample]
    tail = (1 - confidence) / 2
    low, high = np.quantile(differences, [tail, 1 - tail])
    return float(low), float(high)


def _reading(
    name_a: str,
    name_b: str,
    both: int,
    only_a: int,
    only_b: int,
    n: int,
    unscored: int,
    p: float,
    interval: tuple[float, float] | None,
) -> str:
    dropped = f" ({unscored} more dropped as unscored)" if unscored else ""
    if interval is None:
        return f"No scenario was scored in both {name_a} and {name_b}{dropped}, so nothing may be claimed."
    counts = (
        f"{name_b} passed {both + only_b} and {name_a} {both + only_a} of the {n} scenarios scored in both{dropped}"
    )
    span = f"{100 * interval[0]:+.0f} to {100 * interval[1]:+.0f} points"
    p_text = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    if p >= SIGNIFICANCE:
        return (
            f"{counts}: a difference may not be claimed, nor that they are equal "
            f"({only_a + only_b} scenarios differ, {p_text}, plausible range {span})."
        )
    better, worse = (name_b, name_a) if only_b > only_a else (name_a, name_b)
    return (
        f"{counts}: {better} passes more often than {worse} on this suite under this scorer "
        f"({p_text}, {span}); nothing may be claimed about other prompts or other sampling."
    )
