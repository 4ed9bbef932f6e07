"""Answers that each have a thread while they are worked on: for engines that are not one loop of ours."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from karma_electric.models.engines.live import ClosedError, FullError, Load
from karma_electric.models.engines.live_answer import QueuedAnswer


class PooledAnswer(QueuedAnswer):
    """An answer that tells its thread to stop.

    Attributes:
        unwanted: set when it was cancelled, or the engine is closing.
    """

    def __init__(self) -> None:
        self.unwanted = threading.Event()
        super().__init__(self.unwanted.set)


class AnswerPool:
    """So many answers at a time, and so many that may wait."""

    def __init__(self, rows: int, queue: int) -> None:
        """`rows`: answers worked on at a time; `queue`: how many more may wait."""
        self._rows, self._queue = rows, queue
        self._lock = threading.Lock()
        self._answers: list[PooledAnswer] = []
        self._closed = False
        self._threads = ThreadPoolExecutor(rows, thread_name_prefix="karma-live")

    def add(self, work: Callable[[PooledAnswer], None]) -> PooledAnswer:
        """Have `work` make an answer. It ends the answer, or raises what is the answer's failure.

        Raises:
            FullError: too many wait already. ClosedError: it is closed.
        """
        answer = PooledAnswer()

        def run() -> None:
            try:
                work(answer)
            except BaseException as error:
                answer.fail(error)

        with self._lock:
            if self._closed:
                raise ClosedError("The engine is closed.", "Start it again.")
            self._answers = [one for one in self._answers if not one.ended]
            n = sum(not one.cancelled for one in self._answers)
            if n >= self._rows + self._queue:
                raise FullError(f"{n} requests are here already.", "Try again later.")
            self._answers.append(answer)
            self._threads.submit(run)
        return answer

    def load(self) -> Load:
        """See `LiveEngine.load`."""
        n = len(self._going())
        return Load(active=min(n, self._rows), waiting=max(0, n - self._rows))

    def close(self, *, drain_s: float = 0.0) -> None:
        """See `LiveEngine.close`. Returns when no thread works any more."""
        with self._lock:
            self._closed = True
        until = time.monotonic() + drain_s
        while (going := self._going()) and time.monotonic() < until:
            time.sleep(0.005)
        for answer in going:
            answer.fail(ClosedError("The engine was closed before the answer was complete.", "Ask again."))
            answer.unwanted.set()
        self._threads.shutdown()

    def _going(self) -> list[PooledAnswer]:
        with self._lock:
            return [answer for answer in self._answers if not answer.ended and not answer.cancelled]
