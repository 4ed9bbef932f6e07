"""How faithful a baked checkpoint is to the caps it was made from: KL(hooked || baked) / KL(hooked || uncapped), and
what that means for answers and for plain text. How fast it is: throughput.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from karma_electric.core.messages import Conversation
from karma_electric.core.progress import Progress
from karma_electric.models.chat_template import conversation_ids, prompt_ids
from karma_electric.models.loading import end_of_turn_ids
from karma_electric.steer.caps import all_capped
from karma_electric.steer.spec import Cap

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

KINDS = ("prompt", "response")
RESAMPLES = 2000
_LEVEL = 0.95


def measure_fidelity(
    uncapped: PreTrainedModel,
    baked: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    caps: Sequence[Cap],
    conversations: Sequence[Conversation],
    *,
    progress: Progress,
) -> dict[str, Any]:
    """Compare three models on text that calibration never saw, each conversation ending with an answer.

    Both models should be in float32, so that what is measured is the neuron and the rounding of the stored weights,
    not the arithmetic.

    Returns:
        Per kind of token (`prompt`, all but the first; `response`) and for `all`: mean KL in nats from the hooked
        model to the baked and the uncapped one, their ratio with an interval, and how often the top token agrees.
    """
    sums = []
    for number, conversation in enumerate(conversations):
        ids, start = with_start(tokenizer, conversation)
        with all_capped(uncapped, caps):
            hooked = log_probabilities(uncapped, ids)
        sums.append(compare(hooked, log_probabilities(baked, ids), log_probabilities(uncapped, ids), start))
        progress.update(number + 1, len(conversations), "held-out conversations compared")
    return report(sums)


def with_start(tokenizer: PreTrainedTokenizerBase, conversation: Conversation) -> tuple[list[int], int]:
    """Token ids of a conversation, and the position that predicts the first token of its answer."""
    return conversation_ids(tokenizer, conversation), len(prompt_ids(tokenizer, conversation[:-1])) - 1


def compare(hooked: torch.Tensor, baked: torch.Tensor, uncapped: torch.Tensor, start: int) -> torch.Tensor:
    """What `report` adds up, of one conversation.

    Args:
        hooked, baked, uncapped: log-probabilities of the next token, [seq, vocabulary].
        start: the position that predicts the first token of the answer.

    Returns:
        float64 [2, 5], prompt and response: tokens, KL to the baked model, same top token, the same for uncapped.
    """
    import torch

    top = hooked.argmax(-1)
    per_token = torch.stack(
        [
            torch.ones(hooked.shape[0], device=hooked.device),
            _kl(hooked, baked),
            (top == baked.argmax(-1)).float(),
            _kl(hooked, uncapped),
            (top == uncapped.argmax(-1)).float(),
        ],
        dim=1,
    ).double()
    # not the attention sink, and not what follows the last token
    return torch.stack([per_token[1:start].sum(0), per_token[start:-1].sum(0)]).cpu()


def report(sums: Sequence[torch.Tensor]) -> dict[str, Any]:
    """The figures of several conversations' sums ([2, 5] each), as `measure_fidelity` returns them."""
    import torch

    each = torch.stack(list(sums))  # [conversations, 2, 5]
    kinds = {kind: each[:, number] for number, kind in enumerate(KINDS)} | {"all": each.sum(1)}
    return {"conversations": len(sums), **{kind: _figures(values) for kind, values in kinds.items()}}


def _figures(values: torch.Tensor) -> dict[str, Any]:
    tokens, kl_baked, same_baked, kl_uncapped, same_uncapped = values.sum(0).tolist()
    return {
        "tokens": int(tokens),
        "kl_hooked_baked_nats": kl_baked / tokens,
        "kl_hooked_uncapped_nats": kl_uncapped / tokens,
        "kl_ratio": kl_baked / kl_uncapped if kl_uncapped > 0 else float(kl_baked > 0),
        "kl_ratio_interval": _ratio_interval(values[:, 1], values[:, 3]),
        "same_top_token_baked": same_baked / tokens,
        "same_top_token_uncapped": same_uncapped / tokens,
    }


def _ratio_interval(above: torch.Tensor, below: torch.Tensor) -> dict[str, Any] | None:
    """Percentile interval of `sum(above) / sum(below)`, by a bootstrap over conversations ([conversations] each).

    Tokens of one conversation resemble each other, so conversations are drawn and not tokens. None for a single one,
    or where a drawn sum is 0.
    """
    import torch

    n = len(above)
    if n < 2:
        return None
    drawn = torch.randint(n, (RESAMPLES, n), generator=torch.Generator().manual_seed(0))
    below_sums = below[drawn].sum(1)
    if not bool((below_sums > 0).all()):
        return None
    ends = torch.tensor([(1 - _LEVEL) / 2, (1 + _LEVEL) / 2], dtype=torch.float64)
    low, high = (above[drawn].sum(1) / below_sums).quantile(ends).tolist()
    return {"low": low, "high": high, "level": _LEVEL, "resamples": RESAMPLES, "over": "conversations"}


