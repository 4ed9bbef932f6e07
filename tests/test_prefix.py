"""A prefix that is computed once: the same activations as whole sequences one at a time, or none is shared."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import tiny
from karma_electric.models.blocks import decoder_blocks
from karma_electric.steer import prefix as prefixes
from karma_electric.steer.activations import all_sites
from karma_electric.steer.prefix import WHOLE, Reading, common_prefix, read, share

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HIDDEN, LAYERS = 32, 4
SIZES: dict[str, Any] = {
    "vocab_size": tiny.VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
SHARING: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
    "Mistral": {"sliding_window": None},
    "Gemma2": {"head_dim": 8, "sliding_window": 64},
    "GPTNeoX": {},  # attention and MLP in parallel
    "GPT2": {},  # learned positions
}
SHORT_WINDOW: dict[str, dict[str, Any]] = {
    "Mistral": {"sliding_window": 12},
    "Gemma2": {"head_dim": 8, "sliding_window": 12},
    "Qwen2": {"use_sliding_window": True, "sliding_window": 12, "max_window_layers": 2},
}


def build(name: str, **settings: Any) -> PreTrainedModel:
    """A tiny random model of a family, in float32."""
    head = "LMHeadModel" if name == "GPT2" else "ForCausalLM"
    with torch.random.fork_rng():
        torch.manual_seed(3)
        config = getattr(transformers, f"{name}Config")(**SIZES, **settings)
        model: PreTrainedModel = getattr(transformers, f"{name}{head}")(config).float().eval()
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name or "ln_" in parameter_name:
                nn.init.uniform_(parameter, 0.2, 1.0)
    return model


def some_readings(shared: int = 9, n: int = 7, seed: int = 0) -> list[Reading]:
    """Sequences of 12 to 40 tokens that begin alike; some are read at their end, some over a span."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(count: int) -> list[int]:
        return torch.randint(3, tiny.VOCABULARY, (count,), generator=generator).tolist()

    beginning, readings = tokens(shared), []
    for number in range(n):
        ids = beginning + tokens(3 + int(torch.randint(0, 28, (1,), generator=generator)))
        start = shared + 1 if number % 3 == 2 else len(ids) - 1
        readings.append(Reading(ids, start, len(ids)))
    return readings


def alone(model: PreTrainedModel, reading: Reading) -> torch.Tensor:
    """What is read of one sequence [sites x layers, hidden]: by itself, without a cache.

    From `hidden_states`; and what an MLP reads is what its block gives, less what the MLP adds.
    """
    added: list[torch.Tensor] = []
    outputs: list[torch.Tensor] = []
    handles = []
    for block in decoder_blocks(model):
        handles.append(block.mlp_added.register_forward_hook(lambda _, __, out: added.append(out[0])))
        handles.append(
            block.module.register_forward_hook(
                lambda _, __, out: outputs.append((out[0] if isinstance(out, tuple) else out)[0])
            )
        )
    with torch.no_grad():
        states = model(torch.tensor([list(reading.ids)]), use_cache=False, output_hidden_states=True).hidden_states
    for handle in handles:
        handle.remove()
    blocks = [*(state[0] for state in states[1:-1]), outputs[-1]]  # the last state is after the final norm
    if getattr(model.config, "use_parallel_residual", False):
        mlps = [state[0] for state in states[:-1]]
    else:
        mlps = [block - mlp for block, mlp in zip(blocks, added, strict=True)]
    return torch.stack([h[reading.start : reading.end].mean(0) for h in (*mlps, *blocks)])


def one_at_a_time(model: PreTrainedModel, readings: list[Reading]) -> torch.Tensor:
    """The same as `read` gives [sites x layers, readings, hidden]."""
    return torch.stack([alone(model, reading) for reading in readings], dim=1)


@pytest.mark.parametrize("family", SHARING)
def test_a_shared_prefix_changes_nothing(family: str) -> None:
    model, readings = build(family, **SHARING[family]), some_readings()
    ids, longest = common_prefix(readings)
    keys = all_sites(LAYERS)
    prefix = share(model, ids, keys, longest=longest, sample=readings[0])
    assert prefix.ids == tuple(readings[0].ids[:9]), prefix.problem
    actual = read(model, readings, keys, prefix, batch_tokens=100)
    torch.testing.assert_close(actual, one_at_a_time(model, readings), rtol=1e-4, atol=2e-5)


