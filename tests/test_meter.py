"""The meter: the share of each row's response tokens that were above the threshold, exact, and bounded in memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from capping import logits_of, prompts_of_one_length
from karma_electric.core.errors import InputError
from karma_electric.models.blocks import SITES, Site
from karma_electric.steer.cap import capped
from karma_electric.steer.hooks import LayerCap
from karma_electric.steer.meter import CapMeter

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

both_sites = pytest.mark.parametrize("site", SITES)


def see(caps: list[LayerCap], *blocks: list[list[bool]]) -> None:
    """One forward pass in which these rows and tokens were above the thresholds of the blocks."""
    for cap, rows in zip(caps, blocks, strict=True):
        cap.note(torch.tensor(rows, dtype=torch.float32))


def metered(n_blocks: int, context: int = 100) -> tuple[CapMeter, list[LayerCap]]:
    meter, caps = CapMeter(context), [LayerCap(torch.ones(1), 0.0, 0.5) for _ in range(n_blocks)]
    meter.watch(caps)
    return meter, caps


def test_each_row_counts_its_own_response_tokens() -> None:
    meter, caps = metered(2)
    see(caps, [[True] * 3, [True] * 3], [[True] * 3, [True] * 3])  # the prompt is not counted
    see(caps, [[True], [False]], [[True], [False]])
    see(caps, [[False], [True]], [[True], [True]])
    see(caps, [[False], [True]], [[False], [True]])
    assert meter.response_rates([3, 1]) == pytest.approx([0.5, 0.0])  # row 1 stopped after one token
    assert meter.response_rates([4, 0]) == pytest.approx([0.5, 0.0])  # the last token is never fed back


@given(st.data())
def test_any_generation_in_any_portions(data: st.DataObject) -> None:
    """Against the plain mean over what was above, [block, row, token]."""
    n_rows, n_blocks = data.draw(st.integers(1, 3)), data.draw(st.integers(1, 3))
    portions = data.draw(st.lists(st.integers(1, 4), max_size=6))
    seed = data.draw(st.integers(0, 1000))
    n_tokens = sum(portions)
    above = torch.rand(n_blocks, n_rows, n_tokens, generator=torch.Generator().manual_seed(seed)) > 0.5
    meter, caps = metered(n_blocks)
    see(caps, *torch.ones(n_blocks, n_rows, 5).bool().tolist())
    start = 0
    for portion in portions:
        see(caps, *above[:, :, start : start + portion].tolist())
        start += portion
    lengths = data.draw(st.lists(st.integers(0, n_tokens + 1), min_size=n_rows, max_size=n_rows))
    expected = [
        float(above[:, row, :length].float().mean()) if min(length, n_tokens) else 0.0
        for row, length in enumerate(lengths)
    ]
    assert meter.response_rates(lengths) == pytest.approx(expected)


def test_a_prompt_alone_has_no_rate() -> None:
    meter, caps = metered(1)
    see(caps, [[True, True]])
    assert meter.response_rates([1]) == [0.0]
    assert metered(1)[0].response_rates([1, 1]) == [0.0, 0.0]


def test_a_batch_of_other_rows_begins_anew() -> None:
    meter, caps = metered(1)
    see(caps, [[False], [False]])
    see(caps, [[True], [True]])
    see(caps, [[True]])
    see(caps, [[False]])
    assert meter.response_rates([1]) == [0.0]
    with pytest.raises(InputError, match="2 answers were given, the last forward pass had 1 rows"):
        meter.response_rates([1, 1])


def test_more_tokens_than_the_context_are_refused_and_not_written_elsewhere() -> None:
    meter, caps = metered(1, context=3)
    see(caps, [[False]])
    for _ in range(3):
        see(caps, [[True]])
    assert meter.response_rates([3]) == [1.0]
    see(caps, [[False, False]])
    with pytest.raises(InputError, match="5 response tokens passed the cap, more than the model's context of 3"):
        meter.response_rates([3])


def test_a_pass_that_did_not_reach_every_block_is_not_counted() -> None:
    meter, caps = metered(2)
    see(caps, [[False]], [[False]])
    caps[1].note(torch.ones(1, 1))
    see(caps, [[False]], [[True]])
    assert meter.response_rates([5]) == [0.5]


@both_sites
def test_the_rate_is_what_the_stream_says(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, site: Site
) -> None:
    ids = prompts_of_one_length(tokenizer)
    cap = tiny.cap_at(model, tokenizer, site, layers=(2,))  # one block: nothing before it moves
    with capped(model, cap) as meter:
        logits_of(model, ids[:, :3])
        logits_of(model, ids)
    above = tiny.residuals(model, ids, site)[2] @ cap.directions[2] > cap.spec.thresholds[2]
    lengths = [ids.shape[1], 7, 1]
    expected = [float(above[row, :n].float().mean()) for row, n in enumerate(lengths)]
    assert meter.response_rates(lengths) == pytest.approx(expected)


@both_sites
def test_a_row_of_alpha_0_is_never_capped(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, site: Site
) -> None:
    ids = prompts_of_one_length(tokenizer)
    with capped(model, tiny.cap_at(model, tokenizer, site), alpha=[0.5, 0.0, 1.0]) as meter:
        logits_of(model, ids[:, :3])
        logits_of(model, ids)
    rates = meter.response_rates([ids.shape[1]] * 3)
    assert rates[1] == 0.0
    assert rates[0] > 0.1
    assert rates[2] > 0.1


def test_counting_begun_in_inference_mode_goes_on_outside_it(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    ids = prompts_of_one_length(tokenizer)
    with capped(model, tiny.cap_at(model, tokenizer, "mlp")) as meter:
        with torch.inference_mode():
            model(input_ids=ids)
        logits_of(model, ids)
        model(input_ids=ids)
    assert all(rate > 0.1 for rate in meter.response_rates([2 * ids.shape[1]] * 3))


def test_memory_does_not_grow_with_the_answer() -> None:
    """Passes wait to be counted together, a bounded number of them."""
    meter, caps = metered(2, context=500)
    most = 0
    see(caps, [[False]], [[False]])
    for number in range(200):
        see(caps, [[True]], [[number % 2 == 0]])
        most = max(most, len(meter._waiting))
    assert 1 < most < 50
    assert meter.response_rates([200]) == [0.75]
    assert meter._counts.shape == (1, 501)
    assert meter._waiting == []
    assert all(cap.seen is None for cap in caps)


def test_passes_that_wait_do_not_keep_the_graph_of_gradients() -> None:
    meter, caps = metered(1)
    weight = torch.ones(1, 1, requires_grad=True)
    for _ in range(3):
        caps[0].note(weight * 2)
    assert all(not over.requires_grad for _, seen in meter._waiting for over in seen)
    assert meter.response_rates([2]) == [1.0]
