"""Drift: how far the residual stream of each token lies along the axis, beyond the ceiling of a cap.

    drift = mean over the capped blocks l of (<h_l, v_l> - t_l) / s_l

`h_l` is the residual stream at the cap's site as the cap reads it, before it acts there; `v_l` the direction away from
the persona, `t_l` the threshold, `s_l` the standard deviation of the projection over the model's own answers. So 0 is
at the ceiling, +1 one such deviation beyond it, away from the persona.

This module reads single tokens, while a model runs. Turns and transcripts are conversation_drift.py's business, `s_l`
and the alarm level drift_reference.py's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from karma_electric.core.errors import KarmaError
from karma_electric.models.blocks import Block, decoder_blocks
from karma_electric.models.engines.protocol import Drift, TokenDrift
from karma_electric.steer.cap import capped
from karma_electric.steer.spec import Cap

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from karma_electric.models.engines.hf import Meter


class Recorder:
    """Projections at the capped blocks, call by call. Nothing leaves the device until it is asked for."""

    def __init__(self, cap: Cap) -> None:
        self._directions = {layer: cap.directions[layer] for layer in cap.spec.layers}
        self._calls: dict[int, list[torch.Tensor]] = {layer: [] for layer in cap.spec.layers}  # [batch, seq], float32

    def clear(self) -> None:
        """Forget what was recorded."""
        for calls in self._calls.values():
            calls.clear()

    def read(self, layer: int, h: torch.Tensor) -> None:
        """Take in one call of a block: `<h, v>` in float32, as the cap computes it. h: [batch, seq, hidden]."""
        if self._directions[layer].device != h.device:  # once: the model may be split
            self._directions[layer] = self._directions[layer].to(h.device)
        self._calls[layer].append(h.float() @ self._directions[layer])

    def projections(self, calls: slice = slice(None)) -> torch.Tensor:
        """The recorded calls one after the other, float32 on the CPU: [batch, positions, capped blocks].

        Raises:
            KarmaError: a block was never called through its hook.
        """
        import torch

        for layer, seen in self._calls.items():
            if not seen:
                raise KarmaError(
                    f"Block {layer} ran without its hook; no drift was measured.",
                    "This is a layout the hooks do not reach: please report it with the model's name.",
                )
        device = next(iter(self._calls.values()))[0].device
        per_block = [torch.cat(seen[calls], dim=1).to(device) for seen in self._calls.values() if seen[calls]]
        if not per_block:
            batch = next(iter(self._calls.values()))[0].shape[0]
            return torch.zeros(batch, 0, len(self._calls))
        return torch.stack(per_block, dim=-1).cpu()


class AxisMeter:
    """What a generation tells: cap rates as `capped` does, and the drift of its tokens."""

    def __init__(self, cap: Cap, scales: Mapping[int, float], recorder: Recorder, cap_meter: Meter) -> None:
        self._cap = cap
        self._scales = scales
        self._recorder = recorder
        self._cap_meter = cap_meter

    def response_rates(self, lengths: Sequence[int]) -> list[float]:
        """Cap rate of each row, as the cap's own meter counts it."""
        return self._cap_meter.response_rates(lengths)

    def drifts(self, lengths: Sequence[int]) -> list[Drift]:
        """Drift of each row's own response tokens.

        The first call is the prompt, each one after it a response token that was fed back. The last token of a
        response that was cut at its limit is not fed back: it is None.
        """
        fed_back = self._recorder.projections(slice(1, None))  # [batch, response, blocks]
        drifts = []
        for row, length in enumerate(lengths):
            tokens = token_drifts(fed_back[row, :length], self._cap, self._scales)
            drifts.append(Drift((*tokens, *[None] * (length - len(tokens)))))
        return drifts

    def last(self) -> TokenDrift:
        """Drift of the token that went through the model last; for a batch of one."""
        return token_drifts(self._recorder.projections(slice(-1, None))[0, -1:], self._cap, self._scales)[0]


@contextlib.contextmanager
def recording_projections(
    model: PreTrainedModel,
    cap: Cap,
    *,
    alpha: float | Sequence[float] | None = None,
    blocks_path: str | None = None,
) -> Iterator[tuple[Recorder, Meter]]:
    """Record projections at the capped blocks while the context is open, with the cap acting at `alpha` or not (0).

    At both sites the projection is the one that the cap itself compares with the threshold: after the caps of
    earlier blocks, before this block's own.

    Args and errors: see `capped`.
    """
    with capped(model, cap, alpha=alpha, blocks_path=blocks_path) as cap_meter:
        recorder = Recorder(cap)
        with read_before_cap(decoder_blocks(model, blocks_path), cap, recorder):
            yield recorder, cap_meter


@contextlib.contextmanager
def read_before_cap(blocks: Sequence[Block], cap: Cap, recorder: Recorder) -> Iterator[None]:
    """Let a recorder read at a cap's blocks what the cap reads, before it acts there, if it is attached already."""
    handles: list[Any] = []
    try:
        for layer in cap.spec.layers:
            block = blocks[layer]
            # prepended, so that they read before the cap's own hooks write
            if cap.spec.site == "mlp":
                hook = _read_input(recorder, layer)
                handles.append(block.mlp_norm.register_forward_pre_hook(hook, prepend=True, with_kwargs=True))
            else:
                handles.append(block.module.register_forward_hook(_read_output(recorder, layer), prepend=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextlib.contextmanager
def measured(
    model: PreTrainedModel,
    cap: Cap,
    scales: Mapping[int, float],
    *,
    alpha: float | Sequence[float] | None = None,
    blocks_path: str | None = None,
) -> Iterator[AxisMeter]:
    """`capped`, with the drift of every token measured as well: an intervention for an engine.

    Args:
        model: a model of the axis's shape.
        cap: thresholds and directions.
        scales: block -> standard deviation of the projection.
        alpha: strength of the cap, see `capped`; 0 measures the model as it is.
        blocks_path: see `capped`.

    Raises:
        what `capped` raises.
    """
    with recording_projections(model, cap, alpha=alpha, blocks_path=blocks_path) as (recorder, cap_meter):
        yield AxisMeter(cap, scales, recorder, cap_meter)


def token_drifts(projections: torch.Tensor, cap: Cap, scales: Mapping[int, float]) -> tuple[TokenDrift, ...]:
    """The drift of tokens from their projections [n, capped blocks], float32 on the CPU. One per token, in order."""
    import torch

    layers = cap.spec.layers
    t = torch.tensor([cap.spec.thresholds[layer] for layer in layers])
    s = torch.tensor([scales[layer] for layer in layers])
    drifts = ((projections - t) / s).mean(-1).tolist()
    above = (projections > t).float().mean(-1).tolist()
    return tuple(
        TokenDrift(drift, share, tuple(row))
        for drift, share, row in zip(drifts, above, projections.tolist(), strict=True)
    )


def _read_input(recorder: Recorder, layer: int) -> Callable[..., None]:
    def hook(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        recorder.read(layer, args[0] if args else next(iter(kwargs.values())))

    return hook


def _read_output(recorder: Recorder, layer: int) -> Callable[..., None]:
    def hook(_: Any, __: Any, output: Any) -> None:
        recorder.read(layer, output[0] if isinstance(output, tuple) else output)

    return hook
