"""Folds a LoRA adapter into the weights, tensor by tensor: `W + (alpha / r) B A` in float32, then the target type.

A few rows of one tensor are in memory at a time, whatever the size of the model. Each file is written atomically and
its hash recorded, so that a merge that was killed continues with the next one.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_electric.core.artifact import (
    canonical_json,
    hash_file,
    hash_text,
    read_json,
    require_space,
    write_json,
)
from karma_electric.core.errors import ArtifactError, InputError
from karma_electric.core.extras import require
from karma_electric.core.messages import Conversation
from karma_electric.core.progress import Progress, Silent
from karma_electric.core.recipe import MergeSection
from karma_electric.models.loading import import_quietly
from karma_electric.models.refs import LICENCES, TEMPLATES
from karma_electric.models.weights import FLOATING, INDEX, Layout, index_of, write_tensors
from karma_electric.train.adapter_file import Adapter, adapter_fingerprint, read_adapter
from karma_electric.train.merge_check import compare_logits
from karma_electric.train.merge_plan import Plan, Source, plan_merge
from karma_electric.train.nf4 import nf4_round_trip

if TYPE_CHECKING:
    import torch

SUMMARY = "merge.json"
_DONE = "shards.json"  # which files are whole, while a merge is under way
_PIECE = 1_000_000  # numbers of a tensor in memory at a time: 4 MB in float32, in a few copies
_KEPT = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "*.jinja",
    *LICENCES,
)


def merge_adapter(
    base: Path,
    adapter: Path,
    section: MergeSection,
    out: Path,
    *,
    conversations: Sequence[Conversation] = (),
    base_names: tuple[str, ...] = (),
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Merge `adapter` into `base`; writes safetensors (one file, or shards with an index), config and tokenizer.

    Args:
        base: folder of the base model.
        adapter: folder of a LoRA adapter, trained here or elsewhere with peft.
        section: target type, which base weights, and the size of the files.
        out: an existing folder; what a killed attempt left there is continued.
        conversations: held-out text on which the merged model is compared with adapter on base; empty for none.
        base_names: other names of the base, compared with the one that the adapter was trained on.
        progress: told about every tensor.

    Returns:
        The summary that was written to merge.json.

    Raises:
        MissingError: no adapter or no base there. ArtifactError: they do not fit.
        InputError: a kind of adapter that cannot be folded into the weights, or a NaN in it. SpaceError: disk.
    """
    require("train")
    import_quietly("bitsandbytes", "peft")
    progress = progress or Silent()
    read = read_adapter(adapter)
    plan = plan_merge(base, read, section, base_names=base_names)
    for warning in plan.warnings:
        progress.say(f"  note: {warning}")
    out.mkdir(parents=True, exist_ok=True)
    _write_shards(plan, _identity(base, adapter, section, plan), out, progress)
    if len(plan.shards) > 1:
        write_json(out / INDEX, index_of(plan.shards))
    write_json(out / "config.json", plan.config)
    for pattern in _KEPT:
        for file in base.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, out / file.name)
    if (base / TEMPLATES).is_dir():
        shutil.copytree(base / TEMPLATES, out / TEMPLATES, dirs_exist_ok=True)
    summary = _summary(read, plan, section)
    if conversations:
        summary |= compare_logits(base, adapter, out, conversations, section.base, progress)
    write_json(out / SUMMARY, summary)
    (out / _DONE).unlink(missing_ok=True)
    return summary


def _write_shards(plan: Plan, identity: str, out: Path, progress: Progress) -> None:
    """Write the files that are not there yet, whole and for the same merge."""
    done = _whole_shards(out, identity)
    for stray in (*out.glob("model*.safetensors"), *out.glob(INDEX), *out.glob(".model*.tmp")):
        if stray.name not in done:
            stray.unlink()
    require_space(out, int(1.01 * sum(_size(plan.shards[name]) for name in plan.shards if name not in done)))
    total, count = len(plan.sources), 0
    for number, (name, layouts) in enumerate(plan.shards.items(), 1):
        note = f"tensors, file {number} of {len(plan.shards)}"
        if name in done:
            count += len(layouts)
            progress.update(count, total, note)
            continue

        def rows_of(layout: Layout, first: int = count, note: str = note, layouts: list[Layout] = layouts) -> Any:
            yield from merged_rows(plan.sources[layout.name], layout)
            progress.update(first + layouts.index(layout) + 1, total, note)

        sha256 = write_tensors(out / name, layouts, rows_of)
        count += len(layouts)
        done[name] = {"sha256": sha256, "bytes": (out / name).stat().st_size}
        write_json(out / _DONE, {"merge": identity, "files": done})


def _size(layouts: Sequence[Layout]) -> int:
    return sum(layout.n_bytes for layout in layouts)


def _whole_shards(out: Path, identity: str) -> dict[str, dict[str, Any]]:
    """The files an earlier attempt at the same merge finished, by size and hash."""
    if not (out / _DONE).is_file():
        return {}
    try:
        record = read_json(out / _DONE)
    except ArtifactError:
        return {}
    if not isinstance(record, dict) or record.get("merge") != identity:
        return {}
    found = {name: entry for name, entry in record["files"].items() if (out / name).is_file()}
    return {
        name: entry
        for name, entry in found.items()
        if (out / name).stat().st_size == entry["bytes"] and hash_file(out / name) == entry["sha256"]
    }


