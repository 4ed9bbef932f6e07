"""Small pieces of Markdown. Knows nothing about where the text comes from."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

_LIST_ITEM = re.compile(r"\s*([-*]|\d+\.)\s")
_CODE = re.compile(r"(`+)(.*?)\1", re.DOTALL)


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table; bars and line breaks in cells are taken care of."""
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    lines += ["| " + " | ".join(cell(value) for value in row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def cell(value: object) -> str:
    """Text of a cell on one line."""
    return re.sub(r"\s+", " ", str(value)).replace("|", "\\|").strip()


def code(value: object) -> str:
    """Inline code, whatever the value holds."""
    text = re.sub(r"\s+", " ", str(value))
    ticks = "`" * (max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    pad = " " if text.startswith("`") or text.endswith("`") else ""
    return f"{ticks}{pad}{text}{pad}{ticks}"


def fence(text: str, language: str = "text") -> str:
    """A block of code."""
    ticks = "`" * max(3, max((len(run) for run in re.findall("`+", text)), default=0) + 1)
    return f"{ticks}{language}\n{text.rstrip()}\n{ticks}\n"


def plain(text: str) -> str:
    """Text that is not Markdown, so that it reads the same in it: code stays, signs of Markdown are escaped."""
    pieces, end = [], 0
    for found in _CODE.finditer(text):
        pieces += [_escaped(text[end : found.start()]), found.group(0)]
        end = found.end()
    return "".join([*pieces, _escaped(text[end:])])


def prose(text: str) -> str:
    """A docstring's text: paragraphs with an indented line are shown as they stand, others are Markdown."""
    paragraphs = []
    for paragraph in re.split(r"\n\s*\n", text.strip("\n")):
        lines = paragraph.splitlines()
        drawn = any(line.startswith(" ") for line in lines) and not any(_LIST_ITEM.match(line) for line in lines)
        paragraphs.append(fence(paragraph).rstrip() if drawn else plain(paragraph))
    return "\n\n".join(paragraphs) + "\n"


def _escaped(text: str) -> str:
    return re.sub(r"(^|(?<=\n))#", r"\\#", re.sub(r"([<{\[\]|*])", r"\\\1", text))
