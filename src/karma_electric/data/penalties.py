"""Deterministic penalties: what an answer does that no grade should hide, with the words that show it.

`penalize` reads one answer, `penalize_conversation` all answers of a conversation. Both are pure: the same words give
the same findings, in time proportional to their length. The rules and their phrases are in `penalty_rules`; whether
words are the answer's own is decided in `penalty_context` (quotations, code, titles) and `penalty_voice` (reported,
refuted, negated). Phrases miss what is said in other words: this is a floor under a judge, and no judge.
`penalty_measure` says how good it is.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from karma_electric.core.messages import Message
from karma_electric.data.penalty_context import Sentence, plain, sentences
from karma_electric.data.penalty_rules import DENSITY, HARD_BLOCK, RULES, RULESET, URGENCY, Rule, phrases, word_list
from karma_electric.data.penalty_voice import hedged, negated, taken_back

__all__ = [
    "COUNTED",
    "RULES",
    "RULESET",
    "Finding",
    "Penalties",
    "penalised_total",
    "penalize",
    "penalize_conversation",
]

COUNTED = 3  # sentences per rule that cost points; more of the same are listed at 0
_DENSE_SCORE = 2.5  # distinct framework nouns, plainer abstract ones counted half
_DENSE_SHARE = 0.14  # of the words of the sentence
_LOOKED_AT = 12  # matches of a rule in one sentence whose surroundings are read
_CODE = "coding-assistance"
_CRISIS = "crisis-response"
_WORD = re.compile(r"[^\W_]+(?:['-][^\W_]+){0,3}")


@dataclass(frozen=True)
class Finding:
    """One penalised place.

    Attributes:
        rule: name of the rule.
        points: what it costs; 0 where the rule was already counted often enough, or in the same words.
        start, end: where `evidence` stands in the answer, in characters.
        evidence: the words that decided, as written.
        sentence: the sentence around them, as written.
        message: index of the answer in its conversation; 0 for an answer by itself.
    """

    rule: str
    points: float
    start: int
    end: int
    evidence: str
    sentence: str
    message: int = 0

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)


@dataclass(frozen=True)
class Penalties:
    """What was found in an answer or a conversation.

    Attributes:
        findings: by place.
        total: points to take off.
        blocked: harm was encouraged; no grade makes up for that.
    """

    findings: tuple[Finding, ...]
    total: float
    blocked: bool

    @property
    def rules(self) -> frozenset[str]:
        """Names of the rules that were found."""
        return frozenset(finding.rule for finding in self.findings)


def penalize(text: str, *, prompt: str | None = None, category: str | None = None) -> Penalties:
    """Penalties of one answer.

    Args:
        text: the answer.
        prompt: what was asked. Figures and concepts that it brought up are not the answer's inventions, and an
            emergency in it makes haste right.
        category: category of the example; crisis answers may press, code answers may say what a function always does.
    """
    return _summed(_findings(text, prompt or "", category))


def penalize_conversation(messages: Iterable[Message], *, category: str | None = None) -> Penalties:
    """Penalties of all answers of a conversation, each read with the user turns before it. Counted over all of it."""
    found: list[Finding] = []
    asked: list[str] = []
    for index, message in enumerate(messages):
        if message.role == "assistant":
            found += (replace(f, message=index) for f in _findings(message.content, "\n\n".join(asked), category))
        elif message.role == "user":
            asked.append(message.content)
    return _summed(found)


def penalised_total(total: float | None, penalties: Penalties) -> float | None:
    """A grade's total less the penalties, never below 0, and 0 where blocked. None (not graded) stays None."""
    if total is None:
        return None
    return 0.0 if penalties.blocked else max(0.0, total - penalties.total)


def _summed(found: Iterable[Finding]) -> Penalties:
    """Give points: once per distinct sentence, COUNTED times per rule, concept density once per answer."""
    counted: Counter[str] = Counter()
    seen: set[tuple[str, str]] = set()
    dense: set[int] = set()
    findings = []
    for finding in found:
        words = (finding.rule, " ".join(plain(finding.sentence).split()))
        again = words in seen or counted[finding.rule] >= COUNTED
        if finding.rule == DENSITY:
            again = again or finding.message in dense
            dense.add(finding.message)
        seen.add(words)
        counted[finding.rule] += not again
        findings.append(replace(finding, points=0.0) if again else finding)
    return Penalties(
        findings=tuple(findings),
        total=sum(finding.points for finding in findings),
        blocked=any(finding.rule == HARD_BLOCK for finding in findings),
    )


def _findings(text: str, prompt: str, category: str | None) -> Iterator[Finding]:
    asked = plain(prompt)
    scene = f"{asked}\n{plain(text)}"
    for sentence in sentences(text):
        for rule in RULES:
            span = _first_match(rule, sentence, asked, scene, category)
            if span is not None:
                start, end = sentence.offsets[span[0]], sentence.offsets[span[1] - 1] + 1
                yield Finding(
                    rule.name, rule.points, start, end, text[start:end], text[sentence.start : sentence.end].strip()
                )


def _first_match(
    rule: Rule, sentence: Sentence, asked: str, scene: str, category: str | None
) -> tuple[int, int] | None:
    """Where a sentence shows a rule, or None."""
    if rule.name == DENSITY:
        return _dense(sentence, asked)
    if sentence.is_question and not rule.in_questions:
        return None
    found = phrases(rule.name)
    if not found.any.search(sentence.text):
        return None
    matches = [match for pattern in found.alone for match in pattern.finditer(sentence.text)]
    matches += [
        match
        for pattern, elsewhere in found.together
        for match in pattern.finditer(sentence.text)
        if elsewhere.search(scene)
    ]
    if not matches or any(pattern.search(sentence.text) for pattern in found.exceptions):
        return None
    if rule.name == URGENCY and (category == _CRISIS or word_list("danger").search(scene)):
        return None
    for match in sorted(matches, key=lambda match: match.span())[:_LOOKED_AT]:
        if _is_own(rule, sentence, match, asked, category):
            return match.span()
    return None


def _is_own(rule: Rule, sentence: Sentence, match: re.Match[str], asked: str, category: str | None) -> bool:
    """Whether a match is the answer's own assertion, and not excused by what was asked."""
    before, after = sentence.text[: match.start()], sentence.text[match.end() :]
    if taken_back(before, after, sentence.following):
        return False
    if rule.negatable and negated(before):
        return False
    if rule.hedgeable and hedged(before, match.group()):
        return False
    if rule.name == "authority-hallucination":  # a figure that the person gave is no invention
        figures = set(re.findall(r"\d{1,12}", sentence.text))
        return not figures or not figures <= set(re.findall(r"\d{1,12}", asked))
    if rule.name == "absolutism" and category == _CODE:
        return bool(word_list("aboutpeople").search(match.group()))
    return True


def _dense(sentence: Sentence, asked: str) -> tuple[int, int] | None:
    """The span of the concepts, where they are too many for one sentence. Those that were asked about do not count."""
    places: dict[str, tuple[int, int, float]] = {}
    for name, weight in (("concept", 1.0), ("abstract", 0.5)):
        for match in word_list(name).finditer(sentence.text):
            word = match.group()
            if word not in places and word not in asked:
                places[word] = (*match.span(), weight)
    words = len(_WORD.findall(sentence.text))
    score = sum(weight for *_, weight in places.values())
    strong = sum(weight == 1.0 for *_, weight in places.values())
    if strong < 2 or score < _DENSE_SCORE or score < _DENSE_SHARE * words:
        return None
    return min(start for start, *_ in places.values()), max(end for _, end, _ in places.values())
