"""Answers that are sent piece by piece, and stop when nobody reads them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

import anyio
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from karma_electric.serve.errors import ClientGone
from karma_electric.serve.exchange import Exchange, unless_gone
from karma_electric.serve.records import record_of


class Streamed(Response):
    """Sends parts as they come; gives the answers up when the client leaves, or does not read."""

    def __init__(
        self,
        exchange: Exchange,
        parts: AsyncIterator[bytes],
        *,
        media_type: str,
        send_s: float,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """`send_s`: how long a client may take to read a part, once the buffers between are full."""
        self.status_code = 200
        self.media_type = media_type
        self.background = None
        self._exchange = exchange
        self._parts = parts
        self._send_s = send_s
        self.init_headers({"Cache-Control": "no-store", "X-Accel-Buffering": "no", **(headers or {})})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send all parts."""
        try:
            await unless_gone(receive, self._send_all(send))
        except (ClientGone, TimeoutError):
            record_of(scope).note(gone=True)
        except asyncio.CancelledError:
            record_of(scope).note(finish="dropped")  # the server is stopped at once
            raise
        finally:
            self._exchange.cancel()

    async def _send_all(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for part in self._parts:
            message = {"type": "http.response.body", "body": part, "more_body": True}
            with anyio.fail_after(self._send_s):  # not asyncio.wait_for: until Python 3.12 that loses a cancellation
                await send(message)
        await send({"type": "http.response.body", "body": b"", "more_body": False})
