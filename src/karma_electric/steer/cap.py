"""The activation cap: a ceiling on the residual stream along the axis, as forward hooks.

    h <- h - alpha * max(0, <h, v> - t) * v        (design, section 4; after the Assistant Axis, arXiv 2601.10387)

alpha 0 is off, 0.5 soft, 1 hard. The dot product and the threshold are float32 whatever the model's type.
Compiling the same cap into the weights is neuron.py's business.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

from karma_electric.core.errors import ArtifactError, InputError, KarmaError
from karma_electric.models.blocks import Block, decoder_blocks, hidden_size
from karma_electric.steer.spec import Cap

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_REPORT = "This is a layout the hooks do not reach: please report it with the model's name."


class CapMeter:
    """What the hooks saw: per capped block, which positions were above the threshold, call by call."""

    def __init__(self, layers: Sequence[int]) -> None:
        self.active: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}  # each [batch, seq], bool

    def response_rates(self, lengths: Sequence[int]) -> list[float]:
        """Cap rate of each row over its own response tokens.

        The first call of a block is the prompt; the ones after it are the response tokens that were fed back, so
        the last token of a response, which is never fed back, is not counted.
        """
        import torch

        per_block = [torch.cat(calls[1:], dim=1) for calls in self.active.values() if len(calls) > 1]
        if not per_block:
            return [0.0 for _ in lengths]
        active = torch.stack(per_block).float().mean(0)  # [batch, response]
        return [float(active[row, :length].mean()) if length else 0.0 for row, length in enumerate(lengths)]


def excess(h: torch.Tensor, v: torch.Tensor, t: float) -> torch.Tensor:
    """`max(0, <h, v> - t)` in float32. h: [..., hidden], v: [hidden]; returns [...]."""
    return (h.float() @ v - t).clamp_min(0.0)


def corrected(h: torch.Tensor, over: torch.Tensor, v: torch.Tensor, alpha: float | torch.Tensor) -> torch.Tensor:
    """`h - alpha * over * v`, computed in float32 and rounded back. alpha: a number, or [batch]."""
    import torch

    strength = alpha.view(-1, *[1] * (over.dim() - 1)) if isinstance(alpha, torch.Tensor) else alpha
    return (h.float() - (strength * over).unsqueeze(-1) * v).to(h.dtype)


@contextlib.contextmanager
def capped(
    model: PreTrainedModel,
    cap: Cap,
    *,
    alpha: float | Sequence[float] | None = None,
    blocks_path: str | None = None,
) -> Iterator[CapMeter]:
    """Cap a model's activations while the context is open.

    Args:
        model: a model of the axis's shape.
        cap: thresholds and directions.
        alpha: strength, or one per row of the batch; None takes the spec's. 0 attaches nothing at all.
        blocks_path: dotted path to the decoder blocks of a model of unknown layout.

    Raises:
        ArtifactError: the axis has another shape than the model.
        InputError: alpha outside [0, 1].
        KarmaError: the hooks do not act on this model (checked before the context opens).
    """
    import torch

    strengths = [cap.spec.alpha if alpha is None else alpha] if not isinstance(alpha, Sequence) else list(alpha)
    if not all(0.0 <= float(a) <= 1.0 for a in strengths):
        raise InputError(f"alpha is {alpha}, expected a number from 0 (off) to 1 (hard).", "0.5 is the soft cap.")
    blocks = decoder_blocks(model, blocks_path)
    _require_shape(cap, len(blocks), hidden_size(model))
    meter = CapMeter(cap.spec.layers)
    if not any(strengths):
        yield meter
        return
    strength: float | torch.Tensor = (
        torch.tensor(strengths, dtype=torch.float32, device=model.device)
        if isinstance(alpha, Sequence)
        else float(strengths[0])
    )
    _self_test(model, cap, blocks)
    with _attached(cap, blocks, strength, meter.active, cap.spec.thresholds):
        yield meter


def _require_shape(cap: Cap, n_layers: int, hidden: int) -> None:
    width = int(next(iter(cap.directions.values())).shape[0])
    if width != hidden or max(cap.spec.layers) >= n_layers:
        raise ArtifactError(
            f"The cap is for hidden size {width} and blocks {cap.spec.layers[0]}-{cap.spec.layers[-1]}, "
            f"the model has hidden size {hidden} and blocks 0-{n_layers - 1}.",
            "Use the cap that was made for this model (an axis does not transfer).",
        )


@contextlib.contextmanager
def _attached(
    cap: Cap,
    blocks: Sequence[Block],
    alpha: float | torch.Tensor,
    record: dict[int, list[torch.Tensor]] | None,
    thresholds: dict[int, float],
) -> Iterator[None]:
    make = _mlp_hooks if cap.spec.site == "mlp" else _block_hooks
    handles: list[Any] = []
    _forget_compiled()
    try:
        for layer in cap.spec.layers:
            device = next(blocks[layer].module.parameters()).device
            seen = None if record is None else record[layer]
            strength = alpha.to(device) if not isinstance(alpha, float) else alpha  # the model may be split
            handles += make(blocks[layer], cap.directions[layer].to(device), thresholds[layer], strength, seen)
        yield
    finally:
        for handle in handles:
            handle.remove()
        _forget_compiled()


def _forget_compiled() -> None:
    """Make compiled models look at their hooks again.

    torch.compile does not guard on hooks: what was compiled before a cap was attached would run on without it, and
    what was compiled under a cap would keep it. The next call compiles again.
    """
    dynamo = sys.modules.get("torch._dynamo")
    if dynamo is not None and dynamo.utils.counters["stats"].pop("unique_graphs", 0):
        dynamo.reset()


def _mlp_hooks(
    block: Block, v: torch.Tensor, t: float, alpha: float | torch.Tensor, seen: list[torch.Tensor] | None
) -> list[Any]:
    """Read the residual stream in front of the MLP's norm, add the correction to what the MLP adds."""
    over: list[torch.Tensor] = []

    def read(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        over[:] = [excess(inputs[0], v, t)]
        if seen is not None:
            seen.append(over[0] > 0)

    def write(_: Any, __: Any, output: torch.Tensor) -> torch.Tensor:
        if not over:
            raise KarmaError("The norm in front of an MLP is called past its hooks; nothing was capped.", _REPORT)
        return corrected(output, over.pop(), v, alpha)

    return [block.mlp_norm.register_forward_pre_hook(read), block.mlp_added.register_forward_hook(write)]


def _block_hooks(
    block: Block, v: torch.Tensor, t: float, alpha: float | torch.Tensor, seen: list[torch.Tensor] | None
) -> list[Any]:
    """Cap the block's own output, a tensor in transformers 5 and the first of a tuple before."""

    def write(_: Any, __: Any, output: Any) -> Any:
        hidden = output[0] if isinstance(output, tuple) else output
        over = excess(hidden, v, t)
        if seen is not None:
            seen.append(over > 0)
        new = corrected(hidden, over, v, alpha)
        return (new, *output[1:]) if isinstance(output, tuple) else new

    return [block.module.register_forward_hook(write)]


def _self_test(model: PreTrainedModel, cap: Cap, blocks: Sequence[Block]) -> None:
    """Fail closed: with a threshold far below everything, a forward pass must change at each capped block.

    One block at a time, since what one block changes changes all that come after it.
    """
    tested = cast("set[int]", model.__dict__.setdefault("_karma_cap_tested", set()))
    key = hash((cap.spec.site, cap.spec.layers))
    if key in tested:
        return
    bare = _outputs(model, blocks, cap.spec.layers)
    for layer in cap.spec.layers:
        alone = replace(cap, spec=replace(cap.spec, layers=(layer,)))
        with _attached(alone, blocks, 1.0, None, {layer: -1e4}):
            changed = _outputs(model, blocks, (layer,))
        if layer not in changed or changed[layer].equal(bare[layer]):
            raise KarmaError(
                f"The cap does not act on block {layer} of {type(model).__name__}; nothing was capped.", _REPORT
            )
    tested.add(key)


def _outputs(model: PreTrainedModel, blocks: Sequence[Block], layers: Sequence[int]) -> dict[int, torch.Tensor]:
    """What some blocks put out for two tokens; one that is called past its hooks is missing."""
    import torch

    outputs: dict[int, torch.Tensor] = {}

    def keep(layer: int) -> Callable[..., None]:
        def hook(_: Any, __: Any, output: Any) -> None:
            outputs[layer] = (output[0] if isinstance(output, tuple) else output).float().clone()

        return hook

    ids = torch.tensor([[0, 1]], device=model.device)
    handles = [blocks[layer].module.register_forward_hook(keep(layer)) for layer in layers]
    try:
        with torch.no_grad():
            model(input_ids=ids, use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return outputs
