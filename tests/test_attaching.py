"""`capped` as a context: nested, entered again, left by an exception, refused before anything is attached."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
import torch

import tiny
from capping import CLOSE, logits_of, prompts_of_one_length, soft_caps
from karma_electric.core.errors import InputError, KarmaError
from karma_electric.models.blocks import SITES, Site
from karma_electric.steer.cap import capped

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from karma_electric.steer.spec import Cap

both_sites = pytest.mark.parametrize("site", SITES)


@pytest.fixture(scope="module")
def ids(tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    return prompts_of_one_length(tokenizer)


@pytest.fixture(scope="module")
def caps(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[Site, Cap]:
    return soft_caps(model, tokenizer)


def state(model: PreTrainedModel) -> tuple[int, list[type]]:
    """What attaching changes in a model."""
    return tiny.hook_count(model), [type(module) for module in model.modules()]


def written_out(model: PreTrainedModel, ids: torch.Tensor, caps: list[Cap]) -> torch.Tensor:
    """Logits under several caps, without hooks: at `mlp` all read one stream, at `block` one reads what others left."""
    with torch.no_grad():
        h = model.model.embed_tokens(ids)
        rotary = model.model.rotary_emb(h, torch.arange(ids.shape[1]).unsqueeze(0))
        for number, block in enumerate(model.model.layers):
            attention, _ = block.self_attn(
                hidden_states=block.input_layernorm(h), position_embeddings=rotary, attention_mask=None
            )
            a = h + attention
            h = a + block.mlp(block.post_attention_layernorm(a))
            acting = [cap for cap in caps if number in cap.spec.layers]
            for cap in sorted(acting, key=lambda c: c.spec.site == "block"):
                v, t = cap.directions[number], cap.spec.thresholds[number]
                read = a if cap.spec.site == "mlp" else h
                h = h - cap.spec.alpha * ((read @ v - t).clamp_min(0)[..., None] * v)
        return model.lm_head(model.model.norm(h))


# Leaving


@both_sites
def test_everything_is_as_before_when_the_context_closes(
    model: PreTrainedModel, ids: torch.Tensor, caps: dict[Site, Cap], site: Site
) -> None:
    before, bare = state(model), logits_of(model, ids)
    with capped(model, caps[site]):
        assert tiny.hook_count(model) > before[0]
        assert [type(m).__name__ for m in model.modules()] == [kind.__name__ for kind in before[1]]
    assert state(model) == before
    assert torch.equal(logits_of(model, ids), bare)


@both_sites
def test_everything_is_as_before_after_an_exception_in_the_body(
    model: PreTrainedModel, caps: dict[Site, Cap], site: Site
) -> None:
    before = state(model)
    with pytest.raises(ZeroDivisionError), capped(model, caps[site]):
        raise ZeroDivisionError
    assert state(model) == before


@both_sites
@pytest.mark.parametrize("place", ["post_attention_layernorm", "mlp.gate_proj", "mlp"])
def test_a_forward_pass_that_fails_leaves_nothing_for_the_next(
    model: PreTrainedModel, ids: torch.Tensor, caps: dict[Site, Cap], site: Site, place: str
) -> None:
    """Wherever it fails: between what is read and what is written, too; with the context still open."""
    before = state(model)
    failing = [True]

    def fail(*_: Any) -> None:
        if failing[0]:
            raise RuntimeError("out of luck")

    handle = model.model.layers[3].get_submodule(place).register_forward_hook(fail)
    try:
        with capped(model, caps[site]) as meter:
            with pytest.raises(RuntimeError, match="out of luck"):
                logits_of(model, ids.flip(1)[:, :4])
            failing[0] = False
            found = logits_of(model, ids)
            again = logits_of(model, ids)
            rates = meter.response_rates([ids.shape[1]] * 3)
    finally:
        handle.remove()
    assert state(model) == before
    with capped(model, caps[site]) as meter:
        assert torch.equal(found, logits_of(model, ids))
        assert torch.equal(again, logits_of(model, ids))
        assert rates == meter.response_rates([ids.shape[1]] * 3), "the failed pass was not counted"


# Entering again, nesting


@both_sites
def test_one_context_may_be_entered_again_and_while_it_is_open(
    model: PreTrainedModel, ids: torch.Tensor, caps: dict[Site, Cap], site: Site
) -> None:
    context, before = capped(model, caps[site]), state(model)
    with pytest.raises(ZeroDivisionError), context:
        raise ZeroDivisionError
    with context:
        once = logits_of(model, ids)
        with context:
            twice = logits_of(model, ids)
        assert torch.equal(logits_of(model, ids), once), "the outer one survives the inner one"
    assert state(model) == before
    torch.testing.assert_close(once, written_out(model, ids, [caps[site]]), **CLOSE)
    torch.testing.assert_close(twice, written_out(model, ids, [caps[site], caps[site]]), **CLOSE)


@pytest.mark.parametrize(("site", "alpha"), [("block", 0.75), ("mlp", 1.0)])
def test_twice_a_soft_cap(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor, site: Site, alpha: float
) -> None:
    """At `block` the second halves what the first left; at `mlp` both read the same and add up."""
    cap = tiny.cap_at(model, tokenizer, site, layers=(3,), alpha=0.5)
    with capped(model, cap), capped(model, cap):
        twice = logits_of(model, ids)
    with capped(model, cap, alpha=alpha):
        torch.testing.assert_close(twice, logits_of(model, ids), **CLOSE)


@pytest.mark.parametrize("outer", SITES)
@pytest.mark.parametrize("inner", SITES)
def test_different_caps_nest_at_blocks_they_share_and_others(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor, outer: Site, inner: Site
) -> None:
    first = tiny.cap_at(model, tokenizer, outer, layers=(1, 3), alpha=0.5)
    second = tiny.cap_at(model, tokenizer, inner, layers=(3, 4), alpha=1.0, quantile=0.2)
    turned = type(second)(second.spec, {3: first.directions[3].flip(0), 4: second.directions[4]})
    with capped(model, first), capped(model, turned):
        found = logits_of(model, ids)
    torch.testing.assert_close(found, written_out(model, ids, [first, turned]), **CLOSE)
    assert not torch.allclose(found, written_out(model, ids, [first]), atol=0.01)


@both_sites
def test_caps_may_be_closed_in_any_order(
    model: PreTrainedModel, ids: torch.Tensor, caps: dict[Site, Cap], site: Site
) -> None:
    before, first, second = state(model), ExitStack(), ExitStack()
    first.enter_context(capped(model, caps[site], alpha=1.0))
    second.enter_context(capped(model, caps[site], alpha=0.3))
    first.close()
    left = logits_of(model, ids)
    second.close()
    assert state(model) == before
    with capped(model, caps[site], alpha=0.3):
        assert torch.equal(left, logits_of(model, ids))


# What is refused, before anything is attached


@pytest.mark.parametrize(
    "alpha",
    [
        -0.1,
        1.1,
        float("nan"),
        float("inf"),
        [0.5, 2.0],
        [0.5, float("nan")],
        [],
        [[0.5]],
        "soft",
        [0.5, None],
        torch.tensor([0.5, float("nan")]),
    ],
)
def test_an_alpha_outside_0_to_1_is_refused(model: PreTrainedModel, caps: dict[Site, Cap], alpha: Any) -> None:
    with pytest.raises(InputError, match=r"expected a number from 0 \(off\) to 1"):
        capped(model, caps["mlp"], alpha=alpha)


@pytest.mark.parametrize(
    ("alpha", "same"),
    [
        (1, 1.0),
        (True, 1.0),
        (torch.tensor(0.5), 0.5),
        ([1], 1.0),
        ((0.5, 0.5, 0), [0.5, 0.5, 0.0]),
        (torch.ones(3, dtype=torch.float64), 1.0),
    ],
    ids=["int", "bool", "0-d tensor", "list", "tuple", "tensor"],
)
def test_an_alpha_may_be_any_number_or_list_of_them(
    model: PreTrainedModel, ids: torch.Tensor, caps: dict[Site, Cap], alpha: Any, same: Any
) -> None:
    rows = ids[: len(alpha)] if isinstance(alpha, list) else ids
    with capped(model, caps["mlp"], alpha=alpha):
        found = logits_of(model, rows)
    with capped(model, caps["mlp"], alpha=same):
        expected = logits_of(model, rows)
    torch.testing.assert_close(found, expected, **CLOSE)
    assert not torch.allclose(found, logits_of(model, rows), atol=0.01), "the cap acts"


def test_alphas_of_which_all_are_0_attach_nothing(model: PreTrainedModel, caps: dict[Site, Cap]) -> None:
    before = state(model)
    for alpha in (0, 0.0, [0.0, 0.0], torch.zeros(2)):
        with capped(model, caps["mlp"], alpha=alpha) as meter:
            assert state(model) == before
            assert meter.response_rates([3, 4]) == [0.0, 0.0]


@both_sites
@pytest.mark.parametrize(("alphas", "rows"), [(2, 3), (3, 1), (1, 3)])
def test_another_number_of_alphas_than_rows_is_an_error_and_not_spread(
    model: PreTrainedModel, ids: torch.Tensor, caps: dict[Site, Cap], site: Site, alphas: int, rows: int
) -> None:
    before = state(model)
    with (
        pytest.raises(InputError, match=f"alpha has {alphas} rows, the batch has {rows}"),
        capped(model, caps[site], alpha=[0.5] * alphas),
    ):
        logits_of(model, ids[:rows])
    assert state(model) == before


def test_a_failure_while_attaching_leaves_nothing(
    fresh_model: PreTrainedModel, caps: dict[Site, Cap], monkeypatch: pytest.MonkeyPatch
) -> None:
    before, calls = state(fresh_model), []
    norm = fresh_model.model.layers[4].post_attention_layernorm

    def fail(*_: Any, **__: Any) -> None:
        calls.append(1)
        raise KarmaError("no room for a hook")

    with capped(fresh_model, caps["mlp"]):
        pass  # tested by now: only attaching is left
    monkeypatch.setattr(norm, "register_forward_pre_hook", fail)
    with pytest.raises(KarmaError, match="no room"), capped(fresh_model, caps["mlp"]):
        pass
    assert calls == [1]
    assert state(fresh_model) == before
