"""Thresholds: set on the model's own response tokens, measured on others, and kept in a file that is checked."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import tiny
from karma_electric.core.errors import ArtifactError, DataError, MissingError
from karma_electric.core.messages import Conversation, assistant, system, user
from karma_electric.core.progress import Silent
from karma_electric.core.recipe import AxisSection
from karma_electric.models.blocks import SITES, Site
from karma_electric.models.chat_template import prompt_ids, prompt_text
from karma_electric.models.engines.protocol import Sampling
from karma_electric.models.engines.scripted import ScriptedEngine
from karma_electric.steer.axis import save_axis
from karma_electric.steer.calibrate import calibrate
from karma_electric.steer.responses import Response, generate_responses, read_responses
from karma_electric.steer.spec import CapSpec, load_cap, load_spec, save_spec

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LAYERS = [2, 4]
AXIS = tiny.random_axis()
both_sites = pytest.mark.parametrize("site", SITES)


def some_responses(split: str, n: int, seed: int) -> list[Response]:
    return [
        Response(f"{split}{i}", split, tiny.PERSONA, chat[1].content, chat[2].content)
        for i, chat in enumerate(tiny.chats(n, seed=seed))
    ]


RESPONSES = some_responses("calibration", 12, seed=1) + some_responses("heldout", 9, seed=2)


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    responses: list[Response] | None = None,
    toward: torch.Tensor | None = None,
    **section: Any,
) -> tuple[CapSpec, dict[str, Any]]:
    toward = torch.zeros(4, tiny.LAYERS, tiny.HIDDEN) if toward is None else toward
    responses = RESPONSES if responses is None else responses
    return calibrate(model, tokenizer, AXIS, toward, responses, AxisSection(**section), LAYERS, progress=Silent())


def by_hand(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, site: Site, layer: int, split: str
) -> tuple[np.ndarray, np.ndarray]:
    """Projections and norms at the tokens of the answers, one response at a time, without a batch or padding."""
    v = AXIS.directions[site][layer].double()
    projections, norms = [], []
    for response in (r for r in RESPONSES if r.split == split):
        before = prompt_text(tokenizer, response.question)
        prompt = tokenizer(before, add_special_tokens=False)["input_ids"]
        whole = tokenizer(before + response.text, add_special_tokens=False)["input_ids"]
        assert whole[: len(prompt)] == prompt
        h = tiny.residuals(model, torch.tensor([whole]), site)[layer][0, len(prompt) :].double()
        assert len(h) == len(whole) - len(prompt) > 0
        projections.append(h @ v)
        norms.append(h.norm(dim=-1))
    return torch.cat(projections).numpy(), torch.cat(norms).numpy()


# Thresholds


@both_sites
@pytest.mark.parametrize("quantile", [0.25, 0.75])
def test_runtime_q_caps_1_minus_q_of_the_calibration_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, site: Site, quantile: float
) -> None:
    spec, _ = run(model, tokenizer, site=site, quantile=quantile)
    for layer in LAYERS:
        projections, _ = by_hand(model, tokenizer, site, layer, "calibration")
        assert (projections > spec.thresholds[layer]).mean() == pytest.approx(1 - quantile, abs=2 / len(projections))
        assert spec.thresholds[layer] == pytest.approx(np.quantile(projections, quantile), abs=1e-3)
    assert spec.method == {"name": "runtime-q", "quantile": quantile}


def test_only_the_words_of_the_answers_are_counted(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Not the prompt, not the padding, not the end of the turn: none of them is fed back while an answer is written."""
    spec, plots = run(model, tokenizer, site="block")
    words = {
        split: sum(len(tokenizer(r.text)["input_ids"]) for r in RESPONSES if r.split == split)
        for split in ("calibration", "heldout")
    }
    assert spec.calibrated_on["calibration_tokens"] == words["calibration"]
    assert spec.calibrated_on["heldout_tokens"] == words["heldout"]
    projections, _ = by_hand(model, tokenizer, "block", 2, "calibration")
    np.testing.assert_allclose(plots["calibration"][2], np.sort(projections), rtol=1e-3, atol=1e-3)


