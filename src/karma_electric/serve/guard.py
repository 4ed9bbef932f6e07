"""Who may ask at all, before any endpoint is reached: host names, origins, keys. Plain ASGI, so that streams pass."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from karma_electric.serve.bodies import shown
from karma_electric.serve.errors import HttpError, error_response
from karma_electric.serve.settings import ServeSettings, is_loopback

OPEN = ("/healthz", "/readyz")  # for whoever watches the server: they tell nothing else
_CLOSED = ("/v1", "/api", "/karma", "/metrics", "/openapi.json")  # everything else are the files of the page


class Guard:
    """Refuses requests of web pages that should not reach this server, and those without a key where one is set.

    - A page anywhere can make a browser call 127.0.0.1, or have its own name resolve to it (DNS rebinding). So on
      loopback the Host header must be a name of this machine, and on any address an Origin header must be of this
      server, or of one that was allowed.
    - Keys are compared by hash, in constant time.
    """

    def __init__(self, app: ASGIApp, settings: ServeSettings) -> None:
        self._app = app
        self._check_host = is_loopback(settings.host)
        self._hosts = {host.lower() for host in settings.hosts}
        self._origins = set(settings.origins)
        self._keys = [_digest(key) for key in settings.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or refuse it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._check(scope)
        except HttpError as refusal:
            await error_response(refusal, scope["path"])(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _check(self, scope: Scope) -> None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        name = _host_name(host)
        if self._check_host and not is_loopback(name) and name not in self._hosts:
            raise HttpError(
                421,
                f"The Host header is {shown(host)}, expected a name of this machine such as localhost.",
                "Behind a proxy, start the server with --allow-host NAME.",
            )
        origin = headers.get("origin")
        if origin is not None and origin not in self._origins and not _same_origin(origin, host):
            raise HttpError(
                403,
                f"The request comes from a web page of {shown(origin)}.",
                "Start the server with --allow-origin ORIGIN if that page may call it.",
            )
        if self._keys and needs_key(scope["method"], scope["path"]):
            self._check_key(headers)

    def _check_key(self, headers: Headers) -> None:
        given = headers.get("authorization")
        challenge = {"WWW-Authenticate": "Bearer"}
        if given is None:
            raise HttpError(401, "There is no API key, expected Authorization: Bearer KEY.",
                            "The server's owner has the key.", headers=challenge)  # fmt: skip
        scheme, _, key = given.partition(" ")
        digest = _digest(key.strip())
        known = [hmac.compare_digest(digest, each) for each in self._keys]  # all of them, whatever the first says
        if scheme.lower() != "bearer" or not any(known):
            raise HttpError(401, "The API key is not one of this server's.", "Send Authorization: Bearer KEY.",
                            headers=challenge)  # fmt: skip


def needs_key(method: str, path: str) -> bool:
    """Whether a request must bring a key, where there are any: all but health and the files of the page."""
    if path in OPEN:
        return False
    below = any(path == closed or path.startswith(f"{closed}/") for closed in _CLOSED)
    return below or method not in ("GET", "HEAD", "OPTIONS")


def allowed_origins(origins: Sequence[str]) -> tuple[str, ...]:
    """Origins as browsers write them: scheme, host and port, nothing else. `*` is not one."""
    return tuple(origin.rstrip("/").lower() for origin in origins)


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()


def _host_name(host: str) -> str:
    """The name in a Host header, without its port; empty where it is none."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


def _same_origin(origin: str, host: str) -> bool:
    parts = origin.lower().partition("://")
    return bool(host) and parts[0] in ("http", "https") and parts[2] == host.lower()
