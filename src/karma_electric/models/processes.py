"""The processes that work on one task together, as `accelerate launch` or torchrun start them; or the one alone.

What goes wrong in one of them is said once, by that one: the others end without a word, and the launcher ends the rest.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from karma_electric.core.errors import InputError
from karma_electric.models.loading import import_quietly, pick_device

T = TypeVar("T")
_SIZES = ("WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE")  # as accelerate reads them
_PATIENCE_H = 24  # how long one may wait for another: a share of the work, not a message
_WATCH_S = 0.5  # how often a process looks whether its launcher is still there
_SPEAK_FIRST_S = 2.0  # what the others leave the process that failed for its message, before the launcher ends all
_PEER_LOST = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")  # gloo, in a RuntimeError


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

    def together(self, action: Callable[[], T]) -> T:
        """What `action` gives here, once it has worked for all of them.

        Where it fails, the first process that it failed for raises its error; the others leave.
        """
        if self.count == 1:
            return action()
        error = None
        try:
            value = action()
        except Exception as caught:
            error = caught
        failed = [index for index, one in enumerate(self.gather(error is not None)) if one]
        if error is not None and failed[0] == self.index:
            raise error
        if failed:
            _leave()
        return value


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

    _end_with_launcher()
    state = PartialState(cpu=pick_device() == "cpu", timeout=timedelta(hours=_PATIENCE_H))
    if state.num_processes != started:  # each would take itself for the only one, and all write the same files
        raise InputError(
            f"{started} processes were started, but accelerate joins {state.num_processes} of them.",
            "Start them with accelerate launch or torchrun.",
        )
    try:
        yield Processes(state.process_index, state.num_processes, str(state.device))
    except RuntimeError as error:
        if _peer_lost(error):  # it has said why, or the launcher will
            _leave()
        raise
    finally:
        torch.distributed.destroy_process_group()


def _leave() -> NoReturn:
    time.sleep(_SPEAK_FIRST_S)
    raise SystemExit(1)


def _peer_lost(error: RuntimeError) -> bool:
    """Whether this process failed only because another one is gone."""
    import torch.distributed

    return isinstance(error, torch.distributed.DistError) or any(sign in str(error) for sign in _PEER_LOST)


def _end_with_launcher() -> None:
    """End this process with its launcher: one that is killed outright cannot end what it started.

    Left alone, its processes would go on and hold the run, so that the same command could not continue it.
    """
    launcher = os.getppid()

    def watch() -> None:
        while os.getppid() == launcher:
            time.sleep(_WATCH_S)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
