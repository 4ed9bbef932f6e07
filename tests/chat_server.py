"""A local HTTP server that speaks the OpenAI chat API, well or badly: what a test says. Nothing leaves the machine."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Response:
    """What goes back: a whole HTTP body, after a pause."""

    body: bytes
    status: int = 200
    content_type: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)
    pause_s: float = 0.0


Responder = Callable[[dict[str, Any]], Response]


@dataclass
class ChatServer:
    """A running server: its address, and every request it got, in order."""

    url: str
    requests: list[dict[str, Any]] = field(default_factory=list)
    answered: list[dict[str, Any]] = field(default_factory=list)

    def prompts(self) -> list[str]:
        """The last turn of every request."""
        return [request["messages"][-1]["content"] for request in self.requests]


def said(text: str, *, finish_reason: str = "stop", pause_s: float = 0.0) -> Response:
    """A well-formed answer."""
    body = {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "local",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": finish_reason},
        ],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }
    return Response(json.dumps(body).encode(), pause_s=pause_s)


def html(status: int = 200) -> Response:
    """A web page where JSON was expected: a proxy's or a login's."""
    return Response(b"<html><body>Gateway login</body></html>", status, "text/html")


def half_json() -> Response:
    """The beginning of an answer, declared as JSON: a connection that was cut."""
    return Response(said("never seen").body[:60])


def refused(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    """An error in the API's own form."""
    body = {"error": {"message": message, "type": "invalid_request_error", "code": None}}
    return Response(json.dumps(body).encode(), status, headers=headers or {})


@contextmanager
def chat_server(respond: Responder) -> Iterator[ChatServer]:
    """Run a server that answers with `respond(request)`, on a free port of this machine."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                server.requests.append(request)
                response = respond(request)
            time.sleep(response.pause_s)
            try:
                self.send_response(response.status)
                for name, value in {"Content-Type": response.content_type, **response.headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(response.body)))
                self.end_headers()
                self.wfile.write(response.body)
            except OSError:
                return  # the client went away
            with lock:
                server.answered.append(request)

        def log_message(self, *_: object) -> None:
            return

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    server = ChatServer(f"http://127.0.0.1:{http.server_address[1]}/v1")
    thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()
        thread.join()
