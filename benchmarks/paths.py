"""Compares another program's greedy answers with transformers on the same checkpoint, along the answers' own paths.

At every step both have read the same tokens: the prompt, and the other program's answer so far. So one pass of
transformers over prompt and answer tells its own choice and its distribution at every step. A program that tells only
its most likely tokens gives a distribution over those and "anything else"; KL between two distributions that are
coarsened alike is at most the KL between the whole ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_LEAST = 1e-9  # probability of "anything else" at least


@dataclass(frozen=True)
class Answer:
    """A greedy answer to one prompt.

    Attributes:
        prompt: token ids.
        tokens: token ids of the answer.
        top: at every token of the answer, the likeliest tokens and their log-probabilities; may be empty.
    """

    prompt: list[int]
    tokens: list[int]
    top: list[Mapping[int, float]]


def compare_paths(model: PreTrainedModel, answers: Sequence[Answer]) -> dict[str, Any]:
    """How often transformers would have written the same, and the KL from it to the other program.

    Returns:
        `identical`: share of answers that are the same to their end. `common_prefix`: mean number of leading tokens
        that are; `mean_tokens`, the most there can be. `same_token`: share of all steps. `kl_nats`: mean over steps,
        a lower bound, in float64; `kl_steps`, how many steps had a distribution.
    """
    prefixes, same, kls = [], 0, []
    for answer in answers:
        logits = answer_logits(model, answer)  # [answer, vocabulary]
        chosen = logits.argmax(-1).tolist()
        differs = [n for n, (a, b) in enumerate(zip(chosen, answer.tokens, strict=True)) if a != b]
        prefixes.append(differs[0] if differs else len(answer.tokens))
        same += len(answer.tokens) - len(differs)
        kls += [
            coarse_kl(row, top) for row, top in zip(logits.double().log_softmax(-1), answer.top, strict=False) if top
        ]
    steps = sum(len(a.tokens) for a in answers)
    return {
        "prompts": len(answers),
        "mean_tokens": steps / len(answers),
        "identical": sum(n == len(a.tokens) for n, a in zip(prefixes, answers, strict=True)) / len(answers),
        "common_prefix": sum(prefixes) / len(answers),
        "same_token": same / steps,
        "kl_nats": sum(kls) / len(kls) if kls else None,
        "kl_steps": len(kls),
    }


def answer_logits(model: PreTrainedModel, answer: Answer) -> torch.Tensor:
    """transformers' logits where each token of an answer was chosen, float32 [answer, vocabulary]."""
    import torch

    ids = torch.tensor([answer.prompt + answer.tokens[:-1]], device=model.device)
    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=ids, logits_to_keep=len(answer.tokens), use_cache=False).logits[0]
    return logits.float()


def coarse_kl(log_p: torch.Tensor, top: Mapping[int, float]) -> float:
    """KL(p || q) over the tokens of `top` and everything else as one outcome.

    Args:
        log_p: log-probabilities, float64 [vocabulary].
        top: token -> log-probability under q.
    """
    import torch

    ids = torch.tensor(list(top), device=log_p.device)
    q = torch.tensor(list(top.values()), dtype=torch.float64).exp()
    p = log_p[ids].exp().cpu()
    p = torch.cat([p, (1 - p.sum()).clamp_min(_LEAST).unsqueeze(0)])
    q = torch.cat([q, (1 - q.sum()).clamp_min(_LEAST).unsqueeze(0)])
    return max(0.0, float((p * (p.log() - q.log())).sum()))


def line(name: str, found: Mapping[str, Any]) -> str:
    """One row for people."""
    step = f"{found['same_token']:.1%}"
    kl = "not told" if found["kl_nats"] is None else f"{found['kl_nats']:.6f} nats over {found['kl_steps']} steps"
    return (
        f"{name}: same answer {found['identical']:.0%} of {found['prompts']}, same first "
        f"{found['common_prefix']:.1f} of {found['mean_tokens']:.1f} tokens, same token {step}, KL {kl}"
    )
