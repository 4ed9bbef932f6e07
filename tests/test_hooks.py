"""The formula of the cap on plain tensors: what it computes, in which precision, and which bits it leaves alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from karma_electric.core.errors import InputError, KarmaError
from karma_electric.steer.hooks import LayerCap, corrected, excess, push

vectors = st.lists(st.floats(-50, 50, width=32), min_size=4, max_size=4)
directions = vectors.filter(lambda x: np.linalg.norm(x) > 1e-3)
TYPES = (torch.float32, torch.bfloat16, torch.float16)
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


def unit(v: list[float]) -> np.ndarray[Any, Any]:
    return np.array(v) / np.linalg.norm(v)


def cap_by_formula(h: torch.Tensor, v: torch.Tensor, t: float, alpha: float | torch.Tensor) -> torch.Tensor:
    """The functions under test, together."""
    return corrected(h, excess(h, v, t), push(v, alpha))


def stream(dtype: torch.dtype, *, rows: int = 3, seed: int = 0) -> torch.Tensor:
    """[rows, 5, 64], some components zero of either sign."""
    h = torch.randn(rows, 5, 64, generator=torch.Generator().manual_seed(seed)).mul(3)
    h[..., 0], h[..., 1] = 0.0, -0.0
    return h.to(dtype)


def direction(seed: int = 1) -> torch.Tensor:
    v = torch.randn(64, generator=torch.Generator().manual_seed(seed))
    return v / v.norm()


@given(h=vectors, v=directions, t=st.floats(-20, 20), alpha=st.floats(0, 1))
def test_the_formula_is_the_one_in_the_design(h: list[float], v: list[float], t: float, alpha: float) -> None:
    expected = np.array(h) - alpha * max(0.0, float(np.dot(h, unit(v))) - t) * unit(v)
    found = cap_by_formula(torch.tensor([[h]]), torch.tensor(unit(v), dtype=torch.float32), t, alpha)
    assert found.dtype == torch.float32
    np.testing.assert_allclose(found[0, 0].numpy(), expected, rtol=1e-4, atol=1e-3)


@given(h=vectors, v=directions, t=st.floats(-20, 20), alpha=st.floats(0, 1))
def test_a_ceiling_is_a_floor_along_the_opposite_direction(
    h: list[float], v: list[float], t: float, alpha: float
) -> None:
    """floor(-v, -t) = ceiling(v, t): the floor is written as the paper does, h + alpha * max(0, t - <h, v>) * v."""
    opposite, lowest = -unit(v), -t
    floored = np.array(h) + alpha * max(0.0, lowest - float(np.dot(h, opposite))) * opposite
    found = cap_by_formula(torch.tensor([[h]]), torch.tensor(unit(v), dtype=torch.float32), t, alpha)
    np.testing.assert_allclose(found[0, 0].numpy(), floored, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("alpha", [0.5, 1.0, torch.tensor([0.2, 0.7, 1.0])])
def test_every_type_gets_float32_arithmetic_rounded_once(dtype: torch.dtype, alpha: Any) -> None:
    """Against float64: half a unit in the last place for the rounding, and float32's own error."""
    h, v, t = stream(dtype), direction(), 0.1
    strength = alpha.double()[:, None, None] if isinstance(alpha, torch.Tensor) else alpha
    over = (h.double() @ v.double() - t).clamp_min(0)
    exact = h.double() - strength * over[..., None] * v.double()
    found = cap_by_formula(h, v, t, alpha)
    assert found.dtype == dtype
    assert (over > 0).any()
    assert (over == 0).any()
    error = (found.double() - exact).abs()
    assert (error <= 0.5 * torch.finfo(dtype).eps * exact.abs() + 2e-6).all()


