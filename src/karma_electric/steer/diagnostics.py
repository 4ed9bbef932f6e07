"""The diagnostics of an axis: what was measured of it, per block and site, and their file beside the axis.

How the figures are made is diagnose.py's business, what they mean verdict.py's.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from karma_electric.core.artifact import read_json, write_json
from karma_electric.core.errors import ArtifactError
from karma_electric.models.blocks import SITES, Site

DIAGNOSTICS_FILE = "diagnostics.json"
FORMAT = "karma-electric-axis-diagnostics"
COMMAND = "karma axis extract MODEL OUT --recipe RECIPE"  # what extracts an axis again, and measures it
AGAIN = f"Make it again: {COMMAND}"
_VERSION = 1


@dataclass(frozen=True)
class SiteDiagnostics:
    """The figures of one site; every tuple has an entry per block, except `similarity`.

    Attributes:
        norm: |d|, length of the mean difference.
        noise: sqrt(tr(covariance) / n), the standard error of d as a vector: the length that chance alone would give.
        resample_cosine, _low, _high: cosine between the directions of two bootstrap resamples, mean and the range
            of 95% of the pairs. 0.5, not 0, for pure noise (both share the prompts).
        full_cosine: cosine between the direction of a resample and that of all prompts, mean.
        half_cosine: cosine between the directions of two halves of the prompts, mean over random splits.
        fresh_cosine: estimate of the cosine between the directions of two fresh sets of n prompts; 0 for pure noise.
        auc, _low, _high: share of pairs of unseen prompts whose away side projects higher, with its 95% interval.
        d_prime: the same projections, difference of means in standard deviations.
        own_higher: share of unseen prompts whose away side projects higher than their own toward side.
        random_auc, _low, _high: AUC of random directions, the better sign of each: mean and 95% range.
        random_d_prime, _low, _high: the same for |d'|.
        shuffled_auc, _low, _high: AUC when toward and away are swapped at random per prompt before fitting and
            scoring: mean and 95% range.
        shuffled_d_prime, _low, _high: the same for d'.
        similarity: row i holds the cosine of block i's direction with those of blocks i+1, i+2, ...
    """

    norm: tuple[float, ...]
    noise: tuple[float, ...]
    resample_cosine: tuple[float, ...]
    resample_cosine_low: tuple[float, ...]
    resample_cosine_high: tuple[float, ...]
    full_cosine: tuple[float, ...]
    half_cosine: tuple[float, ...]
    fresh_cosine: tuple[float, ...]
    auc: tuple[float, ...]
    auc_low: tuple[float, ...]
    auc_high: tuple[float, ...]
    d_prime: tuple[float, ...]
    own_higher: tuple[float, ...]
    random_auc: tuple[float, ...]
    random_auc_low: tuple[float, ...]
    random_auc_high: tuple[float, ...]
    random_d_prime: tuple[float, ...]
    random_d_prime_low: tuple[float, ...]
    random_d_prime_high: tuple[float, ...]
    shuffled_auc: tuple[float, ...]
    shuffled_auc_low: tuple[float, ...]
    shuffled_auc_high: tuple[float, ...]
    shuffled_d_prime: tuple[float, ...]
    shuffled_d_prime_low: tuple[float, ...]
    shuffled_d_prime_high: tuple[float, ...]
    similarity: tuple[tuple[float, ...], ...]

    @property
    def n_layers(self) -> int:
        """Number of decoder blocks."""
        return len(self.norm)

    def cosine(self, a: int, b: int) -> float:
        """Cosine between the directions of two blocks."""
        return 1.0 if a == b else self.similarity[min(a, b)][abs(a - b) - 1]


@dataclass(frozen=True)
class Diagnostics:
    """All figures, and how they were made.

    Attributes:
        n: prompts the axis was made from.
        projected: prompts the separation was measured on (at most `MAX_PROJECTED` of them).
        seed: of all random numbers.
        resamples, shuffles, random_directions, folds: how many of each.
        sites: the figures.
    """

    n: int
    projected: int
    seed: int
    resamples: int
    shuffles: int
    random_directions: int
    folds: int
    sites: dict[Site, SiteDiagnostics]


def prompts_needed(norm: float, noise: float, n: int, *, cosine: float) -> int | None:
    """How many prompts would bring the cosine between two resamples to `cosine`.

    With s = |d|^2 of the true direction and T the trace of the covariance of a prompt's difference, the cosine between
    two resamples of n prompts is `(s + T/n) / (s + 2 T/n)`; solved for n that is `T / s * (2c - 1) / (1 - c)`.
    `s` is estimated by `norm^2 - noise^2`, `T` by `n noise^2`.

    Returns:
        At least n, or None where the direction is no longer than noise (no number of prompts can be named then).
    """
    signal = norm**2 - noise**2
    if signal <= 0:
        return None
    return max(n, math.ceil(n * noise**2 / signal * (2 * cosine - 1) / (1 - cosine)))


def write_diagnostics(diagnostics: Diagnostics, path: Path) -> None:
    """Write diagnostics.json."""
    write_json(path, as_json(diagnostics))


def as_json(diagnostics: Diagnostics) -> dict[str, Any]:
    """The diagnostics as JSON."""
    return {"format": FORMAT, "version": _VERSION, **asdict(diagnostics)}


def read_diagnostics(path: Path) -> Diagnostics:
    """Read diagnostics.json.

    Raises:
        MissingError: no such file.
        ArtifactError: not diagnostics of ours, or damaged.
    """
    raw = read_json(path)
    if not isinstance(raw, dict) or raw.get("format") != FORMAT or raw.get("version") != _VERSION:
        raise ArtifactError(f"{path} holds no diagnostics of an axis (version {_VERSION}).", AGAIN)
    try:
        sites = {site: _site_from_json(raw["sites"][site]) for site in SITES if site in raw["sites"]}
        numbers = {f.name: int(raw[f.name]) for f in fields(Diagnostics) if f.name != "sites"}
        if not sites or len({figures.n_layers for figures in sites.values()}) > 1:
            raise ValueError("no sites, or sites of different models")
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"{path}: a field is missing or damaged ({error}).", AGAIN) from None
    return Diagnostics(**numbers, sites=sites)


def _site_from_json(raw: dict[str, Any]) -> SiteDiagnostics:
    columns: dict[str, Any] = {
        f.name: tuple(float(value) for value in raw[f.name]) for f in fields(SiteDiagnostics) if f.name != "similarity"
    }
    similarity = tuple(tuple(float(value) for value in row) for row in raw["similarity"])
    n_layers = len(columns["norm"])
    shapes = [len(column) for column in columns.values()] + [len(similarity)]
    values = [value for column in (*columns.values(), *similarity) for value in column]
    if set(shapes) != {n_layers} or [len(row) for row in similarity] != list(range(n_layers - 1, -1, -1)):
        raise ValueError("columns of different lengths")
    if not all(map(math.isfinite, values)):
        raise ValueError("a number is not finite")
    return SiteDiagnostics(**columns, similarity=similarity)
