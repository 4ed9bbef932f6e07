"""How faithful a baked checkpoint is to the cap it was made from: KL(hooked || baked) / KL(hooked || uncapped)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from karma_electric.core.messages import Conversation
from karma_electric.core.progress import Progress
from karma_electric.models.chat_template import conversation_ids, prompt_ids
from karma_electric.steer.cap import capped
from karma_electric.steer.spec import Cap

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def measure_fidelity(
    uncapped: PreTrainedModel,
    baked: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cap: Cap,
    conversations: Sequence[Conversation],
    *,
    progress: Progress,
) -> dict[str, Any]:
    """Compare three models on text that calibration never saw, each conversation ending with an answer.

    Both models should be in float32, so that what is measured is the neuron and the rounding of the stored weights,
    not the arithmetic.

    Returns:
        Per kind of token (`prompt`, all but the first; `response`) and for `all`: mean KL in nats from the hooked
        model to the baked and the uncapped one, their ratio, and how often the top token agrees.
    """
    import torch

    sums = {kind: torch.zeros(5, dtype=torch.float64) for kind in ("prompt", "response")}
    for number, conversation in enumerate(conversations):
        ids = torch.tensor([conversation_ids(tokenizer, conversation)], device=uncapped.device)
        start = len(prompt_ids(tokenizer, conversation[:-1])) - 1  # this position predicts the first response token
        with capped(uncapped, cap):
            hooked = _log_probabilities(uncapped, ids)
        per_token = torch.stack(
            [
                torch.ones(hooked.shape[0], device=hooked.device),
                _kl(hooked, other := _log_probabilities(baked, ids)),
                (hooked.argmax(-1) == other.argmax(-1)).float(),
                _kl(hooked, other := _log_probabilities(uncapped, ids)),
                (hooked.argmax(-1) == other.argmax(-1)).float(),
            ],
            dim=1,
        ).double()
        sums["prompt"] += per_token[1:start].sum(0).cpu()
        sums["response"] += per_token[start:-1].sum(0).cpu()
        progress.update(number + 1, len(conversations), "held-out conversations compared")
    sums["all"] = sums["prompt"] + sums["response"]
    return {"conversations": len(conversations), **{kind: _report(values) for kind, values in sums.items()}}


def measure_text(
    uncapped: PreTrainedModel,
    baked: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cap: Cap,
    texts: Sequence[str],
) -> dict[str, float]:
    """What the cap does to ordinary text, without a chat template: perplexity uncapped, hooked and baked.

    Every token but the first of a text is predicted; texts of one token are left out.
    """
    import torch

    sums, tokens = torch.zeros(3, dtype=torch.float64), 0
    for text in texts:
        ids = torch.tensor([tokenizer(text, add_special_tokens=True)["input_ids"]], device=uncapped.device)
        if ids.shape[1] < 2:
            continue
        with capped(uncapped, cap):
            hooked = _log_probabilities(uncapped, ids)
        each = (_log_probabilities(uncapped, ids), hooked, _log_probabilities(baked, ids))
        nll = [-p[:-1].gather(1, ids[0, 1:, None]).double().sum().cpu() for p in each]
        sums += torch.stack(nll)
        tokens += ids.shape[1] - 1
    if not tokens:
        return {"tokens": 0}
    perplexities = (sums / tokens).exp().tolist()
    names = ("perplexity_uncapped", "perplexity_hooked", "perplexity_baked")
    return {"tokens": tokens, **dict(zip(names, perplexities, strict=True))}


def measure_throughput(uncapped: PreTrainedModel, baked: PreTrainedModel, repeats: int = 5) -> dict[str, float]:
    """Tokens per second of the baked model relative to the uncapped one, prefill of 256 tokens, alternating runs."""
    import time

    import torch

    ids = (torch.arange(256) % 97 + 3).unsqueeze(0).to(uncapped.device)
    seconds: dict[int, list[float]] = {0: [], 1: []}
    for repeat in range(repeats + 1):
        for side, model in enumerate((uncapped, baked)):
            start = time.perf_counter()
            with torch.inference_mode():
                model(input_ids=ids, use_cache=False).logits[0, -1, 0].item()
            if repeat:  # the first pass warms up
                seconds[side].append(time.perf_counter() - start)
    medians = [sorted(seconds[side])[repeats // 2] for side in (0, 1)]
    return {"prefill_ratio_baked_to_uncapped": medians[0] / medians[1], "repeats": repeats}


def _report(values: torch.Tensor) -> dict[str, float]:
    tokens, kl_baked, same_baked, kl_uncapped, same_uncapped = values.tolist()
    return {
        "tokens": int(tokens),
        "kl_hooked_baked_nats": kl_baked / tokens,
        "kl_hooked_uncapped_nats": kl_uncapped / tokens,
        "kl_ratio": kl_baked / kl_uncapped if kl_uncapped > 0 else float(kl_baked > 0),
        "same_top_token_baked": same_baked / tokens,
        "same_top_token_uncapped": same_uncapped / tokens,
    }


def _log_probabilities(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Log-probabilities of the next token, float32 [seq, vocabulary]."""
    import torch

    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=ids, use_cache=False).logits[0]
    return logits.float().log_softmax(-1)


def _kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(p || q) per position, from log-probabilities [seq, vocabulary]."""
    return (p.exp() * (p - q)).sum(-1).clamp_min(0.0)
