"""Compares two releases: what was added, removed, changed, or moved between training and validation."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from karma_electric.core.artifact import MANIFEST, read_json
from karma_electric.core.errors import DataError, MissingError
from karma_electric.core.jsonl import read_jsonl
from karma_electric.core.messages import parse_conversation
from karma_electric.data.candidate import Candidate
from karma_electric.data.release import TRAIN, VALIDATION
from karma_electric.data.store import Store


@dataclass(frozen=True)
class Member:
    """One conversation of a release. `content_sha256` is of its turns, without the system prompt."""

    split: str
    category: str | None
    content_sha256: str


@dataclass(frozen=True)
class ReleaseView:
    """What of a release is compared.

    Attributes:
        name: as the user gave it.
        members: id -> member.
        system_prompts: those that its conversations have; None where that is not known.
    """

    name: str
    members: dict[str, Member]
    system_prompts: frozenset[str] | None


@dataclass(frozen=True)
class Difference:
    """How a later release differs from an earlier one, in ids.

    Attributes:
        added, removed: in only one of the two.
        changed: other words.
        recategorised: same words under another category: id -> (before, after).
        moved: in both, in another split: id -> (before, after).
        categories: category -> (count before, count after).
        system_prompt_changed: None where it is not known for both.
    """

    added: list[str]
    removed: list[str]
    changed: list[str]
    recategorised: dict[str, tuple[str | None, str | None]]
    moved: dict[str, tuple[str, str]]
    categories: dict[str, tuple[int, int]]
    system_prompt_changed: bool | None

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)

    @property
    def is_empty(self) -> bool:
        """Whether the two are the same."""
        return not (
            self.added or self.removed or self.changed or self.recategorised or self.moved or self.system_prompt_changed
        )


def read_release_folder(folder: Path) -> ReleaseView:
    """A release from its folder, or from the run that holds it.

    Raises:
        MissingError: no release there.
        DataError: a line that cannot be used.
    """
    inside = folder / "release"
    if not (folder / TRAIN).is_file() and (inside / TRAIN).is_file():
        folder = inside
    if not (folder / TRAIN).is_file() or not (folder / VALIDATION).is_file():
        raise MissingError(
            f"{folder} has no {TRAIN} and {VALIDATION}.", "Give the folder of a release: runs/NAME/release"
        )
    if (folder / MANIFEST).is_file() and read_json(folder / MANIFEST).get("kind") not in ("release", None):
        raise DataError(f"{folder} holds another kind of artifact.", "Give the folder of a release: runs/NAME/release")
    members: dict[str, Member] = {}
    prompts: set[str] = set()
    for split, file in (("train", TRAIN), ("validation", VALIDATION)):
        for number, item in read_jsonl(folder / file):
            where = f"{folder / file} line {number}"
            if not isinstance(item, dict) or not isinstance(item.get("id"), str):
                raise DataError(f"{where}: found no 'id', expected a line of a release.")
            turns = parse_conversation(item.get("messages"), where)
            if turns[0].role == "system":
                prompts.add(turns[0].content)
                turns = turns[1:]
            if item["id"] in members:
                raise DataError(f"{where}: the id {item['id']!r} was already used.", "Ids are unique in a release.")
            content = Candidate(id=item["id"], messages=turns).content_sha256
            members[item["id"]] = Member(split, item.get("category"), content)
    return ReleaseView(str(folder), members, frozenset(prompts))


def read_recorded_release(store: Store, name: str) -> ReleaseView:
    """A release as a workbench remembers it.

    Raises:
        InputError: it knows no such release.
    """
    rows = store.release_rows(name)
    members = {row.candidate_id: Member(row.split, row.category, row.content_sha256) for row in rows}
    return ReleaseView(name, members, None)


def compare(before: ReleaseView, after: ReleaseView) -> Difference:
    """How `after` differs from `before`."""
    old, new = before.members, after.members
    both = sorted(old.keys() & new.keys())
    counts = [Counter(member.category or "none" for member in members.values()) for members in (old, new)]
    known = before.system_prompts is not None and after.system_prompts is not None
    return Difference(
        added=sorted(new.keys() - old.keys()),
        removed=sorted(old.keys() - new.keys()),
        changed=[id_ for id_ in both if old[id_].content_sha256 != new[id_].content_sha256],
        recategorised={
            id_: (old[id_].category, new[id_].category) for id_ in both if old[id_].category != new[id_].category
        },
        moved={id_: (old[id_].split, new[id_].split) for id_ in both if old[id_].split != new[id_].split},
        categories={name: (counts[0][name], counts[1][name]) for name in sorted({*counts[0], *counts[1]})},
        system_prompt_changed=before.system_prompts != after.system_prompts if known else None,
    )