def _identity(base: Path, adapter: Path, section: MergeSection, plan: Plan) -> str:
    """Changes when what is merged does. Of the base, names and sizes; a stage's id holds the hash of its contents."""
    files = {file.name: file.stat().st_size for file in sorted(base.glob("*.safetensors"))}
    tensors = {name: [[t.name, t.dtype, t.shape] for t in layouts] for name, layouts in plan.shards.items()}
    parts = [str(base.resolve()), files, adapter_fingerprint(adapter), section.model_dump(mode="json"), tensors]
    return hash_text(canonical_json(parts))


def merged_rows(source: Source, layout: Layout) -> Iterator[torch.Tensor]:
    """The rows of a merged tensor, from the first to the last, a few at a time.

    Args:
        source: what it is made from.
        layout: the type it is written in.

    Raises:
        InputError: the result is not finite.
    """
    import torch

    if source.tensor.dtype not in FLOATING:
        yield source.tensor.read()
        return
    whole = nf4_round_trip(source.tensor.read()) if source.dequantised else None
    n_rows = source.tensor.n_rows
    step = max(1, _PIECE * n_rows // max(1, math.prod(source.tensor.shape)))

    def base_rows(first: int, last: int) -> torch.Tensor:
        rows = source.tensor.rows(first, last) if whole is None else whole[first:last]
        return rows.reshape(last - first, *source.tensor.shape[1:]).float()

    change = _low_rank(source, base_rows, step) if source.lora is not None else base_rows
    bias = source.bias[0].read().float() * source.bias[1] if source.bias is not None else None
    target = getattr(torch, {"BF16": "bfloat16", "F32": "float32"}[layout.dtype])
    for first in range(0, n_rows, step):
        last = min(first + step, n_rows)
        rows = change(first, last)
        if bias is not None:
            rows = rows + bias[first:last]
        if source.rows is not None:
            rows = _with_trained_rows(rows, source, first)
        rows = rows.to(target)
        if not torch.isfinite(rows).all():
            raise InputError(
                f"The merged {layout.name} holds a NaN or an infinity.", "Is the base model whole? Check its weights."
            )
        yield rows


def _low_rank(
    source: Source, base_rows: Callable[[int, int], torch.Tensor], step: int
) -> Callable[[int, int], torch.Tensor]:
    """Rows of `W + scale * B A`, or with DoRA's magnitude `m`, of `m * (W + scale * B A) / |W + scale * B A|`.

    The norm is over the weights of one output: along a row where W is stored [out, in], across rows where it is
    stored [in, out], which takes a pass over the tensor of its own. float32, the norm across rows summed in float64.
    """
    import torch

    lora = source.lora
    assert lora is not None
    down, up = lora.down.read().float(), lora.up.read().float()  # [r, in], [out, r]

    def added(first: int, last: int) -> torch.Tensor:
        delta = down[:, first:last].T @ up.T if source.stored_in_out else up[first:last] @ down
        return base_rows(first, last) + delta * lora.scale

    if lora.magnitude is None:
        return added
    magnitude = lora.magnitude.read().float()
    if not source.stored_in_out:

        def lengthened(first: int, last: int) -> torch.Tensor:
            rows = added(first, last)
            lengths: torch.Tensor = magnitude[first:last] / torch.linalg.norm(rows, dim=1)
            return lengths.unsqueeze(1) * rows

        return lengthened
    squares = torch.zeros(len(up), dtype=torch.float64)
    n_rows = source.tensor.n_rows
    for first in range(0, n_rows, step):
        squares += added(first, min(first + step, n_rows)).double().square().sum(0)
    factor = magnitude / squares.sqrt().float()

    def lengthened_across(first: int, last: int) -> torch.Tensor:
        rows: torch.Tensor = factor * added(first, last)
        return rows

    return lengthened_across


def _with_trained_rows(rows: torch.Tensor, source: Source, first: int) -> torch.Tensor:
    """Put the rows that were trained by themselves in the place of the base's."""
    trained = source.rows
    assert trained is not None
    values = trained.values.read().float()
    for index, row in enumerate(trained.rows):
        if first <= row < first + len(rows):
            rows[row - first] = values[index]
    return rows


def _summary(adapter: Adapter, plan: Plan, section: MergeSection) -> dict[str, Any]:
    return {
        "dtype": section.dtype,
        "base_weights": section.base,
        "files": len(plan.shards),
        "bytes": plan.n_bytes,
        "tensors": len(plan.sources),
        "merged_modules": len(adapter.lora),
        "replaced_tensors": len(adapter.replaced),
        "dequantised_tensors": sum(source.dequantised for source in plan.sources.values()),
        "ranks": sorted({lora.rank for lora in adapter.lora.values()}),
        "scales": sorted({lora.scale for lora in adapter.lora.values()}),
        "dora": any(lora.magnitude is not None for lora in adapter.lora.values()),
        "untied": plan.untied,
        "warnings": list(plan.warnings),
    }
