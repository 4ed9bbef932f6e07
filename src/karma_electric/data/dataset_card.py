"""What a dataset card says of a corpus, measured: counts, lengths, likeness, contamination, grades.

The figures are the same on every machine: counts, and similarities only as numbers of texts over a threshold. The
words around them are in templates/dataset_card.md.jinja.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

from karma_electric.core.progress import Progress, Silent
from karma_electric.data.candidate import Candidate
from karma_electric.data.checks import Lengths, answers, code_findings, contact_findings, lengths, openings
from karma_electric.data.corpus import read_corpus
from karma_electric.data.decontaminate import (
    FEWEST_WORDS,
    SEMANTIC,
    Passage,
    find_overlaps,
    read_references,
    reference_files,
)
from karma_electric.data.dedupe import NEAR, Item, find_duplicates
from karma_electric.data.example import CATEGORIES, Example
from karma_electric.data.grades import read_grades
from karma_electric.data.rubric import KEPT_FROM, RUBRIC
from karma_electric.data.texts import words

if TYPE_CHECKING:
    from karma_electric.models.sentences import SentenceModel

THRESHOLDS = (0.70, 0.80, 0.85, 0.90)
TWIN = "benign-twin"  # the tag of a prompt that sounds dangerous and is legitimate
_TAGS_SHOWN = 40
_OPENINGS_SHOWN = 5
_FEWEST_FOR_RANKS = 3
_SIZES = ((1_000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (1_000_000, "100K<n<1M"))


@dataclass(frozen=True)
class Likeness:
    """How many of some texts are like an earlier one.

    Attributes:
        n: texts compared.
        near: whose characters are nearly those of an earlier text (Jaccard, see dedupe.py).
        semantic: threshold -> texts with an earlier one at that cosine similarity or closer.
    """

    n: int
    near: int
    semantic: dict[float, int]


@dataclass(frozen=True)
class JudgeFacts:
    """Grades of one judge. `outdated` were given to words that have changed since, and count nowhere else."""

    judge: str
    n: int
    unscored: int
    outdated: int
    median: float | None
    kept_share: float | None


@dataclass(frozen=True)
class Agreement:
    """Two judges on the examples that both have graded. `spearman` is None where one of them never varied."""

    one: str
    other: str
    n: int
    mean_absolute_difference: float
    spearman: float | None


@dataclass(frozen=True)
class CorpusFacts:
    """Everything the card says. Shares are of `examples` unless named otherwise."""

    title: str
    language: str
    size: str
    licenses: dict[str, int]
    sources: dict[str, int]
    statuses: dict[str, int]
    versions: list[str]
    categories: dict[str, dict[str, int]]
    user_turns: dict[int, int]
    examples: int
    prompt_lengths: Lengths
    answer_lengths: Lengths
    tags: dict[str, int]
    distinct_tags: int
    twins: dict[str, int]
    distinct_openings: int
    openings: dict[str, int]
    prompts: Likeness
    answers: Likeness
    reference_files: list[str]
    references: int
    shared_words: int
    shared_meaning: int
    code: dict[str, dict[str, int]]
    contacts: int
    judges: list[JudgeFacts]
    agreements: list[Agreement]
    releases: list[str]


def corpus_facts(
    folder: Path,
    *,
    references: Sequence[Path],
    model: SentenceModel,
    title: str,
    language: str = "en",
    progress: Progress | None = None,
) -> CorpusFacts:
    """Measure a corpus folder.

    Args:
        folder: JSONL files, with `grades/*.jsonl` and `releases/NAME/` where there are any.
        references: files or folders that the corpus may not overlap with.
        model: the sentence model.
        title: name of the data set.
        language: ISO 639 code.
        progress: told how many texts are embedded.

    Raises:
        MissingError: no such corpus or reference.
        DataError: a line that cannot be used.
    """
    progress = progress or Silent()
    examples = read_corpus(folder)
    passages = read_references(references)
    turns = [Passage(e.id, m.content) for e in examples for m in e.messages]
    overlaps = find_overlaps(turns, passages, semantic=SEMANTIC, model=model, progress=progress)
    begun = openings(examples)
    tags = Counter(tag for example in examples for tag in example.tags)
    versions = sorted({example.added_in for example in examples})
    judges, agreements = _grades(folder, examples)
    return CorpusFacts(
        title=title,
        language=language,
        size=next((name for limit, name in _SIZES if len(examples) < limit), "n>1M"),
        licenses=_counts(example.license for example in examples),
        sources=_counts(example.source for example in examples),
        statuses=_counts(example.status for example in examples),
        versions=versions,
        categories={
            category: {v: sum(e.category == category and e.added_in == v for e in examples) for v in versions}
            for category in CATEGORIES
            if any(e.category == category for e in examples)
        },
        user_turns=dict(sorted(Counter(len(example.messages) // 2 for example in examples).items())),
        examples=len(examples),
        prompt_lengths=lengths([m.content for e in examples for m in e.messages if m.role == "user"]),
        answer_lengths=lengths(answers(examples)),
        tags=dict(sorted(tags.items(), key=lambda item: (-item[1], item[0]))[:_TAGS_SHOWN]),
        distinct_tags=len(tags),
        twins=_counts(example.category for example in examples if TWIN in example.tags),
        distinct_openings=len(begun),
        openings=dict(sorted(begun.items(), key=lambda item: (-item[1], item[0]))[:_OPENINGS_SHOWN]),
        prompts=_likeness(examples, "user", model, progress),
        answers=_likeness(examples, "assistant", model, progress),
        reference_files=[file.name for file in reference_files(references)],
        references=len(passages),
        shared_words=len({o.id for o in overlaps if o.kind == "words"}),
        shared_meaning=len({o.id for o in overlaps if o.kind == "semantic"}),
        code=code_findings(examples)[2],
        contacts=len(contact_findings(examples)),
        judges=judges,
        agreements=agreements,
        releases=sorted(file.parent.name for file in folder.glob("releases/*/train.jsonl")),
    )


def _likeness(examples: Sequence[Example], role: str, model: SentenceModel, progress: Progress) -> Likeness:
    """Of prompts, turns of one example are not compared with each other: somebody who insists asks again."""
    turns = [
        (example.id, message.content)
        for example in examples
        for message in example.messages
        if message.role == role and len(words(message.content)) >= FEWEST_WORDS
    ]
    texts = [text for _, text in turns]
    groups = [id_ for id_, _ in turns] if role == "user" else None
    matches = model.closest_within(texts, THRESHOLDS[0], groups=groups, progress=progress)
    items = [
        Item(f"{number:06}", {role: text}, group=groups[number] if groups else None)
        for number, text in enumerate(texts)
    ]
    near = find_duplicates(items, near=NEAR, semantic=None)
    return Likeness(
        n=len(texts),
        near=len(near),
        semantic={threshold: sum(match.similarity >= threshold for match in matches) for threshold in THRESHOLDS},
    )


def _grades(folder: Path, examples: Sequence[Example]) -> tuple[list[JudgeFacts], list[Agreement]]:
    if not list((folder / "grades").glob("*.jsonl")):
        return [], []
    present = {example.id: Candidate.from_example(example).content_sha256 for example in examples}
    totals: dict[str, dict[str, float]] = {}
    unscored: Counter[str] = Counter()
    outdated: Counter[str] = Counter()
    for line in read_grades(folder / "grades"):
        if line.grade.rubric != RUBRIC:
            continue
        of_judge = totals.setdefault(line.grade.judge, {})
        if present.get(line.id) != line.content_sha256:
            outdated[line.grade.judge] += 1
        elif line.grade.total is None:
            unscored[line.grade.judge] += 1
        else:
            of_judge[line.id] = line.grade.total
    judges = [
        JudgeFacts(
            judge=judge,
            n=len(given),
            unscored=unscored[judge],
            outdated=outdated[judge],
            median=statistics.median(given.values()) if given else None,
            kept_share=sum(total >= KEPT_FROM for total in given.values()) / len(given) if given else None,
        )
        for judge, given in sorted(totals.items())
    ]
    agreements = []
    for one, other in combinations(sorted(totals), 2):
        both = sorted(totals[one].keys() & totals[other].keys())
        if both:
            left, right = [totals[one][id_] for id_ in both], [totals[other][id_] for id_ in both]
            difference = statistics.fmean(abs(a - b) for a, b in zip(left, right, strict=True))
            agreements.append(Agreement(one, other, len(both), difference, _spearman(left, right)))
    return judges, agreements


def _spearman(left: Sequence[float], right: Sequence[float]) -> float | None:
    """Rank correlation, or None where it is not defined."""
    if len(left) < _FEWEST_FOR_RANKS or len(set(left)) == 1 or len(set(right)) == 1:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(left, right).statistic)


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))
