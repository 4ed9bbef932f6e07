"""Constraints on the form of an answer that a program can decide: lengths, words, marks, case, JSON, language.

In the manner of IFEval's verifiable instructions, with names, definitions and code of our own. A constraint says why an
answer violates it, in words. The definitions are short on purpose, and are the whole definition:

    word        letters or digits, with inner apostrophes and hyphens ("don't", "well-known" are one each)
    sentence    ends in . ! ? or at the end of a paragraph or list item; "Dr." and "3.5" do not end one
    paragraph   text between blank lines
    bullet      a line that begins with -, * or a bullet sign and a space; a numbered line with "1." or "1)"
"""

from __future__ import annotations

import itertools
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from karma_electric.core.errors import DataError
from karma_electric.core.jsonl import parse_json

_WORD = re.compile(r"[^\W_]+(?:['’\-][^\W_]+)*")
_BULLET = re.compile(r"^\s*[-*•–]\s+\S")
_NUMBERED = re.compile(r"^\s*\d{1,3}[.)]\s+\S")
_LIST_MARK = re.compile(r"^\s*(?:[-*•–]|\d{1,3}[.)])\s+")
_ABBREVIATION = re.compile(r"\b(?:Mr|Mrs|Ms|Dr|Prof|St|vs|etc|e\.g|i\.e|a\.m|p\.m|No|approx)\.(?=\s)", re.IGNORECASE)
_SENTENCE_END = re.compile(r"[.!?…]+[\"'”’)\]*_]*(?=\s|$)")
_PLACEHOLDER = re.compile(r"\[[^\[\]\n]{1,60}\]")
_FENCE = re.compile(r"^```[\w-]*\n(.*?)\n?```$", re.DOTALL)
_QUOTES = {'"': '"', "“": "”", "«": "»", "„": "“"}
_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "text": (str,),
    "number": (int, float),
    "boolean": (bool,),
    "list": (list,),
    "object": (dict,),
}
# Words that hold sentences together and are (nearly) no words of the others.
_FUNCTION_WORDS = {
    "en": "the and is are was of to with for that this it you my they have not from at",
    "fr": "le les des est une et dans pour avec qui sur je vous nous il elle mais très ce du au ma mon",
    "es": "el los las es una y con para que muy pero yo en del se mi por como está hay al",
    "de": "der die das ist und nicht ein eine ich mit auf für von zu den dem wir sie im sehr aber mein",
    "it": "il gli è una e di che con per sono nel della molto ma non mi la lo ho anche del mio",
}
_WORDS_OF = {code: frozenset(words.split()) for code, words in _FUNCTION_WORDS.items()}
_FEWEST_FUNCTION_WORDS = 3


def words(text: str) -> list[str]:
    """The words of a text, as written."""
    return _WORD.findall(text)


def paragraphs(text: str) -> list[str]:
    """The paragraphs of a text."""
    return [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]


def sentences(text: str) -> list[str]:
    """The sentences of a text, the last one also where nothing ends it."""
    found: list[str] = []
    for paragraph in paragraphs(text):
        for block in _blocks(paragraph):
            plain = _ABBREVIATION.sub(lambda match: match.group().replace(".", "\0"), block)
            start = 0
            for end in (*(match.end() for match in _SENTENCE_END.finditer(plain)), len(plain)):
                if words(plain[start:end]):
                    found.append(plain[start:end].replace("\0", ".").strip())
                start = end
    return found


def _blocks(paragraph: str) -> list[str]:
    """List items, and the lines between them taken together; without list marks."""
    blocks: list[str] = []
    for line in paragraph.splitlines():
        if not blocks or _LIST_MARK.match(line):
            blocks.append(_LIST_MARK.sub("", line))
        else:
            blocks[-1] += " " + line.strip()
    return blocks


def lines(text: str) -> list[str]:
    """The lines of a text that are not blank."""
    return [line.strip() for line in text.splitlines() if line.strip()]


def _holds(text: str, term: str) -> int:
    """How often a term stands in a text, as words of its own, without regard to case."""
    return len(re.findall(rf"(?<!\w){re.escape(term)}(?!\w)", text, re.IGNORECASE))


