"""What a corpus must hold to before it is trained on: each check is a function that gives findings.

The same checks run on the shipped corpus in the tests and on anybody's with `karma data check`. That every line has
the right form is checked by reading it (corpus.py).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from karma_electric.core.progress import Progress
from karma_electric.data.code_blocks import check, code_blocks
from karma_electric.data.contacts import contacts
from karma_electric.data.decontaminate import FEWEST_WORDS, SEMANTIC, Passage, find_overlaps
from karma_electric.data.example import Example
from karma_electric.data.texts import words

if TYPE_CHECKING:
    from karma_electric.models.sentences import SentenceModel

OPENING_WORDS = 3
OPENING_SHARE = 0.03  # of the answers that may begin with the same words
ANSWERS_ALIKE = 0.92  # cosine similarity that two answers may not exceed
PROMPTS_ALIKE = 0.90
SHORT_WORDS, LONG_WORDS = 45, 200  # an answer under and over which counts as short and as long
EXTREME_SHARE = 0.08  # of short and of long answers at least
SPREAD = 3.0  # 90th over 10th percentile of the answers' words, at least
FEWEST_ANSWERS = 50  # below it, shares say nothing
_REPEATED_WORDS = 6  # a turn this long is there once
_EVIDENCE = 160  # characters


@dataclass(frozen=True)
class Finding:
    """Something to correct.

    Attributes:
        check: name of the check.
        id: the example, or empty where the corpus as a whole is meant.
        what: what was found and what was expected.
        evidence: the words it was found in.
    """

    check: str
    id: str
    what: str
    evidence: str = ""


@dataclass(frozen=True)
class Lengths:
    """Words of the answers, and how they spread."""

    n: int
    shortest: int
    p10: int
    p25: int
    median: int
    p75: int
    p90: int
    longest: int
    total: int
    short_share: float
    long_share: float

    @property
    def spread(self) -> float:
        """90th over 10th percentile."""
        return self.p90 / max(self.p10, 1)


@dataclass(frozen=True)
class Report:
    """What the checks found; `notes` are no faults (a code block nobody here can parse)."""

    examples: int
    answers: int
    findings: list[Finding]
    notes: list[Finding] = field(default_factory=list)
    lengths: Lengths | None = None
    code: dict[str, dict[str, int]] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return asdict(self)


def answers(examples: Iterable[Example]) -> list[str]:
    """All assistant turns."""
    return [m.content for example in examples for m in example.messages if m.role == "assistant"]


def openings(examples: Iterable[Example]) -> Counter[str]:
    """How many answers begin with each three words."""
    return Counter(" ".join(words(answer)[:OPENING_WORDS]) for answer in answers(examples))


def lengths(texts: Sequence[str]) -> Lengths:
    """Words of some texts, at least one.

    Args:
        texts: answers, or prompts.
    """
    counts = sorted(len(text.split()) for text in texts)
    n = len(counts)
    at = {share: counts[min(n * share // 100, n - 1)] for share in (10, 25, 50, 75, 90)}
    return Lengths(
        n=n,
        shortest=counts[0],
        p10=at[10],
        p25=at[25],
        median=at[50],
        p75=at[75],
        p90=at[90],
        longest=counts[-1],
        total=sum(counts),
        short_share=sum(count < SHORT_WORDS for count in counts) / n,
        long_share=sum(count > LONG_WORDS for count in counts) / n,
    )


def run_checks(
    examples: Sequence[Example],
    references: Sequence[Passage] = (),
    *,
    model: SentenceModel | None,
    progress: Progress | None = None,
) -> Report:
    """All checks.

    Args:
        examples: a corpus that was read.
        references: texts that must not be in it.
        model: the sentence model; without it texts are compared by words alone.
        progress: told how many texts are embedded.
    """
    code_faults, unchecked, code = code_findings(examples)
    findings = [
        *opening_findings(examples),
        *length_findings(examples),
        *repeated_findings(examples),
        *code_faults,
        *contact_findings(examples),
        *contamination_findings(examples, references, model=model, progress=progress),
    ]
    if model is not None:
        findings += alike_findings(examples, model, progress=progress)
    return Report(
        examples=len(examples),
        answers=len(answers(examples)),
        findings=findings,
        notes=unchecked,
        lengths=lengths(answers(examples)) if examples else None,
        code=code,
    )


def opening_findings(examples: Sequence[Example]) -> list[Finding]:
    """No opening of three words is shared by more than 3% of the answers."""
    counts = openings(examples)
    allowed = max(OPENING_SHARE * counts.total(), 1)
    return [
        Finding(
            "openings", "", f"{count} of {counts.total()} answers begin alike, expected {allowed:.0f} at most", text
        )
        for text, count in counts.most_common()
        if count > allowed
    ]


def length_findings(examples: Sequence[Example]) -> list[Finding]:
    """Answers vary in length with need: some are short, some long, most between."""
    texts = answers(examples)
    if len(texts) < FEWEST_ANSWERS:
        return []
    found = lengths(texts)
    problems = []
    if found.short_share < EXTREME_SHARE:
        problems.append(f"{found.short_share:.1%} of the answers have fewer than {SHORT_WORDS} words, expected 8%")
    if found.long_share < EXTREME_SHARE:
        problems.append(f"{found.long_share:.1%} of the answers have more than {LONG_WORDS} words, expected 8%")
    if found.spread < SPREAD:
        problems.append(f"the 90th percentile is {found.spread:.1f} times the 10th, expected {SPREAD:g} times")
    evidence = f"words: 10% {found.p10}, median {found.median}, 90% {found.p90}"
    return [Finding("lengths", "", problem, evidence) for problem in problems]


def repeated_findings(examples: Sequence[Example]) -> list[Finding]:
    """No turn is there twice, word for word."""
    seen: dict[str, str] = {}
    found = []
    for example in examples:
        for message in example.messages:
            tokens = words(message.content)
            text = " ".join(tokens)
            if len(tokens) >= _REPEATED_WORDS and text in seen:
                what = f"a turn is word for word in {seen[text]}"
                found.append(Finding("repeated", example.id, what, _cut(message.content)))
            seen.setdefault(text, example.id)
    return found


def code_findings(examples: Sequence[Example]) -> tuple[list[Finding], list[Finding], dict[str, dict[str, int]]]:
    """Every code block in an answer names its language, is closed and parses.

    Returns:
        the blocks that do not, those in a language that nobody here can parse, and the counts per language.
    """
    faults: list[Finding] = []
    unchecked: list[Finding] = []
    counts: dict[str, dict[str, int]] = {}
    for example in examples:
        for block in (block for answer in answers([example]) for block in code_blocks(answer)):
            name, verdict = block.language or "no language", check(block)
            counts.setdefault(name, {"parses": 0, "fails": 0, "unchecked": 0})[verdict.outcome] += 1
            if verdict.outcome != "parses":
                finding = Finding("code", example.id, f"{name}: {verdict.reason}", _cut(block.code))
                (faults if verdict.outcome == "fails" else unchecked).append(finding)
    return faults, unchecked, dict(sorted(counts.items()))


def contact_findings(examples: Sequence[Example]) -> list[Finding]:
    """Nobody to call, write to or visit: a made-up number or address may be somebody's."""
    found = []
    for example in examples:
        for text in (*(m.content for m in example.messages), *vars(example.analysis).values()):
            found += [Finding("contacts", example.id, "could be somebody's", contact) for contact in contacts(text)]
    return found