@both_sites
def test_batching_and_padding_change_nothing(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, site: Site
) -> None:
    alone, _ = run(model, tokenizer, site=site, batch_tokens=1)
    padded, _ = run(model, tokenizer, site=site, batch_tokens=100_000)
    assert alone.thresholds == pytest.approx(padded.thresholds, abs=1e-3)
    assert alone.dose == pytest.approx(padded.dose, abs=1e-5)


def test_persona_p25_is_the_25th_percentile_of_the_personas_own_projections(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    toward = torch.randn(40, tiny.LAYERS, tiny.HIDDEN, generator=torch.Generator().manual_seed(3))
    spec, _ = run(model, tokenizer, toward=toward, site="mlp", threshold="persona-p25")
    for layer in LAYERS:
        projections = toward[:, layer].double().numpy() @ AXIS.directions["mlp"][layer].double().numpy()
        assert spec.thresholds[layer] == pytest.approx(np.percentile(projections, 25), abs=1e-5)
    assert spec.method["name"] == "persona-p25"


@both_sites
def test_rate_and_dose_are_measured_on_the_heldout_responses(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, site: Site
) -> None:
    spec, _ = run(model, tokenizer, site=site, alpha=0.4, quantile=0.6)
    for layer in LAYERS:
        projections, norms = by_hand(model, tokenizer, site, layer, "heldout")
        over = np.maximum(0, projections - spec.thresholds[layer])
        assert spec.cap_rate[str(layer)] == pytest.approx((over > 0).mean(), abs=2 / len(over))
        assert spec.dose[str(layer)] == pytest.approx((0.4 * over / norms).mean(), rel=1e-3)
    assert spec.cap_rate["mean"] == pytest.approx(np.mean([spec.cap_rate[str(layer)] for layer in LAYERS]))
    assert spec.cap_rate["mean"] != pytest.approx(0.4, abs=1e-3), "the calibration tokens would give exactly this"


def test_thresholds_do_not_look_at_the_heldout_responses(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    other = [r for r in RESPONSES if r.split == "calibration"] + some_responses("heldout", 5, seed=77)
    first, _ = run(model, tokenizer)
    second, _ = run(model, tokenizer, responses=other)
    assert first.thresholds == second.thresholds
    assert first.cap_rate != second.cap_rate


@pytest.mark.parametrize("missing", ["calibration", "heldout"])
def test_a_split_without_responses_is_an_error(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, missing: str
) -> None:
    with pytest.raises(DataError, match=f"There are no {missing} responses"):
        run(model, tokenizer, responses=[r for r in RESPONSES if r.split != missing])


# cap.json


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    spec = CapSpec(
        axis="axis.safetensors",
        site="mlp",
        layers=(2, 4),
        thresholds={2: 1.25, 4: -0.5},
        alpha=0.5,
        calibrated_on={"model": "tiny"},
        method={"name": "runtime-q", "quantile": 0.75},
        cap_rate={"2": 0.2, "4": 0.3, "mean": 0.25},
        dose={"2": 0.01, "4": 0.02, "mean": 0.015},
    )
    save_spec(spec, tmp_path / "cap.json")
    save_axis(AXIS, tmp_path / "axis.safetensors")
    return tmp_path / "cap.json"


def test_a_calibrated_cap_survives_its_file(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    spec, _ = run(model, tokenizer)
    save_spec(spec, tmp_path / "cap.json")
    assert load_spec(tmp_path / "cap.json") == spec


def test_a_cap_is_loaded_with_the_axis_beside_it(spec_file: Path) -> None:
    for path in (spec_file, spec_file.parent):
        cap, axis = load_cap(path)
        assert cap.spec == load_spec(spec_file)
        assert axis.model == AXIS.model
        assert sorted(cap.directions) == [2, 4]
        for layer, v in cap.directions.items():
            assert torch.equal(v, AXIS.directions["mlp"][layer])


@pytest.mark.parametrize(
    "change",
    [
        {"layers": [2]},
        {"layers": [2, 4, 5]},
        {"layers": [], "thresholds": {}},
        {"thresholds": {"2": "high", "4": 0.0}},
        {"thresholds": {"2": float("nan"), "4": 0.0}},
        {"thresholds": {"2": float("-inf"), "4": 0.0}},
        {"thresholds": [1.0, 2.0]},
        {"thresholds": None},
        {"site": "attention"},
        {"alpha": 1.5},
        {"alpha": -0.5},
        {"alpha": "strong"},
        {"alpha": None},
        {"colour": "red"},
    ],
)
def test_a_damaged_cap_is_refused(spec_file: Path, change: dict[str, Any]) -> None:
    spec_file.write_text(json.dumps(json.loads(spec_file.read_text()) | change))
    with pytest.raises(ArtifactError, match=r"[Cc]alibrate again"):
        load_spec(spec_file)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '"cap"', "{}"])
def test_a_file_that_is_not_a_cap_is_refused(spec_file: Path, text: str) -> None:
    spec_file.write_text(text)
    with pytest.raises(ArtifactError):
        load_spec(spec_file)


def test_a_missing_cap_or_axis_is_missing(spec_file: Path) -> None:
    (spec_file.parent / "axis.safetensors").unlink()
    with pytest.raises(MissingError, match=r"axis\.safetensors"):
        load_cap(spec_file)
    spec_file.unlink()
    with pytest.raises(MissingError, match=r"cap\.json"):
        load_cap(spec_file)


# The responses thresholds are set on


def answer(conversation: Conversation) -> str:
    return "" if "dog" in conversation[1].content else f"On {conversation[1].content}"


def generate(engine: ScriptedEngine, path: Path, n: int = 10) -> list[Response]:
    splits = {"calibration": tiny.prompts(n), "heldout": tiny.prompts(4, seed=9, prefix="h")}
    return generate_responses(engine, splits, tiny.PERSONA, path, sampling=Sampling(), batch_size=3, progress=Silent())


def test_responses_are_generated_under_the_persona_and_kept_in_order(tmp_path: Path) -> None:
    engine = ScriptedEngine(answer)
    responses = generate(engine, tmp_path / "responses.jsonl")
    assert engine.calls[0][0] == [system(tiny.PERSONA), user(tiny.prompts(10)[0].text)]
    kept = [p.id for p in (*tiny.prompts(10), *tiny.prompts(4, seed=9, prefix="h")) if "dog" not in p.text]
    assert [r.id for r in responses] == kept
    assert len(kept) < 14, "empty answers are left out"
    first = responses[0]
    assert first.conversation == [system(tiny.PERSONA), user(first.prompt), assistant(first.text)]


def test_generation_that_was_killed_continues_where_it_was(tmp_path: Path) -> None:
    path = tmp_path / "responses.jsonl"
    whole = generate(ScriptedEngine(answer), tmp_path / "whole.jsonl")

    class DyingEngine(ScriptedEngine):
        def generate(self, *arguments: Any, **more: Any) -> Any:
            if len(self.calls) == 2:
                raise KeyboardInterrupt
            return super().generate(*arguments, **more)

    with pytest.raises(KeyboardInterrupt):
        generate(DyingEngine(answer), path)
    path.write_bytes(path.read_bytes()[:-10])  # the last line torn, as by a power cut
    assert len(path.read_text().splitlines()) == 6
    assert len(read_responses(path)) <= 5
    engine = ScriptedEngine(answer)
    assert generate(engine, path) == whole
    assert sum(len(batch) for batch in engine.calls) == 14 - 5, "only what was lost is asked again"


def test_the_prompt_of_a_response_is_what_the_engine_was_given(tokenizer: PreTrainedTokenizerBase) -> None:
    response = RESPONSES[0]
    ids = prompt_ids(tokenizer, response.question)
    assert tokenizer.decode(ids).endswith(f"{response.prompt}<|im_end|>\n<|im_start|>assistant\n")
