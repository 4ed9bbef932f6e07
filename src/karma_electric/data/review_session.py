"""A review: one candidate after another, each decision saved at once, each of them undone again if asked.

Knows nothing of screens.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from karma_electric.core.errors import DataError, InputError
from karma_electric.core.jsonl import parse_json
from karma_electric.core.messages import as_dicts
from karma_electric.data.candidate import Candidate
from karma_electric.data.formats import karma
from karma_electric.data.rubric import Grade
from karma_electric.data.store import Removal, Review, Store

_FORM_KEYS = ("category", "tags", "system", "messages", "analysis", "source", "license", "added_in")
_MOST_HITS = 1000


@dataclass(frozen=True)
class Sheet:
    """A candidate with everything that was found out about it.

    Attributes:
        grades: one per rubric and judge, of its present words.
        penalties: rule set -> findings in its present words, for those that have looked at it.
        reviews: earlier decisions, oldest first.
        removals: what a filter found it to repeat.
    """

    candidate: Candidate
    grades: list[Grade]
    penalties: dict[str, list[dict[str, Any]]]
    reviews: list[Review]
    removals: list[Removal]


def read_sheet(store: Store, id: str) -> Sheet:
    """Gather what a reviewer wants to see of one candidate.

    Raises:
        InputError: there is none of that id.
    """
    candidate = store.get(id)
    return Sheet(
        candidate,
        grades=store.grades_of(id),
        penalties=store.penalties_of(id),
        reviews=store.reviews(id),
        removals=store.removals(id),
    )


@dataclass(frozen=True)
class _Done:
    """What undo takes back: a decision, or an edit, by what was there before."""

    place: int
    before: Candidate
    was_edit: bool


class ReviewSession:
    """A queue of candidates, the place in it, and what was done."""

    def __init__(self, store: Store, ids: Sequence[str], reviewer: str) -> None:
        self._store = store
        self._reviewer = reviewer
        self._all = list(ids)
        self._done: list[_Done] = []
        self.queue = list(ids)
        self.place = 0
        self.query: str | None = None

    @property
    def current(self) -> str | None:
        """Id of the candidate in front of the reviewer; None at the end."""
        return self.queue[self.place] if self.place < len(self.queue) else None

    def sheet(self) -> Sheet | None:
        """What there is to see, or None at the end."""
        return None if self.current is None else read_sheet(self._store, self.current)

    def decide(self, status: str, reason: str) -> None:
        """Accept or reject the current candidate, and go on to the next."""
        if self.current is None:
            return
        before = self._store.get(self.current)
        self._store.decide(self.current, status, reason=reason, reviewer=self._reviewer)
        self._done.append(_Done(self.place, before, was_edit=False))
        self.place += 1

    def skip(self, by: int = 1) -> None:
        """Go on, or back, without deciding."""
        self.place = min(max(self.place + by, 0), len(self.queue))

    def undo(self) -> str | None:
        """Take back the last decision or edit and go to its candidate. Returns what was undone, None for nothing.

        The history keeps both: what was decided, and that it was taken back.
        """
        if not self._done:
            return None
        done = self._done[-1]
        id_ = done.before.id
        if done.was_edit:
            self._store.replace(done.before, reason="edit undone", reviewer=self._reviewer)
        else:
            self._store.decide(id_, done.before.status, reason="decision undone", reviewer=self._reviewer)
        self._done.pop()
        if id_ in self.queue:
            self.place = self.queue.index(id_)
        else:  # the queue is now that of a search
            self.queue, self.query = list(self._all), None
            self.place = self.queue.index(id_) if id_ in self.queue else min(done.place, len(self.queue))
        return f"{'edit' if done.was_edit else 'decision'} on {id_}"

    def search(self, query: str) -> int:
        """Go through what a search finds; an empty query goes back to the whole queue. Returns how many there are.

        Raises:
            InputError: no query, or nothing found.
        """
        if not query.strip():
            self.queue, self.query, self.place = list(self._all), None, 0
            return len(self.queue)
        found = [hit.id for hit in self._store.search(query, limit=_MOST_HITS)]
        if not found:
            raise InputError(f"Nothing found for {query!r}.", "Try fewer words, or a part of one: lodg*")
        self.queue, self.query, self.place = found, query, 0
        return len(found)

    def form(self) -> str:
        """The current candidate as JSON text to edit; its id and status are not part of it."""
        if self.current is None:
            raise InputError("There is no candidate to edit.", "Go back to one.")
        return edit_form(self._store.get(self.current))

    def save_form(self, text: str) -> bool:
        """Save an edited form. Returns whether anything had changed.

        Raises:
            DataError: what is wrong with it; nothing is saved then.
        """
        if self.current is None:
            raise InputError("There is no candidate to edit.", "Go back to one.")
        before = self._store.get(self.current)
        after = read_form(text, before)
        if after == before:
            return False
        self._store.replace(after, reason="edited in review", reviewer=self._reviewer)
        self._done.append(_Done(self.place, before, was_edit=True))
        return True


def edit_form(candidate: Candidate) -> str:
    """A candidate as JSON text for a person to edit."""
    record = karma.write(candidate)
    record = {"system": candidate.system, **record, "messages": as_dicts(candidate.messages)}
    return json.dumps({key: record[key] for key in _FORM_KEYS}, indent=2, ensure_ascii=False) + "\n"


def read_form(text: str, before: Candidate) -> Candidate:
    """The candidate that an edited form makes of `before`.

    Raises:
        DataError: not JSON, a missing or unknown key, or a value that cannot be.
    """
    where = f"The form of {before.id}"
    record = parse_json(text.encode("utf-8", "surrogatepass"), where)
    if not isinstance(record, dict) or set(record) != set(_FORM_KEYS):
        raise DataError(f"{where} must be an object with the keys {', '.join(_FORM_KEYS)}.")
    edited = karma.read({**record, "id": before.id, "status": before.status}, where)
    return replace(edited, extra=before.extra)
