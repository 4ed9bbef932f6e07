"""The answers to one request: read from the engine in threads, told to the server's loop as they come."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from typing import TypeVar

from starlette.types import Receive

from karma_electric.models.engines.live import LiveAnswer, LiveEngine, LiveRequest, LiveToken, Piece, TooLongError
from karma_electric.models.engines.protocol import Completion
from karma_electric.serve.admission import Admission
from karma_electric.serve.errors import ClientGone

Result = TypeVar("Result")


@dataclass(frozen=True)
class Event:
    """News of the `index`-th answer: a piece of it, or its end."""

    index: int
    piece: Piece | None = None
    completion: Completion | None = None


@dataclass
class Outcome:
    """A whole answer."""

    completion: Completion
    tokens: list[LiveToken] = field(default_factory=list)


class Exchange:
    """Asks the engine for one or more answers and gives their events, in the order they come.

    Must be made, and iterated, in the loop. Whoever made it calls `cancel` when done with it, whatever happened.

    Attributes:
        first_s: time to the first token of any answer; None before.
    """

    def __init__(
        self, engine: LiveEngine, requests: Sequence[LiveRequest], pool: Executor, admission: Admission, *, fit: bool
    ) -> None:
        """Start.

        Args:
            engine: answers.
            requests: one per answer.
            pool: for a thread per answer.
            admission: has let all of them in, and is told when each has ended.
            fit: whether an answer that does not fit into the context may be made shorter.
        """
        self.first_s: float | None = None
        self._engine = engine
        self._admission = admission
        self._fit = fit
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | BaseException] = asyncio.Queue()
        self._held: Event | None = None  # looked at by `first`, not given yet
        self._lock = threading.Lock()
        self._answers: list[LiveAnswer] = []
        self._cancelled = False
        self._started = time.monotonic()
        self._open = len(requests)
        for index, request in enumerate(requests):
            pool.submit(self._work, index, request)

    async def first(self) -> None:
        """Wait until something is known.

        Raises:
            what the engine raised: the request was refused, or failed at once.
        """
        self._held = await self._next()

    async def __aiter__(self) -> AsyncIterator[Event]:
        while self._open:
            event = self._held or await self._next()
            self._held = None
            self._open -= event.completion is not None
            yield event

    async def collect(self) -> list[Outcome]:
        """All answers, whole, in the order of their requests."""
        tokens: dict[int, list[LiveToken]] = {}
        done: dict[int, Completion] = {}
        async for event in self:
            if event.piece is not None:
                tokens.setdefault(event.index, []).extend(event.piece.tokens)
            if event.completion is not None:
                done[event.index] = event.completion
        return [Outcome(done[index], tokens.get(index, [])) for index in sorted(done)]

    def cancel(self) -> None:
        """Give up what has not ended. May be called again."""
        with self._lock:
            self._cancelled = True
            answers = list(self._answers)
        for answer in answers:
            answer.cancel()

    async def _next(self) -> Event:
        event = await self._events.get()
        if isinstance(event, BaseException):
            raise event
        if self.first_s is None:
            self.first_s = time.monotonic() - self._started
        return event

    def _work(self, index: int, request: LiveRequest) -> None:
        """In a thread: ask for an answer and read it to its end."""
        try:
            answer = self._submit(request)
            if answer is None:
                return
            for piece in answer:
                self._tell(Event(index, piece))
            self._tell(Event(index, completion=answer.completion))
        except BaseException as error:  # told to whoever waits, who knows what to answer
            self._tell(error)
        finally:
            self._admission.release(time.monotonic() - self._started)

    def _submit(self, request: LiveRequest) -> LiveAnswer | None:
        with self._lock:
            if self._cancelled:
                return None
        answer = submit(self._engine, request, fit=self._fit)
        with self._lock:
            self._answers.append(answer)
            cancelled = self._cancelled
        if cancelled:
            answer.cancel()
        return answer

    def _tell(self, event: Event | BaseException) -> None:
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop is closed: nobody listens any more
            self.cancel()


def submit(engine: LiveEngine, request: LiveRequest, *, fit: bool) -> LiveAnswer:
    """Ask the engine; with `fit`, for a shorter answer where the one asked for does not fit behind its prompt.

    Raises:
        what the engine raises.
    """
    try:
        return engine.submit(request)
    except TooLongError as error:
        if not fit or not error.room:
            raise
        sampling = replace(request.sampling, max_new_tokens=error.room)
        return engine.submit(replace(request, sampling=sampling))


async def unless_gone(receive: Receive, work: Awaitable[Result]) -> Result:
    """Wait for `work`, unless the client leaves first.

    Raises:
        ClientGone: it left; `work` was cancelled.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGone
    finally:
        for left in (task, gone):
            left.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
