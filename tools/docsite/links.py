"""Relative links of Markdown files: found, and rewritten for where a page lies in the site."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

_LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^)\s]+)\)")
_CODE = re.compile(
    r"^(`{3,}|~{3,})[\s\S]*?^\1[`~]*[ ]*$"  # fenced
    r"|(?<!`)(`+)(?!`)(?:(?!\n\n)[\s\S])+?(?<!`)\2(?!`)"  # inline
    r"|(?<=\n\n)(?: {4}[^\n]*\n)+",  # indented
    re.MULTILINE,
)


def relative_links(text: str) -> Iterator[tuple[str, str]]:
    """(whole link, target) of every link to a file, code left out."""
    for found in _LINK.finditer(_without_code(text)):
        if not re.match(r"[a-z]+:|#", found.group(2)):
            yield found.group(0), found.group(2)


def _without_code(text: str) -> str:
    return _CODE.sub(lambda code: re.sub(r"[^\n]", " ", code.group(0)), text)


def broken(file: Path, root: Path) -> list[str]:
    """Relative links of a file that lead nowhere, or out of the repository."""
    found = []
    for _, target in relative_links(file.read_text(encoding="utf-8")):
        path = (file.parent / target.partition("#")[0]).resolve()
        if not path.exists() or not path.is_relative_to(root):
            found.append(f"{file.relative_to(root)}: {target}")
    return found


def rewritten(text: str, file: Path, page: Path, place: Callable[[Path], Path | None]) -> str:
    """The text with its relative links changed.

    Args:
        text: of the file.
        file: where it lies in the repository.
        page: where it will lie in the site.
        place: a file of the repository -> where it will lie in the site; None where it will not be there.
    """
    hidden = _without_code(text)
    pieces, end = [], 0
    for found in _LINK.finditer(hidden):
        label, target = text[found.start(1) : found.end(1)], found.group(2)
        if re.match(r"[a-z]+:|#", target):
            continue
        path, hash_, anchor = target.partition("#")
        there = place((file.parent / path).resolve())
        link = label[1:-1] if there is None else f"{label}({os.path.relpath(there, page.parent)}{hash_}{anchor})"
        pieces += [text[end : found.start()], link]
        end = found.end()
    return "".join([*pieces, text[end:]])
