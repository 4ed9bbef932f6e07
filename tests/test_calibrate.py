"""Thresholds: set on the model's own response tokens, measured on others while the cap acts, and kept in a file."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

import tiny
from karma_electric.core.errors import ArtifactError, DataError, InputError, MissingError
from karma_electric.core.jsonl import append_jsonl
from karma_electric.core.messages import Conversation, assistant, system, user
from karma_electric.core.progress import Silent
from karma_electric.core.recipe import AxisSection, MixtureSection
from karma_electric.models.blocks import SITES, Site
from karma_electric.models.chat_template import prompt_ids, prompt_text, template_sha256
from karma_electric.models.engines.protocol import Sampling
from karma_electric.models.engines.scripted import ScriptedEngine
from karma_electric.steer.axis import save_axis
from karma_electric.steer.calibrate import Calibration, calibrate
from karma_electric.steer.contrast import KINDS, Prompt
from karma_electric.steer.responses import (
    RESPONSE_KINDS,
    Response,
    by_split,
    generate_responses,
    load_responses,
    plan_responses,
    read_responses,
)
from karma_electric.steer.spec import CapSpec, load_cap, load_spec, save_spec

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

LAYERS = [2, 4]
AXIS = tiny.random_axis()
EQUAL = {"deployment": 1.0, "generic": 1.0, "adversarial": 1.0}
SHARES = {"deployment": 0.5, "generic": 0.25, "adversarial": 0.25}  # what a recipe has when it says nothing
both_sites = pytest.mark.parametrize("site", SITES)


def some_responses(split: str, n: int, seed: int, kind: str = "deployment") -> list[Response]:
    return [
        Response(f"{split}{kind}{i}", split, tiny.PERSONA, chat[1].content, chat[2].content, kind)
        for i, chat in enumerate(tiny.chats(n, seed=seed))
    ]


RESPONSES = [
    *some_responses("calibration", 12, seed=1),
    *some_responses("calibration", 5, seed=3, kind="generic"),
    *some_responses("calibration", 3, seed=4, kind="adversarial"),
    *some_responses("heldout", 9, seed=2),
    *some_responses("heldout", 4, seed=5, kind="generic"),
    *some_responses("heldout", 3, seed=6, kind="adversarial"),
]


def run(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    responses: list[Response] | None = None,
    axis: Any = AXIS,
    layers: Sequence[int] = LAYERS,
    **section: Any,
) -> Calibration:
    responses = RESPONSES if responses is None else responses
    return calibrate(
        model, tokenizer, axis, responses, AxisSection(**section), layers, fingerprint="tiny", progress=Silent()
    )


def by_hand(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    site: Site,
    layer: int,
    split: str,
    *,
    cap: CapSpec | None = None,
    kinds: Sequence[str] = RESPONSE_KINDS,
) -> tuple[np.ndarray, np.ndarray]:
    """Projections and norms at the tokens of the answers, one response at a time, without a batch or padding.

    With `cap`, while hooks of this file's own correct the earlier capped blocks.
    """
    v = AXIS.directions[site][layer].double()
    projections, norms = [], []
    for response in (r for r in RESPONSES if r.split == split and r.kind in kinds):
        before = prompt_text(tokenizer, response.question)
        prompt = tokenizer(before, add_special_tokens=False)["input_ids"]
        whole = tokenizer(before + response.text, add_special_tokens=False)["input_ids"]
        assert whole[: len(prompt)] == prompt
        handles = [] if cap is None else [h for at in cap.layers if at < layer for h in own_hooks(model, cap, at)]
        h = tiny.residuals(model, torch.tensor([whole]), site)[layer][0, len(prompt) :].double()
        for handle in handles:
            handle.remove()
        assert len(h) == len(whole) - len(prompt) > 0
        projections.append(h @ v)
        norms.append(h.norm(dim=-1))
    return torch.cat(projections).numpy(), torch.cat(norms).numpy()


def own_hooks(model: PreTrainedModel, cap: CapSpec, layer: int) -> list[Any]:
    """h - alpha max(0, <h, v> - t) v at one block, written independently of the package's hooks."""
    v, t = AXIS.directions[cap.site][layer], cap.thresholds[layer]

    def push(h: torch.Tensor) -> torch.Tensor:
        return -cap.alpha * torch.relu(torch.einsum("bsh,h->bs", h, v) - t)[..., None] * v

    block = model.model.layers[layer]
    if cap.site == "block":
        return [block.register_forward_hook(lambda _, __, out: out + push(out))]
    read: list[torch.Tensor] = []
    return [
        block.post_attention_layernorm.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0])),
        block.mlp.register_forward_hook(lambda _, __, out: out + push(read.pop())),
    ]


