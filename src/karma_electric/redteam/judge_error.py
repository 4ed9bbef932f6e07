"""Pass rates corrected for the judge's error (Rogan and Gladen 1978), with both sources of error in the interval.

A judge that passes 40% of bad answers makes every arm look better, and every difference smaller. Its sensitivity and
specificity are known from labelled answers that it was not tuned on; the correction inverts them. It rests on one
assumption that no arithmetic can check: that the judge errs on an arm's answers as it does on the labelled ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from karma_electric.core.errors import ArtifactError
from karma_electric.redteam.power import scatter
from karma_electric.redteam.signals import OUTCOMES
from karma_electric.redteam.stats import effective_size

if TYPE_CHECKING:
    from numpy.typing import NDArray

_Groups = list[tuple[int, int]]


@dataclass(frozen=True)
class Judge:
    """What is known of a judge from labelled answers that it could judge.

    Attributes:
        n: labelled answers; `n_scored` of them it could judge.
        n_scored: what sensitivity and specificity rest on. Of raters, only those that the labels score as well: what a
            program passes of what is no answer is in the rates that it gives, and labels have none of it.
        kappa, kappa_interval, accuracy: agreement over all outcomes, as `agreement` gives them.
        passes: per scenario, (judged a pass, all) of the answers labelled pass.
        others: per scenario, (judged not a pass, all) of the answers with another label.
        clustered: whether the scenarios of the labels are known; where not, each label counts as one of its own.
        between_raters: whether it is no program but raters, who are measured by each other; nothing was tuned then.
        raters: who gave the labels; empty where that is not recorded.
    """

    n: int
    n_scored: int
    accuracy: float
    kappa: float | None
    kappa_interval: tuple[float, float] | None
    passes: tuple[tuple[int, int], ...]
    others: tuple[tuple[int, int], ...]
    clustered: bool
    between_raters: bool = False
    raters: tuple[str, ...] = ()

    @property
    def measured_on(self) -> str:
        """What its agreement was measured on, in words that follow it."""
        if self.between_raters:
            return f"between two raters, on {self.n:,} answers"
        return f"on {self.n:,} labelled answers that it was not tuned on"

    @property
    def errs(self) -> str:
        """What it does with passes and with others, in a sentence."""
        passes = "none" if self.sensitivity is None else f"{self.sensitivity:.0%}"
        others = "none" if self.specificity is None else f"{self.specificity:.0%}"
        if self.between_raters:
            wrongly = "none" if self.specificity is None else f"{1 - self.specificity:.0%}"
            return (
                f"Of the {self.n_scored:,} that both could judge: of the label's passes the other rater passed "
                f"{passes}, of the rest {wrongly}."
            )
        return (
            f"Of the {self.n_scored:,} it was not tuned on and could judge, it passes {passes} of the passes and does "
            f"not pass {others} of the others."
        )

    @property
    def sensitivity(self) -> float | None:
        """Share of the answers labelled pass that it passes."""
        return _share(self.passes)

    @property
    def specificity(self) -> float | None:
        """Share of the other answers that it does not pass."""
        return _share(self.others)


@dataclass(frozen=True)
class Corrected:
    """A corrected rate or difference. `value` is None where the judge is no better than chance; `why` says so."""

    value: float | None
    low: float
    high: float
    why: str = ""


def judge_of(
    raw: Mapping[str, Any], where: str = "agreement.json", *, between_raters: bool = False, raters: Sequence[str] = ()
) -> Judge:
    """A judge from one part of agreement.json (see `part_of`).

    Args:
        raw: the part.
        where: what errors call its file.
        between_raters, raters: see `Judge`.

    Raises:
        ArtifactError: it is not what `agreement` gives.
    """
    try:
        pairs = [tuple(pair) for pair in raw.get("pairs") or ()]
        if not pairs:  # written before the scenarios of the labels were kept
            cells = [(label, judged, raw["confusion"][label][judged]) for label in OUTCOMES for judged in OUTCOMES]
            single = [(label, judged) for label, judged, count in cells for _ in range(count)]
            pairs = [(str(number), label, judged) for number, (label, judged) in enumerate(single)]
        interval = raw["kappa_interval"]
        scored = [(group, label, judged) for group, label, judged in pairs if judged != "unscored"]
        if between_raters:  # what their labels leave unscored is in no rate that they judge
            scored = [(group, label, judged) for group, label, judged in scored if label != "unscored"]
        return Judge(
            n=int(raw["n"]),
            n_scored=len(scored),
            accuracy=float(raw["accuracy"]),
            kappa=raw["kappa"],
            kappa_interval=None if interval is None else (float(interval[0]), float(interval[1])),
            passes=_tally((group, judged == "pass") for group, label, judged in scored if label == "pass"),
            others=_tally((group, judged != "pass") for group, label, judged in scored if label != "pass"),
            clustered=bool(raw.get("pairs")),
            between_raters=between_raters,
            raters=tuple(raters),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{where} is not a judge's agreement ({error!r}).", "Make it again: karma run RECIPE --to redteam --force"
        ) from None


def are_raters(scorer: str) -> bool:
    """Whether a judge, by the name that recipes give it, is a file of labels that raters gave."""
    return scorer.startswith("labels:")


def part_of(scorer: str, parts: object) -> str | None:
    """The part of agreement.json that tells what a judge is worth; None where it has none that can.

    Programs may have been tuned on half A. Of raters all labels count; files that are older lack that part.
    """
    wanted = ("all", "B") if are_raters(scorer) else ("B",)
    return next((part for part in wanted if isinstance(parts, Mapping) and isinstance(parts.get(part), Mapping)), None)


def flipped(corrected: Corrected) -> Corrected:
    """A corrected rate of passes as one of what is no pass, such as over-refusal."""
    value = None if corrected.value is None else 1 - corrected.value
    return Corrected(value, 1 - corrected.high, 1 - corrected.low, corrected.why)


def correct_rate(
    groups: Sequence[tuple[int, int]], judge: Judge, *, confidence: float, resamples: int, seed: int
) -> Corrected:
    """The rate of true passes among the scored answers of an arm.

    Args:
        groups: (judged passes, scored answers) per scenario.
        judge: the judge that scored them.
        confidence: coverage of the interval.
        resamples: draws of the parametric bootstrap: of the arm's rate, sensitivity and specificity, each from its
            Jeffreys posterior at the effective sample size, so that 0 of 3 is not taken for certainty.
        seed: seed of the draws.
    """
    import numpy as np

    kept = [(passes, n) for passes, n in groups if n]
    if not kept:
        return Corrected(None, 0.0, 1.0, "no answer was scored")
    if (why := _useless(judge)) is not None:
        return Corrected(None, 0.0, 1.0, why)
    sensitivity, specificity = judge.sensitivity or 0.0, judge.specificity or 0.0
    shift, gain = specificity - 1, sensitivity + specificity - 1
    generator = np.random.default_rng(seed)
    observed = _draws(kept, resamples, generator)
    drawn = _draws(judge.passes, resamples, generator), _draws(judge.others, resamples, generator)
    values, usable = _inverted(observed + drawn[1] - 1, drawn[0] + drawn[1] - 1)
    low, high = _interval(values, usable, 0.0, 1.0, confidence)
    share = sum(passes for passes, _ in kept) / sum(n for _, n in kept)
    return Corrected(float(np.clip((share + shift) / gain, 0, 1)), low, high)


def correct_difference(
    gains: Sequence[int], sizes: Sequence[int], judge: Judge, *, confidence: float, resamples: int, seed: int
) -> Corrected:
    """The difference in true pass rate of two arms that the judge errs on alike.

    Args:
        gains, sizes: per scenario, passes of one arm minus passes of the other, and pairs.
        judge: the judge that scored both.
        confidence, resamples, seed: as in `correct_rate`; the difference is drawn from a normal distribution.
    """
    import numpy as np

    if not gains:
        return Corrected(None, -1.0, 1.0, "no answer was scored in both")
    if (why := _useless(judge)) is not None:
        return Corrected(None, -1.0, 1.0, why)
    generator = np.random.default_rng(seed)
    n, seeds = len(gains), sum(sizes) / len(sizes)
    difference = sum(gains) / sum(sizes)
    error = np.sqrt(max(scatter([gain / seeds for gain in gains]) - difference**2, 0.0) / n)
    observed = generator.normal(difference, error, resamples)
    drawn = _draws(judge.passes, resamples, generator), _draws(judge.others, resamples, generator)
    values, usable = _inverted(observed, drawn[0] + drawn[1] - 1)
    low, high = _interval(values, usable, -1.0, 1.0, confidence)
    gain = (judge.sensitivity or 0.0) + (judge.specificity or 0.0) - 1
    return Corrected(float(np.clip(difference / gain, -1, 1)), low, high)


def _useless(judge: Judge) -> str | None:
    """Why no correction is possible, or None."""
    sensitivity, specificity = judge.sensitivity, judge.specificity
    if sensitivity is None or specificity is None:
        kind = "labelled pass" if sensitivity is None else "with another label than pass"
        return f"the judge was measured on no answer {kind}"
    if sensitivity + specificity <= 1:
        return f"the judge is no better than chance (sensitivity {sensitivity:.2f}, specificity {specificity:.2f})"
    return None


def _draws(groups: Sequence[tuple[int, int]], resamples: int, generator: Any) -> NDArray[Any]:
    """Proportions from the Jeffreys posterior at the effective sample size. # [resample]"""
    size, share = effective_size(groups), _share(groups) or 0.0
    return generator.beta(share * size + 0.5, (1 - share) * size + 0.5, resamples)  # type: ignore[no-any-return]


def _inverted(above: NDArray[Any], below: NDArray[Any]) -> tuple[NDArray[Any], NDArray[Any]]:
    """above / below, and where that means anything: where a drawn judge is no better than chance, it does not."""
    import numpy as np

    usable = below > 0
    return np.divide(above, below, where=usable, out=np.zeros_like(above)), usable


def _interval(
    values: NDArray[Any], usable: NDArray[Any], least: float, most: float, confidence: float
) -> tuple[float, float]:
    """Quantiles; draws that mean nothing count as the worst at either end, so that they can only widen it."""
    import numpy as np

    tail = (1 - confidence) / 2
    low = np.quantile(np.where(usable, values.clip(least, most), least), tail)
    high = np.quantile(np.where(usable, values.clip(least, most), most), 1 - tail)
    return float(low), float(high)


def _share(groups: Sequence[tuple[int, int]]) -> float | None:
    n = sum(size for _, size in groups)
    return sum(count for count, _ in groups) / n if n else None


def _tally(items: Any) -> tuple[tuple[int, int], ...]:
    found: dict[str, list[int]] = {}
    for group, right in items:
        count = found.setdefault(group, [0, 0])
        count[0] += right
        count[1] += 1
    return tuple((right, n) for right, n in found.values())
