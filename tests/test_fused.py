"""The faster paths of training give what the plain ones give."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch.nn.functional import cross_entropy

import tiny
from karma_electric.models.loading import load_model, never_repack, quiet_transformers
from karma_electric.train.batches import LikeLengths, padding
from karma_electric.train.fused import _dropped, _kept, fuse_projections
from karma_electric.train.head_loss import CHUNK, head_loss

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def adapted(folder: Path, *, dropout: float = 0.0) -> Any:
    torch.manual_seed(0)
    model = load_model(tiny.write_checkpoint(folder), dtype="float32")
    config = LoraConfig(r=4, lora_alpha=8, lora_dropout=dropout, target_modules=TARGETS, task_type="CAUSAL_LM")
    with quiet_transformers():
        model = get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:  # fresh adapters are zero, and so would be half of the gradients
                parameter.normal_(0, 0.1)
    return model.train()


def gradients(model: Any, ids: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    model(input_ids=ids, labels=ids).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_loss_and_gradients_are_those_of_peft(tmp_path: Path) -> None:
    plain = adapted(tmp_path)
    fused = copy.deepcopy(plain)
    assert fuse_projections(fused) == 7 * plain.config.num_hidden_layers
    ids = torch.randint(0, plain.config.vocab_size, (2, 12), generator=torch.Generator().manual_seed(1))
    expected, actual = gradients(plain, ids), gradients(fused, ids)
    assert expected.keys() == actual.keys()
    assert len(expected) == 14 * plain.config.num_hidden_layers
    for name, value in expected.items():
        assert value.abs().max() > 0, name
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert torch.equal(plain.eval()(ids).logits, fused.eval()(ids).logits)
    with torch.no_grad():  # as in a validation
        torch.testing.assert_close(fused(ids).logits, plain(ids).logits, rtol=1e-4, atol=1e-5)


def test_a_projection_with_dropout_is_that_of_the_entries_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against autograd of the formula, with the same entries dropped; x gets its gradient through them too."""
    from karma_electric.train import fused

    torch.manual_seed(0)
    x, w = torch.randn(5, 6, requires_grad=True), torch.randn(7, 6)
    a, b = torch.randn(3, 6, requires_grad=True), torch.randn(7, 3, requires_grad=True)
    keep = torch.rand(5, 6) > 0.4
    monkeypatch.setattr(fused, "_kept", lambda shape, rate: -keep.to(torch.int16))
    upstream = torch.randn(5, 7)
    expected = x @ w.T + 2.0 * ((x * keep / 0.75) @ a.T @ b.T)
    wanted = torch.autograd.grad(expected, (x, a, b), upstream)
    actual = fused._Projection.apply(x, w, a, b, 2.0, 0.25)
    torch.testing.assert_close(actual, expected)
    for got, want in zip(torch.autograd.grad(actual, (x, a, b), upstream), wanted, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rate", [0.05, 0.5, 0.9])
def test_dropout_drops_at_its_rate_and_by_the_seed(rate: float) -> None:
    torch.manual_seed(3)
    first = _kept(torch.Size((300, 401)), rate)
    assert set(first.unique().tolist()) == {-1, 0}
    dropped = (first == 0).double().mean().item()
    error = (rate * (1 - rate) / first.numel()) ** 0.5
    assert abs(dropped - rate) < 5 * error
    assert not torch.equal(first, _kept(first.shape, rate))
    torch.manual_seed(3)
    assert torch.equal(first, _kept(first.shape, rate))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_dropped_entries_are_zero_and_the_others_unchanged(dtype: torch.dtype) -> None:
    x = torch.randn(4, 5).to(dtype)
    keep = -(torch.rand(4, 5) > 0.5).to(torch.int16)
    assert torch.equal(_dropped(x, keep), torch.where(keep != 0, x, torch.zeros_like(x)))


def test_only_dropout_of_training_is_random(tmp_path: Path) -> None:
    model = adapted(tmp_path, dropout=0.5)
    fuse_projections(model)
    ids = torch.arange(10)[None]
    noisy = [model(ids).logits for _ in range(2)]
    assert not torch.equal(*noisy)
    model.eval()
    assert torch.equal(model(ids).logits, model(ids).logits)


@pytest.mark.parametrize("switch", ["disable_adapter_layers", "merge_adapter"])
def test_a_model_without_its_adapter_is_what_peft_makes_of_it(tmp_path: Path, switch: str) -> None:
    plain = adapted(tmp_path).eval()
    fused = copy.deepcopy(plain)
    fuse_projections(fused)
    ids = torch.arange(10)[None]
    with torch.no_grad():
        for model in (plain, fused):
            getattr(model, switch)()
        assert torch.equal(plain(ids).logits, fused(ids).logits)


def test_nf4_weights_are_unpacked_once_for_validations_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """bitsandbytes has another way for passes without gradients, several times slower on a CPU."""
    bnb = pytest.importorskip("bitsandbytes")
    layer = bnb.nn.Linear4bit(64, 128, bias=False, compute_dtype=torch.float32, quant_type="nf4")
    layer.weight = bnb.nn.Params4bit(torch.randn(128, 64), requires_grad=False, quant_type="nf4")
    holder = torch.nn.Sequential(layer.to("cpu"))
    with quiet_transformers():
        model = get_peft_model(holder, LoraConfig(r=4, target_modules=["0"])).eval()
    never_repack(model)
    x = torch.randn(3, 64)
    with torch.no_grad():
        expected = model(x)
        assert fuse_projections(model) == 1
        monkeypatch.setattr(bnb.nn.Linear4bit, "forward", None)
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)


