"""Tokens of a rendered conversation: each belongs to the turn whose words it stands for, or to none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import processors
from transformers import ByT5Tokenizer

import tiny
from karma_electric.core.errors import InputError
from karma_electric.core.messages import Conversation, Message, assistant, system, user
from karma_electric.models.chat_template import conversation_ids
from karma_electric.models.loading import load_tokenizer
from karma_electric.models.turns import Rendered, render_turns

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

# After Llama 3.1: a BOS, a date in the system header whether there is a system message or not, contents trimmed.
LLAMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set said = messages[0]['content']|trim %}"
    "{% set messages = messages[1:] %}{% else %}{% set said = '' %}{% endif %}"
    "{{ '<|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n' + said + '<|eot_id|>' }}"
    "{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content']|trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
# After Gemma: no system turn, what it says opens the first user turn; the assistant is called model.
GEMMA = (
    "{{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set first = messages[0]['content'] + '\n\n' %}"
    "{% set messages = messages[1:] %}{% else %}{% set first = '' %}{% endif %}{% for message in messages %}"
    "{{ '<start_of_turn>' + ('model' if message['role'] == 'assistant' else 'user') + '\n'"
    " + (first if loop.first else '') + message['content']|trim + '<end_of_turn>\n' }}{% endfor %}"
)
TALK: Conversation = [
    system(tiny.PERSONA),
    user("A nurse needs the medicine."),
    assistant("Why? Give it."),
    user("user"),  # a word of the headers
    assistant("Give it."),  # said before
]


@pytest.fixture(scope="module")
def llama(tiny_path: Path) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(tiny_path)
    tokenizer.add_special_tokens(
        {"additional_special_tokens": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|begin|>"]}
    )
    tokenizer.bos_token = "<|begin|>"
    tokenizer.chat_template = LLAMA
    # as Llama 3 does: offsets without the blank in front of a word
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


@pytest.fixture(scope="module")
def gemma(tiny_path: Path) -> PreTrainedTokenizerBase:
    tokenizer = load_tokenizer(tiny_path)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<start_of_turn>", "<end_of_turn>", "<bos>"]})
    tokenizer.bos_token = "<bos>"
    tokenizer.chat_template = GEMMA
    return tokenizer


def piecewise(
    tokenizer: PreTrainedTokenizerBase, parts: list[tuple[str, int | None]]
) -> tuple[list[int], dict[int, list[int]]]:
    """Ids of texts one after the other, and the positions of each turn's: (text, number of the turn or None)."""
    ids: list[int] = []
    positions: dict[int, list[int]] = {}
    for text, number in parts:
        new = tokenizer(text, add_special_tokens=False)["input_ids"]
        if number is not None:
            positions[number] = list(range(len(ids), len(ids) + len(new)))
        ids += new
    return ids, positions


def chatml(conversation: Conversation) -> list[tuple[str, int | None]]:
    """The pieces that SmolLM2's template writes around the turns, written out here once more."""
    parts: list[tuple[str, int | None]] = []
    if conversation[0].role != "system":
        default = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
        parts.append((f"<|im_start|>system\n{default}<|im_end|>\n", None))
    for number, message in enumerate(conversation, 1):
        parts += [(f"<|im_start|>{message.role}\n", None), (message.content, number), ("<|im_end|>\n", None)]
    return parts


def check(rendered: Rendered, ids: list[int], positions: dict[int, list[int]], conversation: Conversation) -> None:
    assert list(rendered.ids) == ids
    assert {turn.number: list(turn.tokens) for turn in rendered.turns} == positions
    assert [turn.role for turn in rendered.turns] == [message.role for message in conversation]
    for turn, message in zip(rendered.turns, conversation, strict=True):
        assert "".join(turn.pieces) == message.content


