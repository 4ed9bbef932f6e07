"""The live llama.cpp engine: a GGUF file, its requests batched continuously by llama.cpp itself.

It has no hooks: a cap is baked into the file or not there, no request can change it, and no drift is measured.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from karma_electric.models.engines.live import (
    LiveAnswer,
    LiveRequest,
    LiveToken,
    Load,
    Piece,
    check_length,
    check_request,
)
from karma_electric.models.engines.live_pool import AnswerPool, PooledAnswer
from karma_electric.models.engines.llamacpp import DEFAULT_CONTEXT, LlamaCppEngine, Precision, checked
from karma_electric.models.engines.protocol import Completion, Usage


class LiveLlamaCpp:
    """Answers requests with llama.cpp, as many at a time as the engine has slots.

    A request asked alone gets the same answer every time. In company, timing decides which requests share a step, and
    that moves logits in the last bits. Without log-probabilities llama.cpp tells no ids of tokens. Of an answer that
    is cut inside a character, the part of that character is not told.
    """

    name = "llamacpp"
    can_alpha = False
    can_drift = False
    can_logprobs = True
    default_alpha: float | None = None

    def __init__(
        self,
        gguf_path: Path,
        *,
        rows: int = 8,
        queue: int = 64,
        context: int | None = None,
        threads: int | None = None,
        precision: Precision = "fast",
    ) -> None:
        """Load a file.

        Args:
            gguf_path: the file.
            rows: requests answered at a time.
            queue: how many more may wait.
            context: tokens of prompt and answer together; 4096 when None.
            threads, precision: see `LlamaCppEngine`.

        Raises:
            what `LlamaCppEngine` raises.
        """
        self.context = context or DEFAULT_CONTEXT
        self._engine = LlamaCppEngine(gguf_path, context=self.context, slots=rows, threads=threads, precision=precision)
        self._pool = AnswerPool(rows, queue)

    def submit(self, request: LiveRequest) -> LiveAnswer:
        """See `LiveEngine.submit`."""
        check_request(request, self)
        if isinstance(request.prompt, str):
            prompt = self._engine.tokenize(request.prompt, add_special=True)
        else:
            prompt = self._engine.prompt_ids(request.prompt)
        check_length(len(prompt), request.sampling, self.context)
        return self._pool.add(partial(self._answer, request, prompt))

    def load(self) -> Load:
        """See `LiveEngine.load`."""
        return self._pool.load()

    def close(self, *, drain_s: float = 0.0) -> None:
        """See `LiveEngine.close`. Frees the model."""
        self._pool.close(drain_s=drain_s)
        self._engine.close()

    def _answer(self, request: LiveRequest, prompt: list[int], answer: PooledAnswer) -> None:
        texts: list[str] = []
        errors: list[Exception] = []
        last: dict[str, Any] = {}
        n_chunks = 0

        def receive(chunk: dict[str, Any]) -> bool:
            nonlocal n_chunks
            try:
                (choice,) = checked(chunk)["choices"]
            except Exception as error:  # not through llama.cpp's own code
                errors.append(error)
                return True
            if choice["finish_reason"] is not None:
                last.update(chunk)
            n_chunks += choice["finish_reason"] is None
            tokens = _tokens(choice, request.logprobs)
            if choice["text"] or tokens:
                texts.append(choice["text"])
                answer.put(Piece(choice["text"], tokens))
            return answer.unwanted.is_set()

        if not answer.unwanted.is_set():
            self._engine.decode(prompt, request.sampling, receive, stop=request.stop, logprobs=request.logprobs)
        if errors:
            raise errors[0]
        cut = bool(last) and last["choices"][0]["finish_reason"] == "length"
        answer.finish(
            Completion(
                text="".join(texts),
                finish_reason="length" if cut else "stop",
                usage=Usage(len(prompt), last["usage"]["completion_tokens"] if last else n_chunks),
            )
        )


def _tokens(choice: dict[str, Any], logprobs: int | None) -> tuple[LiveToken, ...]:
    """The tokens of a chunk: with their numbers where log-probabilities were asked for, else as one text."""
    if logprobs is None:
        return (LiveToken(-1, choice["text"]),) if choice["text"] else ()
    return tuple(
        LiveToken(
            int(token["id"]),
            token["token"],
            float(token["logprob"]),
            tuple((t["token"], float(t["logprob"])) for t in token["top_logprobs"][:logprobs]),
        )
        for token in (choice["logprobs"] or {}).get("content", ())
    )
