"""Finds in a text what was hardly meant for the public: credentials, and places that name a person's own folders.

It knows the forms of common credentials, not every secret: a password in plain words is not found.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_CREDENTIALS = {
    "a Hugging Face token": r"\b(?:hf|api_org)_[A-Za-z0-9]{20,}\b",
    "an API key": r"\bsk-[A-Za-z0-9_-]{20,}\b",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,})\b",
    "an AWS access key": r"\b(?:AKIA|ASIA)[A-Z0-9]{16}\b",
    "a private key": r"-----BEGIN [A-Z ]*PRIVATE KEY-----",
    "a password in an address": r"\bhttps?://[^\s/@:\"']+:[^\s/@\"']+@",
    "a credential": r"(?i)\b(?:api_?key|access_?token|auth_?token|secret|password|bearer)\b[\"']?\s*[:= ]\s*[\"']?"
    r"(?=[\w./+-]*\d)[\w./+-]{20,}",
}
_OWN_PLACES = r"(?<![\w.])(?:/home/[^\s/\"']+|/Users/[^\s/\"']+|/root(?=/)|[A-Za-z]:\\{1,2}Users\\{1,2}[^\s\\\"']+)"


@dataclass(frozen=True)
class Leak:
    """Something that was found in a text. What it is, never what it says, if it is a credential.

    Attributes:
        line: counted from 1.
        what: in words.
        credential: whether it opens something; else it is a path.
    """

    line: int
    what: str
    credential: bool


def leaks_in(text: str) -> Iterator[Leak]:
    """Credentials and absolute paths below a person's home, in order."""
    for number, line in enumerate(text.splitlines(), 1):
        kind = next((name for name, pattern in _CREDENTIALS.items() if re.search(pattern, line)), None)
        if kind is not None:
            yield Leak(number, kind, credential=True)
        elif place := re.search(_OWN_PLACES, line):
            yield Leak(number, f"the path {place.group()}", credential=False)
