"""What Inspect's entry point loads: our provider, told how a cap is opened (only this layer knows both)."""

from __future__ import annotations

from pathlib import Path

from karma_electric.models.engines.protocol import Engine
from karma_electric.models.inspect_provider import karma, set_cap_opener

__all__ = ["karma"]


def open_capped(name: str, cap: Path, alpha: float | None) -> tuple[Engine, float]:
    """An engine with a cap around it, and the cap's strength, as `karma chat --cap` opens it."""
    from karma_electric.cli.chat import open_session
    from karma_electric.models.engines.protocol import Sampling

    session = open_session(name, cap=cap, alpha=alpha, system="", sampling=Sampling())
    return session.engine, session.alpha


set_cap_opener(open_capped)