def test_the_prefix_is_computed_once_and_serves_again() -> None:
    model, readings = build("Llama"), some_readings(n=12)
    ids, longest = common_prefix(readings)
    widths: list[tuple[int, int]] = []
    handle = model.get_decoder().register_forward_pre_hook(
        lambda _, __, given: widths.append(tuple(given["input_ids"].shape)), with_kwargs=True
    )
    keys = all_sites(LAYERS)
    prefix = share(model, ids, keys, longest=longest, sample=None)
    first = read(model, readings, keys, prefix, batch_tokens=60)
    again = read(model, readings, keys, prefix, batch_tokens=60)
    handle.remove()
    assert first.equal(again), "what one batch adds to the cache must not be seen by the next"
    assert widths[0] == (1, len(ids))
    assert len(widths) > 5
    suffixes = [len(reading.ids) - len(ids) for reading in readings]
    assert all(width <= max(suffixes) and rows * width <= 60 for rows, width in widths[1:])


@pytest.mark.parametrize("family", SHORT_WINDOW)
def test_sequences_that_leave_a_sliding_window_are_computed_whole(family: str) -> None:
    """A window of 12 forgets the prefix in the middle of the sequence: nothing is shared, and the result is right."""
    model, readings = build(family, **SHORT_WINDOW[family]), some_readings()
    ids, longest = common_prefix(readings)
    keys = all_sites(LAYERS)
    prefix = share(model, ids, keys, longest=longest, sample=readings[0])
    assert "sliding window of 12" in prefix.problem
    actual = read(model, readings, keys, prefix, batch_tokens=100)
    torch.testing.assert_close(actual, one_at_a_time(model, readings), rtol=1e-4, atol=2e-5)


def test_a_model_that_gives_something_else_with_a_cache_is_found_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model, readings = build("Llama"), some_readings()
    right = prefixes._for_rows

    def wrong(cache: Any, rows: int) -> Any:
        grown = right(cache, rows)
        for layer in grown.layers:
            layer.values = -layer.values
        return grown

    monkeypatch.setattr(prefixes, "_for_rows", wrong)
    ids, longest = common_prefix(readings)
    prefix = share(model, ids, all_sites(LAYERS), longest=longest, sample=readings[0])
    assert prefix.ids == ()
    assert "does not give the same with a cached prefix" in prefix.problem


def test_a_kind_of_cache_that_is_not_known_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other(transformers.cache_utils.DynamicLayer):
        pass

    model, readings = build("Llama"), some_readings()

    def made(config: Any) -> transformers.Cache:
        return transformers.Cache(layers=[Other() for _ in range(config.num_hidden_layers)])

    monkeypatch.setattr("transformers.DynamicCache", made)
    prefix = share(model, common_prefix(readings)[0], all_sites(LAYERS), longest=40, sample=readings[0])
    assert prefix.problem == "Other is not known to hold a prefix"


def test_more_is_never_held_than_four_batches() -> None:
    """A long system prompt in front of short prompts: its keys and values are held once for every row of a batch."""
    model, readings = build("Llama"), some_readings(shared=100, n=20)
    ids, longest = common_prefix(readings)
    rows: list[int] = []
    keys = all_sites(LAYERS)
    prefix = share(model, ids, keys, longest=longest, sample=None)
    handle = model.get_decoder().register_forward_pre_hook(
        lambda _, __, given: rows.append(given["attention_mask"].numel()), with_kwargs=True
    )
    read(model, readings, keys, prefix, batch_tokens=150)
    handle.remove()
    assert 150 < max(rows) <= 4 * 150
    assert len(rows) > 20 * 15 / 150


def test_nothing_shared_is_nothing_cached() -> None:
    assert share(build("Llama"), [], all_sites(LAYERS), longest=9, sample=None) == WHOLE


# The common prefix

token_lists = st.lists(st.integers(0, 3), min_size=2, max_size=8)


@st.composite
def readings_(draw: st.DrawFn) -> list[Reading]:
    found = []
    for ids in draw(st.lists(token_lists, min_size=1, max_size=5)):
        start = draw(st.integers(1, len(ids) - 1))
        found.append(Reading(ids, start, len(ids)))
    return found


@given(readings=readings_())
def test_the_common_prefix_is_the_longest_that_leaves_what_is_read(readings: list[Reading]) -> None:
    ids, longest = common_prefix(iter(readings))
    n = len(ids)
    assert longest == max(len(reading.ids) for reading in readings)
    assert all(tuple(reading.ids[:n]) == ids and n <= reading.start for reading in readings)
    could_go_on = all(n < reading.start for reading in readings)
    assert not could_go_on or len({reading.ids[n] for reading in readings}) > 1
