"""Mean and variance of a stream of tensors, in float64: memory does not depend on how many there were.

Chan, Golub and LeVeque's update (1979): parts are merged by their counts, means and sums of squared deviations, so
nothing cancels where a variance is small beside its mean, and parts of several processes are merged like those of one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared deviations from it, float64 [...]."""

    n: int
    mean: torch.Tensor
    squares: torch.Tensor

    @classmethod
    def of(cls, values: torch.Tensor) -> Moments:
        """Of values [n, ...], over the first dimension."""
        exact = values.double()
        mean = exact.mean(0) if len(exact) else exact.new_zeros(exact.shape[1:])
        return cls(len(exact), mean, (exact - mean).square().sum(0))

    def __add__(self, other: Moments) -> Moments:
        """Those of both together."""
        n = self.n + other.n
        if n == 0:
            return self
        difference = other.mean - self.mean
        return Moments(
            n,
            self.mean + difference * (other.n / n),
            self.squares + other.squares + difference.square() * (self.n * other.n / n),
        )

    @property
    def variance(self) -> torch.Tensor:
        """Of the sample (n - 1 in the denominator); zero for a single value, which has none."""
        return self.squares / max(self.n - 1, 1)


@dataclass(frozen=True)
class SiteSums:
    """What the first pass keeps of one site: moments over prompts, each [n_layers, hidden].

    Attributes:
        toward: of the persona-prompted activations.
        away: of the mean over the away prompts.
        difference: of `away - toward`, prompt by prompt; its mean is the direction before it is scaled.
        even: of the difference on the prompts with an even number alone.
    """

    toward: Moments
    away: Moments
    difference: Moments
    even: Moments

    @classmethod
    def of(cls, toward: torch.Tensor, away: torch.Tensor, first: int) -> SiteSums:
        """Of one chunk [n_prompts, n_layers, hidden], whose first prompt has the number `first`."""
        difference = away.double() - toward.double()
        even = difference[first % 2 :: 2]
        return cls(Moments.of(toward), Moments.of(away), Moments.of(difference), Moments.of(even))

    def __add__(self, other: SiteSums) -> SiteSums:
        """Those of both together."""
        return SiteSums(
            self.toward + other.toward,
            self.away + other.away,
            self.difference + other.difference,
            self.even + other.even,
        )

    def summary(self) -> dict[str, list[float]]:
        """Per block, lengths of vectors: what the direction's is to be compared with.

        `standard_error` is that of the mean difference (root of its variances' sum over n): a mean of noise alone would
        be about as long, and `norm_to_error` about 1. `spread_toward` and `spread_away` are standard deviations over
        prompts.
        """
        error = (self.difference.variance.sum(-1) / self.difference.n).sqrt()
        values = {
            "standard_error": error,
            "norm_to_error": self.difference.mean.norm(dim=-1) / error.clamp_min(1e-30),
            "spread_toward": self.toward.variance.sum(-1).sqrt(),
            "spread_away": self.away.variance.sum(-1).sqrt(),
        }
        return {name: [float(f"{x:.5g}") for x in value] for name, value in values.items()}


def separation(toward: torch.Tensor, away: torch.Tensor) -> dict[str, list[float]]:
    """How well a direction separates the two sides, from the projections [n_prompts, n_layers] of each.

    Per block: d' (difference of means over pooled standard deviation) and the share of prompts whose away side projects
    higher than toward. Prompts that the direction was not made from tell more than those it was.
    """
    if len(toward) < 2:  # nothing is spread
        return {"d_prime": [0.0] * toward.shape[1], "away_higher": [0.0] * toward.shape[1]}
    spread = ((toward.var(0) + away.var(0)) / 2).sqrt().clamp_min(1e-12)
    return {
        "d_prime": [round(float(x), 4) for x in (away.mean(0) - toward.mean(0)) / spread],
        "away_higher": [round(float(x), 4) for x in (away > toward).float().mean(0)],
    }
