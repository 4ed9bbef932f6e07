"""Compares the merged model with adapter on base, by their logits on held-out text; one model in memory at a time."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_electric.core.artifact import require_space
from karma_electric.core.messages import Conversation
from karma_electric.core.progress import Progress
from karma_electric.models.chat_template import conversation_ids
from karma_electric.models.loading import load_model, load_tokenizer, quiet_transformers
from karma_electric.models.weights import checkpoint_tensors
from karma_electric.train.nf4 import nf4_round_trip

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_LONGEST = 512  # tokens of one conversation that are compared
_TOKENS = 4096  # tokens of all
_SCRATCH = ".logits"


def compare_logits(
    base: Path,
    adapter: Path,
    merged: Path,
    conversations: Sequence[Conversation],
    base_weights: str,
    progress: Progress,
) -> dict[str, Any]:
    """Mean KL and logit differences, merged model against adapter on base.

    The logits of the first are kept in a file beside the merged model while the second is loaded. The arithmetic is
    float32 where the model fits in memory so, else bfloat16.

    Args:
        base: folder of the base model.
        adapter: folder of the adapter.
        merged: folder of the merged model.
        conversations: held-out text; at most 4096 tokens of it are used.
        base_weights: `merge.base` of the recipe: the reference is the adapter on these.
        progress: told about every conversation.

    Returns:
        The figures: conversations, tokens, arithmetic, max_abs_logit_difference, mean_abs_logit_difference,
        mean_kl_nats (of the merged model from adapter on base, per token), same_top_token.
    """
    from safetensors.torch import load_file, save_file

    probes = _probes(merged, conversations)
    arithmetic = _arithmetic(base)
    scratch = merged / _SCRATCH
    shutil.rmtree(scratch, ignore_errors=True)
    tokens = sum(map(len, probes))
    vocabulary = checkpoint_tensors(base)
    require_space(merged, 4 * tokens * max(t.shape[0] for t in vocabulary.values() if len(t.shape) == 2))
    scratch.mkdir()
    try:
        reference = adapter_on_base(base, adapter, arithmetic, base_weights)
        for number, ids in enumerate(probes):
            save_file({"logits": _logits(reference, ids)}, scratch / f"{number}.safetensors")
            progress.update(number + 1, 2 * len(probes), "conversations, adapter on base")
        del reference
        model = load_model(merged, dtype=arithmetic, device="cpu")
        totals = _Totals()
        for number, ids in enumerate(probes):
            totals.add(load_file(scratch / f"{number}.safetensors")["logits"], _logits(model, ids))
            progress.update(len(probes) + number + 1, 2 * len(probes), "conversations, merged")
    finally:
        shutil.rmtree(scratch)
    return {"conversations": len(probes), "tokens": tokens, "arithmetic": arithmetic, **totals.means()}


def _probes(folder: Path, conversations: Sequence[Conversation]) -> list[list[int]]:
    tokenizer = load_tokenizer(folder)
    probes: list[list[int]] = []
    for conversation in conversations:
        ids = conversation_ids(tokenizer, conversation)[: min(_LONGEST, _TOKENS - sum(map(len, probes)))]
        if not ids:
            break
        probes.append(ids)
    return probes


def _arithmetic(base: Path) -> str:
    import math

    import psutil

    weights = 4 * sum(math.prod(tensor.shape) for tensor in checkpoint_tensors(base).values())
    return "float32" if 1.3 * weights < psutil.virtual_memory().available else "bfloat16"


def adapter_on_base(base: Path, adapter: Path, arithmetic: str, base_weights: str) -> PreTrainedModel:
    """The model that a merge stands for: the adapter beside the base weights that were chosen.

    Args:
        base: folder of the base model.
        adapter: folder of the adapter.
        arithmetic: float32 or bfloat16.
        base_weights: `bf16`, or `dequantised-nf4`: every linear layer that 4-bit training quantises is rounded to NF4.
    """
    import torch
    from peft import PeftModel

    model = load_model(base, dtype=arithmetic, device="cpu")
    if base_weights == "dequantised-nf4":
        output = model.get_output_embeddings()
        for module in model.modules():
            if isinstance(module, torch.nn.Linear) and module is not output:
                module.weight.data = nf4_round_trip(module.weight.data).to(module.weight.dtype)
    with quiet_transformers():
        adapted: PreTrainedModel = PeftModel.from_pretrained(model, str(adapter)).eval()
    return adapted


def _logits(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    import torch

    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=torch.tensor([ids])).logits[0].float()  # [tokens, vocabulary]
    return logits


class _Totals:
    """Sums over tokens."""

    def __init__(self) -> None:
        self.tokens, self.logits = 0, 0
        self.largest, self.absolute, self.kl, self.same = 0.0, 0.0, 0.0, 0.0

    def add(self, reference: torch.Tensor, found: torch.Tensor) -> None:
        difference = (reference - found).abs()
        log_a, log_b = reference.log_softmax(-1), found.log_softmax(-1)
        self.tokens += len(reference)
        self.logits += reference.numel()
        self.largest = max(self.largest, float(difference.max()))
        self.absolute += float(difference.double().sum())
        self.kl += float((log_a.exp() * (log_a - log_b)).sum(-1).double().sum())
        self.same += float((reference.argmax(-1) == found.argmax(-1)).sum())

    def means(self) -> dict[str, float]:
        return {
            "max_abs_logit_difference": self.largest,
            "mean_abs_logit_difference": self.absolute / self.logits,
            "mean_kl_nats": self.kl / self.tokens,
            "same_top_token": self.same / self.tokens,
        }
