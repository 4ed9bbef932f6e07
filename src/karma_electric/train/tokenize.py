"""Conversations to token ids and labels: only the assistant's words and their end-of-turn are learned."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from karma_electric.core.errors import DataError
from karma_electric.core.jsonl import read_jsonl
from karma_electric.core.messages import Conversation, as_dicts, parse_conversation
from karma_electric.models.chat_template import DATE, training_template

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the label PyTorch's cross entropy leaves out


@dataclass(frozen=True)
class Tokenized:
    """One example ready to train on: `labels[i]` is `input_ids[i]` where it is learned, else -100."""

    id: str
    input_ids: list[int]
    labels: list[int]


@dataclass(frozen=True)
class TokenizedSplit:
    """The examples of one split, and what happened to those that were too long."""

    examples: list[Tokenized]
    cut: list[str]
    dropped: list[str]

    @property
    def tokens(self) -> int:
        """All tokens."""
        return sum(len(example.input_ids) for example in self.examples)

    @property
    def learned_tokens(self) -> int:
        """Tokens that carry a label."""
        return sum(sum(label != IGNORED for label in example.labels) for example in self.examples)


def read_split(path: Path) -> list[tuple[str, Conversation]]:
    """The (id, conversation) pairs of a release file."""
    return [(item["id"], parse_conversation(item["messages"], f"{path.name} line {n}")) for n, item in read_jsonl(path)]


def tokenize_split(
    conversations: Sequence[tuple[str, Conversation]], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> TokenizedSplit:
    """Tokenise conversations for training.

    One longer than `max_length` tokens loses whole exchanges from its end until it fits; if even the first
    exchange does not fit it is dropped. Both are reported, by id.

    Raises:
        DataError: nothing is left, or an answer cannot be found again among the tokens.
    """
    template = training_template(tokenizer)
    examples, cut, dropped = [], [], []
    for example_id, conversation in conversations:
        kept = list(conversation)
        example = _tokenize(example_id, kept, tokenizer, template)
        while len(example.input_ids) > max_length and sum(m.role == "assistant" for m in kept) > 1:
            kept = kept[:-2]
            example = _tokenize(example_id, kept, tokenizer, template)
        if len(example.input_ids) > max_length:
            dropped.append(example_id)
            continue
        if len(kept) < len(conversation):
            cut.append(example_id)
        examples.append(example)
    if not examples:
        raise DataError(
            f"No example fits in {max_length} tokens ({len(dropped)} were too long).",
            "Raise train.max_length.",
        )
    return TokenizedSplit(examples, cut, dropped)


def _tokenize(
    example_id: str, conversation: Conversation, tokenizer: PreTrainedTokenizerBase, template: str
) -> Tokenized:
    encoded = tokenizer.apply_chat_template(
        as_dicts(conversation),
        chat_template=template,
        return_dict=True,
        return_assistant_tokens_mask=True,
        date_string=DATE,
    )
    ids, mask = list(encoded["input_ids"]), encoded["assistant_masks"]
    # transformers gives up silently at an answer whose first character has no token of its own: some tokenizers
    # leave a leading space out of their offsets
    marked = sum(now and not before for before, now in zip([0, *mask], mask, strict=False))
    answers = sum(message.role == "assistant" for message in conversation)
    if marked != answers:
        raise DataError(
            f"Only {marked} of the {answers} answers of {example_id!r} could be marked as learned.",
            "An answer must not begin with a space.",
        )
    return Tokenized(example_id, ids, [i if learned else IGNORED for i, learned in zip(ids, mask, strict=True)])
