"""What our own two parameters, alpha and drift, add to answers; and `GET /karma/model`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter, Request

import karma_electric
from karma_electric.models.engines.live import LiveRequest, LiveToken
from karma_electric.models.engines.protocol import Completion
from karma_electric.serve.service import Service, service_of

router = APIRouter(tags=["karma"])


@router.get("/karma/model", summary="What is served: the model, its cap, what can be asked of it")
async def model(request: Request) -> dict[str, Any]:
    """Describe the model and its cap."""
    service = service_of(request)
    engine, served = service.engine, service.settings.served
    persona = served.persona
    return {
        "model": served.id,
        "engine": engine.name,
        "context": engine.context,
        "persona": None if persona is None else {"name": persona.name, "system_prompt": persona.system_prompt},
        "persona_is_default": served.default_system is not None,
        "cap": served.cap,
        "can_alpha": engine.can_alpha,
        "can_drift": engine.can_drift,
        "can_logprobs": engine.can_logprobs,
        "drift_reference": served.drift_reference,
        "limits": {
            "max_tokens": service.settings.limits.max_tokens,
            "n": service.settings.limits.n,
            "messages": service.settings.limits.messages,
        },
        "version": karma_electric.__version__,
    }


def tells(service: Service) -> bool:
    """Whether there is anything to tell: a cap whose strength can be chosen, or drift."""
    return service.engine.can_alpha or service.engine.can_drift


def token_dict(token: LiveToken) -> dict[str, Any]:
    """A token and its drift; nulls where it has none."""
    drift = token.drift
    return {
        "text": token.text,
        "drift": None if drift is None else drift.drift,
        "share_above": None if drift is None else drift.share_above,
        "projections": None if drift is None else list(drift.projections),
    }


def summary(
    service: Service, request: LiveRequest, completion: Completion, tokens: Sequence[LiveToken] | None
) -> dict[str, Any]:
    """What is told of a whole answer. `tokens` is None where they were told before, one by one."""
    drift: dict[str, Any] | None = None
    if completion.drift is not None:
        drift = completion.drift.as_dict(tokens=False)
        if tokens is not None:
            drift["tokens"] = [token_dict(token) for token in tokens]
    return {"alpha": service.alpha_of(request), "cap_rate": completion.cap_rate, "drift": drift}
