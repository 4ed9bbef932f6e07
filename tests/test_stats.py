"""Wilson intervals, the exact test, summaries and agreement."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest, permutation_test

from karma_electric.redteam.agreement import agreement
from karma_electric.redteam.signals import OUTCOMES, Outcome, Verdict
from karma_electric.redteam.stats import effective_size, rate, sign_flip, smallest_p, summarise, wilson

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


# The exact test


@given(st.integers(0, 40), st.integers(0, 40), st.integers(0, 20))
def test_with_one_seed_the_sign_flip_test_is_mcnemars(only_a: int, only_b: int, neither: int) -> None:
    expected = binomtest(only_a, only_a + only_b).pvalue if only_a + only_b else 1.0
    assert sign_flip([-1] * only_a + [1] * only_b + [0] * neither) == pytest.approx(expected)


@given(st.lists(st.integers(-5, 5), min_size=2, max_size=9))
def test_the_sign_flip_test_agrees_with_scipys_over_all_permutations(sums: list[int]) -> None:
    found = permutation_test(
        (sums,), lambda x, axis: x.sum(axis=axis), permutation_type="samples", vectorized=True, n_resamples=np.inf
    )
    assert sign_flip(sums) == pytest.approx(found.pvalue)


def test_the_sign_flip_test_holds_its_level_where_seeds_agree_within_scenarios() -> None:
    """Pooling the seeds into one McNemar test does not: it takes five answers to a scenario for five scenarios."""
    generator = np.random.default_rng(5)
    clustered = pooled = 0
    for _ in range(400):
        shift = generator.normal(0, 2, 40)  # the arms differ from scenario to scenario, and not on the whole
        logits = generator.normal(0, 1, 40)
        passed_a, passed_b = (
            generator.random((40, 5)) < 1 / (1 + np.exp(-(logits + sign * shift / 2)[:, None])) for sign in (-1, 1)
        )
        gains = passed_b.astype(int) - passed_a.astype(int)
        clustered += sign_flip([int(gain) for gain in gains.sum(axis=1)]) < 0.05
        pooled += sign_flip([int(gain) for gain in gains.ravel()]) < 0.05
    assert clustered / 400 <= 0.07
    assert pooled / 400 >= 0.12


@pytest.mark.parametrize(("n", "least"), [(1, 1.0), (5, 0.0625), (6, 0.03125), (8, 0.0078125)])
def test_few_scenarios_cannot_reach_a_small_p(n: int, least: float) -> None:
    assert smallest_p(n) == least == sign_flip([3] * n)


# Rates over seeds


def test_one_answer_per_scenario_is_wilson() -> None:
    found = rate([(1, 1)] * 49 + [(0, 1)] * 9)
    assert (found.low, found.high) == wilson(49, 58)


def test_seeds_that_always_agree_add_nothing() -> None:
    groups = [(5, 5)] * 30 + [(0, 5)] * 20
    assert effective_size(groups) == pytest.approx(50)
    found = rate(groups)
    assert (found.successes, found.n) == (150, 250)
    assert (found.low, found.high) == pytest.approx(wilson(30, 50))


def test_seeds_that_have_nothing_in_common_count_in_full() -> None:
    generator = np.random.default_rng(1)
    sizes = [effective_size([(int(s), 5) for s in generator.binomial(5, 0.6, 60)]) for _ in range(50)]
    assert 250 <= float(np.mean(sizes)) <= 300


def test_an_arm_that_always_passes_is_no_more_certain_for_its_seeds() -> None:
    assert rate([(5, 5)] * 20).low == wilson(20, 20)[0]


def test_the_interval_of_a_rate_covers_under_nested_seeds() -> None:
    generator = np.random.default_rng(2)
    hits = 0
    for _ in range(400):
        chances = generator.beta(1.5, 0.8, 60)
        found = rate([(int(passed), 5) for passed in generator.binomial(5, chances)])
        hits += found.low <= 1.5 / 2.3 <= found.high
    assert 0.92 <= hits / 400 <= 0.98


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


def test_the_interval_of_an_accuracy_is_near_the_binomial_one_where_pairs_are_independent() -> None:
    labels: list[Outcome] = ["pass", "fail"] * 100
    predicted: list[Outcome] = [label if number % 4 else "partial" for number, label in enumerate(labels)]
    found = agreement(labels, predicted)
    assert found.accuracy == 0.75
    assert found.accuracy_interval == pytest.approx(wilson(150, 200), abs=0.015)


def test_a_weighted_kappa_has_an_interval_of_its_own() -> None:
    labels: list[Outcome] = ["fail", "partial", "pass", "pass", "unscored"] * 8
    found = agreement(labels, ["fail", "partial", "pass", "partial", "pass"] * 8)
    assert found.weighted_kappa_interval is not None
    assert found.weighted_kappa_interval[0] < (found.weighted_kappa or 0) < found.weighted_kappa_interval[1]
    assert agreement(["unscored"] * 3, ["unscored"] * 3).weighted_kappa_interval is None


def test_the_pairs_are_kept_with_their_scenarios() -> None:
    assert agreement(["pass", "fail"], ["fail", "fail"], groups=["x", "y"]).pairs == (
        ("x", "pass", "fail"),
        ("y", "fail", "fail"),
    )
    assert agreement(["pass", "fail"], ["fail", "fail"]).pairs == ()
