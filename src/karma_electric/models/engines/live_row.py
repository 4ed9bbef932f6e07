"""One request in the live transformers engine, and what the engine asks of a model and of an intervention."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

from karma_electric.core.errors import InputError, KarmaError
from karma_electric.models.engines.choosing import Chooser
from karma_electric.models.engines.live import EngineError, LiveRequest
from karma_electric.models.engines.live_answer import QueuedAnswer
from karma_electric.models.engines.live_text import Composer, Detokenizer
from karma_electric.models.engines.protocol import TokenDrift

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from karma_electric.models.engines.row_cache import RowCache

_ATTENTION = {"full_attention", "sliding_attention"}  # kinds of blocks whose state is keys and values alone


class LiveMeter(Protocol):
    """What an intervention does for a live engine: a strength for each row, and what was measured.

    Attributes:
        alpha: the strength for requests that name none.
        can_drift: whether drift can be measured.
    """

    alpha: float
    can_drift: bool

    def prompt(self, alpha: float) -> None:
        """The forward passes that follow read one prompt, which is not counted."""

    def decode(self, rows: Sequence[int], alphas: Sequence[float], *, drift: bool) -> None:
        """The next forward pass reads one response token of each of these rows."""

    def drifts(self) -> Sequence[TokenDrift]:
        """Drift of the token that each row read last."""

    def rate(self, row: int, n_tokens: int) -> float:
        """Share of a row's response tokens that were changed; the row is forgotten."""


LiveIntervention = Callable[["PreTrainedModel"], AbstractContextManager[LiveMeter]]


class Row:
    """One request that is being answered; only the engine's thread touches it."""

    def __init__(
        self,
        number: int,
        request: LiveRequest,
        prompt: list[int],
        alpha: float,
        answer: QueuedAnswer,
        tokenizer: PreTrainedTokenizerBase,
    ) -> None:
        self.number = number
        self.request = request
        self.prompt = prompt
        self.alpha = alpha
        self.answer = answer
        self.chooser = Chooser(request.sampling)
        self.composer = Composer(request.stop, drift=request.drift)
        self.detokenizer = Detokenizer(tokenizer)
        self.cache: RowCache | None = None  # while its prompt is read
        self.last = -1  # token that is fed back next
        self.n_fed_back = 0


def is_out_of_memory(error: BaseException) -> bool:
    """Whether less work at a time might have gone well."""
    import torch

    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "not enough memory" in str(error)


def require_attention(model: PreTrainedModel) -> None:
    """Refuse models whose rows cannot be joined by their keys and values."""
    config = model.config.get_text_config()
    kinds = set(getattr(config, "layer_types", None) or ["full_attention"])
    if getattr(model, "_is_stateful", False) or kinds - _ATTENTION:
        raise InputError(
            f"{type(model).__name__} keeps more than keys and values of each token "
            f"({', '.join(sorted(kinds - _ATTENTION)) or 'a state'}).",
            "Answer one at a time (karma chat), or export it and serve the .gguf file.",
        )


def in_our_words(error: Exception) -> Exception:
    """What a reader is told of an error while the model ran."""
    if isinstance(error, KarmaError):
        return error
    if is_out_of_memory(error):
        said = EngineError("There is not enough memory for this request beside the others.", "Ask again, or for less.")
    else:
        said = EngineError(f"The model failed ({type(error).__name__}: {error}).", "Report this with its name.")
    said.__cause__ = error
    return said
