"""Renders conversations to tokens, and finds the training template that fits a tokenizer.

A training template is accepted only if it renders, byte for byte, what the tokenizer's own template renders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import resources
from typing import TYPE_CHECKING

from karma_electric.core.artifact import hash_text
from karma_electric.core.errors import InputError
from karma_electric.core.messages import Conversation, as_dicts, assistant, system, user
from karma_electric.models.literal import Part, encode, parts, special_tokens

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# What Llama 3.1's template writes where it is told no date. It is always told this one: its successors would write
# today's, and a prompt that changes from day to day is not the one that a model, an axis or a test was made with.
DATE = "26 Jul 2024"
_PROBES: tuple[Conversation, ...] = (
    [user("one"), assistant("two")],
    [
        system("Be kind."),
        user(" spaced \n"),
        assistant("línea\n\ndos "),
        user("<b>&amp;</b>"),
        assistant("ok"),
    ],
    [system(""), user("'quotes' \"both\""), assistant("{{ not a template }}")],
)


def template_sha256(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash of a tokenizer's chat template: an axis belongs to one."""
    return hash_text(str(tokenizer.chat_template))


def prompt_text(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> str:
    """A conversation as the text a model continues, ending with the assistant's header."""
    rendered: str = tokenizer.apply_chat_template(
        as_dicts(conversation), tokenize=False, add_generation_prompt=True, date_string=DATE
    )
    return rendered


def prompt_ids(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> list[int]:
    """The same as token ids. Never render and tokenise again: that adds a second BOS.

    Special tokens in a message are text: only the template's own are control tokens.
    """
    return _ids(tokenizer, conversation, ask=True)


def conversation_ids(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> list[int]:
    """Token ids of a whole conversation, the last answer and its end-of-turn included; otherwise as `prompt_ids`."""
    return _ids(tokenizer, conversation, ask=False)


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    """Token ids of a raw text to continue: with a BOS where the tokenizer adds one, and its special tokens parsed.

    Whoever sends raw text has written the template themselves. A BOS that they wrote too is not doubled.
    """
    ids = list(tokenizer(text)["input_ids"])
    bos = tokenizer.bos_token_id
    return ids[1:] if bos is not None and ids[:2] == [bos, bos] else ids


def parts_of(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, *, ask: bool) -> list[Part] | None:
    """A rendered conversation in parts where a message has special tokens in it; None where none has."""

    def render(turns: Conversation) -> str:
        rendered: str = tokenizer.apply_chat_template(
            as_dicts(turns), tokenize=False, add_generation_prompt=ask, date_string=DATE
        )
        return rendered

    return parts(render, conversation, special_tokens(tokenizer))


def _ids(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, *, ask: bool) -> list[int]:
    if cut := parts_of(tokenizer, conversation, ask=ask):
        return encode(tokenizer, cut)[0]
    encoded = tokenizer.apply_chat_template(
        as_dicts(conversation), add_generation_prompt=ask, return_dict=True, date_string=DATE
    )
    return list(encoded["input_ids"])


def user_text_that_fits(text: str, length: Callable[[str], int], max_tokens: int) -> str:
    """The longest head of a user's text whose rendering fits; the text itself where it does.

    A rendered prompt must not be cut on the right: the assistant's header is there, and without it the model would
    go on writing the user's turn. So the text is cut, and rendered again.

    Args:
        text: what the user says.
        length: renders a conversation (or several) with that user text, and returns the tokens of the longest.
        max_tokens: how many there may be.

    Raises:
        InputError: not even an empty user text fits.
    """
    if length(text) <= max_tokens:
        return text
    if (least := length("")) > max_tokens:
        raise InputError(
            f"The prompt has {least} tokens without any user text, more than the {max_tokens} there may be.",
            "Shorten the system prompt (or the response), or allow more tokens.",
        )
    fitting, too_long = 0, len(text)  # characters; tokens need not grow with every one, so each answer is tried
    while too_long - fitting > 1:
        middle = (fitting + too_long) // 2
        if length(text[:middle]) <= max_tokens:
            fitting = middle
        else:
            too_long = middle
    return text[:fitting]


def training_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The shipped training template that renders exactly like the tokenizer's own.

    Raises:
        InputError: none does.
    """
    own = str(tokenizer.chat_template)
    if "{% generation %}" in own or "{%- generation" in own:
        return own
    folder = resources.files("karma_electric.models.templates")
    candidates = sorted(f.name for f in folder.iterdir() if f.name.endswith(".jinja"))
    for name in candidates:
        template = folder.joinpath(name).read_text(encoding="utf-8").removesuffix("\n")
        if all(_render(tokenizer, probe, template) == _render(tokenizer, probe, own) for probe in _PROBES):
            return template
    raise InputError(
        f"No training template renders like this tokenizer's chat template (tried {', '.join(candidates)}).",
        "Add one with generation markers to karma_electric/models/templates.",
    )


def _render(tokenizer: PreTrainedTokenizerBase, conversation: Conversation, template: str) -> Sequence[str]:
    try:
        return [
            tokenizer.apply_chat_template(
                as_dicts(turns), chat_template=template, tokenize=False, add_generation_prompt=ask, date_string=DATE
            )
            for turns, ask in ((conversation, False), (conversation[:-1], True))
        ]
    except Exception as error:  # templates raise what they like; a template that cannot render does not fit
        return [f"{type(error).__name__}: {error}"]
