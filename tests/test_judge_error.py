"""Rates corrected for the judge's error."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from karma_electric.core.errors import ArtifactError
from karma_electric.redteam.agreement import agreement
from karma_electric.redteam.judge_error import Corrected, Judge, correct_difference, correct_rate, judge_of
from karma_electric.redteam.signals import Outcome
from karma_electric.redteam.stats import rate


def judge(sensitivity: float, specificity: float, n: int = 1000) -> Judge:
    """A judge measured on n passes and n others, each of a scenario of its own."""

    def tally(share: float) -> tuple[tuple[int, int], ...]:
        right = round(share * n)
        return ((1, 1),) * right + ((0, 1),) * (n - right)

    return Judge(2 * n, 2 * n, 0.8, 0.6, (0.5, 0.7), tally(sensitivity), tally(specificity), clustered=True)


def corrected(groups: list[tuple[int, int]], of: Judge) -> Corrected:
    return correct_rate(groups, of, confidence=0.95, resamples=4000, seed=0)


def test_the_correction_inverts_the_judge() -> None:
    """0.9 of 0.3 true passes and 0.2 of 0.7 others are judged passes: 0.41 judged is 0.3 true."""
    found = corrected([(1, 1)] * 410 + [(0, 1)] * 590, judge(0.9, 0.8))
    assert found.value == pytest.approx(0.3)
    assert found.low < 0.3 < found.high


def test_a_perfect_judge_changes_nothing_but_adds_its_own_uncertainty() -> None:
    groups = [(1, 1)] * 40 + [(0, 1)] * 20
    found, raw = corrected(groups, judge(1.0, 1.0)), rate(groups)
    assert found.value == pytest.approx(2 / 3)
    assert (found.low, found.high) == pytest.approx((raw.low, raw.high), abs=0.02)


def test_fewer_labels_make_a_wider_interval() -> None:
    groups = [(1, 1)] * 40 + [(0, 1)] * 20
    widths = [found.high - found.low for n in (20, 100, 1000) if (found := corrected(groups, judge(0.9, 0.8, n)))]
    assert widths == sorted(widths, reverse=True)
    assert widths[0] > 1.3 * widths[-1]


def test_what_cannot_be_is_cut_off() -> None:
    assert corrected([(0, 1)] * 50, judge(0.9, 0.8)).value == 0.0
    assert corrected([(1, 1)] * 50, judge(0.9, 0.8)).value == 1.0


def test_a_judge_no_better_than_chance_corrects_nothing() -> None:
    found = corrected([(1, 1)] * 30, judge(0.5, 0.5))
    assert (found.value, found.low, found.high) == (None, 0.0, 1.0)
    assert found.why == "the judge is no better than chance (sensitivity 0.50, specificity 0.50)"


def test_a_judge_that_might_be_no_better_than_chance_leaves_everything_open() -> None:
    found = corrected([(1, 1)] * 30 + [(0, 1)] * 30, judge(0.6, 0.5, 10))
    assert found.value is not None
    assert (found.low, found.high) == (0.0, 1.0)


def test_a_judge_that_saw_only_one_kind_of_label_corrects_nothing() -> None:
    found = corrected([(1, 1)], replace(judge(0.9, 0.8), others=()))
    assert found.why == "the judge was measured on no answer with another label than pass"
    assert corrected([(0, 0)], judge(0.9, 0.8)).why == "no answer was scored"


def test_the_interval_covers_with_both_sources_of_error() -> None:
    """60 scenarios with 5 seeds, and 60 + 60 labels; half the error is the judge's."""
    generator = np.random.default_rng(4)
    hits, naive = 0, 0
    for run in range(300):
        chances = generator.beta(2, 2, 60)
        true = generator.binomial(5, chances)
        judged = generator.binomial(true, 0.9) + generator.binomial(5 - true, 0.25)
        right = generator.binomial(60, 0.9), generator.binomial(60, 0.75)
        passes, others = ((((1, 1),) * r + ((0, 1),) * (60 - r)) for r in right)
        of = Judge(120, 120, 0.8, 0.6, None, passes, others, clustered=True)
        groups = [(int(passed), 5) for passed in judged]
        found = correct_rate(groups, of, confidence=0.95, resamples=1000, seed=run)
        hits += found.low <= 0.5 <= found.high
        raw = rate(groups)
        naive += raw.low <= 0.5 <= raw.high
    assert 0.92 <= hits / 300 <= 0.99
    assert naive / 300 < 0.8  # the raw rate estimates something else


