"""Picks the MLP neuron that can best be spared, and how the others take over what it did.

Optimal Brain Surgeon (Hassibi and Stork, 1993) on one MLP: with `h` the neurons' activations and `H = E[h h^T]` on
calibration text, neuron j is best predicted by the others as `h_j ~ sum_k c_k h_k`, `c_k = -P_jk / P_jj` for
`P = (H + ridge)^-1`, and what then remains of it is `1 / P_jj`. The neuron that costs least is the one with the
smallest `|w_j|^2 / P_jj`, `w_j` its column of the down projection; its column times `c` is added to the others'.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from karma_electric.models.blocks import decoder_blocks

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_RIDGE = 1e-4  # of the mean diagonal


@dataclass(frozen=True)
class Removal:
    """A neuron that gives way.

    Attributes:
        index: its place among the block's MLP neurons.
        fold: what the others take over, float64 [intermediate]: the down projection's columns grow by
            `fold[k] * column[index]`; 0 at `index` itself and at those that gave way before it.
        share: what remains unexplained of its output, as a share of the MLP's mean squared output.
    """

    index: int
    fold: torch.Tensor
    share: float

    def as_dict(self) -> dict[str, Any]:
        """For reports."""
        return {"neuron": self.index, "unexplained_share_of_mlp_output": self.share}


class Moments:
    """Streaming second moments of one MLP's neurons, float64 [intermediate, intermediate]."""

    def __init__(self) -> None:
        self.total: torch.Tensor | None = None
        self.tokens = 0

    def add(self, h: torch.Tensor) -> None:
        """Add activations [tokens, intermediate]."""
        h = h.double()
        product = h.T @ h
        self.total = product if self.total is None else self.total + product
        self.tokens += h.shape[0]


def spare_in_turn(moments: Moments, down: torch.Tensor, count: int) -> tuple[Removal, ...]:
    """The neurons that cost least, one after the other, each with its take-over by those that are left.

    After a removal the others' columns have grown by what they took over, and the inverse loses its row and column by
    one step of elimination: `P - P_:j P_j: / P_jj` is the inverse of the moments without neuron j.

    Args:
        moments: of the block's neurons.
        down: the down projection's weight [hidden, intermediate].
        count: how many.
    """
    import torch

    assert moments.total is not None
    second = moments.total / moments.tokens
    size = second.shape[0]
    ridge = _RIDGE * second.diagonal().mean() * torch.eye(size, dtype=torch.float64)
    inverse = torch.linalg.inv(second + ridge)
    columns = down.detach().double().cpu()
    output = float(((columns @ second) * columns).sum())
    left = torch.ones(size, dtype=torch.bool)
    removals: list[Removal] = []
    for _ in range(count):
        cost = columns.pow(2).sum(0) / inverse.diagonal().clamp_min(torch.finfo(torch.float64).tiny)
        index = int(cost.masked_fill(~left, torch.inf).argmin())
        fold = -inverse[index] / inverse[index, index]
        left[index] = False
        fold[~left] = 0.0
        removals.append(Removal(index, fold, float(cost[index]) / output))
        columns = columns + torch.outer(columns[:, index], fold)
        inverse = inverse - torch.outer(inverse[:, index], inverse[index]) / inverse[index, index]
    return tuple(removals)


@contextmanager
def moments_of(model: PreTrainedModel, layers: Sequence[int], keep: list[Any]) -> Iterator[dict[int, Moments]]:
    """Gather the moments of some blocks' MLP neurons from every forward pass inside.

    Args:
        model: a model with gated MLPs whose last projection is called `down_proj`.
        layers: blocks.
        keep: a list of one: what picks tokens, `[batch, seq, intermediate] -> [tokens, intermediate]`, or None for
            passes that do not count.
    """
    found = {layer: Moments() for layer in layers}
    handles = []
    try:
        for layer in layers:

            def hook(_: Any, inputs: tuple[torch.Tensor, ...], layer: int = layer) -> None:
                if keep[0] is not None:
                    found[layer].add(keep[0](inputs[0]))

            down: Any = decoder_blocks(model)[layer].mlp.down_proj
            handles.append(down.register_forward_pre_hook(hook))
        yield found
    finally:
        for handle in handles:
            handle.remove()


def spare_neurons(
    model: PreTrainedModel, moments: Mapping[int, Moments], counts: Mapping[int, int]
) -> dict[int, tuple[Removal, ...]]:
    """`spare_in_turn` for several blocks of a model; `counts`: block -> how many."""
    blocks = decoder_blocks(model)
    projections: dict[int, Any] = {layer: blocks[layer].mlp.down_proj for layer in counts}
    return {layer: spare_in_turn(moments[layer], down.weight, counts[layer]) for layer, down in projections.items()}
