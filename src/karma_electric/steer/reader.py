"""Reads the activations of contrast prompts under every system prompt, and computes what they share once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from karma_electric.core.errors import DataError, InputError
from karma_electric.core.messages import Conversation
from karma_electric.core.progress import Progress
from karma_electric.models.blocks import SITES, decoder_blocks
from karma_electric.models.chat_template import prompt_ids, user_text_that_fits
from karma_electric.steer.activations import all_sites
from karma_electric.steer.answers import Answers
from karma_electric.steer.chunks import Sides
from karma_electric.steer.contrast import ContrastSet, Prompt
from karma_electric.steer.prefix import WHOLE, Prefix, Reading, common_prefix, read, share

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def context_length(model: PreTrainedModel) -> int:
    """Tokens that a sequence may have: the model's context."""
    return int(model.config.get_text_config().max_position_embeddings)


def _prompt_ids(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> list[int]:
    from jinja2 import TemplateError

    try:
        return prompt_ids(tokenizer, conversation)
    except TemplateError as error:
        raise InputError(
            f"The model's chat template does not take a system prompt ({error}).", "An axis needs one that does."
        ) from None


def require_rendered(tokenizer: PreTrainedTokenizerBase, contrast: ContrastSet) -> None:
    """Raise `InputError` where the chat template writes the persona's prompt like a generic one."""
    toward, *away = (_prompt_ids(tokenizer, c) for c in contrast.conversations(contrast.prompts[0]))
    if toward in away:
        raise InputError(
            f"The chat template writes the toward prompt as it writes {contrast.away[away.index(toward)]!r}.",
            "An axis needs a chat template that writes system prompts.",
        )


def answer_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """The tokens of an answer, its end-of-turn left out: that one is not fed back, so no cap ever sees it."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text.strip() else []


def fitted(
    tokenizer: PreTrainedTokenizerBase, contrast: ContrastSet, max_tokens: int, answers: Answers | None
) -> ContrastSet:
    """The prompts, each shortened so that it fits under every system prompt, with its answer: both sides read alike."""

    def fit(prompt: Prompt) -> Prompt:
        systems = (contrast.toward, *contrast.away)
        room = [len(answer_ids(tokenizer, answers[prompt.id, text])) if answers else 0 for text in systems]

        def length(text: str) -> int:
            rendered = contrast.conversations(replace(prompt, text=text))
            return max(len(_prompt_ids(tokenizer, c)) + taken for c, taken in zip(rendered, room, strict=True))

        return replace(prompt, text=user_text_that_fits(prompt.text, length, max_tokens))

    return replace(contrast, prompts=tuple(fit(prompt) for prompt in contrast.prompts))


def by_length(
    tokenizer: PreTrainedTokenizerBase, contrast: ContrastSet, answers: Answers | None
) -> tuple[ContrastSet, list[int]]:
    """The prompts by length, the longest first: chunks of similar lengths need little padding, and what is too much for
    the memory fails at once.

    Returns:
        The same set in that order, and for every prompt of the given one its place there.
    """

    def length(prompt: Prompt) -> int:
        taken = len(answer_ids(tokenizer, answers[prompt.id, contrast.toward])) if answers else 0
        return len(_prompt_ids(tokenizer, contrast.conversations(prompt)[0])) + taken

    lengths = [length(prompt) for prompt in contrast.prompts]
    order = sorted(range(len(lengths)), key=lambda i: -lengths[i])
    place = sorted(range(len(order)), key=lambda i: order[i])
    return replace(contrast, prompts=tuple(contrast.prompts[i] for i in order)), place


def answered(tokenizer: PreTrainedTokenizerBase, contrast: ContrastSet, answers: Answers) -> ContrastSet:
    """The prompts with an answer under every system prompt: a mean over no tokens is none, and sides are paired."""
    systems = (contrast.toward, *contrast.away)
    kept = [p for p in contrast.prompts if all(answer_ids(tokenizer, answers[p.id, text]) for text in systems)]
    if not kept:
        raise DataError(
            "No contrast prompt has an answer under every system prompt: the model answered nothing.",
            "Check the model with karma chat, or use --position last-prompt.",
        )
    return replace(contrast, prompts=tuple(kept))


class Reader:
    """Reads the activations of prompts under all system prompts; what all begin with is computed once for each."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        contrast: ContrastSet,
        answers: Answers | None,
        batch_tokens: int,
        progress: Progress,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._contrast = contrast
        self._answers = answers
        self._batch_tokens = batch_tokens
        self._progress = progress
        self._keys = all_sites(len(decoder_blocks(model)))
        self._prefixes: list[Prefix] | None = None  # by system prompt; made when the first chunk is

    @property
    def prompts(self) -> tuple[Prompt, ...]:
        """All of them."""
        return self._contrast.prompts

    def sides(self, prompts: Sequence[Prompt]) -> Sides:
        """Toward and mean away activations of some of the prompts."""
        import torch

        if self._prefixes is None:
            self._prefixes = self._shared()
        toward, away = torch.empty(0), torch.zeros((), dtype=torch.float64)
        for which, prefix in enumerate(self._prefixes):
            readings = [self._reading(prompt, which) for prompt in prompts]
            values = read(self._model, readings, self._keys, prefix, batch_tokens=self._batch_tokens)
            if which == 0:
                toward = values
            else:
                away = away + values
        sides = (toward, (away / len(self._contrast.away)).float())
        n_layers = len(self._keys) // len(SITES)  # the keys are site by site
        by_site = [values.view(len(SITES), n_layers, len(prompts), -1).transpose(1, 2) for values in sides]
        return {site: (by_site[0][i], by_site[1][i]) for i, site in enumerate(SITES)}

    def _reading(self, prompt: Prompt, which: int) -> Reading:
        """A prompt under one system prompt."""
        conversation = self._contrast.conversations(prompt)[which]
        ids = _prompt_ids(self._tokenizer, conversation)
        if len(ids) < 2:  # the first position is an attention sink: it is never read
            raise InputError("The model's chat template writes nothing in front of a prompt.", "Use another template.")
        if self._answers is None:
            return Reading(ids, len(ids) - 1, len(ids))
        answer = answer_ids(self._tokenizer, self._answers[prompt.id, conversation[0].content])
        return Reading([*ids, *answer], len(ids), len(ids) + len(answer))

    def _shared(self) -> list[Prefix]:
        """What the prompts share under each system prompt. Whether the model takes it is tried under the first one."""
        prefixes: list[Prefix] = []
        for which in range(1 + len(self._contrast.away)):
            ids, longest = common_prefix(self._reading(prompt, which) for prompt in self._contrast.prompts)
            sample = None if prefixes else self._reading(self._contrast.prompts[-1], which)
            prefix = share(self._model, ids, self._keys, longest=longest, sample=sample)
            if prefix.problem:
                self._progress.say(f"  every sequence is computed whole: {prefix.problem}")
                return [WHOLE] * (1 + len(self._contrast.away))
            prefixes.append(prefix)
        return prefixes
