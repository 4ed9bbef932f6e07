"""Compiles the cap into the weights: one extra neuron per capped MLP, in a plain checkpoint (design, section 4).

A gated MLP computes `W_d (act(W_g x) * W_u x)` on `x = w * a / rho`, where `a` is the residual stream, `rho` its
root mean square and `w` the norm's weight. Add a neuron with

    gate row  beta * g,   g.x ~ (<a, v> - t) / rho
    up row    u,          u.x ~ rho / rho_mean
    down col  -alpha * rho_mean / beta * v

then `act(beta z) / beta -> max(0, z)` as beta grows, and the neuron adds `-alpha * max(0, <a, v> - t) * v`.
`g` and `u` are ridge regressions on calibration activations: no bias is needed, since `1 / rho` is itself nearly
linear in `x`. They are fitted on `x` itself, the norm's weights included, so that the penalty keeps them off
dimensions that the norm all but switches off: a huge coefficient on a tiny input is exact in float32 and ruined by
8-bit weights or activations (docs/log.md has the figures).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_electric.core.artifact import require_space, write_atomic, write_json
from karma_electric.core.errors import ArtifactError, InputError
from karma_electric.core.messages import Conversation
from karma_electric.models.blocks import decoder_blocks
from karma_electric.models.chat_template import conversation_ids
from karma_electric.steer.activations import Key, batches_by_length, picked, recording, right_padded, run_decoder
from karma_electric.steer.cap import Cap, capped

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FILE = "karma/cap_neurons.safetensors"  # in a folder of its own: vLLM loads every safetensors file beside the weights
_MULTIPLE = 32  # Q8_0 and Q4_0 quantise rows in blocks of 32
_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
_SLOPE = 1.0  # act(beta z) / beta -> max(0, slope * z): silu and gelu both have slope 1


@dataclass(frozen=True)
class Neuron:
    """One cap neuron, and how well its two linear maps fit the calibration activations.

    Attributes:
        gate, up: rows, float32 [hidden].
        down: column, float32 [hidden].
        r2_excess: R^2 of `(<a, v> - t) / rho`, over all tokens.
        r2_rho: R^2 of `rho`, over the tokens above the threshold.
    """

    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor
    r2_excess: float
    r2_rho: float


class _Sums:
    """Streaming sums for one block's two regressions, in float64: memory does not grow with the text."""

    def __init__(self, hidden: int) -> None:
        import torch

        self.xx = torch.zeros(hidden, hidden, dtype=torch.float64)  # over all tokens
        self.xz = torch.zeros(hidden, dtype=torch.float64)
        self.z = torch.zeros(3, dtype=torch.float64)  # count, sum, sum of squares
        self.xx_over = torch.zeros(hidden, hidden, dtype=torch.float64)  # over tokens above the threshold
        self.xr_over = torch.zeros(hidden, dtype=torch.float64)
        self.r_over = torch.zeros(3, dtype=torch.float64)

    def add(self, a: torch.Tensor, v: torch.Tensor, t: float, norm: Any) -> None:
        """Add tokens: a is [tokens, hidden], the residual stream in float64; norm is the one in front of the MLP."""
        import torch

        rho = (a.pow(2).mean(-1) + _eps(norm)).sqrt()
        x = norm.weight.detach().double().cpu() * a / rho.unsqueeze(-1)
        z = (a @ v - t) / rho
        self.xx += x.T @ x
        self.xz += x.T @ z
        self.z += torch.stack([torch.tensor(float(len(z)), dtype=torch.float64), z.sum(), z.pow(2).sum()])
        over = z > 0
        x, rho = x[over], rho[over]
        self.xx_over += x.T @ x
        self.xr_over += x.T @ rho
        self.r_over += torch.stack([torch.tensor(float(len(rho)), dtype=torch.float64), rho.sum(), rho.pow(2).sum()])


