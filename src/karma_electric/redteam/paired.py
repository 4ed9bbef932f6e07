"""Two arms on the same scenarios and seeds: the difference in pass rate, and what may be said of it.

The scenario is what is drawn from a population of attacks; seeds are repetitions inside it. So resamples draw whole
scenarios with all their seeds, and the test swaps the arms within whole scenarios. Drawing seeds again inside the
drawn scenarios would count their noise twice; testing all pairs as if they were independent would count each scenario
as many times as it has seeds.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from karma_electric.core.errors import DataError
from karma_electric.redteam.power import scatter, scenarios_needed, smallest_effect
from karma_electric.redteam.signals import Outcome, Verdict
from karma_electric.redteam.stats import sign_flip, wilson

Seeded = Mapping[int, Sequence[Verdict]]  # seed -> the verdicts under it, one per scenario
EFFECTS = (0.05, 0.10)  # differences whose price in scenarios is told


@dataclass(frozen=True)
class Bounds:
    """The difference over all answers in common, were the unscored ones judged.

    Attributes:
        all_fail: all of them as not passed, in both arms.
        all_pass: all of them as passed, in both arms.
        lowest, highest: those of one arm as passed and those of the other as not: no judgement can lead beyond.
    """

    all_fail: float
    all_pass: float
    lowest: float
    highest: float


@dataclass(frozen=True)
class PairedComparison:
    """Arm b against arm a on the answers that both were scored on.

    Attributes:
        n_pairs: answers (a scenario under a seed) scored in both arms; what follows rests on these where not said.
        n_scenarios: scenarios that these belong to.
        n_unscored: pairs dropped because one or both answers are unscored.
        n_unmatched: answers in only one of the arms, dropped.
        seeds: the seeds that both arms have.
        pass_rate_a, pass_rate_b: shares of the pairs passed; None without pairs.
        difference: pass rate of b minus that of a; None without pairs.
        interval: its paired bootstrap interval over scenarios (see `compare`); None without pairs.
        only_a_passed, only_b_passed: the discordant pairs, each way.
        a_better, b_better: scenarios in which that arm passed more often; with one seed the same as the discordant.
        p_value: exact sign-flip test over scenarios; with one seed the exact two-sided McNemar test.
        bounds: what the unscored answers could make of the difference; None where no answer is in common.
        smallest_effect: the true difference that as many scenarios find four times in five; None where none is.
        scenarios_needed: "0.05" and "0.1" -> scenarios with which that true difference is found four times in five;
            empty without pairs.
        reading: what may and may not be claimed, in words.
    """

    n_pairs: int
    n_scenarios: int
    n_unscored: int
    n_unmatched: int
    seeds: tuple[int, ...]
    pass_rate_a: float | None
    pass_rate_b: float | None
    difference: float | None
    interval: tuple[float, float] | None
    only_a_passed: int
    only_b_passed: int
    a_better: int
    b_better: int
    p_value: float
    bounds: Bounds | None
    smallest_effect: float | None
    scenarios_needed: dict[str, int]
    reading: str


@dataclass(frozen=True)
class Pair:
    """Both arms' outcomes on one scenario under one seed."""

    scenario_id: str
    seed: int
    category: str
    a: Outcome
    b: Outcome

    @property
    def is_scored(self) -> bool:
        """Whether both answers could be judged."""
        return "unscored" not in (self.a, self.b)

    @property
    def gain(self) -> int:
        """1 where only b passed, -1 where only a did, else 0."""
        return (self.b == "pass") - (self.a == "pass")


def pair_up(a: Seeded, b: Seeded, *, name_a: str = "a", name_b: str = "b") -> list[Pair]:
    """The answers that both arms have, in the order of a.

    Raises:
        DataError: an arm holds two verdicts on one scenario under one seed.
    """
    pairs = []
    for seed in a:
        if seed not in b:
            continue
        first, second = _by_scenario(a[seed], name_a), _by_scenario(b[seed], name_b)
        pairs += [
            Pair(key, seed, verdict.category, verdict.outcome, second[key].outcome)
            for key, verdict in first.items()
            if key in second
        ]
    return pairs


