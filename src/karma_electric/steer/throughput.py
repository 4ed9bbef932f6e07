"""How fast a baked model is, relative to the uncapped one: reading a prompt, and writing token by token."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_PROMPT = 256  # tokens
_STEPS = 8


def measure_throughput(uncapped: PreTrainedModel, baked: PreTrainedModel, repeats: int = 5) -> dict[str, Any]:
    """Tokens per second of the baked model relative to the uncapped one: medians of alternating runs.

    Prefill reads 256 tokens; decode writes 8 more from a cache of them.
    """
    import torch

    ids = (torch.arange(_PROMPT) % 97 + 3).unsqueeze(0).to(uncapped.device)
    seconds: dict[tuple[str, int], list[float]] = {
        (kind, side): [] for kind in ("prefill", "decode") for side in (0, 1)
    }
    for repeat in range(repeats + 1):
        for side, model in enumerate((uncapped, baked)):
            prefill, decode = _timed(model, ids)
            if repeat:  # the first pass warms up
                seconds["prefill", side].append(prefill)
                seconds["decode", side].append(decode)
    medians = {key: sorted(values)[repeats // 2] for key, values in seconds.items()}
    ratios = {f"{kind}_ratio_baked_to_uncapped": medians[kind, 0] / medians[kind, 1] for kind in ("prefill", "decode")}
    return {**ratios, "repeats": repeats, "prompt_tokens": _PROMPT, "decoded_tokens": _STEPS}


def _timed(model: PreTrainedModel, ids: torch.Tensor) -> tuple[float, float]:
    """Seconds to read `ids`, and to write a few tokens after them."""
    import torch

    with torch.inference_mode():
        start = time.perf_counter()
        output = model(input_ids=ids, use_cache=True, logits_to_keep=1)
        token = output.logits[:, -1].argmax(-1, keepdim=True)
        token.item()  # waits for the device
        read = time.perf_counter()
        for _ in range(_STEPS):
            output = model(input_ids=token, past_key_values=output.past_key_values, use_cache=True)
            token = output.logits[:, -1].argmax(-1, keepdim=True)
        token.item()
    return read - start, time.perf_counter() - read
