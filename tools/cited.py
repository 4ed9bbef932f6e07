"""Figures that are typed in text beside the name of a file under results/: each must be there.

A paragraph, or an item of a list, that names files or folders of results/ in code marks (`results/smollm2-v2`; a star
stands for any name) vouches for its decimal figures and percentages with them. A figure is there when a number of one
of the JSON files, rounded as it is written or as a percentage, is that figure. Generated parts and code blocks are left
out: they are made from the files. Figures beside which no file is named are not looked at: `listed` tells them.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_GENERATED = re.compile(r"<!-- (\w+): begin.*?<!-- \1: end[^>]*-->", re.DOTALL)
_BLOCK = re.compile(r"^ *```.*?^ *```", re.DOTALL | re.MULTILINE)
_FIGURE = re.compile(r"(?<![\w.`/-])[+-]?(?:\d[\d,]*\.\d+(?:e-?\d+)?%?|\d+%)(?![\w.]*\w)")
_FILES = re.compile(r"`(results/[^`\s]+)`")


def uncited(page: str, root: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Line, figure and files of every figure that is not in the files that its paragraph names."""
    for line, paragraph in _paragraphs(page):
        named = _FILES.findall(paragraph)
        figures = _FIGURE.findall(re.sub(r"`[^`]*`", "", paragraph))
        if not named or not figures:
            continue
        known = [number for name in named for file in _files(root, name) for number in _numbers_of(file)]
        for figure in figures:
            if not any(_is(figure, number) for number in known):
                yield line, figure, named


def listed(page: str) -> Iterator[tuple[int, str]]:
    """Line and figure of those that stand beside no file: settings, definitions, other people's, trials of the log."""
    for line, paragraph in _paragraphs(page):
        if not _FILES.search(paragraph):
            for figure in _FIGURE.findall(re.sub(r"`[^`]*`", "", paragraph)):
                yield line, figure


def _paragraphs(page: str) -> Iterator[tuple[int, str]]:
    """Paragraphs, items of lists and rows of tables, with the lines they begin on."""
    for pattern in (_GENERATED, _BLOCK):
        page = pattern.sub(lambda found: "\n" * found.group().count("\n"), page)
    begun, held = 0, []
    for number, text in enumerate([*page.split("\n"), ""], 1):
        if not text.strip() or re.match(r"\s*(- |\||#)", text):
            if held:
                yield begun, "\n".join(held)
            held = []
        if text.strip():
            begun = begun if held else number
            held.append(text)


def _files(root: Path, name: str) -> list[Path]:
    """The JSON files that a name stands for: itself, all below a folder, or what a star matches."""
    found = sorted(root.glob(name.rstrip("/")))
    below = [file for path in found if path.is_dir() for file in sorted(path.rglob("*.json*"))]
    return [*below, *(path for path in found if path.is_file() and path.suffix in (".json", ".jsonl"))]


def _numbers_of(file: Path) -> list[float]:
    text = file.read_text(encoding="utf-8")
    values = [json.loads(line) for line in text.splitlines()] if file.suffix == ".jsonl" else [json.loads(text)]
    return [number for value in values for number in _numbers(value)]


def _numbers(value: Any) -> Iterator[float]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for one in value:
            yield from _numbers(one)
    elif isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        yield float(value)


def _is(figure: str, number: float) -> bool:
    """Whether a number is written so: with as many decimals, or as a percentage."""
    scale, plain = (100.0, figure[:-1]) if figure.endswith("%") else (1.0, figure)
    plain = plain.replace(",", "")
    if "e" in plain:
        places = len(plain.partition("e")[0].partition(".")[2])
        return f"{number:.{places}e}" == f"{float(plain):.{places}e}"
    decimals = len(plain.partition(".")[2])
    return abs(round(number * scale, decimals) - float(plain)) < 1e-9
