"""An engine that answers from a script: for tests, and for trying tools without a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from karma_electric.core.messages import Conversation
from karma_electric.models.engines.protocol import Alpha, Completion, OnDrift, Sampling, Usage

Script = Callable[[Conversation], str]


class ScriptedEngine:
    """Answers with `script(conversation)`, cut at `max_new_tokens` words. Records every call.

    Attributes:
        calls: the batches it was asked for, in order.
    """

    name = "scripted"

    def __init__(self, script: Script | Sequence[str]) -> None:
        """`script` is a function of the conversation, or answers given in turn (the last one repeats)."""
        self.calls: list[list[Conversation]] = []
        self._answered = 0
        self._script = script if callable(script) else self._in_turn(list(script))

    def _in_turn(self, answers: list[str]) -> Script:
        if not answers:
            raise ValueError("a script needs at least one answer")

        def answer(_: Conversation) -> str:
            self._answered += 1
            return answers[min(self._answered, len(answers)) - 1]

        return answer

    def generate(
        self, conversations: Sequence[Conversation], sampling: Sampling, *, alpha: Alpha = None
    ) -> list[Completion]:
        """Answer each conversation from the script; `alpha` changes nothing."""
        self.calls.append(list(conversations))
        return [self._complete(conversation, sampling) for conversation in conversations]

    def stream(
        self,
        conversation: Conversation,
        sampling: Sampling,
        *,
        alpha: float | None = None,
        on_drift: OnDrift | None = None,
    ) -> Iterator[str]:
        """Yield the scripted answer word by word. It has no drift."""
        self.calls.append([conversation])
        words = self._complete(conversation, sampling).text.split(" ")
        for number, word in enumerate(words):
            yield word if number == 0 else " " + word

    def _complete(self, conversation: Conversation, sampling: Sampling) -> Completion:
        words = self._script(conversation).split(" ")
        kept = words[: sampling.max_new_tokens]
        prompt = sum(len(message.content.split()) for message in conversation)
        return Completion(
            text=" ".join(kept),
            finish_reason="stop" if len(kept) == len(words) else "length",
            usage=Usage(prompt_tokens=prompt, completion_tokens=len(kept)),
        )
