"""Reads the residual stream at both sites of every block, in one forward pass, without the vocabulary projection.

A pass may stop at the last site it is needed for; what is kept stays on the model's device until it is asked for.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from karma_electric.models.arithmetic import fast_products
from karma_electric.models.blocks import SITES, Site, decoder_blocks

if TYPE_CHECKING:
    import torch
    from transformers import Cache, PreTrainedModel

Key = tuple[Site, int]
# What to keep of a site's activations [batch, seq, hidden]
Keep = Callable[["torch.Tensor"], "torch.Tensor"]


PASS_TOKENS = 32  # what a forward pass costs beside its tokens, in tokens, on the CPU


class _Enough(Exception):
    """Raised by the last hook that was needed: the rest of the pass is of no use."""


@contextlib.contextmanager
def recording(
    model: PreTrainedModel,
    keys: Sequence[Key],
    keep: Keep,
    *,
    blocks_path: str | None = None,
    before_cap: bool = False,
    stop: bool = False,
) -> Iterator[dict[Key, torch.Tensor]]:
    """Fill a dict with `keep(activations)` for each (site, block) during the next forward pass.

    The hooks of a cap that is attached as well run first, so what is recorded at `block` is what the next block
    reads; what is recorded at `mlp` is what that block's MLP reads, before its own correction. With `before_cap`,
    what is recorded at `block` too is what the cap of that block reads: corrected by earlier blocks only.

    Args:
        model: the model.
        keys: what to record.
        keep: what to keep of it.
        blocks_path: see `decoder_blocks`.
        before_cap: record in front of the hooks that are attached already.
        stop: end the forward pass, and the `with` block, at the last of `keys`. What follows in the block is skipped.

    Raises:
        RuntimeError: a hook was never reached. One that does nothing must not pass for one that found nothing.
    """
    blocks = decoder_blocks(model, blocks_path)
    last = max(keys, key=_order) if stop and keys else None
    recorded: dict[Key, torch.Tensor] = {}
    handles = []
    try:
        for key in sorted(keys, key=_order):
            site, layer = key
            block = blocks[layer]
            if site == "mlp":
                handles.append(block.mlp_norm.register_forward_pre_hook(_reader(recorded, key, keep, key == last)))
            else:
                reader = _output_reader(recorded, key, keep, key == last)
                handles.append(block.module.register_forward_hook(reader, prepend=before_cap))
        yield recorded
    except _Enough:
        pass
    finally:
        for handle in handles:
            handle.remove()
    if missing := [key for key in keys if key not in recorded]:
        raise RuntimeError(f"the hook at {missing[0]} of {type(model).__name__} was not reached")


def _order(key: Key) -> tuple[int, bool]:
    """Where a site comes in a forward pass."""
    site, layer = key
    return layer, site == "block"


def _reader(recorded: dict[Key, torch.Tensor], key: Key, keep: Keep, last: bool) -> Callable[..., None]:
    def hook(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        recorded[key] = keep(inputs[0])
        if last:
            raise _Enough

    return hook


def _output_reader(recorded: dict[Key, torch.Tensor], key: Key, keep: Keep, last: bool) -> Callable[..., None]:
    def hook(_: Any, __: Any, output: Any) -> None:
        recorded[key] = keep(output[0] if isinstance(output, tuple) else output)
        if last:
            raise _Enough

    return hook


def picked(index: Any) -> Keep:
    """Keep `activations[index]` as float32 on the CPU: a boolean mask [batch, seq], or (rows, positions)."""

    def keep(activations: torch.Tensor) -> torch.Tensor:
        device = activations.device  # of a model that is split over devices each block has its own
        there = tuple(part.to(device) for part in index) if isinstance(index, tuple) else index.to(device)
        return activations[there].float().cpu()

    return keep


def mean_of(spans: Sequence[tuple[int, int]], length: int) -> Keep:
    """Keep the mean over positions [start, end) of every row, float32 [batch, hidden], on the model's device."""
    import torch

    if all(end == start + 1 for start, end in spans):
        rows, positions = torch.arange(len(spans)), torch.tensor([start for start, _ in spans])

        def keep_one(activations: torch.Tensor) -> torch.Tensor:
            device = activations.device  # the index of a model that is split over devices goes from one to the next
            return activations[rows.to(device), positions.to(device)].float()

        return keep_one
    weights = torch.zeros(len(spans), length)
    for row, (start, end) in enumerate(spans):
        weights[row, start:end] = 1 / (end - start)

    def keep(activations: torch.Tensor) -> torch.Tensor:
        return torch.einsum("bs,bsh->bh", weights.to(activations.device), activations.float())

    return keep


def all_sites(n_layers: int) -> list[Key]:
    """Both sites of every block."""
    return [(site, layer) for site in SITES for layer in range(n_layers)]


def right_padded(sequences: Sequence[Sequence[int]], pad_id: int, device: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask [batch, longest], padded on the right."""
    import torch

    longest = max(len(ids) for ids in sequences)
    ids = torch.full((len(sequences), longest), pad_id, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = torch.tensor(sequence)
        mask[row, : len(sequence)] = 1
    return ids.to(device), mask.to(device)


def batches_by_length(
    lengths: Sequence[int], batch_tokens: int, *, max_rows: int | None = None, pass_tokens: int = PASS_TOKENS
) -> list[list[int]]:
    """Indices in batches of similar length, so that all passes together cost as little as they can.

    A batch costs its rows times its longest, padding included, and `pass_tokens` for being a pass of its own. The
    sorted lengths are cut where the sum is smallest, by dynamic programming over the last batch's first member.

    Args:
        lengths: tokens of each sequence.
        batch_tokens: the most that a batch may have when padded (or a single sequence).
        max_rows: the most sequences in a batch.
        pass_tokens: what a pass costs beside its tokens, in tokens.
    """
    order = sorted(range(len(lengths)), key=lambda i: lengths[i])
    cost = [0.0] + [float("inf")] * len(order)  # of the first n
    first = [0] * (len(order) + 1)  # of the last batch among the first n
    for end in range(1, len(order) + 1):
        longest = lengths[order[end - 1]]
        for start in range(end - 1, -1, -1):
            rows = end - start
            if rows > 1 and (rows * longest > batch_tokens or rows > (max_rows or rows)):
                break
            if (total := cost[start] + rows * longest + pass_tokens) < cost[end]:
                cost[end], first[end] = total, start
    batches: list[list[int]] = []
    end = len(order)
    while end:
        batches.append(order[first[end] : end])
        end = first[end]
    return batches[::-1]


def run_decoder(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, cache: Cache | None = None) -> None:
    """A forward pass for its hooks only: no vocabulary projection, and no cache but one that is given.

    Args:
        model: the model.
        ids: [batch, seq], the tokens that come after those in `cache`.
        mask: attention mask [batch, cached + seq].
        cache: keys and values of what comes before; it grows by what is computed.
    """
    import torch

    with torch.inference_mode(), fast_products(model):
        model.get_decoder()(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=cache is not None)
