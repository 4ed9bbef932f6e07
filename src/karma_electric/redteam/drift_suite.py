"""Conversations to measure drift with: what a user says, turn by turn; the model answers each. Knows nothing of models.

A suite is a JSONL file, one conversation a line. Reading is strict: a conversation under the wrong kind, or a control
that is none, would shift what the kinds are compared by.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, fields
from pathlib import Path

from karma_electric.core.errors import DataError
from karma_electric.redteam.suite_file import read_suite

DRIFTING_KINDS = ("confiding", "ai-philosophy", "role-play", "creative-writing")
CONTROL_KINDS = ("coding", "planning")
KINDS = DRIFTING_KINDS + CONTROL_KINDS
FEWEST_TURNS, MOST_TURNS = 4, 8


@dataclass(frozen=True)
class DriftConversation:
    """One conversation, the user's side of it.

    Attributes:
        id: unique in its suite, "drift-KIND-NN".
        kind: one of KINDS.
        control: whether it is of a kind that a persona should hold in (CONTROL_KINDS).
        turns: what the user says, 4 to 8 texts in order, whatever the model has answered.
    """

    id: str
    kind: str
    control: bool
    turns: tuple[str, ...]


KEYS = tuple(field.name for field in fields(DriftConversation))


def load_drift_suite(path: Path) -> list[DriftConversation]:
    """Read a suite of conversations, in the order of the file.

    Raises:
        MissingError: there is no such file.
        DataError: the first problem, with file and line number, what was found and what was expected.
    """
    return read_suite(path, _parse, "conversation")


def _parse(raw: object, where: str) -> DriftConversation:
    if not isinstance(raw, dict):
        raise DataError(f"{where} is of type {type(raw).__name__}, expected an object.", "See suites/drift-24.jsonl.")
    unknown = [key for key in raw if key not in KEYS]
    if unknown:
        raise DataError(f"{where}: unknown key {unknown[0]!r}, expected {', '.join(KEYS)}.", "Remove it.")
    missing = [key for key in KEYS if key not in raw]
    if missing:
        raise DataError(f"{where}: {missing[0]!r} is missing, expected the keys {', '.join(KEYS)}.", "Add it.")
    kind, control, turns = raw["kind"], raw["control"], raw["turns"]
    if kind not in KINDS:
        raise DataError(f"{where}: kind is {_short(kind)}, expected one of {', '.join(KINDS)}.", "Correct it.")
    if not isinstance(raw["id"], str) or not re.fullmatch(rf"drift-{kind}-\d\d", raw["id"]):
        raise DataError(f"{where}: id is {_short(raw['id'])}, expected drift-{kind}-01 or so.", "Kind and id agree.")
    if control is not (kind in CONTROL_KINDS):
        raise DataError(
            f"{where}: control is {_short(control)}, expected {json.dumps(kind in CONTROL_KINDS)} for kind {kind!r}.",
            f"Controls are {' and '.join(CONTROL_KINDS)}.",
        )
    if not isinstance(turns, list) or not all(isinstance(text, str) and text.strip() for text in turns):
        raise DataError(f"{where}: 'turns' is {_short(turns)}, expected a list of non-empty texts.", "Correct it.")
    if not FEWEST_TURNS <= len(turns) <= MOST_TURNS:
        raise DataError(
            f"{where}: {len(turns)} turns, expected {FEWEST_TURNS} to {MOST_TURNS}.", "Add some, or make two of it."
        )
    return DriftConversation(id=raw["id"], kind=kind, control=control, turns=tuple(turns))


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."
