"""Reads a LoRA adapter as peft saves it: what it changes, and by which factor, is read off the names of its tensors.

Whatever peft can train and cannot be folded into plain weights exactly is refused by name. Nothing is unpickled, and
only headers and numbers that do not fit are looked at here: the tensors are read when they are used.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karma_electric.core.artifact import hash_file, hash_text, read_json
from karma_electric.core.errors import ArtifactError, InputError, MissingError
from karma_electric.models.skeleton import Skeleton
from karma_electric.models.weights import FLOATING, StoredTensor, stored_tensors

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"
_PREFIX = "base_model.model."
_ROWS = ".token_adapter.trainable_tokens_delta"
_CHUNK_ROWS = 4096
_KEPT_BASE = (None, True, False, "gaussian", "eva", "orthogonal")  # initialisations that leave the base weights alone
# Options of peft under which an adapter is not W + (alpha / r) B A of the base it names.
_REFUSED = {
    "alora_invocation_tokens": "acts only behind its invocation tokens, so it cannot be part of the weights",
    "arrow_config": "routes every token to other adapters, so it cannot be part of the weights",
    "kasa_config": "changes the base weights by their singular values",
    "layer_replication": "repeats blocks of the base model",
    "megatron_config": "belongs to a Megatron model",
    "monteclora_config": "adds sampled weights to the adapter",
    "target_parameters": "changes parameters that are not the weight of a linear layer",
    "use_bdlora": "has block-diagonal factors",
    "use_qalora": "adds pooled inputs to a quantised layer",
    "velora_config": "trains on compressed activations",
}
_PARTS = {
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora_B.bias": "bias",
    "lora_embedding_A": "down",
    "lora_embedding_B": "up",
    "lora_magnitude_vector": "magnitude",
    "lora_magnitude_vector.weight": "magnitude",
}


@dataclass(frozen=True)
class Lora:
    """The low-rank change of one module: `scale * up @ down`.

    Attributes:
        down: A, [r, in].
        up: B, [out, r].
        scale: alpha / r, or alpha / sqrt(r) when rank-stabilised (Kalajdzievski 2023, arXiv 2312.03732).
        magnitude: DoRA's length of every output's weights, [out] (Liu et al. 2024, arXiv 2402.09353); None without.
        bias: what is added to the module's bias after scaling, [out]; None without.
        on_embedding: A and B of an embedding, whose weight is stored [in, out].
    """

    down: StoredTensor
    up: StoredTensor
    scale: float
    magnitude: StoredTensor | None
    bias: StoredTensor | None
    on_embedding: bool

    @property
    def rank(self) -> int:
        """r."""
        return self.down.shape[0]


@dataclass(frozen=True)
class Rows:
    """Rows of an embedding that were trained (peft's `trainable_token_indices`): `values` takes the place of `rows`."""

    rows: tuple[int, ...]
    values: StoredTensor


@dataclass(frozen=True)
class Adapter:
    """What an adapter changes.

    Attributes:
        folder: where it is.
        config: adapter_config.json.
        lora: module -> its low-rank change.
        replaced: tensor -> the trained one that takes its place (`modules_to_save`, `bias`).
        rows: module -> its trained rows.
        stored_bases: module -> the base weight that peft saved along with the change of an embedding.
        warnings: what does not look right and does not stop a merge.
    """

    folder: Path
    config: Mapping[str, Any]
    lora: Mapping[str, Lora]
    replaced: Mapping[str, StoredTensor]
    rows: Mapping[str, Rows]
    stored_bases: Mapping[str, StoredTensor]
    warnings: tuple[str, ...] = ()

    @property
    def n_bytes(self) -> int:
        """Size of its tensors."""
        pairs = [part for lora in self.lora.values() for part in (lora.down, lora.up, lora.magnitude, lora.bias)]
        others = [*self.replaced.values(), *self.stored_bases.values(), *(rows.values for rows in self.rows.values())]
        return sum(part.n_bytes for part in (*pairs, *others) if part is not None)


def adapter_fingerprint(folder: Path) -> str:
    """Hash of the two files that make an adapter.

    Raises:
        MissingError: one of them is not there. InputError: its weights are pickled.
    """
    _require_files(folder)
    return hash_text(hash_file(folder / CONFIG) + hash_file(folder / WEIGHTS))[:16]


def read_adapter(folder: Path) -> Adapter:
    """Read an adapter's configuration and the names, shapes and numbers of its tensors.

    Raises:
        MissingError: no adapter there.
        InputError: not a LoRA, a kind that cannot be folded into the weights, pickled, or with a NaN in it.
        ArtifactError: tensors are missing, unknown, or contradict the configuration.
    """
    _require_files(folder)
    config = read_json(folder / CONFIG)
    if not isinstance(config, dict):
        raise ArtifactError(f"{folder / CONFIG} is not an object.", "Save the adapter again with peft.")
    _refuse_other_kinds(folder, config)
    parts: dict[str, dict[str, StoredTensor]] = {}
    embeddings, replaced, trained, stored_bases = set(), {}, {}, {}
    for name, tensor in stored_tensors(folder / WEIGHTS).items():
        if not name.startswith(_PREFIX):
            raise ArtifactError(f"{folder / WEIGHTS} holds {name!r}, expected names that begin with {_PREFIX}.", _SAVE)
        _require_finite(tensor)
        key = name.removeprefix(_PREFIX)
        suffix = next((suffix for suffix in _PARTS if key.endswith(f".{suffix}")), None)
        if suffix is not None:
            module = key.removesuffix(f".{suffix}")
            parts.setdefault(module, {})[_PARTS[suffix]] = tensor
            embeddings |= {module} if "embedding" in suffix else set()
        elif key.endswith(_ROWS):
            trained[key.removesuffix(_ROWS)] = tensor
        elif key.endswith(".base_layer.weight"):
            stored_bases[key.removesuffix(".base_layer.weight")] = tensor
        elif "lora_" in key or ".token_adapter." in key:
            raise ArtifactError(f"{folder / WEIGHTS} holds {name!r}, which no LoRA of this kind has.", _SAVE)
        else:
            replaced[key.replace(".base_layer.", ".")] = tensor
    lora = {module: _lora(folder, config, module, found, module in embeddings) for module, found in parts.items()}
    rows = {module: Rows(_indices(config, module, tensor), tensor) for module, tensor in trained.items()}
    if not lora and not replaced and not rows:
        raise ArtifactError(f"{folder / WEIGHTS} holds no tensors.", _SAVE)
    return Adapter(folder, config, lora, replaced, rows, stored_bases, _unknown_options(config))


_SAVE = "Save the adapter again with peft's save_pretrained."


def check_targets(adapter: Adapter, skeleton: Skeleton) -> None:
    """Compare the modules that have tensors with those that the configuration targets, by peft's own rule.

    Raises:
        ArtifactError: a targeted module has no tensors, or the other way round.
    """
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    config = adapter.config
    if not config.get("target_modules"):
        return
    keys = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save")
    try:
        rule = LoraConfig(**{key: config.get(key) for key in keys})
        known = {*skeleton.linear, *skeleton.transposed, skeleton.input_embedding}
        targeted = {module for module in known if check_target_module_exists(rule, module)}
    except (ValueError, TypeError, re.error) as error:
        raise ArtifactError(f"{adapter.folder / CONFIG}: {error}.", _SAVE) from None
    missing, extra = sorted(targeted - set(adapter.lora)), sorted(set(adapter.lora) - targeted)
    if missing:
        raise ArtifactError(
            f"The adapter has no tensors for {len(missing)} of the {len(targeted)} modules of this base that its "
            f"configuration targets, such as {missing[0]}.",
            f"Was it trained on another base ({base_named(adapter) or 'not recorded'}), or saved in part?",
        )
    pair = {skeleton.input_embedding, skeleton.output_embedding}
    if config.get("ensure_weight_tying") and pair & targeted:
        extra = [module for module in extra if module not in pair]
    if extra:
        raise ArtifactError(
            f"The adapter has tensors for {extra[0]}, which its configuration does not target.",
            f"Correct target_modules in {adapter.folder / CONFIG}; peft would ignore these tensors.",
        )


def base_named(adapter: Adapter) -> str:
    """The base model that the adapter's configuration names, or nothing."""
    return str(adapter.config.get("base_model_name_or_path") or "")


def _require_files(folder: Path) -> None:
    if not (folder / CONFIG).is_file():
        raise MissingError(
            f"{folder} has no {CONFIG}.", "Give the folder of an adapter (a run's is runs/NAME/adapter)."
        )
    if (folder / WEIGHTS).is_file():
        return
    if (folder / _PICKLE).is_file():
        raise InputError(
            f"{folder} has its weights in {_PICKLE}, a pickle, which may run any program when it is read.",
            "If you trust it, load it with peft and save it again: save_pretrained writes safetensors.",
        )
    raise MissingError(f"{folder} has no {WEIGHTS}.", _SAVE)


def _refuse_other_kinds(folder: Path, config: Mapping[str, Any]) -> None:
    where = folder / CONFIG
    kind = config.get("peft_type")
    if kind != "LORA":
        raise InputError(f"{where}: peft_type is {kind!r}, expected LORA.", "Merge it with peft's merge_and_unload.")
    for option, why in _REFUSED.items():
        if config.get(option):
            raise InputError(
                f"{where}: {option} is set: such an adapter {why}.", "Use it through peft, or train without it."
            )
    initialised = config.get("init_lora_weights")
    if initialised not in _KEPT_BASE:
        raise InputError(
            f"{where}: init_lora_weights is {initialised!r}: this adapter is relative to weights that its "
            "initialisation changed.",
            "Save it with save_pretrained(..., path_initial_model_for_weight_conversion=...), which makes it plain.",
        )
    if config.get("bias", "none") not in ("none", "all", "lora_only"):
        raise InputError(f"{where}: bias is {config['bias']!r}, expected none, all or lora_only.", _SAVE)


def _unknown_options(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Options that are set and that the installed peft has not: it would drop them with a warning, as we do."""
    from dataclasses import fields

    from peft import LoraConfig

    known = {field.name for field in fields(LoraConfig)} | {"peft_version"}
    return tuple(
        f"adapter_config.json sets {key!r}, which the installed peft does not know"
        for key, value in config.items()
        if key not in known and value
    )


def _lora(
    folder: Path, config: Mapping[str, Any], module: str, parts: Mapping[str, StoredTensor], on_embedding: bool
) -> Lora:
    for part, letter in (("down", "A"), ("up", "B")):
        if part not in parts:
            raise ArtifactError(f"{folder / WEIGHTS} has no lora_{letter} for {module}.", _SAVE)
    down, up = parts["down"], parts["up"]
    if len(down.shape) != 2 or len(up.shape) != 2 or down.shape[0] != up.shape[1]:
        raise ArtifactError(
            f"{module}: lora_A is {list(down.shape)} and lora_B {list(up.shape)}, expected [r, in] and [out, r].",
            "An adapter of a convolution, or shards that were not gathered before saving (ZeRO-3, FSDP).",
        )
    rank, alpha = _pattern(config, "rank_pattern", "r", module), _pattern(config, "alpha_pattern", "lora_alpha", module)
    if rank != down.shape[0]:
        raise ArtifactError(
            f"{module}: lora_A has rank {down.shape[0]}, and {CONFIG} says {rank:g}.", "Do both belong together?"
        )
    if bool(config.get("use_dora")) != ("magnitude" in parts):
        found = "no lora_magnitude_vector" if config.get("use_dora") else "a lora_magnitude_vector"
        raise ArtifactError(f"{module} has {found}, and {CONFIG} has use_dora = {config.get('use_dora')}.", _SAVE)
    if bool(config.get("lora_bias")) != ("bias" in parts) and not on_embedding:
        found = "no lora_B.bias" if config.get("lora_bias") else "a lora_B.bias"
        raise ArtifactError(f"{module} has {found}, and {CONFIG} has lora_bias = {config.get('lora_bias')}.", _SAVE)
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return Lora(down, up, scale, parts.get("magnitude"), parts.get("bias"), on_embedding)


def _pattern(config: Mapping[str, Any], pattern: str, otherwise: str, module: str) -> float:
    """The number that a module's name selects: the first pattern that its end matches, else the general one."""
    values = config.get(pattern) or {}
    for expression, value in values.items():
        if re.match(rf"(.*\.)?({expression})$", module):
            return float(value)
    if not isinstance(config.get(otherwise), (int, float)):
        raise ArtifactError(f"{CONFIG} has no number for {otherwise!r}.", _SAVE)
    return float(config[otherwise])


def _indices(config: Mapping[str, Any], module: str, tensor: StoredTensor) -> tuple[int, ...]:
    """The rows that a module's trained values belong to, in the order of the values."""
    asked = config.get("trainable_token_indices")
    if isinstance(asked, dict):
        asked = next((rows for name, rows in asked.items() if module == name or module.endswith(f".{name}")), None)
    if not isinstance(asked, list) or len(asked) != tensor.n_rows:
        raise ArtifactError(
            f"{module} has {tensor.n_rows} trained rows, and {CONFIG} names "
            f"{len(asked) if isinstance(asked, list) else 'none'} in trainable_token_indices.",
            _SAVE,
        )
    return tuple(int(row) for row in asked)


def _require_finite(tensor: StoredTensor) -> None:
    import torch

    if tensor.dtype not in FLOATING:
        raise ArtifactError(f"{tensor.name} is stored as {tensor.dtype}, expected floating-point numbers.", _SAVE)
    for first in range(0, tensor.n_rows, _CHUNK_ROWS):
        if not torch.isfinite(tensor.rows(first, min(first + _CHUNK_ROWS, tensor.n_rows))).all():
            raise InputError(
                f"The adapter's {tensor.name} holds a NaN or an infinity: its training diverged.",
                "Use an earlier checkpoint, or train again with a lower learning rate.",
            )
