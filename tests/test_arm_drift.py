"""Drift of an arm's answers: a figure per conversation, or the reason why there is none."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

import tiny
from karma_electric.core.messages import assistant, user
from karma_electric.core.progress import Silent
from karma_electric.steer.arm_drift import drift_of_each
from karma_electric.steer.axis import save_axis
from karma_electric.steer.spec import AXIS_FILE, CAP_FILE, save_spec


@pytest.fixture
def axis(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    save_axis(tiny.random_axis(), tmp_path / AXIS_FILE)
    save_spec(tiny.cap_at(model, tokenizer, "mlp").spec, tmp_path / CAP_FILE)
    return tmp_path


def test_every_conversation_has_a_figure_or_a_reason(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, axis: Path
) -> None:
    talks = {f"talk {n}": talk for n, talk in enumerate(tiny.chats(3, seed=1))}
    none = {"silent": [user("hello")], "endless": [user("a"), assistant("word " * 5000)]}
    found = drift_of_each(model, tokenizer, axis, "f", {**talks, **none}, progress=Silent())
    assert found.means.keys() == talks.keys()
    assert len(set(found.means.values())) == 3
    assert "no assistant turn" in found.not_measured["silent"]
    assert "more than the model's context" in found.not_measured["endless"]


def test_every_answer_of_a_conversation_has_a_figure_of_its_own(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, axis: Path
) -> None:
    talk = [user("one"), assistant("first words"), user("two"), assistant("then others")]
    found = drift_of_each(model, tokenizer, axis, "f", {"talk": talk}, progress=Silent())
    first, second = found.answers["talk"]
    assert first is not None
    assert second is not None
    assert first != second
    assert found.means["talk"] == pytest.approx((first + second) / 2)
    assert found.alarm is not None
    assert found.alarm.source == "the ceiling itself"  # no ordinary answers lie beside this axis


def test_nothing_to_measure_is_no_error(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, axis: Path) -> None:
    assert drift_of_each(model, tokenizer, axis, "f", {"x": [user("a")]}, progress=Silent()).means == {}
