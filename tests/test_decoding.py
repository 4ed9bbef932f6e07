"""Batched decoding says what `generate` says, and a row's answer does not depend on its company."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from karma_electric.core.messages import system, user
from karma_electric.models.chat_template import prompt_ids
from karma_electric.models.engines import choosing
from karma_electric.models.engines.choosing import sample
from karma_electric.models.engines.decoding import can_decode, decode
from karma_electric.models.engines.hf import HfEngine
from karma_electric.models.engines.keys import Memory, shared_length
from karma_electric.models.engines.protocol import Sampling
from karma_electric.steer.cap import capped

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from karma_electric.models.blocks import Site

LIMIT = 24
STOPS = (2, 60, 61, 62, 63, 64, 65, 66, 67)  # the tiny model rarely says 2: more of them, so that rows end early


def some_prompts(tokenizer: PreTrainedTokenizerBase, *, persona: bool) -> list[list[int]]:
    generator = random.Random(3)
    texts = [" ".join(tiny.sentence(generator) for _ in range(1 + n % 3)) for n in range(9)]
    head = [system(tiny.PERSONA)] if persona else []
    return [prompt_ids(tokenizer, [*head, user(text)]) for text in texts]


def by_generate(model: PreTrainedModel, prompt: list[int]) -> list[int]:
    """One prompt, by transformers."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            max_new_tokens=LIMIT,
            eos_token_id=list(STOPS),
            pad_token_id=0,
        )
    return list(output[0, len(prompt) :].tolist())


def run(
    model: PreTrainedModel, prompts: list[list[int]], sampling: Sampling, *, whole_batch: bool = False
) -> list[list[int]]:
    memory = None if whole_batch else Memory(0)
    return decode(model, prompts, sampling, stop_ids=STOPS, pad_id=0, memory=memory)


@pytest.mark.parametrize("whole_batch", [False, True])
def test_greedy_answers_are_those_of_generate_one_by_one(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, whole_batch: bool
) -> None:
    prompts = some_prompts(tokenizer, persona=True)
    expected = [by_generate(model, prompt) for prompt in prompts]
    assert run(model, prompts, Sampling(max_new_tokens=LIMIT), whole_batch=whole_batch) == expected
    assert len({len(answer) for answer in expected}) > 2  # rows ended at different times


