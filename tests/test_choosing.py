"""Choosing tokens: greedy, sampled as the probabilities say, and nothing outside the nucleus."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from karma_electric.models.engines import choosing
from karma_electric.models.engines.choosing import Chooser, choose
from karma_electric.models.engines.protocol import Sampling


def logits(n: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed)) * 2


def nucleus(probabilities: torch.Tensor, top_p: float) -> torch.Tensor:
    """The fewest tokens that sum to top_p, renormalised: written plainly."""
    kept, total = torch.zeros_like(probabilities), 0.0
    for token in probabilities.argsort(descending=True).tolist():
        if total >= top_p:
            break
        kept[token] = probabilities[token]
        total += float(probabilities[token])
    return kept / kept.sum()


@pytest.mark.parametrize("top_p", [1.0, 0.8, 0.3])
@pytest.mark.parametrize("likeliest", [4, 512])
def test_tokens_are_drawn_with_their_probabilities(
    top_p: float, likeliest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(choosing, "_LIKELIEST", likeliest)
    row = logits(12)
    chooser = Chooser(Sampling(temperature=1.3, top_p=top_p, seed=4))
    n = 2000
    drawn = torch.bincount(torch.tensor([chooser.sample(row) for _ in range(n)]), minlength=12) / n
    expected = nucleus((row / 1.3).softmax(-1), top_p)
    assert (drawn - expected).abs().max() < 4 * (0.25 / n) ** 0.5
    assert not drawn[expected == 0].any()


@given(st.integers(0, 2**63 - 1), st.floats(1e-6, 10), st.floats(1e-6, 1))
def test_a_row_chooses_alone_as_in_company(seed: int, temperature: float, top_p: float) -> None:
    sampling = Sampling(temperature, top_p, seed=seed)
    rows = torch.stack([logits(40, n) for n in range(3)])
    company = [Chooser(Sampling()), Chooser(sampling), Chooser(Sampling(1.0, seed=1))]
    (alone,) = choose(rows[1:2], [Chooser(sampling)], [2])
    together = choose(rows, company, [None, 2, 0])
    assert together[1] == alone
    assert together[0].id == int(rows[0].argmax())
    assert [len(c.top) for c in together] == [0, 2, 0]
    assert [c.logprob is None for c in together] == [True, False, False]


@pytest.mark.parametrize("temperature", [1e-30, 1e-6])
def test_a_tiny_temperature_is_greedy(temperature: float) -> None:
    row = logits(40)
    assert Chooser(Sampling(temperature)).sample(row) == int(row.argmax())


def test_what_is_no_number_is_told_for_its_row_alone() -> None:
    rows = torch.stack([logits(8), logits(8).index_fill(0, torch.tensor([3]), float("nan"))])
    assert [c.id is None for c in choose(rows, [Chooser(Sampling())] * 2, [None, None])] == [False, True]