# Thresholds


@both_sites
@pytest.mark.parametrize("quantile", [0.25, 0.75])
def test_runtime_q_is_a_quantile_of_the_calibration_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, site: Site, quantile: float
) -> None:
    spec = run(
        model, tokenizer, site=site, quantile=quantile, mixture={"deployment": 1, "generic": 0, "adversarial": 0}
    ).spec
    for layer in LAYERS:
        projections, _ = by_hand(model, tokenizer, site, layer, "calibration", kinds=["deployment"])
        assert spec.thresholds[layer] == pytest.approx(np.quantile(projections, quantile), abs=1e-3)
    assert spec.method == {"name": "runtime-q", "quantile": quantile}


@both_sites
def test_each_kind_counts_with_its_weight_whatever_its_number_of_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, site: Site
) -> None:
    made = run(model, tokenizer, site=site, quantile=0.6)
    for layer in LAYERS:
        above = largest = 0.0
        for kind, share in SHARES.items():
            projections, _ = by_hand(model, tokenizer, site, layer, "calibration", kinds=[kind])
            above += share * (projections > made.spec.thresholds[layer]).mean()
            largest = max(largest, share / len(projections))
        assert above == pytest.approx(0.4, abs=2 * largest)
    assert made.spec.calibrated_on["mixture"] == SHARES


