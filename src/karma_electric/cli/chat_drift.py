"""Drift in a chat: measured while an answer is generated, or read off the conversation so far."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from karma_electric.cli.drift_report import answer_line, print_conversation

if TYPE_CHECKING:
    from contextlib import AbstractContextManager
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from karma_electric.core.messages import Conversation
    from karma_electric.models.engines.protocol import Alpha, Drift, Engine, OnDrift, TokenDrift
    from karma_electric.steer.drift import AxisMeter
    from karma_electric.steer.drift_reference import Alarm, Reference
    from karma_electric.steer.spec import Cap


@dataclass
class Gauge:
    """A model with its cap, ready to tell the drift of its answers.

    Attributes:
        engine: answers like the chat's own engine, and measures.
        reference: what drift is measured in and held against.
        alarm: mean drift above which an answer alarms.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    cap: Cap
    engine: Engine
    reference: Reference
    alarm: Alarm
    _streamed: list[TokenDrift | None] = field(default_factory=list)

    def listen(self) -> OnDrift:
        """What the next stream takes as `on_drift`."""
        self._streamed.clear()
        return lambda _, drift: self._streamed.append(drift)

    def line(self) -> str:
        """What to say of the answer that was streamed last."""
        from karma_electric.models.engines.protocol import Drift

        return self.line_of(Drift(tuple(self._streamed)))

    def line_of(self, drift: Drift) -> str:
        """What to say of an answer."""
        return answer_line(drift, self.alarm.level, self.reference.ordinary)

    def print_so_far(self, conversation: Conversation, alpha: float) -> None:
        """Read the whole conversation once, the cap acting at `alpha`, and show the drift of every turn."""
        from karma_electric.core.progress import Silent
        from karma_electric.models.blocks import context_length
        from karma_electric.steer.conversation_drift import ConversationDrift, project, render_all, turn_drifts

        context = context_length(self.model)
        (rendered,) = render_all(self.tokenizer, {"The conversation": conversation}, context)
        (values,) = project(self.model, self.tokenizer, self.cap, [rendered], alpha=alpha, progress=Silent())
        turns = turn_drifts(rendered, values, self.cap, self.reference.scales)
        drift = ConversationDrift(turns, self.alarm.level, self.reference.ordinary)
        print_conversation(f"so far, at alpha {alpha:g}", drift, tokens=False)


def open_gauge(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cap: Cap, cap_file: Path, fingerprint: str
) -> Gauge:
    """Make a model's gauge; the first time for a cap, the model reads its calibration answers once.

    Raises:
        MissingError: there are none beside the cap.
    """
    from karma_electric.core.errors import MissingError
    from karma_electric.core.progress import Console
    from karma_electric.models.engines.hf import HfEngine
    from karma_electric.steer.drift import measured
    from karma_electric.steer.drift_reference import Alarm, reference_for

    reference = reference_for(model, tokenizer, cap, cap_file, fingerprint, progress=Console())
    if reference is None:
        raise MissingError(
            f"There is no responses.jsonl beside {cap_file}: nothing tells what drift is usual.",
            "Use the cap in the run it was made in; karma drift measures a saved chat without.",
        )

    def intervene(model: PreTrainedModel, alpha: Alpha) -> AbstractContextManager[AxisMeter]:
        return measured(model, cap, reference.scales, alpha=alpha)

    engine = HfEngine(model, tokenizer, intervention=intervene)
    return Gauge(model, tokenizer, cap, engine, reference, Alarm.from_ordinary(reference))


OpenGauge = Callable[[], Gauge]
