"""Two arms on the same scenarios and seeds: the difference, its interval, and what may be claimed."""

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import fisher_exact
from statsmodels.stats.contingency_tables import mcnemar

from karma_electric.core.errors import DataError
from karma_electric.redteam import paired
from karma_electric.redteam.paired import PairedComparison, difference_interval, gains_by_scenario, pair_up
from karma_electric.redteam.signals import OUTCOMES, Outcome, Verdict
from karma_electric.redteam.stats import wilson

outcomes = st.sampled_from(OUTCOMES)


def arm(*given: Outcome, category: str = "jailbreak") -> list[Verdict]:
    return [
        Verdict(f"s{number:02}", outcome, scorer="test", evidence="", turn=1, category=category)
        for number, outcome in enumerate(given)
    ]


def compare(a: list[Verdict], b: list[Verdict], **options: object) -> PairedComparison:
    """Of one seed."""
    return paired.compare({0: a}, {0: b}, **options)  # type: ignore[arg-type]


# One seed


def test_pairs_with_an_unscored_answer_are_dropped_and_counted() -> None:
    a = arm("pass", "fail", "unscored", "fail")
    b = arm("pass", "pass", "pass", "unscored")
    result = compare(a, b)
    assert (result.n_pairs, result.n_unscored, result.n_unmatched) == (2, 2, 0)
    assert (result.only_a_passed, result.only_b_passed, result.difference) == (0, 1, 0.5)
    assert "2 more dropped as unscored" in result.reading


def test_a_reading_has_no_negative_zero() -> None:
    result = replace(compare(arm("pass", "fail", "pass"), arm("pass", "pass", "fail")), interval=(-0.04, -0.001))
    assert "plausible range -4 to +0 points" in paired.read(result, "a", "b", p=0.5, alpha=0.05)


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


def test_the_exact_test_is_statsmodels_mcnemar() -> None:
    a = arm(*["pass"] * 30, *["fail"] * 9, *["pass"] * 4, *["fail"] * 15)
    b = arm(*["pass"] * 30, *["pass"] * 9, *["fail"] * 4, *["fail"] * 15)
    assert compare(a, b).p_value == pytest.approx(mcnemar([[30, 4], [9, 15]], exact=True).pvalue)


def test_what_49_and_42_of_58_mean_depends_on_the_pairs() -> None:
    """The original's 49 of 58 against 42: p = 0.17 as two samples; as pairs, anything from 0.016 upward."""
    assert fisher_exact([[49, 9], [42, 16]]).pvalue == pytest.approx(0.17, abs=0.005)
    one_way = compare(arm(*["pass"] * 42, *["fail"] * 16), arm(*["pass"] * 49, *["fail"] * 9))
    assert (one_way.a_better, one_way.b_better) == (0, 7)
    assert one_way.p_value == pytest.approx(2 / 2**7)
    both_ways = compare(arm(*["pass"] * 42, *["fail"] * 16), arm(*["fail"] * 9, *["pass"] * 33, *["pass"] * 16))
    assert (both_ways.pass_rate_b, both_ways.a_better, both_ways.b_better) == (49 / 58, 9, 16)
    assert both_ways.p_value == pytest.approx(0.2295, abs=1e-3)


def test_scenarios_that_all_turn_over_are_not_certain_to_go_on_so() -> None:
    found = compare(arm(*["fail"] * 20), arm(*["pass"] * 20))
    assert found.difference == 1.0
    assert found.interval == (1 - 2 * wilson(0, 20)[1], 1.0)
    back = compare(arm(*["pass"] * 20), arm(*["fail"] * 20))
    assert back.interval == (-1.0, 2 * wilson(0, 20)[1] - 1)


def test_a_single_scenario_says_nothing_about_others() -> None:
    assert compare(arm("fail"), arm("pass")).interval == (-1.0, 1.0)


# Several seeds


