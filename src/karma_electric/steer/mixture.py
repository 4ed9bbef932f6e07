"""Statistics of tokens of several kinds, in which each kind has its weight whatever its number of tokens.

    weight of a token of kind k        w_i = W_k / n_k, where the W_k sum to 1 over the kinds that have tokens
    weighted quantile of x_1 <= ... <= x_n, 0 <= q <= 1
        m_i = w_1 + ... + w_(i-1) + w_i / 2        half of a token's own weight lies below it
        p_i = (m_i - m_1) / (m_n - m_1)            0 at the smallest, 1 at the largest
        linear interpolation of the points (p_i, x_i) at q

With equal weights p_i = (i - 1) / (n - 1), the usual quantile with linear interpolation (definition 7 of Hyndman and
Fan, 1996, numpy's default). Tokens of weight 0 are left out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

RESAMPLES = 2000
_LEVEL = 0.95


def token_weights(kinds: Sequence[str], shares: Mapping[str, float]) -> NDArray[np.float64]:
    """Weight of every token, summing to 1.

    Args:
        kinds: kind of every token.
        shares: kind -> W, not negative; kinds without tokens are left out and the others scaled up.

    Raises:
        ValueError: no token has a positive weight.
    """
    import numpy as np

    named = np.asarray(kinds)
    weights = np.zeros(len(named))
    for kind, share in shares.items():
        chosen = named == kind
        if chosen.any():
            weights[chosen] = share / chosen.sum()
    if not weights.sum() > 0:
        raise ValueError(f"no token is of a kind with a positive weight ({dict(shares)})")
    scaled: NDArray[np.float64] = weights / weights.sum()
    return scaled


def weighted_quantile(values: NDArray[Any], weights: NDArray[Any], q: float) -> float:
    """The q-quantile of weighted values, as defined at the top.

    Args:
        values: [n].
        weights: [n], not negative, one of them positive; only their ratios matter.
        q: from 0 (the smallest value) to 1 (the largest).
    """
    import numpy as np

    if not 0.0 <= q <= 1.0:
        raise ValueError(f"q is {q}, expected 0 to 1")
    kept = np.asarray(weights) > 0
    order = np.argsort(np.asarray(values)[kept], kind="stable")
    x = np.asarray(values, dtype=np.float64)[kept][order]
    w = np.asarray(weights, dtype=np.float64)[kept][order]
    middles = np.cumsum(w) - w / 2  # m_i
    if len(x) == 1:
        return float(x[0])
    return float(np.interp(q, (middles - middles[0]) / (middles[-1] - middles[0]), x))


def weighted_moments(values: NDArray[Any], weights: NDArray[Any]) -> tuple[float, float]:
    """Weighted mean and standard deviation (no correction for the sample) of values [n] with weights [n]."""
    import numpy as np

    mean = float(np.average(values, weights=weights))
    return mean, float(np.sqrt(np.average((np.asarray(values, dtype=np.float64) - mean) ** 2, weights=weights)))


@dataclass(frozen=True)
class Interval:
    """An interval of the mean cap rate, and how it was made."""

    low: float
    high: float

    def as_dict(self) -> dict[str, Any]:
        """The form it has in cap.json."""
        return {"low": self.low, "high": self.high, "level": _LEVEL, "resamples": RESAMPLES, "over": "conversations"}


def rate_interval(
    capped: NDArray[Any], tokens: NDArray[Any], kinds: Sequence[str], shares: Mapping[str, float]
) -> Interval | None:
    """Percentile interval (95%) of a cap rate, by a bootstrap over conversations within each kind.

    Tokens of one conversation resemble each other, so conversations are drawn and not tokens; weights of the kinds are
    what they are by choice, so each kind is drawn from its own. With few conversations the interval is too narrow.

    Args:
        capped: capped tokens of every conversation, averaged over the blocks, [conversations].
        tokens: its tokens, [conversations].
        kinds: its kind.
        shares: kind -> W; kinds without conversations are left out and the others scaled up.

    Returns:
        None when a kind that counts has a single conversation: nothing is known of the spread between them then.
    """
    import numpy as np

    generator = np.random.default_rng(0)
    named = np.asarray(kinds)
    present = {kind: share for kind, share in shares.items() if share > 0 and (named == kind).any()}
    rates = np.zeros(RESAMPLES)
    for kind, share in present.items():
        members = np.flatnonzero(named == kind)
        if len(members) < 2:
            return None
        drawn = members[generator.integers(0, len(members), (RESAMPLES, len(members)))]
        rates += share / sum(present.values()) * capped[drawn].sum(1) / tokens[drawn].sum(1)
    low, high = np.quantile(rates, [(1 - _LEVEL) / 2, (1 + _LEVEL) / 2])
    return Interval(float(low), float(high))
