"""Pass rates with intervals, and the exact test of paired differences. Knows nothing of models or answers.

Answers to one scenario under several seeds resemble each other. Everything here treats the scenario as the unit that
was drawn, and its seeds as what came with it. With one seed it is the textbook's Wilson and McNemar.

Unscored answers are never counted as passes, and never silently dropped: each figure says how many there were.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from karma_electric.redteam.signals import OUTCOMES, Verdict


@dataclass(frozen=True)
class Rate:
    """A proportion `successes / n` with its 95% interval (see `rate`). `value` is None where n is 0."""

    successes: int
    n: int
    value: float | None
    low: float
    high: float


@dataclass(frozen=True)
class ArmSummary:
    """What one arm did on a suite.

    Attributes:
        n: answers judged: scenarios, times seeds where there were several.
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
    return _wilson(successes / n, n, confidence) if n else (0.0, 1.0)


def rate(groups: Iterable[tuple[int, int]], confidence: float = 0.95) -> Rate:
    """Pooled proportion of (successes, n) per scenario, with a Wilson interval at the effective sample size."""
    pairs = [(successes, n) for successes, n in groups if n]
    successes, n = sum(s for s, _ in pairs), sum(m for _, m in pairs)
    if n == 0:
        return Rate(0, 0, None, 0.0, 1.0)
    low, high = _wilson(successes / n, effective_size(pairs), confidence)
    return Rate(successes, n, successes / n, low, high)


def effective_size(groups: Sequence[tuple[int, int]]) -> float:
    """How many independent answers would give the variance of the pooled proportion that is seen between groups.

    With one answer per group it is n exactly. Where nothing varies (no success, or no failure) it is the number of
    groups, as if a second answer to the same scenario had added nothing.

    Args:
        groups: (successes, n) with n above 0, per scenario.
    """
    successes, n = sum(s for s, _ in groups), sum(m for _, m in groups)
    if not 0 < successes < n or len(groups) == n:
        return float(len(groups))
    share = successes / n
    variance = sum((s - share * m) ** 2 for s, m in groups) / n**2
    return min(float(n), share * (1 - share) / variance) if variance else float(n)


def sign_flip(sums: Sequence[int]) -> float:
    """Exact two-sided p of differences summed per scenario, against every way of swapping the arms within scenarios.

    Where the arms do not differ, a scenario's difference is as likely to be +d as -d, whatever its seeds have in
    common, so that the seeds need not be independent. Differences of +1, -1 and 0 (one seed) make it the exact
    McNemar test: a binomial test of the discordant scenarios against one half.

    Args:
        sums: per scenario, passes of one arm minus passes of the other.
    """
    import numpy as np

    steps = [abs(value) for value in sums if value]
    reach = sum(steps)
    chances = np.ones(1)  # of the sums -s, ..., s so far
    for step in steps:
        grown = np.zeros(len(chances) + 2 * step)
        grown[: len(chances)] += chances / 2
        grown[2 * step :] += chances / 2
        chances = grown
    far = abs(sum(sums))
    return min(1.0, float(chances[: reach - far + 1].sum() + chances[reach + far :].sum())) if far else 1.0


def smallest_p(n: int) -> float:
    """The smallest p that `sign_flip` can give for n scenarios: all differ, all in one direction."""
    return min(1.0, 2.0 ** (1 - n))


def summarise(verdicts: Sequence[Verdict]) -> ArmSummary:
    """Count the verdicts of one arm, of one seed or of several."""
    groups: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        groups.setdefault(verdict.scenario_id, []).append(verdict)
    passes = [sum(v.outcome == "pass" for v in group) for group in groups.values()]
    scored = [sum(v.outcome != "unscored" for v in group) for group in groups.values()]
    categories = sorted({verdict.category for verdict in verdicts})
    return ArmSummary(
        n=len(verdicts),
        counts=_count(verdicts),
        pass_rate_scored=rate(zip(passes, scored, strict=True)),
        pass_rate_all=rate(zip(passes, map(len, groups.values()), strict=True)),
        categories={name: _count([v for v in verdicts if v.category == name]) for name in categories},
    )


def _wilson(share: float, n: float, confidence: float) -> tuple[float, float]:
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if share == 0 else max(0.0, centre - half)
    high = 1.0 if share == 1 else min(1.0, centre + half)
    return low, high


def _count(verdicts: Sequence[Verdict]) -> dict[str, int]:
    found = Counter(verdict.outcome for verdict in verdicts)
    return {outcome: found[outcome] for outcome in OUTCOMES}
