"""A cap on another model, template or precision than it was made for: what is said, and what is measured."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import tiny
from karma_electric.core.errors import ArtifactError
from karma_electric.core.messages import assistant, system, user
from karma_electric.models.blocks import SITES, Site
from karma_electric.models.chat_template import prompt_ids, template_sha256
from karma_electric.models.loading import load_model
from karma_electric.steer import compat
from karma_electric.steer.axis import Axis
from karma_electric.steer.compat import check_cap, check_cap_at, reference_of
from karma_electric.steer.spec import Cap, load_spec, save_spec

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LAYERS = (2, 4)
both_sites = pytest.mark.parametrize("site", SITES)


@pytest.fixture
def axis(tokenizer: PreTrainedTokenizerBase) -> Axis:
    return replace(tiny.random_axis(), model="tiny", template_sha256=template_sha256(tokenizer))


def cap_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, axis: Axis, site: Site = "mlp") -> Cap:
    """A cap that says what it was calibrated on."""
    cap = tiny.cap_at(model, tokenizer, site, layers=LAYERS)
    made = {"model": "tiny", "template_sha256": axis.template_sha256, "dtype": "float32", "quantisation": "none"}
    reference = reference_of(model, tokenizer, axis, site, LAYERS)
    return replace(cap, spec=replace(cap.spec, calibrated_on=made, reference=reference))


@both_sites
def test_the_reference_is_the_projection_of_the_answers_of_the_fixed_conversations(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, axis: Axis, site: Site
) -> None:
    reference = reference_of(model, tokenizer, axis, site, LAYERS)
    assert reference["conversations"] == 8
    for layer in LAYERS:
        values = []
        for question, text in compat._REFERENCE:
            prompt = prompt_ids(tokenizer, [system(tiny.PERSONA), user(question), assistant(text)][:2])
            ids = [*prompt, *tokenizer(text)["input_ids"]]
            h = tiny.residuals(model, torch.tensor([ids]), site)[layer][0, len(prompt) :]
            values.append((h @ axis.directions[site][layer]).numpy())
        joined = np.concatenate(values)
        assert reference["tokens"] == len(joined)
        assert reference["mean"][str(layer)] == pytest.approx(joined.mean(), abs=1e-3)
        assert reference["sd"][str(layer)] == pytest.approx(joined.std(), abs=1e-3)


def test_on_its_own_model_a_cap_says_nothing_and_measures_nothing(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, axis: Axis, monkeypatch: pytest.MonkeyPatch
) -> None:
    cap = cap_of(model, tokenizer, axis)
    monkeypatch.setattr(compat, "reference_of", lambda *_: pytest.fail("the model was run"))
    assert check_cap(model, tokenizer, cap, axis, "tiny") == []


def test_another_model_is_warned_about_with_the_measured_shift(
    fresh_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, axis: Axis
) -> None:
    """An MLP that adds a known multiple of the axis, as training might."""
    v, layer = axis.directions["block"][3], 3
    cap = cap_of(fresh_model, tokenizer, axis, "block")
    reference = reference_of(fresh_model, tokenizer, axis, "block", [layer])
    cap = replace(cap, spec=replace(cap.spec, layers=(layer,), thresholds={layer: 0.0}, reference=reference))
    step = 0.8 * reference["sd"][str(layer)]
    fresh_model.model.layers[layer].mlp.register_forward_hook(lambda _, __, added: added - step * v)
    warnings = check_cap(fresh_model, tokenizer, cap, axis, "other")
    assert "another model" in warnings[0]
    assert warnings[1] == (
        "Projections have shifted (on 8 fixed conversations, -0.80 sd at block 3): "
        "calibrate again: karma axis calibrate MODEL AXIS OUT"
    )


def test_another_precision_is_warned_about_and_seen_to_change_little(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, axis: Axis, tiny_path: Path
) -> None:
    cap = cap_of(model, tokenizer, axis)
    low = load_model(tiny_path, dtype="bfloat16", device="cpu")
    warnings = check_cap(low, tokenizer, cap, axis, "tiny")
    assert warnings[0] == "The cap was calibrated in float32, this model runs in bfloat16."
    assert "hardly shifted" in warnings[1]
    assert "calibrate again" not in warnings[1]


@pytest.mark.parametrize(
    ("change", "quantisation", "named"),
    [
        ({"template_sha256": "1" * 64}, "none", "under another chat template"),
        ({"quantisation": "nf4"}, "none", "of quantisation nf4, this model's is none"),
        ({}, "nf4", "of quantisation none, this model's is nf4"),
        ({"model": "another"}, "none", "on another model"),
    ],
)
def test_each_difference_is_named(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    axis: Axis,
    change: dict[str, Any],
    quantisation: str,
    named: str,
) -> None:
    cap = cap_of(model, tokenizer, axis)
    cap = replace(cap, spec=replace(cap.spec, calibrated_on=cap.spec.calibrated_on | change))
    warnings = check_cap(model, tokenizer, cap, axis, "tiny", quantisation=quantisation)
    assert named in warnings[0]
    assert len(warnings) == 2, "the shift comes after the one difference"


def test_another_quantisation_does_not_hide_another_precision(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, axis: Axis
) -> None:
    spec = cap_of(model, tokenizer, axis).spec
    facts = {"fingerprint": "tiny", "template": axis.template_sha256, "dtype": "bfloat16"}
    assert len(compat.differences(spec, axis, **facts, quantisation="nf4")) == 2


def test_tokens_that_differ_are_mentioned(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, axis: Axis
) -> None:
    cap = cap_of(model, tokenizer, axis)
    other = replace(axis, toward="Be brief.")
    assert "their tokens differ too" in check_cap(model, tokenizer, cap, other, "other")[1]


def test_a_cap_without_a_reference_warns_without_a_figure(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, axis: Axis
) -> None:
    """Caps of earlier versions, and imported ones, which may say nothing of what they were made on."""
    cap = tiny.cap_at(model, tokenizer, "mlp", layers=LAYERS)
    assert check_cap(model, tokenizer, cap, axis, "tiny") == []
    assert check_cap(model, tokenizer, cap, axis, "other") == [
        "The cap was calibrated on another model: thresholds and direction may not fit this one."
    ]


def test_a_model_of_another_shape_is_refused(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, axis: Axis
) -> None:
    cap = cap_of(model, tokenizer, axis)
    with pytest.raises(ArtifactError, match="7 blocks of hidden size 64, the model has 6 blocks"):
        check_cap(model, tokenizer, cap, tiny.random_axis(n_layers=7), "tiny")


def test_a_folder_is_loaded_only_when_something_differs(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    axis: Axis,
    tiny_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cap = cap_of(model, tokenizer, axis)
    assert "another model" in check_cap_at(tiny_path, cap, axis, "other", dtype="float32")[0]
    monkeypatch.setattr("karma_electric.models.loading.load_model", lambda *_, **__: pytest.fail("it was loaded"))
    assert check_cap_at(tiny_path, cap, axis, "tiny", dtype="float32") == []


def test_the_reference_survives_its_file(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, axis: Axis, tmp_path: Path
) -> None:
    spec = cap_of(model, tokenizer, axis).spec
    save_spec(spec, tmp_path / "cap.json")
    assert load_spec(tmp_path / "cap.json") == spec
