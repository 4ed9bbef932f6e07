"""The processes that work on one task together, as `accelerate launch` or torchrun start them; or the one alone.

On machines without GPUs `accelerate launch` starts several only through MPI, which is why torchrun is named as well.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

from karma_electric.core.errors import InputError
from karma_electric.models.loading import import_quietly, pick_device

T = TypeVar("T")
_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")  # as accelerate reads them
_PATIENCE_H = 24  # how long one may wait for another: a share of the work, not a message


@dataclass(frozen=True)
class Processes:
    """This process among the others. The first one writes and prints.

    Attributes:
        index: 0 for the first.
        count: how many there are.
        device: where this one puts its model; None is the best there is.
    """

    index: int = 0
    count: int = 1
    device: str | None = None

    @property
    def first(self) -> bool:
        """Whether this is the one that writes and prints."""
        return self.index == 0

    def share(self, n: int) -> range:
        """Which of `n` equal pieces of work are this process's own."""
        return range(self.index, n, self.count)

    def gather(self, value: T) -> list[T]:
        """The value that each process gives here, in their order, for all of them."""
        if self.count == 1:
            return [value]
        import torch.distributed

        values: list[T | None] = [None] * self.count
        torch.distributed.all_gather_object(values, value)
        return values  # type: ignore[return-value]

    def tell(self, value: T) -> T:
        """What the first process gives here, for all of them."""
        return self.gather(value)[0]

    def wait(self) -> None:
        """Until all are here."""
        self.gather(None)


ALONE = Processes()


@contextlib.contextmanager
def joined() -> Iterator[Processes]:
    """The processes that `accelerate launch` or torchrun started with this one; `ALONE` in an ordinary one."""
    started = max(int(os.environ.get(name, "1")) for name in _SIZES)
    if started <= 1:
        yield ALONE
        return
    from datetime import timedelta

    import_quietly("accelerate")
    import torch.distributed
    from accelerate import PartialState

    state = PartialState(cpu=pick_device() == "cpu", timeout=timedelta(hours=_PATIENCE_H))
    if state.num_processes != started:  # each would take itself for the only one, and all write the same files
        raise InputError(
            f"{started} processes were started, but accelerate joins {state.num_processes} of them.",
            "Start them with accelerate launch or torchrun.",
        )
    try:
        yield Processes(state.process_index, state.num_processes, str(state.device))
    finally:
        torch.distributed.destroy_process_group()
