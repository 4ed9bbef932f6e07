"""Conversation families: what must stay on one side of a split, because one half would give the other away.

Two conversations are of one family when they begin with the same question, or when their questions or answers share
more than half of their word triples; and so on through a third. Texts of a few words are compared whole and as
questions only: "Yes, do." answers many. The similarity is computed exactly (an index of triples, no hashing), so that
a split is the same on every machine.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

from karma_electric.core.messages import Conversation

_SHINGLE = 3
_FEWEST = 10  # word triples a text must have to be compared by them
SHARED = 0.5  # Jaccard similarity from which two texts are of one family


def families(conversations: Sequence[Conversation]) -> list[list[int]]:
    """Indices of conversations, grouped: the groups in the order of their first members."""
    leader = list(range(len(conversations)))

    def find(index: int) -> int:
        while leader[index] != index:
            leader[index] = leader[leader[index]]
            index = leader[index]
        return index

    def join(one: int, other: int) -> None:
        first, second = sorted((find(one), find(other)))
        leader[second] = first

    openings: dict[str, int] = {}
    for index, conversation in enumerate(conversations):
        join(openings.setdefault(" ".join(_words(conversation[0].content)), index), index)
    for role in ("user", "assistant"):
        _join_similar([_shingles(m.content for m in c if m.role == role) for c in conversations], join)
    groups: dict[int, list[int]] = defaultdict(list)
    for index in range(len(conversations)):
        groups[find(index)].append(index)
    return [groups[key] for key in sorted(groups)]


def _join_similar(texts: Sequence[set[str]], join: Callable[[int, int], None]) -> None:
    holders: dict[str, list[int]] = defaultdict(list)
    for index, shingles in enumerate(texts):
        shared = Counter(other for shingle in shingles for other in holders[shingle])
        for other, count in shared.items():
            if count > SHARED * (len(shingles) + len(texts[other]) - count):
                join(other, index)
        for shingle in shingles:
            holders[shingle].append(index)


def _shingles(texts: Iterable[str]) -> set[str]:
    words = [word for text in texts for word in _words(text)]
    shingles = {" ".join(words[i : i + _SHINGLE]) for i in range(len(words) - _SHINGLE + 1)}
    return shingles if len(shingles) >= _FEWEST else set()


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
