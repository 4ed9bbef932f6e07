"""Hooks on other families than Llama: each against the formula, written out on what the next block is given."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from torch import nn

from karma_electric.core.errors import InputError
from karma_electric.models.blocks import SITES, Site, decoder_blocks
from karma_electric.steer.cap import capped
from karma_electric.steer.spec import AXIS_FILE, Cap, CapSpec
from tiny import random_axis

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HIDDEN, LAYERS, VOCABULARY = 32, 4, 100
LAYER = 1  # the capped block
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": HIDDEN,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Mistral": {},
    "Qwen2": {},
    "Qwen3": {"head_dim": 8},
    "Gemma2": {"head_dim": 8},
    "Gemma3": {"head_dim": 8},
    "Phi": {},
    "Phi3": {},
    "GPTNeoX": {"use_parallel_residual": True},
    "GPTNeoX serial": {"use_parallel_residual": False},
    "Cohere": {},
    "Olmo2": {},
    "GPT2": {},
}


def build(family: str) -> PreTrainedModel:
    """A tiny random model of a family, in float32."""
    name = family.split(maxsplit=1)[0]
    architecture, config = (f"{name}LMHeadModel", "GPT2Config") if name == "GPT2" else (f"{name}ForCausalLM", None)
    if name == "Gemma3":
        config = "Gemma3TextConfig"
    with torch.random.fork_rng():
        torch.manual_seed(3)
        made = getattr(transformers, config or f"{name}Config")(**SIZES, **FAMILIES[family])
        model: PreTrainedModel = getattr(transformers, architecture)(made).float().eval()
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name or "ln_" in parameter_name:
                nn.init.uniform_(parameter, 0.2, 1.0)
    return model


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest) -> PreTrainedModel:
    """One model of each family."""
    return build(request.param)


@pytest.fixture(scope="module")
def ids() -> torch.Tensor:
    """Two rows of tokens."""
    return torch.randint(3, VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))


def cap_of(model: PreTrainedModel, ids: torch.Tensor, site: Site, alpha: float) -> Cap:
    """A cap at one block whose threshold half of these tokens are above."""
    axis = random_axis(n_layers=LAYERS, hidden=HIDDEN)
    read = mlp_input(model, ids) if site == "mlp" else block_states(model, ids)[1]
    threshold = float((read @ axis.directions[site][LAYER]).median())
    return Cap.of(CapSpec(AXIS_FILE, site, (LAYER,), {LAYER: threshold}, alpha), axis)


def block_states(model: PreTrainedModel, ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What goes into block 1 and into block 2 [batch, seq, hidden]: hidden states as the next block sees them."""
    seen: list[torch.Tensor] = []

    def keep(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append((args[0] if args else kwargs["hidden_states"]).clone())

    blocks = decoder_blocks(model)
    handles = [blocks[n].module.register_forward_pre_hook(keep, with_kwargs=True) for n in (LAYER, LAYER + 1)]
    try:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return seen[0], seen[1]


def mlp_input(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """What block 1's MLP reads: block output minus what was added after attention, by a wrapped forward."""
    block = decoder_blocks(model)[LAYER]
    seen: list[torch.Tensor] = []
    original: Callable[..., torch.Tensor] = block.mlp_added.forward

    def forward(*args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(original(*args, **kwargs))
        return seen[-1]

    block.mlp_added.forward = forward  # type: ignore[method-assign]
    try:
        before, after = block_states(model, ids)
    finally:
        block.mlp_added.forward = original  # type: ignore[method-assign]
    parallel = "post_attention_layernorm" not in dict(block.module.named_children()) or getattr(
        model.config, "use_parallel_residual", False
    )
    if type(model).__name__ == "GPT2LMHeadModel":
        parallel = False
    return before if parallel else after - seen[-1]


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_a_site_is_capped_by_the_formula(model: PreTrainedModel, ids: torch.Tensor, site: Site, alpha: float) -> None:
    """What is read there decides, and the block's output moves by exactly the correction."""
    cap = cap_of(model, ids, site, alpha)
    _, h = block_states(model, ids)
    read = mlp_input(model, ids) if site == "mlp" else h
    v, t = cap.directions[LAYER], cap.spec.thresholds[LAYER]
    over = (read @ v - t).clamp_min(0)
    assert 0 < (over > 0).float().mean() < 1
    with capped(model, cap):
        _, actual = block_states(model, ids)
    torch.testing.assert_close(actual, h - alpha * over[..., None] * v, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("site", SITES)
def test_decoding_with_a_cache_equals_computing_everything_again(
    model: PreTrainedModel, ids: torch.Tensor, site: Site
) -> None:
    with capped(model, cap_of(model, ids, site, 0.5)), torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits
        first = model(input_ids=ids[:, :5], use_cache=True)
        steps = [first.logits]
        cache = first.past_key_values
        for position in range(5, ids.shape[1]):
            out = model(input_ids=ids[:, position : position + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
            steps.append(out.logits)
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("site", SITES)
def test_alpha_0_is_the_bare_model_bit_for_bit(model: PreTrainedModel, ids: torch.Tensor, site: Site) -> None:
    with torch.no_grad():
        bare = model(input_ids=ids).logits
        with capped(model, cap_of(model, ids, site, 0.5), alpha=0.0):
            assert model(input_ids=ids).logits.equal(bare)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("alpha", [0.5, [0.2, 0.9]])
def test_a_compiled_model_is_capped_without_graph_breaks(ids: torch.Tensor, site: Site, alpha: Any) -> None:
    """Compiled before the cap was attached or after, and bare again when it is gone."""
    model = build("Llama")
    cap = cap_of(model, ids, site, 0.5)
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    with torch.no_grad():
        bare = model(input_ids=ids, use_cache=False).logits
        torch.testing.assert_close(compiled(input_ids=ids, use_cache=False).logits, bare)
        with capped(model, cap, alpha=alpha):
            expected = model(input_ids=ids, use_cache=False).logits
            for _ in range(2):
                torch.testing.assert_close(compiled(input_ids=ids, use_cache=False).logits, expected)
        torch.testing.assert_close(compiled(input_ids=ids, use_cache=False).logits, bare)
    assert not torch.allclose(expected, bare)


@pytest.mark.parametrize("site", SITES)
def test_a_static_cache_decodes_as_a_growing_one(ids: torch.Tensor, site: Site) -> None:
    model = build("Llama")
    settings = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    with capped(model, cap_of(model, ids, site, 1.0)):
        growing = model.generate(ids, **settings)
        static = model.generate(ids, cache_implementation="static", disable_compile=True, **settings)
    assert static.equal(growing)


def test_what_goes_into_a_block_is_the_models_own_hidden_state(model: PreTrainedModel, ids: torch.Tensor) -> None:
    """The reader above, checked against `hidden_states` of the bare model."""
    with torch.no_grad():
        states = model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
    for actual, expected in zip(block_states(model, ids), states[LAYER : LAYER + 2], strict=True):
        assert actual.equal(expected)


def test_an_unknown_layout_names_the_override() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trunk = nn.ModuleList([nn.Linear(2, 2)])

    with pytest.raises(InputError, match="No decoder blocks found in Odd") as caught:
        decoder_blocks(Odd())  # type: ignore[arg-type]
    assert "blocks_path=" in caught.value.hint


def test_the_override_finds_blocks_elsewhere() -> None:
    inner = build("Llama")

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.odd = nn.ModuleDict({"trunk": inner.model.layers})

    assert [b.module for b in decoder_blocks(Wrapped(), "odd.trunk")] == list(inner.model.layers)  # type: ignore[arg-type]
