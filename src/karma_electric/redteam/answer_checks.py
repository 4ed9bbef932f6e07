"""Checks of short answers: a number, a text, a choice. Each says what it found, so that a reader can disagree.

Nothing here knows how hard an item is, nor runs code: constraints are in `constraints`, code in `code_sandbox`.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from karma_electric.redteam.final_number import alternatives, final_number

Outcome = Literal["correct", "incorrect", "unscored"]
_DENIED = re.compile(r"\b(?:not|never|isn't|wasn't|aren't|rather than|instead of|unlike|nor|except)\s+(?:\w+\s+)?$")
_SHOWN = 80


@dataclass(frozen=True)
class Judged:
    """What a check found: correct, incorrect, or unscored where nothing could be decided, and the words it went by."""

    outcome: Outcome
    evidence: str


class Check(BaseModel):
    """Base of the checks."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class NumberCheck(Check):
    """The number that the answer ends up with.

    `units` maps each unit that may follow a number to its factor in the unit of `value`: {"cm": 1, "m": 100}.
    """

    type: Literal["number"]
    value: float
    tolerance: float = Field(0.0, ge=0)
    units: dict[str, float] = {}

    @model_validator(mode="before")
    @classmethod
    def _whole_numbers_count(cls, raw: Any) -> Any:
        """JSON writes 12 for 12.0; a strict float would refuse it. Booleans stay refused."""
        if not isinstance(raw, dict):
            return raw
        fixed = {key: float(v) if type(v) is int and key in ("value", "tolerance") else v for key, v in raw.items()}
        if isinstance(raw.get("units"), dict):
            fixed["units"] = {unit: float(f) if type(f) is int else f for unit, f in raw["units"].items()}
        return fixed

    @model_validator(mode="after")
    def _units_are_named(self) -> NumberCheck:
        if not all(unit.strip() and factor > 0 for unit, factor in self.units.items()):
            raise ValueError("units need a name and a factor above 0")
        return self

    def judge(self, answer: str, prompt: str) -> Judged:
        """Compare the final number."""
        found = final_number(answer, prompt, self.units)
        if found is None:
            return Judged("incorrect", "no number in the answer")
        shown = f"{found.text!r} read as {found.value:g}, expected {self.value:g}"
        other = alternatives(answer, found, self.units)
        if other is not None:
            return Judged("incorrect", f"two numbers offered: {other.text!r} and {found.text!r}")
        slack = self.tolerance + 1e-9 * max(1.0, abs(self.value))  # floats: 0.1 + 0.2
        return Judged("correct" if abs(found.value - self.value) <= slack else "incorrect", shown)


class TextCheck(Check):
    """One of the accepted answers stands in it, and none of the rejected ones.

    Compared without regard to case, accents, quotes and spaces, at word boundaries. An answer that is denied
    ("not Paris") does not count on either side. More than `longest` words are no answer: whoever recites everything
    has not chosen.
    """

    type: Literal["text"]
    accept: list[str] = Field(min_length=1)
    reject: list[str] = []
    longest: int = Field(120, ge=1)

    @model_validator(mode="after")
    def _decidable(self) -> TextCheck:
        accepted, rejected = {_plain(text) for text in self.accept}, {_plain(text) for text in self.reject}
        if "" in accepted | rejected:
            raise ValueError("an accepted or rejected answer is empty")
        if accepted & rejected:
            raise ValueError(f"{(accepted & rejected).pop()!r} is both accepted and rejected")
        hidden = next((r for r in rejected for a in accepted if re.search(_pattern(r), a)), None)
        if hidden is not None:
            raise ValueError(f"the rejected {hidden!r} stands inside an accepted answer, which could never pass")
        return self

    def judge(self, answer: str, prompt: str) -> Judged:
        """Look for accepted and rejected answers."""
        plain = _plain(answer)
        length = len(plain.split())
        if length > self.longest:
            return Judged("incorrect", f"{length} words, at most {self.longest} are an answer")
        refused = next((text for text in self.reject if _stands(_plain(text), plain)), None)
        if refused is not None:
            return Judged("incorrect", f"says {refused!r}")
        given = next((text for text in self.accept if _stands(_plain(text), plain)), None)
        if given is not None:
            return Judged("correct", f"says {given!r}")
        return Judged("incorrect", f"says {answer.strip()[:_SHOWN]!r}, expected {self.accept[0]!r}")


class ChoiceCheck(Check):
    """One of lettered options. It may be named by its letter, or by its text."""

    type: Literal["choice"]
    options: dict[str, str] = Field(min_length=2)
    answer: str

    @model_validator(mode="after")
    def _decidable(self) -> ChoiceCheck:
        if not all(re.fullmatch("[A-H]", letter) for letter in self.options):
            raise ValueError("options need single letters from A to H")
        if self.answer not in self.options:
            raise ValueError(f"answer is {self.answer!r}, expected one of {', '.join(self.options)}")
        texts = [_plain(text) for text in self.options.values()]
        if "" in texts or len(set(texts)) < len(texts):
            raise ValueError("an option is empty or there twice")
        return self

    def judge(self, answer: str, prompt: str) -> Judged:
        """Find the letters, or else the texts, that the answer names."""
        letters = self._letters(answer)
        if not letters:
            plain = _plain(answer)
            letters = [letter for letter, text in self.options.items() if _stands(_plain(text), plain)]
        if len(set(letters)) != 1:
            found = ", ".join(sorted(set(letters))) or "none"
            return Judged("incorrect", f"names {found}, expected {self.answer} alone")
        return Judged("correct" if letters[0] == self.answer else "incorrect", f"chooses {letters[0]}")

    def _letters(self, answer: str) -> list[str]:
        """Letters named as a choice: after a cue, or with a mark behind them, or alone. "A dog" names none."""
        text = re.sub(r"[*`_]+", "", answer).strip()
        known = "".join(self.options)
        cued = re.findall(
            rf"(?i:\b(?:answer|option|choice|choose|is|letter)\b)\s*:?\s*\(?([{known}])(?![\w'’])(?!\s+[a-z])", text
        )
        marked = re.findall(rf"(?:^|[\s(])([{known}])[).:](?=\s|$)", text, re.MULTILINE)
        alone = re.findall(rf"^[(\[]?([{known}])[)\].:]?$", text, re.MULTILINE)
        return [*cued, *marked, *alone]


def _plain(text: str) -> str:
    """Without case, accents, kinds of quotes and dashes, and runs of spaces."""
    apart = (
        unicodedata.normalize("NFKD", text).casefold().translate({0x2019: "'", 0x2010: "-", 0x2011: "-", 0x2013: "-"})
    )
    bare = "".join(character for character in apart if not unicodedata.combining(character))
    return " ".join(re.sub(r"[*`_]+", "", bare).split())


def _pattern(plain: str) -> str:
    before = r"(?<!\w)" if plain[0].isalnum() else ""
    after = r"(?!\w)" if plain[-1].isalnum() else ""
    return before + re.escape(plain) + after


def _stands(term: str, plain: str) -> bool:
    """Whether a term stands in a text at word boundaries, somewhere that it is not denied."""
    return any(not _DENIED.search(plain[: match.start()][-40:]) for match in re.finditer(_pattern(term), plain))
