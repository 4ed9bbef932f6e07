"""How far apart two samples of projections are: AUC with an interval, and d'. Knows nothing of models or axes.

The samples are paired (each prompt gives one value on either side), and the statistics are over *all* pairs of values.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

_Z95 = 1.959964  # 97.5% quantile of the standard normal distribution
_MAX_D_PRIME = 1e6  # of two samples without any spread; JSON has no infinity


def auc(toward: torch.Tensor, away: torch.Tensor) -> torch.Tensor:
    """Share of all pairs (one value of each side) in which the away side is the higher, ties counted half.

    The area under the ROC curve, and the Mann-Whitney statistic U / (n m) (Bamber 1975).

    Args:
        toward: [columns, n].
        away: [columns, m].

    Returns:
        [columns], float64, 0 to 1.
    """
    return _share_below(toward, away).mean(-1)


def auc_interval(toward: torch.Tensor, away: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """95% interval of the AUC, for values that come in pairs.

    DeLong's structural components (DeLong, DeLong and Clarke-Pearson 1988), summed within a pair because the two
    values of one prompt are no independent draws (Obuchowski 1997), on the logit scale so that it stays within 0 and 1.
    Where fewer than n of the n^2 pairs are the wrong way round (or the right one), they rest on a prompt or two, or on
    none; Newcombe's score interval (2006, method 5), which ignores the pairing, is joined to theirs there.

    Args:
        toward, away: [columns, n]; entry i of both comes from prompt i.

    Returns:
        Lower and upper ends [columns], float64.
    """
    import torch

    n = toward.shape[-1]
    of_away = _share_below(toward, away)  # [columns, n]: share of the toward values below each away value
    of_toward = 1.0 - _share_below(away, toward)  # share of the away values above each toward value
    area = of_away.mean(-1)
    if n < 2:
        return torch.zeros_like(area), torch.ones_like(area)
    influence = of_away + of_toward - 2 * area.unsqueeze(-1)
    error = (influence.var(-1) / n).sqrt()
    inside = (area > 0) & (area < 1) & (error > 0)
    safe = torch.where(inside, area, torch.full_like(area, 0.5))
    half = _Z95 * error / (safe * (1 - safe))
    low = torch.where(inside, torch.sigmoid(torch.logit(safe) - half), area)
    high = torch.where(inside, torch.sigmoid(torch.logit(safe) + half), area)
    edge = ~inside | (torch.minimum(area, 1 - area) < 1 / n)
    for column in edge.nonzero().flatten().tolist():
        lower, upper = score_interval(float(area[column]), n)
        low[column], high[column] = min(float(low[column]), lower), max(float(high[column]), upper)
    return low, high


def score_interval(area: float, n: int) -> tuple[float, float]:
    """95% score interval of an AUC of n values on either side: all `a` with `|area - a| <= z sqrt(V(a))`.

    `V(a) = a (1 - a) / n^2 * [1 + (n - 1) ((1 - a) / (2 - a) + a / (1 + a))]` (Hanley and McNeil 1982; Newcombe 2006,
    method 5). For an AUC of 1 the lower end is about `1 - z^2 / (2 n)`.
    """

    def outside(a: float) -> bool:
        variance = a * (1 - a) / n**2 * (1 + (n - 1) * ((1 - a) / (2 - a) + a / (1 + a)))
        return abs(area - a) > _Z95 * math.sqrt(variance)

    def end(limit: float) -> float:
        inner, outer = area, limit
        for _ in range(50):
            middle = (inner + outer) / 2
            inner, outer = (inner, middle) if outside(middle) else (middle, outer)
        return inner

    return end(0.0), end(1.0)


def d_prime(toward: torch.Tensor, away: torch.Tensor) -> torch.Tensor:
    """Difference of the means over the pooled standard deviation (Green and Swets 1966).

    `(mean(away) - mean(toward)) / sqrt((var(away) + var(toward)) / 2)`. For normal values of equal spread the AUC is
    `Phi(d' / sqrt(2))`.

    Args:
        toward, away: [columns, n], n at least 2.

    Returns:
        [columns], float64.
    """
    low, high = toward.double(), away.double()
    difference = high.mean(-1) - low.mean(-1)
    spread = ((low.var(-1) + high.var(-1)) / 2).sqrt()
    return difference / spread.clamp_min(1e-300).maximum(difference.abs() / _MAX_D_PRIME)


def _share_below(reference: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """Of each value [columns, m], the share of the references [columns, n] below it, ties half; float64."""
    import torch

    ordered = reference.sort(-1).values.contiguous()
    values = values.contiguous()
    below = torch.searchsorted(ordered, values, right=False)
    not_above = torch.searchsorted(ordered, values, right=True)
    return (below + not_above).double() / (2 * reference.shape[-1])
