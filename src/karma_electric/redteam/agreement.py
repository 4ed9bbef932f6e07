"""How far a scorer agrees with labels: accuracy, Cohen's kappa, weighted kappa, with intervals.

Knows nothing of responses or scorers: it compares two lists of outcomes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from karma_electric.redteam.signals import OUTCOMES, Outcome

if TYPE_CHECKING:
    from numpy.typing import NDArray

# Worst first: the scale of the weighted kappa. "unscored" is no point on it.
_SCALE: tuple[Outcome, ...] = ("fail", "partial", "pass")


@dataclass(frozen=True)
class Agreement:
    """Agreement of predicted outcomes with labels.

    Attributes:
        n: pairs compared.
        accuracy: share of identical pairs.
        accuracy_interval: its percentile bootstrap interval; 0 to 1 where all pairs are of one group.
        kappa: Cohen's kappa over the four outcomes; None where it is undefined (only one outcome ever used).
        kappa_interval: percentile bootstrap interval of `kappa`, None where it could not be computed.
        weighted_kappa: quadratic-weighted kappa over fail < partial < pass; None where it is undefined.
        weighted_kappa_interval: percentile bootstrap interval of it, None where it could not be computed.
        weighted_n: pairs `weighted_kappa` rests on.
        weighted_excluded: pairs left out of it because either side is unscored.
        confusion: `confusion[label][predicted]`, counts.
        pairs: (group, label, predicted) of every pair, where groups were given: what a correction for the scorer's
            error needs, since answers to one scenario resemble each other.
    """

    n: int
    accuracy: float
    kappa: float | None
    kappa_interval: tuple[float, float] | None
    weighted_kappa: float | None
    weighted_n: int
    weighted_excluded: int
    confusion: dict[str, dict[str, int]]
    accuracy_interval: tuple[float, float]
    weighted_kappa_interval: tuple[float, float] | None
    pairs: tuple[tuple[str, str, str], ...] = ()


def agreement(
    labels: Sequence[Outcome],
    predicted: Sequence[Outcome],
    *,
    groups: Sequence[str] | None = None,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> Agreement:
    """Compare predicted outcomes with labels.

    Args:
        labels: outcomes taken as true.
        predicted: outcomes of a scorer, in the same order.
        groups: what each pair belongs to (its scenario). The bootstrap then draws whole groups, because answers
            to one scenario resemble each other; without it, it draws pairs.
        confidence: coverage of the interval.
        resamples: bootstrap draws.
        seed: seed of the bootstrap.

    Returns:
        The agreement; see `Agreement` for what is None and when.

    Raises:
        ValueError: lengths differ, nothing to compare, or an unknown outcome.
    """
    import numpy as np

    if not labels or len(labels) != len(predicted) or (groups is not None and len(groups) != len(labels)):
        raise ValueError(f"{len(labels)} labels and {len(predicted)} predictions, expected as many of each, at least 1")
    size = len(OUTCOMES)
    index = {outcome: number for number, outcome in enumerate(OUTCOMES)}
    unknown = (set(labels) | set(predicted)) - set(OUTCOMES)
    if unknown:
        raise ValueError(f"{sorted(unknown)[0]!r} is not an outcome, expected one of {', '.join(OUTCOMES)}")
    cells = np.array([index[a] * size + index[b] for a, b in zip(labels, predicted, strict=True)])  # [pair]

    names = list(groups) if groups is not None else [str(number) for number in range(len(labels))]
    members: dict[str, list[int]] = {}
    for number, name in enumerate(names):
        members.setdefault(name, []).append(number)
    # [group, label x predicted]: one confusion matrix per group, so that a resample is a sum of rows.
    per_group = np.stack([np.bincount(cells[pairs], minlength=size * size) for pairs in members.values()])
    table = per_group.sum(axis=0).reshape(size, size)

    generator = np.random.default_rng(seed)
    if len(per_group) < 2:
        resamples = 0  # drawn again, one group gives itself, which would look like certainty
    draws = generator.integers(0, len(per_group), size=(resamples, len(per_group)))
    tables = [per_group[draw].sum(axis=0).reshape(size, size) for draw in draws]
    tail = (1 - confidence) / 2
    scale = np.ix_(*2 * ([index[outcome] for outcome in _SCALE],))
    ordered = table[scale]
    return Agreement(
        n=len(labels),
        accuracy=float(np.trace(table) / table.sum()),
        kappa=_kappa(table),
        kappa_interval=_quantiles([_kappa(drawn) for drawn in tables], tail),
        weighted_kappa=_kappa(ordered, quadratic=True),
        weighted_n=int(ordered.sum()),
        weighted_excluded=len(labels) - int(ordered.sum()),
        confusion={label: {other: int(table[index[label], index[other]]) for other in OUTCOMES} for label in OUTCOMES},
        accuracy_interval=_quantiles([float(np.trace(drawn) / drawn.sum()) for drawn in tables], tail) or (0.0, 1.0),
        weighted_kappa_interval=_quantiles([_kappa(drawn[scale], quadratic=True) for drawn in tables], tail),
        pairs=tuple(zip(groups, labels, predicted, strict=True)) if groups is not None else (),
    )


def _kappa(table: NDArray[Any], *, quadratic: bool = False) -> float | None:
    """Cohen's kappa of a confusion matrix: 1 - observed disagreement / disagreement expected by chance.

    Disagreement counts 1 off the diagonal (Cohen 1960), or the squared distance on the scale (Cohen 1968).
    """
    import numpy as np

    total = table.sum()
    if total == 0:
        return None
    rows, columns = np.indices(table.shape)
    weights = (rows - columns) ** 2 if quadratic else (rows != columns).astype(int)
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / total
    by_chance = float((weights * expected).sum())
    return None if by_chance == 0 else 1 - float((weights * table).sum()) / by_chance


def _quantiles(values: Sequence[float | None], tail: float) -> tuple[float, float] | None:
    """Of the values that are defined; None where none is."""
    import numpy as np

    defined = [value for value in values if value is not None]
    if not defined:
        return None
    low, high = np.quantile(defined, [tail, 1 - tail])
    return float(low), float(high)
