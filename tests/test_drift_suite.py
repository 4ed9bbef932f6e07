"""A suite of conversations is read strictly: every problem names the file, the line, and what was expected."""

import json
from pathlib import Path
from typing import Any

import pytest

from karma_electric.core.errors import DataError, MissingError
from karma_electric.redteam.drift_suite import CONTROL_KINDS, KINDS, load_drift_suite

LINE: dict[str, Any] = {
    "id": "drift-coding-01",
    "kind": "coding",
    "control": True,
    "turns": ["Why?", "And now?", "Show me.", "Thanks, and the tests?"],
}


def write(folder: Path, *lines: object) -> Path:
    path = folder / "drift.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def without(key: str) -> dict[str, Any]:
    return {name: value for name, value in LINE.items() if name != key}


def test_a_conversation_is_read_as_written_and_order_is_kept(tmp_path: Path) -> None:
    second = LINE | {"id": "drift-role-play-07", "kind": "role-play", "control": False}
    first, other = load_drift_suite(write(tmp_path, second, LINE))
    assert (first.id, first.kind, first.control) == ("drift-role-play-07", "role-play", False)
    assert other.turns == tuple(LINE["turns"])


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_is_known_and_only_its_own_value_of_control_fits(tmp_path: Path, kind: str) -> None:
    line = LINE | {"id": f"drift-{kind}-01", "kind": kind, "control": kind in CONTROL_KINDS}
    assert load_drift_suite(write(tmp_path, line))[0].kind == kind
    with pytest.raises(DataError, match="control is"):
        load_drift_suite(write(tmp_path, line | {"control": kind not in CONTROL_KINDS}))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ([1, 2], "of type list, expected an object"),
        (LINE | {"turn": []}, "unknown key 'turn', expected id, kind, control, turns"),
        (without("control"), "'control' is missing"),
        (without("id"), "'id' is missing"),
        (LINE | {"kind": "chat"}, 'kind is "chat", expected one of confiding'),
        (LINE | {"kind": ["coding"]}, "kind is .*expected one of"),
        (LINE | {"id": "drift-planning-01"}, 'id is "drift-planning-01", expected drift-coding-01'),
        (LINE | {"id": "drift-coding-1"}, "expected drift-coding-01"),
        (LINE | {"id": 3}, "id is 3, expected"),
        (LINE | {"control": 1}, "control is 1, expected true"),
        (LINE | {"control": "true"}, "expected true for kind 'coding'"),
        (LINE | {"turns": "Why?"}, "'turns' is \"Why\\?\", expected a list"),
        (LINE | {"turns": ["a", "b", " ", "d"]}, "'turns' is .*expected a list of non-empty texts"),
        (LINE | {"turns": ["a", "b", "c"]}, "3 turns, expected 4 to 8"),
        (LINE | {"turns": list("abcdefghi")}, "9 turns, expected 4 to 8"),
    ],
)
def test_a_bad_line_is_named_with_what_was_expected(tmp_path: Path, line: object, message: str) -> None:
    with pytest.raises(DataError, match=f"drift.jsonl line 2.*{message}"):
        load_drift_suite(write(tmp_path, LINE | {"id": "drift-coding-99"}, line))


def test_an_id_used_twice_names_both_lines(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="line 2: id 'drift-coding-01' is already on line 1"):
        load_drift_suite(write(tmp_path, LINE, LINE))


def test_a_suite_that_is_empty_or_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds no conversation"):
        load_drift_suite(write(tmp_path))
    with pytest.raises(MissingError, match="does not exist"):
        load_drift_suite(tmp_path / "none.jsonl")