def fit_neurons(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cap: Cap,
    conversations: Sequence[Conversation],
    *,
    ridge: float = 1e-4,
    sharpness: float = 60.0,
    batch_tokens: int = 4096,
) -> dict[int, Neuron]:
    """Fit a neuron per capped block, on activations of the model while the cap's hooks act.

    Args:
        model: the model the cap was made for, uncapped.
        tokenizer: its tokenizer.
        cap: a cap at the site `mlp`.
        conversations: calibration text; every token but the first of each is used.
        ridge: strength, as a fraction of the mean diagonal of X^T X.
        sharpness: beta in units of 1 / std(z).
        batch_tokens: padded tokens per forward pass.

    Raises:
        InputError: the architecture cannot hold a cap neuron, or the cap is at another site.
        ArtifactError: no token is above some threshold, so there is nothing to fit.
    """
    require_bakeable(model, cap)
    norms = {layer: decoder_blocks(model)[layer].mlp_norm for layer in cap.spec.layers}
    sums = {layer: _Sums(int(cap.directions[layer].numel())) for layer in cap.spec.layers}
    for batch in _token_batches(model, tokenizer, cap, conversations, batch_tokens):
        for layer, activations in batch.items():
            v, t = cap.directions[layer].double(), cap.spec.thresholds[layer]
            sums[layer].add(activations.double(), v, t, norms[layer])
    return {layer: _solve(sums[layer], cap, layer, ridge, sharpness) for layer in cap.spec.layers}


def _token_batches(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cap: Cap,
    conversations: Sequence[Conversation],
    batch_tokens: int,
) -> Iterable[dict[int, torch.Tensor]]:
    sequences = [conversation_ids(tokenizer, c) for c in conversations]
    for batch in batches_by_length([len(s) for s in sequences], batch_tokens):
        ids, mask = right_padded([sequences[i] for i in batch], int(tokenizer.pad_token_id or 0), model.device)
        chosen = mask.bool()
        chosen[:, 0] = False  # the attention sink: its norm is many times the rest
        keys: list[Key] = [("mlp", layer) for layer in cap.spec.layers]
        with capped(model, cap), recording(model, keys, picked(chosen)) as seen:
            run_decoder(model, ids, mask)
        yield {layer: values for (_, layer), values in seen.items()}


def _solve(sums: _Sums, cap: Cap, layer: int, ridge: float, sharpness: float) -> Neuron:
    import torch

    if sums.r_over[0] < 2:
        raise ArtifactError(
            f"No calibration token is above the threshold of block {layer}: there is nothing to fit.",
            "Lower axis.quantile and calibrate again.",
        )
    identity = torch.eye(len(sums.xz), dtype=torch.float64)

    def solve(xx: torch.Tensor, xy: torch.Tensor) -> torch.Tensor:
        solution: torch.Tensor = torch.linalg.solve(xx + ridge * xx.diagonal().mean() * identity, xy)
        return solution

    g, u = solve(sums.xx, sums.xz), solve(sums.xx_over, sums.xr_over)
    rho_mean = sums.r_over[1] / sums.r_over[0]
    spread = (sums.z[2] / sums.z[0] - (sums.z[1] / sums.z[0]).pow(2)).sqrt()
    beta = sharpness / spread
    return Neuron(
        gate=(beta * g).float(),
        up=(u / rho_mean).float(),
        down=(-cap.spec.alpha * rho_mean / (beta * _SLOPE) * cap.directions[layer].double()).float(),
        r2_excess=_r2(sums.xx, sums.xz, sums.z, g),
        r2_rho=_r2(sums.xx_over, sums.xr_over, sums.r_over, u),
    )


def _r2(xx: torch.Tensor, xy: torch.Tensor, y: torch.Tensor, coefficients: torch.Tensor) -> float:
    """1 - residual / total sum of squares, from the sums. y: count, sum, sum of squares."""
    residual = y[2] - 2 * coefficients @ xy + coefficients @ xx @ coefficients
    total = y[2] - y[1].pow(2) / y[0]
    return float(1 - residual / total)


