"""Plans a merge: from which tensors every tensor of the merged model is made, checked before anything is written."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from karma_electric.core.artifact import read_json
from karma_electric.core.errors import ArtifactError, InputError
from karma_electric.core.recipe import MergeSection, bytes_of
from karma_electric.models.skeleton import Skeleton, read_skeleton
from karma_electric.models.weights import (
    FLOATING,
    Layout,
    StoredTensor,
    checkpoint_tensors,
    format_dtype,
    shard_names,
    split_in_shards,
)
from karma_electric.train.adapter_file import Adapter, Lora, Rows, base_named, check_targets


@dataclass(frozen=True)
class Source:
    """How one tensor of the merged model is made.

    Attributes:
        tensor: what it starts from: the base's tensor, or the trained one that takes its place.
        lora: the low-rank change that is added; None without.
        rows: rows that trained ones replace; None without.
        bias: what is added to a bias, times its scale; None without.
        stored_in_out: a weight that is stored [in, out], as embeddings are, and not [out, in].
        dequantised: whether the tensor is first rounded to NF4 and back.
    """

    tensor: StoredTensor
    lora: Lora | None = None
    rows: Rows | None = None
    bias: tuple[StoredTensor, float] | None = None
    stored_in_out: bool = False
    dequantised: bool = False


@dataclass(frozen=True)
class Plan:
    """A whole merge.

    Attributes:
        sources: tensor of the merged model -> how it is made.
        shards: file -> its tensors, in the order of the data.
        config: config.json of the merged model.
        untied: whether the output embedding had to become a tensor of its own.
        warnings: what does not look right.
    """

    sources: Mapping[str, Source]
    shards: Mapping[str, list[Layout]]
    config: Mapping[str, Any]
    untied: bool
    warnings: tuple[str, ...]

    @property
    def n_bytes(self) -> int:
        """Size of all tensors."""
        return sum(layout.n_bytes for shard in self.shards.values() for layout in shard)


def plan_merge(base: Path, adapter: Adapter, section: MergeSection, *, base_names: tuple[str, ...] = ()) -> Plan:
    """Decide what every tensor of the merged model is made from.

    Tied embeddings stay tied as long as both ends are the same after the merge. An adapter that changes only one of
    them (or both differently) unties them: it was trained with two different weights, which one tensor cannot hold.

    Args:
        base: folder of the base model.
        adapter: what changes it.
        section: target type, shard size and which base weights.
        base_names: further names of the base, compared with the one the adapter names.

    Raises:
        ArtifactError: the adapter does not fit this base. InputError: the base is quantised already.
    """
    config = read_json(base / "config.json")
    if config.get("quantization_config"):
        raise InputError(
            f"{base} holds quantised weights.", 'Give the 16-bit model; merge.base = "dequantised-nf4" quantises it.'
        )
    tensors = checkpoint_tensors(base)
    skeleton, divorced = _really_tied(read_skeleton(base), tensors)
    check_targets(adapter, skeleton)
    quantised = skeleton.linear - {skeleton.output_embedding} if section.base == "dequantised-nf4" else frozenset()
    if section.base == "dequantised-nf4" and skeleton.transposed:
        raise InputError(f"{base} has no layers that 4-bit training quantises.", 'Set merge.base = "bf16".')
    needed = [*sorted(quantised), *([skeleton.input_embedding] if skeleton.tied else [])]
    if missing := [module for module in needed if f"{module}.weight" not in tensors]:
        raise ArtifactError(
            f"{base} has no {missing[0]}.weight, which its config.json calls for.", "Is it a whole model folder?"
        )
    alike = _tied_change(adapter, skeleton)
    tensors, untied = (tensors, False) if alike else _untie(tensors, adapter, skeleton)
    untied |= divorced
    _check_names(adapter, {*tensors, *([f"{skeleton.output_embedding}.weight"] if alike else [])})
    sources = {}
    for name, tensor in tensors.items():
        module = name.removesuffix(".weight")
        start = _start(adapter, name, tensor)
        source = Source(
            start,
            lora=adapter.lora.get(module) if name.endswith(".weight") else None,
            rows=adapter.rows.get(module) if name.endswith(".weight") else None,
            bias=_bias(adapter, name),
            stored_in_out=module in skeleton.transposed or module == skeleton.input_embedding,
            dequantised=name.endswith(".weight") and module in quantised and start is tensor,
        )
        if alike and module == skeleton.output_embedding:  # tied, and stored all the same
            embedding = skeleton.input_embedding
            source = Source(start, adapter.lora.get(embedding), adapter.rows.get(embedding), None, stored_in_out=True)
        _check_fit(name, source)
        sources[name] = source
    layouts = [
        Layout(name, format_dtype(section.dtype) if source.tensor.dtype in FLOATING else source.tensor.dtype, shape)
        for name, source in sources.items()
        for shape in (source.tensor.shape,)
    ]
    split = split_in_shards(layouts, bytes_of(section.max_shard_size))
    shards = dict(zip(shard_names(len(split)), split, strict=True))
    config["dtype"] = section.dtype
    if "torch_dtype" in config:  # transformers 4
        config["torch_dtype"] = section.dtype
    if untied:
        config["tie_word_embeddings"] = False
    warnings = (*adapter.warnings, *_other_base(base, adapter, base_names), *_other_template(base, adapter))
    return Plan(sources, shards, config, untied, warnings)


def _really_tied(skeleton: Skeleton, tensors: Mapping[str, StoredTensor]) -> tuple[Skeleton, bool]:
    """transformers does not tie two embeddings that a checkpoint holds with different values, whatever its config."""
    ends = [tensors.get(f"{module}.weight") for module in (skeleton.input_embedding, skeleton.output_embedding)]
    if skeleton.tied and ends[0] is not None and ends[1] is not None and not _same(ends[0], ends[1]):
        return replace(skeleton, tied=False), True
    return skeleton, False


def _start(adapter: Adapter, name: str, tensor: StoredTensor) -> StoredTensor:
    """The tensor a merge starts from: a trained one, the base weight peft saved with the adapter, or the base's."""
    kept = adapter.stored_bases.get(name.removesuffix(".weight"), tensor) if name.endswith(".weight") else tensor
    start = adapter.replaced.get(name, kept)
    if start.shape != tensor.shape:
        raise ArtifactError(
            f"{start.name} is {list(start.shape)}, expected {list(tensor.shape)} as {name} of this base.", _BASE
        )
    return start


