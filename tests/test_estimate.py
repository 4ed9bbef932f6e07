"""What `karma train --dry-run` promises is what training then does."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from karma_electric.core.errors import InputError
from karma_electric.core.recipe import TrainSection, load_recipe
from karma_electric.models.loading import nf4_config, quiet_transformers
from karma_electric.train import disk
from karma_electric.train import estimate as estimation
from karma_electric.train.estimate import Estimate, estimate, measure_speed, steps
from karma_electric.train.tokenize import IGNORED, Tokenized, TokenizedSplit
from karma_electric.train.trainer import Data, adapted_model, build_trainer, labelled_only, training_arguments
from karma_electric.train.trajectory import checkpoints_kept

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase


def split(lengths: list[int]) -> TokenizedSplit:
    """Examples of some lengths, half of each learned."""
    return TokenizedSplit(
        [Tokenized(f"e{i}", [5] * n, [IGNORED] * (n - n // 2) + [5] * (n // 2)) for i, n in enumerate(lengths)], [], []
    )


def estimated(base: Path, lengths: list[int], *, speed: float | None = 1e9, **keys: object) -> Estimate:
    section = TrainSection(**({"quantisation": "none", "rank": 8, "alpha": 16, "batch_size": 2} | keys))
    return estimate(
        base,
        split(lengths),
        split([9]),
        section,
        compute=torch.float32,
        device="cpu",
        flops_per_second=speed,
    )


@pytest.mark.parametrize(
    ("examples", "batch", "accumulation", "epochs"),
    [(7, 2, 1, 1.0), (7, 2, 3, 2.0), (8, 4, 8, 3.0), (5, 1, 2, 0.5), (9, 2, 2, 1.5)],
)
def test_steps_and_parameters_are_those_of_the_trainer(
    tiny_path: Path,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
    examples: int,
    batch: int,
    accumulation: int,
    epochs: float,
) -> None:
    from trl import SFTTrainer

    section = TrainSection(
        quantisation="none",
        rank=4,
        alpha=8,
        batch_size=batch,
        gradient_accumulation=accumulation,
        epochs=epochs,
        target_modules=["q_proj", "down_proj"],
    )
    data = Data(split([12] * examples), split([9]))
    found = estimate(
        tiny_path, data.train, data.validation, section, compute=torch.float32, device="cpu", flops_per_second=None
    )
    with quiet_transformers():
        model = adapted_model(tiny_path, section, torch.float32)
        trainer = build_trainer(
            labelled_only(SFTTrainer, section), model, tokenizer, data, section, tmp_path, torch.float32
        )
        trainer.train()
    assert found.steps == steps(examples, section) == trainer.state.global_step
    trainable, whole = model.get_nb_trainable_parameters()
    assert (found.trainable_parameters, found.parameters) == (trainable, whole - trainable)
    assert found.seconds is None


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=8), batch=st.integers(1, 4))
def test_padding_is_the_mean_over_all_batches(lengths: list[int], batch: int) -> None:
    """The mean of the longest of every possible batch, counted out."""
    from itertools import combinations

    longest = [max(chosen) for chosen in combinations(lengths, min(batch, len(lengths)))]
    expected = statistics.mean(longest) * len(lengths)
    assert estimation._padded(
        sorted(lengths, reverse=True), TrainSection(batch_size=batch, group_by_length=False)
    ) == pytest.approx(expected)


def test_memory_falls_with_each_thing_that_the_advice_names(tiny_path: Path) -> None:
    lengths = [40] * 8
    whole = sum(estimated(tiny_path, lengths).memory_bytes.values())
    for lower in ({"batch_size": 1}, {"gradient_checkpointing": True}, {"rank": 2}):
        assert sum(estimated(tiny_path, lengths, **lower).memory_bytes.values()) < whole, lower
    assert sum(estimated(tiny_path, [20] * 8).memory_bytes.values()) < whole


def test_four_bits_hold_the_blocks_and_not_the_embedding(tmp_path: Path) -> None:
    base = tiny.write_checkpoint(tmp_path / "base", intermediate=192)
    full, quantised = (
        estimated(base, [9], quantisation=kind, fused=False).memory_bytes["base weights"] for kind in ("none", "nf4")
    )
    embedding = 4 * tiny.VOCABULARY * tiny.HIDDEN
    assert embedding < quantised < embedding + (full - embedding) / 6


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("quantisation", ["none", "nf4"])
def test_weights_adapter_and_checkpoint_take_what_is_estimated(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, quantisation: str, checkpointing: bool
) -> None:
    """Against a trainer that has done a step, and the files it wrote."""
    from trl import SFTTrainer

    base = tiny.write_checkpoint(tmp_path / "base", intermediate=192)
    section = TrainSection(
        quantisation=quantisation,
        rank=8,
        alpha=16,
        batch_size=2,
        epochs=1.0,
        save_steps=1,
        fused=False,
        gradient_checkpointing=checkpointing,
    )
    data = Data(split([12, 12]), split([9]))
    found = estimate(
        base, data.train, data.validation, section, compute=torch.bfloat16, device="cpu", flops_per_second=None
    )
    with quiet_transformers():
        model = adapted_model(base, section, torch.bfloat16)
        trainer = build_trainer(
            labelled_only(SFTTrainer, section), model, tokenizer, data, section, tmp_path / "out", torch.bfloat16
        )
        trainer.train()
    held = {trains: [p for p in model.parameters() if p.requires_grad is trains] for trains in (True, False)}
    scales = sum(
        tensor.numel() * tensor.element_size()
        for parameter in held[False]
        if (state := getattr(parameter, "quant_state", None)) is not None
        for tensor in (state.absmax, state.state2.absmax)
    )
    weights = sum(p.numel() * p.element_size() for p in held[False]) + scales
    assert found.memory_bytes["base weights"] == pytest.approx(weights, rel=0.02)
    assert found.memory_bytes["adapter"] == sum(p.numel() * p.element_size() for p in held[True])
    moments = sum(
        tensor.numel() * tensor.element_size()
        for state in trainer.optimizer.state.values()
        for name, tensor in state.items()
        if name != "step"
    )
    assert found.memory_bytes["optimiser"] == moments
    checkpoint = tmp_path / "out" / "checkpoint-1"
    written = sum((checkpoint / name).stat().st_size for name in ("adapter_model.safetensors", "optimizer.pt"))
    adapter = (checkpoint / "adapter_model.safetensors").stat().st_size
    most = checkpoints_kept(section.save_steps) + 1
    beside = most * disk._BESIDE
    assert found.disk_bytes - beside == pytest.approx(adapter + most * written, rel=0.3)  # headers: small in real ones


def test_time_is_in_proportion_to_the_work(tiny_path: Path) -> None:
    once = estimated(tiny_path, [30] * 8, epochs=1.0).seconds
    thrice = estimated(tiny_path, [30] * 8, epochs=3.0).seconds
    fast = estimated(tiny_path, [30] * 8, epochs=1.0, speed=2e9).seconds
    assert once is not None
    assert (thrice, fast) == (pytest.approx(3 * once), pytest.approx(once / 2))


def test_a_target_the_model_does_not_have_is_named(tiny_path: Path) -> None:
    with pytest.raises(InputError, match=r"no 'c_attn'.* It has .*q_proj"):
        estimated(tiny_path, [9], target_modules=["c_attn"])


def test_of_a_gpt2_the_layers_that_could_be_targets_are_named_and_estimated(tmp_path: Path) -> None:
    from transformers import GPT2Config

    sizes = {"vocab_size": 50, "n_positions": 64, "n_embd": 32, "n_layer": 2, "n_head": 2}
    GPT2Config(**sizes, architectures=["GPT2LMHeadModel"]).save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"no 'q_proj'.* It has c_attn, c_fc, c_proj \(of the kind Conv1D"):
        estimated(tmp_path, [9], target_modules=["q_proj"])
    found = estimated(tmp_path, [9], target_modules=["c_attn"], rank=4)
    assert found.trainable_parameters == 2 * 4 * (32 + 96)


def test_the_speed_that_is_measured_is_a_speed() -> None:
    assert measure_speed(torch.float32, "cpu", size=64, seconds=0.01) > 1e6


@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
def test_the_recipes_for_llama_are_the_originals_in_full(version: str) -> None:
    recipe = load_recipe(f"llama31-8b-{version}.toml")
    train = recipe.train
    assert recipe.model.dtype == "bfloat16"
    assert (train.quantisation, train.rank, train.alpha, train.dropout) == ("nf4", 64, 128, 0.05)
    assert set(train.target_modules) == {f"{name}_proj" for name in ("q", "k", "v", "o", "gate", "up", "down")}
    assert (train.epochs, train.batch_size, train.gradient_accumulation) == (3.0, 2, 8)
    assert (train.learning_rate, train.warmup_fraction, train.weight_decay) == (2e-4, 0.03, 0.01)
    assert (train.max_grad_norm, train.max_length, train.gradient_checkpointing) == (0.3, 4096, True)
    assert recipe.axis.layers == (22, 28)
    assert recipe.card.model_name.startswith("Llama")
    smaller = load_recipe(f"smollm2-{version}.toml")
    assert smaller.release == recipe.release
    assert (smaller.train.rank, smaller.train.alpha, smaller.train.epochs) == (64, 128, 3.0)


@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
def test_on_a_gpu_the_recipes_for_llama_take_the_originals_optimiser_and_four_bits(
    version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read back from the libraries' own objects; only what they ask of the hardware is answered for them."""
    from bitsandbytes.optim import AdamW
    from transformers import Trainer

    monkeypatch.setattr("karma_electric.train.trainer.pick_device", lambda: "cuda")
    monkeypatch.setattr("transformers.training_args.is_torch_bf16_gpu_available", lambda: True)
    section = load_recipe(f"llama31-8b-{version}.toml").train
    arguments = training_arguments(section, tmp_path, torch.bfloat16)
    optimiser, settings = Trainer.get_optimizer_cls_and_kwargs(arguments)
    assert arguments.optim == "paged_adamw_8bit"
    assert issubclass(optimiser, AdamW)
    assert (settings["optim_bits"], settings["is_paged"], settings["lr"]) == (8, True, 2e-4)
    assert (arguments.lr_scheduler_type, arguments.weight_decay, arguments.max_grad_norm) == ("cosine", 0.01, 0.3)
    assert arguments.get_warmup_steps(1000) == 30
    assert (arguments.per_device_train_batch_size, arguments.gradient_accumulation_steps) == (2, 8)
    assert (arguments.num_train_epochs, arguments.bf16, arguments.gradient_checkpointing) == (3.0, True, True)

    (tmp_path / "config.json").write_text('{"hidden_size": 4096, "intermediate_size": 14336}')
    four_bits = nf4_config(tmp_path, torch.bfloat16)
    assert (four_bits.load_in_4bit, four_bits.bnb_4bit_quant_type) == (True, "nf4")
    assert four_bits.bnb_4bit_use_double_quant
    assert four_bits.bnb_4bit_compute_dtype == torch.bfloat16


def test_steps_of_like_length_hold_less_padding() -> None:
    lengths = sorted(range(20, 420), reverse=True)
    drawn, grouped = (
        estimation._padded(lengths, TrainSection(batch_size=4, gradient_accumulation=1, group_by_length=choice))
        for choice in (False, True)
    )
    assert sum(lengths) < grouped < 1.05 * sum(lengths) < drawn


def test_weights_that_are_unpacked_for_speed_are_counted(tmp_path: Path) -> None:
    base = tiny.write_checkpoint(tmp_path / "base", intermediate=192)
    packed, unpacked = (
        estimated(base, [9], quantisation="nf4", fused=fused).memory_bytes["base weights"] for fused in (False, True)
    )
    weights = sum(outside * inside for outside, inside in estimation._weights(estimation._on_meta(base))[0].values())
    assert unpacked - packed == 4 * weights
