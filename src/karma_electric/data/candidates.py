"""The workbench's candidates: added without overwriting, edited with earlier versions kept, decided on, searched."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast

from karma_electric.core.artifact import canonical_json, hash_text
from karma_electric.core.errors import DataError, InputError
from karma_electric.core.messages import Message
from karma_electric.data.candidate import Candidate
from karma_electric.data.database import Database
from karma_electric.data.example import STATUSES, Analysis
from karma_electric.data.records import (
    Added,
    Conflict,
    Hit,
    Review,
    Revision,
    as_record,
    comparable,
    differing_fields,
    from_record,
)
from karma_electric.data.search_query import readings

_BATCH = 500  # candidates per transaction: what a kill can cost
_SMALLEST_ROW = 200  # bytes: two hashes and the shortest conversation
_PAGE = 200  # candidates read at a time: no read stays open while others write
_BAD_QUERY_SIGNS = ("fts5", "no such column", "unterminated", "unknown special query", "malformed MATCH")


class Candidates:
    """The part of a `Store` that holds conversations and what was decided about them."""

    def __init__(self, database: Database) -> None:
        self._db = database

    @property
    def path(self) -> Path:
        """The file."""
        return self._db.path

    def transaction(self) -> AbstractContextManager[None]:
        """All that is written inside is kept, or nothing of it: for many writes at once."""
        return self._db.transaction()

    def rows(self, sql: str, values: Sequence[Any] = ()) -> list[sqlite3.Row]:
        """Rows of a query of one's own, for statistics."""
        return self._db.rows(sql, values)

    def add(self, candidates: Iterable[Candidate], *, origin: str) -> Added:
        """Add candidates, in transactions of some hundred.

        One whose id is taken is compared with the record that was imported under that id, and with what it is now:
        if it equals either, nothing is done; else it is kept out and reported. Nothing is overwritten.

        Args:
            candidates: what to add.
            origin: where they come from, for the records ("chats.jsonl", "generate:my-model").
        """
        new = unchanged = 0
        conflicts: list[Conflict] = []
        remaining = iter(candidates)
        while batch := list(islice(remaining, _BATCH)):
            with self._db.transaction():
                for candidate in batch:
                    differs = self._add_one(candidate, origin)
                    if differs is None:
                        new += 1
                    elif not differs:
                        unchanged += 1
                    else:
                        conflicts.append(Conflict(candidate.id, origin, differs))
        return Added(new, unchanged, conflicts)

    def _add_one(self, candidate: Candidate, origin: str) -> tuple[str, ...] | None:
        """None if it was new, else the fields in which the one that is there differs."""
        digest = hash_text(_encodable(canonical_json(comparable(candidate)), candidate.id))
        known = self._db.rows("SELECT * FROM candidates WHERE id = ?", (candidate.id,))
        if known:
            return () if known[0]["imported_sha256"] == digest else differing_fields(_candidate(known[0]), candidate)
        row = {**_row(candidate), "origin": origin, "imported_sha256": digest, "added_at": now()}
        names, marks = ", ".join(row), ", ".join("?" * len(row))
        self._db.execute(f"INSERT INTO candidates ({names}) VALUES ({marks})", tuple(row.values()))
        return None

    def get(self, id: str) -> Candidate:
        """One candidate.

        Raises:
            InputError: there is none of that id.
        """
        rows = self._db.rows("SELECT * FROM candidates WHERE id = ?", (id,))
        if not rows:
            raise InputError(f"{self.path} has no candidate {id!r}.", "Find one with: karma data search WORDS")
        return _candidate(rows[0])

    def candidates(
        self,
        *,
        status: str | None = None,
        category: str | None = None,
        ids: Sequence[str] | None = None,
        order: Literal["id", "import"] = "id",
    ) -> Iterator[Candidate]:
        """Candidates, a page at a time: writing to the store between two of them is safe.

        Args:
            status: only those with it.
            category: only those of it.
            ids: only these; all of them must exist.
            order: by id, or in the order in which they came in.

        Raises:
            InputError: an id of `ids` that is not there.
        """
        if ids is not None:
            for id_ in sorted(set(ids)):
                candidate = self.get(id_)
                if status in (None, candidate.status) and category in (None, candidate.category):
                    yield candidate
            return
        conditions, values = [], []
        for column, value in (("status", status), ("category", category)):
            if value is not None:
                conditions.append(f"{column} = ?")
                values.append(value)
        key, after = ("id", cast("Any", "")) if order == "id" else ("rowid", 0)
        where = " AND ".join([*conditions, f"{key} > ?"])
        sql = f"SELECT rowid AS place, * FROM candidates WHERE {where} ORDER BY {key} LIMIT {_PAGE}"
        while page := self._db.rows(sql, (*values, after)):
            yield from (_candidate(row) for row in page)
            after = page[-1]["id" if order == "id" else "place"]

    def salvage(self) -> Iterator[Candidate | None]:
        """Candidates of a damaged file, one by one in the order in which they came in; None for an unreadable one."""
        try:
            last = int(self._db.rows("SELECT max(rowid) FROM candidates")[0][0] or 0)
        except DataError:
            last = self.path.stat().st_size // _SMALLEST_ROW
        for place in range(1, last + 1):
            try:
                rows = self._db.rows("SELECT * FROM candidates WHERE rowid = ?", (place,))
                yield from map(_candidate, rows)
            except DataError:
                yield None

    def count(self) -> int:
        """Number of candidates."""
        return int(self._db.rows("SELECT count(*) FROM candidates")[0][0])

    def replace(self, candidate: Candidate, *, reason: str, reviewer: str) -> None:
        """Put an edited candidate in the place of the one with its id; that one stays in `revisions`.

        Raises:
            InputError: there is none of that id.
        """
        with self._db.transaction():
            before = self.get(candidate.id)
            record = canonical_json(as_record(before))
            if record == canonical_json(as_record(candidate)):
                return
            self._db.execute(
                "INSERT INTO revisions (candidate_id, number, record, reason, reviewer, replaced_at) SELECT"
                " ?, 1 + (SELECT count(*) FROM revisions WHERE candidate_id = ?), ?, ?, ?, ?",
                (candidate.id, candidate.id, record, reason, reviewer, now()),
            )
            row = _row(candidate)
            names = ", ".join(f"{name} = ?" for name in row)
            self._db.execute(f"UPDATE candidates SET {names} WHERE id = ?", (*row.values(), candidate.id))
            if candidate.status != before.status:
                self._record_decision(candidate, reason, reviewer)

    def revisions(self, id: str) -> list[Revision]:
        """The versions of a candidate that edits have replaced, oldest first."""
        rows = self._db.rows("SELECT * FROM revisions WHERE candidate_id = ? ORDER BY number", (id,))
        return [
            Revision(
                from_record(json.loads(row["record"])),
                row["number"],
                row["reason"],
                row["reviewer"],
                row["replaced_at"],
            )
            for row in rows
        ]

    # --- reviews

    def decide(self, id: str, status: str, *, reason: str, reviewer: str) -> None:
        """Give a candidate a status; earlier decisions are kept.

        Raises:
            InputError: no such candidate, or no such status.
        """
        if status not in STATUSES:
            raise InputError(f"The status {status!r} is unknown.", f"Give one of {', '.join(STATUSES)}.")
        with self._db.transaction():
            candidate = self.get(id)
            self._db.execute("UPDATE candidates SET status = ? WHERE id = ?", (status, id))
            self._record_decision(Candidate(**{**vars(candidate), "status": status}), reason, reviewer)

    def _record_decision(self, candidate: Candidate, reason: str, reviewer: str) -> None:
        self._db.execute(
            "INSERT INTO reviews (candidate_id, status, reason, reviewer, content_sha256, decided_at)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            (candidate.id, candidate.status, reason, reviewer, candidate.content_sha256, now()),
        )

    def reviews(self, id: str | None = None) -> list[Review]:
        """Decisions, oldest first: about one candidate, or all."""
        where, values = ("", ()) if id is None else (" WHERE candidate_id = ?", (id,))
        columns = ", ".join(Review.__dataclass_fields__)
        return [Review(**row) for row in self._db.rows(f"SELECT {columns} FROM reviews{where} ORDER BY id", values)]

    # --- search

    def search(self, query: str, *, limit: int) -> list[Hit]:
        """Full-text search over turns and tags, best first. Words are all required; "a phrase", OR, NOT and word* work.

        Words with signs in them are looked for without: "C++" finds the word c, "don't" the phrase don t.

        Raises:
            InputError: nothing to look for.
        """
        sql = (
            "SELECT c.id, c.category, c.status, snippet(candidates_fts, -1, '[', ']', '...', 24) AS snippet"
            " FROM candidates_fts JOIN candidates c ON c.rowid = candidates_fts.rowid"
            " WHERE candidates_fts MATCH ? ORDER BY rank, c.id LIMIT ?"
        )
        cause = ""
        for reading in readings(query):
            try:
                return [Hit(**row) for row in self._db.rows(sql, (reading, limit))]
            except DataError as error:
                cause = str(error.__cause__ or "")
                if not any(sign in cause for sign in _BAD_QUERY_SIGNS):
                    raise
        raise InputError(f"{query!r} is no search query ({cause}).", "Give the words alone.")

    def _must_exist(self, id: str) -> None:
        if not self._db.rows("SELECT 1 FROM candidates WHERE id = ?", (id,)):
            self.get(id)


