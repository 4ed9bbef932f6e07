"""Conversations: which content is text, and what is said of content that is not."""

from __future__ import annotations

import re
from typing import Any

import pytest

from karma_electric.core.errors import DataError
from karma_electric.core.messages import assistant, parse_conversation, system, user


def part(text: object, **more: object) -> dict[str, object]:
    return {"type": "text", "text": text, **more}


IMAGE = {"type": "image_url", "image_url": {"url": "data:,"}}


def turns(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}, {"role": "assistant", "content": "Yes."}]


def test_one_part_of_text_is_that_text() -> None:
    items = [{"role": "system", "content": [part("Be kind.")]}, *turns([part(" Who?\n")])]
    assert parse_conversation(items, "x") == [system("Be kind."), user(" Who?\n"), assistant("Yes.")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "is empty, expected text"),
        (" \n", "is empty, expected text"),
        ([part("")], "is empty, expected text"),
        (None, "'content' is null, expected text"),
        (3, "'content' is of type int, expected text"),
        ({"text": "a"}, "'content' is of type dict, expected text"),
        ([], "'content' is an empty list, expected text"),
        ([part("a"), part("b")], "'content' has 2 parts of text, expected one. Join them"),
        ([part("a"), IMAGE], "part 2 of 'content' has the type 'image_url', expected 'text'. Only text"),
        ([{"text": "a"}], "part 1 of 'content' has the type None, expected 'text'"),
        (["a"], "part 1 of 'content' is of type str, expected an object"),
        ([part(None)], "part 1 of 'content' has the keys type, text, expected type and text, a string"),
        ([part("a", cache="x")], "part 1 of 'content' has the keys type, text, cache, expected type and text"),
    ],
)
def test_other_content_is_named(content: object, said: str) -> None:
    with pytest.raises(DataError, match=rf"line 4: turn 1 \(user\).* ?{re.escape(said)}"):
        parse_conversation(turns(content), "line 4")


def test_a_turn_without_content_is_named() -> None:
    with pytest.raises(DataError, match=r"turn 1 \(user\) has no 'content', expected text"):
        parse_conversation([{"role": "user"}], "line 4")
