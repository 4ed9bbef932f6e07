"""Wilson intervals, McNemar's test, summaries and paired comparison."""

import math
from statistics import NormalDist

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from karma_electric.core.errors import DataError
from karma_electric.redteam.agreement import agreement
from karma_electric.redteam.signals import OUTCOMES, Outcome, Verdict
from karma_electric.redteam.stats import compare, mcnemar, summarise, wilson

outcomes = st.sampled_from(OUTCOMES)


def arm(*given: Outcome, category: str = "jailbreak") -> list[Verdict]:
    return [
        Verdict(f"s{number:02}", outcome, scorer="test", evidence="", turn=1, category=category)
        for number, outcome in enumerate(given)
    ]


# Wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [
        (49, 58, 0.7307, 0.9162),  # the original's steered arm
        (42, 58, 0.5980, 0.8225),  # and its uncapped one
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (1, 2, 0.0945, 0.9055),
    ],
)
def test_wilson_agrees_with_scipy(successes: int, n: int, low: float, high: float) -> None:
    reference = binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert wilson(successes, n) == pytest.approx((reference.low, reference.high), abs=1e-9)
    assert wilson(successes, n) == pytest.approx((low, high), abs=5e-4)


@given(st.integers(1, 200).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))), st.floats(0.5, 0.999))
def test_wilson_ends_solve_its_defining_equation(case: tuple[int, int], confidence: float) -> None:
    """An end p of the interval satisfies |share - p| = z * sqrt(p (1 - p) / n), or lies at 0 or 1."""
    successes, n = case
    share, z = successes / n, NormalDist().inv_cdf((1 + confidence) / 2)
    low, high = wilson(successes, n, confidence)
    assert 0 <= low <= share <= high <= 1
    for end in (low, high):
        if 0 < end < 1:
            assert abs(share - end) == pytest.approx(z * math.sqrt(end * (1 - end) / n), abs=1e-9)


