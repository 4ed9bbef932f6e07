"""Answers that are sent in pieces end when their client leaves, at whatever moment that is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

import pytest

from karma_electric.serve.exchange import Exchange
from karma_electric.serve.responses import Streamed


class Given:
    """An exchange of which it is known whether it was given up."""

    def __init__(self) -> None:
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


async def endless() -> AsyncIterator[bytes]:
    while True:
        yield b"word "
        await asyncio.sleep(0)


@pytest.mark.parametrize("later", range(12))
def test_a_client_that_leaves_as_a_part_is_sent_ends_the_answer(later: int) -> None:
    """Whatever number of steps of the loop after the sending it is seen."""

    async def served() -> bool:
        sent, exchange = asyncio.Event(), Given()

        async def send(message: Any) -> None:
            await asyncio.sleep(0)
            if message["type"] == "http.response.body":
                sent.set()

        async def receive() -> Any:
            await sent.wait()
            for _ in range(later):
                await asyncio.sleep(0)
            return {"type": "http.disconnect"}

        response = Streamed(cast("Exchange", exchange), endless(), media_type="text/plain", send_s=5)
        task = asyncio.ensure_future(response({"type": "http", "state": {}}, receive, send))
        done, _ = await asyncio.wait({task}, timeout=2)
        if not done:
            task.cancel()
        return bool(done) and exchange.cancelled

    assert asyncio.run(served())
