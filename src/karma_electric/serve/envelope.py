"""The outermost layer of every request: an id, security headers, HEAD, the access log, and no traceback ever."""

from __future__ import annotations

import os
import secrets
import sys
import traceback

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from karma_electric.serve.errors import ClientGone, as_http, error_response
from karma_electric.serve.metrics import Metrics
from karma_electric.serve.records import begin_record

GONE = 499  # nginx's number for a client that left
# The page needs nothing from elsewhere; inline styles are what plotting libraries set.
_POLICY = (
    "default-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'"
)
_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Content-Security-Policy": _POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
}


class Envelope:
    """Wraps the app. See the module."""

    def __init__(self, app: ASGIApp, metrics: Metrics, *, access_log: bool) -> None:
        self._app = app
        self._metrics = metrics
        self._access_log = access_log

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        method = scope["method"]
        if method == "HEAD":  # answered like GET; the server below sends no body
            scope["method"] = "GET"
        record = begin_record(scope, secrets.token_hex(8))
        status = 0

        async def sender(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = record.id
                for name, value in _HEADERS.items():
                    headers.setdefault(name, value)
            elif method == "HEAD" and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        try:
            await self._app(scope, receive, sender)
        except ClientGone:
            status = GONE
        except Exception as error:
            record.note(error=type(error).__name__)
            if os.environ.get("KARMA_DEBUG"):
                traceback.print_exception(error, file=sys.stderr)
            if status:
                raise  # in the middle of an answer: the connection has to break
            await error_response(as_http(error), scope["path"])(scope, receive, sender)
        finally:
            route = _route(scope)
            if record.fields.pop("gone", False):
                status = GONE
            self._metrics.requests.labels(route, str(status)).inc()
            self._metrics.seconds.labels(route).observe(record.took_s)
            if self._access_log:
                client = scope.get("client") or ("", 0)
                record.write(method=method, route=route, status=status, client=client[0])


def _route(scope: Scope) -> str:
    """The route that answered, as it was declared: paths of clients' own making are not labels."""
    route = scope.get("route")
    path = getattr(route, "path", None) if route is not None else None
    return str(path) if path else "other"
