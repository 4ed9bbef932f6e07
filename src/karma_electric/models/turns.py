"""Which tokens of a rendered conversation are whose: the content of every turn, apart from what the template adds.

Headers, end-of-turn tokens and a system prompt that the template puts in by itself belong to no turn.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from karma_electric.core.errors import InputError
from karma_electric.core.messages import Conversation, Message, Role, as_dicts
from karma_electric.models.chat_template import DATE, parts_of
from karma_electric.models.literal import encode

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Turn:
    """One message of a rendered conversation.

    Attributes:
        number: its place in the conversation, from 1, the system message counted.
        role: whose it is.
        tokens: positions of the tokens of its content, in order; empty where the content is.
        pieces: the piece of the text each of them stands for; the tokens that share a character share its piece.
    """

    number: int
    role: Role
    tokens: tuple[int, ...]
    pieces: tuple[str, ...]


@dataclass(frozen=True)
class Rendered:
    """A whole conversation as a model reads it.

    Attributes:
        text: rendered by the chat template.
        ids: its tokens, the same as `chat_template.conversation_ids` gives.
        turns: one per message.
    """

    text: str
    ids: tuple[int, ...]
    turns: tuple[Turn, ...]


def render_turns(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> Rendered:
    """Render a conversation and find the tokens of every turn's content.

    The template is asked once more with a mark in place of every content: what stands between the marks is the
    template's own, and must be found around the real contents too, to the last character. A token that reaches
    over the edge of a content (a template's line break and the user's own as one token) counts as content.

    Args:
        tokenizer: a fast tokenizer with a chat template.
        conversation: any number of turns.

    Raises:
        InputError: the template refuses the conversation or rewrites a turn, or the tokenizer gives no offsets.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"{type(tokenizer).__name__} does not tell which characters a token stands for.",
            "Use a model with a tokenizer.json (a fast tokenizer).",
        )
    text = _render(tokenizer, conversation)
    spans = _content_spans(tokenizer, conversation, text)
    if cut := parts_of(tokenizer, conversation, ask=False):
        ids, offsets = encode(tokenizer, cut)
    else:
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids, offsets = list(encoded["input_ids"]), list(encoded["offset_mapping"])
    turns = []
    for number, (message, (start, end)) in enumerate(zip(conversation, spans, strict=True), 1):
        inside = tuple(i for i, offset in enumerate(offsets) if _overlaps(offset, start, end))
        turns.append(Turn(number, message.role, inside, _pieces(text, [offsets[i] for i in inside], start, end)))
    return Rendered(text, tuple(ids), tuple(turns))


def _overlaps(offset: tuple[int, int], start: int, end: int) -> bool:
    """Whether a token stands for characters in [start, end).

    Byte-level tokenizers leave blanks out of their offsets (trim_offsets): a token of nothing but blanks comes as
    an empty span behind them.
    """
    first, last = offset
    return first < end and last > start if first < last else start < last <= end


def _pieces(text: str, offsets: list[tuple[int, int]], start: int, end: int) -> tuple[str, ...]:
    """The content cut at the ends of its tokens, so that blanks left out of the offsets go with the next one."""
    pieces: list[str] = []
    done = start
    for number, (_, last) in enumerate(offsets):
        upto = end if number == len(offsets) - 1 else min(max(last, done), end)
        shared = upto == done and bool(pieces)  # a further byte of the same character
        pieces.append(pieces[-1] if shared else text[done:upto])
        done = upto
    return tuple(pieces)


def _content_spans(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, text: str) -> list[tuple[int, int]]:
    """Where each content stands in the rendered text. Templates may trim a content, and nothing else."""
    marks = [f"karmaturn{number:06d}" for number in range(len(conversation))]
    frame = _render(tokenizer, [Message(m.role, mark) for m, mark in zip(conversation, marks, strict=True)])
    spans = []
    position = 0
    rest = frame
    for number, (message, mark) in enumerate(zip(conversation, marks, strict=True), 1):
        before, found, rest = rest.partition(mark)
        if not found or mark in rest:
            raise _rewritten(number, message)
        start = position + len(before)
        # up to the next mark, or to the end
        behind = rest.partition(marks[number])[0] if number < len(marks) else rest
        content = next(
            (
                candidate
                for candidate in (message.content, message.content.strip())
                if text.startswith(before + candidate + behind, position)
            ),
            None,
        )
        if content is None:
            raise _rewritten(number, message)
        position = start + len(content)
        spans.append((start, position))
    if text[position:] != rest:
        raise _rewritten(len(conversation), conversation[-1])
    return spans


def _render(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> str:
    try:
        return str(
            tokenizer.apply_chat_template(
                as_dicts(conversation), tokenize=False, add_generation_prompt=False, date_string=DATE
            )
        )
    except Exception as error:  # templates raise what they like
        raise InputError(
            f"The model's chat template refuses this conversation ({error}).", "Some templates know no system turn."
        ) from None


def _rewritten(number: int, message: Message) -> InputError:
    return InputError(
        f"The model's chat template rewrites turn {number} ({message.role}), so its tokens cannot be told apart.",
        "Templates that drop or change what a turn says (reasoning in earlier answers, say) need it left out there.",
    )
