"""What 4-bit training sees of a weight: quantised to NF4 and back (QLoRA, Dettmers et al. 2023, arXiv 2305.14314)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from karma_electric.models.loading import import_quietly

if TYPE_CHECKING:
    import torch

_BLOCK = 64  # weights that share a scale; the scales are quantised again, in blocks of 256


def nf4_round_trip(weight: torch.Tensor) -> torch.Tensor:
    """A weight as the forward pass of 4-bit training reads it: NF4 with double quantisation, then float32 again.

    Args:
        weight: [out, in], any floating-point type.

    Returns:
        float32 of the same shape.
    """
    import_quietly("bitsandbytes")
    import bitsandbytes.functional as bnb

    packed, state = bnb.quantize_4bit(weight.float(), blocksize=_BLOCK, compress_statistics=True, quant_type="nf4")
    restored: torch.Tensor = bnb.dequantize_4bit(packed, state)
    return restored
