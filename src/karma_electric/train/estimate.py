"""What a training run will take, before it starts: steps, tokens, parameters, memory and time.

Counts are exact. Memory is added up from what has to be held; time is what the arithmetic needs at a share of the speed
that this machine multiplies matrices with, which is measured on the spot. Both are estimates, and say so.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_electric.core.recipe import TrainSection
from karma_electric.train.disk import EIGHT_BIT_MOMENTS, adapter_bytes, checkpoint_bytes
from karma_electric.train.tokenize import TokenizedSplit
from karma_electric.train.trainer import linear_layers, require_targets

if TYPE_CHECKING:
    import torch

# Share of the measured speed of large matrix products that training reaches: rows are narrow, NF4 weights are unpacked
# every time, and norms, attention and the optimiser are not products. Measured on the embedded model, 2 cores: 0.3.
UTILISATION = 0.3
_NF4_BYTES = 0.5 + 1 / 64 + 1 / 256 * 4 / 64  # 4 bits, an 8-bit scale per 64, its own float32 scale per 256 of them
_LOGIT_CHUNK = 3  # float32 copies of the labelled positions' logits: logits, their log-softmax, its gradient


@dataclass(frozen=True)
class Estimate:
    """What a run will take.

    Attributes:
        examples, validation_examples: that are trained and validated on, after cutting and dropping.
        tokens, learned_tokens: of one epoch, without padding; tokens that carry a label.
        longest: tokens of the longest example.
        cut, dropped: ids of the examples longer than `train.max_length`.
        steps: optimiser steps of the whole run.
        parameters, trainable_parameters: of the base model, and of the adapter.
        memory_bytes: what -> bytes, at the peak.
        disk_bytes: adapter and checkpoints, at the most.
        seconds: whole run, without loading; None where no speed was measured.
    """

    examples: int
    validation_examples: int
    tokens: int
    learned_tokens: int
    longest: int
    cut: tuple[str, ...]
    dropped: tuple[str, ...]
    steps: int
    parameters: int
    trainable_parameters: int
    memory_bytes: dict[str, int]
    disk_bytes: int
    seconds: float | None

    def as_dict(self) -> dict[str, Any]:
        """For JSON, with the sum of the memory."""
        return {**asdict(self), "memory_bytes_total": sum(self.memory_bytes.values())}


def estimate(
    base: Path,
    train: TokenizedSplit,
    validation: TokenizedSplit,
    section: TrainSection,
    *,
    compute: torch.dtype,
    device: str,
    flops_per_second: float | None,
) -> Estimate:
    """Work out what training on `train` takes. Loads no weights.

    Args:
        base: folder of the base model.
        train: the tokenised training split.
        validation: the tokenised validation split.
        section: hyper-parameters.
        compute: number format of the arithmetic.
        device: where it will run; decides the optimiser.
        flops_per_second: speed of matrix products there, or None for no estimate of time.

    Raises:
        InputError: the model has no such linear layers.
    """
    from karma_electric.train.head_loss import CHUNK

    model = _on_meta(base)
    linear, rest = _weights(model)
    require_targets(model, linear, section.target_modules)
    trainable = sum(
        section.rank * (inside + outside)
        for name, (outside, inside) in linear.items()
        if name.rsplit(".", 1)[-1] in section.target_modules
    )
    in_linear = sum(outside * inside for outside, inside in linear.values())
    lengths = sorted((len(example.input_ids) for example in train.examples), reverse=True)
    widest = lengths[: section.batch_size]
    positions = section.batch_size * widest[0]
    learned = max(sum(label >= 0 for label in example.labels) for example in train.examples) * section.batch_size
    itemsize = compute.itemsize
    fused = section.fused and device == "cpu"  # weights are unpacked once, and stay
    unpacked = in_linear * itemsize if fused and section.quantisation == "nf4" else 0
    quantised = section.quantisation == "nf4"
    adapter = 2 if quantised else 4  # bytes a number: trl trains adapters of quantised bases in bfloat16, as QLoRA did
    optimiser = (
        EIGHT_BIT_MOMENTS if device == "cuda" else 2 * adapter
    )  # two moments: 8-bit (paged_adamw_8bit), or like the adapter
    # peft lifts what is not quantised to float32 where blocks are computed twice (prepare_model_for_kbit_training)
    kept = 4 if quantised and section.gradient_checkpointing else itemsize
    memory = {
        "base weights": int(in_linear * (_NF4_BYTES if quantised else itemsize) + rest * kept) + unpacked,
        "adapter": adapter * trainable,
        "gradients": adapter * trainable,
        "optimiser": optimiser * trainable,
        "activations": _activation_bytes(
            model.config, positions, itemsize, checkpointing=section.gradient_checkpointing
        ),
        "logits": _LOGIT_CHUNK * 4 * min(learned, CHUNK) * model.config.vocab_size,
    }
    passes = 3 if section.gradient_checkpointing else 2  # forward, backward to the activations, forward again
    products = 2 * passes * in_linear + 6 * trainable
    padded = _padded(lengths, section)
    whole = section.epochs * padded * products
    return Estimate(
        examples=len(train.examples),
        validation_examples=len(validation.examples),
        tokens=train.tokens,
        learned_tokens=train.learned_tokens,
        longest=lengths[0],
        cut=(*train.cut, *validation.cut),
        dropped=(*train.dropped, *validation.dropped),
        steps=steps(len(train.examples), section),
        parameters=in_linear + rest,
        trainable_parameters=trainable,
        memory_bytes=memory,
        disk_bytes=adapter_bytes(trainable, weight=adapter)
        + checkpoint_bytes(trainable, section.save_steps, weight=adapter, moments=optimiser),
        seconds=None if flops_per_second is None else whole / (UTILISATION * flops_per_second),
    )


def steps(examples: int, section: TrainSection) -> int:
    """Optimiser steps of a run, as transformers counts them."""
    batches = math.ceil(examples / section.batch_size)
    return math.ceil(section.epochs * max(1, math.ceil(batches / section.gradient_accumulation)))


def measure_speed(compute: torch.dtype, device: str, *, size: int = 1024, seconds: float = 0.5) -> float:
    """Floating-point operations per second of square matrix products, over about `seconds`."""
    import torch

    a, b = (torch.randn(size, size, device=device).to(compute) for _ in range(2))
    _wait(a @ b)
    started, products = time.perf_counter(), 0
    while (elapsed := time.perf_counter() - started) < seconds:
        _wait(a @ b)
        products += 1
    return 2 * size**3 * products / elapsed


def _wait(result: torch.Tensor) -> None:
    float(result[0, 0])  # a GPU is only done when the number is here


def _on_meta(base: Path) -> Any:
    """The model without weights: shapes only."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(base, local_files_only=True)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def _weights(model: Any) -> tuple[dict[str, tuple[int, int]], int]:
    """Shapes [out, in] of the linear layers inside the blocks, by name, and the number of all other parameters.

    The output head stays as it is in NF4 training, whether its weights are those of the embedding or its own.
    """
    linear = linear_layers(model)
    parameters = {id(p): p.numel() for p in model.parameters()}  # tied weights once
    return linear, sum(parameters.values()) - sum(outside * inside for outside, inside in linear.values())