def _plain(text: str) -> str:
    """One case, one form of quotes and spaces."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().replace("’", "'").split())


class _Constraint(BaseModel, ABC):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    @abstractmethod
    def violation(self, text: str) -> str | None:
        """How the text violates it, or None. The text has no spaces around it."""


class _Counted(_Constraint):
    min: int = Field(0, ge=0)
    max: int | None = Field(None, ge=0)

    @model_validator(mode="after")
    def _possible(self) -> Any:
        if self.min == 0 and self.max is None:
            raise ValueError("needs min, max or both")
        if self.max is not None and self.max < self.min:
            raise ValueError(f"max is {self.max} and min {self.min}")
        return self

    @abstractmethod
    def count(self, text: str) -> int:
        """How many there are."""

    def violation(self, text: str) -> str | None:
        """As in the base class."""
        n = self.count(text)
        if n >= self.min and (self.max is None or n <= self.max):
            return None
        most = "or more" if self.max is None else f"to {self.max}"
        wanted = str(self.min) if self.min == self.max else f"{self.min} {most}"
        return f"{n} {self.name}, wanted {wanted}"  # type: ignore[attr-defined]


class Words(_Counted):
    """Number of words."""

    name: Literal["words"]

    def count(self, text: str) -> int:
        """Words."""
        return len(words(text))


class Sentences(_Counted):
    """Number of sentences."""

    name: Literal["sentences"]

    def count(self, text: str) -> int:
        """Sentences."""
        return len(sentences(text))


class Paragraphs(_Counted):
    """Number of paragraphs."""

    name: Literal["paragraphs"]

    def count(self, text: str) -> int:
        """Paragraphs."""
        return len(paragraphs(text))


class Lines(_Counted):
    """Number of lines that are not blank."""

    name: Literal["lines"]

    def count(self, text: str) -> int:
        """Lines."""
        return len(lines(text))


class Bullets(_Counted):
    """Number of bullet points."""

    name: Literal["bullets"]

    def count(self, text: str) -> int:
        """Bullets."""
        return sum(bool(_BULLET.match(line)) for line in text.splitlines())


class Numbered(_Counted):
    """Number of numbered lines, which count 1, 2, 3; where they do not, there is no numbered list."""

    name: Literal["numbered"]

    def count(self, text: str) -> int:
        """Numbered lines, or 0 where one is out of order."""
        found = [line for line in text.splitlines() if _NUMBERED.match(line)]
        numbers = [int(re.findall(r"\d+", line)[0]) for line in found]
        return len(numbers) if numbers == list(range(1, len(numbers) + 1)) else 0


class Placeholders(_Counted):
    """Number of [placeholders] in square brackets."""

    name: Literal["placeholders"]

    def count(self, text: str) -> int:
        """Placeholders."""
        return len(_PLACEHOLDER.findall(text))


class Occurrences(_Counted):
    """How often a word or phrase stands in it."""

    name: Literal["occurrences"]
    term: str = Field(min_length=1)

    def count(self, text: str) -> int:
        """Occurrences of the term."""
        return _holds(text, self.term)


class Contains(_Constraint):
    """All of these words or phrases stand in it (each may be a list of which one is enough)."""

    name: Literal["contains"]
    terms: list[str | list[str]] = Field(min_length=1)

    def violation(self, text: str) -> str | None:
        """As in the base class."""
        for term in self.terms:
            if not any(_holds(text, word) for word in ([term] if isinstance(term, str) else term)):
                return f"without {term if isinstance(term, str) else ' or '.join(term)!r}"
        return None


class Lacks(_Constraint):
    """None of these words or phrases stands in it."""

    name: Literal["lacks"]
    terms: list[str] = Field(min_length=1)

    def violation(self, text: str) -> str | None:
        """As in the base class."""
        held = next((term for term in self.terms if _holds(text, term)), None)
        return None if held is None else f"with {held!r}"


class LacksCharacters(_Constraint):
    """None of these characters stands in it, in either case."""

    name: Literal["lacks_characters"]
    characters: str = Field(min_length=1)

    def violation(self, text: str) -> str | None:
        """As in the base class."""
        held = sorted(set(self.characters.lower()) & set(text.lower()))
        return f"with {held[0]!r}" if held else None


class StartsWith(_Constraint):
    """It begins with this, without regard to case and spaces."""

    name: Literal["starts_with"]
    text: str = Field(min_length=1)

    def violation(self, text: str) -> str | None:
        """As in the base class."""
        return None if _plain(text).startswith(_plain(self.text)) else f"begins with {text[:30]!r}"


class EndsWith(_Constraint):
    """It ends with this, without regard to case and spaces."""

    name: Literal["ends_with"]
    text: str = Field(min_length=1)

    def violation(self, text: str) -> str | None:
        """As in the base class."""
        return None if _plain(text).endswith(_plain(self.text)) else f"ends with {text[-30:]!r}"


class Case(_Constraint):
    """All its letters are of one case; there are some."""

    name: Literal["case"]
    style: Literal["upper", "lower"]

    def violation(self, text: str) -> str | None:
        """As in the base class."""
        right = text.isupper() if self.style == "upper" else text.islower()
        return None if right else f"not all {self.style} case"


class Json(_Constraint):
    """It is one JSON object, alone or in a fence, with exactly these keys, each with a value of this type."""

    name: Literal["json"]
    keys: dict[str, Literal["text", "number", "boolean", "list", "object"]] = Field(min_length=1)

    def violation(self, text: str) -> str | None:
        """As in the base class."""
        fenced = _FENCE.match(text)
        try:
            value = parse_json((fenced.group(1) if fenced else text).encode("utf-8", "replace"), "the answer")
        except DataError as error:
            return f"no JSON: {error.message}"
        if not isinstance(value, dict):
            return "JSON, but no object"
        if value.keys() != self.keys.keys():
            return f"keys {sorted(value)}, wanted {sorted(self.keys)}"
        for key, kind in self.keys.items():
            is_bool = isinstance(value[key], bool)
            if not isinstance(value[key], _JSON_TYPES[kind]) or (is_bool and kind != "boolean"):
                return f"{key!r} is no {kind}"
        return None


class Language(_Constraint):
    """It is in this language, told by words that hold sentences together: 3 at least, more than of any other."""

    name: Literal["language"]
    code: Literal["en", "fr", "es", "de", "it"]

    def violation(self, text: str) -> str | None:
        """As in the base class."""
        said = [word.lower() for word in words(text)]
        counts = {code: sum(word in known for word in said) for code, known in _WORDS_OF.items()}
        most = max((count for code, count in counts.items() if code != self.code), default=0)
        if counts[self.code] >= _FEWEST_FUNCTION_WORDS and counts[self.code] > most:
            return None
        return f"{counts[self.code]} function words of {self.code!r}, {most} of another language"


class InOrder(_Constraint):
    """These words or phrases stand in it in this order."""

    name: Literal["in_order"]
    terms: list[str] = Field(min_length=2)

    def violation(self, text: str) -> str | None:
        """As in the base class."""
        place = 0
        for term in self.terms:
            match = re.compile(rf"(?<!\w){re.escape(term)}(?!\w)", re.IGNORECASE).search(text, place)
            if match is None:
                return f"{term!r} is not there, or not in its place"
            place = match.end()
        return None


class Initials(_Constraint):
    """Its lines begin with these letters, in order, one line a letter."""

    name: Literal["initials"]
    letters: str = Field(min_length=2)

    def violation(self, text: str) -> str | None:
        """As in the base class."""
        found = "".join(line[0] for line in lines(text))
        return None if found.lower() == self.letters.lower() else f"lines begin with {found[:20]!r}"


class Quoted(_Constraint):
    """All of it stands between one pair of double quotation marks."""

    name: Literal["quoted"]

    def violation(self, text: str) -> str | None:
        """As in the base class."""
        closing = _QUOTES.get(text[:1])
        right = closing is not None and len(text) > 2 and text.endswith(closing) and closing not in text[1:-1]
        return None if right else "not in one pair of double quotation marks"


class Alphabetical(_Constraint):
    """Its lines, list marks aside, are in alphabetical order; there are at least two, no two the same."""

    name: Literal["alphabetical"]

    def violation(self, text: str) -> str | None:
        """As in the base class."""
        items = [_LIST_MARK.sub("", line).casefold() for line in lines(text)]
        right = len(items) > 1 and all(one < other for one, other in itertools.pairwise(items))
        return None if right else "lines not in alphabetical order"


Constraint = Annotated[
    Words
    | Sentences
    | Paragraphs
    | Lines
    | Bullets
    | Numbered
    | Placeholders
    | Occurrences
    | Contains
    | Lacks
    | LacksCharacters
    | StartsWith
    | EndsWith
    | Case
    | Json
    | Language
    | InOrder
    | Initials
    | Quoted
    | Alphabetical,
    Field(discriminator="name"),
]


def violations(constraints: Sequence[Constraint], text: str) -> list[str]:
    """How a text violates some constraints, a phrase each; empty where it meets them all."""
    found = (constraint.violation(text.strip()) for constraint in constraints)
    return [phrase for phrase in found if phrase is not None]
