"""Servers for tests: in process, or on a free port of this machine. Nothing leaves the machine."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.testclient import TestClient

from karma_electric.models.engines.live import LiveEngine, LiveRequest
from karma_electric.models.engines.live_scripted import LiveScripted
from karma_electric.models.engines.protocol import TokenDrift
from karma_electric.serve.app import create_app
from karma_electric.serve.running import Server, bind, url_of
from karma_electric.serve.settings import Persona, Served, ServeSettings

MODEL = "tiny"
PERSONA = Persona("Karma", "You are Karma.")
WORDS = "One two three four five."


def drift_of(number: int) -> TokenDrift:
    """A drift for the token of this number."""
    return TokenDrift(drift=float(number), share_above=0.5, projections=(1.0, 2.0))


def scripted(script: Callable[[LiveRequest], str] | None = None, **options: Any) -> LiveScripted:
    """A scripted engine with a cap of 0.5 and drift."""
    return LiveScripted(script or (lambda _: WORDS), **({"alpha": 0.5, "drift": drift_of} | options))


def settings(**given: Any) -> ServeSettings:
    """Settings for the model `tiny`, with no persona and a quiet log."""
    return ServeSettings(**({"served": Served(MODEL), "access_log": False} | given))


@contextmanager
def in_process(engine: LiveEngine, **given: Any) -> Iterator[TestClient]:
    """A client of an app that no socket is needed for. What the app raises is an answer, as it is for real clients."""
    try:
        with TestClient(create_app(engine, settings(**given)), base_url="http://localhost") as client:
            yield client
    finally:
        engine.close()


@contextmanager
def on_a_port(engine: LiveEngine, **given: Any) -> Iterator[tuple[str, FastAPI]]:
    """The address and the app of a real server."""
    app = create_app(engine, settings(**given))
    listener = bind("127.0.0.1", 0)
    listener.listen(512)
    server = Server(app, drain_s=0.0)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    try:
        yield url_of(listener), app
    finally:
        server.stop()
        engine.close()
        thread.join()


def ask(**more: Any) -> dict[str, Any]:
    """Body of a chat request."""
    return {"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], **more}


def soon(condition: Callable[[], bool], what: str) -> None:
    """Wait until something is so; only a test that fails waits for long."""
    until = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < until, f"never happened: {what}"
        time.sleep(0.005)
