"""Finds the quantile at which a cap moves the share of tokens that was asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from karma_electric.core.errors import InputError

TOLERANCE = 0.005  # of the cap rate: good enough to stop
ACCEPTED = 0.02  # of the cap rate: good enough after `PASSES`; on little text the rate moves in steps
PASSES = 8


@dataclass(frozen=True)
class Solution:
    """`rate(quantile)` is `reached`, found in `passes` evaluations."""

    quantile: float
    reached: float
    passes: int


def solve_quantile(rate: Callable[[float], float], target: float) -> Solution:
    """Solve rate(q) = target for q in [0, 1] by the Illinois method (regula falsi that does not stick to one end).

    A threshold at the largest projection caps nothing, so rate(1) = 0. Without an effect of the cap at one block on the
    blocks after it, rate(q) would be 1 - q: the line between (0, 1) and (1, 0) is the first guess.

    Args:
        rate: cap rate, measured while the cap acts, with every threshold at the q-quantile; falls as q rises.
        target: the cap rate wanted, 0 < target < 1.

    Raises:
        InputError: no quantile comes within `ACCEPTED` of the target; names the nearest rates.
    """
    low, high = (0.0, 1.0 - target), (1.0, -target)  # (q, rate - target): above the target, and below it
    measured: dict[float, float] = {}
    last_side = 0
    for _ in range(PASSES):
        q = (low[0] * high[1] - high[0] * low[1]) / (high[1] - low[1])
        if q in measured:
            break
        error = rate(q) - target
        measured[q] = error + target
        if abs(error) <= TOLERANCE:
            break
        if error > 0:
            low, high = (q, error), (high[0], high[1] / 2 if last_side > 0 else high[1])
            last_side = 1
        else:
            high, low = (q, error), (low[0], low[1] / 2 if last_side < 0 else low[1])
            last_side = -1
    if all(reached < target for reached in measured.values()):
        nearest = min(measured, key=lambda q: abs(measured[q] - target))
        if abs(measured[nearest] - target) > ACCEPTED:
            measured[0.0] = rate(0.0)
    best = min(measured, key=lambda q: abs(measured[q] - target))
    if abs(measured[best] - target) > ACCEPTED:
        raise InputError(
            f"A cap rate of {target:g} is not reached on the calibration text: the nearest is {measured[best]:.3f}, "
            f"with thresholds at the {best:.3f}-quantile. A cap lowers what the blocks after it see.",
            "Ask for another rate, lower alpha, cap fewer blocks, or calibrate on more text.",
        )
    return Solution(best, measured[best], len(measured))
