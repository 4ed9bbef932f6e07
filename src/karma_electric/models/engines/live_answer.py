"""An answer on its way from an engine's thread to whoever reads it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator

from karma_electric.models.engines.live import Piece
from karma_electric.models.engines.protocol import Completion


class QueuedAnswer:
    """A `LiveAnswer`: the engine puts pieces in, the reader takes them out.

    Every answer ends exactly once, by `finish` or `fail`; what an engine says after that is dropped, so that a crash
    may fail all answers without asking which of them had ended.
    """

    def __init__(self, on_cancel: Callable[[], None] | None = None) -> None:
        """`on_cancel` is called, from the canceller's thread, so that the engine looks up."""
        self._pieces: queue.SimpleQueue[Piece | None] = queue.SimpleQueue()
        self._on_cancel = on_cancel
        self._cancelled = threading.Event()
        self._ended = threading.Event()
        self._lock = threading.Lock()
        self._completion: Completion | None = None
        self._error: BaseException | None = None

    def __iter__(self) -> Iterator[Piece]:
        while not self._cancelled.is_set():
            piece = self._pieces.get()
            if piece is None:
                self._pieces.put(None)  # for whoever iterates again
                break
            if not self._cancelled.is_set():
                yield piece
        if self._error is not None and not self._cancelled.is_set():
            raise self._error

    def cancel(self) -> None:
        """See `LiveAnswer.cancel`."""
        if self._ended.is_set() or self._cancelled.is_set():
            return
        self._cancelled.set()
        self._pieces.put(None)
        if self._on_cancel is not None:
            self._on_cancel()

    @property
    def cancelled(self) -> bool:
        """Whether nobody wants it any more."""
        return self._cancelled.is_set()

    @property
    def ended(self) -> bool:
        """Whether the engine is done with it."""
        return self._ended.is_set()

    @property
    def completion(self) -> Completion:
        """See `LiveAnswer.completion`. Of a cancelled answer it waits for the engine to let go."""
        if self._cancelled.is_set():
            self._ended.wait()
        if self._completion is not None:
            return self._completion
        if self._error is not None:
            raise self._error
        raise RuntimeError("the answer has not ended yet")

    def put(self, piece: Piece) -> None:
        """For the engine: hand over a piece."""
        if not self._ended.is_set():
            self._pieces.put(piece)

    def finish(self, completion: Completion) -> None:
        """For the engine: that was all."""
        self._end(completion, None)

    def fail(self, error: BaseException) -> None:
        """For the engine: it went wrong."""
        self._end(None, error)

    def _end(self, completion: Completion | None, error: BaseException | None) -> None:
        with self._lock:
            if self._ended.is_set():
                return
            self._completion, self._error = completion, error
            self._ended.set()
        self._pieces.put(None)