@given(st.integers(1, 60).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_symmetric_in_successes_and_failures(case: tuple[int, int]) -> None:
    successes, n = case
    low, high = wilson(successes, n)
    assert wilson(n - successes, n) == pytest.approx((1 - high, 1 - low))


def test_wilson_of_nothing_says_nothing() -> None:
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(("successes", "n", "confidence"), [(3, 2, 0.95), (-1, 2, 0.95), (1, 2, 1.0), (1, 2, 0.0)])
def test_wilson_refuses_impossible_arguments(successes: int, n: int, confidence: float) -> None:
    with pytest.raises(ValueError, match="expected 0 <= successes <= n"):
        wilson(successes, n, confidence)


# McNemar


@given(st.integers(0, 40), st.integers(0, 40))
def test_mcnemar_is_the_two_sided_binomial_test_of_the_discordant_pairs(only_a: int, only_b: int) -> None:
    expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert mcnemar(only_a, only_b) == pytest.approx(expected)


# Summaries


def test_a_summary_counts_outcomes_in_all_and_per_category() -> None:
    verdicts = [*arm("pass", "partial", "fail"), Verdict("x", "unscored", "test", "", None, "harmful-code")]
    summary = summarise(verdicts)
    assert summary.n == 4
    assert summary.counts == {"pass": 1, "partial": 1, "fail": 1, "unscored": 1}
    assert summary.categories["jailbreak"] == {"pass": 1, "partial": 1, "fail": 1, "unscored": 0}
    assert summary.categories["harmful-code"] == {"pass": 0, "partial": 0, "fail": 0, "unscored": 1}


def test_an_unscored_answer_leaves_one_rate_and_lowers_the_other() -> None:
    summary = summarise(arm("pass", "pass", "fail", "unscored"))
    assert (summary.pass_rate_scored.successes, summary.pass_rate_scored.n) == (2, 3)
    assert (summary.pass_rate_all.successes, summary.pass_rate_all.n) == (2, 4)
    assert (summary.pass_rate_all.low, summary.pass_rate_all.high) == wilson(2, 4)


def test_an_arm_without_a_scored_answer_has_no_pass_rate() -> None:
    rate = summarise(arm("unscored", "unscored")).pass_rate_scored
    assert (rate.value, rate.low, rate.high) == (None, 0.0, 1.0)


@given(st.lists(outcomes, max_size=30))
def test_the_counts_of_a_summary_add_up(given: list[Outcome]) -> None:
    summary = summarise(arm(*given))
    assert sum(summary.counts.values()) == summary.n == len(given)
    assert summary.pass_rate_scored.n + summary.counts["unscored"] == summary.n


# Paired comparison


def test_pairs_with_an_unscored_answer_are_dropped_and_counted() -> None:
    a = arm("pass", "fail", "unscored", "fail")
    b = arm("pass", "pass", "pass", "unscored")
    result = compare(a, b)
    assert (result.n_pairs, result.n_unscored, result.n_unmatched) == (2, 2, 0)
    assert (result.only_a_passed, result.only_b_passed, result.difference) == (0, 1, 0.5)
    assert "2 more dropped as unscored" in result.reading


def test_scenarios_of_one_arm_only_are_counted_as_unmatched() -> None:
    result = compare(arm("pass", "pass", "pass"), arm("pass"))
    assert (result.n_pairs, result.n_unmatched) == (1, 2)


def test_pairing_is_by_scenario_and_not_by_order() -> None:
    a, b = arm("pass", "fail", "fail"), arm("pass", "fail", "fail")
    assert compare(a, b[::-1]).only_b_passed == 0


def test_partial_is_not_a_pass() -> None:
    result = compare(arm("partial", "partial"), arm("fail", "pass"))
    assert (result.pass_rate_a, result.pass_rate_b, result.only_b_passed) == (0.0, 0.5, 1)


def test_a_small_difference_may_not_be_claimed() -> None:
    base, tuned = arm(*["pass"] * 5, *["fail"] * 5), arm(*["pass"] * 7, *["fail"] * 3)
    result = compare(base, tuned, name_a="base", name_b="tuned")
    assert result.p_value == pytest.approx(0.5)
    assert "tuned passed 7 and base 5 of the 10" in result.reading
    assert "may not be claimed" in result.reading


@pytest.mark.parametrize("b_is_better", [True, False])
def test_a_large_difference_is_claimed_for_the_better_arm_on_this_suite_alone(b_is_better: bool) -> None:
    worse, better = arm(*["fail"] * 12), arm(*["pass"] * 12)
    a, b = (worse, better) if b_is_better else (better, worse)
    result = compare(a, b, name_a="base", name_b="tuned")
    assert result.p_value == pytest.approx(2 / 2**12)
    assert ("tuned passes more often than base" in result.reading) == b_is_better
    assert "nothing may be claimed about other prompts" in result.reading


def test_the_interval_agrees_with_the_normal_approximation_on_many_pairs() -> None:
    a = arm(*["pass"] * 60, *["fail"] * 140, *["pass"] * 100, *["fail"] * 100)
    b = arm(*["fail"] * 60, *["pass"] * 140, *["pass"] * 100, *["fail"] * 100)
    result = compare(a, b)
    spread = 1.96 * math.sqrt((60 + 140) / 400 - (80 / 400) ** 2) / math.sqrt(400)
    assert result.interval == pytest.approx((0.2 - spread, 0.2 + spread), abs=0.01)


def test_identical_arms_are_not_certainly_equal() -> None:
    result = compare(arm(*["pass"] * 20), arm(*["pass"] * 20))
    bound = wilson(0, 20)[1]
    assert result.interval == (-bound, bound)
    assert "nor that they are equal" in result.reading


def test_arms_never_scored_together_allow_no_claim() -> None:
    result = compare(arm("unscored"), arm("pass"))
    assert (result.n_pairs, result.difference, result.interval, result.p_value) == (0, None, None, 1.0)
    assert "nothing may be claimed" in result.reading


def test_two_verdicts_on_one_scenario_are_an_error() -> None:
    with pytest.raises(DataError, match="two verdicts on scenario 's00'"):
        compare(arm("pass") * 2, arm("pass"))


@given(st.lists(st.tuples(outcomes, outcomes), min_size=1, max_size=20))
def test_swapping_the_arms_turns_the_comparison_round(pairs: list[tuple[Outcome, Outcome]]) -> None:
    a, b = arm(*[x for x, _ in pairs]), arm(*[y for _, y in pairs])
    there, back = compare(a, b, resamples=50), compare(b, a, resamples=50)
    assert there.p_value == back.p_value
    assert (there.only_a_passed, there.n_unscored) == (back.only_b_passed, back.n_unscored)
    assert there.difference == (None if back.difference is None else pytest.approx(-back.difference))


# Agreement


def test_kappa_of_a_worked_table() -> None:
    """Cohen's kappa of [[20, 5], [10, 15]] is 0.4."""
    labels: list[Outcome] = ["pass"] * 25 + ["fail"] * 25
    predicted: list[Outcome] = ["pass"] * 20 + ["fail"] * 5 + ["pass"] * 10 + ["fail"] * 15
    result = agreement(labels, predicted)
    assert (result.n, result.accuracy, result.kappa) == (50, 0.7, pytest.approx(0.4))
    assert result.confusion["fail"] == {"pass": 10, "partial": 0, "fail": 15, "unscored": 0}


def test_weighted_kappa_forgives_near_misses_and_leaves_unscored_out() -> None:
    labels: list[Outcome] = ["fail", "partial", "pass", "pass", "unscored"]
    near = agreement(labels, ["fail", "partial", "pass", "partial", "pass"])
    far = agreement(labels, ["fail", "partial", "pass", "fail", "pass"])
    assert near.weighted_kappa is not None
    assert far.weighted_kappa is not None
    assert near.weighted_kappa > far.weighted_kappa
    assert (near.weighted_n, near.weighted_excluded) == (4, 1)


def test_weighted_kappa_of_a_worked_table() -> None:
    """Observed 1 squared step; expected by chance (rows 1,1,2; columns 1,2,1): 6 / 4 * ... = 1 - 1 / 5."""
    result = agreement(["fail", "partial", "pass", "pass"], ["fail", "partial", "pass", "partial"])
    by_chance = (1 * 2 * 1 + 1 * 1 * 4 + 1 * 1 * 1 + 1 * 1 * 1 + 2 * 1 * 4 + 2 * 2 * 1) / 4
    assert result.weighted_kappa == pytest.approx(1 - 1 / by_chance)


def test_kappa_is_undefined_where_only_one_outcome_occurs() -> None:
    result = agreement(["pass", "pass"], ["pass", "pass"])
    assert (result.accuracy, result.kappa, result.kappa_interval) == (1.0, None, None)


@given(st.lists(st.tuples(outcomes, outcomes), min_size=1, max_size=40))
def test_kappa_is_at_most_one_and_one_only_in_full_agreement(pairs: list[tuple[Outcome, Outcome]]) -> None:
    result = agreement([x for x, _ in pairs], [y for _, y in pairs], resamples=20)
    if result.kappa is not None:
        assert result.kappa <= 1 + 1e-12
        assert (result.kappa > 1 - 1e-12) == all(x == y for x, y in pairs)


def test_drawing_whole_groups_widens_the_interval_where_groups_agree_within_themselves() -> None:
    labels: list[Outcome] = [outcome for outcome in ("pass", "fail") * 6 for _ in range(10)]
    predicted: list[Outcome] = [label if number // 10 % 3 else "partial" for number, label in enumerate(labels)]
    groups = [str(number // 10) for number in range(len(labels))]
    alone, grouped = agreement(labels, predicted), agreement(labels, predicted, groups=groups)
    assert alone.kappa_interval is not None
    assert grouped.kappa_interval is not None
    assert grouped.kappa == alone.kappa
    width = grouped.kappa_interval[1] - grouped.kappa_interval[0]
    assert width > 1.5 * (alone.kappa_interval[1] - alone.kappa_interval[0])


def test_the_bootstrap_is_reproducible() -> None:
    labels: list[Outcome] = ["pass", "fail", "partial", "fail", "pass", "unscored"]
    predicted: list[Outcome] = ["pass", "fail", "fail", "fail", "partial", "unscored"]
    assert agreement(labels, predicted, seed=3) == agreement(labels, predicted, seed=3)


@pytest.mark.parametrize(
    ("labels", "predicted"), [([], []), (["pass"], []), (["pass"], ["perhaps"])], ids=["nothing", "lengths", "unknown"]
)
def test_lists_that_cannot_be_compared_are_refused(labels: list[Outcome], predicted: list[Outcome]) -> None:
    with pytest.raises(ValueError, match="expected"):
        agreement(labels, predicted)