def require_bakeable(model: PreTrainedModel, cap: Cap) -> None:
    """Raise `InputError` unless the model's MLPs can hold this cap."""
    architecture = type(model).__name__
    if architecture not in _ARCHITECTURES:
        raise InputError(
            f"{architecture} cannot hold a cap neuron.",
            f"Known to: {', '.join(_ARCHITECTURES)}. Use the hooks instead: karma chat MODEL --cap CAP",
        )
    if cap.spec.site != "mlp":
        raise InputError(
            f"The cap is at the site {cap.spec.site!r}; only 'mlp' can be baked.", 'Set axis.site = "mlp".'
        )


def save_neurons(neurons: dict[int, Neuron], path: Path) -> None:
    """Keep the fitted rows and columns in float32, with their R^2 as metadata: the record of what was baked."""
    from safetensors.torch import save

    tensors = {
        f"{layer}.{part}": getattr(n, part).contiguous()
        for layer, n in neurons.items()
        for part in ("gate", "up", "down")
    }
    fit = {str(layer): [n.r2_excess, n.r2_rho] for layer, n in neurons.items()}
    write_atomic(path, save(tensors, {"r2": json.dumps(fit)}))


def load_neurons(path: Path) -> dict[int, Neuron]:
    """Read what `save_neurons` wrote."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        fit = json.loads(file.metadata()["r2"])
        return {
            int(layer): Neuron(*(file.get_tensor(f"{layer}.{part}") for part in ("gate", "up", "down")), *r2)
            for layer, r2 in fit.items()
        }


def _eps(norm: Any) -> float:
    return float(getattr(norm, "variance_epsilon", getattr(norm, "eps", 1e-6)))


def write_baked(source: Path, neurons: dict[int, Neuron], out: Path) -> dict[str, Any]:
    """Write the checkpoint in `source` with the neurons appended, as stock safetensors, shard by shard.

    Every MLP grows to the next multiple of 32 above its size plus one, with zeros where there is no neuron, since
    `intermediate_size` is one number for all blocks. Returns what was changed.
    """
    from safetensors import safe_open
    from safetensors.torch import save_file

    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    old = int(config["intermediate_size"])
    new = (old + 1 + _MULTIPLE - 1) // _MULTIPLE * _MULTIPLE
    shards = sorted(source.glob("model*.safetensors"))
    require_space(out, int(1.1 * sum(shard.stat().st_size for shard in shards)))
    for shard in shards:
        with safe_open(shard, framework="pt") as file:
            tensors = {name: _grown(name, file.get_tensor(name), neurons, old, new) for name in file.keys()}  # noqa: SIM118
            save_file(tensors, out / shard.name, file.metadata())
    config["intermediate_size"] = new
    write_json(out / "config.json", config)
    for name in (
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
    ):
        if (source / name).exists():
            shutil.copyfile(source / name, out / name)
    for extra in (
        *source.glob("*.jinja"),
        *source.glob("*.safetensors.index.json"),
        *source.glob("tokenizer.model"),
    ):
        shutil.copyfile(extra, out / extra.name)
    return {
        "intermediate_size": {"before": old, "after": new},
        "placement": "append",
    }


def _grown(name: str, tensor: torch.Tensor, neurons: dict[int, Neuron], old: int, new: int) -> torch.Tensor:
    """A weight of the checkpoint, grown if it belongs to an MLP."""
    import torch

    parts = name.split(".")
    if "mlp" not in parts or parts[-2] not in ("gate_proj", "up_proj", "down_proj"):
        return tensor
    layer, projection = int(parts[parts.index("layers") + 1]), parts[-2]
    if parts[-1] == "bias":  # Llama's mlp_bias; a cap neuron has none
        return tensor if projection == "down_proj" else torch.nn.functional.pad(tensor, (0, new - old))
    neuron = neurons.get(layer)
    if projection == "down_proj":  # [hidden, intermediate]
        grown = torch.zeros(tensor.shape[0], new, dtype=tensor.dtype)
        grown[:, :old] = tensor
        if neuron is not None:
            grown[:, old] = neuron.down.to(tensor.dtype)
        return grown
    grown = torch.zeros(new, tensor.shape[1], dtype=tensor.dtype)  # [intermediate, hidden]
    grown[:old] = tensor
    if neuron is not None:
        grown[old] = (neuron.gate if projection == "gate_proj" else neuron.up).to(tensor.dtype)
    return grown
