"""Text of live answers: characters are whole, stop strings are found wherever tokens are cut, nothing is lost."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from karma_electric.models.engines.live import LiveToken
from karma_electric.models.engines.live_text import Composer, Detokenizer, StopStrings
from karma_electric.models.engines.protocol import TokenDrift

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

parts = st.lists(st.text("ab", max_size=4), max_size=12)
stops = st.lists(st.text("ab", min_size=1, max_size=4), max_size=3)


def first_stop(text: str, wanted: list[str]) -> int | None:
    return min((text.find(stop) for stop in wanted if stop in text), default=None)


@given(parts, stops)
def test_the_text_ends_before_the_first_stop_string_however_it_is_cut(texts: list[str], wanted: list[str]) -> None:
    """Of a stop string that is complete first; one that begins earlier but is complete later does not count."""
    watch = StopStrings(wanted)
    final = seen = ""
    for text in texts:
        seen += text
        final += watch.add(text)
        assert not any(stop in final for stop in wanted)
        if watch.found:
            break
    end = first_stop(seen, wanted)
    assert watch.found == (end is not None)
    assert final + watch.flush() == seen[:end]


@given(parts, stops)
def test_nothing_is_held_back_without_need(texts: list[str], wanted: list[str]) -> None:
    watch = StopStrings(wanted)
    final = "".join(watch.add(text) for text in texts)
    held = "".join(texts)[len(final) :]
    assert watch.found or not held or any(stop.startswith(held) and stop != held for stop in wanted)


@settings(max_examples=60)
@given(st.lists(st.integers(0, 399), max_size=60))
def test_the_parts_of_any_tokens_add_up_to_their_text(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> None:
    detokenizer = Detokenizer(tokenizer)
    whole = [detokenizer.add(token) for token in ids]
    rest = detokenizer.flush()
    assert "".join(whole) + rest == tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    assert not rest.strip("�"), "only parts of characters are held back"


def test_a_character_comes_whole_with_the_last_of_its_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = tokenizer("é🙂a", add_special_tokens=False)["input_ids"]
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.add(token) for token in ids] == ["", "é", "", "", "", "🙂", "a"]


def composed(words: list[str], *stop: str, drift: bool = False) -> tuple[Composer, list[tuple[str, list[str]]]]:
    """Words as tokens, their drift a step later; what was handed over at each step and at the end."""
    composer = Composer(stop, drift=drift)
    pieces = []
    for number, word in enumerate(words):
        if drift and number:
            composer.measured(TokenDrift(float(number - 1), 0.0, ()))
        composer.add(LiveToken(number, word), word)
        piece = None if composer.stopped else composer.take()
        pieces.append(piece)
        if composer.stopped:
            break
    pieces.append(composer.finish())
    return composer, [(p.text, [t.text for t in p.tokens]) for p in pieces if p is not None]


def test_tokens_come_with_their_text_and_none_from_behind_a_stop_string() -> None:
    composer, pieces = composed(["I ", "say ST", "OP", " more"], "STOP")
    assert pieces == [("I ", ["I "]), ("say ", ["say ST"])]
    assert composer.stopped
    assert composer.text == "I say "
    assert composer.n_tokens == 3


def test_what_only_began_like_a_stop_string_comes_in_the_end() -> None:
    composer, pieces = composed(["I ", "ST", "O"], "STOP")
    assert pieces == [("I ", ["I "]), ("STO", ["ST", "O"])]
    assert not composer.stopped


def test_with_drift_a_token_comes_when_its_drift_is_known() -> None:
    composer, pieces = composed(["a", "b", "c"], drift=True)
    assert pieces == [("a", []), ("b", ["a"]), ("c", ["b"]), ("", ["c"])]
    assert composer.drift is not None
    assert [t and t.drift for t in composer.drift.tokens] == [0.0, 1.0, None]
    assert composed(["a"])[0].drift is None


@pytest.mark.parametrize("drift", [False, True])
def test_tokens_of_held_back_text_wait_with_it(drift: bool) -> None:
    _, pieces = composed(["S", "T", "x", "y"], "STOP", drift=drift)
    assert "".join(text for text, _ in pieces) == "STxy"
    assert [token for _, tokens in pieces for token in tokens] == ["S", "T", "x", "y"]
    assert pieces[0][0] == "STx"
