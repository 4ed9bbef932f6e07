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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_electric.core.artifact import write_atomic
from karma_electric.core.errors import ArtifactError, InputError
from karma_electric.core.messages import Conversation
from karma_electric.models.blocks import decoder_blocks
from karma_electric.models.chat_template import conversation_ids
from karma_electric.steer.activations import Key, batches_by_length, picked, recording, right_padded, run_decoder
from karma_electric.steer.cap import capped
from karma_electric.steer.prune import Removal, moments_of, spare_neurons
from karma_electric.steer.spec import Cap

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

FILE = "karma/cap_neurons.safetensors"  # in a folder of its own: vLLM loads every safetensors file beside the weights
_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
RIDGES = (1e-2, 1e-3, 1e-4)  # weaker ones rest on dimensions that the norm all but switches off
_CHECKED = 5  # every fifth conversation decides between ridge strengths
_SLOPE = 1.0  # act(beta z) / beta -> max(0, slope * z): silu and gelu both have slope 1


@dataclass(frozen=True)
class Neuron:
    """One cap neuron, and how well its two linear maps fit the calibration activations.

    Attributes:
        gate, up: rows, float32 [hidden].
        down: column, float32 [hidden].
        r2_excess: R^2 of `(<a, v> - t) / rho`, over all tokens.
        r2_rho: R^2 of `rho`, over the tokens above the threshold.
        ridge: strength that was used, as a fraction of the mean diagonal.
    """

    gate: torch.Tensor
    up: torch.Tensor
    down: torch.Tensor
    r2_excess: float
    r2_rho: float
    ridge: float


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

    def merged(self, other: _Sums) -> _Sums:
        """The sums of both."""
        whole = _Sums(len(self.xz))
        for name, value in vars(self).items():
            setattr(whole, name, value + getattr(other, name))
        return whole


def fit_neurons(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cap: Cap,
    conversations: Sequence[Conversation],
    *,
    ridge: float | None = None,
    sharpness: float = 60.0,
    batch_tokens: int = 4096,
) -> dict[int, Neuron]:
    """Fit a neuron per capped block, on activations of the model while the cap's hooks act.

    Args:
        model: the model the cap was made for, uncapped.
        tokenizer: its tokenizer.
        cap: a cap at the site `mlp`.
        conversations: calibration text; every token but the first of each is used.
        ridge: strength, as a fraction of the mean diagonal of X^T X; None takes the one of `RIDGES` with the least
            error on every fifth conversation, left out of the fit, and fits again on all.
        sharpness: beta in units of 1 / std(z).
        batch_tokens: padded tokens per forward pass.

    Raises:
        InputError: the architecture cannot hold a cap neuron, or the cap is at another site.
        ArtifactError: no token is above some threshold, so there is nothing to fit.
    """
    require_bakeable(model, cap)
    norms = {layer: decoder_blocks(model)[layer].mlp_norm for layer in cap.spec.layers}
    checked = [] if ridge is not None else list(conversations[_CHECKED - 1 :: _CHECKED])
    fitted = [c for i, c in enumerate(conversations) if ridge is not None or (i + 1) % _CHECKED]
    parts = []
    for part in (fitted, checked):
        sums = {layer: _Sums(int(cap.directions[layer].numel())) for layer in cap.spec.layers}
        for batch in token_batches(model, tokenizer, cap, part, batch_tokens):
            for layer, activations in batch.items():
                v, t = cap.directions[layer].double(), cap.spec.thresholds[layer]
                sums[layer].add(activations.double(), v, t, norms[layer])
        parts.append(sums)
    neurons = {}
    for layer in cap.spec.layers:
        fit, check = (sums[layer] for sums in parts)
        strength = ridge if ridge is not None else _best_ridge(fit, check)
        neurons[layer] = _solve(fit.merged(check), cap, layer, strength, sharpness)
    return neurons


