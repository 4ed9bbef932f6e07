"""Attaching a cap to a model: `with capped(model, cap, alpha=0.5): ...`

What is asked for is checked when `capped` is called, and that the hooks act when the context is entered, before any of
them is attached to stay. The formula and the hooks are in hooks.py; compiling the same cap into the weights is
neuron.py's business.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from types import TracebackType
from typing import TYPE_CHECKING

from karma_electric.core.errors import ArtifactError, InputError
from karma_electric.models.blocks import Layout, context_length, decoder_blocks, hidden_size
from karma_electric.steer.hooks import LayerCap, attached
from karma_electric.steer.meter import CapMeter
from karma_electric.steer.self_test import require_acting
from karma_electric.steer.spec import Cap

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


def capped(
    model: PreTrainedModel,
    cap: Cap,
    *,
    alpha: float | Sequence[float] | torch.Tensor | None = None,
    blocks_path: str | Layout | None = None,
) -> AbstractContextManager[CapMeter]:
    """Cap a model's activations while the context is open; entering gives a meter of what was capped.

    The context may be entered again, also while it is open. Caps nest: at the site `mlp` all of them read the same
    stream in front of the MLP and their corrections add up; at `block` each sees what the ones opened before it left.

    Args:
        model: a model of the axis's shape.
        cap: thresholds and directions.
        alpha: strength, from 0 (off) to 1 (hard): a number, or one per row of the batch; None takes the spec's.
            Rows of alpha 0 keep every bit; if all are 0, nothing is attached.
        blocks_path: dotted path to the decoder blocks of a model of unknown layout, or its Layout.

    Raises:
        InputError: alpha outside [0, 1], or a layout that is not known. While the model runs: another number of alphas
            than rows.
        ArtifactError: the axis has another shape than the model.
        KarmaError: on entering, the hooks do not act on this model.
    """
    return _Capped(model, cap, _strength(cap.spec.alpha if alpha is None else alpha), blocks_path)


class _Capped(AbstractContextManager[CapMeter]):
    """A cap and a model that go together."""

    def __init__(
        self, model: PreTrainedModel, cap: Cap, alpha: float | torch.Tensor, layout: str | Layout | None
    ) -> None:
        self._model = model
        self._cap = cap
        self._alpha = alpha
        self._blocks = decoder_blocks(model, layout)
        self._open: list[ExitStack] = []
        require_shape(cap, len(self._blocks), hidden_size(model))
        for layer in cap.spec.layers:
            self._blocks[layer].hooked(cap.spec.site)  # raises where the layout is not known

    def __enter__(self) -> CapMeter:
        meter = CapMeter(context_length(self._model))
        with ExitStack() as stack:
            if _acts(self._alpha):
                spec = self._cap.spec
                directions = {layer: self._cap.directions[layer] for layer in spec.layers}
                require_acting(self._model, self._blocks, spec.site, directions)
                caps = {layer: self._layer_cap(layer) for layer in sorted(spec.layers)}
                stack.enter_context(attached(self._blocks, spec.site, caps))
                meter.watch(list(caps.values()))
            self._open.append(stack.pop_all())
        return meter

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.pop().close()

    def _layer_cap(self, layer: int) -> LayerCap:
        spec = self._cap.spec
        scale = self._blocks[layer].mlp_scale if spec.site == "mlp" else 1.0
        return LayerCap(self._cap.directions[layer], spec.thresholds[layer], self._alpha, scale)


def _acts(alpha: float | torch.Tensor) -> bool:
    return bool((alpha > 0).any()) if not isinstance(alpha, float) else alpha > 0


def _strength(alpha: float | Sequence[float] | torch.Tensor) -> float | torch.Tensor:
    """A number, or a float32 tensor [rows] on the CPU."""
    import torch

    try:
        values = torch.as_tensor(alpha, dtype=torch.float32, device="cpu")
    except (TypeError, ValueError, RuntimeError):
        values = torch.tensor(float("nan"))
    if values.dim() > 1 or not values.numel() or not bool(((values >= 0) & (values <= 1)).all()):
        raise InputError(
            f"alpha is {alpha}, expected a number from 0 (off) to 1 (hard), or one per row of the batch.",
            "0.5 is the soft cap.",
        )
    return values if values.dim() else float(alpha)  # type: ignore[arg-type]


def require_shape(cap: Cap, n_layers: int, hidden: int) -> None:
    """Raise `ArtifactError` unless a cap is for a model of this shape."""
    width = int(next(iter(cap.directions.values())).shape[0])
    if width != hidden or max(cap.spec.layers) >= n_layers:
        raise ArtifactError(
            f"The cap is for hidden size {width} and blocks {cap.spec.layers[0]}-{cap.spec.layers[-1]}, "
            f"the model has hidden size {hidden} and blocks 0-{n_layers - 1}.",
            "Use the cap that was made for this model (an axis does not transfer).",
        )
