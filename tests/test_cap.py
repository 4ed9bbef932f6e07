"""The cap: h <- h - alpha * max(0, <h, v> - t) * v, at both sites, whatever the batch, the cache and the padding."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from transformers.models.llama.modeling_llama import LlamaDecoderLayer

import tiny
from capping import CLOSE, logits_of, prompts_of_one_length, same_bits, soft_caps
from karma_electric.core.errors import ArtifactError
from karma_electric.models.blocks import SITES, Site
from karma_electric.models.loading import load_model
from karma_electric.steer.cap import capped
from karma_electric.steer.spec import Cap, CapSpec, describe

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

both_sites = pytest.mark.parametrize("site", SITES)


@pytest.fixture(scope="module")
def ids(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    return prompts_of_one_length(tokenizer)


@pytest.fixture(scope="module")
def caps(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[Site, Cap]:
    return soft_caps(model, tokenizer)


def reference_logits(model: PreTrainedModel, ids: torch.Tensor, cap: Cap, alpha: float) -> torch.Tensor:
    """The capped model written out by hand, without hooks; the correction in numpy and float64."""

    def correction(h: torch.Tensor, layer: int) -> torch.Tensor:
        v = cap.directions[layer].double().numpy()
        over = np.maximum(0.0, h.double().numpy() @ v - cap.spec.thresholds[layer])
        return torch.from_numpy(-alpha * over[..., None] * v).float()

    with torch.no_grad():
        h = model.model.embed_tokens(ids)
        rotary = model.model.rotary_emb(h, torch.arange(ids.shape[1]).unsqueeze(0))
        for number, block in enumerate(model.model.layers):
            attention, _ = block.self_attn(
                hidden_states=block.input_layernorm(h), position_embeddings=rotary, attention_mask=None
            )
            a = h + attention
            h = a + block.mlp(block.post_attention_layernorm(a))
            if number in cap.spec.layers:
                h = h + correction(a if cap.spec.site == "mlp" else h, number)
        return model.lm_head(model.model.norm(h))


# The formula on a model


@both_sites
@pytest.mark.parametrize("alpha", [0.3, 0.5, 1.0])
def test_a_capped_model_equals_one_written_out_by_hand(
    model: PreTrainedModel, ids: torch.Tensor, caps: dict[Site, Cap], site: Site, alpha: float
) -> None:
    with capped(model, caps[site], alpha=alpha) as meter:
        logits_of(model, ids[:, :1])
        found = logits_of(model, ids)
    torch.testing.assert_close(found, reference_logits(model, ids, caps[site], alpha), **CLOSE)
    assert not torch.allclose(found, logits_of(model, ids), atol=0.1), "the cap changed nothing"
    assert all(0.1 < rate < 0.9 for rate in meter.response_rates([ids.shape[1]] * 3)), "on both sides of the threshold"


@both_sites
def test_alpha_0_is_the_bare_model_bit_for_bit(
    model: PreTrainedModel, ids: torch.Tensor, caps: dict[Site, Cap], site: Site
) -> None:
    with capped(model, caps[site], alpha=0.0):
        found = logits_of(model, ids)
    assert torch.equal(found, logits_of(model, ids))


@both_sites
def test_without_an_alpha_the_specs_own_is_used(
    model: PreTrainedModel, ids: torch.Tensor, caps: dict[Site, Cap], site: Site
) -> None:
    with capped(model, caps[site]):
        default = logits_of(model, ids)
    with capped(model, caps[site], alpha=caps[site].spec.alpha):
        assert torch.equal(default, logits_of(model, ids))


def test_a_hard_cap_leaves_no_projection_above_the_threshold(
    model: PreTrainedModel, ids: torch.Tensor, caps: dict[Site, Cap]
) -> None:
    cap = caps["block"]
    with capped(model, cap, alpha=1.0):
        seen = tiny.residuals(model, ids, "block")
    for layer, t in cap.spec.thresholds.items():
        projections = seen[layer] @ cap.directions[layer]
        assert projections.max() <= t + 1e-4
        assert (projections - t).abs().min() < 1e-4, "some token lies on the ceiling"


def test_a_soft_cap_halves_the_excess(model: PreTrainedModel, ids: torch.Tensor, caps: dict[Site, Cap]) -> None:
    cap = caps["block"]
    first = cap.spec.layers[0]  # the blocks before it are not touched
    t, v = cap.spec.thresholds[first], cap.directions[first]
    before = tiny.residuals(model, ids, "block")[first] @ v
    with capped(model, cap, alpha=0.5):
        after = tiny.residuals(model, ids, "block")[first] @ v
    expected = torch.where(before > t, t + 0.5 * (before - t), before)
    torch.testing.assert_close(after, expected, rtol=1e-4, atol=1e-3)


def test_a_floor_along_the_opposite_direction_is_the_same_cap(
    model: PreTrainedModel, ids: torch.Tensor, caps: dict[Site, Cap]
) -> None:
    """Orientation: the paper caps from below along the persona, we from above away from it."""
    cap, alpha = caps["block"], 0.5

    def floor(towards: torch.Tensor, lowest: float) -> Any:
        def hook(_: Any, __: Any, h: torch.Tensor) -> torch.Tensor:
            short = (lowest - h @ towards).clamp(min=0.0)
            return h + alpha * short.unsqueeze(-1) * towards

        return hook

    handles = [
        model.model.layers[layer].register_forward_hook(floor(-cap.directions[layer], -cap.spec.thresholds[layer]))
        for layer in cap.spec.layers
    ]
    try:
        floored = logits_of(model, ids)
    finally:
        for handle in handles:
            handle.remove()
    with capped(model, cap, alpha=alpha):
        torch.testing.assert_close(logits_of(model, ids), floored, **CLOSE)


# Batches, padding, cache


@both_sites
def test_a_batch_equals_its_rows_one_by_one(
    model: PreTrainedModel, ids: torch.Tensor, caps: dict[Site, Cap], site: Site
) -> None:
    with capped(model, caps[site]):
        together = logits_of(model, ids)
        alone = torch.cat([logits_of(model, row.unsqueeze(0)) for row in ids])
    torch.testing.assert_close(together, alone, **CLOSE)


@both_sites
def test_every_row_has_its_own_alpha(
    model: PreTrainedModel, ids: torch.Tensor, caps: dict[Site, Cap], site: Site
) -> None:
    strengths = [0.0, 0.5, 1.0]
    with capped(model, caps[site], alpha=strengths):
        together = logits_of(model, ids)
    for row, alpha in enumerate(strengths):
        with capped(model, caps[site], alpha=alpha):
            alone = logits_of(model, ids[row : row + 1])
        torch.testing.assert_close(together[row : row + 1], alone, **CLOSE)


@both_sites
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_row_of_alpha_0_has_the_bits_of_the_bare_model(
    tiny_path: Path, ids: torch.Tensor, caps: dict[Site, Cap], site: Site, dtype: str
) -> None:
    """Among rows that are capped, whatever stream the cap reads: logits and every block's output."""
    model = load_model(tiny_path, dtype=dtype, device="cpu")
    bare, bare_streams = logits_of(model, ids), tiny.residuals(model, ids, "block")
    for alpha in ([0.5, 0.0, 1.0], torch.tensor([1.0, 0.0, 0.5])):
        with capped(model, caps[site], alpha=alpha):
            mixed, streams = logits_of(model, ids), tiny.residuals(model, ids, "block")
        assert same_bits(mixed[1], bare[1])
        assert all(same_bits(now[1], then[1]) for now, then in zip(streams, bare_streams, strict=True))
        assert not mixed[0].equal(bare[0])
        assert not mixed[2].equal(bare[2])


