"""Finds the number that an answer ends up with, and the value it has in the unit that was asked for.

Rules, in this order: the numbers after the last "answer is", "answer:" or boxed; else those of the last sentence that
has any. Of these the one behind the last equals sign; else the first behind "answer is"; else the last, and one that
the question gave already only if there is no other. Figures win over words ("seven"), which are read up to thousands.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

_SPACES = "\u00a0\u2009\u202f"  # no-break, thin, narrow no-break: some languages part thousands with them
_NUMBER = re.compile(
    rf"(?:(?<![\w.,)\]])(?P<sign>[-−–])\s?)?[$€£¥]?\s?"
    rf"(?<![\w.])(?P<digits>\d{{1,3}}(?:[,'_{_SPACES}]\d{{3}})+(?:\.\d+)?(?![\d])|\d+(?:[.,]\d+)?|\.\d+)"
    r"(?:\s?/\s?(?P<below>\d+)(?![\d/]))?"
)
_LIST_MARK = re.compile(r"^\s*(?:#+\s*)?(?:step\s+)?\d{1,2}[.):]\s+(?=\S)", re.IGNORECASE | re.MULTILINE)
_CUE = re.compile(
    r"\b(?:answer|result|solution)\b(?P<said>\s+(?:is|was|would be|equals)\b\s*:?|\s*:)?|(?:\\boxed|####)(?P<boxed>)",
    re.IGNORECASE,
)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+(?=\D|$)|\n+")
_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_VALUE_OF = {word: n for n, word in enumerate(_ONES)} | {word: 10 * n for n, word in enumerate(_TENS, 2)}
_SCALE = {"hundred": 100, "thousand": 1000}
_WORD_NUMBER = re.compile(
    rf"\b(?:(?P<minus>minus|negative)\s+)?(?P<first>{'|'.join((*_VALUE_OF, *_SCALE))})\b"
    rf"(?:[\s-]+(?:and\s+)?(?:{'|'.join((*_VALUE_OF, *_SCALE))})\b)*",
    re.IGNORECASE,
)
_BETWEEN_PARTS = re.compile(r"^\s*(?:,|and|,\s*and)?\s*$")


@dataclass(frozen=True)
class Found:
    """A number in a text: its value in the base unit, and the words that say it."""

    value: float
    text: str
    start: int
    end: int
    unit: str | None = None


def final_number(answer: str, prompt: str, units: Mapping[str, float] | None = None) -> Found | None:
    """The number an answer ends up with, or None where it has none.

    Args:
        answer: what was answered.
        prompt: what was asked; its numbers are passed over where others stand beside them.
        units: factor of each unit that may follow a number; "2 h 30 min" is one number then.
    """
    text = re.sub(r"[*`]+|\\[()\[\]]", "", answer).replace("\\,", "")
    marks = len(_LIST_MARK.findall(text))
    if marks > 1 or (marks and len(numbers(text)) > 1):
        text = _LIST_MARK.sub("", text)
    spelled = not _figures(text)
    segment, announced = _where_it_ends(text, units, spelled=spelled)
    found = numbers(segment, units, spelled=spelled)
    if not found:
        return None
    after_equals = [number for number in found if number.start > segment.rfind("=")] if "=" in segment else []
    if after_equals:
        return after_equals[0]
    if announced:
        return found[0]
    asked = {number.value for number in numbers(prompt, units)}
    return ([number for number in found if number.value not in asked] or found)[-1]


def alternatives(answer: str, number: Found, units: Mapping[str, float] | None = None) -> Found | None:
    """Another number that the answer offers in its place ("12 or 13"), or None."""
    for one in numbers(answer, units):
        if one.value != number.value and re.search(
            rf"{re.escape(one.text)}\s*(?:or|/)\s*{re.escape(number.text)}|"
            rf"{re.escape(number.text)}\s*(?:or|/)\s*{re.escape(one.text)}",
            answer,
        ):
            return one
    return None


def numbers(text: str, units: Mapping[str, float] | None = None, *, spelled: bool = True) -> list[Found]:
    """All numbers of a text, in order, in the base unit; neighbours such as "2 hours and 30 minutes" as one.

    Args:
        text: any text.
        units: factor of each unit.
        spelled: read numbers in words where there are no figures.
    """
    read = _figures(text) or (_spelled(text) if spelled else [])
    found = [_with_unit(text, number, units or {}) for number in read]
    joined: list[Found] = []
    for number in found:
        last = joined[-1] if joined else None
        parts = last is not None and last.unit and number.unit and last.unit != number.unit
        if last is not None and parts and _BETWEEN_PARTS.match(text[last.end : number.start]):
            whole = text[last.start : number.end]
            joined[-1] = Found(last.value + number.value, whole, last.start, number.end, number.unit)
        else:
            joined.append(number)
    return joined


def _where_it_ends(text: str, units: Mapping[str, float] | None, *, spelled: bool) -> tuple[str, bool]:
    """The part that holds the final number, and whether the number stands first there ("the answer is ...")."""
    for cue in reversed(list(_CUE.finditer(text))):
        rest = text[cue.end() :]
        for sentence in _SENTENCE_END.split(rest, maxsplit=2)[:2]:
            if numbers(sentence, units, spelled=spelled):
                return sentence, cue["said"] is not None or cue["boxed"] is not None
    for sentence in reversed(_SENTENCE_END.split(text)):
        if numbers(sentence, units, spelled=spelled):
            return sentence, False
    return "", False


def _figures(text: str) -> list[Found]:
    found = []
    for match in _NUMBER.finditer(text):
        digits = re.sub(rf"['_{_SPACES}]", "", match["digits"])
        if re.fullmatch(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?", digits):
            digits = digits.replace(",", "")
        if len(digits) > 300:
            continue  # no float
        value = float(digits.replace(",", "."))
        below = float(match["below"]) if match["below"] and len(match["below"]) < 10 else 1.0
        value = value / below if below else value
        found.append(Found(-value if match["sign"] else value, match.group().strip(), match.start(), match.end()))
    return found


def _spelled(text: str) -> list[Found]:
    found = []
    for match in _WORD_NUMBER.finditer(text):
        total = current = 0
        for word in re.findall(r"[a-z]+", match.group().lower()):
            if word in _VALUE_OF:
                current += _VALUE_OF[word]
            elif word == "hundred":
                current = (current or 1) * _SCALE[word]
            elif word == "thousand":
                total, current = total + (current or 1) * _SCALE[word], 0
        value = float(total + current)
        found.append(Found(-value if match["minus"] else value, match.group(), match.start(), match.end()))
    return found


def _with_unit(text: str, number: Found, units: Mapping[str, float]) -> Found:
    for unit in sorted(units, key=len, reverse=True):
        end = r"(?!\w)" if unit[-1].isalnum() else ""
        match = re.compile(rf"[\s-]?{re.escape(unit)}{end}", re.IGNORECASE).match(text, number.end)
        if match:
            whole = text[number.start : match.end()]
            return Found(number.value * units[unit], whole, number.start, match.end(), unit)
    return number
