"""What the diagnostics of an axis mean, in sentences, judged at the blocks that are capped or would be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from karma_electric.core.errors import InputError
from karma_electric.models.blocks import Site
from karma_electric.steer.diagnostics import Diagnostics, SiteDiagnostics, prompts_needed

Level = Literal["ok", "warning", "unstable"]
LEVELS: tuple[Level, ...] = ("ok", "warning", "unstable")

# cos(d, true d)^2 is about the cosine between two sets of prompts: at 0.95 a twentieth of the squared length points
# elsewhere, so a projection on the axis is within 3% of one on the true direction.
STABLE_COSINE = 0.95
# Below this more than a tenth does: caps from two sets of prompts would act on visibly different directions.
UNSTABLE_COSINE = 0.90
# d is no longer than 1.25 times what noise alone gives: the estimate of |d|^2 without noise is then less than half of
# the noise (1.25^2 - 1 = 0.56) and too uncertain itself to say how many prompts would be needed.
NOISE_RATIO = 1.25
# Bootstrap and DeLong intervals cover less than they say with fewer values than about this.
FEW_PROMPTS = 20
# One pair in four the wrong way round (d' of about 1): the two sides overlap too much to tell one text from the other.
OVERLAPPING_AUC = 0.75
# Capping one of two directions that share 81% of their squared length changes the other as well.
SAME_DIRECTION = 0.90


@dataclass(frozen=True)
class Finding:
    """One sentence, and how serious it is."""

    level: Level
    text: str


def overall(findings: Sequence[Finding]) -> Level:
    """The most serious level among the findings."""
    return max((finding.level for finding in findings), key=LEVELS.index, default="ok")


def judge(diagnostics: Diagnostics, site: Site, layers: Sequence[int], *, what: str = "blocks") -> list[Finding]:
    """Say what the diagnostics mean for a cap at some blocks. Each finding is about the worst of them.

    Args:
        diagnostics: of the axis.
        site: where the cap acts.
        layers: blocks it acts on, in order.
        what: what the blocks are called, such as "capped blocks".

    Raises:
        InputError: the diagnostics do not have that site or those blocks.
    """
    figures = diagnostics.sites.get(site)
    if figures is None:
        raise InputError(
            f"There are no diagnostics for the site {site!r}.", f"There are: {', '.join(diagnostics.sites)}."
        )
    if not layers or not all(0 <= layer < figures.n_layers for layer in layers):
        raise InputError(f"Blocks {list(layers)} are not all in 0-{figures.n_layers - 1}.", "Choose others.")
    where = f"{what} {span(layers)}"
    findings = [
        *_few(diagnostics),
        _stability(diagnostics, figures, layers, where),
        _separation(figures, layers, where),
        *_overlap(figures, layers),
        _random(figures, layers, where),
    ]
    if overall(findings) == "unstable":
        return findings  # how directions that are not known lie to each other says nothing
    return [*findings, *_similarity(figures, layers, where), _elsewhere(figures, layers, where)]


def span(layers: Sequence[int]) -> str:
    """Blocks as ranges: `21-26`, `3, 7-9`."""
    parts: list[list[int]] = []
    for layer in sorted(layers):
        if parts and layer == parts[-1][-1] + 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return ", ".join(f"{part[0]}-{part[-1]}" if len(part) > 1 else f"{part[0]}" for part in parts)


def _few(diagnostics: Diagnostics) -> list[Finding]:
    if diagnostics.n >= FEW_PROMPTS:
        return []
    return [
        Finding(
            "warning",
            f"with {diagnostics.n} prompts the intervals below are themselves only rough "
            f"(from about {FEW_PROMPTS} on they hold)",
        )
    ]


def _stability(diagnostics: Diagnostics, figures: SiteDiagnostics, layers: Sequence[int], where: str) -> Finding:
    n = diagnostics.n
    worst = min(layers, key=lambda layer: figures.resample_cosine[layer])
    cosine = figures.resample_cosine[worst]
    low, high = figures.resample_cosine_low[worst], figures.resample_cosine_high[worst]
    agree = f"two resamples agree at cosine {_two(cosine)} ({_two(low)} to {_two(high)}) at block {worst}"
    least = f", the least stable of the {where}" if len(layers) > 1 else ""
    if cosine >= STABLE_COSINE:
        return Finding("ok", f"{n} prompts are enough: {agree}{least}; at least {STABLE_COSINE} is expected")
    norm, noise = figures.norm[worst], figures.noise[worst]
    if norm <= NOISE_RATIO * noise:
        return Finding(
            "unstable",
            f"{n} prompts show no direction at block {worst}{least}: the difference is {_ratio(norm, noise)} "
            f"as long as noise alone would make it (two resamples agree at cosine {_two(cosine)}, noise gives 0.5); "
            "the two prompts may not differ there, or far more prompts are needed",
        )
    needed = prompts_needed(norm, noise, n, cosine=STABLE_COSINE)
    return Finding(
        "warning" if cosine >= UNSTABLE_COSINE else "unstable",
        f"{n} prompts are too few: {agree}{least}; at least {STABLE_COSINE} is expected, "
        f"which takes about {_rounded_up(needed or n)} prompts",
    )


def _separation(figures: SiteDiagnostics, layers: Sequence[int], where: str) -> Finding:
    at = min(layers, key=lambda layer: figures.auc[layer] - figures.shuffled_auc_high[layer])
    area, low, high = figures.auc[at], figures.auc_low[at], figures.auc_high[at]
    chance = f"shuffled labels ({_two(figures.shuffled_auc[at])}, 95% up to {_two(figures.shuffled_auc_high[at])})"
    measured = f"AUC {_two(area)}, {_two(low)} to {_two(high)}, at block {at}"
    least = f", the least of the {where}" if len(layers) > 1 else ""
    limit = figures.shuffled_auc_high[at]
    if low > limit:
        return Finding("ok", f"the separation on unseen prompts ({measured}{least}) is far above {chance}")
    if area > limit:
        return Finding(
            "warning", f"the separation on unseen prompts ({measured}{least}) is above {chance}, but not clearly"
        )
    failing = [layer for layer in layers if figures.auc[layer] <= figures.shuffled_auc_high[layer]]
    return Finding(
        "unstable",
        f"not shown to be real at {_blocks(failing)}: the separation on unseen prompts ({measured}) is no better than "
        f"that of {chance}",
    )


def _overlap(figures: SiteDiagnostics, layers: Sequence[int]) -> list[Finding]:
    weak = [layer for layer in layers if figures.auc[layer] < OVERLAPPING_AUC]
    if not weak:
        return []
    at = min(weak, key=lambda layer: figures.auc[layer])
    return [
        Finding(
            "warning",
            f"the two sides overlap at {_blocks(weak)}: AUC {_two(figures.auc[at])} at block {at}, so "
            f"{1 - figures.auc[at]:.0%} of pairs are the wrong way round",
        )
    ]


def _random(figures: SiteDiagnostics, layers: Sequence[int], where: str) -> Finding:
    # d', not AUC: where everything separates, both AUCs are near 1 and only the distance still tells them apart
    at = min(layers, key=lambda layer: figures.d_prime[layer] - figures.random_d_prime_high[layer])
    chance = f"{figures.random_d_prime[at]:.1f} on average, 95% up to {figures.random_d_prime_high[at]:.1f}"
    least = f", the closest of the {where}" if len(layers) > 1 else ""
    failing = [layer for layer in layers if figures.d_prime[layer] <= figures.random_d_prime_high[layer]]
    if failing:
        return Finding(
            "unstable",
            f"not distinguishable from a random direction at {_blocks(failing)}: d' {figures.d_prime[at]:.1f} at block "
            f"{at}, where random directions reach {chance}",
        )
    return Finding(
        "ok",
        f"better than a random direction: d' {figures.d_prime[at]:.1f} at block {at}{least}; random directions reach "
        f"{chance}",
    )


def _similarity(figures: SiteDiagnostics, layers: Sequence[int], where: str) -> list[Finding]:
    if len(layers) < 2:
        return []
    pairs = [figures.cosine(a, b) for i, a in enumerate(layers) for b in layers[i + 1 :]]
    if min(pairs) >= SAME_DIRECTION:
        return [Finding("ok", f"the directions at {where} are nearly the same (cosine at least {_two(min(pairs))})")]
    neighbours = [figures.cosine(a, b) for a, b in pairwise(layers)]
    ends = figures.cosine(layers[0], layers[-1])
    return [
        Finding(
            "ok",
            f"the direction turns over the {where}: neighbours agree at cosine {_two(min(neighbours))} to "
            f"{_two(max(neighbours))}, the first and the last at {_two(ends)}",
        )
    ]


def _elsewhere(figures: SiteDiagnostics, layers: Sequence[int], where: str) -> Finding:
    best = max(range(figures.n_layers), key=lambda layer: (figures.d_prime[layer], layer in layers))
    here = max(layers, key=lambda layer: figures.d_prime[layer])
    if best in layers:
        return Finding("ok", f"of all blocks the two sides are furthest apart at block {best} (d' {_d(figures, best)})")
    return Finding(
        "ok",
        f"of all blocks the two sides are furthest apart at block {best} (d' {_d(figures, best)}), outside the {where} "
        f"(at most {_d(figures, here)}, at block {here})",
    )


def _d(figures: SiteDiagnostics, layer: int) -> str:
    return f"{figures.d_prime[layer]:.1f}"


def _blocks(layers: Sequence[int]) -> str:
    return f"block{'s' if len(layers) > 1 else ''} {span(layers)}"


def _ratio(norm: float, noise: float) -> str:
    return f"only {norm / noise:.2f} times" if noise > 0 else "not"


def _two(value: float) -> str:
    """Two digits, or as many as keep a value that is not 1 from looking like it."""
    for digits in (2, 3, 4):
        text = f"{value:.{digits}f}"
        if text != f"{1:.{digits}f}" or value == 1.0:
            return text if value != 1.0 else "1"
    return "above 0.9999"


def _rounded_up(n: int) -> int:
    """Two significant digits, upwards: the estimate is no better than that."""
    step = int(10 ** max(len(str(n)) - 2, 0))
    return -(-n // step) * step
