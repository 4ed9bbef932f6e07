"""The formats that `karma data import` and `export` know, each a reader and a writer of one record.

Reading and writing again in the same format gives an equal record: what a candidate has no place for goes in `extra`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from karma_electric.data.candidate import Candidate
from karma_electric.data.formats import chat, instruct, karma

__all__ = ["FORMATS", "GRADES", "Format", "detect"]

GRADES = "grades"  # a file of grades, which are no candidates


@dataclass(frozen=True)
class Format:
    """How records of one kind are read and written.

    Attributes:
        read: (record, place) -> candidate; DataError with the place if it cannot be used.
        write: candidate -> record; DataError if the format cannot hold it.
    """

    read: Callable[[object, str], Candidate]
    write: Callable[[Candidate], dict[str, Any]]


FORMATS: dict[str, Format] = {
    karma.NAME: Format(karma.read, karma.write),
    chat.MESSAGES: Format(chat.read_messages, chat.write_messages),
    chat.SHAREGPT: Format(chat.read_sharegpt, chat.write_sharegpt),
    instruct.ALPACA: Format(instruct.read_alpaca, instruct.write_alpaca),
    chat.ORIGINAL: Format(chat.read_original, chat.write_original),
    instruct.PROMPTS: Format(instruct.read_prompts, instruct.write_prompts),
}


def detect(record: object) -> str | None:
    """The format of a record by its keys, or None."""
    if not isinstance(record, Mapping):
        return None
    keys = set(record)
    if karma.is_ours(record):
        return karma.NAME
    for name, needed in (
        (GRADES, {"id", "content_sha256", "rubric", "judge", "scores"}),
        (chat.MESSAGES, {"messages"}),
        (chat.ORIGINAL, {"id", "source", "category", "conversations"}),
        (chat.SHAREGPT, {"conversations"}),
        (instruct.ALPACA, {"instruction", "output"}),
        (instruct.PROMPTS, {"prompt"}),
    ):
        if needed <= keys:
            return name
    return None
