"""Tells whether an answer is there already, exactly or nearly, one at a time as answers come in.

What counts as equal and as near is dedupe.py's; this module only proposes what to compare.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from karma_electric.data.dedupe import NEAR, jaccard
from karma_electric.data.texts import normalised

_SHINGLE = 5  # characters, as in dedupe
_PERMUTATIONS = 128
# Rather too many proposals than too few: a near copy is missed once in some thousand.
_FALSE_POSITIVES, _FALSE_NEGATIVES = 0.1, 0.9


@dataclass(frozen=True)
class Copy:
    """What an answer is a copy of: the id of the other, how it was found, and their Jaccard similarity."""

    other: str
    kind: Literal["exact", "near"]
    similarity: float


class AnswersSeen:
    """Answers by id. Grows as answers are added."""

    def __init__(self, answers: Iterable[tuple[str, str]]) -> None:
        """`answers` are (id, text)."""
        from datasketch import MinHash, MinHashLSH

        self._texts: dict[str, str] = {}
        self._ids: dict[str, str] = {}  # normalised text -> id
        self._empty = MinHash(num_perm=_PERMUTATIONS, hashfunc=zlib.crc32)
        self._near = MinHashLSH(threshold=NEAR, num_perm=_PERMUTATIONS, weights=(_FALSE_POSITIVES, _FALSE_NEGATIVES))
        for id_, text in answers:
            self.add(id_, text)

    def copy_of(self, text: str) -> Copy | None:
        """The most similar answer that `text` is a copy of, or None."""
        plain = normalised(text)
        if plain in self._ids:
            return Copy(self._ids[plain], "exact", 1.0)
        found = [(jaccard(text, self._texts[id_]), id_) for id_ in self._near.query(self._hash(plain))]
        near = [(-similarity, id_) for similarity, id_ in found if similarity >= NEAR]
        if not near:
            return None
        similarity, id_ = min(near)
        return Copy(id_, "near", -similarity)

    def add(self, id: str, text: str) -> None:
        """Remember an answer; of two with the same words the first stays."""
        plain = normalised(text)
        if plain not in self._ids and id not in self._texts:
            self._ids[plain] = id
            self._texts[id] = text
            self._near.insert(id, self._hash(plain))

    def _hash(self, plain: str) -> object:
        minhash = self._empty.copy()
        ends = range(max(1, len(plain) - _SHINGLE + 1))
        minhash.update_batch([plain[i : i + _SHINGLE].encode("utf-8", "surrogatepass") for i in ends])
        return minhash
