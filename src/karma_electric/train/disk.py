"""What an adapter and the checkpoints of its training take on disk. Estimates."""

from __future__ import annotations

from karma_electric.train.trajectory import checkpoints_kept

FLOAT32_MOMENTS = 8  # bytes a trained parameter: two moments of AdamW
EIGHT_BIT_MOMENTS = 2
_WEIGHT = 4  # bytes: float32; adapters of quantised bases are bfloat16, half of it
_BESIDE = 20_000_000  # tokenizer and states beside the weights of a checkpoint


def adapter_bytes(trainable: int, *, weight: int = _WEIGHT) -> int:
    """The adapter alone, of so many parameters of `weight` bytes."""
    return weight * trainable


def checkpoint_bytes(trainable: int, save_steps: int, *, weight: int = _WEIGHT, moments: int = FLOAT32_MOMENTS) -> int:
    """The checkpoints at the most: one more than are kept, while the newest is written.

    Args:
        trainable: parameters of the adapter.
        save_steps: steps between checkpoints.
        weight: bytes of a parameter.
        moments: bytes of the optimiser's state a parameter; those of an 8-bit one on a GPU are EIGHT_BIT_MOMENTS.
    """
    return (checkpoints_kept(save_steps) + 1) * ((weight + moments) * trainable + _BESIDE)
