"""What the workbench holds besides candidates, as plain values, and the whole of a candidate as a JSON object."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, replace
from typing import Any, Literal

from karma_electric.core.messages import Message, as_dicts
from karma_electric.data.candidate import Candidate
from karma_electric.data.example import Analysis
from karma_electric.data.rubric import Grade

RemovalKind = Literal["exact", "near", "semantic", "contamination"]
FORM = "_form"  # key of Candidate.extra: the outer form a record was imported in, so that export can give it back


@dataclass(frozen=True)
class Conflict:
    """A candidate that was kept out: its id is taken by another content.

    Attributes:
        id: the id that both have.
        origin: where the one that was kept out came from.
        differs: the fields in which it differs from the one that is there.
    """

    id: str
    origin: str
    differs: tuple[str, ...] = ()


@dataclass(frozen=True)
class Added:
    """What adding candidates did: how many were new, were there already, or were kept out."""

    new: int = 0
    unchanged: int = 0
    conflicts: list[Conflict] = field(default_factory=list)


@dataclass(frozen=True)
class Reply:
    """One answer of a judge about one conversation.

    Attributes:
        candidate_id: the candidate that was judged.
        content_sha256: hash of the turns that the judge read.
        rubric: name of the rubric.
        judge: the judge's model.
        sample: 0 for the first of several answers to the same question.
        scores: dimension -> 0 to 10, or None when the answer could not be understood.
        total: sum of the scores, or None.
        rationale: the judge's words.
        raw: the whole answer, as it came.
        prompt_tokens: tokens of the question.
        completion_tokens: tokens of the answer.
        error: what went wrong, or None.
        attempt: 0 for the first answer of a sample; one that could not be understood is asked for again.
    """

    candidate_id: str
    content_sha256: str
    rubric: str
    judge: str
    sample: int
    scores: Mapping[str, float] | None
    total: float | None
    rationale: str
    raw: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    error: str | None = None
    attempt: int = 0

    def as_grade(self) -> Grade:
        """This one answer as a grade."""
        return Grade(self.rubric, self.scores or {}, self.total, self.rationale, self.judge, (self.raw,))


@dataclass(frozen=True)
class Review:
    """A decision about a candidate. `content_sha256` tells which words were decided on."""

    candidate_id: str
    status: str
    reason: str
    reviewer: str
    content_sha256: str
    decided_at: str


@dataclass(frozen=True)
class Revision:
    """A version of a candidate that an edit has replaced."""

    candidate: Candidate
    number: int
    reason: str
    reviewer: str
    replaced_at: str


@dataclass(frozen=True)
class Removal:
    """A candidate that a filter has rejected, and what it was too close to."""

    candidate_id: str
    kind: RemovalKind
    other: str
    similarity: float
    detail: str
    removed_at: str


@dataclass(frozen=True)
class ReleaseMember:
    """A candidate of a release, with the words it had then. `split` is "train" or "validation"."""

    candidate_id: str
    split: str
    category: str | None
    content_sha256: str


@dataclass(frozen=True)
class Release:
    """A frozen release: its manifest, when it was made and how many candidates it has."""

    name: str
    manifest: dict[str, Any]
    made_at: str
    members: int


@dataclass(frozen=True)
class Hit:
    """A candidate that a search found; `snippet` has the found words in square brackets."""

    id: str
    category: str | None
    status: str
    snippet: str


def as_record(candidate: Candidate) -> dict[str, Any]:
    """Everything a candidate has, as a JSON object; `from_record` reads it back."""
    return {
        "id": candidate.id,
        "category": candidate.category,
        "tags": list(candidate.tags),
        "system": candidate.system,
        "messages": as_dicts(candidate.messages),
        "analysis": None if candidate.analysis is None else vars(candidate.analysis).copy(),
        "source": candidate.source,
        "license": candidate.license,
        "added_in": candidate.added_in,
        "status": candidate.status,
        "extra": dict(candidate.extra),
    }


def from_record(record: Mapping[str, Any]) -> Candidate:
    """The candidate of a record that `as_record` made."""
    analysis = record["analysis"]
    return Candidate(
        id=record["id"],
        category=record["category"],
        tags=tuple(record["tags"]),
        system=record["system"],
        messages=[Message(turn["role"], turn["content"]) for turn in record["messages"]],
        analysis=None if analysis is None else Analysis(**analysis),
        source=record["source"],
        license=record["license"],
        added_in=record["added_in"],
        status=record["status"],
        extra=record["extra"],
    )


def differing_fields(present: Candidate, incoming: Candidate) -> tuple[str, ...]:
    """Names of the fields in which an incoming candidate contradicts the present one of the same id.

    A field about which it says nothing does not contradict; nor does the outer form of an import.
    """
    left, right = comparable(present), comparable(incoming)
    silent = _unsaid(incoming)
    return tuple(name for name in left if name not in silent and left[name] != right[name])


def filled_from(present: Candidate, incoming: Candidate) -> Candidate:
    """The incoming candidate, with what it says nothing about taken from the present one of the same id."""
    return replace(incoming, **{name: getattr(present, name) for name in _unsaid(incoming)})


def _unsaid(candidate: Candidate) -> set[str]:
    defaults = {
        name: known.default if known.default is not MISSING else {}
        for name, known in Candidate.__dataclass_fields__.items()
        if name not in ("id", "messages")
    }
    said = {name: getattr(candidate, name) for name in defaults}
    said["extra"] = {key: value for key, value in candidate.extra.items() if key != FORM}
    return {name for name, default in defaults.items() if said[name] == default}


def comparable(candidate: Candidate) -> dict[str, Any]:
    """A candidate's record without the outer form it came in."""
    record = as_record(candidate)
    record["extra"] = {key: value for key, value in candidate.extra.items() if key != FORM}
    return record
