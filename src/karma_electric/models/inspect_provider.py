"""Our engines as a model provider of Inspect: `karma/builtin:smollm2-135m`, `karma/runs/demo/merged`, `karma/x.gguf`.

Importing this module registers the name `karma` with Inspect; the package's entry point lets Inspect find it alone.
Settings that our engines do not have are an error, never dropped in silence. Nothing here uses the network.

A cap belongs to a higher layer: `set_cap_opener` says how a capped engine is opened, and the command line does so.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from anyio import Event, RunFinishedError, from_thread
from anyio.lowlevel import current_token
from inspect_ai.model import (
    ChatCompletionChoice,
    ChatMessage,
    ChatMessageAssistant,
    ContentText,
    GenerateConfig,
    ModelAPI,
    ModelOutput,
    ModelUsage,
    modelapi,
)
from inspect_ai.tool import ToolChoice, ToolInfo

from karma_electric.core.errors import InputError, MissingError
from karma_electric.core.messages import Conversation, parse_conversation
from karma_electric.models.engines.gathering import Gathering
from karma_electric.models.engines.named import engine_kind, open_engine
from karma_electric.models.engines.protocol import Completion, Engine, Sampling

DEFAULT_MAX_TOKENS = 512
DEFAULT_BATCH_SIZE = 8

# (model name, cap.json or its folder or None for the one beside the model, alpha or None for the cap's own, whether the
# answers tell their drift) -> engine and strength
CapOpener = Callable[[str, "Path | None", "float | None", bool], tuple[Engine, float]]

_SAMPLING = {"temperature", "top_p", "max_tokens", "seed"}
# What Inspect itself acts on, before or around a call to a provider.
_OF_INSPECT = {
    "adaptive_connections",
    "attempt_timeout",
    "cache",
    "fail_on_refusal",
    "max_connections",
    "max_retries",
    "max_tool_output",
    "stream_idle_timeout",
    "system_message",
    "timeout",
}
# Values that ask for what happens anyway.
_HARMLESS = {"num_choices": 1, "best_of": 1, "frequency_penalty": 0.0, "presence_penalty": 0.0, "logprobs": False}

_cap_opener: CapOpener | None = None


def set_cap_opener(opener: CapOpener) -> None:
    """Say how an engine with a cap is opened, for the model argument `cap`."""
    global _cap_opener  # noqa: PLW0603  a layer below cannot import the one above: it is told once
    _cap_opener = opener


class KarmaAPI(ModelAPI):
    """One of our engines, asked through Inspect.

    Concurrent requests are gathered into batches (models/engines/gathering.py says what an answer then depends on);
    a GGUF file gets each request by itself, with its own seed, and llama.cpp decodes several at a time.
    """

    supports_response_schema = False

    def __init__(
        self,
        model_name: str,
        base_url: str | None = None,
        api_key: str | None = None,
        config: GenerateConfig | None = None,
        *,
        engine: str = "auto",
        cap: str | None = None,
        alpha: float | None = None,
        batch_size: int | None = None,
        context: int | None = None,
        drift: bool = False,
        **unknown: Any,
    ) -> None:
        """Load the engine.

        Args:
            model_name: what follows `karma/`.
            base_url: not used: there is no server.
            api_key: not used.
            config: Inspect's settings.
            engine: auto, hf, llamacpp or scripted.
            cap: cap.json, or its folder; for a checkpoint. With alpha or drift, the one beside the model when None.
            alpha: strength of the cap: 0 off, 0.5 soft, 1 hard; the cap's own when None.
            batch_size: requests answered together; 8 when None.
            context: tokens of prompt and answer together; the model's own (GGUF: 4096) when None.
            drift: measure the drift of the answers along the axis of the cap; a reply's metadata tells its mean.
            unknown: refused, by name.

        Raises:
            InputError: an argument that does not exist or does not fit.
            MissingError: the model, the cap or an extra is not there.
        """
        super().__init__(model_name, base_url, api_key, [], config or GenerateConfig())
        if unknown or base_url is not None:
            name = "base_url" if base_url is not None else min(unknown)
            raise InputError(
                f"karma/{model_name} has no model argument {name!r}.",
                "It has engine, cap, alpha, batch_size, context and drift.",
            )
        size = DEFAULT_BATCH_SIZE if batch_size is None else batch_size
        if not isinstance(size, int) or size < 1:
            raise InputError(f"batch_size is {size!r}, expected a whole number from 1.", "8 is usual.")
        if alpha is not None and (isinstance(alpha, bool) or not isinstance(alpha, (int, float))):
            raise InputError(f"alpha is {alpha!r}, expected a number from 0 (off) to 1 (hard).", "0.5 is the soft cap.")
        if not isinstance(drift, bool):
            raise InputError(f"drift is {drift!r}, expected true or false.", "Leave it out where nothing reads it.")
        self.batch_size = size
        hooks = cap is not None or alpha is not None or drift
        if cap is None and alpha is not None and engine_kind(model_name, engine) == "scripted":
            raise InputError(f"alpha is {alpha!r}, but no cap was given.", "Give one with the model argument cap.")
        self._kind = engine_kind(model_name, engine, hooks=hooks)
        strength: float | None = None
        if cap is None and alpha is None and not drift:
            self._engine = open_engine(model_name, engine, context=context, stop=self._unwanted)
        else:
            self._engine, strength = self._open_capped(cap, alpha, context, drift)
        # llama.cpp gathers by itself, and then every request keeps its own seed
        self._gathering = Gathering(self._engine, batch_size=size, alpha=strength) if self._kind != "llamacpp" else None

    def _unwanted(self) -> bool:
        return self._gathering is not None and self._gathering.unwanted()

    def _open_capped(
        self, cap: str | None, alpha: float | None, context: int | None, drift: bool
    ) -> tuple[Engine, float]:
        if context is not None:
            raise InputError("The model arguments cap and context are both given.", "Keep one.")
        if _cap_opener is None:
            raise MissingError(
                "Nobody has said how caps are opened.",
                "In Python: import karma_electric.cli.inspect_models, then call inspect_ai.model.get_model",
            )
        return _cap_opener(self.model_name, None if cap is None else Path(cap), alpha, drift)

    async def generate(
        self,
        input: list[ChatMessage],
        tools: list[ToolInfo],
        tool_choice: ToolChoice,
        config: GenerateConfig,
    ) -> ModelOutput:
        """Answer one conversation. See `ModelAPI.generate`.

        Raises:
            InputError: tools, a setting that our engines do not have, or a conversation longer than the context.
            DataError: a conversation that is not text, or does not end with the user's turn.
        """
        self._refuse(tools, config)
        conversation = as_conversation(input)
        sampling = _sampling(config)
        given_up = threading.Event()
        try:
            completion = await _in_thread(lambda: self._answer(conversation, sampling, given_up))
        finally:
            given_up.set()
        return _output(self.model_name, completion)

    def _answer(self, conversation: Conversation, sampling: Sampling, given_up: threading.Event) -> Completion:
        if self._gathering is not None:
            return self._gathering.ask(conversation, sampling, given_up)
        return self._engine.generate([conversation], sampling)[0]

    def _refuse(self, tools: Sequence[ToolInfo], config: GenerateConfig) -> None:
        given = config.model_dump(exclude_none=True)
        allowed = _SAMPLING | _OF_INSPECT
        refused = sorted(name for name, value in given.items() if name not in allowed and _HARMLESS.get(name) != value)
        if tools:
            refused.insert(0, "tools")
        if refused:
            raise InputError(
                f"karma/{self.model_name} does not have {', '.join(refused)}.",
                f"It has {', '.join(sorted(_SAMPLING))}: leave the others out.",
            )

    async def count_text_tokens(self, text: str) -> int:
        """Tokens of a text, roughly (Inspect's own way downloads a vocabulary). A reply's usage is exact."""
        return max(1, len(text.encode()) // 4)

    def max_tokens(self) -> int:
        """Longest answer where nothing else is asked for."""
        return DEFAULT_MAX_TOKENS

    def max_connections(self) -> int:
        """Requests in flight where nothing else is asked for: one batch running, one gathering."""
        return 2 * self.batch_size

    def connection_key(self) -> str:
        """One pool of requests per model."""
        return self.model_name

    def collapse_user_messages(self) -> bool:
        """Chat templates want turns that alternate."""
        return True

    def collapse_assistant_messages(self) -> bool:
        """Chat templates want turns that alternate."""
        return True


@modelapi("karma")
def karma() -> type[ModelAPI]:
    """The provider, under its name."""
    return KarmaAPI


def as_conversation(messages: Sequence[ChatMessage]) -> Conversation:
    """Inspect's messages as ours.

    Raises:
        InputError: content that is not text, or a last turn that is not the user's.
        DataError: turns that do not alternate.
    """
    conversation = parse_conversation(
        [{"role": message.role, "content": _text(message)} for message in messages], "request"
    )
    if conversation[-1].role != "user":
        raise InputError("The conversation ends with the assistant's turn.", "End it with a question.")
    return conversation


async def _in_thread(answer: Callable[[], Completion]) -> Completion:
    """Run `answer` in a thread of its own, and leave it alone when the answer is no longer awaited."""
    token, done = current_token(), Event()
    outcome: list[Completion | Exception] = []

    def work() -> None:
        try:
            outcome.append(answer())
        except Exception as error:
            outcome.append(error)
        with contextlib.suppress(RunFinishedError, RuntimeError):  # nobody waits any more
            from_thread.run_sync(done.set, token=token)

    threading.Thread(target=work).start()  # no daemon: torch does not bear to be cut off at exit
    await done.wait()
    if isinstance(outcome[0], Exception):
        raise outcome[0]
    return outcome[0]


def _text(message: ChatMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    other = [part.type for part in message.content if not isinstance(part, ContentText)]
    if other:
        raise InputError(f"A {message.role} turn holds {other[0]}, expected text.", "Our engines read text only.")
    return "".join(part.text for part in message.content if isinstance(part, ContentText))


def _sampling(config: GenerateConfig) -> Sampling:
    default = Sampling()
    return Sampling(
        temperature=default.temperature if config.temperature is None else config.temperature,
        top_p=default.top_p if config.top_p is None else config.top_p,
        max_new_tokens=config.max_tokens or DEFAULT_MAX_TOKENS,
        seed=default.seed if config.seed is None else config.seed,
    )


def _measured(completion: Completion) -> dict[str, Any]:
    drift = completion.drift
    found = {} if completion.cap_rate is None else {"cap_rate": completion.cap_rate}
    return found if drift is None else {**found, "drift_mean": drift.mean, "drift_max": drift.max}


def _output(model: str, completion: Completion) -> ModelOutput:
    usage = completion.usage
    return ModelOutput(
        model=model,
        choices=[
            ChatCompletionChoice(
                message=ChatMessageAssistant(content=completion.text, model=model, source="generate"),
                stop_reason="max_tokens" if completion.finish_reason == "length" else "stop",
            )
        ],
        usage=ModelUsage(
            input_tokens=usage.prompt_tokens,
            output_tokens=usage.completion_tokens,
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
        ),
        metadata=_measured(completion) or None,
    )
