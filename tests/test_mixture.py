"""Weighted statistics and the search for a quantile, against their definitions and other libraries' answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from karma_electric.core.errors import InputError
from karma_electric.steer.mixture import rate_interval, token_weights, weighted_moments, weighted_quantile
from karma_electric.steer.solve import ACCEPTED, PASSES, solve_quantile

values = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40)
fraction = st.floats(0.0, 1.0)
weighted = st.lists(st.tuples(st.floats(-1e3, 1e3, width=32), st.floats(1e-3, 1e3)), min_size=1, max_size=40)


def split(pairs: list[tuple[float, float]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([x for x, _ in pairs]), np.array([w for _, w in pairs])


@given(values, fraction, st.floats(1e-3, 1e3))
def test_equal_weights_give_the_plain_quantile(x: list[float], q: float, weight: float) -> None:
    assert weighted_quantile(np.array(x), np.full(len(x), weight), q) == pytest.approx(np.quantile(x, q), abs=1e-6)


@given(st.lists(values, min_size=3, max_size=3), fraction)
def test_equal_weights_and_equal_counts_give_the_plain_quantile_of_all_kinds(x: list[list[float]], q: float) -> None:
    n = min(map(len, x))
    pooled = np.array([value for kind in x for value in kind[:n]])
    kinds = [kind for kind in "abc" for _ in range(n)]
    weights = token_weights(kinds, {"a": 1.0, "b": 1.0, "c": 1.0})
    assert weighted_quantile(pooled, weights, q) == pytest.approx(np.quantile(pooled, q), abs=1e-6)


@given(weighted, fraction)
def test_the_weight_above_the_quantile_is_one_minus_q(pairs: list[tuple[float, float]], q: float) -> None:
    """As nearly as steps of the largest single weight allow."""
    x, w = split(pairs)
    assume(len(np.unique(x)) == len(x))
    above = w[x > weighted_quantile(x, w, q)].sum() / w.sum()
    assert above == pytest.approx(1 - q, abs=1.5 * w.max() / w.sum())


@given(weighted, fraction, st.randoms(use_true_random=False))
def test_order_and_scale_of_the_weights_do_not_matter(pairs: list[tuple[float, float]], q: float, random: Any) -> None:
    x, w = split(pairs)
    assume(len(np.unique(x)) == len(x))
    order = random.sample(range(len(x)), len(x))
    assert weighted_quantile(x[order], 3 * w[order], q) == pytest.approx(weighted_quantile(x, w, q), rel=1e-6, abs=1e-6)


@given(weighted, fraction)
def test_a_quantile_of_the_negated_values_is_the_other_end(pairs: list[tuple[float, float]], q: float) -> None:
    """A floor along -v is the ceiling along v, so its threshold must be."""
    x, w = split(pairs)
    assume(len(np.unique(x)) == len(x))
    assert weighted_quantile(-x, w, 1 - q) == pytest.approx(-weighted_quantile(x, w, q), rel=1e-5, abs=1e-3)


@given(weighted)
def test_the_ends_are_the_smallest_and_the_largest(pairs: list[tuple[float, float]]) -> None:
    x, w = split(pairs)
    assert (weighted_quantile(x, w, 0.0), weighted_quantile(x, w, 1.0)) == (x.min(), x.max())


def test_values_of_weight_0_are_left_out() -> None:
    x, w = np.array([1.0, 2.0, 3.0, 1e9]), np.array([1.0, 1.0, 1.0, 0.0])
    assert weighted_quantile(x, w, 1.0) == 3.0
    assert weighted_quantile(x, w, 0.5) == 2.0


def test_a_worked_example() -> None:
    """Weights 1, 1, 2: middles at 0.5, 1.5, 3, so p = 0, 0.4, 1."""
    x, w = np.array([10.0, 20.0, 40.0]), np.array([1.0, 1.0, 2.0])
    assert weighted_quantile(x, w, 0.4) == pytest.approx(20.0)
    assert weighted_quantile(x, w, 0.7) == pytest.approx(30.0)


@pytest.mark.parametrize("q", [-0.1, 1.1, float("nan")])
def test_a_quantile_outside_0_to_1_is_an_error(q: float) -> None:
    with pytest.raises(ValueError, match="expected 0 to 1"):
        weighted_quantile(np.array([1.0]), np.array([1.0]), q)


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=60))
def test_each_kind_has_its_weight_whatever_its_count(kinds: list[str]) -> None:
    shares = {"a": 0.5, "b": 0.3, "c": 0.2}
    weights = token_weights(kinds, shares)
    present = {kind: share for kind, share in shares.items() if kind in kinds}
    for kind, share in present.items():
        assert weights[np.array(kinds) == kind].sum() == pytest.approx(share / sum(present.values()))


def test_no_token_with_a_weight_is_an_error() -> None:
    with pytest.raises(ValueError, match="no token"):
        token_weights(["a", "a"], {"a": 0.0, "b": 1.0})


@given(weighted)
def test_moments_are_those_of_repeated_values(pairs: list[tuple[float, float]]) -> None:
    x = np.array([value for value, _ in pairs])
    counts = np.array([1 + int(weight) % 5 for _, weight in pairs])
    mean, deviation = weighted_moments(x, counts.astype(float))
    assert mean == pytest.approx(np.repeat(x, counts).mean(), abs=1e-6)
    assert deviation == pytest.approx(np.repeat(x, counts).std(), abs=1e-4)


# The interval of a cap rate


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    """40 conversations, tokens of one conversation alike: intervals over tokens would cover far less."""
    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(200):
        tokens = generator.integers(20, 60, 40)
        capped = tokens * generator.beta(1.0, 3.0, 40)  # mean 0.25, each conversation with its own rate
        interval = rate_interval(capped, tokens, ["a"] * 20 + ["b"] * 20, {"a": 0.5, "b": 0.5})
        assert interval is not None
        covered += interval.low <= 0.25 <= interval.high
    assert 0.88 <= covered / 200 <= 0.98


def test_one_conversation_gives_no_interval() -> None:
    assert rate_interval(np.array([3.0]), np.array([10]), ["a"], {"a": 1.0}) is None


def test_a_kind_of_weight_0_does_not_move_the_interval() -> None:
    capped, tokens = np.array([1.0, 5.0, 3.0, 9.0]), np.array([10, 10, 10, 10])
    with_it = rate_interval(capped, tokens, ["a", "a", "a", "b"], {"a": 1.0, "b": 0.0})
    assert with_it == rate_interval(capped[:3], tokens[:3], ["a"] * 3, {"a": 1.0})


# The search for a quantile


@given(st.floats(0.02, 0.98), st.floats(0.3, 3.0))
def test_a_smooth_rate_is_hit_in_a_few_tries(target: float, bend: float) -> None:
    tried: list[float] = []

    def rate(q: float) -> float:
        tried.append(q)
        return (1 - q) ** bend

    found = solve_quantile(rate, target)
    assert found.reached == rate(found.quantile)
    assert abs(found.reached - target) <= ACCEPTED
    assert found.passes <= PASSES + 1
    assert all(0.0 <= q <= 1.0 for q in tried)


def test_a_rate_that_is_1_minus_q_is_hit_at_once() -> None:
    found = solve_quantile(lambda q: 1 - q, 0.2)
    assert (found.passes, found.quantile) == (1, pytest.approx(0.8))


@given(st.floats(0.05, 0.9))
def test_a_rate_that_moves_in_steps_is_hit_as_nearly_as_they_allow(target: float) -> None:
    found = solve_quantile(lambda q: round((1 - q) * 40) / 40, target)
    assert abs(found.reached - target) <= 1 / 80 + 1e-9


@given(st.floats(0.1, 0.9))
def test_a_rate_that_cannot_be_reached_is_refused_with_the_nearest(most: float) -> None:
    with pytest.raises(InputError, match=rf"the nearest is {most:.3f}, with thresholds at the 0\.000-quantile"):
        solve_quantile(lambda q: most * (1 - q), most + 0.05)
