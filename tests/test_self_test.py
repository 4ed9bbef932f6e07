"""The self-test: a cap that does not act, or acts by another strength than it says, is never relied on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaDecoderLayer, LlamaMLP, LlamaRMSNorm

import tiny
from capping import logits_of, prompts_of_one_length, soft_caps
from karma_electric.core.errors import KarmaError
from karma_electric.models.blocks import SITES, Site
from karma_electric.models.loading import load_model
from karma_electric.steer.cap import capped

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from karma_electric.steer.spec import Cap

both_sites = pytest.mark.parametrize("site", SITES)


@pytest.fixture(scope="module")
def caps(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[Site, Cap]:
    return soft_caps(model, tokenizer)


@pytest.fixture
def passes(fresh_model: PreTrainedModel) -> Iterator[list[tuple[int, ...]]]:
    """Shapes of the token ids that the fresh model is given."""
    shapes: list[tuple[int, ...]] = []
    handle = fresh_model.model.embed_tokens.register_forward_pre_hook(
        lambda _, inputs: shapes.append(tuple(inputs[0].shape))
    )
    yield shapes
    handle.remove()


class DeafMlp(LlamaMLP):
    """An MLP that is called past its hooks, as a fused kernel would."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward(x)


class DeafBlock(LlamaDecoderLayer):
    """A block that is called past its hooks."""

    def __call__(self, *inputs: Any, **more: Any) -> torch.Tensor:
        return self.forward(*inputs, **more)


