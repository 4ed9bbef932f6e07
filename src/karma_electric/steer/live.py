"""A cap on a model that answers many requests at once: rows come and go, each with its own strength and its own count.

The hooks stay attached for as long as the context is open; only what they hold changes between forward passes. The
formula is hooks.py's, drift is drift.py's.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from karma_electric.core.errors import InputError
from karma_electric.models.blocks import decoder_blocks, hidden_size
from karma_electric.models.engines.protocol import TokenDrift
from karma_electric.steer.cap import require_shape
from karma_electric.steer.drift import Recorder, read_before_cap, token_drifts
from karma_electric.steer.hooks import LayerCap, attached
from karma_electric.steer.self_test import require_acting
from karma_electric.steer.spec import Cap

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_TOGETHER = 32  # passes that are counted at once


class _Switched(Recorder):
    """Records while it is on."""

    on = False

    def read(self, layer: int, h: torch.Tensor) -> None:
        if self.on:
            super().read(layer, h)


class LiveCap:
    """Sets the strength of each row, and tells what was capped and how far tokens went.

    Attributes:
        alpha: the strength for requests that name none.
        can_drift: whether drift can be measured.
    """

    def __init__(self, cap: Cap, caps: Mapping[int, LayerCap], scales: Mapping[int, float] | None) -> None:
        """caps: block -> what is attached there; scales: block -> standard deviation of the projection."""
        self.alpha = cap.spec.alpha
        self.can_drift = scales is not None
        self.recorder = _Switched(cap)
        self._cap = cap
        self._caps = list(caps.values())
        self._scales = scales or {}
        self._alphas: tuple[float, ...] = ()
        self._rows: tuple[int, ...] | None = None
        self._waiting: list[tuple[tuple[int, ...], list[torch.Tensor]]] = []  # rows, and excess [rows, 1] by block
        self._counts: dict[int, int] = {}
        self._caps[-1].meter = self

    def prompt(self, alpha: float) -> None:
        """The forward passes that follow read one prompt, which is not counted."""
        self._strengthen((alpha,))
        self._rows = None
        self.recorder.on = False

    def decode(self, rows: Sequence[int], alphas: Sequence[float], *, drift: bool) -> None:
        """The next forward pass reads one response token of each of these rows.

        Args:
            rows: a number for each, which no other request has.
            alphas: their strengths.
            drift: whether `drifts` will be asked.
        """
        self._strengthen(tuple(alphas))
        self._rows = tuple(rows)
        self.recorder.clear()
        self.recorder.on = drift

    def drifts(self) -> tuple[TokenDrift, ...]:
        """Drift of the token that each row read last."""
        projections = self.recorder.projections()[:, -1]  # [rows, blocks]
        return token_drifts(projections, self._cap, self._scales)

    def rate(self, row: int, n_tokens: int) -> float:
        """Share of (token, block) pairs that were capped among a row's `n_tokens` response tokens, and forget it."""
        self._count()
        n_capped = self._counts.pop(row, 0)
        return n_capped / (n_tokens * len(self._caps)) if n_tokens else 0.0

    def record(self) -> None:
        """Called by the hook of the last block."""
        seen = [cap.seen for cap in self._caps]
        for cap in self._caps:
            cap.seen = None
        if self._rows is not None:
            self._waiting.append((self._rows, [over for over in seen if over is not None]))
            if len(self._waiting) == _TOGETHER:
                self._count()

    def _count(self) -> None:
        """Count the passes that were put off, those of the same rows together."""
        import torch

        waiting, self._waiting = self._waiting, []
        at = 0
        while at < len(waiting):
            rows = waiting[at][0]
            until = next((i for i in range(at, len(waiting)) if waiting[i][0] != rows), len(waiting))
            passes = [seen for _, seen in waiting[at:until]]
            device = passes[0][-1].device
            over = torch.stack([torch.cat(block, dim=1).to(device) for block in zip(*passes, strict=True)])
            for row, n in zip(rows, (over > 0).sum((0, 2)).tolist(), strict=True):
                self._counts[row] = self._counts.get(row, 0) + n
            at = until

    def _strengthen(self, alphas: tuple[float, ...]) -> None:
        import torch

        if alphas == self._alphas:
            return
        self._alphas = alphas
        alike = len(set(alphas)) == 1
        strength = alphas[0] if alike else torch.tensor(alphas, dtype=torch.float32)
        for cap in self._caps:
            cap.suspended = alike and not alphas[0]  # nothing acts: not even a bit of what is added
            cap.strengthen(strength)


@contextlib.contextmanager
def live_cap(
    model: PreTrainedModel,
    cap: Cap,
    *,
    alpha: float | None = None,
    scales: Mapping[int, float] | None = None,
    blocks_path: str | None = None,
) -> Iterator[LiveCap]:
    """Attach a cap to a model that a live engine runs: an intervention for `LiveHf`.

    Args:
        model: a model of the axis's shape.
        cap: thresholds and directions.
        alpha: the strength for requests that name none; the cap's own when None.
        scales: block -> standard deviation of the projection, which drift is measured in; None to measure none.
        blocks_path: see `capped`.

    Raises:
        what `capped` raises.
    """
    if alpha is not None and not 0.0 <= alpha <= 1.0:
        raise InputError(f"alpha is {alpha:g}, expected a number from 0 (off) to 1 (hard).", "0.5 is the soft cap.")
    blocks = decoder_blocks(model, blocks_path)
    require_shape(cap, len(blocks), hidden_size(model))
    spec = cap.spec
    require_acting(model, blocks, spec.site, {layer: cap.directions[layer] for layer in spec.layers})
    caps = {
        layer: LayerCap(
            cap.directions[layer],
            spec.thresholds[layer],
            1.0,
            scale=blocks[layer].mlp_scale if spec.site == "mlp" else 1.0,
        )
        for layer in sorted(spec.layers)
    }
    live = LiveCap(cap, caps, scales)
    live.alpha = spec.alpha if alpha is None else alpha
    with attached(blocks, spec.site, caps), read_before_cap(blocks, cap, live.recorder):
        yield live
