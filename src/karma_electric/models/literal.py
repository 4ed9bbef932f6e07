"""Keeps what people write apart from what the template writes: a `<|im_end|>` in a message is text, and ends no turn.

A rendered conversation is one string, in which a tokenizer takes every special token for one, whoever wrote it. So the
conversation is rendered once more with another character in place of the special tokens in its messages; what is found
there is the template's own, and everything else is text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from karma_electric.core.errors import InputError
from karma_electric.core.messages import Conversation, Message

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_STAND_IN = "\ue000"  # of a private area: no template asks for it, none strips it

Render = Callable[[Conversation], str]


@dataclass(frozen=True)
class Part:
    """A part of a rendered conversation.

    Attributes:
        start: its first character.
        text: what it says.
        control: whether it is a special token that the template wrote; else no special token is in it.
    """

    start: int
    text: str
    control: bool


def parts(render: Render, conversation: Conversation, specials: Collection[str]) -> list[Part] | None:
    """A rendered conversation in parts; None where no message has a special token in it, so that it need not be cut.

    Args:
        render: renders a conversation with the chat template.
        conversation: any number of turns.
        specials: the special tokens, written out.

    Raises:
        InputError: the template changes the messages, so that it cannot be told what is whose.
    """
    if not any(special in message.content for message in conversation for special in specials):
        return None
    pattern = re.compile("|".join(re.escape(special) for special in sorted(specials, key=len, reverse=True)))
    harmless = [
        Message(message.role, pattern.sub(lambda m: _STAND_IN * len(m.group()), message.content))
        for message in conversation
    ]
    text, cleaned = render(conversation), render(harmless)
    alike = len(text) == len(cleaned) and all(a in (b, _STAND_IN) for a, b in zip(cleaned, text, strict=True))
    if not alike:
        raise InputError(
            "A message has special tokens in it, and the chat template rewrites messages: they cannot be kept apart.",
            f"Leave out {next(s for s in specials if any(s in m.content for m in conversation))!r}.",
        )
    found: list[Part] = []
    at = 0
    for match in pattern.finditer(cleaned):
        if match.start() > at:
            found.append(Part(at, text[at : match.start()], control=False))
        found.append(Part(match.start(), match.group(), control=True))
        at = match.end()
    if at < len(text):
        found.append(Part(at, text[at:], control=False))
    return found


def special_tokens(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """The special tokens of a tokenizer, written out."""
    added = [str(token.content) for token in tokenizer.added_tokens_decoder.values() if token.special]
    return [token for token in dict.fromkeys((*added, *map(str, tokenizer.all_special_tokens))) if token]


def encode(tokenizer: PreTrainedTokenizerBase, cut: Sequence[Part]) -> tuple[list[int], list[tuple[int, int]]]:
    """Token ids of a conversation in parts, and the characters that each stands for.

    Raises:
        InputError: this tokenizer writes text differently at the start of a part.
    """
    ids, offsets = _encode(tokenizer, cut)
    # the same with harmless text must be what the tokenizer makes of it as a whole
    harmless = [
        part if part.control else Part(part.start, _without(part.text, special_tokens(tokenizer)), control=False)
        for part in cut
    ]
    whole = tokenizer("".join(part.text for part in harmless), add_special_tokens=False)["input_ids"]
    if list(whole) != _encode(tokenizer, harmless)[0]:
        raise InputError(
            "A message has special tokens in it, and this model's tokenizer cannot read them as text.",
            "Leave them out.",
        )
    return ids, offsets


def _encode(tokenizer: PreTrainedTokenizerBase, cut: Sequence[Part]) -> tuple[list[int], list[tuple[int, int]]]:
    ids: list[int] = []
    offsets: list[tuple[int, int]] = []
    for part in cut:
        if part.control:
            ids.append(int(tokenizer.convert_tokens_to_ids(part.text)))
            offsets.append((part.start, part.start + len(part.text)))
            continue
        encoded: Any = tokenizer(
            part.text,
            add_special_tokens=False,
            split_special_tokens=True,
            return_offsets_mapping=bool(tokenizer.is_fast),
        )
        ids += encoded["input_ids"]
        offsets += [(part.start + a, part.start + b) for a, b in encoded.get("offset_mapping", [])]
    return ids, offsets


def _without(text: str, specials: Sequence[str]) -> str:
    for special in specials:
        text = text.replace(special, "x" * len(special))
    return text
