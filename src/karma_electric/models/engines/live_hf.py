"""The live transformers engine: requests join and leave the batch between two decoding steps.

One thread runs the model. Between two steps it reads at most one chunk of a prompt that waits, so that a long prompt
delays the others by no more than that. A prompt is read alone, without padding, always in the same chunks; then its row
joins the batch, whatever its strength, sampling or seed.

A request's greedy tokens are those it would get alone but for the arithmetic: in batches of other sizes the last
bits of the logits may be rounded otherwise, which in bfloat16 can decide between tokens that are as good as equal.
"""

from __future__ import annotations

import contextlib
import copy
import itertools
import threading
import time
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING

from karma_electric.models.blocks import context_length
from karma_electric.models.chat_template import prompt_ids, text_ids
from karma_electric.models.engines.choosing import Chosen, choose
from karma_electric.models.engines.live import (
    ClosedError,
    EngineError,
    FullError,
    LiveAnswer,
    LiveRequest,
    LiveToken,
    Load,
    check_length,
    check_request,
    refused_by_template,
)
from karma_electric.models.engines.live_answer import QueuedAnswer
from karma_electric.models.engines.live_row import (
    LiveIntervention,
    Row,
    in_our_words,
    is_out_of_memory,
    require_attention,
)
from karma_electric.models.engines.protocol import Completion, FinishReason, TokenDrift, Usage
from karma_electric.models.loading import end_of_turn_ids

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from karma_electric.models.engines.row_cache import RowCache


