"""Whether the server lives, whether requests should be sent to it, and its metrics."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from karma_electric.serve.metrics import CONTENT_TYPE
from karma_electric.serve.service import service_of

router = APIRouter(tags=["health"])
_UNREADY: dict[int | str, dict[str, Any]] = {
    503: {
        "description": "No, and why not",
        "content": {"application/json": {"schema": {"type": "object", "required": ["status", "reason"]}}},
    }
}


@router.get("/healthz", summary="Whether the server lives", responses=_UNREADY)
async def healthz(request: Request) -> JSONResponse:
    """200 while the model can be used, 503 once it cannot: then a restart is all that helps."""
    failure = service_of(request).failure
    if failure is not None:
        return JSONResponse({"status": "failed", "reason": failure}, status_code=503)
    return JSONResponse({"status": "ok"})


@router.get("/readyz", summary="Whether requests should be sent here", responses=_UNREADY)
async def readyz(request: Request) -> JSONResponse:
    """200 from the first answer of the warm-up until the server is told to stop."""
    reason = service_of(request).unready
    if reason is not None:
        return JSONResponse({"status": "unready", "reason": reason}, status_code=503, headers={"Retry-After": "1"})
    return JSONResponse({"status": "ready"})


@router.get("/metrics", summary="Counters for Prometheus", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Everything that is counted, in Prometheus's text format."""
    return Response(service_of(request).metrics.text(), headers={"Content-Type": CONTENT_TYPE})
