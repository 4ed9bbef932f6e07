"""Extracts the axis: the mean difference between generic and persona-prompted activations at the last prompt token.

Works in chunks that are kept on disk until the end, so that a killed extraction continues with the next chunk.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_electric.core.artifact import write_atomic
from karma_electric.core.progress import Progress, Silent
from karma_electric.models.blocks import SITES, Site, decoder_blocks
from karma_electric.models.chat_template import prompt_ids, template_sha256
from karma_electric.steer.activations import (
    all_sites,
    batches_by_length,
    picked,
    recording,
    right_padded,
    run_decoder,
)
from karma_electric.steer.axis import Axis, direction
from karma_electric.steer.contrast import ContrastSet, Prompt

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Sides = dict[Site, "tuple[torch.Tensor, torch.Tensor]"]  # site -> (toward, away) [n_prompts, n_layers, hidden]
_CHUNK = 25  # prompts per chunk: what a kill can lose
_CHUNKS = "extraction"


def extract(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contrast: ContrastSet,
    out: Path,
    *,
    fingerprint: str,
    batch_tokens: int = 4096,
    progress: Progress | None = None,
) -> tuple[Axis, Sides]:
    """Extract directions for both sites and all blocks.

    Args:
        model: the model that will be capped (an axis does not transfer, not even to its fine-tunes).
        tokenizer: its tokenizer.
        contrast: prompts and system prompts.
        out: working folder for the chunks; `forget_chunks` removes them.
        fingerprint: of the model, stored in the axis.
        batch_tokens: padded tokens per forward pass.
        progress: told about every chunk.

    Returns:
        The axis, and the activations it was made from: site -> (toward, mean away), float32
        [n_prompts, n_layers, hidden], in the order of the prompts.
    """
    import torch
    from safetensors.torch import load_file, save

    progress = progress or Silent()
    folder = out / _CHUNKS
    folder.mkdir(parents=True, exist_ok=True)
    chunks = [contrast.prompts[i : i + _CHUNK] for i in range(0, len(contrast.prompts), _CHUNK)]
    parts: list[dict[str, torch.Tensor]] = []
    for number, prompts in enumerate(chunks):
        file = folder / f"{number:04d}.safetensors"
        if not file.exists():
            write_atomic(file, save(_activations(model, tokenizer, contrast, prompts, batch_tokens)))
        parts.append(load_file(file))
        progress.update(number + 1, len(chunks), "chunks of contrast prompts")
    sides: Sides = {
        site: (torch.cat([p[f"toward.{site}"] for p in parts]), torch.cat([p[f"away.{site}"] for p in parts]))
        for site in SITES
    }
    directions = {site: direction(*both) for site, both in sides.items()}
    axis = Axis(
        directions={site: unit for site, (unit, _) in directions.items()},
        norms={site: norm for site, (_, norm) in directions.items()},
        model=fingerprint,
        template_sha256=template_sha256(tokenizer),
        position="last-prompt",
        toward=contrast.toward,
        away=contrast.away,
        n=len(contrast.prompts),
        stats=separation(sides),
        projections={site: (torch.stack(both) * directions[site][0]).sum(-1) for site, both in sides.items()},
    )
    return axis, sides


def forget_chunks(out: Path) -> None:
    """Remove the working files of `extract`."""
    shutil.rmtree(out / _CHUNKS, ignore_errors=True)


def _activations(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contrast: ContrastSet,
    prompts: Sequence[Prompt],
    batch_tokens: int,
) -> dict[str, torch.Tensor]:
    """Toward and mean away activations of some prompts, float32 [n, n_layers, hidden] per site and side."""
    import torch

    per_prompt = 1 + len(contrast.away)
    sequences = [prompt_ids(tokenizer, c) for prompt in prompts for c in contrast.conversations(prompt)]
    n_layers = len(decoder_blocks(model))
    kept = {site: torch.empty(len(sequences), n_layers, model.config.hidden_size) for site in SITES}
    for batch in batches_by_length([len(s) for s in sequences], batch_tokens):
        ids, mask = right_padded([sequences[i] for i in batch], int(tokenizer.pad_token_id or 0), model.device)
        rows, last = torch.arange(len(batch), device=model.device), mask.sum(1) - 1
        with recording(model, all_sites(n_layers), picked((rows, last))) as seen:
            run_decoder(model, ids, mask)
        for (site, layer), values in seen.items():
            kept[site][batch, layer] = values
    result = {}
    for site, values in kept.items():
        grouped = values.view(len(prompts), per_prompt, n_layers, -1)
        result[f"toward.{site}"] = grouped[:, 0].contiguous()
        result[f"away.{site}"] = grouped[:, 1:].double().mean(1).float()
    return result


def separation(sides: Sides) -> dict[str, Any]:
    """How well each block's direction separates the two sides, on prompts it was not made from.

    The direction is made from the even prompts and tried on the odd ones. Per site and block: d' (difference of
    means over pooled standard deviation) and the share of prompts whose away side projects higher than toward.
    """
    result: dict[str, Any] = {}
    for site, (toward, away) in sides.items():
        unit, _ = direction(toward[0::2], away[0::2])
        low = (toward[1::2] * unit).sum(-1)  # [n, n_layers]
        high = (away[1::2] * unit).sum(-1)
        spread = ((low.var(0) + high.var(0)) / 2).sqrt().clamp_min(1e-12)
        result[site] = {
            "d_prime": [round(float(x), 4) for x in (high.mean(0) - low.mean(0)) / spread],
            "away_higher": [round(float(x), 4) for x in (high > low).float().mean(0)],
        }
    return result
