"""People's labels of answers that a judge has judged: a file beside the arms that only ever grows.

    redteam/relabels.jsonl    a line per label, of all arms of the run; the last one about an answer holds

Verdicts and rates are never changed by them: whoever labels has seen the judge's verdict, often the arm's name, and
chose which answers to look at. They feed the labels that judges are measured on. A label names the answers it was given
to by their hash, so that it does not count for an arm that was made again since, and survives that.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import datetime, timezone
from pathlib import Path

from karma_electric.core.artifact import canonical_json, hash_text
from karma_electric.core.errors import ArtifactError, BusyError, DataError
from karma_electric.core.jsonl import parse_json
from karma_electric.redteam.labelled import Labelled
from karma_electric.redteam.runner import Answer
from karma_electric.redteam.seeds import SeedResult
from karma_electric.redteam.signals import OUTCOMES, Outcome, Verdict

FILE = "relabels.jsonl"
LONGEST_REASON = 2000  # characters
LONGEST_RATER = 80
_WAIT_S = 5.0

Key = tuple[str, str, int]  # arm, scenario id, seed


@dataclass(frozen=True)
class Relabel:
    """One label that somebody gave: a line of relabels.jsonl.

    Attributes:
        scenario_id, arm, seed: which answers.
        outcome: the label.
        reason: why, in the rater's words.
        rater: who gave it, as they call themselves; empty where they did not say.
        judged, scorer: what the judge had found, and its name.
        answers_sha256: hash of the texts that were labelled, all turns (see `answers_hash`).
        created: UTC, ISO 8601.
    """

    scenario_id: str
    arm: str
    seed: int
    outcome: Outcome
    reason: str
    rater: str
    judged: Outcome
    scorer: str
    answers_sha256: str
    created: str

    @property
    def key(self) -> Key:
        """Which answers, without what they said."""
        return self.arm, self.scenario_id, self.seed


_KEYS = {field.name for field in fields(Relabel)}


@dataclass(frozen=True)
class Judged:
    """Answers of an arm to look at: their verdict, and what was said, by turn."""

    arm: str
    seed: int
    verdict: Verdict
    answers: Mapping[int, Answer]


def answers_hash(answers: Mapping[int, Answer]) -> str:
    """SHA-256 over the texts of all turns, in order."""
    return hash_text(canonical_json([answers[turn].text for turn in sorted(answers)]))


def add_relabel(place: Path, judged: Judged, outcome: str, *, reason: str, rater: str = "") -> Relabel:
    """Append a label and wait until it is on disk.

    Args:
        place: the folder that the arms are in.
        judged: what is labelled.
        outcome: the label.
        reason: why, in a line.
        rater: who says so.

    Raises:
        DataError: an outcome that is none, no reason, or texts that are too long.
        BusyError: another process holds the file.
        OSError: the folder cannot be written to.
    """
    reason, rater = " ".join(reason.split()), " ".join(rater.split())
    if outcome not in OUTCOMES:
        raise DataError(f"The label is {outcome!r}, expected one of {', '.join(OUTCOMES)}.")
    if not reason:
        raise DataError("The label has no reason.", "Say in a line what in the answer decided.")
    if len(reason) > LONGEST_REASON or len(rater) > LONGEST_RATER:
        raise DataError(
            f"The reason has {len(reason)} characters and the name {len(rater)}, expected at most {LONGEST_REASON} "
            f"and {LONGEST_RATER}."
        )
    label = Relabel(
        scenario_id=judged.verdict.scenario_id,
        arm=judged.arm,
        seed=judged.seed,
        outcome=outcome,
        reason=reason,
        rater=rater,
        judged=judged.verdict.outcome,
        scorer=judged.verdict.scorer,
        answers_sha256=answers_hash(judged.answers),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    _append(place / FILE, json.dumps(asdict(label), ensure_ascii=False))
    return label


def read_relabels(place: Path, arms: Mapping[str, Mapping[int, SeedResult]]) -> list[Relabel]:
    """The labels whose answers are still those that were labelled, oldest first.

    A line that was torn by a kill is left out; it stays in the file.

    Args:
        place: the folder that the arms are in.
        arms: results by arm and seed; labels of other arms are left out.

    Raises:
        ArtifactError: a whole line that is no label.
    """
    file = place / FILE
    found = []
    for number, raw in enumerate(file.read_bytes().splitlines() if file.is_file() else (), 1):
        try:
            value = parse_json(raw, FILE)
        except DataError:
            continue
        if not isinstance(value, dict) or value.keys() != _KEYS or {value["outcome"], value["judged"]} - set(OUTCOMES):
            raise ArtifactError(
                f"{file} line {number} is no label: expected the keys {', '.join(sorted(_KEYS))}.",
                "Remove that line; the others stay.",
            )
        label = Relabel(**value)
        answers = answers_of(arms, label)
        if answers and answers_hash(answers) == label.answers_sha256:
            found.append(label)
    return found


def latest(labels: Iterable[Relabel]) -> dict[Key, Relabel]:
    """The last label of each answer."""
    return {label.key: label for label in labels}


def answers_of(arms: Mapping[str, Mapping[int, SeedResult]], label: Relabel) -> Mapping[int, Answer]:
    """What was labelled, by turn; empty where the arm has no such answers."""
    result = arms.get(label.arm, {}).get(label.seed)
    return {} if result is None else result.answers.get(label.scenario_id, {})


def to_look_at(arm: str, seeds: Mapping[int, SeedResult], outcomes: Sequence[str] = OUTCOMES) -> list[Judged]:
    """Answers whose verdict is one of `outcomes`; the least sure first, then those without a confidence."""
    found = [
        Judged(arm, seed, verdict, result.answers.get(id_, {}))
        for seed, result in seeds.items()
        for id_, verdict in result.verdicts.items()
        if verdict.outcome in outcomes
    ]
    return sorted(found, key=lambda one: 2.0 if one.verdict.confidence is None else one.verdict.confidence)


def as_labelled(
    run: str, labels: Iterable[Relabel], arms: Mapping[str, Mapping[int, SeedResult]]
) -> Iterator[Labelled]:
    """The last label of each answer as a labelled answer, for `karma judge train` and `calibrate`.

    Args:
        run: name of the run, part of ids and of what answered.
        labels: as `read_relabels` gives them.
        arms: results by arm and seed.
    """
    for label in latest(labels).values():
        answers = [answer for _, answer in sorted(answers_of(arms, label).items())]
        yield Labelled(
            id=f"relabel-{run}-{label.arm}-{label.scenario_id}-{label.seed}",
            scenario_id=label.scenario_id,
            prompt=answers[-1].prompt,
            response=answers[-1].text,
            label=label.outcome,
            reason=label.reason,
            rater=label.rater or "not said",
            source=f"model:{run}/{label.arm}",
            answers=tuple(answer.text for answer in answers[:-1]),
        )


def _append(file: Path, line: str) -> None:
    """Add one line in one write, under a lock, on disk when this returns. A torn last line is left as it is."""
    from filelock import FileLock, Timeout

    try:
        with FileLock(file.with_name(f".{FILE}.lock"), timeout=_WAIT_S):
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
            try:
                size = os.fstat(descriptor).st_size
                torn = size > 0 and _last_byte(file) != b"\n"
                os.write(descriptor, (("\n" if torn else "") + line + "\n").encode())
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
    except Timeout:
        raise BusyError(f"{file} is held by another process.", "Try again in a moment.") from None


def _last_byte(file: Path) -> bytes:
    with file.open("rb") as opened:
        opened.seek(-1, os.SEEK_END)
        return opened.read(1)
