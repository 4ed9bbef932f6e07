"""Compares a published model card with the one that the artifacts give now, block by block.

Whatever the rendered card says has to be in the published one, figure for figure; what somebody added in between may
stay. Knows nothing of runs: it is given two texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from typing import Any, Literal

from karma_electric.card_text import Block, Head, Metric, has_figure, read_blocks, split_card
from karma_electric.rendering import ABSENT, UNMADE

Kind = Literal["figure", "gap", "unfounded", "text", "missing", "section", "extra"]
MEANING: dict[Kind, str] = {
    "figure": "figures that differ",
    "gap": "gaps in the card that the artifacts fill",
    "unfounded": "figures that no artifact holds any more",
    "text": "sentences that differ",
    "missing": "lines that the card lacks",
    "section": "sections that the card lacks",
    "extra": "rows, results or figures beside ours that no artifact gives",
}
_ALIKE = 0.5  # share of words that two blocks have in common when one is the other, changed


@dataclass(frozen=True)
class Difference:
    """One place where a card is not what the artifacts say.

    Attributes:
        kind: see MEANING.
        line: in the card; None where the card has no such line.
        where: section, and row and column of a table.
        card: what the card says there; empty for nothing.
        artifacts: what the artifacts say; empty for nothing.
    """

    kind: Kind
    line: int | None
    where: str
    card: str
    artifacts: str


@dataclass(frozen=True)
class Checked:
    """A card against the artifacts.

    Attributes:
        differences: what has to be mended, in the order of the card.
        compared: blocks and figures that were looked for.
        own: lines of the card that hold figures in text, or results in the head, that somebody added; these can be
            compared with nothing.
    """

    differences: tuple[Difference, ...]
    compared: int
    own: tuple[int, ...]


def check_card(card: str, rendered: str, *, name: str = "the card") -> Checked:
    """Compare a published card with the rendered one.

    Args:
        card: text of the published card.
        rendered: what `render_card` gives.
        name: what errors call the card.

    Raises:
        InputError: the card's head is not YAML.
    """
    wanted_head, wanted_lines = split_card(rendered, "the rendered card")
    head, lines = split_card(card, name)
    wanted = read_blocks(wanted_lines)
    sections = list(dict.fromkeys(block.section for block in wanted))
    found = read_blocks(lines, frozenset(sections))
    differences = list(_head(head, wanted_head)) if wanted_head else []
    own = _added_metrics(head, wanted_head) if head and wanted_head else []
    for section in sections:
        here = [block for block in found if block.section == section]
        ours = [block for block in wanted if block.section == section]
        if section and not any(block.kind == "heading" for block in here):
            differences.append(Difference("section", None, ours[0].text, "", f"{len(ours)} lines"))
            continue
        own += _section(ours, here, differences)
    metrics = len(wanted_head.metrics) + len(wanted_head.values) if wanted_head else 0
    return Checked(tuple(differences), len(wanted) + metrics, tuple(own))


def _head(head: Head | None, wanted: Head) -> Iterator[Difference]:
    if head is None:
        yield Difference("section", None, "YAML head", "", f"{len(wanted.values)} keys")
        return
    for key, line in head.repeated:
        yield Difference("extra", line, f"YAML head, {key}", "the key a second time", "")
    for key, (value, _) in wanted.values.items():
        if key not in head.values:
            yield Difference("missing", None, f"YAML head, {key}", "", str(value))
            continue
        said, line = head.values[key]
        lacking = (
            [item for item in value if item not in said] if isinstance(value, list) and isinstance(said, list) else ()
        )
        if lacking:
            yield Difference("missing", line, f"YAML head, {key}", "", ", ".join(map(str, lacking)))
        elif not isinstance(value, list) and said != value:
            yield Difference("text", line, f"YAML head, {key}", str(said), str(value))
        elif isinstance(value, list) and not isinstance(said, list):
            yield Difference("text", line, f"YAML head, {key}", str(said), ", ".join(map(str, value)))
    yield from _metrics(head.metrics, wanted.metrics)


def _metrics(found: Sequence[Metric], wanted: Sequence[Metric]) -> Iterator[Difference]:
    """The model-index. Results on a data set that the run has nothing on are somebody's own, and may stay."""
    for metric in wanted:
        where = f"YAML head, model-index, {metric.dataset}: {metric.name}"
        same = [one for one in found if one.key == metric.key]
        if not same:
            yield Difference("missing", None, where, "", str(metric.value))
        for one in same:
            if one.title != metric.title:
                yield Difference("text", one.line, where, one.title, metric.title)
            if one.task != metric.task:
                yield Difference("text", one.task_line, where, one.task, metric.task)
            if not _equal(one.value, metric.value):
                kind: Kind = "gap" if one.value is None or one.value == ABSENT else "figure"
                yield Difference(kind, one.line, where, str(ABSENT if kind == "gap" else one.value), str(metric.value))
    known = {metric.key for metric in wanted}
    ours = {metric.dataset for metric in wanted}
    for one in found:
        if one.key not in known and one.dataset in ours:
            where = f"YAML head, model-index, {one.dataset}: {one.name}"
            yield Difference("extra", one.line, where, str(one.value), "")


