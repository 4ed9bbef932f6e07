"""How good the penalty rules are: precision and recall per rule on labelled sentences.

Half of the sentences are for development: phrases may be chosen by looking at them. The other half is for testing and
is not read while phrases are chosen; figures about the rules are those of this half.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, cast, get_args

from karma_electric.core.errors import DataError
from karma_electric.core.jsonl import read_jsonl
from karma_electric.data.penalties import RULES, RULESET, penalize

Split = Literal["development", "test"]
SPLITS: tuple[Split, ...] = get_args(Split)
Interval = Callable[[int, int], tuple[float, float]]  # (successes, trials) -> low, high
_NAMES = tuple(rule.name for rule in RULES)


@dataclass(frozen=True)
class LabelledSentence:
    """A short answer, and the rules that it should be penalised by.

    Attributes:
        id: unique in its file.
        text: the answer.
        prompt: what was asked, or None.
        category: category of the example it stands for, or None.
        labels: names of rules; none for a clean sentence.
        split: "development" or "test".
        why: the reason for the labels.
    """

    id: str
    text: str
    prompt: str | None
    category: str | None
    labels: frozenset[str]
    split: Split
    why: str


@dataclass(frozen=True)
class Score:
    """How one rule did.

    Attributes:
        rule: its name.
        right: sentences labelled with it and found.
        wrong: sentences found, but not labelled with it.
        missed: sentences labelled with it, but not found.
    """

    rule: str
    right: int
    wrong: int
    missed: int

    @property
    def found(self) -> int:
        """Sentences in which the rule was found."""
        return self.right + self.wrong

    @property
    def labelled(self) -> int:
        """Sentences that are labelled with the rule."""
        return self.right + self.missed

    @property
    def precision(self) -> float | None:
        """Share of the found that is right; None where nothing was found."""
        return self.right / self.found if self.found else None

    @property
    def recall(self) -> float | None:
        """Share of the labelled that was found; None where none is labelled."""
        return self.right / self.labelled if self.labelled else None


@dataclass(frozen=True)
class Measurement:
    """What was measured on one split.

    Attributes:
        ruleset: the rules that were measured.
        split: the half they were measured on.
        sentences: how many.
        clean: how many of them are labelled with nothing.
        clean_found: how many of the clean ones were penalised.
        scores: one per rule.
        overall: all rules together, counted per sentence and rule.
    """

    ruleset: str
    split: Split
    sentences: int
    clean: int
    clean_found: int
    scores: tuple[Score, ...]
    overall: Score


_KEYS = {field.name for field in fields(LabelledSentence)}


def read_labelled(path: Path) -> list[LabelledSentence]:
    """Read labelled sentences.

    Raises:
        MissingError: there is no such file.
        DataError: the first line that is wrong, what was found and what was expected.
    """
    rows: dict[str, LabelledSentence] = {}
    for number, raw in read_jsonl(path):
        where = f"{path.name} line {number}"
        if not isinstance(raw, dict) or raw.keys() != _KEYS:
            raise DataError(f"{where} is no labelled sentence.", f"Expected the keys {', '.join(sorted(_KEYS))}.")
        for key in _KEYS - {"labels"}:
            if not isinstance(raw[key], str) and not (key in ("prompt", "category") and raw[key] is None):
                raise DataError(f"{where}: {key!r} is {raw[key]!r}, expected text.")
        labels = raw["labels"]
        if not isinstance(labels, list) or not set(map(str, labels)) <= set(_NAMES):
            raise DataError(f"{where}: labels are {labels!r}.", f"Expected a list of {', '.join(_NAMES)}.")
        if raw["split"] not in SPLITS:
            raise DataError(f"{where}: split is {raw['split']!r}.", f"Expected one of {', '.join(SPLITS)}.")
        if raw["id"] in rows:
            raise DataError(f"{where}: id {raw['id']!r} is already there.", "Ids are unique.")
        rows[raw["id"]] = LabelledSentence(**{**raw, "labels": frozenset(labels), "split": cast("Split", raw["split"])})
    return list(rows.values())


def measure(rows: Iterable[LabelledSentence], split: Split) -> Measurement:
    """Penalise the sentences of one split, and compare with their labels."""
    chosen = [row for row in rows if row.split == split]
    found = [penalize(row.text, prompt=row.prompt, category=row.category).rules for row in chosen]
    pairs = list(zip(chosen, found, strict=True))
    scores = tuple(_score(name, [(name in row.labels, name in rules) for row, rules in pairs]) for name in _NAMES)
    clean = [rules for row, rules in pairs if not row.labels]
    return Measurement(
        ruleset=RULESET,
        split=split,
        sentences=len(chosen),
        clean=len(clean),
        clean_found=sum(bool(rules) for rules in clean),
        scores=scores,
        overall=Score(
            "all rules",
            sum(score.right for score in scores),
            sum(score.wrong for score in scores),
            sum(score.missed for score in scores),
        ),
    )


def table(measurement: Measurement, interval: Interval) -> list[tuple[str, ...]]:
    """The figures as rows of text, the header first: precision and recall with their intervals."""
    rows: list[tuple[str, ...]] = [("rule", "labelled", "found", "right", "precision", "recall")]
    for score in (*measurement.scores, measurement.overall):
        counts = (str(score.labelled), str(score.found), str(score.right))
        shares = (_share(score.right, score.found, interval), _share(score.right, score.labelled, interval))
        rows.append((score.rule, *counts, *shares))
    return rows


def as_markdown(measurement: Measurement, interval: Interval) -> str:
    """The figures as a Markdown table, with a line on what they rest on."""
    header, *rows = table(measurement, interval)
    lines = [
        f"Rule set `{measurement.ruleset}` on the {measurement.split} half: {measurement.sentences} sentences, "
        f"{measurement.clean} of them clean; of these {measurement.clean_found} were penalised "
        f"({_share(measurement.clean_found, measurement.clean, interval)}). In brackets: 95% Wilson intervals.",
        "",
        _line(header),
        "|---|---:|---:|---:|---|---|",
        *map(_line, rows),
    ]
    return "\n".join(lines) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _score(rule: str, pairs: Sequence[tuple[bool, bool]]) -> Score:
    return Score(
        rule,
        right=sum(labelled and found for labelled, found in pairs),
        wrong=sum(found and not labelled for labelled, found in pairs),
        missed=sum(labelled and not found for labelled, found in pairs),
    )


def _share(successes: int, n: int, interval: Interval) -> str:
    if n == 0:
        return "none found"
    low, high = interval(successes, n)
    return f"{successes / n:.0%} ({low:.0%} to {high:.0%})"
