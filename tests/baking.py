"""Short forms of baking for the tests: gather and fit, write and load."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from karma_electric.core.messages import Conversation
from karma_electric.models.loading import load_model
from karma_electric.steer.checkpoint import write_baked
from karma_electric.steer.fit import fit_neurons
from karma_electric.steer.gather import gather
from karma_electric.steer.neuron import Neurons, Removals
from karma_electric.steer.spec import Cap

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def fitted(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    caps: Cap | Sequence[Cap],
    conversations: Sequence[Conversation],
    *,
    ridge: float | None = None,
    sharpness: float = 60.0,
    batch_tokens: int = 4096,
) -> Neurons:
    """Neurons for one cap or several, from conversations."""
    several = [caps] if isinstance(caps, Cap) else list(caps)
    gathered = gather(model, tokenizer, several, conversations, batch_tokens=batch_tokens)
    return fit_neurons(model, several, gathered, ridge=ridge, sharpness=sharpness)


def written(source: Path, neurons: Neurons, out: Path, *, removed: Removals | None = None) -> PreTrainedModel:
    """The baked checkpoint, written to `out` and loaded in float32."""
    out.mkdir(exist_ok=True)
    write_baked(source, neurons, out, removed=removed)
    return load_model(out, dtype="float32", device="cpu")


def logits_of(model: PreTrainedModel, ids: torch.Tensor) -> torch.Tensor:
    """Logits [batch, seq, vocabulary]."""
    import torch

    with torch.no_grad():
        logits: torch.Tensor = model(input_ids=ids).logits
    return logits