@both_sites
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_changes_nothing_for_real_tokens(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    ids: torch.Tensor,
    caps: dict[Site, Cap],
    site: Site,
    side: str,
) -> None:
    row, n_pad = ids[0], 5
    padding = torch.full((n_pad,), tokenizer.pad_token_id)
    real = torch.tensor([False] * n_pad + [True] * len(row))
    padded = torch.cat([padding, row])
    if side == "right":
        real, padded = real.roll(-n_pad), torch.cat([row, padding])
    positions = (real.long().cumsum(0) - 1).clamp(min=0)
    with capped(model, caps[site]):
        alone = logits_of(model, row.unsqueeze(0))[0]
        among = logits_of(
            model,
            padded.unsqueeze(0),
            attention_mask=real.long().unsqueeze(0),
            position_ids=positions.unsqueeze(0),
        )[0, real]
    torch.testing.assert_close(among, alone, **CLOSE)


@both_sites
def test_decoding_with_a_cache_equals_computing_everything_again(
    model: PreTrainedModel, ids: torch.Tensor, caps: dict[Site, Cap], site: Site
) -> None:
    with capped(model, caps[site]), torch.no_grad():
        whole = model(input_ids=ids, use_cache=False).logits
        prefill = model(input_ids=ids[:, :20], use_cache=True)
        steps, cache = [prefill.logits], prefill.past_key_values
        for position in range(20, ids.shape[1]):
            step = model(input_ids=ids[:, position : position + 1], past_key_values=cache, use_cache=True)
            steps.append(step.logits)
    assert len(steps) > 5
    torch.testing.assert_close(torch.cat(steps, dim=1), whole, **CLOSE)


# What models put out


