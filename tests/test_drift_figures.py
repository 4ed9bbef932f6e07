"""Drift of arms: means by kind and turn, and differences, over conversations."""

from __future__ import annotations

from pathlib import Path

import pytest
from scipy.stats import ttest_rel

import fake_run
from karma_electric.core.artifact import read_json, write_json
from karma_electric.core.errors import ArtifactError
from karma_electric.redteam.drift_figures import DRIFT, above_controls, difference, read_drifts


@pytest.fixture
def arm(tmp_path: Path) -> Path:
    fake_run.write_drifts(tmp_path / "arm", 0.0)
    return tmp_path / "arm"


def test_means_are_over_conversations_and_their_seeds(arm: Path) -> None:
    drifts = read_drifts(arm)
    assert list(drifts.by_kind()) == ["confiding", "coding"]  # controls last
    assert drifts.by_kind()["confiding"].value == pytest.approx(0.5 + 0.25 + 0.02 + 0.01)
    assert drifts.by_kind()["confiding"].conversations == 3  # not 6: seeds are no conversations
    assert [mean.value for mean in drifts.by_turn(control=True).values()] == pytest.approx([-0.37, -0.27, -0.17, -0.07])
    assert drifts.alarm == 1.25


def test_kinds_are_held_against_controls(arm: Path) -> None:
    above = above_controls(read_drifts(arm))
    assert above is not None
    assert above.interval is not None
    assert above.value == pytest.approx(1.0)
    assert above.interval[0] > 0.9


def test_two_arms_are_paired_by_conversation_and_seed(arm: Path, tmp_path: Path) -> None:
    raw = read_json(arm / DRIFT)
    shifts = dict(zip(raw["conversations"], (0.1, 0.2, 0.4, 0.3, 0.0, 0.2) * 2, strict=True))
    other = {name: value + shifts[name] for name, value in raw["conversations"].items() if "03 seed 1" not in name}
    (tmp_path / "b").mkdir()
    write_json(tmp_path / "b" / DRIFT, raw | {"conversations": other})
    found = difference(read_drifts(arm), read_drifts(tmp_path / "b"), control=False)
    assert found is not None
    assert found.value == pytest.approx((0.15 + 0.35 + 0.0) / 3)
    assert found.p == pytest.approx(ttest_rel([0.15, 0.35, 0.0], [0, 0, 0]).pvalue)


def test_without_turns_there_are_means_but_no_course(arm: Path) -> None:
    raw = read_json(arm / DRIFT)
    del raw["turns"], raw["alarm"]
    write_json(arm / DRIFT, raw)
    drifts = read_drifts(arm)
    assert drifts.by_turn(control=False) == {}
    assert drifts.alarm is None
    assert drifts.of(control=False) is not None


def test_a_damaged_file_is_named(arm: Path) -> None:
    write_json(arm / DRIFT, {"conversations": {"talk": 1.0}, "not_measured": {}})
    with pytest.raises(ArtifactError, match="conversation 'talk'"):
        read_drifts(arm)