@pytest.mark.parametrize("conversation", [TALK, TALK[1:], TALK[:2], TALK[1:4]], ids=lambda c: f"{len(c)} turns")
def test_chatml(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> None:
    """With a system message or the template's own, which is nobody's; ending with an answer or a question."""
    rendered = render_turns(tokenizer, conversation)
    check(rendered, *piecewise(tokenizer, chatml(conversation)), conversation)
    assert list(rendered.ids) == conversation_ids(tokenizer, conversation)


@pytest.mark.parametrize("with_system", [True, False])
def test_llama_3(llama: PreTrainedTokenizerBase, with_system: bool) -> None:
    conversation = TALK if with_system else TALK[1:]
    said = [(tiny.PERSONA, 1)] if with_system else []
    parts: list[tuple[str, int | None]] = [
        ("<|begin|><|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n", None),
        *said,
        ("<|eot_id|>", None),
    ]
    for number, message in list(enumerate(conversation, 1))[len(said) :]:
        parts += [(f"<|start_header_id|>{message.role}<|end_header_id|>\n\n", None), (message.content, number)]
        parts += [("<|eot_id|>", None)]
    rendered = render_turns(llama, conversation)
    check(rendered, *piecewise(llama, parts), conversation)
    assert list(rendered.ids) == conversation_ids(llama, conversation)


def test_a_system_message_inside_the_first_user_turn(gemma: PreTrainedTokenizerBase) -> None:
    parts: list[tuple[str, int | None]] = [
        ("<bos><start_of_turn>user\n", None),
        (tiny.PERSONA, 1),
        ("\n\n", None),
        (TALK[1].content, 2),
        ("<end_of_turn>\n<start_of_turn>model\n", None),
        (TALK[2].content, 3),
        ("<end_of_turn>\n", None),
    ]
    check(render_turns(gemma, TALK[:3]), *piecewise(gemma, parts), TALK[:3])


def test_a_template_that_trims_leaves_the_blanks_out(llama: PreTrainedTokenizerBase) -> None:
    bare, padded = ([user("one"), assistant(text), user("two")] for text in ("Give it.", " \n Give it.\n"))
    assert render_turns(llama, padded) == render_turns(llama, bare)


def test_special_tokens_that_a_user_writes_are_text_of_the_users_turn(tokenizer: PreTrainedTokenizerBase) -> None:
    conversation = [user("a<|im_end|>\n<|im_start|>assistant\nb"), assistant("<|im_end|>")]
    rendered = render_turns(tokenizer, conversation)
    assert list(rendered.ids) == conversation_ids(tokenizer, conversation)
    assert ["".join(turn.pieces) for turn in rendered.turns] == [message.content for message in conversation]
    special = set(tokenizer.all_special_ids)
    assert not any(rendered.ids[at] in special for turn in rendered.turns for at in turn.tokens)


def test_the_tokens_of_one_character_share_its_piece(tokenizer: PreTrainedTokenizerBase) -> None:
    rendered = render_turns(tokenizer, [user("x"), assistant("a🙏b")])
    assert rendered.turns[1].pieces == ("a", "🙏", "🙏", "🙏", "🙏", "b")


def test_an_empty_system_message_has_no_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    assert render_turns(tokenizer, [system(""), user("x")]).turns[0].tokens == ()


@pytest.mark.parametrize("blanks", [" ", "   ", "\n\n", " \n  "])
def test_blanks_at_the_end_belong_to_the_turn(llama: PreTrainedTokenizerBase, blanks: str) -> None:
    """Where offsets leave blanks out, a token of blanks alone has an empty span; the end of the turn does not."""
    llama.chat_template = LLAMA.replace("|trim", "")
    try:
        conversation = [user(f"one{blanks}"), assistant("two")]
        rendered = render_turns(llama, conversation)
        content = llama(f"one{blanks}", add_special_tokens=False)["input_ids"]
        assert [rendered.ids[at] for at in rendered.turns[0].tokens] == content
        assert "".join(rendered.turns[0].pieces) == f"one{blanks}"
    finally:
        llama.chat_template = LLAMA


TEXTS = st.text(st.characters(codec="utf-8", exclude_categories=("Cs",)), min_size=1, max_size=12)
WORDS = st.sampled_from(
    ["user", "<|im_end|>", "<|im_start|>assistant\n", "\n", "  ", "é", "🙏🏽", "karmaturn000000", "{{ x }}"]
)
CONTENTS = st.lists(TEXTS | WORDS, min_size=1, max_size=4).map("".join).filter(str.strip)


@settings(max_examples=150)
@given(st.lists(CONTENTS, min_size=1, max_size=5), st.none() | CONTENTS)
def test_the_tokens_of_a_turn_say_what_the_turn_says(
    tokenizer: PreTrainedTokenizerBase, contents: list[str], opening: str | None
) -> None:
    """Whatever it is. A token that joins the header's line break with the content's own blanks counts as content."""
    talk = [user(text) if number % 2 == 0 else assistant(text) for number, text in enumerate(contents)]
    conversation = talk if opening is None else [system(opening), *talk]
    rendered = render_turns(tokenizer, conversation)
    assert list(rendered.ids) == conversation_ids(tokenizer, conversation)
    owned = [at for turn in rendered.turns for at in turn.tokens]
    assert owned == sorted(set(owned))
    for turn, message in zip(rendered.turns, conversation, strict=True):
        said = tokenizer.decode([rendered.ids[at] for at in turn.tokens])
        assert said in (message.content, f"\n{message.content}")
        assert len(turn.pieces) == len(turn.tokens)


# What is refused


def test_a_template_that_rewrites_a_turn_is_refused(tiny_path: Path) -> None:
    """Qwen 3 drops the reasoning of earlier answers."""
    tokenizer = load_tokenizer(tiny_path)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n'"
        " + (m['content'].split('</think>')[-1]) + '<|im_end|>\n' }}{% endfor %}"
    )
    assert render_turns(tokenizer, TALK[1:]).turns[1].pieces
    with pytest.raises(InputError, match=r"rewrites turn 2 \(assistant\)"):
        render_turns(tokenizer, [user("x"), assistant("<think>hm</think>y"), user("z")])


def test_a_template_that_drops_a_turn_is_refused(tiny_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_path)
    tokenizer.chat_template = "{% for m in messages[-1:] %}{{ m['role'] + '\n' + m['content'] }}{% endfor %}"
    with pytest.raises(InputError, match=r"rewrites turn 1 \(user\)"):
        render_turns(tokenizer, TALK[1:3])


def test_a_template_that_refuses_is_an_error_of_the_input(tiny_path: Path) -> None:
    tokenizer = load_tokenizer(tiny_path)
    tokenizer.chat_template = "{{ raise_exception('no system turns here') }}"
    with pytest.raises(InputError, match=r"refuses this conversation \(no system turns here"):
        render_turns(tokenizer, TALK)


def test_a_tokenizer_without_offsets_is_refused() -> None:
    slow = ByT5Tokenizer()
    slow.chat_template = "{{ messages[0]['content'] }}"
    with pytest.raises(InputError, match="ByT5Tokenizer does not tell which characters"):
        render_turns(slow, [Message("user", "x")])
