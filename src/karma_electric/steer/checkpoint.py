"""Writes a checkpoint with cap neurons in it: plain safetensors, shard by shard, that stock libraries load."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_electric.core.artifact import require_space, write_json
from karma_electric.steer.neuron import Neuron
from karma_electric.steer.prune import Removal

if TYPE_CHECKING:
    import torch

_MULTIPLE = 32  # Q8_0 and Q4_0 quantise rows in blocks of 32
_COPIED = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def write_baked(
    source: Path, neurons: Mapping[int, Neuron], out: Path, *, removed: Mapping[int, Removal] | None = None
) -> dict[str, Any]:
    """Write the checkpoint in `source` with cap neurons in it; memory of one shard.

    Appended (the default), every MLP grows to the next multiple of 32 above its size plus one, with zeros where there
    is no neuron, since `intermediate_size` is one number for all blocks. Replacing, the sizes stay.

    Args:
        source: a checkpoint folder.
        neurons: block -> neuron.
        out: an existing folder.
        removed: block -> the neuron whose place each takes; None appends.

    Returns:
        What was changed: `intermediate_size` before and after, `placement`, and the neurons replaced.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    old = int(config["intermediate_size"])
    new = old if removed is not None else (old + 1 + _MULTIPLE - 1) // _MULTIPLE * _MULTIPLE
    shards = sorted(source.glob("model*.safetensors"))
    require_space(out, int(1.1 * sum(shard.stat().st_size for shard in shards)))
    for shard in shards:
        with safe_open(shard, framework="pt") as file:
            tensors = {}
            for name in file.keys():  # noqa: SIM118 - not a mapping
                tensors[name] = _with_neuron(name, file.get_tensor(name), neurons, removed, old, new)
            save_file(tensors, out / shard.name, file.metadata())
    config["intermediate_size"] = new
    write_json(out / "config.json", config)
    others = (*source.glob("*.jinja"), *source.glob("*.safetensors.index.json"), *source.glob("tokenizer.model"))
    for file_path in (*(source / name for name in _COPIED if (source / name).exists()), *others):
        shutil.copyfile(file_path, out / file_path.name)
    changed: dict[str, Any] = {
        "intermediate_size": {"before": old, "after": new},
        "placement": "append" if removed is None else "replace",
    }
    if removed is not None:
        changed["replaced"] = {str(layer): removal.as_dict() for layer, removal in removed.items()}
    return changed


def _with_neuron(
    name: str,
    tensor: torch.Tensor,
    neurons: Mapping[int, Neuron],
    removed: Mapping[int, Removal] | None,
    old: int,
    new: int,
) -> torch.Tensor:
    """A weight of the checkpoint, with the neuron in it if it belongs to an MLP that has one."""
    import torch

    parts = name.split(".")
    if "mlp" not in parts or parts[-2] not in ("gate_proj", "up_proj", "down_proj"):
        return tensor
    layer, projection = int(parts[parts.index("layers") + 1]), parts[-2]
    neuron = neurons.get(layer)
    if removed is not None and neuron is None:
        return tensor
    index = old if removed is None else removed[layer].index
    if parts[-1] == "bias":  # Llama's mlp_bias; a cap neuron has none
        if projection == "down_proj":
            return tensor
        grown = torch.nn.functional.pad(tensor, (0, new - old))
        if neuron is not None:
            grown[index] = 0
        return grown
    if projection == "down_proj":  # [hidden, intermediate]
        if removed is not None:  # what the removed neuron did is taken over by the others
            taken_over = torch.outer(tensor[:, index].double(), removed[layer].fold)
            tensor = (tensor.double() + taken_over).to(tensor.dtype)
        grown = torch.zeros(tensor.shape[0], new, dtype=tensor.dtype)
        grown[:, :old] = tensor
        if neuron is not None:
            grown[:, index] = neuron.down.to(tensor.dtype)
        return grown
    grown = torch.zeros(new, tensor.shape[1], dtype=tensor.dtype)  # [intermediate, hidden]
    grown[:old] = tensor
    if neuron is not None:
        grown[index] = (neuron.gate if projection == "gate_proj" else neuron.up).to(tensor.dtype)
    return grown