class DeafNorm(LlamaRMSNorm):
    """A norm that is called past its hooks."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward(x)


class DeafWhileDecoding(LlamaMLP):
    """An MLP that is called past its hooks for single tokens, as a kernel made for decoding would."""

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward(x) if x.shape[1] == 1 else super().__call__(x)


class Scaled(LlamaDecoderLayer):
    """A block that adds a fifth of what its MLP puts out, as some families do."""

    def forward(self, hidden_states: torch.Tensor, **more: Any) -> torch.Tensor:
        attention, _ = self.self_attn(hidden_states=self.input_layernorm(hidden_states), **more)
        hidden_states = hidden_states + attention
        return hidden_states + 0.2 * self.mlp(self.post_attention_layernorm(hidden_states))


def refused(model: PreTrainedModel, cap: Cap, message: str) -> None:
    """Twice, since a failed test is not remembered as passed; and nothing stays attached."""
    before = tiny.hook_count(model)
    for _ in range(2):
        with pytest.raises(KarmaError, match=message), capped(model, cap):
            pytest.fail("the context was entered")
    assert tiny.hook_count(model) == before


@pytest.mark.parametrize("layer", [2, 3, 4])
@both_sites
def test_a_cap_that_does_not_reach_some_block_is_an_error(
    fresh_model: PreTrainedModel, caps: dict[Site, Cap], site: Site, layer: int
) -> None:
    """Each capped block is tried alone: what changes in it must not come from the blocks before it."""
    block = fresh_model.model.layers[layer]
    (block.mlp if site == "mlp" else block).__class__ = DeafMlp if site == "mlp" else DeafBlock
    refused(fresh_model, caps[site], f"does not act on block {layer} of LlamaForCausalLM; nothing was capped")


def test_a_norm_that_is_called_past_its_hooks_is_an_error(fresh_model: PreTrainedModel, caps: dict[Site, Cap]) -> None:
    fresh_model.model.layers[3].post_attention_layernorm.__class__ = DeafNorm
    refused(fresh_model, caps["mlp"], "block 3 is called past its hooks; nothing was capped")


def test_decoding_with_a_cache_is_tested_by_itself(fresh_model: PreTrainedModel, caps: dict[Site, Cap]) -> None:
    fresh_model.model.layers[4].mlp.__class__ = DeafWhileDecoding
    refused(fresh_model, caps["mlp"], "does not act on block 4")


def test_a_cap_of_another_strength_than_it_says_is_an_error(
    fresh_model: PreTrainedModel, caps: dict[Site, Cap]
) -> None:
    fresh_model.model.layers[2].__class__ = Scaled
    refused(fresh_model, caps["mlp"], "moves block 2 of LlamaForCausalLM by 0.20 of what it should")
    with capped(fresh_model, caps["block"]):
        pass


def test_weights_that_give_no_numbers_are_an_error(fresh_model: PreTrainedModel, caps: dict[Site, Cap]) -> None:
    fresh_model.model.layers[1].mlp.down_proj.weight.data[3] = float("inf")
    refused(fresh_model, caps["mlp"], "not finite at block 2")


@both_sites
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_every_block_of_a_sound_model_passes_in_every_type(tiny_path: Path, site: Site, dtype: str) -> None:
    model = load_model(tiny_path, dtype=dtype, device="cpu")
    spec_layers = tuple(range(tiny.LAYERS))
    axis = tiny.random_axis()
    cap = tiny.Cap.of(tiny.CapSpec("", site, spec_layers, dict.fromkeys(spec_layers, 0.0), 0.5), axis)
    for mode in (torch.inference_mode, torch.no_grad, torch.enable_grad):
        with mode(), capped(model, cap):
            pass
        model = load_model(tiny_path, dtype=dtype, device="cpu")


def test_it_runs_once_until_the_way_through_the_model_changes(
    fresh_model: PreTrainedModel, caps: dict[Site, Cap], passes: list[tuple[int, ...]]
) -> None:
    with capped(fresh_model, caps["mlp"]):
        assert len(passes) == 6  # bare and capped: without a cache, filling one, decoding
    with capped(fresh_model, caps["mlp"], alpha=0.1), capped(fresh_model, caps["mlp"], alpha=[0.5, 1.0]):
        assert len(passes) == 6
    for change in (
        lambda: setattr(fresh_model.model.layers[3].mlp, "__class__", type("Other", (LlamaMLP,), {})),
        lambda: setattr(fresh_model.model.layers[3].mlp, "forward", fresh_model.model.layers[3].mlp.forward),
        lambda: fresh_model.to(torch.bfloat16),
    ):
        n_before = len(passes)
        change()
        with capped(fresh_model, caps["mlp"]):
            assert len(passes) == n_before + 6
    n_before = len(passes)
    with capped(fresh_model, caps["block"]):
        assert len(passes) == n_before + 6


def test_alpha_0_needs_no_test(
    fresh_model: PreTrainedModel, caps: dict[Site, Cap], passes: list[tuple[int, ...]]
) -> None:
    with capped(fresh_model, caps["mlp"], alpha=0.0):
        assert passes == []


@both_sites
def test_it_leaves_random_numbers_modes_and_gradients_alone(
    fresh_model: PreTrainedModel, caps: dict[Site, Cap], site: Site
) -> None:
    fresh_model.config.attention_dropout = 0.5
    fresh_model.train()
    fresh_model.model.layers[1].eval()
    modes = [m.training for m in fresh_model.modules()]
    torch.manual_seed(3)
    before = torch.get_rng_state()
    with capped(fresh_model, caps[site]):
        assert torch.get_rng_state().equal(before)
        assert [m.training for m in fresh_model.modules()] == modes
    assert all(p.grad is None for p in fresh_model.parameters())
    fresh_model.model.layers[2].mlp.__class__ = DeafMlp
    fresh_model.model.layers[2].__class__ = DeafBlock
    with pytest.raises(KarmaError), capped(fresh_model, caps[site]):
        pass
    assert [m.training for m in fresh_model.modules()] == modes, "nor when it fails"


def test_it_is_not_disturbed_by_a_cap_that_is_open_nor_disturbs_it(
    fresh_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, caps: dict[Site, Cap]
) -> None:
    """The outer one has an alpha per row, for another number of rows than the test's."""
    ids = prompts_of_one_length(tokenizer)
    with capped(fresh_model, caps["block"], alpha=[0.5, 0.0, 1.0]) as meter:
        logits_of(fresh_model, ids[:, :3])
        expected = logits_of(fresh_model, ids)
        with capped(fresh_model, caps["mlp"]):
            pass
        assert torch.equal(logits_of(fresh_model, ids), expected)
        n = ids.shape[1]
        first, second = meter.response_rates([n] * 3), meter.response_rates([2 * n] * 3)
        assert first == pytest.approx(second), "two passes alike, and none of the test's"
