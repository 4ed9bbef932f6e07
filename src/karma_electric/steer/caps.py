"""Several caps at once, all at the site `mlp`: nested hooks, which all read the stream in front of the same MLP.

The corrections of one block add up, since none of them changes what another reads there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from karma_electric.steer.cap import capped
from karma_electric.steer.spec import Cap

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextlib.contextmanager
def all_capped(model: PreTrainedModel, caps: Sequence[Cap]) -> Iterator[None]:
    """Let every cap act while the context is open, each with its own strength. Errors are those of `capped`."""
    with contextlib.ExitStack() as stack:
        for cap in caps:
            stack.enter_context(capped(model, cap))
        yield


def capped_layers(caps: Sequence[Cap]) -> tuple[int, ...]:
    """The blocks that any of them caps, in order."""
    return tuple(sorted({layer for cap in caps for layer in cap.spec.layers}))


def at_strength(caps: Sequence[Cap], alpha: float | None) -> list[Cap]:
    """The caps, all with one strength; each with its own when None."""
    return [cap if alpha is None else replace(cap, spec=replace(cap.spec, alpha=alpha)) for cap in caps]
