"""Hooks on other families than Llama: each against the formula, written out on what the next block is given."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest
import torch
import transformers
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from capping import same_bits
from karma_electric.core.errors import InputError, KarmaError
from karma_electric.models.blocks import SITES, Layout, Site, decoder_blocks
from karma_electric.steer.cap import capped
from karma_electric.steer.spec import AXIS_FILE, Cap, CapSpec
from tiny import random_axis

if TYPE_CHECKING:
    from pathlib import Path

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
    "Granite": {"residual_multiplier": 0.3},  # multiplies what the MLP adds
    "Glm4": {"head_dim": 8},  # normalises what the MLP adds, under another name than Gemma
    "Mixtral": {"num_local_experts": 3, "num_experts_per_tok": 2},
    "GptOss": {"head_dim": 8, "num_local_experts": 3, "num_experts_per_tok": 2},  # its MLP returns a tuple
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
    original: Callable[..., Any] = block.mlp_added.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = original(*args, **kwargs)
        seen.append((output[0] if isinstance(output, tuple) else output).view(len(ids), -1, HIDDEN))
        return output

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
    return before if parallel else after - seen[-1] * getattr(model.config, "residual_multiplier", 1.0)


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
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing_for_real_tokens(
    model: PreTrainedModel, ids: torch.Tensor, site: Site, side: str
) -> None:
    n_pad, row = 3, ids[:1]
    real = torch.ones(1, ids.shape[1] + n_pad, dtype=torch.long)
    start = n_pad if side == "left" else 0
    real[:, :n_pad] = 0
    real = real if side == "left" else real.flip(1)
    padded = torch.full_like(real, 5)
    padded[:, start : start + ids.shape[1]] = row
    positions = (real.cumsum(1) - 1).clamp_min(0)
    with capped(model, cap_of(model, ids, site, 0.5)), torch.no_grad():
        alone = model(input_ids=row).logits
        among = model(input_ids=padded, attention_mask=real, position_ids=positions).logits
    torch.testing.assert_close(among[:, start : start + ids.shape[1]], alone, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_have_alphas_of_their_own_and_0_keeps_every_bit(
    model: PreTrainedModel, ids: torch.Tensor, site: Site, dtype: torch.dtype
) -> None:
    """In bfloat16, what is read there decides as well, up to the rounding of the sums."""
    alpha = torch.tensor([0.0, 0.5, 1.0])
    ids = torch.cat([ids, ids.flip(1)[:1]])
    cap = cap_of(model, ids, site, 0.5)
    model = copy.deepcopy(model).to(dtype)
    with torch.no_grad():
        bare, (_, h) = model(input_ids=ids).logits, block_states(model, ids)
        read = mlp_input(model, ids) if site == "mlp" else h
        with capped(model, cap, alpha=alpha):
            found, (_, actual) = model(input_ids=ids).logits, block_states(model, ids)
        with capped(model, cap, alpha=0.0):
            assert same_bits(model(input_ids=ids).logits, bare)
    assert same_bits(found[0], bare[0])
    assert not found[1:].equal(bare[1:])
    v = cap.directions[LAYER].double()
    over = (read.double() @ v - cap.spec.thresholds[LAYER]).clamp_min(0)
    expected = h.double() - alpha.double()[:, None, None] * over[..., None] * v
    rounding = {torch.float32: 1e-5, torch.bfloat16: 0.02}[dtype]
    assert (actual.double() - expected).norm() < rounding * (h.double() - expected).norm() + rounding * h.norm()


def test_what_goes_into_a_block_is_the_models_own_hidden_state(model: PreTrainedModel, ids: torch.Tensor) -> None:
    """The reader above, checked against `hidden_states` of the bare model."""
    with torch.no_grad():
        states = model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
    for actual, expected in zip(block_states(model, ids), states[LAYER : LAYER + 2], strict=True):
        assert actual.equal(expected)


# Layouts that are not known


class Ffn(nn.Module):
    """An MLP."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(HIDDEN, 48), nn.Linear(48, HIDDEN)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down(self.up(x).relu())