def _bias(adapter: Adapter, name: str) -> tuple[StoredTensor, float] | None:
    lora = adapter.lora.get(name.removesuffix(".bias")) if name.endswith(".bias") else None
    return None if lora is None or lora.bias is None else (lora.bias, lora.scale)


def _untie(
    tensors: dict[str, StoredTensor], adapter: Adapter, skeleton: Skeleton
) -> tuple[dict[str, StoredTensor], bool]:
    """The base's tensors, with one for the output embedding of its own where the adapter makes the two differ."""
    embedding, output = f"{skeleton.input_embedding}.weight", f"{skeleton.output_embedding}.weight"
    ends = (skeleton.input_embedding, skeleton.output_embedding)
    if not skeleton.tied or not any(_touches(adapter, module) for module in ends):
        return tensors, False
    for module in ends:
        if module in adapter.stored_bases and not _same(adapter.stored_bases[module], tensors[embedding]):
            raise ArtifactError(
                f"The adapter was trained on other values of {module} than this base has, and the base ties them to "
                "its other end.",
                "Give the base model the adapter was trained on.",
            )
    return {**tensors, output: tensors[embedding]}, True


def _touches(adapter: Adapter, module: str) -> bool:
    return module in adapter.lora or module in adapter.rows or f"{module}.weight" in adapter.replaced


