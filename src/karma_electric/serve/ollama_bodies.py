"""Ollama's request bodies: what is served of them, what is ignored, and what is refused."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from karma_electric.models.engines.live import MAX_LOGPROBS
from karma_electric.serve.bodies import Body, Foreign
from karma_electric.serve.openai_bodies import ChatMessage, Model, Stop

_SIXTY_FOUR_BITS = 2**63
FILL_CONTEXT = (-1, -2)  # num_predict: as many tokens as it takes, or as fit

REQUEST = Foreign(
    frozenset({"keep_alive"}),  # the model stays until the server ends
    {
        "format": (None, ""),
        "think": (None, False),
        "tools": (None, []),
        "images": (None, []),
        "suffix": (None, ""),
        "template": (None, ""),
        "context": (None, []),
        "width": (None,),
        "height": (None,),
        "steps": (None,),
    },
)
OPTIONS = Foreign(
    # how a model is loaded and run, not what it answers
    frozenset(
        {
            *("num_ctx", "num_batch", "num_gpu", "main_gpu", "num_thread", "num_keep", "numa", "low_vram", "f16_kv"),
            *("logits_all", "vocab_only", "use_mmap", "use_mlock", "embedding_only", "repeat_last_n"),
            *("penalize_newline", "mirostat_eta", "mirostat_tau"),
        }
    ),
    {
        "top_k": (None, 0),
        "min_p": (None, 0),
        "typical_p": (None, 1),
        "tfs_z": (None, 1),
        "repeat_penalty": (None, 1),
        "presence_penalty": (None, 0),
        "frequency_penalty": (None, 0),
        "mirostat": (None, 0),
    },
)


class Options(Body):
    """`options` of a request."""

    num_predict: int | None = Field(None, ge=-2, description="longest answer, in tokens; -1 and -2: as many as fit")
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    seed: int | None = Field(None, ge=-_SIXTY_FOUR_BITS, lt=_SIXTY_FOUR_BITS)
    stop: str | Stop | None = None
    alpha: float | None = Field(None, ge=0, le=1, description="ours: strength of the cap; 0 off, 0.5 soft, 1 hard")
    drift: bool | None = Field(None, description="ours: measure how far each token lies from the persona")


class _Common(Body):
    model: Model
    stream: bool | None = Field(None, description="true when not given, as Ollama has it")
    options: dict[str, Any] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    alpha: float | None = Field(None, ge=0, le=1, description="ours; may also be among the options")
    drift: bool | None = Field(None, description="ours; may also be among the options")


class OllamaChatBody(_Common):
    """Body of `POST /api/chat`. Without messages nothing is asked but whether the model is there."""

    messages: list[ChatMessage] = Field(default_factory=list)


class OllamaGenerateBody(_Common):
    """Body of `POST /api/generate`. Without a prompt nothing is asked but whether the model is there."""

    prompt: str | None = None
    system: str | None = Field(None, description="instead of the persona's system prompt")
    raw: bool | None = Field(None, description="continue the prompt as it is, with no template")


class OllamaShowBody(Body):
    """Body of `POST /api/show`."""

    model: str | None = None
    name: str | None = Field(None, description="an older name of model")
    verbose: bool | None = None