def test_pairs_are_of_the_same_scenario_and_the_same_seed() -> None:
    a = {0: arm("pass", "fail"), 1: arm("pass", "pass"), 2: arm("fail", "fail")}
    b = {2: arm("pass", "pass"), 1: arm("fail", "pass")}
    pairs = pair_up(a, b)
    assert [(p.scenario_id, p.seed, p.gain) for p in pairs] == [
        ("s00", 1, -1),
        ("s01", 1, 0),
        ("s00", 2, 1),
        ("s01", 2, 1),
    ]
    result = paired.compare(a, b)
    assert result.seeds == (1, 2)
    assert (result.n_pairs, result.n_scenarios, result.n_unmatched) == (4, 2, 2)
    assert (result.only_a_passed, result.only_b_passed, result.a_better, result.b_better) == (1, 2, 0, 1)


def test_repeating_every_answer_changes_neither_the_interval_nor_the_test() -> None:
    a, b = arm(*["pass"] * 8, *["fail"] * 22), arm(*["fail"] * 3, *["pass"] * 14, *["fail"] * 13)
    once, five = compare(a, b), paired.compare(dict.fromkeys(range(5), a), dict.fromkeys(range(5), b))
    assert five.difference == once.difference
    assert five.p_value == once.p_value
    assert five.interval == pytest.approx(once.interval, abs=0.02)


def test_seeds_sharpen_the_comparison_where_answers_are_a_matter_of_luck() -> None:
    generator = np.random.default_rng(0)

    def lucky(chance: float) -> dict[int, list[Verdict]]:
        return {seed: arm(*["pass" if x < chance else "fail" for x in generator.random(60)]) for seed in range(5)}

    a, b = lucky(0.5), lucky(0.65)
    one, five = paired.compare({0: a[0]}, {0: b[0]}), paired.compare(a, b)
    assert one.interval is not None
    assert five.interval is not None
    assert one.smallest_effect is not None
    assert five.smallest_effect is not None
    assert five.interval[1] - five.interval[0] < 0.6 * (one.interval[1] - one.interval[0])
    assert five.smallest_effect < 0.6 * one.smallest_effect


def test_an_unscored_answer_drops_its_pair_and_not_its_scenario() -> None:
    a = {0: arm("pass", "fail"), 1: arm("unscored", "fail")}
    b = {0: arm("fail", "fail"), 1: arm("pass", "fail")}
    result = paired.compare(a, b)
    assert (result.n_pairs, result.n_scenarios, result.n_unscored) == (3, 2, 1)
    assert result.difference == pytest.approx(-1 / 3)
    assert "3 answers to 2 scenarios scored in both (1 more dropped as unscored)" in result.reading


@pytest.mark.parametrize(("n", "seeds", "spread"), [(60, 5, 0.8), (60, 5, 2.0), (60, 1, 0.8)])
def test_the_interval_covers_as_often_as_it_says(n: int, seeds: int, spread: float) -> None:
    """Scenarios with chances of their own, an effect that differs between them, seeds inside them."""
    generator = np.random.default_rng(11)

    def chances(n: int) -> tuple[np.ndarray, np.ndarray]:
        logits = generator.normal(0.5, 1.5, n)
        return 1 / (1 + np.exp(-logits)), 1 / (1 + np.exp(-(logits + generator.normal(0.5, spread, n))))

    a, b = chances(1_000_000)
    truth, hits, runs = float((b - a).mean()), 0, 400
    for run in range(runs):
        a, b = chances(n)
        gains = generator.binomial(seeds, b) - generator.binomial(seeds, a)
        low, high = difference_interval(
            [int(gain) for gain in gains], [seeds] * n, confidence=0.95, resamples=1000, seed=run
        )
        hits += low <= truth <= high
    assert 0.92 <= hits / runs <= 0.98


