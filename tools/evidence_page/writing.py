"""How figures are written in docs/evidence.md."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from karma_electric.redteam.drift_figures import Mean
from karma_electric.redteam.judge_error import Corrected


def bullets(said: list[str], otherwise: str) -> Iterator[str]:
    """A list, or what to say where it is empty."""
    yield from (f"- {one}" for one in said) if said else [otherwise]


def head(*cells: str, right: int = 0) -> Iterator[str]:
    """The first two lines of a table; the columns after the first `len(cells) - right` hold counts."""
    yield "| " + " | ".join(cells) + " |"
    yield "|" + "---|" * (len(cells) - right) + "--:|" * right


def gap(command: str) -> str:
    """What was not measured, and how it would be."""
    return f"*not measured* (`{command}`)"


def share(value: float | None) -> str:
    """A share as a percentage."""
    return "none" if value is None else f"{value:.0%}"


def points(value: float) -> str:
    """A difference of rates in percentage points."""
    rounded = round(100 * value)
    return f"{rounded:+d}" if rounded else "0"


def capital(text: str) -> str:
    """A clause as a sentence."""
    return text[:1].upper() + text[1:]


def p_text(value: float | None) -> str:
    """A p value."""
    return "none" if value is None else "< 0.001" if value < 0.001 else f"{value:.3f}"


def rate(found: Any) -> str:
    """A rate with its interval."""
    return "none scored" if found.value is None else f"{found.value:.0%} ({found.low:.0%} to {found.high:.0%})"


def correction(found: Corrected | None, *, signed: bool = False) -> str:
    """A corrected rate or difference, or why there is none."""
    if found is None:
        return "not measured"
    if found.value is None:
        return f"not possible: {found.why}"
    write = points if signed else share
    return f"{write(found.value)} ({write(found.low)} to {write(found.high)})"


def capped_share(measured: Mapping[str, Any]) -> str:
    """Share of tokens that a cap acts on, with its interval where that was measured."""
    span = measured.get("cap_rate_interval")
    return f"{measured['cap_rate']['mean']:.0%}" + (f" ({span['low']:.0%} to {span['high']:.0%})" if span else "")


def deviations(mean: Mean | None) -> str:
    """A mean drift with its interval, in standard deviations."""
    if mean is None:
        return "none"
    span = f" ({mean.interval[0]:+.2f} to {mean.interval[1]:+.2f})" if mean.interval else ""
    return f"{mean.value:+.2f} sd{span}"


def kappa(figures: Mapping[str, Any]) -> str:
    """Kappa with its interval."""
    value, span = figures["kappa"], figures["kappa_interval"]
    return "undefined" if value is None else f"{value:.2f}" + (f" ({span[0]:.2f} to {span[1]:.2f})" if span else "")