def now() -> str:
    """The time, as the workbench writes it: UTC, to the second."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _encodable(text: str, id: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise DataError(f"{id!r} holds half of a surrogate pair, which is no character.", "Correct its text.") from None
    return text


def _row(candidate: Candidate) -> dict[str, Any]:
    record = as_record(candidate)
    analysis: Mapping[str, str | None] = record["analysis"] or {}
    return {
        "id": candidate.id,
        "category": candidate.category,
        "status": candidate.status,
        "tags": json.dumps(record["tags"], ensure_ascii=False),
        "turns": len(candidate.messages),
        "text": "\n\n".join(message.content for message in candidate.messages),
        "system": candidate.system,
        "messages": json.dumps(record["messages"], ensure_ascii=False),
        "analysis_direct": analysis.get("direct"),
        "analysis_downstream": analysis.get("downstream"),
        "analysis_inaction": analysis.get("inaction"),
        "source": candidate.source,
        "license": candidate.license,
        "added_in": candidate.added_in,
        "extra": json.dumps(record["extra"], ensure_ascii=False),
        "content_sha256": candidate.content_sha256,
    }


def _candidate(row: sqlite3.Row) -> Candidate:
    direct, downstream, inaction = row["analysis_direct"], row["analysis_downstream"], row["analysis_inaction"]
    try:
        return Candidate(
            id=row["id"],
            messages=[Message(turn["role"], turn["content"]) for turn in json.loads(row["messages"])],
            system=row["system"],
            category=row["category"],
            tags=tuple(json.loads(row["tags"])),
            analysis=None if direct is None else Analysis(direct, downstream, inaction),
            source=row["source"],
            license=row["license"],
            added_in=row["added_in"],
            status=row["status"],
            extra=json.loads(row["extra"]),
        )
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise DataError(
            f"The workbench's row of {row['id']!r} is damaged ({error}).",
            "Another program has written to it: import that conversation again with --replace, into a new workbench.",
        ) from None
