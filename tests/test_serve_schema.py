"""Schemathesis makes requests from the OpenAPI description, right and wrong: none is a 5xx, all are as described."""

from __future__ import annotations

from typing import Any

import hypothesis
import pytest
import schemathesis
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.types import Receive, Scope, Send

from karma_electric.serve.app import create_app
from karma_electric.serve.settings import Limits
from serving import MODEL, scripted, settings

APP = create_app(scripted(), settings(hosts=("testserver",), limits=Limits(max_tokens=8)))
APP.state.service.warm = True  # nothing is started here: requests go to the app itself


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """The app without start and end, which schemathesis would have at every request."""
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await send({"type": "lifespan.shutdown.complete"})
    else:
        await APP(scope, receive, send)


SCHEMA = schemathesis.openapi.from_asgi("/openapi.json", app)
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def check(case: Any) -> None:
    """Half of the requests ask for the model that is there, so that they come further than that."""
    if isinstance(case.body, dict) and len(case.body) % 2:
        case.body["model"] = MODEL
    case.call_and_validate(checks=CHECKS)


@SCHEMA.parametrize()
@hypothesis.settings(max_examples=10)
def test_no_request_is_a_5xx(case: Any) -> None:
    check(case)


@pytest.mark.slow
@SCHEMA.parametrize()
@hypothesis.settings(max_examples=200)
def test_none_of_many_requests_is_a_5xx(case: Any) -> None:
    check(case)
