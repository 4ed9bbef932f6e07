"""Writes a checkpoint as one GGUF file, for llama.cpp, Ollama and what is built on them.

Tensors are read, converted and written a few rows at a time, so an 8B model needs little more memory than a
small one. What the `gguf` package knows (names of tensors and keys, quantisation, authorship from a model card) is
asked of it; `layouts` knows the architectures, `gguf_vocab` writes the tokenizer. This module knows the order of
rotary rows, Llama 3's frequencies, and how a file is written whole or not at all.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from karma_electric.core.artifact import require_space, sync_folder
from karma_electric.core.errors import ArtifactError, InputError
from karma_electric.core.extras import require
from karma_electric.core.progress import Progress, Silent
from karma_electric.export.gguf_vocab import USE_LLAMA_CPP, add_tokenizer
from karma_electric.export.layouts import AGAIN, Model, add_parameters, expected_tensors, read_model, say_window
from karma_electric.models.weights import StoredTensor, checkpoint_tensors

if TYPE_CHECKING:
    import torch

FileType = Literal["q8_0", "f16", "bf16", "f32"]
_LLAMA3_SCALING = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_CHUNK_ELEMENTS = 1 << 21  # converted at a time: 8 MB as float32
_ROPE_FREQS = "rope_freqs.weight"
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"
_SILENT = Silent()


@dataclass(frozen=True)
class GgufSummary:
    """What was written: where, its size in bytes, how many tensors, and the type of the matrices."""

    path: Path
    bytes: int
    n_tensors: int
    file_type: FileType


@dataclass(frozen=True)
class _Planned:
    """A tensor of the output file. `source` is its name in the checkpoint, None for the rope frequencies."""

    name: str
    source: str | None
    shape: tuple[int, ...]
    type: Any  # gguf.GGMLQuantizationType
    head_dim: int = 0  # rows per head where rotary rows are reordered, else 0

    @property
    def n_bytes(self) -> int:
        from gguf import GGML_QUANT_SIZES

        block, size = GGML_QUANT_SIZES[self.type]
        return math.prod(self.shape) // int(block) * int(size)


def export_gguf(
    model_dir: Path,
    out: Path,
    *,
    file_type: FileType,
    name: str,
    lineage: Mapping[str, str] = {},
    license_id: str | None = None,
    progress: Progress = _SILENT,
) -> GgufSummary:
    """Convert a checkpoint to GGUF. The file appears under `out` whole, or not at all.

    Args:
        model_dir: Hugging Face folder: config.json, tokenizer.json, safetensors (one file or shards).
        out: the file to write; replaced if it is there.
        file_type: type of the matrices. Norms and rope frequencies stay float32; a matrix whose rows are
            not a multiple of 32 long is written as float16 under `q8_0`, as llama.cpp does.
        name: the model's name in the file.
        lineage: written as string keys `karma.KEY`.
        license_id: licence of the weights, as the hub spells it.
        progress: told after every tensor.

    Raises:
        InputError: an architecture, rope scaling or tokenizer this cannot write, naming what can.
        ArtifactError: config and tensors that do not fit each other, or values that are not finite.
        MissingError: no such checkpoint, or the extra `gguf` is not installed.
    """
    require("gguf")
    import gguf

    model = read_model(model_dir)
    say_window(model, progress)
    with ExitStack() as stack:
        checkpoint = checkpoint_tensors(model_dir)
        plan = _plan(model, checkpoint, file_type)
        writer = gguf.GGUFWriter(path=None, arch=model.architecture.name)
        _add_general(writer, model_dir, plan, file_type=file_type, name=name, license_id=license_id)
        add_parameters(writer, model)
        add_tokenizer(writer, model_dir, model.config["vocab_size"], spaced=model.architecture.name == "llama")
        for key, value in lineage.items():
            writer.add_string(f"karma.{key}", value)
        for tensor in plan:
            if tensor.type == gguf.GGMLQuantizationType.F16 and file_type == "q8_0":
                progress.say(f"{tensor.name} is written as F16: its rows are not whole Q8_0 blocks")
            # The element type only matters to the writer where no target type is given.
            writer.add_tensor_info(tensor.name, tensor.shape, None, tensor.n_bytes, tensor.type)
        out.parent.mkdir(parents=True, exist_ok=True)
        require_space(out.parent, sum(tensor.n_bytes for tensor in plan) + (16 << 20))
        # A fixed name: what a kill leaves behind, the next export replaces.
        temporary = out.with_name(f".{out.name}.tmp")
        stack.callback(temporary.unlink, missing_ok=True)
        stack.callback(writer.close)
        writer.write_header_to_file(temporary)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        stream = writer.fout[0]
        writer.write_padding(stream, stream.tell())
        for number, tensor in enumerate(plan, 1):
            for rows in _converted(tensor, checkpoint, model):
                stream.write(rows)
            writer.write_padding(stream, tensor.n_bytes)
            progress.update(number, len(plan), tensor.name)
        stream.flush()
        os.fsync(stream.fileno())
        size = stream.tell()
        writer.close()
        temporary.replace(out)
    sync_folder(out.parent)
    return GgufSummary(path=out, bytes=size, n_tensors=len(plan), file_type=file_type)


def _shape(tensor: StoredTensor) -> tuple[int, ...]:
    if tensor.dtype not in ("BF16", "F16", "F32"):
        raise InputError(
            f"{tensor.name} is stored as {tensor.dtype}, expected bfloat16, float16 or float32.",
            "Export the merged model, not a quantised one.",
        )
    return tensor.shape


def _plan(model: Model, checkpoint: Mapping[str, StoredTensor], file_type: FileType) -> list[_Planned]:
    """Match the checkpoint's tensors to those llama.cpp expects, and decide the type of each."""
    import gguf

    architecture = gguf.MODEL_ARCH[model.architecture.name.upper()]
    names = gguf.get_tensor_name_map(architecture, model.config["num_hidden_layers"])
    expected = expected_tensors(model)
    sources: dict[str, str] = {}
    for source in sorted(checkpoint):
        target = names.get_name(source, try_suffixes=(".weight", ".bias"))
        if source.endswith(".rotary_emb.inv_freq"):
            continue  # computed by llama.cpp
        known = target == _HEAD or (target or "").removesuffix("bias").removesuffix("weight") + "weight" in expected
        if target is None or not known:
            raise InputError(
                f"The checkpoint holds {source}, which a {model.architecture.name} model of llama.cpp does not have.",
                USE_LLAMA_CPP,
            )
        sources[target] = source
    if {_HEAD, _EMBEDDING} <= sources.keys() and _HEAD not in expected:
        head, embedding = (checkpoint[sources[target]] for target in (_HEAD, _EMBEDDING))
        if not _equal(head, embedding):  # transformers does not tie these, whatever config.json says
            expected[_HEAD] = expected[_EMBEDDING]
    kinds = gguf.GGMLQuantizationType
    plan = []
    if model.rope["rope_type"] == "llama3":
        plan.append(_Planned(_ROPE_FREQS, None, (model.head_dim // 2,), kinds.F32))
    for weight, shape in expected.items():
        if weight not in sources:
            raise ArtifactError(f"The checkpoint has no tensor for {weight}.", AGAIN)
        bias = weight.replace(".weight", ".bias")
        for target in (weight, bias) if bias in sources else (weight,):
            found = _shape(checkpoint[sources[target]])
            wanted = shape if target == weight else shape[:1]
            if found != wanted:
                shapes = f"has shape {list(found)}, config.json says {list(wanted)}"
                raise ArtifactError(f"{sources[target]} {shapes}.", AGAIN)
            kind = kinds.F32 if len(found) == 1 else kinds[file_type.upper()]
            if kind == kinds.Q8_0 and found[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
                kind = kinds.F16
            rotary = model.architecture.reorders_rotary and (".attn_q." in target or ".attn_k." in target)
            plan.append(_Planned(target, sources[target], found, kind, model.head_dim if rotary else 0))
    return plan


def _equal(one: StoredTensor, other: StoredTensor) -> bool:
    """Whether two tensors hold the same numbers, in whatever types."""
    import torch

    if one.shape != other.shape:
        return False
    step = max(_CHUNK_ELEMENTS // math.prod(one.shape[1:]), 1)
    pieces = ((first, min(first + step, one.n_rows)) for first in range(0, one.n_rows, step))
    return all(torch.equal(one.rows(*piece).float(), other.rows(*piece).float()) for piece in pieces)


def _converted(tensor: _Planned, checkpoint: Mapping[str, StoredTensor], model: Model) -> Iterator[memoryview]:
    """The bytes of a tensor as the file holds them, some rows at a time."""
    import numpy
    import torch
    from gguf import GGMLQuantizationType, quants

    if tensor.source is None:
        yield rope_factors(model.rope, model.head_dim).numpy().data
        return
    n_rows, row_size = tensor.shape[0], math.prod(tensor.shape[1:])
    step = max(_CHUNK_ELEMENTS // row_size, 1)
    if tensor.head_dim:
        step = max(step // tensor.head_dim, 1) * tensor.head_dim
    for first in range(0, n_rows, step):
        rows = checkpoint[tensor.source].rows(first, min(first + step, n_rows)).to(torch.float32)
        if tensor.head_dim:
            rows = interleave_rotary(rows, tensor.head_dim)
        values = rows.numpy()
        largest = numpy.maximum(values.max(), -values.min())  # numpy, unlike max(), lets a NaN through
        if not numpy.isfinite(largest):
            raise ArtifactError(f"{tensor.source} holds NaN or infinity.", AGAIN)
        if tensor.type == GGMLQuantizationType.F16 and largest > numpy.finfo(numpy.float16).max:
            raise InputError(f"{tensor.source} exceeds float16.", "Export with --type bf16 or q8_0.")
        yield quants.quantize(values, tensor.type).data


def interleave_rotary(rows: torch.Tensor, head_dim: int) -> torch.Tensor:
    """Reorder the rows of a query or key projection from transformers' rotary layout to llama.cpp's.

    transformers rotates row i of a head with row i + head_dim/2, llama.cpp row 2i with row 2i + 1.

    Args:
        rows: [n_heads * head_dim, ...], whole heads.
        head_dim: rows per head.
    """
    halves = rows.reshape(-1, 2, head_dim // 2, *rows.shape[1:])  # [heads, half, pair, ...]
    return halves.transpose(1, 2).reshape(rows.shape)


def rope_factors(rope: Mapping[str, Any], dim: int) -> torch.Tensor:
    """What Llama 3's frequency scaling divides each rotary frequency by, float32 [dim / 2].

    1 for wavelengths below `original / high_freq_factor`, `factor` above `original / low_freq_factor`, and in
    between the inverse of a linear blend of the inverses (transformers `_compute_llama3_parameters`).
    """
    import torch

    missing = [key for key in _LLAMA3_SCALING if key not in rope]
    if missing:
        raise ArtifactError(f"config.json has llama3 rope scaling without {missing[0]!r}.", AGAIN)
    factor, low, high, original = (rope[key] for key in _LLAMA3_SCALING)
    frequencies = 1.0 / (rope["rope_theta"] ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim))
    turns = original * frequencies / (2 * math.pi)  # within the original context
    blend = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    factors: torch.Tensor = 1.0 / ((1.0 - blend) / factor + blend)
    return factors


def _add_general(
    writer: Any, model_dir: Path, plan: list[_Planned], *, file_type: FileType, name: str, license_id: str | None
) -> None:
    """What the file says about itself, from where llama.cpp's converter takes it: model card, settings, folder name."""
    import gguf

    parameters = sum(math.prod(tensor.shape) for tensor in plan)
    try:
        about = gguf.Metadata.load(None, model_dir.resolve(), name, parameters)
    except Exception as error:  # what YAML and the heuristics raise
        raise InputError(
            f"{model_dir} has a model card or generation_config.json that cannot be read ({error}).",
            "Repair it, or move README.md away.",
        ) from None
    about.size_label = about.size_label or gguf.size_label(parameters, parameters, 0, 0)
    about.license = license_id or about.license
    writer.add_type(gguf.GGUFType.MODEL)
    about.set_gguf_meta_model(writer)
    scope = "ALL" if file_type == "f32" else "MOSTLY"
    writer.add_file_type(gguf.LlamaFileType[f"{scope}_{file_type.upper()}"])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
