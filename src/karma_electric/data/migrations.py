"""The workbench's tables, as an append-only list of steps: step 1 makes version 1, and so on.

A step that has been released is never changed: a file that was made by it exists somewhere. Names and types are
plain SQLite, so that Datasette and any other reader open the file as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sqlite_utils import Database


def _first_tables(db: Database) -> None:
    db.table("candidates").create(
        {
            "id": str,
            "category": str,
            "status": str,
            "tags": str,  # JSON list
            "turns": int,
            "text": str,  # the turns' words, for reading and searching
            "system": str,
            "messages": str,  # JSON list of {"role", "content"}
            "analysis_direct": str,
            "analysis_downstream": str,
            "analysis_inaction": str,
            "source": str,
            "license": str,
            "added_in": str,
            "extra": str,  # JSON object
            "content_sha256": str,
            "origin": str,
            "imported_sha256": str,  # the whole record as it came in
            "added_at": str,
        },
        pk="id",
        not_null={"status", "tags", "turns", "text", "messages", "source", "license", "extra", "content_sha256"},
    )
    db.table("candidates").create_index(["status"])
    db.table("candidates").create_index(["category"])
    db.table("revisions").create(
        {
            "id": int,
            "candidate_id": str,
            "number": int,
            "record": str,  # JSON object: the version that was replaced
            "reason": str,
            "reviewer": str,
            "replaced_at": str,
        },
        pk="id",
        foreign_keys=[("candidate_id", "candidates", "id")],
    )
    db.table("revisions").create_index(["candidate_id", "number"], unique=True)
    db.table("reviews").create(
        {
            "id": int,
            "candidate_id": str,
            "status": str,
            "reason": str,
            "reviewer": str,
            "content_sha256": str,
            "decided_at": str,
        },
        pk="id",
        foreign_keys=[("candidate_id", "candidates", "id")],
    )
    db.table("reviews").create_index(["candidate_id"])
    db.table("replies").create(
        {
            "id": int,
            "candidate_id": str,
            "content_sha256": str,
            "rubric": str,
            "judge": str,
            "sample": int,
            "scores": str,  # JSON object, or null
            "total": float,
            "rationale": str,
            "raw": str,
            "prompt_tokens": int,
            "completion_tokens": int,
            "error": str,
            "replied_at": str,
        },
        pk="id",
        foreign_keys=[("candidate_id", "candidates", "id")],
    )
    db.table("replies").create_index(["candidate_id", "content_sha256", "rubric", "judge", "sample"], unique=True)
    db.table("penalties").create(
        {
            "candidate_id": str,
            "ruleset": str,
            "content_sha256": str,
            "findings": str,  # JSON list; empty: looked at, nothing found
            "found_at": str,
        },
        pk=("candidate_id", "ruleset"),
        foreign_keys=[("candidate_id", "candidates", "id")],
    )
    db.table("removals").create(
        {
            "candidate_id": str,
            "kind": str,
            "other": str,  # a candidate or a benchmark's item
            "similarity": float,
            "detail": str,
            "removed_at": str,
        },
        pk=("candidate_id", "kind", "other"),
        foreign_keys=[("candidate_id", "candidates", "id")],
    )
    db.table("releases").create({"name": str, "manifest": str, "made_at": str}, pk="name")
    db.table("release_members").create(
        {
            "release": str,
            "candidate_id": str,
            "position": int,
            "split": str,
            "category": str,
            "content_sha256": str,  # the words it had then
        },
        pk=("release", "candidate_id"),
        foreign_keys=[("release", "releases", "name"), ("candidate_id", "candidates", "id")],
    )


def _full_text_search(db: Database) -> None:
    # The index goes by rowid, and VACUUM may renumber those: candidates are never deleted, so it has no gap to close.
    db.table("candidates").enable_fts(["text", "tags"], create_triggers=True, tokenize="porter")


def _attempts_and_judge_checks(db: Database) -> None:
    # A sample that could not be understood is asked for again, and every answer is kept.
    db.execute("ALTER TABLE replies ADD COLUMN attempt INTEGER NOT NULL DEFAULT 0")
    db.execute("DROP INDEX idx_replies_candidate_id_content_sha256_rubric_judge_sample")
    key = ["candidate_id", "content_sha256", "rubric", "judge", "sample", "attempt"]
    db.table("replies").create_index(key, unique=True)
    db.table("judge_checks").create(
        {
            "id": int,
            "judge": str,
            "rubric": str,
            "report": str,  # JSON object
            "checked_at": str,
        },
        pk="id",
        not_null={"judge", "rubric", "report"},
    )
    db.table("judge_checks").create_index(["judge", "rubric"])


STEPS: tuple[Callable[[Database], None], ...] = (_first_tables, _full_text_search, _attempts_and_judge_checks)
VERSION = len(STEPS)
