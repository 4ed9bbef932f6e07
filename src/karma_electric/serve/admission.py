"""How many answers may be under way, and when to come again. Counts; does no work itself."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

from karma_electric.serve.errors import HttpError

_REMEMBERED = 32
_LONGEST_WAIT_S = 60


class Admission:
    """A counter with a limit, used from the server's loop and from the threads that read answers.

    Attributes:
        draining: set when the server is about to stop: nothing more is let in.
    """

    def __init__(self, most: int, active: Callable[[], int]) -> None:
        """`most` answers at a time; `active()` tells how many of them are really being worked on."""
        self._most = most
        self._active = active
        self._lock = threading.Lock()
        self._taken = 0
        self._last_s: deque[float] = deque(maxlen=_REMEMBERED)
        self.draining = False

    @property
    def taken(self) -> int:
        """Answers under way."""
        return self._taken

    def take(self, n: int) -> None:
        """Let `n` answers in.

        Raises:
            HttpError: 429 where that would be too many, 503 where the server is about to stop.
        """
        if self.draining:
            raise HttpError(
                503, "The server is about to stop and takes no more requests.", "Ask another, or later.",
                headers={"Retry-After": "5", "Connection": "close"}, code="draining",
            )  # fmt: skip
        with self._lock:
            free = self._most - self._taken
            if n <= free:
                self._taken += n
                return
        wait_s = self.retry_after_s()
        raise HttpError(
            429,
            f"{self._most - free} answers are under way, of {self._most} there may be; {n} more do not fit.",
            f"Ask again in {wait_s} s.",
            headers={"Retry-After": str(wait_s)},
        )

    def release(self, took_s: float) -> None:
        """One answer has ended, `took_s` after it was let in."""
        with self._lock:
            self._taken -= 1
            self._last_s.append(took_s)

    def retry_after_s(self) -> int:
        """A guess at when there is a place: about one of the answers at work ends in that time. 1 to 60 s."""
        with self._lock:
            typical = sum(self._last_s) / len(self._last_s) if self._last_s else 1.0
        return int(min(_LONGEST_WAIT_S, max(1.0, typical / max(1, self._active()))))
