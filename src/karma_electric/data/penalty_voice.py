"""Whose words are these, and are they taken back? Reported speech, refutation, negation, hedges around a match.

The answer speaks when it asserts something itself. "People say it is not that bad" reports, "instead of telling her to
cheer up" advises against, "that everybody lies is a myth" refutes; none of these is held against the answer. The words
that show it are in `phrases/voice.txt`.
"""

from __future__ import annotations

from karma_electric.data.penalty_rules import word_list


def taken_back(before: str, after: str, following: str) -> bool:
    """Whether the words around a match say that somebody else said it, or that it is not so.

    Args:
        before: the sentence up to the match.
        after: the sentence from the end of the match.
        following: the next sentence.
    """
    clause = clause_before(before)
    return bool(
        word_list("reported").search(clause)
        or (before.rstrip().endswith(":") and word_list("reported").search(before))
        or word_list("refutedbefore").search(clause)
        or word_list("refutedafter").search(after)
        or word_list("refutednext").search(following)
    )


def negated(before: str) -> bool:
    """Whether a negation stands within three words before a match."""
    clause = clause_before(before)
    return bool(word_list("negation").search(clause)) and not word_list("nonegation").search(clause)


def hedged(before: str, match: str) -> bool:
    """Whether the clause before a match, or the match itself, says that it is only likely, conditional or partly so."""
    return bool(word_list("hedge").search(clause_before(before)) or word_list("softened").search(match))


def clause_before(before: str) -> str:
    """The part of `before` that belongs to the same clause as what comes next."""
    last = 0
    for match in word_list("clause").finditer(before):
        last = match.end()
    return before[last:].lstrip()
