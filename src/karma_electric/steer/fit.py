"""Fits cap neurons: two ridge regressions per cap and block, chosen by the error of the neuron they make.

`g` and `u` (neuron.py) need no bias, since `1 / rho` is itself nearly linear in `x`. They are fitted on `x` itself, the
norm's weights included, so that the penalty keeps them off dimensions that the norm all but switches off: a huge
coefficient on a tiny input is exact in float32 and ruined by 8-bit weights or activations (figures: docs/log.md).

Where the gate is closed its value does not matter, so tokens far below the threshold get next to no weight; and tokens
of answers weigh more than those of prompts, which repeat the same system prompt over and over.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from karma_electric.core.errors import ArtifactError
from karma_electric.models.blocks import decoder_blocks
from karma_electric.steer.caps import capped_layers
from karma_electric.steer.gather import Gathered
from karma_electric.steer.neuron import Neuron, Neurons
from karma_electric.steer.prune import spare_neurons
from karma_electric.steer.spec import Cap

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from karma_electric.steer.neuron import Removals

RIDGES = (1e-2, 1e-3, 1e-4, 1e-5)
_CHECKED = 5  # every fifth conversation decides between ridge strengths
_MARGIN = 0.25  # in std(z): tokens this far below the threshold have half the weight of those above
_RESPONSE_WEIGHT = 4.0
_CHUNK = 4096  # tokens in float64 at a time


def fit_neurons(
    model: PreTrainedModel,
    caps: Sequence[Cap],
    gathered: Gathered,
    *,
    ridge: float | None = None,
    sharpness: float = 60.0,
) -> Neurons:
    """Fit a neuron per cap and capped block.

    Args:
        model: the model the activations are of.
        caps: caps at the site `mlp`.
        gathered: activations while all the caps act.
        ridge: strength, as a fraction of the mean diagonal of X^T X; None takes the one of `RIDGES` whose neuron is
            nearest to the cap on every fifth conversation, left out of the fit, and fits again on all.
        sharpness: beta in units of 1 / std(z).

    Raises:
        ArtifactError: no token is above some threshold, so there is nothing to fit.
    """
    blocks = decoder_blocks(model)
    found: Neurons = {}
    for layer in capped_layers(caps):
        norm: Any = blocks[layer].mlp_norm
        weight = norm.weight.detach().double().cpu()
        eps = float(getattr(norm, "variance_epsilon", getattr(norm, "eps", 1e-6)))
        found[layer] = tuple(
            _fit(gathered, layer, cap, weight, eps, ridge=ridge, sharpness=sharpness)
            for cap in caps
            if layer in cap.spec.layers
        )
    return found


def fit_removals(model: PreTrainedModel, caps: Sequence[Cap], gathered: Gathered) -> Removals:
    """The neurons that can best be spared in each capped block, one for every cap that acts there.

    Memory: a few [intermediate, intermediate] float64 matrices.
    """
    counts = {layer: sum(layer in cap.spec.layers for cap in caps) for layer in capped_layers(caps)}
    return spare_neurons(model, gathered.moments, counts)


@dataclass(frozen=True)
class _Targets:
    """What the two maps of one neuron should give, per token, float64 [tokens]."""

    rho: torch.Tensor
    z: torch.Tensor  # (<a, v> - t) / rho
    kind: torch.Tensor  # weight of a token by what it is of
    near: torch.Tensor  # the same for the gate: next to nothing far below the threshold

    @property
    def over(self) -> torch.Tensor:
        """Which tokens are above the threshold: the up row matters for them only."""
        return self.z > 0

    @property
    def excess(self) -> torch.Tensor:
        """max(0, <a, v> - t)."""
        return self.z.clamp_min(0.0) * self.rho


@dataclass
class _Sums:
    """X^T W X and X^T W y of the two regressions."""

    xx: torch.Tensor
    xz: torch.Tensor
    xx_over: torch.Tensor
    xr_over: torch.Tensor

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(*(mine + theirs for mine, theirs in zip(vars(self).values(), vars(other).values(), strict=True)))


def _fit(
    gathered: Gathered, layer: int, cap: Cap, weight: torch.Tensor, eps: float, *, ridge: float | None, sharpness: float
) -> Neuron:
    import torch

    a, v = gathered.streams[layer], cap.directions[layer].double()
    targets = _targets(a, v, cap.spec.thresholds[layer], eps, gathered.response, layer)
    checked = (gathered.conversation + 1) % _CHECKED == 0
    parts = [_sums(a, targets, weight, part) for part in (~checked, checked)]
    everything = parts[0] + parts[1]
    # both need tokens above the threshold: nothing can be fitted on one without, nor rated
    decides = all((targets.over & part).sum() > 1 for part in (~checked, checked))
    rated = checked if decides else torch.ones_like(checked)
    tried = (ridge,) if ridge is not None else RIDGES if decides else (RIDGES[len(RIDGES) // 2],)
    solved = [_solve(parts[0] if decides else everything, strength) for strength in tried]
    residuals = [_residuals(a[rated], _at(targets, rated), weight, *maps) for maps in solved]
    best = min(range(len(tried)), key=lambda i: residuals[i].loss)
    g, u = _solve(everything, tried[best])
    rho_mean = targets.rho[targets.over].mean()
    beta = sharpness / targets.z.std()
    return Neuron(
        gate=(beta * g).float(),
        up=(u / rho_mean).float(),
        down=(-cap.spec.alpha * rho_mean / beta * v).float(),
        alpha=cap.spec.alpha,
        r2_excess=residuals[best].r2_excess,
        r2_rho=residuals[best].r2_rho,
        ridge=tried[best],
    )


def _targets(a: torch.Tensor, v: torch.Tensor, t: float, eps: float, response: torch.Tensor, layer: int) -> _Targets:
    import torch

    rho = torch.cat([(part.double().pow(2).mean(-1) + eps).sqrt() for part in a.split(_CHUNK)])
    z = torch.cat([part.double() @ v - t for part in a.split(_CHUNK)]) / rho
    if (z > 0).sum() < 2:
        raise ArtifactError(
            f"No calibration token is above the threshold of block {layer}: there is nothing to fit.",
            "Lower axis.quantile and calibrate again.",
        )
    kind = torch.where(response, _RESPONSE_WEIGHT, 1.0).double()
    near = torch.sigmoid((z / z.std() + _MARGIN) * (3.0 / _MARGIN))
    return _Targets(rho=rho, z=z, kind=kind, near=kind * near)


def _at(targets: _Targets, chosen: torch.Tensor) -> _Targets:
    return _Targets(*(values[chosen] for values in vars(targets).values()))


def _sums(a: torch.Tensor, targets: _Targets, weight: torch.Tensor, chosen: torch.Tensor) -> _Sums:
    import torch

    hidden = a.shape[1]
    square, line = torch.zeros(hidden, hidden, dtype=torch.float64), torch.zeros(hidden, dtype=torch.float64)
    sums = _Sums(square, line, square.clone(), line.clone())
    for index in chosen.nonzero().squeeze(1).split(_CHUNK):
        part = _at(targets, index)
        x = weight * a[index].double() / part.rho.unsqueeze(1)
        weighted = x * part.near.unsqueeze(1)
        sums.xx += weighted.T @ x
        sums.xz += weighted.T @ part.z
        x, part = x[part.over], _at(part, part.over)
        weighted = x * part.kind.unsqueeze(1)
        sums.xx_over += weighted.T @ x
        sums.xr_over += weighted.T @ part.rho
    return sums


def _solve(sums: _Sums, ridge: float) -> tuple[torch.Tensor, torch.Tensor]:
    """`g` and `u`, float64 [hidden]; `g.x ~ z` and `u.x ~ rho`."""
    return _ridge_solution(sums.xx, sums.xz, ridge), _ridge_solution(sums.xx_over, sums.xr_over, ridge)


def _ridge_solution(xx: torch.Tensor, xy: torch.Tensor, ridge: float) -> torch.Tensor:
    import torch

    penalty = ridge * xx.diagonal().mean()
    solution: torch.Tensor = torch.linalg.solve(xx + penalty * torch.eye(len(xy), dtype=torch.float64), xy)
    return solution


@dataclass(frozen=True)
class _Residuals:
    loss: float  # weighted squared error of the excess
    r2_excess: float
    r2_rho: float


def _residuals(
    a: torch.Tensor, targets: _Targets, weight: torch.Tensor, g: torch.Tensor, u: torch.Tensor
) -> _Residuals:
    """How far `max(0, g.x) * u.x` is from the excess on some tokens."""
    import torch

    given, rho = [], []
    for part, norm in zip(a.split(_CHUNK), targets.rho.split(_CHUNK), strict=True):
        x = weight * part.double() / norm.unsqueeze(1)
        rho.append(x @ u)
        given.append((x @ g).clamp_min(0.0) * rho[-1])
    error = torch.cat(given) - targets.excess
    over = targets.over
    return _Residuals(
        loss=float((targets.kind * error.pow(2)).sum()),
        r2_excess=_r2(error, targets.excess),
        r2_rho=_r2((torch.cat(rho) - targets.rho)[over], targets.rho[over]),
    )


def _r2(error: torch.Tensor, values: torch.Tensor) -> float:
    """1 - residual / total sum of squares; where all values are the same, whether they are met."""
    residual, total = float(error.pow(2).sum()), float((values - values.mean()).pow(2).sum())
    return 1.0 - residual / total if total > 0 else float(residual == 0)
