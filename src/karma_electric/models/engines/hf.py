"""The transformers engine: batched or streamed generation, with an optional intervention on the activations.

It knows nothing about steering: an intervention is any context manager that is opened around a generation.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Protocol, cast, runtime_checkable

from karma_electric.core.errors import InputError
from karma_electric.core.messages import Conversation
from karma_electric.models.blocks import context_length
from karma_electric.models.chat_template import prompt_ids
from karma_electric.models.engines.decoding import can_decode, decode
from karma_electric.models.engines.keys import Memory
from karma_electric.models.engines.protocol import Alpha, Completion, Drift, OnDrift, Sampling, TokenDrift, Usage, acts
from karma_electric.models.loading import end_of_turn_ids

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Meter(Protocol):
    """What an intervention can tell after a generation."""

    def response_rates(self, lengths: Sequence[int]) -> list[float]:
        """Share of each row's response tokens that were changed."""


@runtime_checkable
class DriftMeter(Meter, Protocol):
    """A meter that reads the drift of tokens as well."""

    def drifts(self, lengths: Sequence[int]) -> list[Drift]:
        """Drift of each row's response tokens; a last token that was not fed back is None."""

    def last(self) -> TokenDrift:
        """Drift of the token that went through the model last; for a batch of one."""


Intervention = Callable[["PreTrainedModel", Alpha], AbstractContextManager[Meter]]