def measure_greedy(
    uncapped: PreTrainedModel,
    baked: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    caps: Sequence[Cap],
    conversations: Sequence[Conversation],
    *,
    max_new_tokens: int = 32,
) -> dict[str, Any]:
    """Whether the baked model, decoding greedily, writes what the hooked one writes.

    The hooked model answers the last question of each conversation; the answers given there are not used. Up to the
    first difference two models have read the same tokens, so one pass of the other model over the hooked one's answer
    tells where its own would part from it.

    Returns:
        Prompts, tokens per prompt; of the baked and the uncapped model the share of identical answers and the mean
        number of leading tokens that are the same; and the hooked model's mean length, which is the most there can be.
    """
    prompts = [prompt_ids(tokenizer, c[:-1]) for c in conversations]
    with all_capped(uncapped, caps):
        answers = _greedy(uncapped, tokenizer, prompts, max_new_tokens)
    found: dict[str, Any] = {
        "prompts": len(prompts),
        "max_new_tokens": max_new_tokens,
        "mean_tokens": sum(map(len, answers)) / len(answers),
    }
    for name, model in (("baked", baked), ("uncapped", uncapped)):
        same = [_leading(model, prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
        identical = sum(n == len(answer) for n, answer in zip(same, answers, strict=True))
        found[f"identical_{name}"] = identical / len(answers)
        found[f"mean_common_prefix_{name}"] = sum(same) / len(same)
    return found


def _greedy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[list[int]], max_new_tokens: int
) -> list[list[int]]:
    """Greedy answers as token ids, the end of the turn included."""
    import torch

    longest, pad = max(map(len, prompts)), int(tokenizer.pad_token_id or 0)
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    stops = end_of_turn_ids(model, tokenizer)
    with torch.inference_mode():
        output: torch.Tensor = model.generate(  # type: ignore[operator]  # transformers' stubs
            input_ids=ids,
            attention_mask=mask,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad,
            eos_token_id=stops,
        )
    answers = []
    for row in output[:, longest:].tolist():
        end = next((place + 1 for place, token in enumerate(row) if token in stops), len(row))
        answers.append(row[:end])
    return answers


def _leading(model: PreTrainedModel, prompt: list[int], answer: list[int]) -> int:
    """How many leading tokens of an answer a model would have chosen itself."""
    chosen = log_probabilities(model, prompt + answer[:-1])[-len(answer) :].argmax(-1).tolist()
    return next(
        (place for place, pair in enumerate(zip(chosen, answer, strict=True)) if pair[0] != pair[1]), len(answer)
    )


def measure_text(
    uncapped: PreTrainedModel,
    baked: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    caps: Sequence[Cap],
    texts: Sequence[str],
) -> dict[str, float]:
    """What the caps do to plain text, without a chat template: perplexity uncapped, hooked and baked.

    Every token but the first of a text is predicted; texts of one token are left out.
    """
    import torch

    sums, tokens = torch.zeros(3, dtype=torch.float64), 0
    for text in texts:
        ids = list(tokenizer(text, add_special_tokens=True)["input_ids"])
        if len(ids) < 2:
            continue
        with all_capped(uncapped, caps):
            hooked = log_probabilities(uncapped, ids)
        each = (log_probabilities(uncapped, ids), hooked, log_probabilities(baked, ids))
        following = torch.tensor(ids[1:], device=hooked.device).unsqueeze(1)
        sums += torch.stack([-p[:-1].gather(1, following).double().sum().cpu() for p in each])
        tokens += len(ids) - 1
    if not tokens:
        return {"tokens": 0}
    perplexities = (sums / tokens).exp().tolist()
    names = ("perplexity_uncapped", "perplexity_hooked", "perplexity_baked")
    return {"tokens": tokens, **dict(zip(names, perplexities, strict=True))}


def log_probabilities(model: PreTrainedModel, ids: list[int]) -> torch.Tensor:
    """Log-probabilities of the next token, float32 [seq, vocabulary]."""
    import torch

    with torch.inference_mode():
        logits: torch.Tensor = model(input_ids=torch.tensor([ids], device=model.device), use_cache=False).logits[0]
    return logits.float().log_softmax(-1)


def _kl(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """KL(p || q) per position, from log-probabilities [seq, vocabulary]."""
    return (p.exp() * (p - q)).sum(-1).clamp_min(0.0)
