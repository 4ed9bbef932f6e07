"""Sets the thresholds of a cap, and measures on held-out responses how often and how hard it acts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from karma_electric.core.errors import DataError
from karma_electric.core.messages import Conversation
from karma_electric.core.progress import Progress
from karma_electric.core.recipe import AxisSection
from karma_electric.models.blocks import Site
from karma_electric.models.chat_template import prompt_ids
from karma_electric.steer.activations import batches_by_length, picked, recording, right_padded, run_decoder
from karma_electric.steer.axis import Axis
from karma_electric.steer.responses import Response
from karma_electric.steer.spec import AXIS_FILE, CapSpec

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def calibrate(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    axis: Axis,
    toward: torch.Tensor,
    responses: Sequence[Response],
    section: AxisSection,
    layers: Sequence[int],
    *,
    progress: Progress,
) -> tuple[CapSpec, dict[str, Any]]:
    """Make a CapSpec.

    Args:
        model: the uncapped model the responses come from.
        tokenizer: its tokenizer.
        axis: directions.
        toward: persona-prompted activations at the extraction position and the cap's site,
            [n_prompts, n_layers, hidden].
        responses: calibration and held-out answers of this model.
        section: method and strength.
        layers: blocks to cap.
        progress: told about the passes.

    Returns:
        The spec, and projections of calibration and held-out tokens for plots: {split: {block: list}}.

    Raises:
        DataError: a split has no responses.
    """
    import torch

    site = section.site
    splits = {name: [r for r in responses if r.split == name] for name in ("calibration", "heldout")}
    for name, members in splits.items():
        if not members:
            raise DataError(
                f"There are no {name} responses: the model answered nothing.",
                "Check the model with karma chat.",
            )
    measured = {}
    for number, (name, members) in enumerate(splits.items()):
        progress.update(number, 2, "projections of responses")
        measured[name] = response_projections(
            model, tokenizer, axis, site, layers, [r.conversation for r in members], section.batch_tokens
        )
    progress.update(2, 2, "projections of responses")
    if section.threshold == "runtime-q":
        method: dict[str, Any] = {"name": "runtime-q", "quantile": section.quantile}
        thresholds = {layer: float(p[0].quantile(section.quantile)) for layer, p in measured["calibration"].items()}
    else:
        method = {"name": "persona-p25", "quantile": 0.25}
        projected = (toward[:, list(layers)] * axis.directions[site][list(layers)]).sum(-1)  # [n_prompts, layers]
        thresholds = {layer: float(projected[:, i].quantile(0.25)) for i, layer in enumerate(layers)}
    rates, doses = {}, {}
    for layer, (projections, norms) in measured["heldout"].items():
        over = (projections - thresholds[layer]).clamp_min(0.0)
        rates[str(layer)] = float((over > 0).float().mean())
        doses[str(layer)] = float((section.alpha * over / norms).mean())
    spec = CapSpec(
        axis=AXIS_FILE,
        site=site,
        layers=tuple(layers),
        thresholds=thresholds,
        alpha=section.alpha,
        calibrated_on={
            "model": axis.model,
            "template_sha256": axis.template_sha256,
            "dtype": str(model.dtype).removeprefix("torch."),
            "calibration_responses": len(splits["calibration"]),
            "heldout_responses": len(splits["heldout"]),
            "calibration_tokens": int(next(iter(measured["calibration"].values()))[0].numel()),
            "heldout_tokens": int(next(iter(measured["heldout"].values()))[0].numel()),
        },
        method=method,
        cap_rate={**rates, "mean": sum(rates.values()) / len(rates)},
        dose={**doses, "mean": sum(doses.values()) / len(doses)},
    )
    plots = {
        name: {layer: torch.sort(values[0]).values.tolist() for layer, values in by_layer.items()}
        for name, by_layer in measured.items()
    }
    return spec, plots


def response_projections(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    axis: Axis,
    site: Site,
    layers: Sequence[int],
    conversations: Sequence[Conversation],
    batch_tokens: int,
) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Projection on the axis and norm of the residual stream at every response token.

    Prompt tokens (the first position, an attention sink, among them) and padding are left out; so are the end of
    the turn and what the template writes after it, which a cap never acts on: they are not fed back.

    Returns:
        block -> (projections, norms), float32 [response tokens].
    """
    import torch

    prompts = [prompt_ids(tokenizer, c[:-1]) for c in conversations]
    starts = [len(prompt) for prompt in prompts]
    answers = [tokenizer(c[-1].content, add_special_tokens=False)["input_ids"] for c in conversations]
    whole = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
    found: dict[int, list[torch.Tensor]] = {layer: [] for layer in layers}
    for batch in batches_by_length([len(ids) for ids in whole], batch_tokens):
        ids, mask = right_padded([whole[i] for i in batch], int(tokenizer.pad_token_id or 0), model.device)
        positions = torch.arange(ids.shape[1], device=model.device)
        response = mask.bool() & (
            positions >= torch.tensor([starts[i] for i in batch], device=model.device).unsqueeze(1)
        )
        with recording(model, [(site, layer) for layer in layers], picked(response)) as seen:
            run_decoder(model, ids, mask)
        for (_, layer), values in seen.items():
            v = axis.directions[site][layer]
            found[layer].append(torch.stack([values @ v, values.norm(dim=-1)]))
    return {layer: tuple(torch.cat(parts, dim=1)) for layer, parts in found.items()}  # type: ignore[misc]
