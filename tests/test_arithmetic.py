"""Matrix products by the faster library: the same numbers, only where they may differ, and nothing else touched."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from torch.nn import Linear
from torch.nn.functional import linear

import tiny
from karma_electric.models import arithmetic
from karma_electric.models.arithmetic import fast_products

if TYPE_CHECKING:
    from transformers import PreTrainedModel

IDS = torch.randint(3, tiny.VOCABULARY, (2, 9), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    """oneDNN, whatever processor the test runs on."""
    if not (torch.backends.mkldnn.is_available() and arithmetic._agrees()):
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(arithmetic, "_onednn_is_faster", lambda: True)


@pytest.mark.usefixtures("chosen")
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("shape", [(1, 64), (3, 5, 64), (2, 1, 1, 64)])
def test_a_product_is_the_product(model: PreTrainedModel, bias: bool, shape: tuple[int, ...]) -> None:
    layer = Linear(64, 48, bias=bias)
    x = torch.randn(shape)
    expected = linear(x.double(), layer.weight.double(), layer.bias.double() if bias else None)
    with torch.inference_mode(), fast_products(model):
        actual = layer(x)
        turned = layer(x.transpose(0, -2)) if x.dim() > 2 else layer(x)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(turned, actual.transpose(0, -2) if x.dim() > 2 else actual)


@pytest.mark.usefixtures("chosen")
def test_a_model_gives_the_same_within_rounding(model: PreTrainedModel) -> None:
    with torch.inference_mode():
        plain = model(input_ids=IDS).logits
        with fast_products(model):
            fast = model(input_ids=IDS).logits
        assert model(input_ids=IDS).logits.equal(plain), "and nothing of it stays"
    torch.testing.assert_close(fast, plain, rtol=1e-3, atol=1e-3)


@pytest.mark.usefixtures("chosen")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_number_formats_are_left_alone(model: PreTrainedModel, dtype: torch.dtype) -> None:
    x, weight = torch.randn(3, 64, dtype=dtype), torch.randn(8, 64, dtype=dtype)
    with torch.inference_mode(), fast_products(model):
        assert linear(x, weight).equal(x @ weight.T)


@pytest.mark.usefixtures("chosen")
def test_no_tokens_give_no_rows(model: PreTrainedModel) -> None:
    with torch.inference_mode(), fast_products(model):
        assert linear(torch.empty(0, 64), torch.randn(8, 64)).shape == (0, 8)


def test_where_the_usual_library_is_the_faster_one_nothing_is_done(
    model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arithmetic, "_onednn_is_faster", lambda: False)
    with torch.inference_mode():
        plain = model(input_ids=IDS).logits
        with fast_products(model):
            assert model(input_ids=IDS).logits.equal(plain)
