"""What the tests of capped models share: a batch of prompts, logits, and a cap at each site."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

import tiny
from karma_electric.models.blocks import SITES, Site
from karma_electric.models.chat_template import prompt_ids

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from karma_electric.steer.spec import Cap

CLOSE = {"rtol": 1e-4, "atol": 2e-4}  # logits are of size 3; six float32 blocks of another order of operations
INTEGERS = {torch.float32: torch.int32, torch.bfloat16: torch.int16}


def prompts_of_one_length(tokenizer: PreTrainedTokenizerBase, n: int = 3) -> torch.Tensor:
    """Prompts [n, seq]."""
    rows = [prompt_ids(tokenizer, c[:-1]) for c in tiny.chats(12, seed=5)]
    shortest = min(len(row) for row in rows)
    return torch.tensor([row[:shortest] for row in rows[:n]])


def soft_caps(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[Site, Cap]:
    """A soft cap per site at blocks 2-4, with half of all tokens above the threshold."""
    return {site: tiny.cap_at(model, tokenizer, site) for site in SITES}


def logits_of(model: PreTrainedModel, ids: torch.Tensor, **more: Any) -> torch.Tensor:
    """Logits [batch, seq, vocabulary]."""
    with torch.no_grad():
        return model(input_ids=ids, **more).logits


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Stricter than `equal`: 0.0 and -0.0 differ."""
    return a.view(INTEGERS[a.dtype]).equal(b.view(INTEGERS[b.dtype]))
