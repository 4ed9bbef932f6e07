"""A capped model in transformers' own `generate`: greedy, sampled, in batches, with beams, with a static cache."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

import tiny
from capping import prompts_of_one_length, soft_caps
from karma_electric.core.errors import InputError
from karma_electric.models.blocks import SITES, Site
from karma_electric.steer.cap import capped

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from karma_electric.steer.spec import Cap

both_sites = pytest.mark.parametrize("site", SITES)
N_NEW = 8
GREEDY: dict[str, Any] = {"max_new_tokens": N_NEW, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}


@pytest.fixture(scope="module")
def ids(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    return prompts_of_one_length(tokenizer)


@pytest.fixture(scope="module")
def caps(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[Site, Cap]:
    return soft_caps(model, tokenizer)


def generated(model: PreTrainedModel, ids: torch.Tensor, **more: Any) -> torch.Tensor:
    """New tokens [rows, N_NEW]."""
    settings = {"attention_mask": torch.ones_like(ids), **GREEDY, **more}
    return model.generate(ids, **settings)[:, ids.shape[1] :]


def computed_again(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """The same without a cache: the whole sequence for every new token."""
    with torch.no_grad():
        for _ in range(N_NEW):
            last = model(input_ids=ids, use_cache=False).logits[:, -1]
            ids = torch.cat([ids, last.argmax(-1, keepdim=True)], dim=1)
    return ids[:, -N_NEW:]


@both_sites
@pytest.mark.parametrize("alpha", [0.5, 1.0, [0.0, 0.5, 1.0]])
def test_greedy_text_is_that_of_computing_everything_again(
    model: PreTrainedModel, ids: torch.Tensor, caps: dict[Site, Cap], site: Site, alpha: Any
) -> None:
    bare = generated(model, ids)
    with capped(model, caps[site], alpha=alpha):
        found = generated(model, ids)
        assert found.equal(computed_again(model, ids))
    assert not found.equal(bare)
    if isinstance(alpha, list):
        assert found[0].equal(bare[0])


@both_sites
@pytest.mark.parametrize("more", [{"num_beams": 2}, {"num_beams": 2, "num_return_sequences": 2}])
def test_beams_of_a_prompt_share_its_alpha(
    model: PreTrainedModel, ids: torch.Tensor, caps: dict[Site, Cap], site: Site, more: dict[str, int]
) -> None:
    alphas, n_returned = torch.tensor([0.2, 1.0, 0.0]), more.get("num_return_sequences", 1)
    with capped(model, caps[site], alpha=alphas.repeat_interleave(2)):
        found = generated(model, ids, **more)
    for row, alpha in enumerate(alphas.tolist()):
        with capped(model, caps[site], alpha=alpha):
            alone = generated(model, ids[row : row + 1], **more)
        assert found[n_returned * row : n_returned * (row + 1)].equal(alone)


def test_an_alpha_per_prompt_where_the_model_sees_more_rows_is_refused(
    model: PreTrainedModel, ids: torch.Tensor, caps: dict[Site, Cap]
) -> None:
    before = tiny.hook_count(model)
    with (
        pytest.raises(InputError, match=r"alpha has 3 rows, the batch has 6.*num_return_sequences n, n per prompt"),
        capped(model, caps["mlp"], alpha=[0.5, 0.5, 0.5]),
    ):
        generated(model, ids, num_return_sequences=2, do_sample=True)
    assert tiny.hook_count(model) == before


def test_sampling_takes_the_same_random_numbers_with_and_without_a_cap(
    fresh_model: PreTrainedModel, ids: torch.Tensor, caps: dict[Site, Cap]
) -> None:
    """A cap that nothing reaches, so that only the random numbers could differ."""
    cap = caps["block"]
    out_of_reach = type(cap)(replace(cap.spec, thresholds=dict.fromkeys(cap.spec.layers, 1e6)), cap.directions)
    torch.manual_seed(7)
    bare = generated(fresh_model, ids, do_sample=True)
    torch.manual_seed(7)
    with capped(fresh_model, out_of_reach):
        assert generated(fresh_model, ids, do_sample=True).equal(bare)


@both_sites
def test_a_static_cache_decodes_as_a_growing_one(
    model: PreTrainedModel, ids: torch.Tensor, caps: dict[Site, Cap], site: Site
) -> None:
    with capped(model, caps[site]):
        static = generated(model, ids, cache_implementation="static", disable_compile=True)
        assert static.equal(generated(model, ids))
