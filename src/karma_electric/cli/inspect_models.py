"""What Inspect's entry point loads: our tasks, and our provider, told how a cap is opened (only this layer knows)."""

from __future__ import annotations

from pathlib import Path

from karma_electric.models.engines.protocol import Engine
from karma_electric.models.inspect_provider import karma, set_cap_opener
from karma_electric.redteam.tasks import ask_turns, attack_along, redteam, verdict

__all__ = ["ask_turns", "attack_along", "karma", "redteam", "verdict"]


def open_capped(name: str, cap: Path | None, alpha: float | None, drift: bool) -> tuple[Engine, float]:
    """An engine with a cap around it, and the cap's strength, as `karma chat --cap` opens it.

    With `drift` its answers tell their drift as well.
    """
    from karma_electric.cli.chat import open_session
    from karma_electric.models.engines.protocol import Sampling

    session = open_session(name, cap=cap, alpha=alpha, system="", sampling=Sampling(), needs_cap=True)
    if drift:
        session.switch_drift(on=True)
    return session.answering, session.alpha


set_cap_opener(open_capped)
