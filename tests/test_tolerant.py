"""Reading records of unknown quality: every bad one with its line, every good one handed out, in bounded memory."""

from __future__ import annotations

import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from karma_electric.core import tolerant
from karma_electric.core.errors import DataError, MissingError
from karma_electric.core.jsonl import parse_json
from karma_electric.core.printable import printable
from karma_electric.core.tolerant import read_tolerant

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
).filter(lambda value: "\\ud" not in json.dumps(value))


def read(path: Path, content: bytes) -> list[tuple[int, Any]]:
    """(line, value), or (line, what is wrong) for a bad record."""
    path.write_bytes(content)
    return [(line.number, line.value if line.problem is None else line.problem.message) for line in read_tolerant(path)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file to read."""
    return tmp_path / "in.jsonl"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"a": "caf\xe9"}', "not UTF-8 (byte 10 is 0xe9)"),
        (b'{"a": "\xed\xa0\xbd"}', "not UTF-8"),  # a surrogate, written as if it were a character
        (b'{"a": "\\ud83d"}', "half of a surrogate pair"),
        (b'{"a": NaN}', "NaN is no JSON value"),
        (b'{"a": -Infinity}', "-Infinity is no JSON value"),
        (b'{"a": 1e999}', "out of range"),
        (b'{"a": ' + b"9" * 5000 + b"}", "thousands of digits"),
        (b'{"a": 1, "a": 2}', "'a' appears twice"),
        (b'{"x": {"a": 1, "a": 2}}', "'a' appears twice"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": 1', "not JSON"),
        (b'{"a": 1} {"b": 2}', "not JSON (Extra data"),
        (b"{'a': 1}", "not JSON"),
        (b'{"a": "\x01"}', "not JSON (Invalid control character"),
        (b"\x00\x00\x00", "not JSON"),
    ],
)
def test_a_bad_line_is_reported_with_its_number_and_the_others_are_read(path: Path, line: bytes, said: str) -> None:
    first, bad, last = read(path, b'{"n": 1}\n\n' + line + b'\n{"n": 4}\n')
    assert first == (1, {"n": 1})
    assert last == (4, {"n": 4})
    assert bad[0] == 3
    assert bad[1].startswith(f"{path} line 3: ")
    assert said in bad[1]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf", b"\n \n"])
def test_byte_order_mark_line_ends_and_blank_lines_do_not_matter(path: Path, start: bytes, end: bytes) -> None:
    found = read(path, start + b'{"a": 1}' + end + end + b'{"a": "\\u00e9"}')
    assert [value for _, value in found] == [{"a": 1}, {"a": "é"}]
    assert found[0][0] == 1 + start.count(b"\n")


@pytest.mark.parametrize("form", ["lines", "array"])
def test_a_record_beyond_the_limit_is_passed_over_in_bounded_memory(path: Path, form: str) -> None:
    long = b'{"a": "' + b"x" * (50 << 20) + b'"}'
    content = b'{"n": 1}\n' + long + b'\n{"n": 3}' if form == "lines" else b'[{"n": 1},\n' + long + b',\n{"n": 3}]'
    path.write_bytes(content)
    del content, long
    tracemalloc.start()
    found = list(read_tolerant(path))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [(line.number, line.value) for line in found] == [(1, {"n": 1}), (2, None), (3, {"n": 3})]
    assert found[1].problem is not None
    assert "50.0 MiB long, the limit is 16 MiB" in found[1].problem.message
    assert peak < 40 << 20


def test_a_record_just_within_the_limit_is_read(path: Path) -> None:
    path.write_bytes(b'{"a":"' + b"x" * 92 + b'"}\n{"a":"' + b"x" * 93 + b'"}\n')
    within, beyond = read_tolerant(path, longest=100)
    assert within.problem is None
    assert beyond.problem is not None


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{}\n".encode("utf-16"), "UTF-16"),
        (b"\x1f\x8b\x08", "gzip"),
        (b"PK\x03\x04", "zip"),
        (b"PAR1", "Parquet"),
        (b"SQLite format 3\0", "SQLite"),
    ],
)
def test_a_file_that_is_no_json_is_named_for_what_it_is(path: Path, content: bytes, said: str) -> None:
    path.write_bytes(content)
    with pytest.raises(DataError, match=said) as refused:
        list(read_tolerant(path))
    assert refused.value.hint


def test_no_file_a_folder_and_an_empty_file(path: Path) -> None:
    with pytest.raises(MissingError):
        list(read_tolerant(path))
    with pytest.raises(DataError, match="is a folder"):
        list(read_tolerant(path.parent))
    assert read(path, b"") == []
    assert read(path, b" \n\n ") == []


# --- arrays


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    values=st.lists(JSON.filter(lambda v: v is not None), max_size=6),
    indent=st.sampled_from([None, 0, 3]),
    block=st.sampled_from([1, 7, 1 << 20]),
)
def test_an_array_gives_its_elements_however_it_is_laid_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: list[Any], indent: int | None, block: int
) -> None:
    monkeypatch.setattr(tolerant, "_BLOCK", block)
    found = read(tmp_path / "in.json", json.dumps(values, indent=indent, ensure_ascii=False).encode())
    assert [value for _, value in found] == values


def test_a_bad_element_of_an_array_costs_only_itself(path: Path) -> None:
    found = read(path, b'[\n{"a": 1},\n{"a": "],\xff{"},\n\n{"a": NaN},\n{"a": "\\"]"}\n]\n')
    assert [number for number, _ in found] == [2, 3, 5, 6]
    assert [value for number, value in found if number in (2, 6)] == [{"a": 1}, {"a": '"]'}]


def test_an_element_of_an_array_has_a_number_though_all_are_in_one_line(path: Path) -> None:
    path.write_bytes(b'[{"a": 1}, {"a": nope}, {"a": 3}, 4]')
    found = list(read_tolerant(path))
    assert [(line.number, line.element) for line in found] == [(1, 1), (1, 2), (1, 3), (1, 4)]
    assert found[1].problem is not None
    assert found[1].problem.message.startswith(f"{path} line 1 (element 2): not JSON")
    path.write_bytes(b'{"a": 1}\n{"a": nope}')
    assert [(line.place, line.element) for line in read_tolerant(path)] == [("line 1", None), ("line 2", None)]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'[{"a": 1}, {"a"', "the file ends before the array does"),
        (b'[{"a": 1}]\n{"a": 2}', "text after the end of the array"),
        (b'[{"a": 1}]]', "text after the end of the array"),
        (b'[{"a": 1},, {"a": 2}]', "nothing before a comma"),
    ],
)
def test_an_array_that_is_not_whole_gives_what_is_there_and_says_so(path: Path, content: bytes, said: str) -> None:
    found = read(path, content)
    assert found[0] == (1, {"a": 1})
    assert said in found[1][1]


@pytest.mark.parametrize("block", [1, 2, 3, 1 << 20])
def test_where_blocks_end_does_not_matter(path: Path, monkeypatch: pytest.MonkeyPatch, block: int) -> None:
    content = b'{"a": "\\\\"}\r\n\n{"a": [1, 2]}\nbad\n{"a": 3}'
    whole = read(path, content)
    monkeypatch.setattr(tolerant, "_BLOCK", block)
    assert read(path, content) == whole
    assert read(path, b"[" + content.replace(b"\n{", b",\n{").replace(b"bad", b"") + b"]")[0] == (1, {"a": "\\"})


def test_how_far_the_reading_is(path: Path) -> None:
    path.write_bytes(b'{"a": 1}\n{"a": 2}\n')
    assert [line.read_bytes for line in read_tolerant(path)] == [9, 18]


# --- values and terminals


@given(JSON)
def test_every_json_value_is_read_as_it_is(value: Any) -> None:
    assert parse_json(json.dumps(value, ensure_ascii=False).encode(), "x") == value


@given(st.text())
def test_printable_text_keeps_its_length_and_has_no_escapes(text: str) -> None:
    shown = printable(text)
    assert len(shown) == len(text)
    assert not any((ord(c) < 32 and c not in "\n\t") or 0x7F <= ord(c) < 0xA0 for c in shown)
    assert printable("\x1b[31m é\u202e") == "\u241b[31m é\ufffd"