def _best_ridge(fit: _Sums, check: _Sums) -> float:
    """The penalty with the least error on conversations it was not fitted on; without any, the middle one."""
    if not check.z[0]:
        return RIDGES[len(RIDGES) // 2]
    return min(RIDGES, key=lambda ridge: _residual(check.xx, check.xz, check.z, _ridge_solution(fit.xx, fit.xz, ridge)))


def fit_removals(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cap: Cap,
    conversations: Sequence[Conversation],
    *,
    batch_tokens: int = 4096,
) -> dict[int, Removal]:
    """The neuron that can best be spared in each capped block, for a cap neuron that replaces instead of growing.

    Arguments as for `fit_neurons`. Memory: one [intermediate, intermediate] float64 matrix per capped block.
    """
    require_bakeable(model, cap)
    keep: list[Any] = [None]
    with moments_of(model, cap.spec.layers, keep) as moments:
        for _ in token_batches(model, tokenizer, cap, conversations, batch_tokens, keep):
            pass
    return spare_neurons(model, moments, cap.spec.layers)


def token_batches(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cap: Cap,
    conversations: Sequence[Conversation],
    batch_tokens: int,
    keep: list[Any] | None = None,
) -> Iterable[dict[int, torch.Tensor]]:
    """Residual streams [tokens, hidden] at the capped blocks, batch by batch, while the cap acts.

    `keep[0]` is, during each forward pass, what picks the same tokens from other activations; None in between.
    """
    sequences = [conversation_ids(tokenizer, c) for c in conversations]
    for batch in batches_by_length([len(s) for s in sequences], batch_tokens):
        ids, mask = right_padded([sequences[i] for i in batch], int(tokenizer.pad_token_id or 0), model.device)
        chosen = mask.bool()
        chosen[:, 0] = False  # the attention sink: its norm is many times the rest
        keys: list[Key] = [("mlp", layer) for layer in cap.spec.layers]
        pick = picked(chosen)
        with capped(model, cap), recording(model, keys, pick) as seen:
            if keep is not None:
                keep[0] = pick
            run_decoder(model, ids, mask)
            if keep is not None:
                keep[0] = None
        yield {layer: values for (_, layer), values in seen.items()}


def _solve(sums: _Sums, cap: Cap, layer: int, ridge: float, sharpness: float) -> Neuron:

    if sums.r_over[0] < 2:
        raise ArtifactError(
            f"No calibration token is above the threshold of block {layer}: there is nothing to fit.",
            "Lower axis.quantile and calibrate again.",
        )
    g, u = _ridge_solution(sums.xx, sums.xz, ridge), _ridge_solution(sums.xx_over, sums.xr_over, ridge)
    rho_mean = sums.r_over[1] / sums.r_over[0]
    spread = (sums.z[2] / sums.z[0] - (sums.z[1] / sums.z[0]).pow(2)).sqrt()
    beta = sharpness / spread
    return Neuron(
        gate=(beta * g).float(),
        up=(u / rho_mean).float(),
        down=(-cap.spec.alpha * rho_mean / (beta * _SLOPE) * cap.directions[layer].double()).float(),
        r2_excess=_r2(sums.xx, sums.xz, sums.z, g),
        r2_rho=_r2(sums.xx_over, sums.xr_over, sums.r_over, u),
        ridge=ridge,
    )


def _ridge_solution(xx: torch.Tensor, xy: torch.Tensor, ridge: float) -> torch.Tensor:
    import torch

    identity = torch.eye(len(xy), dtype=torch.float64)
    solution: torch.Tensor = torch.linalg.solve(xx + ridge * xx.diagonal().mean() * identity, xy)
    return solution


def _residual(xx: torch.Tensor, xy: torch.Tensor, y: torch.Tensor, coefficients: torch.Tensor) -> float:
    """Residual sum of squares, from the sums. y: count, sum, sum of squares."""
    return float(y[2] - 2 * coefficients @ xy + coefficients @ xx @ coefficients)


def _r2(xx: torch.Tensor, xy: torch.Tensor, y: torch.Tensor, coefficients: torch.Tensor) -> float:
    """1 - residual / total sum of squares, from the sums. y: count, sum, sum of squares."""
    total = y[2] - y[1].pow(2) / y[0]
    return float(1 - _residual(xx, xy, y, coefficients) / total)


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
    fit = {str(layer): [n.r2_excess, n.r2_rho, n.ridge] for layer, n in neurons.items()}
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
