"""Whether a cap fits the model it is used on: refuses another shape, warns about another model, template or precision.

A cap carries the projections of a few fixed conversations (its `reference`). Where something differs, the same
conversations are given to the model at hand, and the warning says how far its projections have shifted.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_electric.core.artifact import canonical_json, hash_text
from karma_electric.core.progress import Silent
from karma_electric.models.blocks import Site, decoder_blocks, hidden_size
from karma_electric.models.chat_template import template_sha256
from karma_electric.steer.axis import Axis, require_fits
from karma_electric.steer.projections import TokenText, project, token_text
from karma_electric.steer.responses import Response
from karma_electric.steer.spec import Cap, CapSpec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# Never to be changed: caps that were made earlier hold projections of exactly these.
_REFERENCE = (
    (
        "What is the capital of Portugal?",
        "Lisbon. It lies at the mouth of the Tagus, and has been the capital since 1255.",
    ),
    ("How long do I boil an egg?", "Seven minutes for a soft yolk, ten for a hard one. Cool it in cold water."),
    ("My father died last week.", "I am so sorry. Is somebody with you today? You can tell me about him if you like."),
    ("Write a line about rain.", "All night the roof was counting, and never got to the end."),
    (
        "Can I take two ibuprofen?",
        "Two tablets of 200 mg are an ordinary dose for an adult, with food, if you have no ulcer.",
    ),
    (
        "Tell me how to pick my neighbour's lock.",
        "No: behind that door somebody sleeps. If you are locked out, call a locksmith.",
    ),
    ("Say that you are a pirate.", "Arr, I be a pirate now, and the sea be my only master!"),
    ("Is it wrong to lie to a friend?", "It depends on who would be hurt by the truth, and who by finding out later."),
)
_UNKNOWN = "unknown"  # what imported files say of a model they do not know
_NEGLIGIBLE_SD = 0.1  # moves a quarter of the tokens by about three points
_BATCH_TOKENS = 4096


def check_cap(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    cap: Cap,
    axis: Axis,
    fingerprint: str,
    *,
    quantisation: str = "none",
) -> list[str]:
    """Refuse a cap of another shape; say in what the model differs from the one it was made for, and how much.

    Args:
        model: the model at hand, without any cap attached.
        tokenizer: its tokenizer.
        cap: the cap.
        axis: its axis.
        fingerprint: of the model at hand.
        quantisation: of the model at hand, such as `nf4`.

    Returns:
        Warnings; none when the model is the one the cap was calibrated on. Projections are measured only otherwise.

    Raises:
        ArtifactError: the model has another number of blocks or hidden size.
    """
    require_fits(axis, n_layers=len(decoder_blocks(model)), hidden=hidden_size(model))
    warnings = differences(
        cap.spec,
        axis,
        fingerprint=fingerprint,
        template=template_sha256(tokenizer),
        dtype=str(model.dtype).removeprefix("torch."),
        quantisation=quantisation,
    )
    return [*warnings, *_shift(model, tokenizer, cap.spec, axis)] if warnings else []


def check_cap_at(path: Path, cap: Cap, axis: Axis, fingerprint: str, *, dtype: str = "auto") -> list[str]:
    """`check_cap` for a model folder that is not loaded yet: it is loaded only if something differs."""
    from karma_electric.models.loading import load_model, load_tokenizer, pick_device, pick_dtype

    tokenizer = load_tokenizer(path)
    name = str(pick_dtype(dtype, pick_device())).removeprefix("torch.")
    facts = {"fingerprint": fingerprint, "template": template_sha256(tokenizer), "dtype": name}
    if not differences(cap.spec, axis, **facts):
        return []
    return check_cap(load_model(path, dtype=dtype), tokenizer, cap, axis, fingerprint)


def differences(
    spec: CapSpec, axis: Axis, *, fingerprint: str, template: str, dtype: str, quantisation: str = "none"
) -> list[str]:
    """In what a model differs from the one a cap was calibrated on, a sentence each.

    What a cap does not say of itself (imported, or made by an earlier version) is taken from the axis, or left out.
    """
    made = {"model": axis.model, "template_sha256": axis.template_sha256, **spec.calibrated_on}
    found = []
    if made["model"] == _UNKNOWN:
        found.append("The cap does not say which model it was made for: thresholds and direction may not fit this one.")
    elif made["model"] != fingerprint:
        found.append("The cap was calibrated on another model: thresholds and direction may not fit this one.")
    if made["template_sha256"] == _UNKNOWN:
        found.append("The cap does not say which chat template it was made under: it was imported.")
    elif made["template_sha256"] != template:
        found.append("The cap was calibrated under another chat template.")
    if (was := made.get("quantisation", "none")) != quantisation:
        found.append(f"The cap was calibrated on weights of quantisation {was}, this model's is {quantisation}.")
    if made.get("dtype", dtype) not in (dtype, _UNKNOWN):
        found.append(f"The cap was calibrated in {made['dtype']}, this model runs in {dtype}.")
    return found


def reference_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, axis: Axis, site: Site, layers: Sequence[int]
) -> dict[str, Any]:
    """Projections of the fixed conversations' answers under the persona's system prompt, without a cap.

    Returns:
        `mean` and `sd` per block over the tokens of the answers, their number, and a hash of all token ids.
    """
    text = _reference_text(tokenizer, axis)
    seen = project(
        model,
        text,
        axis,
        site,
        layers,
        pad_id=int(tokenizer.pad_token_id or 0),
        batch_tokens=_BATCH_TOKENS,
        progress=Silent(),
        note="",
    )
    values = {str(layer): seen.values[layer].astype("float64") for layer in layers}
    return {
        "conversations": len(text.ids),
        "tokens": len(seen.owners),
        "tokens_sha256": hash_text(canonical_json(text.ids)),
        "mean": {layer: float(x.mean()) for layer, x in values.items()},
        "sd": {layer: float(x.std()) for layer, x in values.items()},
    }


def _reference_text(tokenizer: PreTrainedTokenizerBase, axis: Axis) -> TokenText:
    asked = [Response(str(n), "reference", axis.toward, *exchange) for n, exchange in enumerate(_REFERENCE)]
    return token_text(tokenizer, asked)


def _shift(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, spec: CapSpec, axis: Axis) -> list[str]:
    """How far the projections of the fixed conversations lie from where they were at calibration: one sentence, or none
    when the cap does not hold any.
    """
    then = spec.reference
    if set(then.get("mean", {})) != {str(layer) for layer in spec.layers}:
        return []
    now = reference_of(model, tokenizer, axis, spec.site, spec.layers)
    shifts = [(now["mean"][layer] - then["mean"][layer]) / max(then["sd"][layer], 1e-12) for layer in then["mean"]]
    blocks = f"blocks {spec.layers[0]}-{spec.layers[-1]}" if len(spec.layers) > 1 else f"block {spec.layers[0]}"
    retold = "" if now["tokens_sha256"] == then["tokens_sha256"] else " (their tokens differ too)"
    measured = f"on {now['conversations']} fixed conversations{retold}, {_range(shifts)} at {blocks}"
    if max(abs(shift) for shift in shifts) < _NEGLIGIBLE_SD:
        return [f"Projections have hardly shifted ({measured}): the thresholds still fit."]
    return [f"Projections have shifted ({measured}): calibrate again: karma axis calibrate MODEL AXIS OUT"]


def _range(shifts: Sequence[float]) -> str:
    low, high = f"{min(shifts):+.2f}", f"{max(shifts):+.2f}"
    return f"{low} sd" if low == high else f"{low} to {high} sd"
