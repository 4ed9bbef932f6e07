"""Bakes a cap into a checkpoint, start to finish: fit, write, measure. `karma bake` and the pipeline both call this."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_electric.core.artifact import write_json
from karma_electric.core.errors import GateError
from karma_electric.core.messages import Conversation
from karma_electric.core.progress import Progress
from karma_electric.core.recipe import BakeSection
from karma_electric.models.loading import load_model, load_tokenizer
from karma_electric.steer.checkpoint import write_baked
from karma_electric.steer.fidelity import measure_fidelity, measure_text, measure_throughput
from karma_electric.steer.neuron import FILE, fit_neurons, fit_removals, load_neurons, save_neurons
from karma_electric.steer.spec import Cap

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPORT = "fidelity.json"


def bake(
    source: Path,
    cap: Cap,
    *,
    calibration: Sequence[Conversation],
    heldout: Sequence[Conversation],
    texts: Sequence[str],
    out: Path,
    section: BakeSection,
    alpha: float | None = None,
    dtype: str = "auto",
    batch_tokens: int = 4096,
    progress: Progress,
) -> dict[str, Any]:
    """Write a checkpoint with the cap in its weights, and `fidelity.json` beside it.

    A killed bake continues with the neurons it had fitted.

    Args:
        source: the uncapped checkpoint.
        cap: a cap at the site `mlp`.
        calibration: conversations the neurons are fitted on, each ending with an answer.
        heldout: conversations that calibration never saw.
        texts: ordinary text, for the change of perplexity.
        out: an existing folder.
        section: placement, ridge, sharpness and gate.
        alpha: strength, 0 < alpha <= 1; the cap's own when None.
        dtype: arithmetic of the calibration passes; fidelity is always measured in float32.
        batch_tokens: padded tokens per forward pass.
        progress: told about the passes.

    Returns:
        The content of fidelity.json. The gate is `require_faithful`'s.
    """
    if alpha is not None:
        cap = replace(cap, spec=replace(cap.spec, alpha=alpha))
    tokenizer = load_tokenizer(source)
    if not (out / FILE).exists():
        progress.say(f"  fitting a neuron per capped block, alpha {cap.spec.alpha:g}")
        model = load_model(source, dtype=dtype)
        neurons = fit_neurons(
            model,
            tokenizer,
            cap,
            calibration,
            ridge=section.ridge,
            sharpness=section.sharpness,
            batch_tokens=batch_tokens,
        )
        (out / FILE).parent.mkdir(exist_ok=True)
        save_neurons(neurons, out / FILE)
        del model
    neurons = load_neurons(out / FILE)
    removed = None
    if section.placement == "replace":
        progress.say("  looking for the neurons that can best be spared")
        removed = fit_removals(load_model(source, dtype=dtype), tokenizer, cap, calibration, batch_tokens=batch_tokens)
    changed = write_baked(source, neurons, out, removed=removed)
    fit = {str(layer): {"r2_excess": n.r2_excess, "r2_rho": n.r2_rho, "ridge": n.ridge} for layer, n in neurons.items()}
    report = {
        **_measured(source, out, tokenizer, cap, heldout, texts, progress),
        "neurons": fit,
        "alpha": cap.spec.alpha,
        **changed,
    }
    write_json(out / REPORT, report)
    return report


def _measured(
    source: Path,
    out: Path,
    tokenizer: PreTrainedTokenizerBase,
    cap: Cap,
    heldout: Sequence[Conversation],
    texts: Sequence[str],
    progress: Progress,
) -> dict[str, Any]:
    uncapped, baked = (load_model(folder, dtype="float32") for folder in (source, out))
    return {
        **measure_fidelity(uncapped, baked, tokenizer, cap, heldout, progress=progress),
        "ordinary_text": measure_text(uncapped, baked, tokenizer, cap, texts),
        "throughput": measure_throughput(uncapped, baked),
    }


def require_faithful(report: dict[str, Any], section: BakeSection) -> None:
    """The gate: raise `GateError` when KL(hooked||baked) / KL(hooked||uncapped) is above what the recipe allows."""
    ratio = report["all"]["kl_ratio"]
    if ratio > section.max_kl_ratio:
        raise GateError(
            f"The baked cap is not faithful: KL ratio {ratio:.4f}, at most {section.max_kl_ratio} is allowed.",
            "Give more calibration prompts, lower axis.alpha, or raise bake.max_kl_ratio knowingly.",
        )
