"""How figures are written in documents: the template environment of the card and the report, and its filters.

A value that is not there becomes the words "not measured", so that no template can print a hole or a zero.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Undefined

ABSENT = "not measured"
UNMADE = "not made"  # what is no figure: data, files
_TEMPLATES = Path(__file__).resolve().parent / "templates"
_UNITS = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_PLACES = 16  # hex digits of a hash that are shown


@cache
def environment(*, autoescape: bool) -> Environment:
    """The environment both documents are rendered in; unknown names are errors, absent values are words."""
    # Autoescape is off for Markdown alone, which holds figures and our own sentences but no model output.
    env = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=autoescape,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    filters: dict[str, Callable[..., str]] = {
        "number": number,
        "percent": percent,
        "points": points,
        "size": size,
        "duration": duration,
        "p_value": p_value,
        "short": short,
        "png": png,
        "judge_in_words": judge_in_words,
        "drift_in_words": drift_in_words,
        "quoted": quoted,
    }
    for name, write in filters.items():
        env.filters[name] = write
    return env


def number(value: Any, decimals: int | None = None) -> str:
    """A number: whole ones with separators; others with `decimals` places, or 3 significant digits."""
    if _absent(value):
        return ABSENT
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:,.{decimals}f}" if decimals is not None else f"{value:.3g}"


def percent(value: Any, decimals: int = 0) -> str:
    """A share as a percentage."""
    return ABSENT if _absent(value) else f"{100 * value:.{decimals}f}%"


def points(value: Any) -> str:
    """A difference of shares in percentage points, with its sign; what rounds to nothing has none."""
    if _absent(value):
        return ABSENT
    rounded = round(100 * value)
    return f"{rounded:+d}" if rounded else "0"


def size(value: Any) -> str:
    """Bytes, in decimal units."""
    if _absent(value):
        return ABSENT
    for factor, unit in _UNITS:
        if value >= factor:
            scaled = value / factor
            return f"{scaled:.0f} {unit}" if scaled >= 100 else f"{scaled:.1f} {unit}"
    return f"{value} bytes"


def duration(value: Any) -> str:
    """Seconds as hours and minutes, or minutes and seconds."""
    if _absent(value):
        return ABSENT
    seconds = round(value)
    if seconds >= 3600:
        minutes = round(seconds / 60)
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{seconds // 60} min {seconds % 60} s" if seconds >= 60 else f"{seconds} s"


def p_value(value: Any) -> str:
    """A p value."""
    if _absent(value):
        return ABSENT
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def short(value: Any) -> str:
    """The beginning of a hash."""
    return ABSENT if _absent(value) else str(value)[:_PLACES]


def quoted(value: str) -> str:
    """A text as a literal in Python, with double quotes."""
    return json.dumps(value, ensure_ascii=False)


def judge_in_words(scorer: str) -> str:
    """Who judged, from the name of a scorer."""
    kind, _, rest = scorer.partition(":")
    words = {
        "signals": "regular expressions",
        "signals-original": "the original's regular expressions, which pass by default",
        "semantic": "a small model of sentence vectors",
        "llm": f"a language model ({rest})",
        "labels": f"raters, whose labels are in {rest.rpartition('/')[2]}",
        "over-refusal": "the suite's own signals of help and of refusal",
        "ensemble": f"several judges ({rest})",
    }
    return words.get(kind, scorer)


def drift_in_words(drift: Mapping[str, float]) -> str:
    """Mean drift by kind, each group of kinds with its mean over all conversations; from the summary of an arm."""
    from karma_electric.redteam.drift_suite import CONTROL_KINDS, DRIFTING_KINDS

    groups = []
    for kinds, over_all, label in ((DRIFTING_KINDS, "conversations", ""), (CONTROL_KINDS, "controls", "controls: ")):
        found = ", ".join(f"{kind} {drift[kind]:+.2f}" for kind in kinds if kind in drift)
        together = f" (together {drift[over_all]:+.2f})" if over_all in drift else ""
        if found:
            groups.append(f"{label}{found}{together}")
    return "; ".join(groups) or ABSENT


def judged_by_raters(scorer: str) -> bool:
    """Whether a scorer, or one of an ensemble, is a file of labels that raters gave."""
    return any(name.partition(":")[0] == "labels" for name in scorer.removeprefix("ensemble:").split("+"))


def png(value: bytes) -> str:
    """An image as a data URL."""
    return f"data:image/png;base64,{base64.b64encode(value).decode()}"


def _absent(value: Any) -> bool:
    return value is None or isinstance(value, Undefined)