def test_prompts_with_nothing_in_common_and_a_batch_of_one(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompts = [ids[3:] for ids in some_prompts(tokenizer, persona=False)]
    prompts = [ids[number:] for number, ids in enumerate(prompts)]
    assert len({ids[0] for ids in prompts}) > 1
    expected = [by_generate(model, prompt) for prompt in prompts]
    assert run(model, prompts, Sampling(max_new_tokens=LIMIT)) == expected
    assert run(model, prompts[:1], Sampling(max_new_tokens=LIMIT)) == expected[:1]


def tokens_read(model: PreTrainedModel, work: Callable[[], object]) -> list[int]:
    """How many tokens each pass reads, padding included."""
    read: list[int] = []
    handle = model.register_forward_pre_hook(
        lambda _, __, kwargs: read.append(kwargs["input_ids"].numel()), with_kwargs=True
    )
    try:
        work()
    finally:
        handle.remove()
    return read


def test_less_is_computed_than_with_whole_batches(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    prompts = some_prompts(tokenizer, persona=True)
    ours = tokens_read(model, lambda: run(model, prompts, Sampling(max_new_tokens=LIMIT)))
    whole = tokens_read(model, lambda: run(model, prompts, Sampling(max_new_tokens=LIMIT), whole_batch=True))
    shared = shared_length(min(prompts), max(prompts), most=min(map(len, prompts)))
    assert shared > 16
    assert sum(whole) - sum(ours) >= shared * (len(prompts) - 1)


def test_the_next_turn_reads_only_what_is_new(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    memory = Memory(1 << 24)
    prompts = some_prompts(tokenizer, persona=True)

    def turn(asked: list[list[int]], memory: Memory) -> list[list[int]]:
        return decode(model, asked, Sampling(max_new_tokens=LIMIT), stop_ids=STOPS, pad_id=0, memory=memory)

    first = turn(prompts, memory)
    going_on = [
        [*prompt, *answer, *prompt_ids(tokenizer, [user(f"And {number}?")])]
        for number, (prompt, answer) in enumerate(zip(prompts, first, strict=True))
    ][::-2]
    expected = [by_generate(model, ids) for ids in going_on]
    answers: list[list[int]] = []
    read = tokens_read(model, lambda: answers.extend(turn(going_on, memory)))
    assert answers == expected
    new = max(len(prompt_ids(tokenizer, [user(f"And {n}?")])) for n in range(9)) + 1
    assert read[0] <= new * len(going_on)
    assert 2 * read[0] < sum(map(len, going_on))


def test_what_does_not_fit_is_not_remembered_and_nothing_is_mixed_up(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompts = some_prompts(tokenizer, persona=True)
    expected = {tuple(ids): by_generate(model, ids)[:4] for row in prompts for ids in (row, row[:-1])}
    for limit in (0, 200_000, 1 << 24):
        memory = Memory(limit)
        for asked in (prompts[:5], prompts[5:], prompts[::-1], [ids[:-1] for ids in prompts]):
            found = decode(model, asked, Sampling(max_new_tokens=4), stop_ids=STOPS, pad_id=0, memory=memory)
            assert found == [expected[tuple(ids)] for ids in asked]


SAMPLED = Sampling(temperature=0.9, top_p=0.9, max_new_tokens=8, seed=5)


def test_a_sampled_answer_depends_on_its_prompt_and_seed_and_not_on_the_batch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompts = some_prompts(tokenizer, persona=True)
    together = run(model, prompts, SAMPLED)
    assert [run(model, [prompt], SAMPLED)[0] for prompt in prompts[:4]] == together[:4]
    assert run(model, prompts[::-1], SAMPLED)[::-1] == together
    assert run(model, prompts, Sampling(temperature=0.9, top_p=0.9, max_new_tokens=8, seed=6)) != together


def test_several_seeds_in_a_batch_answer_as_each_does_alone_and_read_equal_prompts_once(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompts = some_prompts(tokenizer, persona=True)
    asked = [prompt for prompt in prompts for _ in range(3)]
    seeds = [5, 6, 7] * len(prompts)
    alone = {seed: run(model, prompts, replace(SAMPLED, seed=seed)) for seed in set(seeds)}
    together: list[list[int]] = []

    def answer(prompts: list[list[int]], seeds: list[int]) -> None:
        together[:] = decode(model, prompts, SAMPLED, stop_ids=STOPS, pad_id=0, memory=Memory(0), seeds=seeds)

    read = tokens_read(model, lambda: answer(asked, seeds))
    assert together == [alone[seed][row] for row in range(len(prompts)) for seed in (5, 6, 7)]
    once = tokens_read(model, lambda: answer(prompts, [5] * len(prompts)))
    assert read[:2] == once[:2]  # the shared prefix, then the rest of the prompts
    answer(prompts[:1] * 2, [5, 5])
    assert together[0] != together[1]


def test_the_same_prompt_twice_in_a_batch_has_two_answers(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    prompt = some_prompts(tokenizer, persona=True)[0]
    first, second = run(model, [prompt, prompt], SAMPLED)
    assert first != second


@given(
    st.lists(st.floats(-8, 8), min_size=3, max_size=12),
    st.floats(0.05, 1.0),
    st.floats(0.0, 1.0, exclude_max=True),
    st.booleans(),
)
@settings(max_examples=60)
def test_sampling_takes_the_token_at_that_place_of_the_nucleus(
    values: list[float], top_p: float, place: float, few: bool
) -> None:
    """Against the definition, token by token, whether the nucleus is within the first candidates or not."""
    logits = torch.tensor([values])
    before, choosing._LIKELIEST = choosing._LIKELIEST, 2 if few else 512
    try:
        chosen = int(sample(logits, Sampling(temperature=1.0, top_p=top_p), torch.tensor([place], dtype=torch.float64)))
    finally:
        choosing._LIKELIEST = before
    probabilities = logits.softmax(-1)[0].double()
    likelier = float(probabilities[probabilities > probabilities[chosen]].sum())
    assert likelier < top_p + 1e-6  # a token is in the nucleus if the likelier ones do not fill it


def test_frequencies_follow_the_probabilities() -> None:
    logits = torch.tensor([0.0, 1.0, 2.0]).expand(6000, 3)
    uniforms = torch.linspace(0, 1, 6001, dtype=torch.float64)[:-1]
    for top_p in (1.0, 0.999999):
        chosen = sample(logits, Sampling(temperature=1.0, top_p=top_p), uniforms)
        shares = torch.bincount(chosen, minlength=3) / 6000
        assert torch.allclose(shares, torch.tensor([0.0, 1.0, 2.0]).softmax(-1), atol=1e-3)


def test_a_model_with_sliding_windows_is_left_to_transformers(
    tmp_path: Path, tiny_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    from transformers import AutoModelForCausalLM, MistralConfig

    config = json.loads((tiny_path / "config.json").read_text())
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    mistral = AutoModelForCausalLM.from_config(
        MistralConfig(**{key: config[key] for key in keys}, num_key_value_heads=2, sliding_window=8, eos_token_id=2)
    ).eval()
    assert not can_decode(mistral)
    prompt = [user("Who?")]
    (answer,) = HfEngine(mistral, tokenizer).generate([prompt], Sampling(max_new_tokens=3))
    assert answer.usage.completion_tokens <= 3
    assert answer.text is not None


def test_plain_models_can_be_decoded(model: PreTrainedModel) -> None:
    assert can_decode(model)


@pytest.mark.parametrize("site", ["mlp", "block"])
def test_rows_of_several_strengths_are_each_what_generate_says_under_theirs(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, site: Site
) -> None:
    prompts, cap = some_prompts(tokenizer, persona=True), tiny.cap_at(model, tokenizer, site)
    strengths = [(0.0, 0.4, 1.0)[row % 3] for row in range(len(prompts))]
    with capped(model, cap, alpha=strengths):
        found = run(model, prompts, Sampling(max_new_tokens=LIMIT), whole_batch=True)
    for ids, alpha, answer in zip(prompts, strengths, found, strict=True):
        with capped(model, cap, alpha=alpha):
            assert answer == by_generate(model, ids)
    assert found != run(model, prompts, Sampling(max_new_tokens=LIMIT))