def _tied_change(adapter: Adapter, skeleton: Skeleton) -> bool:
    """Whether an adapter changes tied embeddings on both ends alike (peft's `ensure_weight_tying`, trained rows)."""
    embedding, output = skeleton.input_embedding, skeleton.output_embedding
    if not skeleton.tied or not _touches(adapter, embedding):
        return False
    if embedding in adapter.rows and not _touches(adapter, output):
        return True  # peft gives tied rows to both
    one, other = adapter.lora.get(embedding), adapter.lora.get(output)
    if one is not None and other is not None:
        alike = one.magnitude is None and other.magnitude is None and one.scale == other.scale
        return alike and _same(one.down, other.up, transposed=True) and _same(one.up, other.down, transposed=True)
    replaced = [adapter.replaced.get(f"{module}.weight") for module in (embedding, output)]
    return replaced[0] is not None and replaced[1] is not None and _same(replaced[0], replaced[1])


def _same(one: StoredTensor, other: StoredTensor, *, transposed: bool = False) -> bool:
    """Whether two tensors are equal after rounding to the coarser of their types."""
    import torch

    a, b = one.read(), other.read()
    b = b.T if transposed else b
    coarser = a.dtype if a.dtype.itemsize <= b.dtype.itemsize else b.dtype
    return a.shape == b.shape and torch.equal(a.to(coarser), b.to(coarser))


def _check_names(adapter: Adapter, tensors: Collection[str]) -> None:
    changed = [*(f"{module}.weight" for module in (*adapter.lora, *adapter.rows)), *adapter.replaced]
    unknown = [name for name in changed if name not in tensors]
    if unknown:
        raise ArtifactError(
            f"The adapter changes {unknown[0]}, which this base has not ({len(unknown)} such tensors).",
            f"Give the base it was trained on: {base_named(adapter) or 'its configuration names none'}.",
        )
    for module, lora in adapter.lora.items():
        if lora.bias is not None and f"{module}.bias" not in tensors:
            raise InputError(
                f"The adapter has a bias for {module} (lora_bias), and this base has none there to add it to.",
                "Use it through peft, or train without lora_bias.",
            )


def _check_fit(name: str, source: Source) -> None:
    """Every tensor of the adapter has the shape that the base's tensor needs.

    Raises:
        ArtifactError: naming the tensor, its shape and the expected one.
    """
    shape = source.tensor.shape
    expected: list[tuple[StoredTensor, tuple[int, ...]]] = []
    if source.lora is not None and len(shape) == 2:
        lora, rank = source.lora, source.lora.rank
        inputs, outputs = shape if source.stored_in_out else shape[::-1]
        expected = [(lora.down, (rank, inputs)), (lora.up, (outputs, rank))]
        expected += [(lora.magnitude, (outputs,))] if lora.magnitude is not None else []
    elif source.lora is not None:
        raise ArtifactError(f"The adapter changes {name}, which is not a matrix: {list(shape)}.", _BASE)
    if source.rows is not None:
        expected.append((source.rows.values, (len(source.rows.rows), *shape[1:])))
        if max(source.rows.rows) >= shape[0]:
            raise ArtifactError(f"The adapter trained row {max(source.rows.rows)} of {name}, of {shape[0]}.", _BASE)
    if source.bias is not None:
        expected.append((source.bias[0], shape))
    for tensor, wanted in expected:
        if tensor.shape != wanted:
            raise ArtifactError(
                f"{tensor.name} is {list(tensor.shape)}, expected {list(wanted)} for {name} of {list(shape)}.", _BASE
            )


_BASE = "Give the base model the adapter was trained on (resized, if its vocabulary was)."


def _other_base(base: Path, adapter: Adapter, names: tuple[str, ...]) -> tuple[str, ...]:
    named = base_named(adapter)
    same = {Path(name).name.lower() for name in (str(base), *names)}
    if not named or Path(named).name.lower() in same:
        return ()
    return (f"the adapter names {named} as its base, and is merged into {names[0] if names else base}",)


def _other_template(base: Path, adapter: Adapter) -> tuple[str, ...]:
    own, kept = adapter.folder / "chat_template.jinja", base / "chat_template.jinja"
    if not own.is_file() or (kept.is_file() and own.read_bytes() == kept.read_bytes()):
        return ()
    return ("the adapter comes with a chat template of its own; the base's is kept",)