class LiveHf:
    """Answers requests with transformers, many at once. While it is open, nothing else may run the model."""

    name = "hf"
    can_logprobs = True

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        intervention: LiveIntervention | None = None,
        rows: int = 16,
        queue: int = 64,
        context: int | None = None,
        chunk: int = 256,
    ) -> None:
        """Start the engine.

        Args:
            model: in evaluation mode.
            tokenizer: its tokenizer.
            intervention: opened around everything the model does; None runs it as it is.
            rows: requests answered at a time.
            queue: how many more may wait.
            context: tokens of prompt and answer together; the model's own when None.
            chunk: tokens of a prompt read between two decoding steps.

        Raises:
            InputError: a model whose state is more than keys and values. What the intervention raises.
        """
        require_attention(model)
        self.context = min(context or context_length(model), context_length(model))
        self._model = model
        self._tokenizer = tokenizer
        self._for_prompts = copy.deepcopy(tokenizer)  # a fast tokenizer must not encode while it decodes elsewhere
        self._tokenizing = threading.Lock()
        self._stop_ids = frozenset(end_of_turn_ids(model, tokenizer))
        self._rows_at_most, self._queue, self._chunk = rows, queue, chunk
        self._open = contextlib.ExitStack()
        self._meter = None if intervention is None else self._open.enter_context(intervention(model))
        self.can_alpha = self._meter is not None
        self.can_drift = self._meter is not None and self._meter.can_drift
        self.default_alpha = None if self._meter is None else self._meter.alpha

        self._numbers = itertools.count()
        self._texts: dict[int, str] = {}  # of single tokens
        self._reading: list[Row] = []  # their prompts are being read
        self._decoding: list[Row] = []  # row i of the cache is the i-th
        self._cache: RowCache | None = None

        self._changed = threading.Condition()  # guards what follows
        self._waiting: deque[Row] = deque()
        self._n_active = 0
        self._closing = False
        self._give_up = False
        self._broken: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="karma-live-hf", daemon=True)
        self._thread.start()

    def submit(self, request: LiveRequest) -> LiveAnswer:
        """See `LiveEngine.submit`."""
        check_request(request, self)
        prompt = self._prompt(request)
        check_length(len(prompt), request.sampling, self.context)
        own = self.default_alpha or 0.0
        answer = QueuedAnswer(self._wake)
        alpha = own if request.alpha is None else float(request.alpha)
        row = Row(next(self._numbers), request, prompt, alpha, answer, self._tokenizer)
        with self._changed:
            if self._broken is not None:
                raise self._broke()
            if self._closing:
                raise ClosedError("The engine is closed.", "Start it again.")
            if self._n_active + len(self._waiting) >= self._rows_at_most + self._queue:
                raise FullError(
                    f"{self._n_active} requests are being answered and {len(self._waiting)} wait.", "Try again later."
                )
            self._waiting.append(row)
            self._changed.notify_all()
        return answer

    def load(self) -> Load:
        """See `LiveEngine.load`."""
        with self._changed:
            return Load(active=self._n_active, waiting=len(self._waiting))

    def close(self, *, drain_s: float = 0.0) -> None:
        """See `LiveEngine.close`. Takes the intervention off the model."""
        until = time.monotonic() + drain_s
        with self._changed:
            self._closing = True
            while (self._waiting or self._n_active) and self._broken is None and time.monotonic() < until:
                self._changed.wait(until - time.monotonic())
            self._give_up = True
            self._changed.notify_all()
        self._thread.join()
        self._open.close()

    def _prompt(self, request: LiveRequest) -> list[int]:
        from jinja2 import TemplateError

        with self._tokenizing:
            if isinstance(request.prompt, str):
                return text_ids(self._for_prompts, request.prompt)
            try:
                return prompt_ids(self._for_prompts, request.prompt)
            except TemplateError as error:
                raise refused_by_template(error) from None

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _broke(self) -> EngineError:
        return EngineError(
            f"The engine stopped working ({type(self._broken).__name__}: {self._broken}).",
            "Start it again, and report what it was asked.",
            broken=True,
        )

    # The engine's thread

    def _run(self) -> None:
        import torch

        try:
            with torch.inference_mode():
                while self._take_in():
                    self._read_prompts()
                    self._decode()
            error: BaseException = ClosedError("The engine was closed before the answer was complete.", "Ask again.")
        except BaseException as crash:  # a mistake of ours: nobody may wait for ever
            with self._changed:
                self._broken = crash
            error = self._broke()
        with self._changed:
            left = [*self._reading, *self._decoding, *self._waiting]
            self._reading, self._decoding, self._cache = [], [], None
            self._waiting.clear()
            self._n_active = 0
            self._changed.notify_all()
        for row in left:
            row.answer.fail(error)

    def _take_in(self) -> bool:
        """Wait for work, drop what nobody wants any more, and let those who wait have free rows. False: leave."""
        with self._changed:
            while True:
                gone = [row for row in self._waiting if row.answer.cancelled]
                for row in gone:
                    self._waiting.remove(row)
                active = [*self._reading, *self._decoding]
                for row in (*gone, *(row for row in active if row.answer.cancelled)):
                    self._end(row, "stop")
                while self._waiting and len(self._reading) + len(self._decoding) < self._rows_at_most:
                    self._reading.append(self._waiting.popleft())
                self._n_active = len(self._reading) + len(self._decoding)
                if gone or not self._n_active:
                    self._changed.notify_all()  # whoever closes waits for this
                if self._give_up:
                    return False
                if self._n_active:
                    return True
                self._changed.wait()

    def _read_prompts(self) -> None:
        """Read one chunk, or as many short prompts as are no longer than one."""
        n_read = 0
        while self._reading:
            row = self._reading[0]
            at = 0 if row.cache is None else row.cache.lengths[0]
            ids = row.prompt[at : at + self._chunk]
            if n_read and n_read + len(ids) > self._chunk:
                return
            n_read += len(ids)
            try:
                logits = self._read(row, ids)
                if at + len(ids) == len(row.prompt):
                    self._reading.pop(0)
                    self._join(row, logits)
            except Exception as error:  # its own: the others go on
                self._fail([row], error)

    def _read(self, row: Row, ids: list[int]) -> torch.Tensor:
        """Read the next tokens of a prompt. Returns the logits after the last [1, vocabulary]."""
        import torch

        from karma_electric.models.engines.row_cache import RowCache

        if row.cache is None:
            row.cache = RowCache(self._model.config.get_text_config().num_hidden_layers, room=len(row.prompt) + 1)
        if self._meter is not None:
            self._meter.prompt(row.alpha)
        at = row.cache.lengths[0]
        device = self._model.device
        output = self._model(
            input_ids=torch.tensor([ids], device=device),
            position_ids=torch.arange(at, at + len(ids), device=device)[None],
            past_key_values=row.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        row.cache.advance(len(ids))
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def _join(self, row: Row, logits: torch.Tensor) -> None:
        """Choose a row's first token and, unless that ends it, let it decode with the others."""
        (chosen,) = choose(logits, [row.chooser], [row.request.logprobs])
        cache, row.cache = row.cache, None
        if self._accept(row, chosen):
            return
        if self._cache is None:
            self._cache = cache
        elif cache is not None:
            try:
                self._cache.join(cache)
            except Exception as error:
                self._fail([row] if is_out_of_memory(error) else [*self._decoding, row], error)
                return
        self._decoding.append(row)

    def _decode(self) -> None:
        """One step: feed every row's last token back, and choose the next."""
        rows = list(self._decoding)
        if not rows or self._cache is None:
            return
        try:
            drifts, chosen = self._step(rows, self._cache)
        except Exception as error:
            # with less in it the next step may fit; of anything else nobody knows whose fault it was
            self._fail(rows[-1:] if is_out_of_memory(error) else rows, error)
            return
        for row, drift, token in zip(rows, drifts, chosen, strict=True):
            row.n_fed_back += 1
            if drift is not None and row.request.drift:
                row.composer.measured(drift)
            self._accept(row, token)

    def _step(self, rows: list[Row], cache: RowCache) -> tuple[Sequence[TokenDrift | None], list[Chosen]]:
        import torch

        device = self._model.device
        drift = any(row.request.drift for row in rows)
        if self._meter is not None:
            self._meter.decode([row.number for row in rows], [row.alpha for row in rows], drift=drift)
        cache.reserve(1)
        output = self._model(
            input_ids=torch.tensor([[row.last] for row in rows], device=device),
            attention_mask=cache.mask(1, device),
            position_ids=torch.tensor([[length] for length in cache.lengths], device=device),
            past_key_values=cache,
            use_cache=True,
        )
        chosen = choose(output.logits[:, -1], [row.chooser for row in rows], [row.request.logprobs for row in rows])
        cache.advance(1)
        drifts = self._meter.drifts() if self._meter is not None and drift else [None] * len(rows)
        return drifts, chosen

    def _accept(self, row: Row, chosen: Chosen) -> bool:
        """Take in a row's next token. Returns whether it was the last."""
        if chosen.id is None:
            self._fail([row], EngineError("The model computed numbers that are not finite.", "Are the weights whole?"))
            return True
        if chosen.id in self._stop_ids:
            self._end(row, "stop")
            return True
        composer = row.composer
        top = tuple((self._text(token), logprob) for token, logprob in chosen.top)
        composer.add(LiveToken(chosen.id, self._text(chosen.id), chosen.logprob, top), row.detokenizer.add(chosen.id))
        row.last = chosen.id
        if composer.stopped or composer.n_tokens >= row.request.sampling.max_new_tokens:
            self._end(row, "stop" if composer.stopped else "length")
            return True
        if piece := composer.take():
            row.answer.put(piece)
        return False

    def _end(self, row: Row, reason: FinishReason) -> None:
        """A row has its answer, or nobody wants it any more."""
        piece = row.composer.finish(row.detokenizer.flush())
        rate = None if self._meter is None else self._meter.rate(row.number, row.n_fed_back)
        self._leave(row)
        if piece is not None:
            row.answer.put(piece)
        row.answer.finish(
            Completion(
                text=row.composer.text,
                finish_reason="stop" if row.composer.stopped else reason,
                usage=Usage(prompt_tokens=len(row.prompt), completion_tokens=row.composer.n_tokens),
                cap_rate=rate,
                drift=row.composer.drift,
            )
        )

    def _fail(self, rows: Sequence[Row], error: Exception) -> None:
        """Give rows up. What is no error of ours already is said in our words."""
        error = in_our_words(error)
        for row in rows:
            if self._meter is not None:
                self._meter.rate(row.number, 0)
            self._leave(row)
            row.answer.fail(error)

    def _leave(self, row: Row) -> None:
        row.cache = None
        if row in self._reading:
            self._reading.remove(row)
        if row in self._decoding:
            place = self._decoding.index(row)
            if len(self._decoding) == 1:
                self._cache = None
            elif self._cache is not None:
                self._cache.leave(place)
            self._decoding[place] = self._decoding[-1]
            self._decoding.pop()

    def _text(self, token: int) -> str:
        if token not in self._texts:
            self._texts[token] = self._tokenizer.decode([token], clean_up_tokenization_spaces=False)
        return self._texts[token]
