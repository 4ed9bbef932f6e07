"""Texts of JSONL records in any of the usual forms, and how texts are compared word by word.

Knows the keys that corpora, suites and public prompt sets use; knows nothing of what is done with the texts.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karma_electric.core.errors import DataError
from karma_electric.core.jsonl import read_jsonl

_PROMPT_KEYS = ("prompt", "question", "instruction", "input", "turns", "text")
_ANSWER_KEYS = ("response", "answer", "output", "completion")
_OTHER_KEYS = ("expected", "better", "worse")
_CONVERSATION_KEYS = ("messages", "conversations", "conversation")
_ASKING = ("user", "human", "prompter")
_ANSWERING = ("assistant", "gpt", "model", "bot")

# What may stand around a word without changing it. Signs that make another word of it (C#, C++, .NET, -5) stay.
_BEFORE = "\"'“”‘’«»„([{¿¡*_`「『"
_AFTER = ".,;:!?…\"'“”‘’«»)]}*_`。、，．！？：；」』"
_DASHES = "-–—"
# Written without spaces: Japanese kana, Chinese characters, Korean syllables. Each character counts as a word.
_UNSPACED = re.compile(r"([\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uac00-\ud7af])")


@dataclass(frozen=True)
class TextRecord:
    """The texts of one line of a JSONL file.

    Attributes:
        id: its "id", or "line N" where it has none.
        line: number in the file, from 1.
        status: its "status", or "candidate".
        prompts: what is asked, turn by turn.
        answers: what is answered, turn by turn.
        others: further texts that should not be trained on (what a good answer does, a better and a worse answer).
    """

    id: str
    line: int
    status: str
    prompts: tuple[str, ...]
    answers: tuple[str, ...]
    others: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """All of them."""
        return self.prompts + self.answers + self.others


def read_texts(path: Path) -> list[TextRecord]:
    """The texts of every line of a JSONL file.

    Raises:
        MissingError: no such file.
        DataError: a line that is not an object, holds no text under a known key, or an id used twice.
    """
    records = []
    lines: dict[str, int] = {}
    for number, item in read_jsonl(path):
        record = _record(item, number, f"{path.name} line {number}")
        if record.id in lines:
            raise DataError(
                f"{path.name} line {number}: the id {record.id!r} was already used on line {lines[record.id]}.",
                "Ids are unique.",
            )
        lines[record.id] = number
        records.append(record)
    return records


def normalised(text: str) -> str:
    """A text without the differences that make no other text of it: case, spaces, width, sentence punctuation."""
    tokens = []
    for token in unicodedata.normalize("NFKC", text).casefold().replace("’", "'").split():
        bare = token.lstrip(_BEFORE).rstrip(_AFTER)
        if bare and bare.strip(_DASHES):
            tokens.append(bare)
    # a text of nothing but punctuation is itself
    return " ".join(tokens) or unicodedata.normalize("NFKC", text).strip()


def words(text: str) -> list[str]:
    """Words for comparing runs of them: letters, marks and digits, in one case; CJK characters one by one."""
    plain = unicodedata.normalize("NFKC", text).casefold().translate(_WORD_CHARACTERS)
    return _UNSPACED.sub(r" \1 ", plain).split()


class _WordCharacters(dict[int, int | str]):
    """Maps a code point to itself, or to a space if it is no part of a word; fills itself as it is asked."""

    def __missing__(self, code: int) -> int | str:
        # letters, marks (vowel signs of Indic scripts, accents) and numbers
        self[code] = code if unicodedata.category(chr(code))[0] in "LMN" else " "
        return self[code]


_WORD_CHARACTERS = _WordCharacters()


def _record(item: object, line: int, where: str) -> TextRecord:
    if not isinstance(item, Mapping):
        raise DataError(f"{where}: found {type(item).__name__}, expected a JSON object.")
    prompts, answers = _conversation(item)
    prompts += [text for key in _PROMPT_KEYS for text in _strings(item.get(key))]
    answers += [text for key in _ANSWER_KEYS for text in _strings(item.get(key))]
    others = [text for key in _OTHER_KEYS for text in _strings(item.get(key))]
    if not prompts + answers + others:
        known = ", ".join((*_CONVERSATION_KEYS[:1], *_PROMPT_KEYS, *_ANSWER_KEYS, *_OTHER_KEYS))
        raise DataError(f"{where}: nothing to compare.", f"Texts are read from the keys {known}.")
    status = item.get("status")
    return TextRecord(
        id=str(item["id"]) if isinstance(item.get("id"), str | int) else f"line {line}",
        line=line,
        status=status if isinstance(status, str) else "candidate",
        prompts=tuple(prompts),
        answers=tuple(answers),
        others=tuple(others),
    )


def _conversation(item: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    prompts: list[str] = []
    answers: list[str] = []
    for key in _CONVERSATION_KEYS:
        for turn in item.get(key) or []:
            if not isinstance(turn, Mapping):
                continue
            role = turn.get("role", turn.get("from"))
            side = prompts if role in _ASKING else answers if role in _ANSWERING else None
            if side is not None:
                side += _strings(turn.get("content", turn.get("value")))
    return prompts, answers


def _strings(value: object) -> list[str]:
    found = value if isinstance(value, list) else [value]
    return [text for text in found if isinstance(text, str) and text.strip()]
