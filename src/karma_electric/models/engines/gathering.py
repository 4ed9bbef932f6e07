"""Gathers requests that arrive one by one, from several threads, into batches for an engine."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from karma_electric.core.artifact import hash_text
from karma_electric.core.messages import Conversation
from karma_electric.models.engines.protocol import Completion, Engine, Sampling

_GATHER_S = 0.02  # how long a batch waits for company: those whose last answers came together ask again together


class GivenUp(Exception):
    """A request was dropped: nobody wanted its answer any more."""


@dataclass
class _Request:
    conversation: Conversation
    sampling: Sampling
    given_up: threading.Event
    completion: Completion | None = None
    error: Exception | None = None
    done: bool = False  # read and written by whoever has the engine


class Gathering:
    """One engine, asked from many threads.

    A batch holds requests with the same temperature, top_p and limit. What an answer depends on:
    - batch_size 1: on the request alone, its seed included.
    - greedy (temperature 0): on the request alone, but for the last bits of the arithmetic.
    - sampled in a batch whose requests have one seed: that seed; what else, the engine says.
    - sampled in a batch of several seeds: also on what shares the batch and in which order, since its seed is made
      from those of its requests.
    A batch that fails is asked again one by one, so that one request cannot fail the others. One that nobody waits for
    any more may be stopped: `unwanted` tells.
    """

    def __init__(self, engine: Engine, *, batch_size: int, alpha: float | None = None) -> None:
        """`alpha` is the strength of the cap for every call; None where the engine has none."""
        self._engine = engine
        self._batch_size = batch_size
        self._alpha = alpha
        self._waiting: list[_Request] = []
        self._running: Sequence[_Request] = ()
        self._waiting_lock = threading.Lock()
        self._engine_lock = threading.Lock()

    def ask(
        self, conversation: Conversation, sampling: Sampling, given_up: threading.Event | None = None
    ) -> Completion:
        """Answer one conversation. Blocks until a batch with it has run; whoever has the engine runs the next batch.

        Args:
            conversation: ends with a user turn.
            sampling: how tokens are chosen.
            given_up: set by whoever no longer wants the answer; the request is dropped if it still waits.

        Raises:
            GivenUp: nobody wanted it any more.
            Exception: what the engine raised for this conversation.
        """
        request = _Request(conversation, sampling, given_up or threading.Event())
        with self._waiting_lock:
            self._waiting.append(request)
        with self._engine_lock:
            while not request.done:
                if batch := self._next_batch():
                    self._answer(batch)
        if request.error is not None:
            raise request.error
        assert request.completion is not None
        return request.completion

    def unwanted(self) -> bool:
        """Whether nobody wants the answers that the engine is working on, so that it may stop."""
        return bool(self._running) and all(request.given_up.is_set() for request in self._running)

    def _next_batch(self) -> list[_Request]:
        """The oldest request and others that can go with it; empty where nobody waits any more."""
        with self._waiting_lock:
            full = len(self._waiting) >= self._batch_size
        if not full and self._batch_size > 1:
            time.sleep(_GATHER_S)
        with self._waiting_lock:
            for request in self._waiting:
                if request.given_up.is_set():
                    request.error, request.done = GivenUp(), True
            self._waiting = [request for request in self._waiting if not request.done]
            if not self._waiting:
                return []
            first = replace(self._waiting[0].sampling, seed=0)
            batch = [r for r in self._waiting if replace(r.sampling, seed=0) == first][: self._batch_size]
            taken = {id(request) for request in batch}
            self._waiting = [request for request in self._waiting if id(request) not in taken]
        return batch

    def _answer(self, batch: Sequence[_Request]) -> None:
        self._running = batch
        try:
            completions = self._engine.generate(
                [request.conversation for request in batch], _shared_sampling(batch), alpha=self._alpha
            )
        except Exception as error:
            if len(batch) > 1 and not self.unwanted():
                for request in batch:
                    self._answer([request])
                return
            for request in batch:
                request.error = error
        else:
            for request, completion in zip(batch, completions, strict=True):
                request.completion = completion
        for request in batch:
            request.done = True


def _shared_sampling(batch: Sequence[_Request]) -> Sampling:
    seeds = [request.sampling.seed for request in batch]
    if len(set(seeds)) == 1:
        return batch[0].sampling
    return replace(batch[0].sampling, seed=int(hash_text(",".join(map(str, seeds)))[:8], 16))
