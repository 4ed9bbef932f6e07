"""Models whose weights accelerate keeps elsewhere and fetches for each block: the hooks work where the block does."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

import tiny
from capping import CLOSE, logits_of, prompts_of_one_length, soft_caps
from karma_electric.models.blocks import SITES, Site
from karma_electric.models.loading import load_model
from karma_electric.steer.cap import capped

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from karma_electric.steer.spec import Cap

both_sites = pytest.mark.parametrize("site", SITES)


@pytest.fixture(scope="module")
def ids(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    return prompts_of_one_length(tokenizer)


@pytest.fixture(scope="module")
def caps(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[Site, Cap]:
    return soft_caps(model, tokenizer)


@pytest.fixture(scope="module", params=["cpu_offload", "disk_offload", "dispatched"])
def elsewhere(request: pytest.FixtureRequest, tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> object:
    """The tiny model under accelerate: outside its forward pass, most weights are on no device at all."""
    import accelerate

    model = load_model(tiny_path, dtype="float32", device="cpu")
    if request.param == "cpu_offload":
        return accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    folder = tmp_path_factory.mktemp("offloaded")
    if request.param == "disk_offload":
        return accelerate.disk_offload(model, folder, execution_device=torch.device("cpu"))
    near = {"model.embed_tokens", "model.rotary_emb", "model.norm", "lm_head", "model.layers.0", "model.layers.1"}
    far = {f"model.layers.{n}" for n in range(2, tiny.LAYERS)}
    placed = {**dict.fromkeys(near, "cpu"), **dict.fromkeys(far, "disk")}
    return accelerate.dispatch_model(model, device_map=placed, main_device="cpu", offload_dir=folder, force_hooks=True)


@both_sites
def test_a_model_whose_weights_are_fetched_is_capped_alike(
    model: PreTrainedModel, elsewhere: PreTrainedModel, ids: torch.Tensor, caps: dict[Site, Cap], site: Site
) -> None:
    layer = elsewhere.model.layers[3]
    assert {p.device.type for p in layer.parameters()} == {"meta"}
    before = tiny.hook_count(elsewhere)
    for alpha in (0.5, [0.0, 0.5, 1.0]):
        with capped(model, caps[site], alpha=alpha):
            expected = logits_of(model, ids)
        with capped(elsewhere, caps[site], alpha=alpha):
            torch.testing.assert_close(logits_of(elsewhere, ids), expected, **CLOSE)
    torch.testing.assert_close(logits_of(elsewhere, ids), logits_of(model, ids), **CLOSE)
    assert tiny.hook_count(elsewhere) == before
    assert {p.device.type for p in layer.parameters()} == {"meta"}