def test_nf4_weights_are_unpacked_to_what_bitsandbytes_multiplies_with() -> None:
    bnb = pytest.importorskip("bitsandbytes")
    from karma_electric.train.fused import _unpacked

    torch.manual_seed(0)
    layer = bnb.nn.Linear4bit(64, 128, bias=False, compute_dtype=torch.bfloat16, quant_type="nf4")
    layer.weight = bnb.nn.Params4bit(torch.randn(128, 64), requires_grad=False, quant_type="nf4")
    layer = layer.to("cpu")
    weight = _unpacked(layer)
    assert weight.shape == (128, 64)
    assert weight.dtype == torch.bfloat16
    x = torch.randn(3, 64, dtype=torch.bfloat16, requires_grad=True)  # as in training: the unpacking path
    torch.testing.assert_close(x @ weight.t(), layer(x), rtol=0, atol=0)


@pytest.mark.parametrize("n", [1, CHUNK, 2 * CHUNK + 3])
def test_loss_in_chunks_is_cross_entropy(n: int) -> None:
    torch.manual_seed(n)
    hidden = torch.randn(n, 8, requires_grad=True)
    weight, targets = torch.randn(50, 8), torch.randint(0, 50, (n,))
    expected = cross_entropy(hidden @ weight.T, targets, reduction="sum")
    (wanted,) = torch.autograd.grad(expected / 7, hidden)
    loss, correct = head_loss(hidden, weight, targets)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(torch.autograd.grad(loss / 7, hidden)[0], wanted, rtol=1e-4, atol=1e-6)
    assert int(correct) == int(((hidden @ weight.T).argmax(-1) == targets).sum())


def test_loss_in_chunks_survives_large_logits() -> None:
    hidden = torch.full((2, 4), 300.0, requires_grad=True)
    weight = torch.tensor([[1.0] * 4, [-1.0] * 4, [0.5] * 4])
    loss, _ = head_loss(hidden, weight, torch.tensor([0, 1]))
    torch.testing.assert_close(loss, torch.tensor(2400.0))
    loss.backward()
    assert torch.isfinite(hidden.grad).all()  # type: ignore[arg-type]


def test_an_epoch_holds_every_example_once_in_batches_of_like_length() -> None:
    torch.manual_seed(0)
    lengths = torch.randint(20, 700, (203,)).tolist()
    sampler = LikeLengths(lengths, 4, seed=5)
    first = list(sampler)
    assert sorted(first) == list(range(203))
    assert len(sampler) == 203
    assert padding(lengths, first, 4) < 0.1 < padding(lengths, range(203), 4)
    assert list(sampler) == first
    sampler.set_epoch(1)
    assert list(sampler) != first
    again = LikeLengths(lengths, 4, seed=5)
    again.set_epoch(1)
    assert list(again) == list(sampler)
    longest = [max(lengths[i] for i in first[j : j + 4]) for j in range(0, 200, 4)]
    assert longest not in (sorted(longest), sorted(longest, reverse=True))


def test_padding_counts_positions() -> None:
    assert padding([2, 4, 4], [0, 1, 2], 2) == pytest.approx(1 - 10 / 12)
