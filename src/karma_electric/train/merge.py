"""Folds a LoRA adapter into the weights, and measures what the rounding to the target type changed."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_electric.core.artifact import require_space, write_json
from karma_electric.core.errors import MissingError
from karma_electric.core.extras import require
from karma_electric.core.recipe import MergeSection
from karma_electric.models.chat_template import conversation_ids
from karma_electric.models.loading import import_quietly, load_model, load_tokenizer, quiet_transformers
from karma_electric.train.tokenize import read_split

if TYPE_CHECKING:
    import torch

SUMMARY = "merge.json"
_PROBES = 4  # validation conversations the logits are compared on
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
)


def merge_adapter(base: Path, adapter: Path, release: Path, section: MergeSection, out: Path) -> dict[str, Any]:
    """Merge `adapter` into `base` in float32, round to the target type, write safetensors to `out`.

    The adapter is merged into the base weights as they were before quantisation. merge.json holds the difference
    between adapter-on-base and merged model on held-out conversations: logits and KL, in float32 arithmetic.

    Raises:
        MissingError: no adapter there. SpaceError: not enough disk.
    """
    require("train")
    import_quietly("bitsandbytes")
    import torch
    from peft import PeftModel

    if not (adapter / "adapter_config.json").is_file():
        raise MissingError(f"{adapter} has no adapter_config.json.", "Run the adapter stage first.")
    weights = sum(f.stat().st_size for f in base.glob("*.safetensors"))
    require_space(out, 2 * weights)
    tokenizer = load_tokenizer(base)
    probes = [conversation_ids(tokenizer, c)[:512] for _, c in read_split(release / "validation.jsonl")[:_PROBES]]
    model = load_model(base, dtype="float32", device="cpu")
    with quiet_transformers():
        adapted = PeftModel.from_pretrained(model, str(adapter)).eval()
    before = _logits(adapted, probes)
    merged = adapted.merge_and_unload(safe_merge=True)  # W + (alpha / r) B A, refused if it holds a NaN
    dtype = getattr(torch, section.dtype)
    with quiet_transformers():
        merged.to(dtype).save_pretrained(out)
    for name in _TOKENIZER_FILES:
        if (base / name).exists():
            shutil.copyfile(base / name, out / name)
    after = _logits(load_model(out, dtype="float32", device="cpu"), probes)
    summary = {"dtype": section.dtype, "base_weights": "unquantised", **_difference(before, after)}
    write_json(out / SUMMARY, summary)
    return summary


def _logits(model: Any, probes: list[list[int]]) -> list[torch.Tensor]:
    import torch

    with torch.inference_mode():
        return [model(input_ids=torch.tensor([ids])).logits[0].float() for ids in probes]


def _difference(before: list[torch.Tensor], after: list[torch.Tensor]) -> dict[str, Any]:
    import torch

    a, b = torch.cat(before), torch.cat(after)  # [tokens, vocabulary]
    log_a, log_b = a.log_softmax(-1), b.log_softmax(-1)
    return {
        "conversations": len(before),
        "tokens": a.shape[0],
        "max_abs_logit_difference": (a - b).abs().max().item(),
        "mean_abs_logit_difference": (a - b).abs().mean().item(),
        "mean_kl_nats": (log_a.exp() * (log_a - log_b)).sum(-1).mean().item(),
        "same_top_token": (a.argmax(-1) == b.argmax(-1)).float().mean().item(),
    }
