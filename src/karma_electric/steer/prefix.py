"""Reads activations of many sequences that begin alike: what they share is computed once and kept as keys and values.

Where a model's cache would not give what full sequences give, every sequence is computed whole, and says so.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from karma_electric.steer.activations import (
    PASS_TOKENS,
    Key,
    batches_by_length,
    mean_of,
    recording,
    right_padded,
    run_decoder,
)

if TYPE_CHECKING:
    import torch
    from transformers import Cache, PreTrainedModel

_HELD = 4  # tokens held in the cache of a batch, at most, as a multiple of those that are computed in it
_GPU_PASS_TOKENS = 1024  # what launching a pass costs on an accelerator, in tokens
# A larger pass is no faster on the CPU, and its tensors outgrow what the allocator keeps (6% more time at 4096)
_CPU_BATCH_TOKENS = 512
_LEAST_COSINE = 0.99  # of activations with the shared prefix and without; bfloat16 keeps well above it


@dataclass(frozen=True)
class Reading:
    """A sequence, and the positions [start, end) whose activations are averaged."""

    ids: Sequence[int]
    start: int
    end: int


@dataclass(frozen=True)
class Prefix:
    """What sequences share.

    Attributes:
        ids: their first tokens; empty when nothing is shared.
        cache: keys and values of these, of a batch of one; None when there are none.
        problem: why nothing is shared although it could be; empty otherwise.
    """

    ids: tuple[int, ...]
    cache: Cache | None
    problem: str = ""


WHOLE = Prefix((), None)


def common_prefix(readings: Iterable[Reading]) -> tuple[tuple[int, ...], int]:
    """The tokens that all sequences begin with, up to the first position that is read; and the longest one's length.

    Tokens are compared, not texts: a tokenizer may join the end of a shared text with what follows it.
    """
    shared: Sequence[int] | None = None
    longest = 0
    for reading in readings:
        longest = max(longest, len(reading.ids))
        shared = reading.ids[: reading.start] if shared is None else shared[: reading.start]
        same = next((i for i, (a, b) in enumerate(zip(shared, reading.ids, strict=False)) if a != b), len(shared))
        shared = shared[:same]
    return tuple(shared or ()), longest


def share(
    model: PreTrainedModel, ids: Sequence[int], keys: Sequence[Key], *, longest: int, sample: Reading | None
) -> Prefix:
    """Compute a prefix once, where that is safe.

    Args:
        model: the model.
        ids: the tokens that all sequences begin with.
        keys: what will be read; the cache reaches as far as these need it.
        longest: tokens of the longest of the sequences, for windows that it may not leave.
        sample: one of the sequences: read with the prefix and without, it must give the same. None leaves that out.

    Returns:
        The prefix, or an empty one that names the problem.
    """
    import torch
    from transformers import DynamicCache

    if not ids:
        return WHOLE
    last = max(layer for _, layer in keys)
    tokens, mask = right_padded([ids], 0, model.device)
    cache = DynamicCache(config=model.config)
    with recording(model, [("mlp", last)], lambda activations: activations[:0], stop=True):
        run_decoder(model, tokens, mask, cache)
    if problem := _unsafe(cache, len(ids), longest):
        return Prefix((), None, problem)
    prefix = Prefix(tuple(ids), cache)
    if sample is None:
        return prefix
    shared, whole = (read(model, [sample], keys, given, batch_tokens=1) for given in (prefix, WHOLE))
    cosine = torch.nn.functional.cosine_similarity(shared.double(), whole.double(), dim=-1).min()
    if not cosine >= _LEAST_COSINE:  # NaN is not
        return Prefix((), None, f"{type(model).__name__} does not give the same with a cached prefix")
    return prefix


def _unsafe(cache: Cache, n: int, longest: int) -> str:
    """Why a cache of `n` tokens cannot stand for the beginning of sequences of up to `longest`, or nothing."""
    from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

    for layer in cache.layers:
        if type(layer) not in (DynamicLayer, DynamicSlidingWindowLayer):
            return f"{type(layer).__name__} is not known to hold a prefix"
        window = getattr(layer, "sliding_window", None)
        if window is not None and longest >= window:
            return f"sequences of up to {longest} tokens leave the model's sliding window of {window}"
    if cache.get_seq_length() != n:
        return "the model keeps no cache of it"
    return ""


def _for_rows(cache: Cache, rows: int) -> Cache:
    """The same keys and values for every row, without copying: a forward pass puts new tensors beside them."""
    grown = copy.copy(cache)
    grown.layers = [copy.copy(layer) for layer in cache.layers]
    for layer in grown.layers:
        if layer.is_initialized:
            layer.keys = layer.keys.expand(rows, -1, -1, -1)
            layer.values = layer.values.expand(rows, -1, -1, -1)
    return grown


def read(
    model: PreTrainedModel, readings: Sequence[Reading], keys: Sequence[Key], prefix: Prefix, *, batch_tokens: int
) -> torch.Tensor:
    """The mean activation of every sequence at its positions.

    Args:
        model: the model; its forward pass stops after the last of `keys`.
        readings: sequences that begin with the prefix, and what to read of them.
        keys: sites and blocks.
        prefix: from `share`, for the same keys; or `WHOLE`.
        batch_tokens: padded tokens per forward pass at most; with a prefix, up to four times as many are held.

    Returns:
        float32 [keys, readings, hidden] on the CPU, in the order of both.
    """
    import torch

    shared = len(prefix.ids)
    held = shared + max(len(reading.ids) - shared for reading in readings)
    on_cpu = model.device.type == "cpu"
    batches = batches_by_length(
        [len(reading.ids) - shared for reading in readings],
        min(batch_tokens, _CPU_BATCH_TOKENS) if on_cpu else batch_tokens,
        max_rows=max(1, _HELD * batch_tokens // held),
        pass_tokens=PASS_TOKENS if on_cpu else _GPU_PASS_TOKENS,
    )
    kept: torch.Tensor | None = None
    for batch in batches:
        rows = [readings[i] for i in batch]
        ids, mask = right_padded([row.ids[shared:] for row in rows], 0, model.device)
        cache = None
        if prefix.cache is not None:
            mask = torch.cat([mask.new_ones(len(rows), shared), mask], dim=1)
            cache = _for_rows(prefix.cache, len(rows))
        keep = mean_of([(row.start - shared, row.end - shared) for row in rows], ids.shape[1])
        with recording(model, keys, keep, stop=True) as seen:
            run_decoder(model, ids, mask, cache)
        home = seen[keys[0]].device
        values = torch.stack([seen[key].to(home) for key in keys]).cpu()  # one copy for all sites and blocks
        if kept is None:
            kept = torch.empty(len(keys), len(readings), values.shape[-1])
        kept[:, batch] = values
    assert kept is not None  # there is no chunk without a prompt
    return kept
