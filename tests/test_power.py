"""What a comparison can see: the smallest effect, and the scenarios it takes."""

import math

import numpy as np
import pytest

from karma_electric.redteam.power import scatter, scenarios_needed, smallest_effect
from karma_electric.redteam.stats import sign_flip


def power_of(n: int, effect: float, discordant: float, *, runs: int = 1500) -> float:
    """How often the exact test finds a true difference, where `discordant` of the scenarios differ (one seed)."""
    generator = np.random.default_rng(7)
    up = (discordant + effect) / 2
    drawn = generator.multinomial(n, [up, discordant - up, 1 - discordant], size=runs)
    return float(np.mean([sign_flip([1] * int(b) + [-1] * int(a)) < 0.05 for b, a, _ in drawn]))


@pytest.mark.parametrize(("n", "discordant"), [(58, 0.3), (58, 0.5), (200, 0.2), (500, 0.1)])
def test_the_smallest_effect_is_found_four_times_in_five(n: int, discordant: float) -> None:
    effect = smallest_effect(discordant, n, seeds=1, alpha=0.05)
    assert effect is not None
    assert 0.76 <= power_of(n, effect, max(discordant, effect)) <= 0.86


@pytest.mark.parametrize("effect", [0.05, 0.1, 0.2])
def test_so_many_scenarios_find_the_effect_four_times_in_five(effect: float) -> None:
    n = scenarios_needed(0.3, effect, seeds=1, alpha=0.05)
    assert 0.76 <= power_of(n, effect, 0.3, runs=400) <= 0.86


def test_with_seeds_the_smallest_effect_is_found_too() -> None:
    """60 scenarios and 5 seeds, a shift of every scenario's chance, seeds independent inside it."""
    generator = np.random.default_rng(3)
    chances = generator.uniform(0.2, 0.7, 60)
    trial = generator.binomial(5, chances, (300, 60)) - generator.binomial(5, chances, (300, 60))
    effect = smallest_effect(float((trial**2).mean()) / 25, 60, seeds=5, alpha=0.05)
    assert effect is not None
    found = [
        sign_flip([int(x) for x in generator.binomial(5, chances + effect) - generator.binomial(5, chances)]) < 0.05
        for _ in range(600)
    ]
    assert 0.76 <= np.mean(found) <= 0.92  # the formula takes the effect at its worst scatter


def test_both_directions_of_the_formula_agree() -> None:
    effect = smallest_effect(0.25, 120, seeds=1, alpha=0.05)
    assert effect is not None
    assert scenarios_needed(0.25, effect, seeds=1, alpha=0.05) == pytest.approx(120, abs=1)


def test_more_scenarios_see_smaller_effects() -> None:
    effects = [smallest_effect(0.3, n, seeds=1, alpha=0.05) for n in (20, 58, 200, 1000)]
    assert all(effect is not None for effect in effects)
    assert effects == sorted(effects, reverse=True)  # type: ignore[type-var]


def test_too_few_scenarios_see_nothing() -> None:
    assert smallest_effect(0.3, 5, seeds=1, alpha=0.05) is None
    assert smallest_effect(0.3, 5, seeds=5, alpha=0.05) is None


def test_a_comparison_without_a_difference_does_not_promise_to_find_everything() -> None:
    assert scatter([0.0] * 58) == pytest.approx(1 / 60)
    effect = smallest_effect(scatter([0.0] * 58), 58, seeds=1, alpha=0.05)
    assert effect is not None
    assert effect > 0.08
    assert scatter([1.0, -1.0] * 500) == pytest.approx(1.0, abs=2e-3)


def test_the_formula_is_connors() -> None:
    """Without the correction for the exact test: (1.96 sqrt(psi) + 0.84 sqrt(psi - d^2))^2 / d^2."""
    plain = (1.959964 * math.sqrt(0.3) + 0.841621 * math.sqrt(0.3 - 0.01)) ** 2 / 0.01
    assert plain < scenarios_needed(0.3, 0.1, seeds=1, alpha=0.05) < plain + 25
