"""Mean and variance of a stream: those of all values together, however they were cut and whoever added them up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from karma_electric.steer.moments import Moments, SiteSums

numbers = st.floats(-1e3, 1e3, width=32)
cuts = st.lists(st.lists(numbers, max_size=5), min_size=1, max_size=6).filter(lambda parts: sum(map(len, parts)) > 0)


def added(parts: list[torch.Tensor]) -> Moments:
    total = Moments.of(parts[0])
    for part in parts[1:]:
        total = total + Moments.of(part)
    return total


@given(parts=cuts)
def test_parts_add_up_to_the_whole(parts: list[list[float]]) -> None:
    whole = np.array([x for part in parts for x in part])
    total = added([torch.tensor(part, dtype=torch.float32) for part in parts])
    assert total.n == len(whole)
    assert total.mean.item() == pytest.approx(whole.mean(), abs=1e-9)
    assert total.variance.item() == pytest.approx(whole.var(ddof=1) if len(whole) > 1 else 0.0, abs=1e-6)


@given(parts=cuts, seed=st.integers(0, 99))
def test_the_order_of_the_parts_does_not_matter(parts: list[list[float]], seed: int) -> None:
    tensors = [torch.tensor(part, dtype=torch.float32) for part in parts]
    order = np.random.default_rng(seed).permutation(len(tensors))
    one, other = added(tensors), added([tensors[i] for i in order])
    assert one.mean.item() == pytest.approx(other.mean.item(), abs=1e-9)
    assert one.squares.item() == pytest.approx(other.squares.item(), abs=1e-6)


def test_a_small_variance_survives_beside_a_large_mean() -> None:
    """Sums of squares would cancel here, in float64 too: the mean is 1e8 times the standard deviation."""
    values = 1e8 + torch.randn(1000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    total = added(list(values.split(7)))
    assert total.variance.item() == pytest.approx(values.var().item(), rel=1e-6)
    naive = (values.square().mean() - values.mean().square()).item()
    assert naive != pytest.approx(values.var().item(), rel=0.5)


def test_even_prompts_are_counted_across_chunks() -> None:
    difference = torch.arange(7.0).view(7, 1, 1)
    sums = SiteSums.of(torch.zeros(3, 1, 1), difference[:3], 0) + SiteSums.of(torch.zeros(4, 1, 1), difference[3:], 3)
    assert sums.even.n == 4  # 0, 2, 4, 6
    assert sums.even.mean.item() == 3.0
    assert sums.difference.mean.item() == 3.0


def test_a_direction_of_noise_is_as_long_as_its_standard_error() -> None:
    generator = torch.Generator().manual_seed(0)
    toward, away = torch.randn(2, 400, 2, 300, generator=generator)
    away[:, 1] += 1.0  # block 1: there is a direction, of length sqrt(300)
    summary = SiteSums.of(toward, away, 0).summary()
    assert summary["norm_to_error"][0] == pytest.approx(1.0, abs=0.1)
    assert summary["norm_to_error"][1] == pytest.approx(300**0.5 / (600 / 400) ** 0.5, rel=0.1)
    assert summary["spread_toward"] == pytest.approx([300**0.5] * 2, rel=0.02)