def _added_metrics(head: Head, wanted: Head) -> list[int]:
    """Lines of the results on data sets that the run has nothing on."""
    ours = {metric.dataset for metric in wanted.metrics}
    return [one.line for one in head.metrics if one.dataset not in ours]


def _equal(said: Any, value: Any) -> bool:
    return type(said) in (int, float) and said == value if isinstance(value, int | float) else bool(said == value)


def _section(ours: Sequence[Block], here: Sequence[Block], differences: list[Difference]) -> list[int]:
    """Compare one section. Returns the lines of figures in text that was added."""
    here = _tables_named_alike(ours, here)
    left, extra, longer = _unmatched(ours, here)
    pairs = []
    for block in list(left):
        candidates = [(likeness, other) for other in extra if (likeness := _likeness(block, other)) >= _ALIKE]
        if candidates:
            other = max(candidates, key=lambda pair: pair[0])[1]
            pairs.append((block, other))
            left.remove(block)
            extra.remove(other)
    found = [difference for block, other in pairs for difference in _changed(block, other)]
    for block, other in longer:
        added = " ... ".join(filter(None, (part.strip() for part in other.text.split(block.text, 1))))
        if has_figure(added):
            found.append(Difference("extra", other.line, _where(block), added, ""))
    own = []
    tables = {block.text for block in ours if block.kind == "header"}
    emptied = [block for block in left if _gaps(block.text)]
    for block in extra:
        if block.kind == "row" and block.table in tables:
            found.append(Difference("extra", block.line, _where(block), block.text, ""))
        elif has_figure(block.text) and not _gaps(block.text):
            if emptied and block.kind in ("text", "row"):
                found.append(Difference("unfounded", block.line, _where(block), block.text, ABSENT))
            else:
                own.append(block.line)
    told = any(difference.kind == "unfounded" for difference in found)
    found += [_lacking(block, extra) for block in left if not (told and block in emptied)]
    differences += sorted(found, key=lambda difference: difference.line or 0)
    return own


def _lacking(block: Block, extra: Sequence[Block]) -> Difference:
    """A block of ours that the card has not; said to be a gap of the card where it has one that fits."""
    gaps = [other for other in extra if _gaps(other.text)]
    if not gaps or _gaps(block.text) or not has_figure(block.text):
        return Difference("missing", None, _where(block), "", block.text)
    gap = max(gaps, key=lambda other: _ratio(block, other))
    return Difference("gap", gap.line, _where(block), gap.text, block.text)


