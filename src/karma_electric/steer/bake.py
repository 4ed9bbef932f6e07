"""Bakes caps into a checkpoint, start to finish: fit, write, measure. `karma bake` and the pipeline both call this."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_electric.core.artifact import write_json
from karma_electric.core.errors import GateError
from karma_electric.core.messages import Conversation
from karma_electric.core.progress import Progress
from karma_electric.core.recipe import BakeSection
from karma_electric.models.loading import load_model, load_tokenizer
from karma_electric.steer.caps import at_strength
from karma_electric.steer.checkpoint import write_baked
from karma_electric.steer.fidelity import measure_fidelity, measure_greedy, measure_text
from karma_electric.steer.fit import fit_neurons, fit_removals
from karma_electric.steer.gather import gather
from karma_electric.steer.neuron import (
    FILE,
    Neurons,
    Removals,
    load_neurons,
    read_config,
    require_bakeable,
    require_plain,
    save_neurons,
)
from karma_electric.steer.spec import Cap
from karma_electric.steer.throughput import measure_throughput

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

REPORT = "fidelity.json"
_GREEDY_PROMPTS = 12
Fitted = tuple[Neurons, "Removals | None"]


def fit(
    source: Path,
    caps: Sequence[Cap],
    calibration: Sequence[Conversation],
    section: BakeSection,
    *,
    dtype: str = "auto",
    batch_tokens: int = 4096,
    progress: Progress,
) -> Fitted:
    """Neurons for the caps at the strengths they have, and what gives way to them when they replace.

    The caps act while the neurons are fitted, since a capped block changes what the blocks behind it read. Neurons
    fitted at one strength and scaled to another are two to four times less faithful (docs/cap-neuron.md).

    Args:
        source: the uncapped checkpoint.
        caps: caps at the site `mlp`.
        calibration: conversations the neurons are fitted on, each ending with an answer.
        section: placement, ridge and sharpness.
        dtype: arithmetic of the calibration passes.
        batch_tokens: padded tokens per forward pass.
        progress: told about the passes.

    Raises:
        InputError: the model cannot hold these caps. ArtifactError: a threshold that no token reaches.
    """
    require_plain(source)
    require_bakeable(read_config(source), caps)
    strengths = ", ".join(f"{alpha:g}" for alpha in dict.fromkeys(cap.spec.alpha for cap in caps))
    progress.say(f"  fitting a neuron per cap and block, while the cap acts with alpha {strengths}")
    model, tokenizer = load_model(source, dtype=dtype), load_tokenizer(source)
    replaces = section.placement == "replace"
    gathered = gather(
        model, tokenizer, caps, calibration, moments=replaces, batch_tokens=batch_tokens, progress=progress
    )
    neurons = fit_neurons(model, caps, gathered, ridge=section.ridge, sharpness=section.sharpness)
    return neurons, fit_removals(model, caps, gathered) if replaces else None


def bake(
    source: Path,
    caps: Sequence[Cap],
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
    """Write a checkpoint with caps in its weights, and `fidelity.json` beside it.

    A killed bake continues with the neurons it had fitted. Each strength is fitted for itself, on the same responses.

    Args:
        source: the uncapped checkpoint.
        caps: caps at the site `mlp`; several act like nested hooks.
        calibration: conversations the neurons are fitted on, each ending with an answer.
        heldout: conversations that calibration never saw.
        texts: user prompts that calibration never saw, for the change of perplexity.
        out: an existing folder.
        section: placement, ridge, sharpness and gate.
        alpha: strength of every cap, 0 < alpha <= 1; each cap's own when None.
        dtype: arithmetic of the calibration passes; fidelity is always measured in float32.
        batch_tokens: padded tokens per forward pass.
        progress: told about the passes.

    Returns:
        The content of fidelity.json. The gate is `require_faithful`'s.
    """
    if not (out / FILE).exists():
        neurons, removed = fit(
            source,
            at_strength(caps, alpha),
            calibration,
            section,
            dtype=dtype,
            batch_tokens=batch_tokens,
            progress=progress,
        )
        (out / FILE).parent.mkdir(exist_ok=True)
        save_neurons(neurons, removed, out / FILE)
    neurons, removed = load_neurons(out / FILE)
    acting = at_strength(caps, alpha)
    changed = write_baked(source, neurons, out, removed=removed, progress=progress)
    report = {
        **_measured(source, out, load_tokenizer(source), acting, heldout, texts, progress),
        "neurons": {str(layer): _fit_report(members) for layer, members in neurons.items()},
        "alpha": acting[0].spec.alpha,
        "caps": [{"layers": list(cap.spec.layers), "alpha": cap.spec.alpha} for cap in acting],
        **changed,
    }
    write_json(out / REPORT, report)
    return report


def _fit_report(members: Sequence[Any]) -> dict[str, Any]:
    """The first cap's neuron, and those of further caps at the same block."""
    first, *more = (neuron.fit() for neuron in members)
    return {**first, **({"further": more} if more else {})}


def _measured(
    source: Path,
    out: Path,
    tokenizer: PreTrainedTokenizerBase,
    caps: Sequence[Cap],
    heldout: Sequence[Conversation],
    texts: Sequence[str],
    progress: Progress,
) -> dict[str, Any]:
    uncapped, baked = (load_model(folder, dtype="float32") for folder in (source, out))
    compared = measure_fidelity(uncapped, baked, tokenizer, caps, heldout, progress=progress)
    progress.say("  greedy answers, perplexity of the held-out prompts, and speed")
    return {
        **compared,
        "greedy": measure_greedy(uncapped, baked, tokenizer, caps, heldout[:_GREEDY_PROMPTS]),
        "heldout_prompts": measure_text(uncapped, baked, tokenizer, caps, texts),
        "throughput": measure_throughput(uncapped, baked),
    }


def require_faithful(report: dict[str, Any], section: BakeSection) -> None:
    """The gate: raise `GateError` when KL(hooked||baked) / KL(hooked||uncapped) is above what the recipe allows.

    On prompt tokens, on response tokens and on both together: prompts have most of the KL, and would hide the rest.
    """
    kind = max(("all", "prompt", "response"), key=lambda k: float(report.get(k, report["all"])["kl_ratio"]))
    ratio = report[kind]["kl_ratio"]
    if ratio > section.max_kl_ratio:
        raise GateError(
            f"The baked cap is not faithful: KL ratio {ratio:.4f} on {kind} tokens, at most {section.max_kl_ratio} is "
            "allowed.",
            "Give more calibration prompts, lower axis.alpha, or raise bake.max_kl_ratio knowingly (--force keeps it).",
        )