def test_a_difference_is_larger_than_a_bad_judge_sees_it() -> None:
    gains = [1] * 30 + [-1] * 9 + [0] * 61
    found = correct_difference(gains, [1] * 100, judge(0.9, 0.8), confidence=0.95, resamples=4000, seed=0)
    assert found.value == pytest.approx(0.21 / 0.7)
    assert found.low < 0.21 / 0.7 < found.high
    sharp = correct_difference(gains, [1] * 100, judge(1.0, 1.0), confidence=0.95, resamples=4000, seed=0)
    assert sharp.high - sharp.low < found.high - found.low


# From agreement.json


LABELS: list[Outcome] = ["pass"] * 8 + ["fail"] * 6 + ["partial"] * 4 + ["unscored"] * 2
JUDGED: list[Outcome] = [*["pass"] * 7, "unscored", *["fail"] * 5, "pass", *["partial"] * 3, "pass", *["unscored"] * 2]


def test_sensitivity_and_specificity_rest_on_what_the_judge_could_judge() -> None:
    raw = asdict(agreement(LABELS, JUDGED, groups=[str(n // 2) for n in range(20)]))
    found = judge_of(raw)
    assert (found.n, found.n_scored, found.clustered) == (20, 17, True)
    assert found.sensitivity == 1.0  # 7 of 7, the eighth was unscored
    assert found.specificity == pytest.approx(8 / 10)
    assert sum(n for _, n in found.others) == 10
    assert len(found.others) == 5  # scenarios


def test_a_file_without_the_scenarios_of_its_labels_gives_the_same_shares() -> None:
    raw = asdict(agreement(LABELS, JUDGED, groups=[str(n // 2) for n in range(20)]))
    old = judge_of({key: value for key, value in raw.items() if key != "pairs"})
    assert not old.clustered
    assert (old.sensitivity, old.specificity) == (judge_of(raw).sensitivity, judge_of(raw).specificity)
    assert len(old.others) == 10


def test_what_is_no_agreement_is_refused() -> None:
    with pytest.raises(ArtifactError, match=r"there\.json is not a judge's agreement"):
        judge_of({"n": 3}, "there.json")


def test_what_labels_leave_unscored_counts_against_a_program_and_not_against_raters() -> None:
    labels: list[Outcome] = ["pass"] * 10 + ["fail"] * 10 + ["unscored"] * 10
    judged: list[Outcome] = ["pass"] * 10 + ["fail"] * 9 + ["pass"] + ["pass"] * 5 + ["unscored"] * 5
    raw = asdict(agreement(labels, judged, groups=[str(number) for number in range(30)]))
    program, raters = judge_of(raw), judge_of(raw, between_raters=True)
    assert (program.n_scored, program.specificity) == (25, 9 / 15)
    assert (raters.n_scored, raters.specificity) == (20, 9 / 10)
    assert program.sensitivity == raters.sensitivity == 1.0


def test_agreement_on_one_scenario_has_no_interval() -> None:
    found = agreement(["pass", "fail", "pass"], ["pass", "fail", "fail"], groups=["one"] * 3)
    assert found.kappa is not None
    assert (found.kappa_interval, found.weighted_kappa_interval) == (None, None)
    assert found.accuracy_interval == (0.0, 1.0)
