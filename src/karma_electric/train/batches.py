"""The order of training examples: optimiser steps of like length, so that little is padding, and the steps shuffled.

Every epoch is shuffled anew; the shuffled examples are cut into pools, each pool is sorted by length and cut into
steps, and the steps are shuffled. Without the last part a small corpus would be learned from the longest example to the
shortest. What a step holds does not depend on how it is cut into batches or shared among processes.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

from torch.utils.data import Sampler

POOL = 32  # steps sorted together: larger leaves less padding, and less chance in who meets whom


class LikeLengths(Sampler[int]):
    """Indices of examples such that each `step_size` in a row have like lengths; the same for a seed and an epoch."""

    def __init__(self, lengths: Sequence[int], step_size: int, seed: int) -> None:
        """`lengths` in tokens; `step_size` in examples: batch size, accumulation and processes multiplied."""
        self._lengths, self._step_size, self._seed = list(lengths), step_size, seed
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Which order comes next; the trainer calls it, also when it resumes in the middle of an epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        dice = random.Random(f"{self._seed}/{self._epoch}")
        order = list(range(len(self._lengths)))
        dice.shuffle(order)
        # what fills no step comes last, as it must: the loader cuts by counting
        whole = len(order) - len(order) % self._step_size
        size = POOL * self._step_size
        steps = []
        for start in range(0, whole, size):
            pool = sorted(order[start : min(start + size, whole)], key=self._lengths.__getitem__)
            steps += [pool[i : i + self._step_size] for i in range(0, len(pool), self._step_size)]
        dice.shuffle(steps)
        yield from (index for step in steps for index in step)
        yield from sorted(order[whole:], key=self._lengths.__getitem__)


def padding(lengths: Sequence[int], order: Sequence[int], batch_size: int) -> float:
    """The share of positions that padding to the longest of each batch adds."""
    batches = [order[i : i + batch_size] for i in range(0, len(order), batch_size)]
    padded = sum(len(batch) * max(lengths[i] for i in batch) for batch in batches)
    return 1 - sum(lengths[i] for i in order) / padded
