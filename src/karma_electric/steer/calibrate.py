"""Sets the thresholds of a cap, and measures on held-out responses how often and how hard it acts while it acts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_electric.core.errors import ArtifactError
from karma_electric.core.progress import Progress
from karma_electric.core.recipe import AxisSection
from karma_electric.models.chat_template import template_sha256
from karma_electric.steer.axis import Axis
from karma_electric.steer.compat import reference_of
from karma_electric.steer.mixture import weighted_moments, weighted_quantile
from karma_electric.steer.projections import Action, Projections, TokenText, action, project, token_text
from karma_electric.steer.responses import (
    FILE,
    SPLITS,
    Response,
    generate_responses,
    read_responses,
    require_kinds,
)
from karma_electric.steer.solve import solve_quantile
from karma_electric.steer.spec import AXIS_FILE, CAP_FILE, Cap, CapSpec, save_spec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_PERSONA_QUANTILE = 0.25
_TEMPERATURE = 0.7  # of the responses, as the Modelfile deploys the model
_BATCH = 48  # responses generated together


@dataclass(frozen=True)
class Calibration:
    """A cap, and what plots are made of.

    Attributes:
        spec: the cap.
        uncapped: split -> projections without the cap.
        acting: split -> what the cap did while it acted.
    """

    spec: CapSpec
    uncapped: dict[str, Projections]
    acting: dict[str, Action]

    def write(self, out: Path) -> None:
        """Write cap.json, projections.png and cap_rates.png."""
        from karma_electric.steer.cap_figures import plot_cap_rates, plot_projections

        save_spec(self.spec, out / CAP_FILE)
        plot_projections(self.uncapped, self.spec, out / "projections.png")
        plot_cap_rates(self.acting["heldout"], self.spec, out / "cap_rates.png")


def calibrate_into(
    out: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    axis: Axis,
    planned: Sequence[Response] | None,
    section: AxisSection,
    layers: Sequence[int],
    *,
    fingerprint: str,
    quantisation: str = "none",
    progress: Progress,
) -> CapSpec:
    """Generate the responses that `out` lacks, calibrate on them, and write cap.json and plots beside them.

    Args:
        out: folder; its responses.jsonl is continued.
        planned: what to ask (`plan_responses`); None takes the responses that are there.

    The other arguments, and errors, are those of `calibrate`.
    """
    from karma_electric.models.engines.hf import HfEngine
    from karma_electric.models.engines.protocol import Sampling

    if planned is None:
        responses = read_responses(out / FILE)
    else:
        responses = generate_responses(
            HfEngine(model, tokenizer),
            planned,
            out / FILE,
            sampling=Sampling(temperature=_TEMPERATURE, max_new_tokens=section.response_tokens, seed=section.seed),
            batch_size=_BATCH,
            progress=progress,
        )
    made = calibrate(
        model,
        tokenizer,
        axis,
        responses,
        section,
        layers,
        fingerprint=fingerprint,
        quantisation=quantisation,
        progress=progress,
    )
    made.write(out)
    return made.spec


def calibrate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    axis: Axis,
    responses: Sequence[Response],
    section: AxisSection,
    layers: Sequence[int],
    *,
    fingerprint: str,
    quantisation: str = "none",
    progress: Progress,
) -> Calibration:
    """Make a cap.

    Thresholds: `persona-p25` takes the 25th percentile of the persona-prompted contrast projections that the axis
    holds; `runtime-q` a quantile, weighted by kind, of the projections of calibration responses without a cap; with
    a target cap rate that quantile is solved for. Rate and dose are measured on both splits while the cap acts.

    Args:
        model: the model that will be capped, uncapped.
        tokenizer: its tokenizer.
        axis: directions.
        responses: calibration and held-out answers, best this model's own.
        section: method, weights of the kinds, site and strength.
        layers: blocks to cap.
        fingerprint: of the model.
        quantisation: of the model, such as `nf4`.
        progress: told about the passes.

    Raises:
        DataError: a split has no responses, or none of a kind that has a weight.
        ArtifactError: persona-p25 on an axis without contrast projections.
        InputError: the target cap rate cannot be reached.
    """
    shares = section.mixture.shares
    answered = [response for response in responses if response.text.strip()]
    require_kinds(answered, shares)
    if section.threshold == "persona-p25":
        persona_thresholds(axis, section, layers)  # refused before the model is run
    bench = _Bench(
        model,
        axis,
        section,
        tuple(layers),
        {split: token_text(tokenizer, [r for r in answered if r.split == split]) for split in SPLITS},
        int(tokenizer.pad_token_id or 0),
        progress,
    )
    uncapped = {split: bench.projections(split, None, f"{split} responses, uncapped") for split in SPLITS}
    thresholds, method = _set_thresholds(bench, uncapped["calibration"])
    acting = {split: bench.acting(thresholds, split, f"{split} responses, while the cap acts") for split in SPLITS}
    if "target_cap_rate" in method:
        method["reached_on_heldout"] = acting["heldout"].cap_rate["mean"]
    spec = CapSpec(
        axis=AXIS_FILE,
        site=section.site,
        layers=tuple(layers),
        thresholds=thresholds,
        alpha=section.alpha,
        calibrated_on={
            "model": fingerprint,
            "axis_model": axis.model,
            "template_sha256": template_sha256(tokenizer),
            "dtype": str(model.dtype).removeprefix("torch."),
            "quantisation": quantisation,
            **{f"{split}_responses": acting[split].responses for split in SPLITS},
            **{f"{split}_tokens": acting[split].tokens for split in SPLITS},
            "mixture": shares,
        },
        method=method,
        cap_rate=acting["heldout"].cap_rate,
        dose=acting["heldout"].dose,
        measured={
            **{split: acting[split].as_dict(shares) for split in SPLITS},
            "threshold_sd": threshold_distances(uncapped["calibration"], thresholds, shares),
        },
        reference=reference_of(model, tokenizer, axis, section.site, layers),
    )
    return Calibration(spec, uncapped, acting)


@dataclass(frozen=True)
class _Bench:
    """A model with its responses: what thresholds are tried on. Each try is kept, since it costs a pass."""

    model: PreTrainedModel
    axis: Axis
    section: AxisSection
    layers: tuple[int, ...]
    texts: Mapping[str, TokenText]
    pad_id: int
    progress: Progress
    tried: dict[tuple[str, tuple[float, ...]], Action] = field(default_factory=dict)

    def projections(self, split: str, cap: Cap | None, note: str) -> Projections:
        """What the responses of a split show, with or without a cap."""
        return project(
            self.model,
            self.texts[split],
            self.axis,
            self.section.site,
            self.layers,
            cap=cap,
            pad_id=self.pad_id,
            batch_tokens=self.section.batch_tokens,
            progress=self.progress,
            note=note,
        )

    def acting(self, thresholds: dict[int, float], split: str, note: str) -> Action:
        """What a cap with these thresholds does to the responses of a split."""
        key = (split, tuple(thresholds.values()))
        if key not in self.tried:
            spec = CapSpec(AXIS_FILE, self.section.site, self.layers, thresholds, self.section.alpha)
            seen = self.projections(split, Cap.of(spec, self.axis), note)
            self.tried[key] = action(seen, thresholds, self.section.alpha, self.section.mixture.shares)
        return self.tried[key]


def _set_thresholds(bench: _Bench, uncapped: Projections) -> tuple[dict[int, float], dict[str, Any]]:
    """Thresholds by the method of the section, and the method as cap.json records it."""
    section = bench.section
    if section.threshold == "persona-p25":
        method = {"name": "persona-p25", "quantile": _PERSONA_QUANTILE}
        return persona_thresholds(bench.axis, section, bench.layers), method
    weights = uncapped.weights(section.mixture.shares)

    def at(q: float) -> dict[int, float]:
        return {layer: weighted_quantile(uncapped.values[layer], weights, q) for layer in bench.layers}

    if section.target_cap_rate is None:
        assert section.quantile is not None  # a section has one or the other
        return at(section.quantile), {"name": "runtime-q", "quantile": section.quantile}
    solved = solve_quantile(
        lambda q: bench.acting(at(q), "calibration", f"cap rate at q = {q:.4f}").cap_rate["mean"],
        section.target_cap_rate,
    )
    return at(solved.quantile), {
        "name": "runtime-q",
        "quantile": solved.quantile,
        "target_cap_rate": section.target_cap_rate,
        "reached_on_calibration": solved.reached,
        "passes": solved.passes,
    }


def persona_thresholds(axis: Axis, section: AxisSection, layers: Sequence[int]) -> dict[int, float]:
    """25th percentile of the persona-prompted projections of the contrast prompts, per block (the original's).

    Raises:
        ArtifactError: the axis holds no contrast projections.
    """
    projections = axis.projections.get(section.site)
    if projections is None:
        raise ArtifactError(
            f"The axis holds no contrast projections for the site {section.site!r} (it was imported, or made by an "
            "earlier version), and persona-p25 is taken from them.",
            "Extract the axis again (karma axis extract), or take another method: runtime-q.",
        )
    return {layer: float(projections[0, :, layer].double().quantile(_PERSONA_QUANTILE)) for layer in layers}


def threshold_distances(
    seen: Projections, thresholds: Mapping[int, float], shares: Mapping[str, float]
) -> dict[str, float]:
    """(t - mean) / standard deviation of the projections of the uncapped model at runtime, per block."""
    distances = {}
    for layer, threshold in thresholds.items():
        mean, deviation = weighted_moments(seen.values[layer], seen.weights(shares))
        distances[str(layer)] = (threshold - mean) / max(deviation, 1e-12)
    return distances
