"""Puts cap neurons into the weights of an MLP: one tensor at a time, in memory or on the way to a file.

Appended, a neuron takes the next free row; replacing, the place of a neuron that gives way, whose output the others
take over. Which tensors there are, and where they are stored, is the caller's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from karma_electric.models.blocks import decoder_blocks
from karma_electric.steer.neuron import Neuron, Neurons, Removals
from karma_electric.steer.prune import Removal

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_MULTIPLE = 32  # Q8_0 and Q4_0 quantise rows in blocks of 32
_PROJECTIONS = ("gate_proj", "up_proj", "gate_up_proj", "down_proj")


@dataclass(frozen=True)
class Insertion:
    """Neurons, and where they go.

    Attributes:
        neurons: block -> its neurons.
        removed: block -> those that give way, as many; None appends.
        old: the MLPs' `intermediate_size`.
    """

    neurons: Neurons
    removed: Removals | None
    old: int

    @property
    def new(self) -> int:
        """`intermediate_size` afterwards: one number for all blocks, so appending pads the others with zeros."""
        if self.removed is not None:
            return self.old
        most = max((len(members) for members in self.neurons.values()), default=1)
        return (self.old + most + _MULTIPLE - 1) // _MULTIPLE * _MULTIPLE

    def grown(self, shape: tuple[int, ...], name: str) -> tuple[int, ...]:
        """Shape of a tensor of the checkpoint afterwards."""
        place = _place(name)
        if place is None or (place.projection == "down_proj" and place.is_bias):
            return shape
        if place.projection == "down_proj":
            return (shape[0], self.new)
        parts = 2 if place.projection == "gate_up_proj" else 1
        return (parts * self.new, *shape[1:])

    def changes(self, name: str) -> bool:
        """Whether a tensor of the checkpoint is touched at all."""
        place = _place(name)
        return place is not None and (self.new != self.old or place.layer in self.neurons)

    def apply(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the checkpoint, with the neurons in it if it belongs to an MLP; of the same type."""
        import torch

        place = _place(name)
        if place is None or not self.changes(name):
            return tensor
        neurons = self.neurons.get(place.layer, ())
        removed = () if self.removed is None else self.removed.get(place.layer, ())
        indices = [r.index for r in removed] if self.removed is not None else range(self.old, self.old + len(neurons))
        if place.projection == "down_proj":
            return tensor if place.is_bias else self._down(tensor, neurons, removed, indices)
        if place.projection == "gate_up_proj":  # Phi-3: the gate's rows, then the up rows
            gate, up = tensor.chunk(2)
            both = [
                self._rows(gate, [n.gate for n in neurons], indices, place),
                self._rows(up, [n.up for n in neurons], indices, place),
            ]
            return torch.cat(both)
        rows = [n.gate if place.projection == "gate_proj" else n.up for n in neurons]
        return self._rows(tensor, rows, indices, place)

    def _rows(
        self, tensor: torch.Tensor, rows: Sequence[torch.Tensor], indices: Sequence[int], place: _Place
    ) -> torch.Tensor:
        grown = tensor.new_zeros(self.new, *tensor.shape[1:])  # [intermediate, hidden], or a bias [intermediate]
        grown[: self.old] = tensor
        for index, row in zip(indices, rows, strict=True):
            grown[index] = 0 if place.is_bias else row.to(tensor)  # a cap neuron has no bias
        return grown

    def _down(
        self, tensor: torch.Tensor, neurons: Sequence[Neuron], removed: Sequence[Removal], indices: Sequence[int]
    ) -> torch.Tensor:
        """[hidden, intermediate]."""
        import torch

        grown = tensor.new_zeros(tensor.shape[0], self.new)
        if removed:  # in float64 through all of them: rounded once
            columns = tensor.double()
            for removal in removed:
                columns = columns + torch.outer(columns[:, removal.index], removal.fold.to(columns))
            tensor = columns.to(tensor.dtype)
        grown[:, : self.old] = tensor
        for index, neuron in zip(indices, neurons, strict=True):
            grown[:, index] = neuron.down.to(tensor)
        return grown


@dataclass(frozen=True)
class _Place:
    layer: int
    projection: str
    is_bias: bool


def _place(name: str) -> _Place | None:
    """Which block's MLP a tensor belongs to: `model.layers.3.mlp.down_proj.weight`."""
    parts = name.split(".")
    if "mlp" not in parts or "layers" not in parts or len(parts) < 2 or parts[-2] not in _PROJECTIONS:
        return None
    return _Place(int(parts[parts.index("layers") + 1]), parts[-2], parts[-1] == "bias")


def insert_in_memory(model: PreTrainedModel, insertion: Insertion, stored: torch.dtype) -> None:
    """Change a model's capped MLPs to what they would be in a checkpoint that is stored in `stored`.

    The same function as the checkpoint, except that MLPs without a neuron do not grow by zeros.
    """
    import torch

    blocks = decoder_blocks(model)
    for layer in insertion.neurons:
        for child, projection in blocks[layer].mlp.named_children():
            if child not in _PROJECTIONS:
                continue
            for kind, parameter in list(projection.named_parameters()):
                name = f"layers.{layer}.mlp.{child}.{kind}"
                changed = insertion.apply(name, parameter.detach().to(stored)).to(parameter)
                setattr(projection, kind, torch.nn.Parameter(changed, requires_grad=False))