def test_equal_weights_and_only_the_weights_ratios_matter(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    once = run(model, tokenizer, mixture=EQUAL).spec
    twice = run(model, tokenizer, mixture=dict.fromkeys(EQUAL, 7.0)).spec
    tilted = run(model, tokenizer, mixture=EQUAL | {"generic": 9.0}).spec
    assert once.thresholds == pytest.approx(twice.thresholds, rel=1e-9)
    assert once.thresholds != pytest.approx(tilted.thresholds, rel=1e-3)


def test_only_the_words_of_the_answers_are_counted(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Not the prompt and its first position, not the padding, not the end of the turn, which is not fed back."""
    made = run(model, tokenizer, site="block")
    for split in ("calibration", "heldout"):
        words = sum(len(tokenizer(r.text)["input_ids"]) for r in RESPONSES if r.split == split)
        assert made.spec.calibrated_on[f"{split}_tokens"] == words
        projections, _ = by_hand(model, tokenizer, "block", 2, split)
        np.testing.assert_allclose(np.sort(made.uncapped[split].values[2]), np.sort(projections), rtol=1e-3, atol=1e-3)


@both_sites
def test_batching_and_padding_change_nothing(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, site: Site
) -> None:
    alone = run(model, tokenizer, site=site, batch_tokens=1).spec
    padded = run(model, tokenizer, site=site, batch_tokens=100_000).spec
    assert alone.thresholds == pytest.approx(padded.thresholds, abs=1e-3)
    assert alone.dose == pytest.approx(padded.dose, abs=1e-5)
    assert alone.measured["heldout"]["cap_rate"] == pytest.approx(padded.measured["heldout"]["cap_rate"], abs=0.01)


def with_projections(seed: int = 3) -> Any:
    """An axis as extraction leaves it: persona-prompted, then mean away projections of 40 prompts."""
    generator = torch.Generator().manual_seed(seed)
    return replace(AXIS, projections={site: torch.randn(2, 40, tiny.LAYERS, generator=generator) for site in SITES})


@both_sites
def test_persona_p25_is_the_25th_percentile_of_the_personas_own_projections(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, site: Site
) -> None:
    axis = with_projections()
    spec = run(model, tokenizer, axis=axis, site=site, threshold="persona-p25").spec
    for layer in LAYERS:
        persona = axis.projections[site][0, :, layer].double().numpy()
        assert spec.thresholds[layer] == pytest.approx(np.percentile(persona, 25), abs=1e-6)
    assert spec.method["name"] == "persona-p25"


def test_persona_p25_on_an_axis_without_contrast_projections_says_what_to_do(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    with pytest.raises(ArtifactError, match=r"no contrast projections.*karma axis extract.*runtime-q"):
        run(model, tokenizer, threshold="persona-p25")


def test_how_far_a_threshold_lies_from_the_runtime_mean_is_recorded_in_standard_deviations(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    spec = run(
        model, tokenizer, quantile=0.9, mixture={"deployment": 1, "generic": 0, "adversarial": 0}, site="mlp"
    ).spec
    for layer in LAYERS:
        projections, _ = by_hand(model, tokenizer, "mlp", layer, "calibration", kinds=["deployment"])
        expected = (spec.thresholds[layer] - projections.mean()) / projections.std()
        assert spec.measured["threshold_sd"][str(layer)] == pytest.approx(expected, abs=1e-3)
        assert expected > 0.5


# What the cap does, while it does it


@both_sites
@pytest.mark.parametrize("alpha", [0.4, 1.0])
def test_rate_and_dose_are_those_of_a_model_whose_earlier_blocks_are_capped(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, site: Site, alpha: float
) -> None:
    spec = run(model, tokenizer, site=site, alpha=alpha, quantile=0.3).spec
    for split in ("calibration", "heldout"):
        measured = spec.measured[split]
        for layer in LAYERS:
            rate = dose = 0.0
            for kind, share in SHARES.items():
                seen, norms = by_hand(model, tokenizer, site, layer, split, cap=spec, kinds=[kind])
                over = np.maximum(0, seen - spec.thresholds[layer])
                of_kind = measured["kinds"][kind]
                assert of_kind["cap_rate"][str(layer)] == pytest.approx((over > 0).mean(), abs=1 / len(over))
                assert of_kind["dose"][str(layer)] == pytest.approx((alpha * over / norms).mean(), rel=1e-3)
                assert of_kind["tokens"] == len(over)
                assert of_kind["weight"] == share
                rate += share * (over > 0).mean()
                dose += share * (alpha * over / norms).mean()
            assert measured["cap_rate"][str(layer)] == pytest.approx(rate, abs=0.01)
            assert measured["dose"][str(layer)] == pytest.approx(dose, rel=1e-3)
        for what in ("cap_rate", "dose"):
            assert measured[what]["mean"] == pytest.approx(np.mean([measured[what][str(at)] for at in LAYERS]))
    assert spec.cap_rate == spec.measured["heldout"]["cap_rate"]
    assert spec.dose == spec.measured["heldout"]["dose"]


@both_sites
def test_what_earlier_blocks_cap_is_seen_by_later_ones(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, site: Site
) -> None:
    """The reference above would not notice hooks that do nothing if they made no difference."""
    spec = run(model, tokenizer, site=site, alpha=1.0, quantile=0.3).spec
    capped, _ = by_hand(model, tokenizer, site, 4, "heldout", cap=spec)
    plain, _ = by_hand(model, tokenizer, site, 4, "heldout")
    assert np.abs(capped - plain).max() > 0.1


def test_thresholds_do_not_look_at_the_heldout_responses(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    calibration = [r for r in RESPONSES if r.split == "calibration"]
    other = [r for kind in EQUAL for r in some_responses("heldout", 5, seed=77 + len(kind), kind=kind)]
    first, second = run(model, tokenizer).spec, run(model, tokenizer, responses=calibration + other).spec
    assert first.thresholds == second.thresholds
    assert first.cap_rate != second.cap_rate


def test_the_interval_of_the_cap_rate_holds_it_and_says_how_it_was_made(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    spec = run(model, tokenizer, quantile=0.5).spec
    for measured in (spec.measured["heldout"], *spec.measured["heldout"]["kinds"].values()):
        interval = measured["cap_rate_interval"]
        assert interval["low"] < measured["cap_rate"]["mean"] < interval["high"]
        assert interval["over"] == "conversations"


@pytest.mark.parametrize("split", ["calibration", "heldout"])
@pytest.mark.parametrize("kind", RESPONSE_KINDS)
def test_a_kind_with_a_weight_needs_responses_in_both_splits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, split: str, kind: str
) -> None:
    fewer = [r if (r.split, r.kind) != (split, kind) else replace(r, text=" ") for r in RESPONSES]
    with pytest.raises(DataError, match=f"no {kind} responses in the split {split}.*{kind}=0"):
        run(model, tokenizer, responses=fewer)
    run(model, tokenizer, responses=fewer, mixture=EQUAL | {kind: 0.0})


@pytest.mark.parametrize("missing", ["calibration", "heldout"])
def test_a_split_without_responses_is_an_error(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, missing: str
) -> None:
    with pytest.raises(DataError, match=f"There are no {missing} responses"):
        run(model, tokenizer, responses=[r for r in RESPONSES if r.split != missing])


# A cap rate that is asked for


@both_sites
def test_a_target_cap_rate_is_reached_while_the_cap_acts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, site: Site
) -> None:
    layers = [1, 2, 3, 4]
    spec = run(model, tokenizer, site=site, layers=layers, alpha=1.0, target_cap_rate=0.4).spec
    assert spec.measured["calibration"]["cap_rate"]["mean"] == pytest.approx(0.4, abs=0.02)
    assert spec.method["target_cap_rate"] == 0.4
    assert spec.method["reached_on_calibration"] == spec.measured["calibration"]["cap_rate"]["mean"]
    assert spec.method["reached_on_heldout"] == spec.cap_rate["mean"]
    assert spec.method["passes"] <= 9
    plain = run(model, tokenizer, site=site, layers=layers, alpha=1.0, quantile=spec.method["quantile"]).spec
    assert plain.thresholds == spec.thresholds
    assert plain.cap_rate == spec.cap_rate


def test_a_target_that_caps_cannot_reach_is_refused(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """The same direction in every block: once it is cut off at its lowest, later blocks find nothing above."""
    one = {site: v[:1].expand(tiny.LAYERS, -1).contiguous() for site, v in AXIS.directions.items()}
    with pytest.raises(InputError, match=r"A cap rate of 0\.98 is not reached.*nearest is 0\.\d+.*lower alpha"):
        run(
            model,
            tokenizer,
            axis=replace(AXIS, directions=one),
            site="block",
            layers=[1, 2, 3, 4, 5],
            alpha=1.0,
            target_cap_rate=0.98,
        )


@pytest.mark.parametrize(
    ("section", "named"),
    [
        ({"target_cap_rate": 0.0}, "greater than 0"),
        ({"target_cap_rate": 1.0}, "less than 1"),
        ({"target_cap_rate": 0.2, "quantile": 0.8}, "both given: keep one"),
        ({"target_cap_rate": 0.2, "threshold": "persona-p25"}, 'needs threshold = "runtime-q"'),
        ({"mixture": {"deployment": 0, "generic": 0, "adversarial": 0}}, "all weights are 0"),
        ({"mixture": {"generic": -0.5}}, "greater than or equal to 0"),
        ({"mixture": {"generic": float("inf")}}, "finite"),
    ],
)
def test_settings_that_cannot_be_are_refused(section: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=named):
        AxisSection(**section)


def test_a_recipe_that_was_written_out_is_read_again() -> None:
    for section in (AxisSection(), AxisSection(target_cap_rate=0.2), AxisSection(threshold="persona-p25")):
        assert AxisSection.model_validate(section.model_dump(exclude_none=True)) == section


def test_weights_sum_to_one() -> None:
    assert MixtureSection(deployment=3, generic=1, adversarial=0).shares == {
        "deployment": 0.75,
        "generic": 0.25,
        "adversarial": 0.0,
    }
    assert sum(MixtureSection(deployment=1e308, generic=1e308, adversarial=1e308).shares.values()) == pytest.approx(1)


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
    spec = run(model, tokenizer).spec
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


def mixed_prompts(n: int, seed: int = 0, *, prefix: str = "p") -> list[Prompt]:
    """Prompts of the three kinds, in turn."""
    return [replace(p, kind=KINDS[i % 3]) for i, p in enumerate(tiny.prompts(n, seed, prefix=prefix))]


PROMPTS = {"calibration": mixed_prompts(18), "heldout": mixed_prompts(6, seed=9, prefix="h")}


def planned(shares: dict[str, float] = SHARES, **splits: list[Prompt]) -> list[Response]:
    return plan_responses(PROMPTS | splits, toward=tiny.PERSONA, away=tiny.AWAY, shares=shares)


def test_every_prompt_is_asked_under_the_persona_and_half_of_the_ordinary_ones_under_generic_prompts() -> None:
    asked = [r for r in planned() if r.split == "calibration"]
    by_kind = {kind: [r for r in asked if r.kind == kind] for kind in RESPONSE_KINDS}
    texts = {
        kind: [p.text for p in PROMPTS["calibration"] if (p.kind == "adversarial") == (kind == "adversarial")]
        for kind in RESPONSE_KINDS
    }
    assert [r.prompt for r in by_kind["deployment"]] == texts["deployment"]
    assert [r.prompt for r in by_kind["adversarial"]] == texts["adversarial"]
    assert {r.system for r in by_kind["deployment"] + by_kind["adversarial"]} == {tiny.PERSONA}
    assert [r.system for r in by_kind["generic"]] == [*tiny.AWAY, *tiny.AWAY]
    assert len(by_kind["generic"]) == len(texts["generic"]) / 2
    kinds = {p.text: p.kind for p in PROMPTS["calibration"]}
    assert {kinds[r.prompt] for r in by_kind["generic"]} == {"everyday", "weighty"}
    assert len({r.id for r in planned()}) == len(planned())


def test_the_first_few_responses_have_every_kind() -> None:
    """Bake compares on the first held-out conversations only."""
    assert {r.kind for r in planned()[:6]} == set(RESPONSE_KINDS)


def test_a_kind_of_weight_0_is_not_asked_for() -> None:
    assert {r.kind for r in planned(SHARES | {"generic": 0.0})} == {"deployment", "adversarial"}


def test_prompts_that_lack_a_kind_with_a_weight_are_an_error_before_anything_runs() -> None:
    calm = [p for p in PROMPTS["heldout"] if p.kind != "adversarial"]
    with pytest.raises(DataError, match=r"no adversarial prompts in the split heldout.*axis\.mixture\.adversarial = 0"):
        planned(heldout=calm)


def answer(conversation: Conversation) -> str:
    return "" if "dog" in conversation[1].content else f"On {conversation[1].content}"


def generate(engine: ScriptedEngine, path: Path) -> list[Response]:
    return generate_responses(engine, planned(), path, sampling=Sampling(), batch_size=3, progress=Silent())


def test_responses_are_generated_as_planned_and_kept_in_order_with_their_kind(tmp_path: Path) -> None:
    engine = ScriptedEngine(answer)
    responses = generate(engine, tmp_path / "responses.jsonl")
    asked = [conversation for batch in engine.calls for conversation in batch]
    assert asked == [[system(r.system), user(r.prompt)] for r in planned()]
    kept = [r for r in planned() if "dog" not in r.prompt]
    assert responses == [replace(r, text=f"On {r.prompt}") for r in kept]
    assert 0 < len(kept) < len(planned()), "empty answers are left out"
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
    assert len(read_responses(path)) == 5
    engine = ScriptedEngine(answer)
    assert generate(engine, path) == whole
    assert sum(len(batch) for batch in engine.calls) == len(planned()) - 5, "only what was lost is asked again"


def test_a_file_of_an_earlier_version_is_read_as_responses_of_the_deployment(tmp_path: Path) -> None:
    row = {"id": "c1", "split": "calibration", "system": "S", "prompt": "P", "text": "T"}
    append_jsonl(tmp_path / "r.jsonl", [row, {**row, "id": "h1", "split": "heldout", "text": " "}])
    assert load_responses(tmp_path / "r.jsonl")[0] == Response("c1", "calibration", "S", "P", "T", "deployment")
    assert by_split(tmp_path / "r.jsonl") == {
        "calibration": [[system("S"), user("P"), assistant("T")]],
        "heldout": [],
    }


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"split": "test"}, "line 2: split 'test' is unknown, expected calibration or heldout"),
        ({"kind": "calm"}, "line 2: kind 'calm' is unknown"),
        ({"text": None}, "line 2: text is None"),
        ({"colour": "red"}, "line 2: expected an object with the keys"),
    ],
)
def test_a_line_that_is_no_response_is_named(tmp_path: Path, change: dict[str, Any], named: str) -> None:
    append_jsonl(tmp_path / "r.jsonl", [vars(RESPONSES[0]), {**vars(RESPONSES[1]), **change}])
    with pytest.raises(DataError, match=named):
        load_responses(tmp_path / "r.jsonl")


def test_the_prompt_of_a_response_is_what_the_engine_was_given(tokenizer: PreTrainedTokenizerBase) -> None:
    response = RESPONSES[0]
    ids = prompt_ids(tokenizer, response.question)
    assert tokenizer.decode(ids).endswith(f"{response.prompt}<|im_end|>\n<|im_start|>assistant\n")


def test_what_a_cap_was_calibrated_on_is_recorded(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    on = run(model, tokenizer).spec.calibrated_on
    assert (on["model"], on["axis_model"], on["dtype"], on["quantisation"]) == ("tiny", AXIS.model, "float32", "none")
    assert on["template_sha256"] == template_sha256(tokenizer)
    assert (on["calibration_responses"], on["heldout_responses"]) == (20, 16)
