"""How far the answers of an arm drift: the mean of each answer, in standard deviations above the ceiling.

A conversation that cannot be measured has the reason in place of a figure; none ends a run.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from karma_electric.core.errors import DataError, InputError
from karma_electric.core.messages import Conversation
from karma_electric.core.progress import Progress
from karma_electric.models.blocks import context_length
from karma_electric.steer.conversation_drift import project, render_all, turn_drifts
from karma_electric.steer.drift_reference import Alarm, own_reference, reference_for
from karma_electric.steer.spec import CAP_FILE, load_cap

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class ArmDrift:
    """What was measured of an arm's conversations.

    Attributes:
        answers: name -> mean drift of each answer, in order; None for an answer without tokens.
        not_measured: name -> why there is no figure.
        alarm: mean drift that hardly any ordinary answer of this model exceeds; None where nothing was measured.
    """

    answers: dict[str, tuple[float | None, ...]]
    not_measured: dict[str, str]
    alarm: Alarm | None

    @property
    def means(self) -> dict[str, float]:
        """Name -> mean over its answers."""
        kept = {name: [mean for mean in means if mean is not None] for name, means in self.answers.items()}
        return {name: sum(means) / len(means) for name, means in kept.items()}


def drift_of_each(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    axis: Path,
    fingerprint: str,
    conversations: Mapping[str, Conversation],
    *,
    progress: Progress,
) -> ArmDrift:
    """The drift of every answer of every conversation.

    The unit is the spread of this model's projections over the ordinary answers beside the cap, which it reads once:
    so that a model whose residual stream is longer does not seem to drift further.

    Args:
        model: what answered; with a compiled cap, that cap acts while it reads.
        tokenizer: its tokenizer.
        axis: folder of the cap.
        fingerprint: of the model.
        conversations: with the model's answers in them.
        progress: told about the reading.
    """
    cap, _ = load_cap(axis)
    rendered, why = {}, {}
    for name, conversation in conversations.items():
        try:
            [rendered[name]] = render_all(tokenizer, {name: conversation}, context_length(model))
        except (DataError, InputError) as error:
            why[name] = error.message
    if not rendered:
        return ArmDrift({}, why, None)
    found = list(rendered.values())
    reference = reference_for(model, tokenizer, cap, axis / CAP_FILE, fingerprint, progress=progress)
    projections = project(model, tokenizer, cap, found, progress=progress)
    if reference is None:
        reference = own_reference(found, projections, cap)
    answers: dict[str, tuple[float | None, ...]] = {}
    for name, one, values in zip(rendered, found, projections, strict=True):
        turns = turn_drifts(one, values, cap, reference.scales)
        means = tuple(turn.drift.mean for turn in turns if turn.role == "assistant")
        if any(mean is not None for mean in means):
            answers[name] = means
        else:
            why[name] = "no answer has a token"
    return ArmDrift(answers, why, Alarm.from_ordinary(reference))
