"""The workbench: candidates with their grades, penalties, reviews and releases, in one SQLite file.

The corpus stays the source of truth, as text; the workbench is where a corpus grows. Nothing in it is ever deleted:
an edit keeps the version before it, a decision the ones before it.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from types import TracebackType
from typing import Any

from karma_electric.core.errors import InputError
from karma_electric.data.candidates import Candidates, now
from karma_electric.data.database import Database
from karma_electric.data.records import (
    Added,
    Conflict,
    Hit,
    Release,
    ReleaseMember,
    Removal,
    RemovalKind,
    Reply,
    Review,
    Revision,
)
from karma_electric.data.rubric import Grade, median_grade

__all__ = [
    "Added",
    "Conflict",
    "Hit",
    "Release",
    "ReleaseMember",
    "Removal",
    "Reply",
    "Review",
    "Revision",
    "Store",
]

_REPLY_COLUMNS = tuple(Reply.__dataclass_fields__)


class Store(Candidates):
    """An open workbench. Use it as a context manager, from one thread."""

    @classmethod
    def open(cls, path: Path, *, create: bool = False) -> Store:
        """Open a workbench file.

        Args:
            path: the file.
            create: make it if it is not there.

        Raises:
            MissingError: it is not there.
            DataError: it is no workbench, or damaged.
            ArtifactError: a newer version has written it.
            BusyError: another process holds it for more than 5 seconds.
        """
        return cls(Database.open(path, create=create))

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    # --- grades

    def add_reply(self, reply: Reply) -> None:
        """Keep a judge's answer. The same attempt of the same sample about the same words replaces the one before.

        Raises:
            InputError: there is no such candidate.
        """
        values = asdict(reply)
        values["scores"] = None if reply.scores is None else json.dumps(dict(reply.scores), ensure_ascii=False)
        values["replied_at"] = now()
        names, marks = ", ".join(values), ", ".join("?" * len(values))
        updates = ", ".join(f"{name} = excluded.{name}" for name in values)
        with self._db.transaction():
            self._must_exist(reply.candidate_id)
            self._db.execute(
                f"INSERT INTO replies ({names}) VALUES ({marks})"
                f" ON CONFLICT (candidate_id, content_sha256, rubric, judge, sample, attempt) DO UPDATE SET {updates}",
                tuple(values.values()),
            )

    def replies(self, *, rubric: str, judge: str, candidate_id: str | None = None) -> Iterator[Reply]:
        """All answers of a judge under a rubric, by candidate and sample; those about earlier words too."""
        where, values = "rubric = ? AND judge = ?", [rubric, judge]
        if candidate_id is not None:
            where, values = f"{where} AND candidate_id = ?", [*values, candidate_id]
        order = "candidate_id, content_sha256, sample, attempt"
        for row in self._db.rows(
            f"SELECT {', '.join(_REPLY_COLUMNS)} FROM replies WHERE {where} ORDER BY {order}", values
        ):
            yield _reply(row)

    def judges(self) -> list[tuple[str, str]]:
        """(rubric, judge) of all answers there are."""
        return [(row[0], row[1]) for row in self._db.rows("SELECT DISTINCT rubric, judge FROM replies ORDER BY 1, 2")]

    def grades(self, *, rubric: str, judge: str | None = None) -> dict[str, list[Grade]]:
        """Per candidate one grade of each judge: the median of its samples about the candidate's present words.

        Args:
            rubric: only under it.
            judge: only of this judge.
        """
        where, values = (
            ("r.rubric = ?", [rubric]) if judge is None else ("r.rubric = ? AND r.judge = ?", [rubric, judge])
        )
        return self._grades(where, values)

    def grades_of(self, id: str) -> list[Grade]:
        """The grades of one candidate's present words, under every rubric by every judge."""
        return self._grades("r.candidate_id = ?", [id]).get(id, [])

    def _grades(self, where: str, values: Sequence[str]) -> dict[str, list[Grade]]:
        rows = self._db.rows(
            f"SELECT {', '.join(f'r.{name}' for name in _REPLY_COLUMNS)} FROM replies r JOIN candidates c"
            " ON c.id = r.candidate_id AND c.content_sha256 = r.content_sha256"
            f" WHERE {where} ORDER BY r.candidate_id, r.rubric, r.judge, r.sample, r.attempt",
            values,
        )
        grades: dict[str, list[Grade]] = {}
        for (id_, _, name), group in groupby(map(_reply, rows), key=lambda r: (r.candidate_id, r.rubric, r.judge)):
            samples = [reply.as_grade() for reply in group]
            grades.setdefault(id_, []).append(median_grade(samples, name))
        return grades

    def add_judge_check(self, judge: str, rubric: str, report: Mapping[str, Any]) -> None:
        """Keep how a judge did on pairs of a better and a worse answer; earlier checks are kept."""
        self._db.execute(
            "INSERT INTO judge_checks (judge, rubric, report, checked_at) VALUES (?, ?, ?, ?)",
            (judge, rubric, json.dumps(dict(report), ensure_ascii=False), now()),
        )

    def judge_check(self, judge: str, rubric: str) -> dict[str, Any] | None:
        """The report of a judge's last check under a rubric, with `checked_at`; None when there was none."""
        rows = self._db.rows(
            "SELECT report, checked_at FROM judge_checks WHERE judge = ? AND rubric = ? ORDER BY id DESC LIMIT 1",
            (judge, rubric),
        )
        return {**json.loads(rows[0]["report"]), "checked_at": rows[0]["checked_at"]} if rows else None

    # --- penalties and removals

    def add_penalties(self, id: str, content_sha256: str, ruleset: str, findings: list[dict[str, Any]]) -> None:
        """Keep what a rule set found in a candidate; an empty list means looked at, and nothing found.

        Raises:
            InputError: there is no such candidate.
        """
        with self._db.transaction():
            self._must_exist(id)
            self._db.execute(
                "INSERT INTO penalties (candidate_id, ruleset, content_sha256, findings, found_at)"
                " VALUES (?, ?, ?, ?, ?) ON CONFLICT (candidate_id, ruleset) DO UPDATE SET"
                " content_sha256 = excluded.content_sha256, findings = excluded.findings, found_at = excluded.found_at",
                (id, ruleset, content_sha256, json.dumps(findings, ensure_ascii=False), now()),
            )

    def penalties(self, ruleset: str) -> dict[str, list[dict[str, Any]]]:
        """Findings of a rule set in the present words, per candidate that it has looked at."""
        rows = self._db.rows(
            "SELECT p.candidate_id, p.findings FROM penalties p JOIN candidates c"
            " ON c.id = p.candidate_id AND c.content_sha256 = p.content_sha256"
            " WHERE p.ruleset = ? ORDER BY p.candidate_id",
            (ruleset,),
        )
        return {row["candidate_id"]: json.loads(row["findings"]) for row in rows}

    def penalties_of(self, id: str) -> dict[str, list[dict[str, Any]]]:
        """Findings in one candidate's present words, per rule set that has looked at them."""
        rows = self._db.rows(
            "SELECT p.ruleset, p.findings FROM penalties p JOIN candidates c"
            " ON c.id = p.candidate_id AND c.content_sha256 = p.content_sha256"
            " WHERE p.candidate_id = ? ORDER BY p.ruleset",
            (id,),
        )
        return {row["ruleset"]: json.loads(row["findings"]) for row in rows}

    def rulesets(self) -> list[str]:
        """Names of the rule sets that have looked at candidates."""
        return [row[0] for row in self._db.rows("SELECT DISTINCT ruleset FROM penalties ORDER BY 1")]

    def add_removal(self, id: str, kind: RemovalKind, other: str, similarity: float, detail: str) -> None:
        """Reject a candidate as a copy of, or as overlapping with, something else. Doing it again does nothing.

        Args:
            id: the candidate that goes.
            kind: how the two were found to be the same.
            other: the candidate that stays, or the benchmark item.
            similarity: 0 to 1.
            detail: what was found, for a person.

        Raises:
            InputError: there is no such candidate.
        """
        with self._db.transaction():
            self._must_exist(id)
            added = self._db.execute(
                "INSERT INTO removals (candidate_id, kind, other, similarity, detail, removed_at)"
                " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
                (id, kind, other, similarity, detail, now()),
            )
            if added:
                self.decide(id, "rejected", reason=f"{kind}: {detail or other}", reviewer="karma data")

    def removals(self, id: str | None = None) -> list[Removal]:
        """Removals, by candidate: of one, or all."""
        where, values = ("", ()) if id is None else (" WHERE candidate_id = ?", (id,))
        columns = ", ".join(Removal.__dataclass_fields__)
        rows = self._db.rows(f"SELECT {columns} FROM removals{where} ORDER BY candidate_id, kind, other", values)
        return [Removal(**row) for row in rows]

    # --- releases

    def add_release(
        self, name: str, manifest: dict[str, Any], members: Sequence[str], *, validation: Collection[str] = ()
    ) -> None:
        """Keep which candidates a release has, with the words they have now.

        Args:
            name: unique.
            manifest: what it was made from, as JSON.
            members: ids, in the release's order.
            validation: those of `members` that are held out.

        Raises:
            InputError: the name is taken by other members, or a member is not in the workbench.
        """
        held_out = set(validation)
        with self._db.transaction():
            wanted = [(id_, "validation" if id_ in held_out else "train", self.get(id_)) for id_ in members]
            rows = [ReleaseMember(id_, split, c.category, c.content_sha256) for id_, split, c in wanted]
            if self._db.rows("SELECT 1 FROM releases WHERE name = ?", (name,)):
                if self.release_rows(name) != rows:
                    raise InputError(
                        f"{self.path} has a release {name!r} with other contents.",
                        "A release is final: use a new name.",
                    )
                return
            self._db.execute(
                "INSERT INTO releases (name, manifest, made_at) VALUES (?, ?, ?)",
                (name, json.dumps(manifest, ensure_ascii=False), now()),
            )
            for position, row in enumerate(rows):
                self._db.execute(
                    "INSERT INTO release_members (release, candidate_id, position, split, category, content_sha256)"
                    " VALUES (?, ?, ?, ?, ?, ?)",
                    (name, row.candidate_id, position, row.split, row.category, row.content_sha256),
                )

    def releases(self) -> list[Release]:
        """All releases, oldest first."""
        rows = self._db.rows(
            "SELECT name, manifest, made_at, (SELECT count(*) FROM release_members WHERE release = name) AS members"
            " FROM releases ORDER BY made_at, name"
        )
        return [Release(**{**row, "manifest": json.loads(row["manifest"])}) for row in rows]

    def release_members(self, name: str) -> list[str]:
        """Ids of a release, in its order.

        Raises:
            InputError: there is no such release.
        """
        return [row.candidate_id for row in self.release_rows(name)]

    def release_rows(self, name: str) -> list[ReleaseMember]:
        """Members of a release with the split, category and words they had then, in its order.

        Raises:
            InputError: there is no such release.
        """
        if not self._db.rows("SELECT 1 FROM releases WHERE name = ?", (name,)):
            known = ", ".join(release.name for release in self.releases()) or "none yet"
            raise InputError(f"{self.path} has no release {name!r}.", f"It has: {known}.")
        columns = ", ".join(ReleaseMember.__dataclass_fields__)
        rows = self._db.rows(f"SELECT {columns} FROM release_members WHERE release = ? ORDER BY position", (name,))
        return [ReleaseMember(**row) for row in rows]


def _reply(row: sqlite3.Row) -> Reply:
    return Reply(**{**row, "scores": None if row["scores"] is None else json.loads(row["scores"])})
