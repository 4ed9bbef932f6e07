"""What a paired comparison of n scenarios can see: the smallest effect it would find, and how many it would need.

Connor's (1987) formula for McNemar's test, with the continuity correction that an exact test amounts to. It takes
how much the scenarios' differences scatter from data, and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist

POWER = 0.8


def scatter(differences: Sequence[float]) -> float:
    """Mean square of the scenarios' differences (each -1 to 1); with one seed, the share that is discordant.

    Half a discordant scenario is added each way (Agresti and Min 2005): few differences seen do not mean that there
    are few, and none would promise that any effect can be found.
    """
    return (sum(value * value for value in differences) + 1) / (len(differences) + 2)


def smallest_effect(scatter_: float, n: int, *, seeds: float, alpha: float, power: float = POWER) -> float | None:
    """The true difference in pass rate that the exact test finds with probability `power`; None where there is none.

    Args:
        scatter_: see `scatter`.
        n: scenarios.
        seeds: answers per scenario.
        alpha: two-sided level of the test.
        power: chance of finding it.
    """
    from scipy.optimize import brentq

    def shortfall(effect: float) -> float:
        return _standard_errors(scatter_, effect, alpha, power) / math.sqrt(n) + 1 / (n * seeds) - effect

    if n < _least(alpha) or shortfall(1.0) > 0:
        return None
    return float(brentq(shortfall, 1e-9, 1.0))


def scenarios_needed(scatter_: float, effect: float, *, seeds: float, alpha: float, power: float = POWER) -> int:
    """Scenarios with which a true difference of `effect` is found with probability `power`."""
    errors = _standard_errors(scatter_, effect, alpha, power)
    root = (errors + math.sqrt(errors**2 + 4 * effect / seeds)) / (2 * effect)
    return max(_least(alpha), math.ceil(root**2))


def _standard_errors(scatter_: float, effect: float, alpha: float, power: float) -> float:
    """How many sqrt(n)-ths an effect must be: z of the test under no difference, z of the power under the effect."""
    # An effect that comes as scenarios which turn over altogether scatters by as much as it is large: the worst case.
    square = max(scatter_, effect)
    normal = NormalDist()
    return normal.inv_cdf(1 - alpha / 2) * math.sqrt(square) + normal.inv_cdf(power) * math.sqrt(square - effect**2)


def _least(alpha: float) -> int:
    """The fewest scenarios with which the exact test can fall below alpha at all."""
    return math.ceil(1 - math.log2(alpha))
