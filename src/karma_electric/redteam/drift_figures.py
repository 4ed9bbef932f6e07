"""What drift.json of an arm says: by kind and by turn, and two arms on the same conversations.

The conversation is what was drawn; its seeds are averaged first, and intervals are Student's over conversations: with
four of a kind they are wide, as they should be. Drift is in standard deviations of each model's own answers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from karma_electric.core.artifact import read_json
from karma_electric.core.errors import ArtifactError
from karma_electric.redteam.drift_suite import CONTROL_KINDS, KINDS

DRIFT = "drift.json"
_NAME = re.compile(rf"(?P<id>drift-(?P<kind>{'|'.join(KINDS)})-\d\d) seed (?P<seed>\d+)")


@dataclass(frozen=True)
class Measured:
    """One conversation under one seed.

    Attributes:
        id, seed, kind: of the conversation.
        mean: over its answers.
        turns: turn of the user, from 1 -> mean drift of the answer; empty in a file that came before they were kept.
    """

    id: str
    seed: int
    kind: str
    mean: float
    turns: Mapping[int, float]

    @property
    def is_control(self) -> bool:
        """Whether it is of a kind that a persona should hold in."""
        return self.kind in CONTROL_KINDS


@dataclass(frozen=True)
class Mean:
    """A mean over conversations with its 95% interval; none for a single one. `p` is against zero."""

    value: float
    interval: tuple[float, float] | None
    p: float | None
    conversations: int


@dataclass(frozen=True)
class ArmDrifts:
    """All conversations of one arm; `alarm` is the level that hardly any ordinary answer of its model exceeds."""

    conversations: tuple[Measured, ...]
    alarm: float | None
    not_measured: int

    def by_kind(self) -> dict[str, Mean]:
        """Kind -> mean, the kinds that move personas first, then the controls."""
        kinds = {one.kind for one in self.conversations}
        return {kind: mean_of(one for one in self.conversations if one.kind == kind) for kind in KINDS if kind in kinds}

    def of(self, *, control: bool) -> Mean | None:
        """Mean over all controls, or over all others; None where there are none."""
        kept = [one for one in self.conversations if one.is_control == control]
        return mean_of(kept) if kept else None

    def by_turn(self, *, control: bool) -> dict[int, Mean]:
        """Turn -> mean over the conversations that reach it."""
        kept = [one for one in self.conversations if one.is_control == control]
        turns = sorted({turn for one in kept for turn in one.turns})
        return {
            turn: _mean(_over_seeds((one.id, one.turns[turn]) for one in kept if turn in one.turns)) for turn in turns
        }


def read_drifts(folder: Path) -> ArmDrifts:
    """What was measured of an arm (RUN/drift/ARM).

    Raises:
        MissingError: nothing was. ArtifactError: the file is not what a run writes.
    """
    raw = read_json(folder / DRIFT)
    try:
        turns = raw.get("turns", {})
        found = []
        for name, mean in raw["conversations"].items():
            parts = _NAME.fullmatch(name)
            if parts is None:
                raise ValueError(f"conversation {name!r}")
            by_turn = {int(turn): float(value) for turn, value in turns.get(name, {}).items() if value is not None}
            found.append(Measured(parts["id"], int(parts["seed"]), parts["kind"], float(mean), by_turn))
        alarm = raw.get("alarm")
        return ArmDrifts(tuple(found), None if alarm is None else float(alarm["level"]), len(raw["not_measured"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ArtifactError(
            f"{folder / DRIFT} does not hold the drift of an arm ({error!r}).", "Make it again with --force."
        ) from None


def mean_of(conversations: Iterable[Measured]) -> Mean:
    """Mean of conversations, at least one, each over its seeds."""
    return _mean(_over_seeds((one.id, one.mean) for one in conversations))


def difference(a: ArmDrifts, b: ArmDrifts, *, control: bool) -> Mean | None:
    """Drift of arm b minus that of arm a, over the conversations that both have under a seed; None without any."""
    found = _over_seeds(_differences(a, b, control=control))
    return _mean(found) if found else None


def above_controls(arm: ArmDrifts) -> Mean | None:
    """How much further the kinds that move personas drift than the controls (Welch's interval); None without both."""
    moving, control = (
        _over_seeds((one.id, one.mean) for one in arm.conversations if one.is_control == is_control)
        for is_control in (False, True)
    )
    return _welch(moving, control)


def difference_beyond_controls(a: ArmDrifts, b: ArmDrifts) -> Mean | None:
    """How much more arm b drifts than arm a where personas are moved than in controls; None without both.

    What moves every text alike is no effect on the persona.
    """
    moving, control = (_over_seeds(_differences(a, b, control=is_control)) for is_control in (False, True))
    return _welch(moving, control)


def _differences(a: ArmDrifts, b: ArmDrifts, *, control: bool) -> list[tuple[str, float]]:
    first = {(one.id, one.seed): one.mean for one in a.conversations}
    return [
        (one.id, one.mean - first[one.id, one.seed])
        for one in b.conversations
        if one.is_control == control and (one.id, one.seed) in first
    ]


def _welch(moving: list[float], control: list[float]) -> Mean | None:
    """Mean of one minus mean of the other; without interval where either has a single value, or none varies."""
    from scipy.stats import ttest_ind

    if not moving or not control:
        return None
    value = sum(moving) / len(moving) - sum(control) / len(control)
    n = len(moving) + len(control)
    if min(len(moving), len(control)) < 2 or max(max(v) - min(v) for v in (moving, control)) < 1e-12:
        return Mean(value, None, None, n)
    test = ttest_ind(moving, control, equal_var=False)
    low, high = test.confidence_interval(0.95)
    return Mean(value, (float(low), float(high)), float(test.pvalue), n)


def _over_seeds(values: Iterable[tuple[str, float]]) -> list[float]:
    by_id: dict[str, list[float]] = {}
    for id_, value in values:
        by_id.setdefault(id_, []).append(value)
    return [sum(found) / len(found) for found in by_id.values()]


def _mean(values: list[float]) -> Mean:
    """Student's interval and test; values that are all the same have neither."""
    from scipy.stats import ttest_1samp

    value = sum(values) / len(values)
    if len(values) < 2 or max(values) - min(values) < 1e-12:
        return Mean(value, None, None, len(values))
    test = ttest_1samp(values, 0.0)
    low, high = test.confidence_interval(0.95)
    return Mean(value, (float(low), float(high)), float(test.pvalue), len(values))
