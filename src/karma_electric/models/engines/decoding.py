"""Batched decoding for models of plain full attention: what `generate` computes, with less to do.

    shared prefix    what prompts begin with (the system prompt) is read once, not once per row
    equal prompts    what is asked several times, under several seeds, is read once
    earlier turns    what a conversation's last answer was read and written with is not read again (keys.py)
    like lengths     prompts are read with others of like length, so that little is padding
    room             keys and values go into buffers made for the whole answer, instead of being copied every step
    early release    rows whose answer has ended leave the batch

An answer depends on its own prompt and the seed, not on what shares the batch, but for the last bits of the arithmetic:
greedy answers are those of `generate`; sampled ones draw from a stream of their own, made from seed and prompt. Knows
nothing of text.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from karma_electric.models.engines.choosing import sample
from karma_electric.models.engines.keys import Memory, next_logits, read_prompts, roomy_cache
from karma_electric.models.engines.protocol import Sampling

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def can_decode(model: PreTrainedModel) -> bool:
    """Whether every layer of the model keeps keys and values of all tokens, and nothing else."""
    from transformers import DynamicCache
    from transformers.cache_utils import DynamicLayer

    config = model.config.get_text_config()
    if getattr(config, "is_encoder_decoder", False):
        return False
    layers = DynamicCache(config=config).layers
    return bool(layers) and all(type(layer) is DynamicLayer for layer in layers)


def decode(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    sampling: Sampling,
    *,
    stop_ids: Sequence[int],
    pad_id: int,
    memory: Memory | None,
    seeds: Sequence[int] | None = None,
) -> list[list[int]]:
    """Answer prompts, each up to its first stop token or the limit.

    Args:
        model: one that `can_decode`.
        prompts: token ids, none empty.
        sampling: how tokens are chosen.
        stop_ids: tokens that end an answer.
        pad_id: any token, for places that are masked.
        memory: what is known of earlier turns; these are added. None makes one pass for the prompts, then one per
            token, each with all rows: for those who count along.
        seeds: a seed for each prompt; None is the sampling's for all.

    Returns:
        token ids of each answer; the stop token, where there was one, is the last of them.
    """
    import torch

    answers: list[list[int]] = [[] for _ in prompts]
    stopping, ended = set(stop_ids), set[int]()
    uniforms = _uniforms(prompts, sampling, seeds or [sampling.seed] * len(prompts)).to(model.device)
    with torch.inference_mode():
        batch, logits = _begin(model, prompts, uniforms, sampling.max_new_tokens, pad_id, memory)
        for step in range(sampling.max_new_tokens):
            if step:
                logits = next_logits(model, batch.ids, batch.mask, batch.past)
            chosen = sample(logits, sampling, batch.uniforms[:, step])
            for owner, token in zip(batch.owners, chosen.tolist(), strict=True):
                if owner not in ended:
                    answers[owner].append(token)
                    if token in stopping:
                        ended.add(owner)
            if len(ended) == len(prompts) or step + 1 == sampling.max_new_tokens:
                break
            batch = batch.next(chosen)
            idle = sum(owner in ended for owner in batch.owners)
            if memory is not None and idle * 8 >= len(batch.owners):
                batch.remember(memory, prompts, answers, ended)
                batch = batch.without(ended)
        if memory is not None:
            batch.remember(memory, prompts, answers, set(batch.owners))
    return answers


def _begin(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    uniforms: torch.Tensor,
    room: int,
    pad_id: int,
    memory: Memory | None,
) -> tuple[_Batch, torch.Tensor]:
    """Read the prompts. Returns the batch, and the logits of the first tokens."""
    import torch

    owners = list(range(len(prompts)))
    if memory is not None:
        read = read_prompts(model, prompts, room=room, pad_id=pad_id, memory=memory)
        return _Batch(read.mask[:, :0], read.mask, read.past, owners, uniforms), read.logits
    width = max(map(len, prompts))
    past = roomy_cache(model, room)
    ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=model.device)
    return _Batch(ids, mask, past, owners, uniforms), next_logits(model, ids, mask, past)


@dataclass(frozen=True)
class _Batch:
    """What the next pass reads.

    Attributes:
        ids: [rows, new tokens].
        mask: 1 where a token is, past and new, [rows, all tokens].
        past: keys and values so far.
        owners: which prompt each row answers.
        uniforms: random numbers for every step, [rows, max_new_tokens].
    """

    ids: torch.Tensor
    mask: torch.Tensor
    past: Any
    owners: list[int]
    uniforms: torch.Tensor

    def next(self, chosen: torch.Tensor) -> _Batch:
        """After a pass: one token more per row."""
        import torch

        mask = torch.cat([self.mask, self.mask.new_ones(len(self.owners), 1)], dim=1)
        return _Batch(chosen.unsqueeze(1), mask, self.past, self.owners, self.uniforms)

    def without(self, ended: set[int]) -> _Batch:
        """Only the rows that go on."""
        import torch

        kept = [row for row, owner in enumerate(self.owners) if owner not in ended]
        index = torch.tensor(kept, device=self.mask.device)
        self.past.batch_select_indices(index)
        return _Batch(
            self.ids[index], self.mask[index], self.past, [self.owners[row] for row in kept], self.uniforms[index]
        )

    def remember(
        self, memory: Memory, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], owners: set[int]
    ) -> None:
        """Keep the rows of some owners: their prompts, and as much of their answers as was read."""
        filled = self.past.get_seq_length()
        for row, owner in enumerate(self.owners):
            if owner in owners:
                start = self.mask.shape[1] - int(self.mask[row].sum())  # rows are aligned on the right
                ids = [*prompts[owner], *answers[owner]][: filled - start]
                pairs = [
                    (layer.keys[row, :, start : start + len(ids)], layer.values[row, :, start : start + len(ids)])
                    for layer in self.past.layers
                ]
                memory.keep(ids, len(prompts[owner]), pairs)


def _uniforms(prompts: Sequence[Sequence[int]], sampling: Sampling, seeds: Sequence[int]) -> torch.Tensor:
    """Random numbers in [0, 1) for every row and step, float64 [rows, max_new_tokens].

    A row's come from its seed and its own prompt; the same prompt a second time under a seed has others.
    """
    import torch

    if sampling.temperature == 0:
        return torch.zeros(len(prompts), sampling.max_new_tokens)
    seen: dict[tuple[int, tuple[int, ...]], int] = {}
    rows = []
    for ids, seed in zip(prompts, seeds, strict=True):
        key = tuple(ids)
        seen[seed, key] = seen.get((seed, key), 0) + 1
        digest = hashlib.sha256(repr((seed, seen[seed, key], key)).encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
        rows.append(torch.rand(sampling.max_new_tokens, generator=generator, dtype=torch.float64))
    return torch.stack(rows)