@contextmanager
def returning_tuples(model: PreTrainedModel, layer: int) -> Iterator[None]:
    """Make one block return a tuple, as all did before transformers 5, and the next one take it."""

    class Older(LlamaDecoderLayer):
        def forward(self, hidden_states: torch.Tensor, **more: Any) -> Any:
            return super().forward(hidden_states, **more), "attention weights"

    block, following = model.model.layers[layer], model.model.layers[layer + 1]

    def unpack(_: Any, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        hidden, weights = inputs[0]
        assert weights == "attention weights", "the rest of the tuple was lost"
        return (hidden, *inputs[1:])

    handle = following.register_forward_pre_hook(unpack)
    block.__class__ = Older
    try:
        yield
    finally:
        handle.remove()
        block.__class__ = LlamaDecoderLayer


@both_sites
def test_a_block_that_returns_a_tuple_is_capped_alike(
    fresh_model: PreTrainedModel, ids: torch.Tensor, caps: dict[Site, Cap], site: Site
) -> None:
    with capped(fresh_model, caps[site]):
        expected = logits_of(fresh_model, ids)
    with returning_tuples(fresh_model, caps[site].spec.layers[1]), capped(fresh_model, caps[site]):
        found = logits_of(fresh_model, ids)
    torch.testing.assert_close(found, expected)


def test_a_bfloat16_model_is_capped_in_float32(tiny_path: Path, ids: torch.Tensor) -> None:
    model = load_model(tiny_path, dtype="bfloat16", device="cpu")
    axis, layer = tiny.random_axis(), 3
    v, t = axis.directions["block"][layer], 0.123
    cap = Cap.of(CapSpec("", "block", (layer,), {layer: t}, 0.5), axis)
    before = tiny.residuals(model, ids, "block")[layer]
    with capped(model, cap):
        after = tiny.residuals(model, ids, "block")[layer]
    exact = (before.float() - 0.5 * (before.float() @ v - t).clamp(min=0).unsqueeze(-1) * v).bfloat16()
    coarse = before - 0.5 * (before @ v.bfloat16() - t).clamp(min=0).unsqueeze(-1) * v.bfloat16()
    assert after.dtype == torch.bfloat16
    assert torch.equal(after, exact)
    assert not torch.equal(after, coarse), "bfloat16 arithmetic gives something else"


@both_sites
def test_nothing_in_a_capped_pass_waits_for_the_device(
    model: PreTrainedModel, ids: torch.Tensor, caps: dict[Site, Cap], site: Site
) -> None:
    """Every operation that a value or a copy to another device needs: as many as the bare model's own."""
    from torch.utils._python_dispatch import TorchDispatchMode

    waiting = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "_to_copy", "copy_")

    class Count(TorchDispatchMode):
        def __init__(self) -> None:
            super().__init__()
            self.found: list[str] = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            name = function.name().removeprefix("aten::").split(".")[0]
            self.found += [name] if name in waiting else []
            return function(*args, **(kwargs or {}))

    def waits() -> list[str]:
        with Count() as count, torch.no_grad():
            cache = model(input_ids=ids, use_cache=True).past_key_values
            for _ in range(3):
                model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True)
        return count.found

    bare = waits()
    for alpha in (0.5, [0.0, 0.5, 1.0]):
        with capped(model, caps[site], alpha=alpha) as meter:
            assert waits() == bare
        with Count() as count:
            meter.response_rates([3, 3, 3])
        assert count.found, "reading the meter is what waits"


# What is refused


def test_an_axis_of_another_hidden_size_is_refused(model: PreTrainedModel) -> None:
    cap = Cap.of(CapSpec("", "mlp", (2,), {2: 0.0}, 0.5), tiny.random_axis(hidden=32))
    with pytest.raises(ArtifactError, match=r"hidden size 32 .* hidden size 64"), capped(model, cap):
        pass


def test_a_cap_beyond_the_last_block_is_refused(model: PreTrainedModel) -> None:
    cap = Cap.of(CapSpec("", "mlp", (7,), {7: 0.0}, 0.5), tiny.random_axis(n_layers=9))
    with pytest.raises(ArtifactError, match=r"blocks 7-7, .* blocks 0-5"), capped(model, cap):
        pass


def test_a_spec_beyond_its_axis_is_refused() -> None:
    with pytest.raises(ArtifactError, match="the axis has 0-5"):
        Cap.of(CapSpec("", "mlp", (6,), {6: 0.0}, 0.5), tiny.random_axis())


def test_a_spec_at_a_site_the_axis_lacks_is_refused() -> None:
    axis = tiny.random_axis()
    only_block = replace(axis, directions={"block": axis.directions["block"]})
    with pytest.raises(ArtifactError, match="no directions for the site 'mlp'"):
        Cap.of(CapSpec("", "mlp", (2,), {2: 0.0}, 0.5), only_block)


def test_a_cap_describes_itself_in_one_line(caps: dict[Site, Cap]) -> None:
    spec = replace(caps["mlp"].spec, method={"name": "runtime-q"}, cap_rate={"mean": 0.254})
    assert describe(spec) == "cap at blocks 2-4, site mlp, alpha 0.5, runtime-q, 25% of held-out tokens capped"
