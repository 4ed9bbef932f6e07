"""The cap neuron: the cap's formula as one neuron of a gated MLP (design, section 4; docs/cap-neuron.md derives it).

A gated MLP computes `W_d (act(W_g x) * W_u x)` on `x = w * a / rho`, where `a` is the residual stream, `rho` its
root mean square and `w` the norm's weight. Add a neuron with

    gate row  beta * g,   g.x ~ (<a, v> - t) / rho
    up row    u,          u.x ~ rho / rho_mean
    down col  -alpha * rho_mean / beta * v

then `act(beta z) / beta -> max(0, z)` as beta grows, and the neuron adds `-alpha * max(0, <a, v> - t) * v`.
This module says what a neuron is and which models can hold one; fit.py finds `g` and `u`, insertion.py puts it in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_electric.core.artifact import read_json, write_atomic
from karma_electric.core.errors import InputError
from karma_electric.steer.prune import Removal
from karma_electric.steer.spec import Cap

if TYPE_CHECKING:
    import torch

FILE = "karma/cap_neurons.safetensors"  # in a folder of its own: vLLM loads every safetensors file beside the weights
_ARCHITECTURES = (
    "LlamaForCausalLM",
    "MistralForCausalLM",
    "Qwen2ForCausalLM",
    "Qwen3ForCausalLM",
    "Phi3ForCausalLM",
)
# act(beta z) / beta -> max(0, z): slope 1 far to the right, 0 far to the left
_RAMPS = (
    "silu",
    "swish",
    "relu",
    "gelu",
    "gelu_fast",
    "gelu_new",
    "gelu_python",
    "gelu_pytorch_tanh",
    "quick_gelu",
)
_PARTS = ("gate", "up", "down")
_HOOKS_INSTEAD = "Use the hooks instead: karma chat MODEL --cap CAP"


@dataclass(frozen=True)
class Neuron:
    """One cap neuron, and how well it fits calibration text that was left out of the fit.

    Attributes:
        gate, up: rows, float32 [hidden].
        down: column, float32 [hidden].
        alpha: the strength that `down` is for.
        r2_excess: R^2 of `max(0, <a, v> - t)` as the two maps give it.
        r2_rho: R^2 of `rho`, over the tokens above the threshold.
        ridge: strength of the penalty, as a fraction of the mean diagonal.
    """

    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor
    alpha: float
    r2_excess: float
    r2_rho: float
    ridge: float

    def at(self, alpha: float) -> Neuron:
        """The same neuron for another strength: its column is proportional to it."""
        return self if alpha == self.alpha else replace(self, down=self.down * (alpha / self.alpha), alpha=alpha)

    def fit(self) -> dict[str, float]:
        """For reports."""
        return {"r2_excess": self.r2_excess, "r2_rho": self.r2_rho, "ridge": self.ridge}


Neurons = dict[int, tuple[Neuron, ...]]  # block -> a neuron per cap that acts there, in the order of the caps
Removals = dict[int, tuple[Removal, ...]]  # block -> the neurons whose places they take, in order


def require_bakeable(config: Mapping[str, Any], caps: Sequence[Cap]) -> None:
    """Whether a model can hold these caps, from its config.json.

    Raises:
        InputError: it cannot; says why.
    """
    architecture = (config.get("architectures") or ["a model without a named architecture"])[0]
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "quantised")
        raise InputError(
            f"The weights are quantised ({method}): a row cannot be added to them.",
            "Bake the model it was quantised from, then quantise the result.",
        )
    if architecture not in _ARCHITECTURES:
        raise InputError(
            f"{architecture} cannot hold a cap neuron.", f"Known to: {', '.join(_ARCHITECTURES)}. {_HOOKS_INSTEAD}"
        )
    activation = config.get("hidden_act") or "silu"
    if activation not in _RAMPS:
        raise InputError(
            f"The MLPs' activation {activation!r} does not tend to a ramp, so no neuron can act like a cap.",
            f"Known to: {', '.join(_RAMPS)}. {_HOOKS_INSTEAD}",
        )
    for cap in caps:
        if cap.spec.site != "mlp":
            raise InputError(
                f"The cap is at the site {cap.spec.site!r}; only 'mlp' can be baked.", 'Set axis.site = "mlp".'
            )
        if not cap.spec.alpha > 0:
            raise InputError("The cap has alpha 0: there is nothing to bake.", "Give a strength above 0: --alpha 0.5")


def require_plain(source: Path) -> None:
    """Raise `InputError` if the checkpoint in a folder has its cap compiled in already."""
    if (source / FILE).exists():
        raise InputError(
            f"{source} has a cap compiled into the weights already; another would be fitted on what that one leaves.",
            f"Give the uncapped model ({source.parent / 'merged'}); several caps go in at once, with --with CAP2.",
        )


def read_config(source: Path) -> dict[str, Any]:
    """A checkpoint's config.json."""
    config: dict[str, Any] = read_json(source / "config.json")
    return config


def save_neurons(neurons: Neurons, removed: Removals | None, path: Path) -> None:
    """Keep rows and columns in float32, and what gave way to them: the record of what was baked."""
    from safetensors.torch import save

    tensors = {
        f"{layer}.{number}.{part}": getattr(neuron, part).contiguous()
        for layer, members in neurons.items()
        for number, neuron in enumerate(members)
        for part in _PARTS
    }
    fit = {str(layer): [{"alpha": n.alpha, **n.fit()} for n in members] for layer, members in neurons.items()}
    metadata = {"neurons": json.dumps(fit)}
    if removed is not None:
        tensors |= {
            f"{layer}.{number}.fold": removal.fold.contiguous()
            for layer, gone in removed.items()
            for number, removal in enumerate(gone)
        }
        gone_ = {str(layer): [[r.index, r.share] for r in gone] for layer, gone in removed.items()}
        metadata["removed"] = json.dumps(gone_)
    write_atomic(path, save(tensors, metadata))


def load_neurons(path: Path) -> tuple[Neurons, Removals | None]:
    """Read what `save_neurons` wrote."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        neurons = {
            int(layer): tuple(
                Neuron(*(file.get_tensor(f"{layer}.{number}.{part}") for part in _PARTS), **fit)
                for number, fit in enumerate(members)
            )
            for layer, members in json.loads(metadata["neurons"]).items()
        }
        removed = None
        if "removed" in metadata:
            removed = {
                int(layer): tuple(
                    Removal(index, file.get_tensor(f"{layer}.{number}.fold"), share)
                    for number, (index, share) in enumerate(gone)
                )
                for layer, gone in json.loads(metadata["removed"]).items()
            }
    return neurons, removed
