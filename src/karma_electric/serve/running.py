"""The socket and the signals: uvicorn, with a drain that keeps telling that the server is about to stop.

First SIGTERM or SIGINT: /readyz says 503, new questions are refused with 503, answers under way are finished, for at
most `drain_s`. Second: everything is dropped.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import sys
import threading
import time
from types import FrameType

import uvicorn
from fastapi import FastAPI

from karma_electric.core.errors import InputError
from karma_electric.serve.service import Service

OK, CUT, DROPPED = 0, 1, 130
_LAST_WORDS_S = 5  # for what has been said to reach its reader
_PATIENCE_S = 5.0  # after a second signal, for threads to let go


def bind(host: str, port: int) -> socket.socket:
    """A socket that is bound but does not listen yet: a port that is served already is known before anything is loaded.

    Of two that are still loading, the second to `listen` is refused. Port 0 takes a free one.

    Raises:
        InputError: the port is in use, not allowed, or the address is not of this machine.
    """
    if not 0 <= port <= 65535:
        raise InputError(f"--port is {port}, expected 0 to 65535.", "0 takes a free one.")
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
    except (socket.gaierror, UnicodeError):
        raise InputError(f"--host {host!r} is no address of this machine.", "Give 127.0.0.1, ::1 or 0.0.0.0.") from None
    listener = socket.socket(family, socket.SOCK_STREAM)
    if os.name == "posix":
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise _in_use(host, port) from None
        if isinstance(error, PermissionError):
            raise InputError(f"Port {port} may not be used by this user.", "Give one above 1023.") from None
        raise InputError(f"--host {host} cannot be used ({error.strerror}).", "Give 127.0.0.1 or 0.0.0.0.") from None
    return listener


def _in_use(host: str, port: int) -> InputError:
    return InputError(
        f"Port {port} of {host} is in use.", f"Give another with --port, or see who has it: ss -ltnp | grep {port}"
    )


def url_of(listener: socket.socket) -> str:
    """The address, for people."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def listen(listener: socket.socket) -> None:
    """Take connections from now on.

    Raises:
        InputError: another server took the port while the model was loaded.
    """
    try:
        listener.listen(2048)
    except OSError:
        raise _in_use(*listener.getsockname()[:2]) from None


def run(app: FastAPI, listener: socket.socket, *, drain_s: float) -> int:
    """Serve until a signal, and close the engine. The socket listens already.

    Returns:
        0 after a drain that finished every answer, 1 where some were cut or the model failed its warm-up, 130 after a
        second signal: the engine may still be at work then.
    """
    server = Server(app, drain_s=drain_s)
    server.run(sockets=[listener])
    if server.outcome != DROPPED:  # else a thread does it, and a watchdog waits
        server.service.engine.close()
    return server.outcome


class Server(uvicorn.Server):
    """uvicorn's server with our own idea of signals. `run(sockets=[...])` serves.

    Attributes:
        outcome: what `run` returns.
    """

    def __init__(self, app: FastAPI, *, drain_s: float) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http="h11",
                ws="none",
                loop="asyncio",
                lifespan="on",
                log_level="critical",  # Envelope tells what went wrong, in one line
                access_log=False,  # ours has no addresses of clients' own making
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=_LAST_WORDS_S,
            )
        )
        self.service: Service = app.state.service
        self.outcome = OK
        self._drain_s = drain_s
        self._drain_until: float | None = None

    def stop(self) -> None:
        """Take no more questions; end when the answers under way have."""
        self._drain_until = time.monotonic() + self._drain_s
        self.service.admission.draining = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal came. Runs between two instructions of the main thread: it notes, and starts threads."""
        if self._drain_until is None:
            self.stop()
            if left := self.service.admission.taken:
                these = "1 answer is" if left == 1 else f"{left} answers are"
                _say(f"Stopping: {these} finished first, for at most {self._drain_s:g} s. Again to stop now.")
            return
        self.outcome = DROPPED
        self.should_exit = self.force_exit = True
        threading.Thread(target=self.service.engine.close, daemon=True).start()
        watchdog = threading.Timer(_PATIENCE_S, os._exit, [DROPPED])
        watchdog.daemon = True
        watchdog.start()
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_DFL)

    async def on_tick(self, counter: int) -> bool:
        """Asked every 0.1 s whether to stop."""
        if self._drain_until is None and self.service.failure is not None and not self.service.warm:
            self.outcome = CUT
            return True
        if self._drain_until is not None:
            left = self.service.admission.taken
            if left and time.monotonic() >= self._drain_until:
                _say(f"{left} answers were not finished in time.")
                self.outcome = CUT
                threading.Thread(target=self.service.engine.close, daemon=True).start()
                return True
            if not left:
                return True
        return await super().on_tick(counter)


def _say(text: str) -> None:
    with contextlib.suppress(OSError):
        print(text, file=sys.stderr, flush=True)
