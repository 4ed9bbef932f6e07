"""What people type to search for, in words that SQLite's full-text search takes.

Its query language gives meaning to signs that words have too ("C++", "don't", "well-being", a quotation mark). What it
takes is left as it is; else words with signs are put in quotes, and in the end every word is.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from karma_electric.core.errors import InputError

_PARTS = re.compile(r'"[^"]*"\*?|\S+')
_TAKEN = re.compile(r'"[^"]*"\*?|\w+\*?')


def readings(query: str) -> Iterator[str]:
    """Ways to read a query, from what it says to the plain words in it; the first that the search takes is meant.

    Raises:
        InputError: there is nothing in it that could be found: signs are not part of the index.
    """
    if not any(character.isalnum() for character in query):
        raise InputError(
            f"{query!r} has no letter or digit to search for.",
            """Give words: karma data search rent '"last warning"'""",
        )
    parts = _PARTS.findall(query.replace("\0", " "))
    yield query
    yield " ".join(part if _TAKEN.fullmatch(part) else _quoted(part) for part in parts)
    words = (word for part in parts for word in part.replace('"', " ").split())
    yield " ".join(_quoted(word) for word in words if any(character.isalnum() for character in word))


def _quoted(part: str) -> str:
    """A phrase of the words in a part; a star at its end still finds what begins so."""
    star = "*" if part.endswith("*") and any(character.isalnum() for character in part) else ""
    return '"' + part.removesuffix(star).replace('"', '""') + '"' + star
