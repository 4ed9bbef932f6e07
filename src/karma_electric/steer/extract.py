"""Extracts the axis: the mean difference between generic and persona-prompted activations, at both sites of all blocks.

Chunk by chunk, each kept on disk until the end: a killed extraction continues with the next chunk, memory does not
depend on the number of prompts, and the second pass (projections) reads what the first has written. How activations
are read is the reader's affair.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from karma_electric.core.artifact import canonical_json, hash_text
from karma_electric.core.errors import ArtifactError, InputError
from karma_electric.core.progress import Progress, Silent
from karma_electric.models.blocks import SITES, Site
from karma_electric.models.chat_template import template_sha256
from karma_electric.models.engines.protocol import Sampling
from karma_electric.models.processes import ALONE, Processes
from karma_electric.steer.answers import Answers, generate_answers
from karma_electric.steer.axis import Axis, scaled
from karma_electric.steer.chunks import (
    FOLDER,
    Sides,
    chunk_path,
    drop_others,
    forget_chunks,
    iter_chunks,
    read_chunk,
    write_chunk,
)
from karma_electric.steer.contrast import ContrastSet
from karma_electric.steer.moments import SiteSums, separation
from karma_electric.steer.reader import Reader, answered, by_length, context_length, fitted, require_rendered

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["SAMPLING", "Position", "Sides", "extract", "forget_chunks", "iter_chunks"]

Position = Literal["last-prompt", "response"]
SAMPLING = Sampling(temperature=0.7, max_new_tokens=64)  # of answers that are generated
_CHUNK = 25  # prompts per chunk: what a kill can lose
_FORMAT = 2  # of the chunks: those of an older version are made again


def extract(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    contrast: ContrastSet,
    out: Path,
    *,
    fingerprint: str,
    position: Position = "last-prompt",
    answers: Answers | None = None,
    sampling: Sampling = SAMPLING,
    max_length: int | None = None,
    batch_tokens: int = 4096,
    processes: Processes = ALONE,
    progress: Progress | None = None,
) -> Axis:
    """Extract directions for both sites and all blocks.

    Args:
        model: the model that will be capped (an axis does not transfer, not even to its fine-tunes).
        tokenizer: its tokenizer.
        contrast: prompts and system prompts.
        out: working folder for the chunks, the longest prompts first (`iter_chunks` reads them, `forget_chunks`
            removes them), and for answers that are generated; of several processes, one that all of them see.
        fingerprint: of the model, stored in the axis.
        position: `last-prompt` reads the last token of the prompt; `response` averages over the tokens of an answer,
            its end-of-turn left out.
        answers: for `response`: the answer to every prompt under every system prompt; generated when None.
        sampling: how they are generated.
        max_length: tokens that a sequence may have: a longer prompt is shortened within its user text. The model's
            context when None.
        batch_tokens: padded tokens per forward pass.
        processes: those that share the work, each with the same model; all of them get the axis.
        progress: told about every chunk, and about what was shortened, left out or not shared.

    Returns:
        The axis, with the projections of every prompt that was used, in the order of `contrast`.

    Raises:
        InputError: `toward` is among the away prompts or written like one, a system prompt leaves no room for a user
            text, or `max_length` is more than the model's context.
        DataError: no prompt has an answer under every system prompt.
        ArtifactError: a direction has no length.
    """
    progress = progress or Silent()
    if contrast.toward in contrast.away:
        raise InputError("The toward prompt is one of the away prompts.", "Give the persona's own prompt as toward.")
    require_rendered(tokenizer, contrast)
    limit = max_length or context_length(model)
    if limit > context_length(model):
        raise InputError(
            f"Sequences of up to {limit} tokens were asked for, the model's context is {context_length(model)}.",
            "Lower --max-length, or leave it out.",
        )
    (out / FOLDER).mkdir(parents=True, exist_ok=True)
    about = [_FORMAT, _CHUNK, fingerprint, template_sha256(tokenizer), str(model.dtype), position]
    generated = position == "response" and answers is None
    used = fitted(tokenizer, contrast, limit - sampling.max_new_tokens if generated else limit, answers)
    if generated:
        from karma_electric.models.engines.hf import HfEngine

        answers = generate_answers(
            HfEngine(model, tokenizer, context=limit),
            used,
            out,
            parts=out / FOLDER,
            name=f"answers-{_hash(about, used, vars(sampling))[:16]}",
            sampling=sampling,
            processes=processes,
            progress=progress,
        )
        used = fitted(tokenizer, used, limit, answers)  # an answer may have more tokens when it is read again
    if answers is not None:
        used = answered(tokenizer, used, answers)
    stats = _prompts_changed(contrast, used, limit, progress)
    used, place = by_length(tokenizer, used, answers)

    reader = Reader(model, tokenizer, used, answers, batch_tokens, progress)
    settings = _hash(about, used, sorted([*key, text] for key, text in (answers or {}).items()))
    sums = _compute(reader, out, settings, processes, progress)
    directions = {site: _direction(site, of) for site, of in sums.items()}
    from_half = {site: scaled(of.even.mean)[0] for site, of in sums.items()}
    projected = _project([directions, from_half], _count(reader), out, processes, progress)
    for site, of in sums.items():
        toward, away = projected[site][1][:, 1::2]  # on the other half
        stats[site] = {**of.summary(), **separation(toward, away)}
    return Axis(
        directions=directions,
        norms={site: scaled(of.difference.mean)[1] for site, of in sums.items()},
        model=fingerprint,
        template_sha256=template_sha256(tokenizer),
        position=position,
        toward=contrast.toward,
        away=contrast.away,
        n=len(used.prompts),
        stats=stats,
        projections={site: both[0][:, place] for site, both in projected.items()},
    )


def _hash(about: Sequence[object], contrast: ContrastSet, more: object) -> str:
    prompts = [[prompt.id, prompt.text] for prompt in contrast.prompts]
    return hash_text(canonical_json([*about, contrast.toward, contrast.away, prompts, more]))


def _prompts_changed(asked: ContrastSet, used: ContrastSet, limit: int, progress: Progress) -> dict[str, Any]:
    """Say, and return for the stats, which prompts were not read as they were given."""
    texts = {prompt.id: prompt.text for prompt in asked.prompts}
    shortened = [prompt.id for prompt in used.prompts if prompt.text != texts[prompt.id]]
    kept = {prompt.id for prompt in used.prompts}
    left_out = [prompt.id for prompt in asked.prompts if prompt.id not in kept]
    if shortened:
        progress.say(f"  shortened within the user text to fit {limit} tokens: {', '.join(shortened)}")
    if left_out:
        progress.say(f"  without an answer under every system prompt, left out: {', '.join(left_out)}")
    return {"max_length": limit, "shortened": shortened, "left_out": left_out}


def _direction(site: Site, sums: SiteSums) -> torch.Tensor:
    unit, norms = scaled(sums.difference.mean)
    bad = [layer for layer, norm in enumerate(norms.tolist()) if not 0.0 < norm < float("inf")]
    if bad:
        raise ArtifactError(
            f"The direction at site {site} of block {bad[0]} has a length of {norms[bad[0]]:g}.",
            "Try --dtype float32, and check the model with karma chat.",
        )
    return unit


# The two passes over the chunks


def _count(reader: Reader) -> int:
    return -(-len(reader.prompts) // _CHUNK)


def _compute(
    reader: Reader, out: Path, settings: str, processes: Processes, progress: Progress
) -> dict[Site, SiteSums]:
    """First pass: every chunk that is not there yet, and the sums over all of them."""
    count = _count(reader)
    if processes.first:
        drop_others(out, settings=settings, count=count)
    processes.wait()
    mine = processes.share(count)
    sums: dict[Site, SiteSums] = {}
    for done, number in enumerate(mine, 1):
        first = number * _CHUNK
        if chunk_path(out, number).exists():
            sides = read_chunk(chunk_path(out, number))
        else:
            sides = reader.sides(reader.prompts[first : first + _CHUNK])
            write_chunk(out, number, sides, settings=settings, count=count)
        _add(sums, {site: SiteSums.of(*both, first) for site, both in sides.items()})
        progress.update(done, len(mine), "chunks of contrast prompts")
    total: dict[Site, SiteSums] = {}
    for part in processes.gather(sums):
        _add(total, part)
    return total


def _add(sums: dict[Site, SiteSums], more: dict[Site, SiteSums]) -> None:
    for site, part in more.items():
        sums[site] = sums[site] + part if site in sums else part


def _project(
    directions: Sequence[dict[Site, torch.Tensor]], count: int, out: Path, processes: Processes, progress: Progress
) -> dict[Site, torch.Tensor]:
    """Second pass: projections of all prompts, float32 [directions, 2, n, n_layers] per site: toward, then away."""
    import torch

    along = {site: torch.stack([given[site] for given in directions]).double() for site in SITES}  # [d, layers, hidden]
    mine = processes.share(count)
    found: dict[int, dict[Site, torch.Tensor]] = {}
    for done, number in enumerate(mine, 1):
        sides = read_chunk(chunk_path(out, number))
        found[number] = {
            site: torch.einsum("snlh,dlh->dsnl", torch.stack(both).double(), along[site]).float()
            for site, both in sides.items()
        }
        progress.update(done, len(mine), "chunks projected")
    everything: dict[int, dict[Site, torch.Tensor]] = {}
    for part in processes.gather(found):
        everything |= part
    return {site: torch.cat([everything[number][site] for number in range(count)], dim=2) for site in SITES}
