"""Chooses the next token of each of several rows, every row with its own sampling and its own random numbers.

A row's choice depends on its own logits and generator alone: in company it is what it would be alone, but for the last
bits of the arithmetic that made the logits.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from karma_electric.models.engines.protocol import Sampling

if TYPE_CHECKING:
    import torch

_LIKELIEST = 512  # tokens that are looked at first where top_p leaves some out: sorting a vocabulary takes long


class Chooser:
    """How one row's tokens are chosen."""

    def __init__(self, sampling: Sampling) -> None:
        import torch

        self.sampling = sampling
        self._random = torch.Generator().manual_seed(sampling.seed)

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is taken."""
        return self.sampling.temperature == 0

    def sample(self, logits: torch.Tensor) -> int:
        """A token from float32 logits [vocabulary]."""
        import torch

        u = torch.rand(1, generator=self._random, dtype=torch.float64).to(logits.device)
        return int(sample(logits[None], self.sampling, u))


def sample(logits: torch.Tensor, sampling: Sampling, uniforms: torch.Tensor) -> torch.Tensor:
    """A token per row, [rows], by inverse transform: where the cumulated probability passes `uniforms` of the total.

    At temperature 0 it is the likeliest. With top_p the tokens are taken from the likeliest on, the fewest that reach
    it together.

    Args:
        logits: float32 [rows, vocabulary].
        sampling: temperature and top_p.
        uniforms: random numbers in [0, 1), float64 [rows].
    """
    import torch

    if sampling.temperature == 0:
        return logits.argmax(-1)
    # the largest first: a tiny temperature then gives -inf for the others, and nothing that is no number
    probabilities = ((logits - logits.amax(-1, keepdim=True)) / sampling.temperature).softmax(-1)
    if sampling.top_p >= 1:
        return _inverse(probabilities, uniforms)
    few = min(_LIKELIEST, probabilities.shape[-1])
    values, tokens = probabilities.topk(few, dim=-1)
    if few < probabilities.shape[-1] and bool((values.sum(-1) < sampling.top_p).any()):
        values, tokens = probabilities.sort(dim=-1, descending=True, stable=True)
    before = values.cumsum(-1) - values
    nucleus = torch.where(before < sampling.top_p, values, torch.zeros_like(values))
    return tokens.gather(-1, _inverse(nucleus, uniforms).unsqueeze(-1)).squeeze(-1)


def _inverse(weights: torch.Tensor, uniforms: torch.Tensor) -> torch.Tensor:
    """First place where the cumulated weight passes `uniforms` of the total; never a place of weight 0."""
    import torch

    cumulated = weights.double().cumsum(-1)
    wanted = uniforms.unsqueeze(-1) * cumulated[:, -1:]
    return torch.searchsorted(cumulated, wanted, right=True).squeeze(-1).clamp_max(weights.shape[-1] - 1)


@dataclass(frozen=True)
class Chosen:
    """One row's next token.

    Attributes:
        id: the token; None where the logits are not numbers.
        logprob: its log-probability, if asked for.
        top: ids and log-probabilities of the likeliest, if asked for, in falling order.
    """

    id: int | None
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


def choose(logits: torch.Tensor, choosers: Sequence[Chooser], logprobs: Sequence[int | None]) -> list[Chosen]:
    """The next token of each row.

    Args:
        logits: [rows, vocabulary], of any type.
        choosers: one per row.
        logprobs: per row, None or how many likeliest tokens are wanted.
    """
    logits = logits.float()
    best, ids = logits.max(-1)
    numbers = best.isfinite().tolist()  # the largest of anything with NaN is NaN
    chosen = []
    for row, (token, chooser) in enumerate(zip(ids.tolist(), choosers, strict=True)):
        if not numbers[row]:
            chosen.append(Chosen(None))
            continue
        if not chooser.greedy:
            token = chooser.sample(logits[row])
        wanted = logprobs[row]
        if wanted is None:
            chosen.append(Chosen(token))
            continue
        log = logits[row].log_softmax(-1)
        values, places = log.topk(wanted)
        top = tuple(zip(places.tolist(), values.tolist(), strict=True))
        chosen.append(Chosen(token, float(log[token]), top))
    return chosen
