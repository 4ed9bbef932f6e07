"""From tokens to text that is final: characters that are whole, stop strings found across the borders of tokens."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from karma_electric.models.engines.live import LiveToken, Piece
from karma_electric.models.engines.protocol import Drift, TokenDrift

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "�"
_WINDOW = 24  # tokens that are decoded together, at most (more only while they make no whole character)
_BEFORE = 8  # of them kept for what follows: some tokenizers write a token differently at the start of a text


class Detokenizer:
    """Text of an answer, token by token; its parts add up to the text of all tokens decoded at once.

    Special tokens have no text. A character in several tokens comes with the last of them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._window: list[int] = []  # the last tokens: what came before cannot change any more
        self._told = 0  # characters of the window's text that were given

    def add(self, token: int) -> str:
        """The text that has become final with this token."""
        self._window.append(token)
        text = self._decode()
        whole = text.rstrip(_REPLACEMENT)  # the rest may become a character yet
        final, self._told = whole[self._told :], max(self._told, len(whole))
        if len(self._window) >= _WINDOW and len(whole) == len(text):
            self._window = self._window[-_BEFORE:]
            self._told = len(self._decode())
        return final

    def flush(self) -> str:
        """What is left: part of a character, as the replacement character."""
        text = self._decode()
        rest, self._told = text[self._told :], len(text)
        return rest

    def _decode(self) -> str:
        text: str = self._tokenizer.decode(self._window, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text


class StopStrings:
    """Finds the first stop string in a text that comes in parts, and holds back what may become one."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def add(self, text: str) -> str:
        """The text that is final with this part."""
        if self.found:
            return ""
        self._held += text
        places = [at for stop in self._stops if (at := self._held.find(stop)) >= 0]
        if places:
            self.found = True
            final, self._held = self._held[: min(places)], ""
            return final
        return self._let_go(len(self._held) - self._may_become_one())

    def flush(self) -> str:
        """What was held back, at the end of the text."""
        return self._let_go(len(self._held))

    def _let_go(self, n: int) -> str:
        final, self._held = self._held[:n], self._held[n:]
        return final

    def _may_become_one(self) -> int:
        """Length of the longest end of the text that a stop string starts with."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for n in range(min(longest, len(self._held)), 0, -1):
            if any(stop.startswith(self._held[-n:]) for stop in self._stops):
                return n
        return 0


class Composer:
    """Makes pieces of an answer from its tokens, their text, and their drift, which is known a step later.

    Attributes:
        stopped: whether a stop string was found: nothing comes after it.
        n_tokens: tokens that were generated.
    """

    def __init__(self, stops: Sequence[str], *, drift: bool) -> None:
        self._stops = StopStrings(stops)
        self._drift = drift
        self._length = 0  # of the text so far, final or not
        self._final = 0  # of the text that was handed over, or is ready to be
        self._ready = ""
        self._text: list[str] = []
        self._waiting: deque[tuple[int, LiveToken]] = deque()  # where its text starts, and the token
        self._measured = 0  # how many of those that wait have their drift
        self._drifts: list[TokenDrift | None] = []
        self.n_tokens = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string was found."""
        return self._stops.found

    @property
    def text(self) -> str:
        """The whole text that was handed over."""
        return "".join(self._text)

    @property
    def drift(self) -> Drift | None:
        """Drift of the tokens that were handed over; None if it was not asked for."""
        return Drift(tuple(self._drifts)) if self._drift else None

    def add(self, token: LiveToken, text: str) -> None:
        """Take in a token and the text that has become whole with it."""
        self.n_tokens += 1
        self._waiting.append((self._length, token))
        self._length += len(text)
        self._make_ready(self._stops.add(text))

    def measured(self, drift: TokenDrift) -> None:
        """Take in the drift of the oldest token that has none."""
        if self._measured < len(self._waiting):
            start, token = self._waiting[self._measured]
            self._waiting[self._measured] = (start, replace(token, drift=drift))
            self._measured += 1

    def take(self) -> Piece | None:
        """What has become known since the last time; None if nothing has."""
        return self._piece(ended=False)

    def finish(self, rest: str = "") -> Piece | None:
        """The last piece. `rest`: what is left of a character."""
        self._length += len(rest)
        self._make_ready(self._stops.add(rest))
        if not self._stops.found:
            self._make_ready(self._stops.flush())
        return self._piece(ended=True)

    def _make_ready(self, text: str) -> None:
        self._ready += text
        self._final += len(text)

    def _piece(self, *, ended: bool) -> Piece | None:
        tokens = []
        while self._waiting:
            start, token = self._waiting[0]
            whole = start < self._final or (ended and not self._stops.found)
            known = ended or not self._drift or self._measured > 0
            if not whole or not known:
                break
            self._waiting.popleft()
            self._measured = max(0, self._measured - 1)
            self._drifts.append(token.drift)
            tokens.append(token)
        text, self._ready = self._ready, ""
        if not text and not tokens:
            return None
        self._text.append(text)
        return Piece(text, tuple(tokens))
