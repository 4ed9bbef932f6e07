"""Counts where a cap acted: per row and response position, in how many of its blocks. Nothing of it leaves the device
until it is asked for, and its memory does not grow with the number of forward passes.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, cast

from karma_electric.core.errors import InputError

if TYPE_CHECKING:
    import torch

    from karma_electric.steer.hooks import LayerCap

_TOGETHER = 32  # passes that are counted at once


class CapMeter:
    """What the hooks saw of one generation.

    The first forward pass is the prompt, which is not counted; what follows are the response tokens that were fed
    back. A batch of another number of rows begins a new generation; for the same number, open the cap anew. Rows are
    those of the forward pass: beam search moves answers between them, and drafts of assisted decoding count as tokens.
    """

    def __init__(self, context: int) -> None:
        """`context`: how many response positions there can be."""
        self._context = context
        self._caps: Sequence[LayerCap] = ()
        self._counts: torch.Tensor | None = None  # [batch, context + 1]: capped blocks; the last place takes the rest
        self._next: torch.Tensor | None = None  # [1]: the position that comes next
        self._waiting: list[tuple[torch.Tensor, list[torch.Tensor]]] = []

    def watch(self, caps: Sequence[LayerCap]) -> None:
        """Record these from now on, each time the last of them is done."""
        self._caps = caps
        caps[-1].meter = self

    def record(self) -> None:
        """Take in one forward pass."""
        import torch

        found = [cap.seen for cap in self._caps]
        seen = [over for over in found if over is not None]
        for cap in self._caps:
            cap.seen = None
        if len(seen) < len(found):
            return  # a pass that left blocks out
        n_rows, n_tokens = seen[-1].shape
        if self._counts is None or self._next is None or self._counts.shape[0] != n_rows:
            self._begin(n_rows, seen[-1].device)
            return
        place = self._next if n_tokens == 1 else self._next + torch.arange(n_tokens, device=self._next.device)
        if torch.compiler.is_compiling():  # compiled code may change a tensor, but should not grow a list
            self._count([(place, seen)])
            self._next.add_(n_tokens)
            return
        self._waiting.append((place, [over.detach() if over.requires_grad else over for over in seen]))
        self._next = self._next + n_tokens
        if len(self._waiting) == _TOGETHER or n_tokens > 1:
            self._count_waiting()

    def _count_waiting(self) -> None:
        """Count the passes that were put off: a few operations for each would be a good part of what a cap costs."""
        waiting, self._waiting = self._waiting, []
        if waiting:
            self._count(waiting)

    def _count(self, passes: Sequence[tuple[torch.Tensor, list[torch.Tensor]]]) -> None:
        """passes: positions [n], and the excess at each block [batch, n]."""
        import torch

        places = torch.cat([place for place, _ in passes]).clamp_max(self._context)
        by_block = zip(*(seen for _, seen in passes), strict=True)
        over = torch.stack([torch.cat(list(seen), dim=1).to(places.device) for seen in by_block])
        cast("torch.Tensor", self._counts).index_copy_(1, places, (over > 0).sum(0, dtype=torch.int16))

    def _begin(self, n_rows: int, device: torch.device) -> None:
        import torch

        self._waiting = []
        # what inference mode makes could not be changed outside it; compiled code cannot leave it
        ordinary = nullcontext() if torch.compiler.is_compiling() else torch.inference_mode(mode=False)
        with ordinary:
            self._counts = torch.zeros(n_rows, self._context + 1, dtype=torch.int16, device=device)
            self._next = torch.zeros(1, dtype=torch.long, device=device)

    def response_rates(self, lengths: Sequence[int]) -> list[float]:
        """Cap rate of each row over its own response tokens.

        Args:
            lengths: tokens of each row's response. The last one is never fed back, so it is not counted.

        Raises:
            InputError: the forward passes had another number of rows, or more tokens than the model's context.
        """
        self._count_waiting()
        if self._counts is None or self._next is None:
            return [0.0 for _ in lengths]
        if len(lengths) != self._counts.shape[0]:
            raise InputError(
                f"{len(lengths)} answers were given, the last forward pass had {self._counts.shape[0]} rows.",
                "Give one length per row that the model saw.",
            )
        n_recorded = int(self._next)
        if n_recorded > self._context:
            raise InputError(
                f"{n_recorded} response tokens passed the cap, more than the model's context of {self._context}.",
                "Open the cap anew for each generation.",
            )
        counts = self._counts.cpu()
        fed_back = [min(length, n_recorded) for length in lengths]
        return [int(counts[row, :n].sum()) / (n * len(self._caps)) if n else 0.0 for row, n in enumerate(fed_back)]