class HfEngine:
    """Generates with transformers. Each call starts from an empty cache, so a cache never mixes two alphas."""

    name = "hf"

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        intervention: Intervention | None = None,
        context: int | None = None,
        remember_bytes: int = 0,
    ) -> None:
        """`intervention(model, alpha)` is opened around every generation; `context` limits prompt + answer.

        `remember_bytes` of keys and values, as far as they go, are kept for the next turns of conversations. Nothing is
        kept from one alpha to another: not where there is a meter.
        """
        self._model = model
        self._tokenizer = tokenizer
        self._intervention = intervention
        self._context = context or context_length(model)
        self._stop_ids = end_of_turn_ids(model, tokenizer)
        self._plain = can_decode(model)
        self._memory = Memory(remember_bytes)

    def generate(
        self, conversations: Sequence[Conversation], sampling: Sampling, *, alpha: Alpha = None
    ) -> list[Completion]:
        """Answer conversations in one batch. See `Engine.generate`."""
        return self._answer(conversations, sampling, [sampling.seed] * len(conversations), alpha)

    def generate_seeds(
        self, conversations: Sequence[Conversation], sampling: Sampling, seeds: Sequence[int]
    ) -> list[Completion]:
        """Answer conversations in one batch, each under its own seed. See `SeededEngine`."""
        if len(seeds) != len(conversations):
            raise InputError(
                f"{len(seeds)} seeds were given for {len(conversations)} conversations.", "Give one for each."
            )
        if self._plain:
            return self._answer(conversations, sampling, seeds, None)
        found: dict[int, Completion] = {}  # transformers' own loop has one stream of random numbers
        for seed in dict.fromkeys(seeds):
            rows = [row for row, own in enumerate(seeds) if own == seed]
            answers = self.generate([conversations[row] for row in rows], replace(sampling, seed=seed))
            found |= dict(zip(rows, answers, strict=True))
        return [found[row] for row in range(len(seeds))]

    def _answer(
        self, conversations: Sequence[Conversation], sampling: Sampling, seeds: Sequence[int], alpha: Alpha
    ) -> list[Completion]:
        if not conversations:
            return []
        if isinstance(alpha, Sequence) and len(alpha) != len(conversations):
            raise InputError(
                f"{len(alpha)} strengths were given for {len(conversations)} conversations.", "Give one for each."
            )
        prompts = [self._prompt(conversation, sampling) for conversation in conversations]
        with self._intervene(alpha) as meter:
            if self._plain:
                rows = decode(
                    self._model,
                    prompts,
                    sampling,
                    seeds=seeds,
                    stop_ids=self._stop_ids,
                    pad_id=int(self._tokenizer.pad_token_id or 0),
                    memory=self._memory if meter is None else None,
                )
            else:
                rows = self._generate(prompts, sampling)
        answers = [self._until_stop(row) for row in rows]
        lengths = [len(answer) for answer, _ in answers]
        rates = meter.response_rates(lengths) if meter is not None else None
        drifts = meter.drifts(lengths) if isinstance(meter, DriftMeter) else None
        return [
            Completion(
                text=self._tokenizer.decode(answer, skip_special_tokens=True).strip(),
                finish_reason="stop" if stopped else "length",
                usage=Usage(prompt_tokens=len(prompts[row]), completion_tokens=len(answer)),
                cap_rate=rates[row] if rates is not None else None,
                drift=drifts[row] if drifts is not None else None,
            )
            for row, (answer, stopped) in enumerate(answers)
        ]

    def _generate(self, prompts: Sequence[list[int]], sampling: Sampling) -> list[list[int]]:
        """Token ids of the answers, by transformers' own loop: for models whose layers keep other things than keys."""
        import torch

        longest = max(len(ids) for ids in prompts)
        pad = int(self._tokenizer.pad_token_id or 0)
        ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=self._model.device)
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=self._model.device)
        with torch.inference_mode():
            torch.manual_seed(sampling.seed)
            output = self._model.generate(input_ids=ids, attention_mask=mask, **self._options(sampling))
        rows: list[list[int]] = output[:, longest:].tolist()
        return rows

    def stream(
        self,
        conversation: Conversation,
        sampling: Sampling,
        *,
        alpha: float | None = None,
        on_drift: OnDrift | None = None,
    ) -> Iterator[str]:
        """Yield the answer as it is decoded. Closing the iterator stops the generation.

        `on_drift` is called between the pieces, in the reader's thread, for every token but the end-of-turn.
        """
        import torch
        from transformers import StoppingCriteria, StoppingCriteriaList

        prompt = self._prompt(conversation, sampling)
        ids = torch.tensor([prompt], device=self._model.device)
        cancelled = threading.Event()
        failure: list[BaseException] = []

        class Cancelled(StoppingCriteria):  # type: ignore[misc]
            def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
                return torch.full((input_ids.shape[0],), cancelled.is_set(), device=input_ids.device)

        def work(streamer: Any) -> None:
            try:
                with torch.inference_mode():
                    torch.manual_seed(sampling.seed)
                    self._model.generate(
                        input_ids=ids,
                        attention_mask=torch.ones_like(ids),
                        streamer=streamer,
                        stopping_criteria=StoppingCriteriaList([Cancelled()]),
                        **self._options(sampling),
                    )
            except BaseException as error:  # handed to the reader, who raises it
                failure.append(error)
                streamer.end()

        with self._intervene(alpha) as meter:
            measured = meter if on_drift is not None and isinstance(meter, DriftMeter) else None
            streamer = _streamer(self._tokenizer, measured, self._stop_ids)
            thread = threading.Thread(target=work, args=(streamer,), daemon=True)
            thread.start()
            try:
                for piece in streamer:
                    if isinstance(piece, str):
                        yield piece
                    else:
                        cast("OnDrift", on_drift)(*piece)
            finally:
                cancelled.set()
                thread.join()
        if failure:
            raise failure[0]

    def _intervene(self, alpha: Alpha) -> AbstractContextManager[Meter | None]:
        if self._intervention is not None:
            return self._intervention(self._model, alpha)
        if acts(alpha):
            raise InputError(f"alpha is {alpha}, but no cap was loaded.", "Give one with --cap, or use --alpha 0.")
        return contextlib.nullcontext()

    def _prompt(self, conversation: Conversation, sampling: Sampling) -> list[int]:
        ids = prompt_ids(self._tokenizer, conversation)
        if len(ids) + sampling.max_new_tokens > self._context:
            raise InputError(
                f"The conversation has {len(ids)} tokens; with {sampling.max_new_tokens} new ones that is more than "
                f"the model's context of {self._context}.",
                "Shorten it, or lower the number of new tokens.",
            )
        return ids

    def _options(self, sampling: Sampling) -> dict[str, Any]:
        from transformers import GenerationConfig

        sampled = sampling.temperature > 0
        return {
            "generation_config": GenerationConfig(
                max_new_tokens=sampling.max_new_tokens,
                do_sample=sampled,
                temperature=sampling.temperature if sampled else None,
                top_p=sampling.top_p if sampled else None,
                top_k=0 if sampled else None,
                eos_token_id=self._stop_ids,
                pad_token_id=self._tokenizer.pad_token_id,
                use_cache=True,
            )
        }

    def _until_stop(self, ids: list[int]) -> tuple[list[int], bool]:
        """The answer's ids up to its end-of-turn, and whether there was one."""
        for position, token in enumerate(ids):
            if token in self._stop_ids:
                return ids[:position], True
        return ids, False


def _streamer(
    tokenizer: PreTrainedTokenizerBase, meter: DriftMeter | None, stop_ids: Sequence[int]
) -> Iterator[str | tuple[str, TokenDrift | None]]:
    """What `generate` streams to: pieces of text and, with a meter, (text of a token, its drift) one token later.

    A token is handed over when it has been chosen; its own drift is known when it has been fed back, which is just
    before the next one is handed over.
    """
    from transformers import TextIteratorStreamer

    class Streamer(TextIteratorStreamer):  # type: ignore[misc]
        chosen: int | None = None  # the last token handed over, not fed back yet

        def put(self, value: torch.Tensor) -> None:
            if meter is not None and not self.next_tokens_are_prompt:
                if self.chosen is not None:
                    self.text_queue.put((tokenizer.decode([self.chosen]), meter.last()))
                self.chosen = int(value)
            super().put(value)

        def end(self) -> None:
            if self.chosen is not None and self.chosen not in stop_ids:
                self.text_queue.put((tokenizer.decode([self.chosen]), None))
            super().end()

    return cast(
        "Iterator[str | tuple[str, TokenDrift | None]]",
        Streamer(tokenizer, skip_prompt=True, skip_special_tokens=True),
    )
