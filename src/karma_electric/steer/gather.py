"""What cap neurons are fitted on: the residual streams in front of the capped MLPs, while the caps act.

They are kept, not summed up, since the fit weighs tokens by their place in the whole distribution and is chosen by
the error of the neuron itself on tokens left out. Memory: tokens x hidden x 4 bytes per capped block on the CPU
(150 MB per block for 9,000 tokens of an 8B model).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from karma_electric.core.messages import Conversation
from karma_electric.core.progress import Progress, Silent
from karma_electric.models.chat_template import conversation_ids, prompt_ids
from karma_electric.steer.activations import Key, batches_by_length, picked, recording, right_padded, run_decoder
from karma_electric.steer.caps import all_capped, capped_layers
from karma_electric.steer.prune import Moments, moments_of
from karma_electric.steer.spec import Cap

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Gathered:
    """Activations of every token but the first of each conversation, an attention sink with a norm many times the rest.

    Attributes:
        streams: block -> residual stream in front of its MLP, float32 [tokens, hidden].
        conversation: which conversation a token is of, int64 [tokens].
        response: whether a token is of the answer, or predicts its first token, bool [tokens].
        moments: block -> second moments of its MLP's neurons; empty when they were not asked for.
    """

    streams: dict[int, torch.Tensor]
    conversation: torch.Tensor
    response: torch.Tensor
    moments: dict[int, Moments]


def gather(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    caps: Sequence[Cap],
    conversations: Sequence[Conversation],
    *,
    moments: bool = False,
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> Gathered:
    """Run a model over conversations while caps act on it.

    Args:
        model: the uncapped model.
        tokenizer: its tokenizer.
        caps: caps at the site `mlp`.
        conversations: each ends with an answer.
        moments: gather the MLPs' second moments as well (`prune.py`).
        batch_tokens: padded tokens per forward pass.
        progress: told about the batches.
    """
    import torch

    progress = progress or Silent()
    layers = capped_layers(caps)
    sequences = [conversation_ids(tokenizer, c) for c in conversations]
    starts = [len(prompt_ids(tokenizer, c[:-1])) - 1 for c in conversations]
    batches = batches_by_length([len(s) for s in sequences], batch_tokens)
    keys: list[Key] = [("mlp", layer) for layer in layers]
    streams: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    owners, responses = [], []
    keep: list[Any] = [None]
    with all_capped(model, caps), moments_of(model, layers if moments else (), keep) as found:
        for number, batch in enumerate(batches):
            progress.update(number, len(batches), "batches of calibration text")
            ids, mask = right_padded([sequences[i] for i in batch], int(tokenizer.pad_token_id or 0), model.device)
            chosen = mask.bool()
            chosen[:, 0] = False
            pick = picked(chosen)
            keep[0] = pick
            with recording(model, keys, pick) as seen:
                run_decoder(model, ids, mask)
            keep[0] = None
            for (_, layer), values in seen.items():
                streams[layer].append(values)
            where = chosen.cpu()
            positions = torch.arange(ids.shape[1]).expand(ids.shape)
            owners.append(torch.tensor(batch).unsqueeze(1).expand(ids.shape)[where])
            responses.append((positions >= torch.tensor([starts[i] for i in batch]).unsqueeze(1))[where])
    progress.update(len(batches), len(batches), "batches of calibration text")
    return Gathered(
        {layer: torch.cat(parts) for layer, parts in streams.items()}, torch.cat(owners), torch.cat(responses), found
    )