def _tables_named_alike(ours: Sequence[Block], here: Sequence[Block]) -> list[Block]:
    """The card's rows under our header where theirs was changed, so that it is told once and not of every row."""
    headers = [block for block in ours if block.kind == "header"]
    theirs = {block.text for block in here if block.kind == "header"}
    names = {}
    for block in here:
        if block.kind == "header" and all(block.text != header.text for header in headers):
            near = [(r, h) for h in headers if h.text not in theirs and (r := _ratio(block, h)) >= _ALIKE]
            if near:
                names[block.text] = max(near, key=lambda pair: pair[0])[1].text
    return [replace(b, table=names.get(b.table, b.table)) if b.kind == "row" else b for b in here]


def _unmatched(
    ours: Sequence[Block], here: Sequence[Block]
) -> tuple[list[Block], list[Block], list[tuple[Block, Block]]]:
    """Blocks of ours that are not in the card as they are, blocks of the card that are none of ours, and pairs of one
    of ours with the card's that says it and more.
    """
    a, b = ([(block.kind, block.text, block.table) for block in blocks] for blocks in (ours, here))
    matcher = SequenceMatcher(None, a, b, autojunk=False)
    left, extra = list(ours), list(here)
    for at, there, size in matcher.get_matching_blocks():
        for offset in range(size):
            left.remove(ours[at + offset])
            extra.remove(here[there + offset])
    longer = []
    for block in list(left):  # moved, or with sentences added around it
        for other in extra:
            moved = (block.kind, block.text, block.table) == (other.kind, other.text, other.table)
            if (moved and block.kind != "code") or (block.kind == other.kind == "text" and _contains(other, block)):
                left.remove(block)
                extra.remove(other)
                longer += [] if moved else [(block, other)]
                break
    return left, extra, longer


def _contains(outer: Block, inner: Block) -> bool:
    return f" {inner.text} " in f" {outer.text} "


def _likeness(block: Block, other: Block) -> float:
    """How far a block of the card is one of ours, changed: 0 to 2."""
    if block.kind != other.kind or block.table != other.table:
        return 0.0
    same_row = block.kind == "row" and block.cells[0] == other.cells[0]
    return _ratio(block, other) + same_row + (block.kind == "heading")


def _ratio(a: Block, b: Block) -> float:
    return SequenceMatcher(None, a.words, b.words, autojunk=False).ratio()


def _changed(block: Block, other: Block) -> Iterator[Difference]:
    """What differs between a block of ours and the card's."""
    columns = block.table.split(" | ")
    if block.kind == "row" and len(block.cells) == len(other.cells) == len(columns):
        for column, wanted, said in zip(columns, block.cells, other.cells, strict=True):
            if wanted != said:
                where = f"{_where(block)}, column {column}"
                yield Difference(_kind(said, wanted, said, wanted), other.line, where, said, wanted)
        return
    matcher = SequenceMatcher(None, other.words, block.words, autojunk=False)
    changes = [
        (" ".join(other.words[a:b]), " ".join(block.words[c:d]))
        for tag, a, b, c, d in matcher.get_opcodes()
        if tag != "equal"
    ]
    said, wanted = (" ... ".join(filter(None, part)) for part in zip(*changes, strict=True))
    kind = _kind(said, wanted, other.text, block.text)
    whole = kind in ("gap", "unfounded") or not (said and wanted)
    yield Difference(kind, other.line, _where(block), other.text if whole else said, block.text if whole else wanted)


def _kind(said: str, wanted: str, card: str, ours: str) -> Kind:
    gaps, wanted_gaps = _gaps(card), _gaps(ours)
    if gaps != wanted_gaps:
        return "gap" if gaps > wanted_gaps else "unfounded"
    return "figure" if has_figure(said + wanted) else "text"


def _gaps(text: str) -> int:
    """How many gaps a text holds."""
    return text.count(ABSENT) + text.count(UNMADE)


def _where(block: Block) -> str:
    section = block.section[:1].upper() + block.section[1:] or "Beginning"
    return f"{section}, row {block.cells[0]}" if block.kind == "row" else section