def test_reduced_precision_for_matrix_products_does_not_reach_the_cap() -> None:
    """At a size where a plain product does lose digits: small ones are computed in full either way."""
    generator = torch.Generator().manual_seed(0)
    h, w = (torch.randn(256, 576, generator=generator) for _ in range(2))
    cap = LayerCap(w[0] / w[0].norm(), 0.1, 0.5)

    def capped_and_plain() -> tuple[torch.Tensor, torch.Tensor]:
        rows = h[None]
        return corrected(rows, cap.measure(rows), cap.push), h @ w.t()

    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("highest")
        expected, full = capped_and_plain()
        torch.set_float32_matmul_precision("medium")
        found, reduced = capped_and_plain()
    finally:
        torch.set_float32_matmul_precision(before)
    assert not expected.equal(h[None])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)  # another kernel may be taken, of the same precision
    if (reduced - full).abs().max() < 1e-3:
        pytest.skip("products keep their digits on this processor, so this shows nothing")


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("strange", [0.0, float("inf"), float("nan")])
def test_a_row_of_alpha_0_keeps_every_bit(dtype: torch.dtype, strange: float) -> None:
    """The sign of zero included, and whatever overflowed before."""
    h = stream(dtype)
    h[1, 2, 7] = strange
    cap = LayerCap(direction(), -50.0, torch.tensor([0.5, 0.0, 1.0]))
    found = corrected(h, cap.measure(h), cap.push)
    number = ~h[1].isnan()  # of not-a-number there are many, and converting picks one
    assert found[1][number].view(BITS[dtype]).equal(h[1][number].view(BITS[dtype]))
    assert found[1].isnan().equal(h[1].isnan())
    assert not found[0].equal(h[0])
    assert not found[2].equal(h[2])


def test_what_is_changed_is_a_new_tensor() -> None:
    for dtype in TYPES:
        h = stream(dtype)
        before = h.clone()
        assert cap_by_formula(h, direction(), -50.0, 1.0).data_ptr() != h.data_ptr()
        assert h.equal(before)


def test_gradients_flow_through_a_cap() -> None:
    """d/dh of the sum is 1 - alpha * sum(v) * v where the cap acts, and 1 elsewhere."""
    h, v = stream(torch.float64).float().requires_grad_(), direction()
    cap_by_formula(h, v, 0.1, 0.5).sum().backward()
    acting = (h.detach() @ v > 0.1)[..., None]
    expected = torch.where(acting, 1 - 0.5 * v.sum() * v, torch.ones_like(v))
    torch.testing.assert_close(h.grad, expected)


def test_an_mlp_may_put_out_rows_and_tokens_as_one() -> None:
    h, v = stream(torch.float32), direction()
    over, pushed = excess(h, v, 0.1), push(v, torch.tensor([0.2, 0.7, 1.0]))
    flat = corrected(h.view(-1, 64), over, pushed)
    assert flat.equal(corrected(h, over, pushed).view(-1, 64))


def test_another_number_of_rows_than_alphas_is_refused() -> None:
    cap = LayerCap(direction(), 0.0, torch.tensor([0.5, 1.0]))
    with pytest.raises(InputError, match="alpha has 2 rows, the batch has 4") as caught:
        cap.measure(stream(torch.float32, rows=4))
    assert "num_return_sequences" in caught.value.hint
    with pytest.raises(InputError, match="alpha has 2 rows, the batch has 1"):
        cap.measure(stream(torch.float32, rows=1))  # would be spread over two rows


def test_a_stream_of_another_shape_is_refused() -> None:
    with pytest.raises(KarmaError, match=r"shape \[2, 3, 4, 64\], expected \[rows, tokens, hidden\]"):
        LayerCap(direction(), 0.0, 0.5).measure(torch.zeros(2, 3, 4, 64))


def test_directions_follow_the_stream_to_its_device_once() -> None:
    """Where weights are fetched for each call, a block's device is known only when it computes."""
    cap = LayerCap(direction(), 0.0, torch.tensor([0.0, 1.0]))
    elsewhere = torch.empty(2, 3, 64, device="meta")
    assert cap.measure(elsewhere).device.type == "meta"
    moved = (cap.v, cap.t, cap.push, cap.off)
    cap.measure(elsewhere)
    assert all(now is then for now, then in zip((cap.v, cap.t, cap.push, cap.off), moved, strict=True))


@contextmanager
def operations() -> Iterator[list[str]]:
    """Names of all operations that tensors go through."""
    from torch.utils._python_dispatch import TorchDispatchMode

    names: list[str] = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            names.append(function.name().removeprefix("aten::"))
            return function(*args, **(kwargs or {}))

    with Record():
        yield names


def test_a_capped_token_costs_a_handful_of_operations_and_none_waits_for_the_device() -> None:
    """No value of a tensor is looked at, nothing is copied anywhere: four kernels in float32."""
    h, cap = stream(torch.float32)[:, :1], LayerCap(direction(), 0.1, 0.5)
    cap.measure(h)
    with operations() as names:
        corrected(h, cap.measure(h), cap.push)
    kernels = [name for name in names if name not in ("view", "_unsafe_view", "unsqueeze", "reshape", "_reshape_alias")]
    assert kernels == ["mv", "sub.Tensor", "clamp_min", "addcmul"]
