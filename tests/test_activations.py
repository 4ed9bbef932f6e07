"""Passes over the decoder: batches that waste little, hooks that stop where nothing more is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from karma_electric.models.blocks import SITES, Site
from karma_electric.steer.activations import all_sites, batches_by_length, mean_of, picked, recording, run_decoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IDS = torch.randint(3, tiny.VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))


def cost(lengths: list[int], batches: list[list[int]], pass_tokens: int) -> int:
    return sum(len(batch) * max(lengths[i] for i in batch) + pass_tokens for batch in batches)


# Batches

lengths_ = st.lists(st.integers(1, 60), max_size=40)


@given(lengths=lengths_, batch_tokens=st.integers(1, 300), max_rows=st.none() | st.integers(1, 9))
def test_every_sequence_is_in_one_batch_within_the_limits(
    lengths: list[int], batch_tokens: int, max_rows: int | None
) -> None:
    batches = batches_by_length(lengths, batch_tokens, max_rows=max_rows)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    for batch in batches:
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= batch_tokens
        assert len(batch) <= (max_rows or len(batch))


@given(lengths=st.lists(st.integers(1, 60), min_size=1, max_size=9), pass_tokens=st.sampled_from([0, 16, 100]))
def test_no_other_cut_of_the_sorted_lengths_costs_less(lengths: list[int], pass_tokens: int) -> None:
    found = cost(lengths, batches_by_length(lengths, 10_000, pass_tokens=pass_tokens), pass_tokens)
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    for cuts in range(2 ** (len(order) - 1)):
        batches: list[list[int]] = [[order[0]]]
        for place, index in enumerate(order[1:]):
            if cuts >> place & 1:
                batches.append([])
            batches[-1].append(index)
        assert found <= cost(lengths, batches, pass_tokens)


# What is kept


def test_the_mean_is_over_each_rows_own_positions() -> None:
    activations = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
    kept = mean_of([(0, 5), (2, 3), (1, 4)], 5)(activations)
    expected = torch.stack([activations[0].mean(0), activations[1, 2], activations[2, 1:4].mean(0)])
    torch.testing.assert_close(kept, expected)


def test_single_positions_are_taken_as_they_are() -> None:
    activations = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    kept = mean_of([(4, 5), (2, 3)], 5)(activations)
    assert kept.equal(torch.stack([activations[0, 4], activations[1, 2]]).float())


class OnAnotherDevice(torch.Tensor):
    """An index that holds to torch's rule for devices on a machine that has one: of no use until it is moved."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            if func is torch.Tensor.to:
                return args[0].as_subclass(torch.Tensor).to(*args[1:], **(kwargs or {}))
            if func is torch.Tensor.__getitem__:
                raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor")
            return func(*args, **(kwargs or {}))


MASK = torch.tensor([[0, 1, 1, 0, 1], [1, 0, 0, 0, 1]]).bool()


@pytest.mark.parametrize("index", [MASK, MASK.nonzero(as_tuple=True)], ids=["mask", "rows and positions"])
def test_what_is_picked_is_picked_where_the_block_is(index: Any) -> None:
    """Of a model that is split over devices, the mask is where the first block is, the activations are not."""
    activations = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0)).bfloat16()
    expected = torch.stack([activations[r, p] for r, p in MASK.nonzero().tolist()]).float()
    assert picked(index)(activations).equal(expected)
    parts = index if isinstance(index, tuple) else (index,)
    far = tuple(part.as_subclass(OnAnotherDevice) for part in parts)
    elsewhere = far if isinstance(index, tuple) else far[0]
    with pytest.raises(RuntimeError, match="same device"):
        activations[elsewhere]
    assert picked(elsewhere)(activations).equal(expected)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second device")
def test_a_mask_on_the_gpu_picks_from_a_block_on_the_cpu() -> None:
    activations = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    assert picked(MASK.cuda())(activations).equal(activations[MASK])
    assert picked(MASK)(activations.cuda()).equal(activations[MASK])


# Stopping


def modules_run(model: PreTrainedModel, names: list[str]) -> tuple[list[str], list[Any]]:
    """Hooks that note which of these modules have run."""
    ran: list[str] = []
    handles = [
        model.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: ran.append(name)) for name in names
    ]
    return ran, handles


@pytest.mark.parametrize(
    ("keys", "last"),
    [
        ([("mlp", 2)], "model.layers.2.self_attn"),
        ([("mlp", 2), ("block", 1)], "model.layers.2.self_attn"),
        ([("block", 2)], "model.layers.2.mlp"),
        ([("block", 2), ("mlp", 2), ("mlp", 0)], "model.layers.2.mlp"),
        (all_sites(tiny.LAYERS), "model.layers.5.mlp"),
    ],
)
def test_a_pass_stops_at_the_last_site_that_is_needed(
    model: PreTrainedModel, keys: list[tuple[Site, int]], last: str
) -> None:
    names = [f"model.layers.{n}.{part}" for n in range(tiny.LAYERS) for part in ("self_attn", "mlp")]
    ran, handles = modules_run(model, [*names, "model.norm", "lm_head"])
    hooks = tiny.hook_count(model)
    with recording(model, keys, lambda h: h.clone(), stop=True) as stopped:
        run_decoder(model, IDS, torch.ones_like(IDS))
    assert tiny.hook_count(model) == hooks
    for handle in handles:
        handle.remove()
    assert ran == names[: names.index(last) + 1]
    for site in SITES:
        whole = tiny.residuals(model, IDS, site)
        for (of, layer), values in stopped.items():
            if of == site:
                torch.testing.assert_close(values, whole[layer], rtol=1e-4, atol=1e-4)
    assert set(stopped) == set(keys)


def test_a_pass_that_is_not_told_to_stop_ends_as_usual(model: PreTrainedModel) -> None:
    ran, handles = modules_run(model, ["model.norm", "lm_head"])
    with recording(model, [("mlp", 2)], lambda h: h):
        run_decoder(model, IDS, torch.ones_like(IDS))
    for handle in handles:
        handle.remove()
    assert ran == ["model.norm"], "and never reaches the vocabulary"


def test_a_hook_that_is_never_reached_is_not_passed_over(model: PreTrainedModel) -> None:
    with pytest.raises(RuntimeError, match="not reached"), recording(model, [("mlp", 2)], lambda h: h):
        pass  # no forward pass


def test_another_error_in_the_pass_is_not_swallowed(model: PreTrainedModel) -> None:
    def broken(_: torch.Tensor) -> torch.Tensor:
        raise ValueError("broken")

    hooks = tiny.hook_count(model)
    with pytest.raises(ValueError, match="broken"), recording(model, [("mlp", 2)], broken, stop=True):
        run_decoder(model, IDS, torch.ones_like(IDS))
    assert tiny.hook_count(model) == hooks