def compare(
    a: Seeded,
    b: Seeded,
    *,
    name_a: str = "a",
    name_b: str = "b",
    confidence: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> PairedComparison:
    """Compare two arms, paired by scenario and seed.

    A pair with an unscored answer on either side is dropped and counted. The interval is a percentile bootstrap over
    scenarios, each with all its seeds. Where all scenarios differ alike (not at all, or all in full) every resample
    gives just that, which would look like certainty; the Wilson bound of 0 in n then tells how many may be otherwise.

    Args:
        a, b: verdicts of the two arms by seed; differences are b minus a.
        name_a, name_b: what the reading calls them.
        confidence: coverage of the interval; the test is read at 1 minus it.
        resamples: bootstrap draws.
        seed: seed of the bootstrap.

    Raises:
        DataError: an arm holds two verdicts on one scenario under one seed.
    """
    pairs = pair_up(a, b, name_a=name_a, name_b=name_b)
    scored = [pair for pair in pairs if pair.is_scored]
    n = len(scored)
    gains, sizes = gains_by_scenario(scored)
    passed_a, passed_b = (sum(getattr(pair, side) == "pass" for pair in scored) for side in ("a", "b"))
    p, alpha = sign_flip(gains), 1 - confidence
    interval = difference_interval(gains, sizes, confidence=confidence, resamples=resamples, seed=seed) if n else None
    seeds = n / len(gains) if n else 1.0  # answers per scenario: fewer than the seeds where some are unscored
    spread = scatter([gain / seeds for gain in gains])
    result = PairedComparison(
        n_pairs=n,
        n_scenarios=len(gains),
        n_unscored=len(pairs) - n,
        n_unmatched=_answers(a) + _answers(b) - 2 * len(pairs),
        seeds=tuple(number for number in a if number in b),
        pass_rate_a=passed_a / n if n else None,
        pass_rate_b=passed_b / n if n else None,
        difference=sum(gains) / n if n else None,
        interval=interval,
        only_a_passed=sum(pair.gain < 0 for pair in scored),
        only_b_passed=sum(pair.gain > 0 for pair in scored),
        a_better=sum(gain < 0 for gain in gains),
        b_better=sum(gain > 0 for gain in gains),
        p_value=p,
        bounds=_bounds(pairs) if pairs else None,
        smallest_effect=smallest_effect(spread, len(gains), seeds=seeds, alpha=alpha) if n else None,
        scenarios_needed={
            f"{effect:g}": scenarios_needed(spread, effect, seeds=seeds, alpha=alpha) for effect in EFFECTS if n
        },
        reading="",
    )
    return replace(result, reading=read(result, name_a, name_b, p=p, alpha=alpha))


def gains_by_scenario(scored: Iterable[Pair]) -> tuple[list[int], list[int]]:
    """Per scenario, passes of b minus passes of a, and the number of pairs."""
    gains: dict[str, int] = {}
    sizes: Counter[str] = Counter()
    for pair in scored:
        gains[pair.scenario_id] = gains.get(pair.scenario_id, 0) + pair.gain
        sizes[pair.scenario_id] += 1
    return list(gains.values()), [sizes[key] for key in gains]


def difference_interval(
    gains: Sequence[int], sizes: Sequence[int], *, confidence: float, resamples: int, seed: int
) -> tuple[float, float]:
    """Percentile bootstrap interval of sum(gains) / sum(sizes), drawing scenarios."""
    import numpy as np
    from scipy.stats import bootstrap

    if any(gains) and len(gains) == 1:
        return -1.0, 1.0  # a single scenario says nothing about others
    first = gains[0] / sizes[0]
    if all(gain / size == first for gain, size in zip(gains, sizes, strict=True)):
        # as many scenarios as 0 in n allows may be otherwise, and by as much as can be
        reach = (1 + abs(first)) * wilson(0, len(gains), confidence)[1]
        return max(-1.0, first - reach), min(1.0, first + reach)
    drawn = bootstrap(
        (np.array(gains), np.array(sizes)),
        lambda gain, size, axis: gain.sum(axis=axis) / size.sum(axis=axis),
        paired=True,
        vectorized=True,
        method="percentile",
        confidence_level=confidence,
        n_resamples=resamples,
        batch=1000,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return float(drawn.low), float(drawn.high)


def _bounds(pairs: Sequence[Pair]) -> Bounds:
    n = len(pairs)
    passed_a, passed_b = sum(pair.a == "pass" for pair in pairs), sum(pair.b == "pass" for pair in pairs)
    open_a, open_b = sum(pair.a == "unscored" for pair in pairs), sum(pair.b == "unscored" for pair in pairs)
    return Bounds(
        all_fail=(passed_b - passed_a) / n,
        all_pass=(passed_b + open_b - passed_a - open_a) / n,
        lowest=(passed_b - passed_a - open_a) / n,
        highest=(passed_b + open_b - passed_a) / n,
    )


def _answers(arm: Seeded) -> int:
    return sum(len(verdicts) for verdicts in arm.values())


def _by_scenario(verdicts: Sequence[Verdict], name: str) -> Mapping[str, Verdict]:
    found = {verdict.scenario_id: verdict for verdict in verdicts}
    if len(found) != len(verdicts):
        twice = next(key for key, times in Counter(v.scenario_id for v in verdicts).items() if times > 1)
        raise DataError(f"arm {name}: two verdicts on scenario {twice!r}, expected one.", "Run the arm again.")
    return found


def read(result: PairedComparison, name_a: str, name_b: str, *, p: float, alpha: float) -> str:
    """What may and may not be claimed, in words.

    Args:
        result: the comparison.
        name_a, name_b: what the arms are called.
        p: the p value that decides, which may have been corrected for several comparisons.
        alpha: the level it is held against.
    """
    dropped = f" ({result.n_unscored} more dropped as unscored)" if result.n_unscored else ""
    if result.interval is None:
        return f"No scenario was scored in both {name_a} and {name_b}{dropped}, so nothing may be claimed."
    assert result.pass_rate_a is not None
    assert result.pass_rate_b is not None
    passed_a, passed_b = (round(rate * result.n_pairs) for rate in (result.pass_rate_a, result.pass_rate_b))
    scenarios = f"{result.n_scenarios} scenario{'' if result.n_scenarios == 1 else 's'}"
    answers = f"{result.n_pairs} answers to " if result.n_pairs != result.n_scenarios else ""
    of = f"{answers}{scenarios} scored in both{dropped}"
    counts = f"{name_b} passed {passed_b} and {name_a} {passed_a} of the {of}"
    low, high = (round(100 * end) for end in result.interval)  # whole numbers have no negative zero
    span = f"{low:+d} to {high:+d} points"
    p_text = "p < 0.001" if p < 0.001 else f"p = {p:.3f}"
    if p >= alpha:
        seen = (
            "So few scenarios cannot show a difference of any size."
            if result.smallest_effect is None
            else f"Only a true difference of {100 * result.smallest_effect:.0f} points or more would be found four "
            "times in five."
        )
        return (
            f"{counts}: a difference may not be claimed, nor that they are equal "
            f"({result.a_better + result.b_better} scenarios differ, {p_text}, plausible range {span}). {seen}"
        )
    better, worse = (name_b, name_a) if (result.difference or 0) > 0 else (name_a, name_b)
    claim = (
        f"{counts}: {better} passes more often than {worse} on this suite under this scorer "
        f"({p_text}, {span}); nothing may be claimed about other prompts or other sampling."
    )
    bounds = result.bounds
    if bounds is None or bounds.lowest > 0 or bounds.highest < 0:
        return claim
    return (
        f"{claim} It leaves out what is unscored: were that judged, the difference could lie anywhere from "
        f"{100 * bounds.lowest:+.0f} to {100 * bounds.highest:+.0f} points."
    )
