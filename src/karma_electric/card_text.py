"""Reads a model card as something that can be compared: its YAML head, and its body as blocks with their lines.

Only the Markdown that cards are written in is known: headings, tables, lists, paragraphs, fenced code. What differs
only in white space, in how lines are broken or in how a table is padded reads the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from karma_electric.core.errors import InputError

Kind = Literal["heading", "header", "row", "text", "code"]
_FENCE = re.compile(r"\s*(`{3,}|~{3,})")
_HEADING = re.compile(r"\s{0,3}(#{1,6})\s+(.*?)\s*#*\s*$")
_ITEM = re.compile(r"\s*[-*+]\s+")
_RULE = re.compile(r"\s*\|?\s*:?-+:?\s*(\|\s*:?-+:?\s*)*\|?\s*$")
_HIDING = re.compile(
    r"<!--|<(\w+)(?=\s)[^<>]*?(?:display\s*:\s*none|visibility\s*:\s*hidden|\bhidden\b)[^<>]*>", re.IGNORECASE
)
_CELLS = re.compile(r"(?<!\\)\|")


@dataclass(frozen=True)
class Block:
    """A heading, a row of a table, a paragraph or list item, or a line of code.

    Attributes:
        kind: `header` is the first row of a table.
        text: with white space normalised; of a row its cells with " | " between.
        line: in the file, from 1.
        section: of the heading above, without its figures; empty before the first.
        table: of a row, the text of its header.
    """

    kind: Kind
    text: str
    line: int
    section: str = ""
    table: str = ""

    @property
    def words(self) -> list[str]:
        """The text in words."""
        return self.text.split()

    @property
    def cells(self) -> list[str]:
        """Of a row."""
        return self.text.split(" | ")


@dataclass(frozen=True)
class Metric:
    """One figure of the model-index: what identifies it, the title of its data set, its task, and its value."""

    dataset: str
    title: str
    task: str
    name: str
    kind: str
    value: Any
    line: int
    task_line: int

    @property
    def key(self) -> tuple[str, str, str]:
        """What identifies it."""
        return self.dataset, self.kind, self.name


@dataclass(frozen=True)
class Head:
    """The YAML head: its keys but for the model-index with their lines, and the figures of that."""

    values: dict[str, tuple[Any, int]]
    repeated: tuple[tuple[str, int], ...]
    metrics: tuple[Metric, ...]


def split_card(text: str, name: str) -> tuple[Head | None, list[tuple[int, str]]]:
    """The head of a card, None where there is none, and the lines of its body with their numbers.

    Args:
        text: of the whole file.
        name: what errors call it.

    Raises:
        InputError: the head is not YAML.
    """
    lines = text.lstrip("\ufeff").splitlines()
    ends = [n for n, line in enumerate(lines) if line.rstrip() == "---"]
    if not lines or not ends or ends[0] != 0 or len(ends) < 2:
        return None, list(enumerate(lines, 1))
    return _head("\n".join(lines[1 : ends[1]]), name), list(enumerate(lines, 1))[ends[1] + 1 :]


def read_blocks(lines: Sequence[tuple[int, str]], sections: frozenset[str] | None = None) -> list[Block]:
    """The blocks of a body.

    Args:
        lines: with their numbers.
        sections: headings that begin a section (see `section_of`); others are text of the section they stand in. None:
            every heading begins one.
    """
    blocks: list[Block] = []
    section, fence, table, open_text = "", "", "", False
    hidden: list[str] = []
    for number, raw in lines:
        line = raw if fence else _visible(raw, hidden)
        mark = _FENCE.match(line)
        if fence:
            if mark and line.strip() == mark[1] and mark[1].startswith(fence):
                fence = ""
            elif line.strip():
                blocks.append(Block("code", _squeezed(line), number, section))
            continue
        if mark:
            fence, table, open_text = mark[1], "", False
            continue
        heading = _HEADING.match(line)
        if heading:
            title = _squeezed(heading[2])
            if sections is None or section_of(title) in sections:
                section = section_of(title)
            blocks.append(Block("heading", title, number, section))
            table, open_text = "", False
        elif line.lstrip().startswith("|"):
            cells = " | ".join(_squeezed(cell) for cell in _CELLS.split(line.strip().strip("|")))
            if table and _RULE.match(line):
                continue
            blocks.append(Block("row" if table else "header", cells, number, section, table))
            table, open_text = table or cells, False
        elif not line.strip():
            table, open_text = "", False
        elif open_text and not _ITEM.match(line):
            last = blocks.pop()
            blocks.append(Block("text", f"{last.text} {_squeezed(line)}", last.line, section))
        else:
            item = _ITEM.match(line)
            blocks.append(Block("text", _squeezed(f"- {line[item.end() :]}" if item else line), number, section))
            table, open_text = "", True
    return blocks


def model_of(text: str, name: str) -> str | None:
    """The model that a card is of: the name in its model-index, else its first heading; None where it has neither.

    Args:
        text: of the whole file.
        name: what errors call it.

    Raises:
        InputError: the head is not YAML.
    """
    head, lines = split_card(text, name)
    index = head.values.get("model-index") if head else None
    if index and index[0] and index[0][0]:
        return str(index[0][0])
    return next((block.text for block in read_blocks(lines) if block.kind == "heading"), None)


def section_of(heading: str) -> str:
    """A heading without the figures that follow its words."""
    return re.split(r" \(|:", heading)[0].strip().lower()


def has_figure(text: str) -> bool:
    """Whether a text holds a digit."""
    return any(character.isdigit() for character in text)


def _visible(line: str, hidden: list[str]) -> str:
    """A line without what no reader sees: what is in HTML comments, and in elements that are not shown.

    Args:
        line: of the body.
        hidden: what is still open from the lines before: "--" for a comment, else the names of the elements, each in
            the one before. Changed in place.
    """
    seen = ""
    while line:
        if not hidden:
            mark = _HIDING.search(line)
            seen += line[: mark.start()] if mark else line
            hidden += [(mark[1] or "--").lower()] if mark else []
            line = line[mark.end() :] if mark else ""
            continue
        name = hidden[-1]
        ends = re.search("-->" if name == "--" else rf"<(/?){name}\b[^<>]*>", line, re.IGNORECASE)
        if ends and (name == "--" or ends[1]):
            hidden.pop()
        elif ends:
            hidden.append(name)
        line = line[ends.end() :] if ends else ""
    return seen


def _squeezed(text: str) -> str:
    return " ".join(text.split())


def _head(text: str, name: str) -> Head:
    import yaml  # type: ignore[import-untyped]

    loader: Any = None
    try:
        loader = yaml.SafeLoader(text)
        node = loader.get_single_node()
        if node is None or not isinstance(node, yaml.MappingNode):
            raise InputError(f"{name}: its head holds no keys, expected YAML such as license: apache-2.0.")
        values: dict[str, tuple[Any, int]] = {}
        repeated = []
        metrics: list[Metric] = []
        for key, value in node.value:
            word, line = str(key.value), key.start_mark.line + 2
            if word in values:
                repeated.append((word, line))
            if word == "model-index":
                metrics += _metrics(loader, value)
                index = loader.construct_object(value, deep=True)
                values[word] = (
                    [one.get("name") for one in (index if isinstance(index, list) else ()) if isinstance(one, dict)],
                    line,
                )
            else:
                values[word] = (loader.construct_object(value, deep=True), line)
    except (yaml.YAMLError, ValueError) as error:  # a date that is none is a ValueError
        mark = getattr(error, "problem_mark", None)
        where = f" line {mark.line + 2}" if mark else ""
        raise InputError(
            f"{name}{where}: its head is not YAML ({getattr(error, 'problem', None) or error}).",
            "Mend it, or render the card anew.",
        ) from None
    finally:
        if loader is not None:
            loader.dispose()
    return Head(values, tuple(repeated), tuple(metrics))


def _metrics(loader: Any, index: Any) -> list[Metric]:
    """The figures of a model-index; what has another form than the hub's is left out, and so will be missing."""
    found = []
    for model in _items(index):
        for result in _items(_get(model, "results")):
            dataset = _plain(loader, _get(_get(result, "dataset"), "type"))
            task = _get(result, "task")
            for metric in _items(_get(result, "metrics")):
                value = _get(metric, "value")
                found.append(
                    Metric(
                        dataset=str(dataset),
                        title=str(_plain(loader, _get(_get(result, "dataset"), "name"))),
                        task=" ".join(str(_plain(loader, _get(task, key))) for key in ("type", "name")),
                        name=str(_plain(loader, _get(metric, "name"))),
                        kind=str(_plain(loader, _get(metric, "type"))),
                        value=_plain(loader, value),
                        line=(metric if value is None else value).start_mark.line + 2,
                        task_line=(_get(task, "type") or result).start_mark.line + 2,
                    )
                )
    return found


def _items(node: Any) -> list[Any]:
    return list(node.value) if node is not None and node.id == "sequence" else []


def _get(node: Any, key: str) -> Any:
    if node is None or node.id != "mapping":
        return None
    return next((value for name, value in node.value if name.value == key), None)


def _plain(loader: Any, node: Any) -> Any:
    return None if node is None else loader.construct_object(node, deep=True)