class OddBlock(nn.Module):
    """A block whose parts have names of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.thinking = nn.LayerNorm(HIDDEN), Ffn()

    def forward(self, h: torch.Tensor) -> torch.Tensor:
        return h + self.thinking(self.before(h))


class OddConfig(PretrainedConfig):
    """What the hooks need to know of a model, and where its parts are."""

    model_type = "odd"
    hidden_size = HIDDEN
    max_position_embeddings = 64


class Odd(PreTrainedModel):
    """A model of no family: it mixes tokens by their running mean."""

    config_class = OddConfig

    def __init__(self, config: OddConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(VOCABULARY, HIDDEN)
        self.trunk = nn.ModuleDict({"stack": nn.ModuleList([OddBlock() for _ in range(LAYERS)])})
        self.others = nn.ModuleList([nn.Linear(2, 2)])
        self.post_init()

    def forward(self, input_ids: torch.Tensor, **_: Any) -> CausalLMOutputWithPast:
        h = self.words(input_ids)
        h = h.cumsum(1) / torch.arange(1, h.shape[1] + 1)[:, None]
        for block in self.trunk["stack"]:
            h = block(h)
        return CausalLMOutputWithPast(logits=h @ self.words.weight.T)


PARTS = {"blocks": "trunk.stack", "mlp": "thinking", "mlp_norm": "before"}


def odd(**layout: str) -> Odd:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Odd(OddConfig(**({"karma_layout": layout} if layout else {}))).eval()


def test_an_unknown_layout_names_the_override_and_what_there_is() -> None:
    with pytest.raises(
        InputError, match=r"No decoder blocks found in Odd .*trunk\.stack \(4\), others \(1\)"
    ) as caught:
        decoder_blocks(odd())
    assert '"karma_layout": {"blocks": "PATH"}' in caught.value.hint
    assert "blocks_path='PATH'" in caught.value.hint


def test_unknown_parts_of_a_block_name_the_override_and_what_there_is() -> None:
    blocks = decoder_blocks(odd(), "trunk.stack")
    with pytest.raises(InputError, match=r"OddBlock has no MLP .*its parts: before, thinking") as caught:
        _ = blocks[0].mlp_norm
    assert 'under karma_layout in the model\'s config.json: "mlp": "PART", "mlp_norm": "PART"' in caught.value.hint


@pytest.mark.parametrize("site", SITES)
def test_a_layout_in_config_json_or_given_in_python_is_capped_by_the_formula(
    tmp_path: Path, ids: torch.Tensor, site: Site
) -> None:
    odd(**PARTS).save_pretrained(tmp_path)
    for model, layout in ((Odd.from_pretrained(tmp_path).eval(), None), (odd(), Layout(**PARTS))):
        with torch.no_grad():
            h = model.words(ids).cumsum(1) / torch.arange(1, ids.shape[1] + 1)[:, None]
            for block in model.trunk["stack"][:LAYER]:
                h = block(h)
            block = model.trunk["stack"][LAYER]
            out = h + block.thinking(block.before(h))
            axis, read = random_axis(n_layers=LAYERS, hidden=HIDDEN), h if site == "mlp" else out
            v = axis.directions[site][LAYER]
            t = float((read @ v).median())
            out = out - 0.7 * (read @ v - t).clamp_min(0)[..., None] * v
            for block in model.trunk["stack"][LAYER + 1 :]:
                out = block(out)
            cap = Cap.of(CapSpec(AXIS_FILE, site, (LAYER,), {LAYER: t}, 0.7), axis)
            with capped(model, cap, blocks_path=layout):
                torch.testing.assert_close(model(ids).logits, out @ model.words.weight.T)


def test_the_site_block_needs_the_blocks_only(ids: torch.Tensor) -> None:
    model = odd(blocks="trunk.stack")
    axis = random_axis(n_layers=LAYERS, hidden=HIDDEN)
    with capped(model, Cap.of(CapSpec(AXIS_FILE, "block", (LAYER,), {LAYER: 0.0}, 0.5), axis)):
        model(ids)
    with pytest.raises(InputError, match="OddBlock has no MLP"):
        capped(model, Cap.of(CapSpec(AXIS_FILE, "mlp", (LAYER,), {LAYER: 0.0}, 0.5), axis))


@pytest.mark.parametrize("given", ["trunk.stack", {"block": "trunk.stack"}, {"blocks": 3}])
def test_a_layout_that_is_none_is_refused(given: Any) -> None:
    model = odd()
    model.config.karma_layout = given
    with pytest.raises(InputError, match=r"karma_layout in the model's config.json is .* blocks, mlp, mlp_norm"):
        decoder_blocks(model)


def test_a_layout_with_a_part_that_is_not_there_is_refused() -> None:
    with pytest.raises(InputError, match=r"OddBlock has no part 'ffn' \(it has before, thinking\)"):
        decoder_blocks(odd(**{**PARTS, "mlp": "ffn"}))
    with pytest.raises(InputError, match=r"No decoder blocks found in Odd \(tried trunk\.layers;"):
        decoder_blocks(odd(blocks="trunk.layers"))
    with pytest.raises(InputError, match=r"No decoder blocks found in Odd \(tried trunk;"):
        decoder_blocks(odd(), "trunk")


def test_a_wrong_mlp_norm_does_not_pass_for_one(ids: torch.Tensor) -> None:
    """A layout that names modules which are not what it says fails the self-test."""
    model = odd(blocks="trunk.stack", mlp="thinking", mlp_norm="before", mlp_added="thinking.up")
    axis = random_axis(n_layers=LAYERS, hidden=HIDDEN)
    with (
        pytest.raises((KarmaError, RuntimeError)),
        capped(model, Cap.of(CapSpec(AXIS_FILE, "mlp", (LAYER,), {LAYER: 0.0}, 0.5), axis)),
    ):
        pytest.fail("the context was entered")
