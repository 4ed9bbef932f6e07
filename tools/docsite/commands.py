"""`karma ...` lines in documents: found, and shown to the parser of the command itself without running anything."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from docsite.cli_pages import contexts, root

_BLOCK = re.compile(r"^(?P<ticks>`{3,})[^\n]*\n(?P<inside>.*?)^(?P=ticks)`*[ ]*$", re.DOTALL | re.MULTILINE)
_INDENTED = re.compile(r"(?:(?<=\n\n)|(?<=\A))(?: {4}[^\n]*(?:\n|$))+(?:\n*(?: {4}[^\n]*(?:\n|$))+)*")
_INLINE = re.compile(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)")
_LINE = re.compile(r"^(?:\$ )?(?:[A-Z_]+=\S+ )*(?:\S*/)?karma (?P<rest>[^-\s].*|--\S.*)$")
_END = {"|", "||", "&&", ";", ">", ">>", "<", "&", "2>", ")"}


@dataclass(frozen=True)
class Command:
    """A command line as a document has it.

    Attributes:
        where: file and line.
        words: after `karma`.
        whole: it stands in a block: its arguments must be there as well. In a sentence it may be cut short.
    """

    where: str
    words: tuple[str, ...]
    whole: bool


def commands(file: Path, top: Path) -> Iterator[Command]:
    """Every karma command line of a Markdown file."""
    text = file.read_text(encoding="utf-8")
    name = file.relative_to(top).as_posix()
    rest = text
    for pattern in (_BLOCK, _INDENTED):
        for found in pattern.finditer(rest):
            inside = found["inside"] if pattern is _BLOCK else found.group(0)
            start = rest.count("\n", 0, found.start("inside") if pattern is _BLOCK else found.start()) + 1
            for offset, line in _joined(inside):
                for words in _split(line):
                    yield Command(f"{name}:{start + offset}", words, whole=True)
        rest = pattern.sub(lambda found: re.sub(r"[^\n]", " ", found.group(0)), rest)
    for found in _INLINE.finditer(rest):
        line = " ".join(found.group(1).split())
        for words in _split(line):
            yield Command(f"{name}:{rest.count(chr(10), 0, found.start()) + 1}", words, whole=False)


def _joined(text: str) -> Iterator[tuple[int, str]]:
    """(line number, line) with continued lines put together."""
    held, start = "", 0
    for number, line in enumerate(text.splitlines()):
        start = start if held else number
        if line.rstrip().endswith("\\"):
            held += line.strip()[:-1].rstrip() + " "
            continue
        yield start, (held + line.strip()).strip()
        held = ""


def _split(line: str) -> Iterator[tuple[str, ...]]:
    """The words of every karma command on a line; comments, pipes and what follows them are cut off."""
    for piece in re.split(r"\s(?:&&|;|\|\|?)\s", line):
        found = _LINE.match(piece.strip())
        if found is None:
            continue
        lexer = shlex.shlex(re.split(r"\s{3,}(?=[a-z(])", found["rest"])[0], posix=True, punctuation_chars="")
        lexer.whitespace_split = True
        lexer.commenters = "#"
        try:
            words = list(lexer)
        except ValueError:  # a quotation that goes on in the next line
            continue
        end = next((n for n, word in enumerate(words) if word in _END or re.match(r"^\d?>", word)), len(words))
        yield tuple(_without_brackets(words[:end]))


def _without_brackets(words: list[str]) -> Iterator[str]:
    """A line of usage as an example of itself: `[--dtype a|b]` is `--dtype a`, and `...` is nothing."""
    for word in words:
        bare = word
        if word.startswith("[--") or (word.endswith("]") and "[" not in word):
            bare = word.strip("[]")
        if (bare.startswith("--") and "|" in bare) or re.fullmatch(r"[\w.-]+(\|[\w.-]+)+", bare):
            bare = bare.partition("|")[0]
        if bare not in {"...", "…", ""}:
            yield bare


@cache
def _all() -> dict[str, Any]:
    """Words -> context of every verb and group."""
    return dict(contexts(root()))


def problem(command: Command) -> str:
    """What the parser says against a command line, or nothing."""
    name, words = "karma", list(command.words)
    while words and hasattr(_all()[name].command, "commands"):
        if words[0].startswith("-"):
            break
        if "|" in words[0]:  # `karma data import|stats|...`
            missing = [word for word in words[0].split("|") if f"{name} {word}" not in _all()]
            return f"{command.where}: {name} has no verb {missing[0]!r}" if missing else ""
        if f"{name} {words[0]}" not in _all():
            return f"{command.where}: {name} has no verb {words[0]!r}"
        name = f"{name} {words.pop(0)}"
    context = _all()[name]
    if hasattr(context.command, "commands") and command.whole and not words:
        return ""
    try:
        given, extra, _ = context.command.make_parser(context).parse_args(args=list(words))
    except Exception as error:
        return f"{command.where}: {name}: {error}"
    if extra:
        return f"{command.where}: {name}: too many words: {extra}"
    for parameter in context.command.get_params(context):
        value = given.get(parameter.name)
        if command.whole and parameter.required and value in (None, ()) and "--help" not in words:
            return f"{command.where}: {name}: {parameter.name} is missing"
        if isinstance(value, str) and not value.isupper() and not _fits(value, parameter):
            return f"{command.where}: {name}: {parameter.name} cannot be {value!r}"
    return ""


def _fits(value: str, parameter: Any) -> bool:
    """Whether a word can be what a parameter takes, as far as its type alone says."""
    annotation = getattr(getattr(parameter, "type_descriptor", None), "annotation", str)
    if get_origin(annotation) is Literal:
        return value in get_args(annotation)
    if annotation in (int, float):
        try:
            annotation(value)
        except ValueError:
            return False
    return True
