"""What the lines of a suite's file are, told by their keys. Knows nothing of what the values mean."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karma_electric.core.errors import DataError
from karma_electric.core.jsonl import read_jsonl
from karma_electric.redteam import drift_suite, scenario
from karma_electric.redteam.capability import Item


@dataclass(frozen=True)
class Form:
    """A kind of lines.

    Attributes:
        holds: what a file of them holds, for people.
        keys: that every line has.
        own: keys that tell it from the others: a line with one of them was meant to be of this form.
    """

    holds: str
    keys: tuple[str, ...]
    own: frozenset[str]


SCENARIOS = Form(
    "red-team scenarios",
    scenario.KEYS,
    frozenset({"turns", "expected", "pass_criteria", "fail_criteria", "pass_signals", "fail_signals"}),
)
ITEMS = Form("capability items", tuple(Item.model_fields), frozenset({"check", "reference", "wrong"}))
CONVERSATIONS = Form("conversations", drift_suite.KEYS, frozenset({"turns", "control"}))
ASKED = (SCENARIOS, ITEMS, CONVERSATIONS)
_FORMS = (
    *ASKED,
    Form("labelled answers", ("response", "label"), frozenset({"response", "scenario_id"})),
    Form("pairs of answers", ("better", "worse"), frozenset({"better", "worse"})),
    Form("prompts", ("prompt",), frozenset({"prompt"})),
)


def read_lines(path: Path) -> tuple[Form, list[tuple[int, dict[str, Any]]]]:
    """The form of a file's lines, by its first one, and every line with its number.

    A first line that lacks keys is taken for what it has most keys of, so that the error can name the missing one.

    Raises:
        MissingError: no such file.
        DataError: the first line that is no object, is of no form, or lacks a key of the form.
    """
    rows: list[tuple[int, dict[str, Any]]] = []
    form: Form | None = None
    for number, row in read_jsonl(path):
        where = f"{path.name} line {number}"
        if not isinstance(row, dict) and form is not None:
            raise DataError(f"{where} is of type {type(row).__name__}, expected an object.", "Correct it.")
        if not isinstance(row, dict):
            break
        form = form or _form_of(row, where)
        missing = next((key for key in form.keys if key not in row), None)
        if missing is not None:
            raise DataError(
                f"{where}: {missing!r} is missing; {form.holds} have the keys {', '.join(form.keys)}.", "Add it."
            )
        rows.append((number, row))
    if form is None:
        raise DataError(f"{path.name} does not begin with a line that holds an object.", "Expected JSON Lines.")
    return form, rows


def _form_of(row: dict[str, Any], where: str) -> Form:
    meant = [form for form in _FORMS if form.own & row.keys()]
    if not meant:
        found = ", ".join(row) or "none"
        known = "; ".join(f"{form.holds} ({', '.join(form.keys)})" for form in _FORMS)
        raise DataError(
            f"{where} has the keys {found[:200]}, expected those of one kind of suite: {known}.",
            "suites/README.md tells what each is; karma redteam import brings in benchmarks of others.",
        )
    return max(meant, key=lambda form: len(row.keys() & set(form.keys)))