def _activation_bytes(config: Any, positions: int, itemsize: int, *, checkpointing: bool) -> int:
    """What the backward pass needs to have kept: per block and position, the inputs of its products and norms.

    Hidden-sized: norm inputs and outputs, q, o and their inputs, residuals (about 10); intermediate-sized: gate, up,
    activation and product (4); both again in float32 for the adapters' path (half of them). With checkpointing, one
    hidden-sized tensor per block, and one whole block at a time.
    """
    # GPT-2 has another name for it, and None for 4 times the hidden size
    intermediate = getattr(config, "intermediate_size", None) or getattr(config, "n_inner", None)
    block = positions * (10 * config.hidden_size + 4 * (intermediate or 4 * config.hidden_size)) * itemsize * 3 // 2
    if checkpointing:
        return int(config.num_hidden_layers * positions * config.hidden_size * itemsize + block)
    return int(config.num_hidden_layers * block)


def _padded(lengths: Sequence[int], section: TrainSection) -> float:
    """Tokens of an epoch, padding included: of the first one's order, or expected when batches are drawn at random.

    The longest of k drawn without replacement from lengths sorted downwards: the i-th is it with the chance that it is
    in the batch and none of the longer ones is.
    """
    if section.group_by_length:
        from karma_electric.train.batches import LikeLengths, padding

        order = list(LikeLengths(lengths, section.batch_size * section.gradient_accumulation, section.seed))
        return sum(lengths) / (1 - padding(lengths, order, section.batch_size))
    n, k = len(lengths), min(section.batch_size, len(lengths))
    chances = [math.comb(n - i - 1, k - 1) / math.comb(n, k) for i in range(n - k + 1)]
    longest = sum(chance * length for chance, length in zip(chances, lengths, strict=False))
    return longest * n
