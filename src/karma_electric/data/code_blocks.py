"""Fenced code blocks of a Markdown text, and whether each one parses in the language it names.

A language without an installed parser is reported as unchecked, never as good. Knows nothing of the languages
themselves: see code_parsers.py.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from karma_electric.data.code_parsers import NoParser, problem

_FENCE = re.compile(r"^(?P<indent> {0,3}|[ \t]+)(?P<fence>`{3,}|~{3,})[ \t]*(?P<info>[^`\n]*)$")

# other names of a language -> ours
_ALIASES = {
    "py": "python",
    "python3": "python",
    "js": "javascript",
    "jsx": "javascript",
    "mjs": "javascript",
    "node": "javascript",
    "ts": "typescript",
    "shell": "bash",
    "zsh": "bash",
    "yml": "yaml",
    "c++": "cpp",
    "cc": "cpp",
    "h": "c",
    "cs": "csharp",
    "c#": "csharp",
    "golang": "go",
    "rs": "rust",
    "rb": "ruby",
    "kt": "kotlin",
    "htm": "html",
    "svg": "xml",
    "docker": "dockerfile",
    "containerfile": "dockerfile",
    "postgresql": "sql",
    "postgres": "sql",
    "mysql": "sql",
    "sqlite": "sql",
    "tf": "hcl",
    "terraform": "hcl",
    "make": "makefile",
    "patch": "diff",
    "cfg": "ini",
    "txt": "text",
    "plaintext": "text",
    "plain": "text",
    "log": "text",
    "console": "text",
    "output": "text",
    "md": "markdown",
    "excel-formula": "excel",
}
_PROSE = ("text", "markdown")  # nothing that could fail to parse


@dataclass(frozen=True)
class CodeBlock:
    """One fenced block.

    Attributes:
        language: the word after the fence, in lower case and under its usual name; empty if there is none.
        code: what is inside.
        line: of the fence in the text, from 1.
        closed: whether the fence ends.
    """

    language: str
    code: str
    line: int
    closed: bool


@dataclass(frozen=True)
class Verdict:
    """What a block is: it parses, it fails (`reason` says where), or nobody here can tell."""

    outcome: Literal["parses", "fails", "unchecked"]
    reason: str = ""


def code_blocks(text: str) -> list[CodeBlock]:
    """The fenced blocks of a Markdown text, in order; a block left open reaches to the end."""
    blocks: list[CodeBlock] = []
    opened: tuple[int, str, str, str] | None = None  # line, fence, indent, language
    inside: list[str] = []
    for number, line in enumerate(text.split("\n"), 1):
        fence = _FENCE.match(line.rstrip("\r"))
        if opened is None:
            if fence:
                name = (fence["info"].split() or [""])[0].strip("{}.").lower()
                opened, inside = (number, fence["fence"], fence["indent"], _ALIASES.get(name, name)), []
        elif fence and not fence["info"].strip() and _closes(fence["fence"], opened[1]):
            blocks.append(_block(opened, inside, closed=True))
            opened = None
        else:
            inside.append(line)
    if opened is not None:
        blocks.append(_block(opened, inside, closed=False))
    return blocks


def check(block: CodeBlock) -> Verdict:
    """Whether a block parses in its language."""
    if not block.closed:
        return Verdict("fails", "the fence is never closed")
    if not block.language:
        return Verdict("fails", "the fence names no language (write `text` for what is none)")
    if not block.code.strip():
        return Verdict("fails", "the block is empty")
    if block.language in _PROSE:
        return Verdict("parses")
    try:
        reason = problem(block.language, block.code)
    except NoParser as error:
        return Verdict("unchecked", f"no parser for {error}")
    return Verdict("fails", reason) if reason else Verdict("parses")


def _closes(fence: str, opened: str) -> bool:
    return fence[0] == opened[0] and len(fence) >= len(opened)


def _block(opened: tuple[int, str, str, str], inside: list[str], *, closed: bool) -> CodeBlock:
    line, _, indent, language = opened
    # a block in a list item is indented as far as its fence
    lines = [text[len(indent) :] if text.startswith(indent) else text for text in inside]
    return CodeBlock(language, "\n".join([*lines, ""]) if lines else "", line, closed)
