"""Finds texts that are there twice: exactly, nearly (MinHash, verified by true Jaccard), or in meaning (embeddings).

Items are looked at from the most to the least worth keeping; one goes if it is a copy of one that was kept. So every
item that goes has a kept item that it is a copy of, no two that stay are copies of each other, and a chain of
paraphrases (a like b, b like c, a unlike c) does not pull its far end out. Knows nothing of files or stores.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from karma_electric.core.progress import Progress, Silent
from karma_electric.data.texts import normalised

if TYPE_CHECKING:
    from karma_electric.models.sentences import SentenceModel

NEAR = 0.7  # Jaccard similarity of character shingles from which two texts are near-duplicates
SEMANTIC = 0.92  # cosine similarity from which two texts say the same

Kind = Literal["exact", "near", "semantic"]
Groups = Sequence[str | int]  # per position; the position itself where an item is in no group
_SHINGLE = 5  # characters
_PERMUTATIONS = 128
_MISSED = 0.001  # chance at most that a pair exactly at the threshold is not looked at
_HASHED_AT_ONCE = 4096  # shingles; bounds the memory of one very long text
_SHORT_WORDS = 30  # texts shorter than this ask another thing when their numbers or signs differ
_NUMBER = re.compile(r"\d+")
_SIGNED = re.compile(r"[^\W\d]+[#+]+|\.\w+")  # C#, C++, .NET
_STATUS_ORDER = ("accepted", "candidate", "rejected")


@dataclass(frozen=True)
class Item:
    """Something that may be there twice.

    Attributes:
        id: unique.
        texts: what is compared, by field ("prompt", "answer"); an empty text is never a copy.
        status: "accepted" is kept before "candidate".
        grade: total out of 40, or None; the higher is kept.
        group: items of one group are not compared with each other; None is in no group.
    """

    id: str
    texts: Mapping[str, str]
    status: str = "candidate"
    grade: float | None = None
    group: str | None = None


@dataclass(frozen=True)
class Duplicate:
    """An item that goes, the kept one it is a copy of, and why.

    Attributes:
        id, other: the one that goes and the one that stays.
        kind: how they were found to be the same.
        field: which of their texts.
        similarity: 1 for exact; Jaccard for near; cosine for semantic.
        text, other_text: the two texts.
    """

    id: str
    other: str
    kind: Kind
    field: str
    similarity: float
    text: str
    other_text: str

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {**asdict(self), "similarity": round(self.similarity, 4)}


def find_duplicates(
    items: Sequence[Item],
    *,
    near: float | None = NEAR,
    semantic: float | None = SEMANTIC,
    model: SentenceModel | None = None,
    progress: Progress | None = None,
) -> list[Duplicate]:
    """The items to remove, each with the kept one that it is a copy of; the same for any order of `items`.

    Kept first: accepted before candidate, higher grade, longer, lower id.

    Args:
        items: with unique ids and the same fields each.
        near: Jaccard similarity of character shingles, above 0 to 1, or None to leave it out.
        semantic: cosine similarity, or None to leave it out. Needs `model`.
        model: the sentence model.
        progress: told what is done.
    """
    progress = progress or Silent()
    ordered = sorted(items, key=_preference)
    fields = list(dict.fromkeys(field for item in ordered for field in item.texts))
    finders = {field: _finders(ordered, field, near, semantic, model, progress) for field in fields}
    found: list[Duplicate] = []
    progress.update(0, len(ordered), "compared")
    for position, item in enumerate(ordered):
        hit = next(
            (
                (finder.kind, field, *match)
                for field in fields
                for finder in finders[field]
                if item.texts.get(field, "").strip() and (match := finder.match(position))
            ),
            None,
        )
        if hit is None:
            for field in fields:
                if item.texts.get(field, "").strip():
                    for finder in finders[field]:
                        finder.keep(position)
        else:
            kind, field, other_position, similarity = hit
            other = ordered[other_position]
            found.append(Duplicate(item.id, other.id, kind, field, similarity, item.texts[field], other.texts[field]))
        if position % 500 == 499 or position + 1 == len(ordered):
            progress.update(position + 1, len(ordered), "compared")
    return sorted(found, key=lambda d: d.id)


def jaccard(one: str, other: str) -> float:
    """Similarity of two texts by their character shingles, after `normalised`: shared over all."""
    a, b = _shingles(normalised(one)), _shingles(normalised(other))
    return len(a & b) / len(a | b)


class _Exact:
    """Texts that are equal after `normalised`."""

    kind: Kind = "exact"

    def __init__(self, texts: Sequence[str], groups: Groups) -> None:
        self._texts = texts
        self._groups = groups
        self._kept: dict[str, int] = {}  # where several are kept, all are of one group

    def match(self, position: int) -> tuple[int, float] | None:
        other = self._kept.get(self._texts[position])
        return None if other is None or self._groups[other] == self._groups[position] else (other, 1.0)

    def keep(self, position: int) -> None:
        self._kept[self._texts[position]] = position


class _Near:
    """Texts that share most of their characters in a row. MinHash proposes, the true Jaccard similarity decides."""

    kind: Kind = "near"

    def __init__(self, texts: Sequence[str], groups: Groups, threshold: float, progress: Progress) -> None:
        from datasketch import MinHash, MinHashLSH

        self._texts = texts
        self._groups = groups
        self._threshold = threshold
        self._lsh = MinHashLSH(num_perm=_PERMUTATIONS, params=_bands(threshold))
        self._hashes = []
        progress.update(0, len(texts), "hashed")
        empty = MinHash(num_perm=_PERMUTATIONS, hashfunc=zlib.crc32)
        for number, text in enumerate(texts, 1):
            minhash = empty.copy()
            shingles = [shingle.encode("utf-8", "surrogatepass") for shingle in _shingles(text)]
            for start in range(0, len(shingles), _HASHED_AT_ONCE):
                minhash.update_batch(shingles[start : start + _HASHED_AT_ONCE])
            self._hashes.append(minhash)
            if number % 500 == 0 or number == len(texts):
                progress.update(number, len(texts), "hashed")

    def match(self, position: int) -> tuple[int, float] | None:
        group = self._groups[position]
        candidates = sorted(other for other in self._lsh.query(self._hashes[position]) if self._groups[other] != group)
        if not candidates:
            return None
        text = self._texts[position]
        mine = _shingles(text)
        best: tuple[int, float] | None = None
        for other in candidates:
            theirs = _shingles(self._texts[other])
            similarity = len(mine & theirs) / len(mine | theirs)
            if (
                similarity >= self._threshold
                and (best is None or similarity > best[1])
                and not _another_question(text, self._texts[other])
            ):
                best = other, similarity
        return best

    def keep(self, position: int) -> None:
        self._lsh.insert(position, self._hashes[position])


class _Semantic:
    """Texts that mean the same to the sentence model."""

    kind: Kind = "semantic"

    def __init__(
        self, texts: Sequence[str], groups: Groups, threshold: float, model: SentenceModel, progress: Progress
    ) -> None:
        close = model.close_within(texts, threshold, progress)
        self._texts = texts
        self._groups = groups
        self._threshold = threshold
        self._vectors = {p: close.vectors[row] for row, p in enumerate(close.indices)}  # views, no copies
        self._kept: list[int] = []
        self._kept_vectors = close.vectors.copy()  # filled from the top as items are kept

    def match(self, position: int) -> tuple[int, float] | None:
        if position not in self._vectors or not self._kept:
            return None
        similarities = self._kept_vectors[: len(self._kept)] @ self._vectors[position]
        over = [int(index) for index in (similarities >= self._threshold).nonzero()[0]]
        for index in sorted(over, key=lambda index: (-similarities[index], index)):
            other = self._kept[index]
            if self._groups[other] != self._groups[position] and not _another_question(
                self._texts[position], self._texts[other]
            ):
                return other, min(float(similarities[index]), 1.0)
        return None

    def keep(self, position: int) -> None:
        if position in self._vectors:
            self._kept_vectors[len(self._kept)] = self._vectors[position]
            self._kept.append(position)


def _finders(
    ordered: Sequence[Item],
    field: str,
    near: float | None,
    semantic: float | None,
    model: SentenceModel | None,
    progress: Progress,
) -> list[_Exact | _Near | _Semantic]:
    """The cheapest first: the first that matches names the kind."""
    texts = [item.texts.get(field, "") for item in ordered]
    plain = [normalised(text) for text in texts]
    groups = [position if item.group is None else item.group for position, item in enumerate(ordered)]
    finders: list[_Exact | _Near | _Semantic] = [_Exact(plain, groups)]
    if near is not None:
        finders.append(_Near(plain, groups, near, progress))
    if semantic is not None:
        if model is None:
            raise ValueError("semantic duplicates need a sentence model")
        finders.append(_Semantic(texts, groups, semantic, model, progress))
    return finders


def _preference(item: Item) -> tuple[int, float, int, str]:
    status = _STATUS_ORDER.index(item.status) if item.status in _STATUS_ORDER else 1
    grade = float("inf") if item.grade is None else -item.grade
    return status, grade, -sum(map(len, item.texts.values())), item.id


def _shingles(text: str) -> set[str]:
    # spaces around it, so that the first and the last letters count as much as the others
    padded = f"{' ' * (_SHINGLE - 1)}{text}{' ' * (_SHINGLE - 1)}"
    return {padded[i : i + _SHINGLE] for i in range(len(padded) - _SHINGLE + 1)}


def _bands(threshold: float) -> tuple[int, int]:
    """(bands, rows) of the table: the most rows that miss a pair at the threshold no more often than `_MISSED`."""
    for rows in range(_PERMUTATIONS // 2, 1, -1):
        bands = _PERMUTATIONS // rows
        if (1 - threshold**rows) ** bands <= _MISSED:
            return bands, rows
    return _PERMUTATIONS, 1


def _another_question(one: str, other: str) -> bool:
    """Whether two texts are short and differ in a number or a sign: 7 + 5 is not 7 + 6, nor C# C."""
    if min(len(one.split()), len(other.split())) >= _SHORT_WORDS:
        return False
    return _telling(one) != _telling(other)


def _telling(text: str) -> list[str]:
    signed = [token for token in normalised(text).split() if _SIGNED.fullmatch(token)]
    return sorted(signed + _NUMBER.findall(text))


def counts(duplicates: Iterable[Duplicate]) -> dict[str, int]:
    """How many of each kind."""
    kinds = [duplicate.kind for duplicate in duplicates]
    return {kind: kinds.count(kind) for kind in ("exact", "near", "semantic")}
