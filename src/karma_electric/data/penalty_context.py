"""Prepares an answer for the penalty rules: sentences in a plain form, less what is not in the answer's own voice.

It knows quotation, code, block quotes, titles and sentences; which words are penalised it does not know. Everything
here takes time in proportion to the length of the text: repetitions in patterns are bounded, and so are sentences.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

MASK = "¤"  # stands for every character of a quotation, a title or code
LONGEST_SENTENCE = 700  # characters; what is longer is cut at a space, so that no rule ever sees more at once

# Every character keeps its place: quotation marks straight, an em dash parts like a semicolon, ASCII letters lower.
_SIGNS = {"‘’‛´": "'", "“”„‟«»": '"', "—": ";", "–‑": "-", "…": ".", "\u00a0\u202f\t": " "}
_PLAIN = {ord(sign): plain for signs, plain in _SIGNS.items() for sign in signs}
_PLAIN |= {ord(letter): letter.lower() for letter in string.ascii_uppercase}
_DROPPED = frozenset("*\u200b\u200c\u200d\u2060\ufeff\u00ad")  # emphasis, and characters that nobody sees

_FENCE = "```"
_INLINE_CODE = re.compile(r"`[^`\n]{1,400}`")
_LINES_ASIDE = re.compile(r"^[ ]{0,3}(?:>|#{1,6} |(?:Subject|Title|Headline|Re): )[^\n]{0,2000}", re.MULTILINE)
_TEXT = r"(?:[^%s\n]|\n(?![ \t]{0,20}\n)){1,900}?"  # inside quotation marks: up to 900 characters of one paragraph
_QUOTATIONS = (
    re.compile(r"“" + _TEXT % "“”" + "”"),
    re.compile(r"„" + _TEXT % "„“”" + "[“”]"),
    re.compile(r"«" + _TEXT % "«»" + "»"),
    re.compile(r"(?<![\w\"])\"(?=\S)" + _TEXT % '"' + r"(?<=\S)\"(?!\w)"),
    re.compile(r"‘(?:[^‘’\n]|(?<=\w)’(?=\w)){1,400}’(?!\w)"),
    re.compile(r"(?<![\w'])'(?=\S)(?:[^'\n]|(?<=\w)'(?=\w)){1,400}'(?![\w'])"),
)
# *Always on My Mind*, _Never Let Me Go_: set off, and capitalised as titles are.
_SET_OFF = re.compile(r"(?<![\w*_])[*_](?=[A-Z])[^*_\n]{3,80}(?<=\S)[*_](?![\w*_])")
# The film Never Let Me Go: capitals that no sentence asks for, after the name of a kind of work.
_NAMED_WORK = re.compile(
    r"\b(?:song|film|movie|book|novel|poem|series|album|play|show|podcast|painting|hymn)s?(?: called| titled| named)? "
    r"((?:[A-Z][\w'’]{0,20} ?(?:(?:of|on|the|in|to|a|and|me|my) )?){2,8})"
)
_MINOR = frozenset(("of", "on", "the", "in", "to", "a", "an", "and", "or", "my", "me", "for", "with", "at", "by", "is"))
_END = re.compile(r"[.!?]{1,5}(?:[\"')\]]|" + MASK + r"){0,3}(?= |$)")
_ABBREVIATION = re.compile(r"\b(?:mr|mrs|ms|dr|st|prof|vs|e\.g|i\.e|approx|cf|[b-hj-z])\.$")
_NEXT_BLOCK = re.compile(r"[ ]{0,8}(?:[-+•] |\* |\d{1,3}[.)] |[a-z][.)] )")


@dataclass(frozen=True)
class Sentence:
    """One sentence, as the rules read it.

    Attributes:
        text: lower case, straight quotation marks, single spaces; quotations and code are MASK characters.
        offsets: for every character of `text`, its place in the answer; one more for the end.
        following: `text` of the sentence after it in the same block, or "".
    """

    text: str
    offsets: Sequence[int]
    following: str

    @property
    def start(self) -> int:
        """Where it begins in the answer."""
        return self.offsets[0]

    @property
    def end(self) -> int:
        """Where it ends in the answer."""
        return self.offsets[len(self.text)]

    @property
    def is_question(self) -> bool:
        """Whether it ends with a question mark."""
        return self.text.rstrip("\"')] " + MASK).endswith("?")


def sentences(answer: str) -> Iterator[Sentence]:
    """The sentences of an answer, in order."""
    for text, offsets in _blocks(_masked(answer)):
        spans = list(_spans(text))
        for number, (start, end) in enumerate(spans):
            following = text[slice(*spans[number + 1])] if number + 1 < len(spans) else ""
            yield Sentence(text[start:end], offsets[start : end + 1], following)


def plain(text: str) -> str:
    """Lower case (ASCII) and straight quotation marks; every character keeps its place."""
    return text.translate(_PLAIN)


def _masked(answer: str) -> str:
    """The answer with everything that is not its own voice replaced by MASK; every character keeps its place."""
    text = _without_fences(answer)
    for pattern in (_INLINE_CODE, _LINES_ASIDE):
        text = pattern.sub(_cover, text)
    own = text
    for pattern in _QUOTATIONS:
        text = pattern.sub(_cover_quotation, text)
    if not any(character.isalnum() for character in text) and any(character.isalnum() for character in own):
        return own  # an answer that stands in quotation marks from end to end is the answer
    text = _SET_OFF.sub(_cover_title, text)
    return _NAMED_WORK.sub(_cover_named, text)


def _without_fences(answer: str) -> str:
    parts = answer.split(_FENCE)
    return _FENCE.join(_covered(part) if number % 2 else part for number, part in enumerate(parts))


def _covered(text: str) -> str:
    return "".join(character if character == "\n" else MASK for character in text)


def _cover(match: re.Match[str]) -> str:
    return _covered(match.group())


def _cover_quotation(match: re.Match[str]) -> str:
    """Covered, but for the mark that ends a sentence inside: it may end the sentence around it, too."""
    found = match.group()
    mark = found[-2] if len(found) > 2 and found[-2] in ".!?" else MASK
    return _covered(found[:-2]) + mark + MASK if len(found) > 2 else _covered(found)


def _cover_title(match: re.Match[str]) -> str:
    words = [word for word in match.group()[1:-1].split() if word.lower() not in _MINOR]
    is_title = len(words) > 1 and all(not word[0].isalpha() or word[0].isupper() for word in words)
    return _covered(match.group()) if is_title else match.group()


def _cover_named(match: re.Match[str]) -> str:
    before = match.group()[: match.start(1) - match.start()]
    return before + _covered(match.group(1).rstrip()) + " " * (len(match.group(1)) - len(match.group(1).rstrip()))


def _blocks(masked: str) -> Iterator[tuple[str, list[int]]]:
    """Paragraphs and list items in plain form, each with the places of its characters and of its end."""
    lines = masked.split("\n")
    characters: list[str] = []
    offsets: list[int] = []
    position = 0
    for line in lines:
        begins = not line.strip() or _NEXT_BLOCK.match(line) or (characters and characters[-1] == ":")
        if begins and characters:
            yield _closed(characters, offsets)
            characters, offsets = [], []
        if characters and characters[-1] != " ":
            characters.append(" ")
            offsets.append(position - 1)
        for index, character in enumerate(plain(line)):
            if character in _DROPPED or (character == " " and (not characters or characters[-1] == " ")):
                continue
            if character == "_" and not (line[index - 1 : index].isalnum() and line[index + 1 : index + 2].isalnum()):
                continue  # emphasis; inside a word it is a name's
            characters.append(character)
            offsets.append(position + index)
        position += len(line) + 1
    if characters:
        yield _closed(characters, offsets)


def _closed(characters: list[str], offsets: list[int]) -> tuple[str, list[int]]:
    while characters and characters[-1] == " ":
        characters.pop()
        offsets.pop()
    return "".join(characters), [*offsets, offsets[-1] + 1 if offsets else 0]


def _spans(text: str) -> Iterator[tuple[int, int]]:
    """Where sentences begin and end; none is longer than LONGEST_SENTENCE."""
    start = 0
    for match in _END.finditer(text):
        if _ABBREVIATION.search(text, max(start, match.end() - 8), match.end()):
            rest = text[match.end() : match.end() + 2].strip()
            if rest and not text[match.end() - 2].isdigit():
                continue
        if match.end() < len(text) and MASK in match.group() and _goes_on(text, match.end()):
            continue
        yield from _cut(text, start, match.end())
        start = match.end()
        while start < len(text) and text[start] == " ":
            start += 1
    yield from _cut(text, start, len(text))


def _goes_on(text: str, position: int) -> bool:
    """Whether a sentence continues after a quotation that ended one: ... is what people say."""
    return bool(
        re.match(
            r" (?:is|are|was|were|may|might|can|will|won't|helps?|does|do|did|said|says|means|has|and|but|or|"
            r"when|while|to|as|at|in|for|on|with|not|never|sounds?|isn't|doesn't|don't|answers?)\b",
            text[position : position + 12],
        )
    )


def _cut(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    while end - start > LONGEST_SENTENCE:
        space = text.rfind(" ", start + 1, start + LONGEST_SENTENCE)
        middle = space if space > start else start + LONGEST_SENTENCE
        yield start, middle
        start = middle
    if text[start:end].strip():
        yield start, end