def alike_findings(
    examples: Sequence[Example], model: SentenceModel, *, progress: Progress | None = None
) -> list[Finding]:
    """No two answers, and no two prompts of different examples, say the same."""
    found = []
    for role, limit in (("assistant", ANSWERS_ALIKE), ("user", PROMPTS_ALIKE)):
        turns = [
            (example.id, message.content)
            for example in examples
            for message in example.messages
            if message.role == role and len(words(message.content)) >= FEWEST_WORDS
        ]
        # somebody who insists asks the same again; an answer that is given twice is a fault also within one example
        groups = [id_ for id_, _ in turns] if role == "user" else None
        texts = [text for _, text in turns]
        name = "answers" if role == "assistant" else "prompts"
        for match in model.closest_within(texts, limit, groups=groups, progress=progress):
            (id_, text), (other, other_text) = turns[match.index], turns[match.other]
            what = f"{name} alike ({match.similarity:.2f}, expected {limit:.2f} at most): {other}"
            found.append(Finding("alike", id_, what, f"{_cut(text)} | {_cut(other_text)}"))
    return found


def contamination_findings(
    examples: Sequence[Example],
    references: Sequence[Passage],
    *,
    model: SentenceModel | None,
    progress: Progress | None = None,
) -> list[Finding]:
    """Nothing that is measured with is trained on: no 13 words in a row, no prompt, no meaning."""
    if not references:
        return []
    passages = [Passage(example.id, message.content) for example in examples for message in example.messages]
    semantic = None if model is None else SEMANTIC
    overlaps = find_overlaps(passages, references, semantic=semantic, model=model, progress=progress)
    return [
        Finding("contamination", o.id, f"shared with {o.other}: {o.detail}", f"{_cut(o.text)} | {_cut(o.other_text)}")
        for o in overlaps
    ]


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _EVIDENCE else line[: _EVIDENCE - 1] + "…"
