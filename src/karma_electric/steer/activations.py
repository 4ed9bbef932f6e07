"""Reads the residual stream at both sites of every block, in one forward pass, without the vocabulary projection."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from karma_electric.models.blocks import SITES, Site, decoder_blocks

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

Key = tuple[Site, int]
# What to keep of a site's activations [batch, seq, hidden]
Keep = Callable[["torch.Tensor"], "torch.Tensor"]


@contextlib.contextmanager
def recording(
    model: PreTrainedModel,
    keys: Sequence[Key],
    keep: Keep,
    *,
    blocks_path: str | None = None,
    before_cap: bool = False,
) -> Iterator[dict[Key, torch.Tensor]]:
    """Fill a dict with `keep(activations)` for each (site, block) during the next forward pass.

    The hooks of a cap that is attached as well run first, so what is recorded at `block` is what the next block
    reads; what is recorded at `mlp` is what that block's MLP reads, before its own correction. With `before_cap`,
    what is recorded at `block` too is what the cap of that block reads: corrected by earlier blocks only.
    """
    blocks = decoder_blocks(model, blocks_path)
    recorded: dict[Key, torch.Tensor] = {}
    handles = []
    try:
        for site, layer in keys:
            block = blocks[layer]
            if site == "mlp":
                handles.append(block.mlp_norm.register_forward_pre_hook(_reader(recorded, (site, layer), keep)))
            else:
                reader = _output_reader(recorded, (site, layer), keep)
                handles.append(block.module.register_forward_hook(reader, prepend=before_cap))
        yield recorded
    finally:
        for handle in handles:
            handle.remove()


def _reader(recorded: dict[Key, torch.Tensor], key: Key, keep: Keep) -> Callable[..., None]:
    def hook(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        recorded[key] = keep(inputs[0])

    return hook


def _output_reader(recorded: dict[Key, torch.Tensor], key: Key, keep: Keep) -> Callable[..., None]:
    def hook(_: Any, __: Any, output: Any) -> None:
        recorded[key] = keep(output[0] if isinstance(output, tuple) else output)

    return hook


def picked(index: Any) -> Keep:
    """Keep `activations[index]` as float32 on the CPU: a boolean mask [batch, seq], or (rows, positions)."""

    def keep(activations: torch.Tensor) -> torch.Tensor:
        return activations[index].float().cpu()

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


def batches_by_length(lengths: Sequence[int], batch_tokens: int) -> list[list[int]]:
    """Indices in batches of similar length, each at most `batch_tokens` when padded (or a single sequence)."""
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: lengths[i]):
        if batches and lengths[index] * (len(batches[-1]) + 1) <= batch_tokens:
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def run_decoder(model: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor) -> None:
    """A forward pass for its hooks only: no cache, no vocabulary projection."""
    import torch

    with torch.inference_mode():
        model.get_decoder()(input_ids=ids, attention_mask=mask, use_cache=False)