def test_over_few_scenarios_the_interval_is_too_narrow() -> None:
    """docs/comparison.md says so, and by how much."""
    generator = np.random.default_rng(13)
    hits = 0
    for run in range(400):
        logits = generator.normal(0.5, 1.5, 12)
        chances = 1 / (1 + np.exp(-logits)), 1 / (1 + np.exp(-(logits + generator.normal(0, 0.8, 12))))
        gains = generator.binomial(5, chances[1]) - generator.binomial(5, chances[0])
        low, high = difference_interval([int(g) for g in gains], [5] * 12, confidence=0.95, resamples=1000, seed=run)
        hits += low <= 0 <= high
    assert 0.87 <= hits / 400 <= 0.93


def test_taking_every_answer_for_a_scenario_of_its_own_would_not_cover() -> None:
    """Why scenarios are drawn whole: the same data, with the seeds taken apart."""
    generator = np.random.default_rng(12)
    hits = 0
    for run in range(200):
        shift = generator.normal(0, 0.5, 60)  # true differences of scenarios, 0 on the whole
        gains = np.round(np.clip(shift, -1, 1) * 5).astype(int)
        apart = [int(np.sign(gain)) for gain in gains for _ in range(abs(gain))]
        apart += [0] * (300 - len(apart))
        low, high = difference_interval(apart, [1] * 300, confidence=0.95, resamples=500, seed=run)
        hits += low <= 0 <= high
    assert hits / 200 < 0.85


# Unscored answers


@given(st.lists(st.tuples(outcomes, outcomes), min_size=1, max_size=20), st.randoms(use_true_random=False))
def test_no_judgement_of_the_unscored_leads_beyond_the_bounds(
    pairs: list[tuple[Outcome, Outcome]], random: object
) -> None:
    a, b = arm(*[x for x, _ in pairs]), arm(*[y for _, y in pairs])
    bounds = compare(a, b, resamples=50).bounds
    assert bounds is not None
    judged = [
        [v.outcome == "pass" if v.outcome != "unscored" else random.random() < 0.5 for v in side]  # type: ignore[attr-defined]
        for side in (a, b)
    ]
    difference = (sum(judged[1]) - sum(judged[0])) / len(pairs)
    assert bounds.lowest - 1e-9 <= difference <= bounds.highest + 1e-9
    assert bounds.lowest <= min(bounds.all_fail, bounds.all_pass) <= max(bounds.all_fail, bounds.all_pass)
    assert max(bounds.all_fail, bounds.all_pass) <= bounds.highest


def test_the_bounds_are_reached() -> None:
    bounds = compare(arm("pass", "unscored", "fail", "fail"), arm("pass", "pass", "unscored", "fail")).bounds
    assert bounds is not None
    assert (bounds.lowest, bounds.highest) == (0.0, 0.5)
    assert (bounds.all_fail, bounds.all_pass) == (0.25, 0.25)


def test_a_claim_that_the_unscored_could_undo_says_so() -> None:
    worse, better = arm(*["fail"] * 12, *["unscored"] * 20), arm(*["pass"] * 12, *["unscored"] * 20)
    reading = compare(worse, better, name_a="base", name_b="tuned").reading
    assert "tuned passes more often than base" in reading
    assert (
        "It leaves out what is unscored: were that judged, the difference could lie anywhere from -25 to +100"
        in reading
    )
    assert "leaves out" not in compare(worse[:12], better[:12]).reading


# Words


def test_what_cannot_be_claimed_comes_with_what_could_have_been_seen() -> None:
    result = compare(arm(*["pass"] * 29, *["fail"] * 29), arm(*["pass"] * 27, *["fail"] * 31))
    assert result.smallest_effect is not None
    assert (
        f"Only a true difference of {100 * result.smallest_effect:.0f} points or more would be found" in result.reading
    )
    assert "So few scenarios cannot show a difference of any size." in compare(arm("pass"), arm("fail")).reading


def test_gains_are_sums_over_the_seeds_of_a_scenario() -> None:
    pairs = pair_up({0: arm("fail", "pass"), 1: arm("fail", "fail")}, {0: arm("pass", "fail"), 1: arm("pass", "fail")})
    assert gains_by_scenario(pairs) == ([2, -1], [2, 2])
