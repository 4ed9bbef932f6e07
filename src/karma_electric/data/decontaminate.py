"""Finds training texts that a test would recognise: 13 words in a row, the same short text, or the same in meaning.

What a model was trained on is not measured. References are the suites, contrast prompts, labelled responses, or any
file of theirs; every text of a reference counts, also what a good answer does. Knows nothing of stores.

What it does not see: a short reference (under 13 words) inside a longer text in other words, and a translation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from karma_electric.core.errors import DataError, MissingError
from karma_electric.core.progress import Progress
from karma_electric.data.texts import read_texts, words

if TYPE_CHECKING:
    from karma_electric.models.sentences import SentenceModel

SPAN = 13  # words in a row that count as the same text
SEMANTIC = 0.85  # cosine similarity from which a text gives a reference away
FEWEST_WORDS = 4  # a shorter text ("Yes, please.") is nobody's in particular

Kind = Literal["words", "semantic"]


@dataclass(frozen=True)
class Passage:
    """One text and where it is: `id` of an example, or "FILE:ID" of a reference."""

    id: str
    text: str


@dataclass(frozen=True)
class Overlap:
    """A text that a reference shares.

    Attributes:
        id, other: the example, and the reference.
        kind: "words" (in a row, or the whole of a short text) or "semantic".
        similarity: for words the shared share of the shorter text; else cosine.
        text, other_text: the two texts.
        detail: the words that are shared, or the similarity in words.
    """

    id: str
    other: str
    kind: Kind
    similarity: float
    text: str
    other_text: str
    detail: str

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {**asdict(self), "similarity": round(self.similarity, 4)}


def reference_files(paths: Sequence[Path]) -> list[Path]:
    """The JSONL files of some files and folders, by name.

    Raises:
        MissingError: a path that does not exist, or a folder without JSONL files.
    """
    files: list[Path] = []
    for path in paths:
        found = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not found or not all(file.is_file() for file in found):
            raise MissingError(
                f"{path} {'has no .jsonl files' if path.is_dir() else 'does not exist'}.",
                "Give a .jsonl file or a folder of them.",
            )
        files += found
    return list(dict.fromkeys(files))


def read_references(paths: Sequence[Path]) -> list[Passage]:
    """Every text of some JSONL files or folders of them, once.

    Raises:
        MissingError: no such file, or a folder without any.
        DataError: a line without a text under a known key.
    """
    passages: dict[str, Passage] = {}
    for file in reference_files(paths):
        for record in read_texts(file):
            for text in record.texts:
                passages.setdefault(text, Passage(f"{file.name}:{record.id}", text))
    if not passages:
        names = ", ".join(str(path) for path in paths)
        raise DataError(
            f"{names}: no text to compare with, expected at least one.", "Give --against files that have some."
        )
    return list(passages.values())


def find_overlaps(
    passages: Sequence[Passage],
    references: Sequence[Passage],
    *,
    semantic: float | None = SEMANTIC,
    model: SentenceModel | None = None,
    progress: Progress | None = None,
) -> list[Overlap]:
    """What the passages share with the references: for each passage the longest run of words, else the closest meaning.

    Args:
        passages: texts of examples; several may have one id.
        references: what must stay unseen.
        semantic: cosine similarity, or None to compare words alone. Needs `model`.
        model: the sentence model.
        progress: told how many texts are embedded.
    """
    found = list(_word_overlaps(passages, references))
    if semantic is not None:
        if model is None:
            raise ValueError("semantic overlaps need a sentence model")
        shared = {(overlap.id, overlap.text) for overlap in found}
        left = [p for p in passages if (p.id, p.text) not in shared and len(words(p.text)) >= FEWEST_WORDS]
        right = [r for r in references if len(words(r.text)) >= FEWEST_WORDS]
        matches = model.closest_between([p.text for p in left], [r.text for r in right], semantic, progress)
        for match in matches:
            mine, other = left[match.index], right[match.other]
            detail = f"the same meaning ({match.similarity:.2f})"
            found.append(Overlap(mine.id, other.id, "semantic", match.similarity, mine.text, other.text, detail))
    return sorted(found, key=lambda overlap: (overlap.id, overlap.text))


def _word_overlaps(passages: Iterable[Passage], references: Sequence[Passage]) -> Iterable[Overlap]:
    tokens = [words(reference.text) for reference in references]
    places: dict[int, tuple[int, int]] = {}  # hash of 13 words -> (reference, first word); checked when it is hit
    whole: dict[str, int] = {}
    for number, reference in enumerate(tokens):
        if len(reference) >= FEWEST_WORDS:
            whole.setdefault(" ".join(reference), number)
        for start in range(len(reference) - SPAN + 1):
            places.setdefault(hash(tuple(reference[start : start + SPAN])), (number, start))
    for passage in passages:
        mine = words(passage.text)
        best = (0, 0, 0)  # words shared, reference, first word of mine
        if " ".join(mine) in whole:
            best = len(mine), whole[" ".join(mine)], 0
        start = 0
        while start + max(SPAN, best[0] + 1) <= len(mine):
            number, place = places.get(hash(tuple(mine[start : start + SPAN])), (0, -1))
            length = 0 if place < 0 else _run(mine, start, tokens[number], place)
            if length >= SPAN and length > best[0]:
                best = length, number, start
            start += 1
        length, number, start = best
        if length:
            run = " ".join(mine[start : start + length])
            yield Overlap(
                id=passage.id,
                other=references[number].id,
                kind="words",
                similarity=length / min(len(mine), len(tokens[number])),
                text=passage.text,
                other_text=references[number].text,
                detail=f"{length} words in a row: {run if len(run) <= 200 else run[:199] + '…'}",
            )


def _run(mine: Sequence[str], start: int, other: Sequence[str], place: int) -> int:
    """How many words are the same from here on."""
    length = 0
    while start + length < len(mine) and place + length < len(other) and mine[start + length] == other[place + length]:
        length += 1
    return length
