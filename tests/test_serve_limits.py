"""How many answers there may be, what happens to those whose client leaves, and how a server stops."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import httpx
import pytest
from fastapi import FastAPI

from karma_electric.core.errors import InputError
from karma_electric.models.engines.live import LiveRequest
from karma_electric.models.engines.live_scripted import LiveScripted
from karma_electric.serve.admission import Admission
from karma_electric.serve.errors import HttpError
from karma_electric.serve.running import bind
from karma_electric.serve.settings import Limits
from serving import MODEL, WORDS, ask, in_process, on_a_port, scripted, soon

CHAT = "/v1/chat/completions"
ENDLESS = "word " * 4000  # 200 s of it


def endless(request: LiveRequest) -> str:
    """No end where more than a few tokens are asked for."""
    return ENDLESS if request.sampling.max_new_tokens > 100 else WORDS


@pytest.fixture(scope="module")
def slow() -> LiveScripted:
    return scripted(endless, delay_s=0.05, rows=2)


@pytest.fixture(scope="module")
def server(slow: LiveScripted) -> Iterator[tuple[str, FastAPI]]:
    with on_a_port(slow, limits=Limits(answers=3, n=3)) as running:
        yield running


def idle(engine: LiveScripted, app: FastAPI) -> bool:
    load = engine.load()
    return load.active + load.waiting + app.state.service.admission.taken == 0


def test_more_answers_than_there_may_be_are_refused_until_there_is_a_place(
    slow: LiveScripted, server: tuple[str, FastAPI]
) -> None:
    url, app = server
    soon(lambda: app.state.service.warm, "the warm-up")
    with httpx.Client(base_url=url) as client:
        with client.stream("POST", CHAT, json=ask(stream=True, n=2)) as stream:
            lines = stream.iter_lines()  # kept: the response is closed with it
            assert next(lines)
            refused = client.post(CHAT, json=ask(n=2))
            assert (refused.status_code, refused.json()["error"]["type"]) == (429, "rate_limit_error")
            assert int(refused.headers["retry-after"]) >= 1
            assert int(refused.headers["retry-after"]) <= 60
            assert app.state.service.admission.taken == 2
        soon(lambda: idle(slow, app), "places are free again")
        assert client.post(CHAT, json=ask(n=3, max_tokens=5)).status_code == 200


def gone_from(app: FastAPI, path: str) -> float:
    """How many clients left an endpoint before they were answered."""
    requests = app.state.service.metrics.requests
    return float(requests.labels(path, "499")._value.get())


@pytest.mark.parametrize("body", [ask(stream=True), ask(), ask(n=3), ask(stream=True, n=3)])
@pytest.mark.parametrize("path", [CHAT, "/api/chat"])
def test_an_answer_whose_client_leaves_is_given_up(
    slow: LiveScripted, server: tuple[str, FastAPI], body: dict[str, object], path: str
) -> None:
    if path == "/api/chat":
        body = {key: value for key, value in body.items() if key != "n"} | {"stream": bool(body.get("stream"))}
    url, app = server
    soon(lambda: app.state.service.warm, "the warm-up")
    before, gone = len(slow.requests), gone_from(app, path)
    with httpx.Client(base_url=url, timeout=httpx.Timeout(30, read=30 if body.get("stream") else 1)) as client:
        if body.get("stream"):
            with client.stream("POST", path, json=body) as stream:
                assert next(stream.iter_lines())
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(path, json=body)
    assert len(slow.requests) > before
    soon(lambda: idle(slow, app), "the answer is given up")
    soon(lambda: gone_from(app, path) == gone + 1, "the request is counted as one whose client left")


def test_a_drain_finishes_what_is_under_way_and_refuses_the_rest() -> None:
    go_on = threading.Event()

    def script(request: LiveRequest) -> str:
        if request.sampling.max_new_tokens > 2:
            assert go_on.wait(30)
        return WORDS

    engine = scripted(script)
    with in_process(engine) as client:
        service = client.app.state.service  # type: ignore[attr-defined]
        soon(lambda: service.warm, "the warm-up")
        replies: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: replies.append(client.post(CHAT, json=ask())))
        thread.start()
        soon(lambda: service.admission.taken == 1, "the answer is under way")
        service.admission.draining = True
        assert (client.get("/readyz").status_code, client.get("/healthz").status_code) == (503, 200)
        refused = client.post("/api/chat", json=ask() | {"options": {}})
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "5")
        go_on.set()
        thread.join()
    assert replies[0].json()["choices"][0]["message"]["content"] == WORDS


def test_readiness_waits_for_the_warm_up() -> None:
    go_on = threading.Event()

    def script(_: LiveRequest) -> str:
        assert go_on.wait(30)
        return WORDS

    with in_process(scripted(script)) as client:
        waiting = client.get("/readyz")
        assert (waiting.status_code, waiting.json()["reason"]) == (503, "warming up")
        go_on.set()
        soon(lambda: client.get("/readyz").status_code == 200, "ready")


def test_retry_after_is_about_how_long_it_takes_until_one_of_those_at_work_ends() -> None:
    admission = Admission(8, active=lambda: 4)
    admission.take(8)
    with pytest.raises(HttpError) as full:
        admission.take(1)
    assert full.value.headers == {"Retry-After": "1"}
    for _ in range(3):
        admission.release(40.0)
    assert admission.retry_after_s() == 10
    admission.release(4000.0)
    assert admission.retry_after_s() == 60


def test_a_port_in_use_and_an_address_of_elsewhere_are_told() -> None:
    with bind("127.0.0.1", 0) as taken:
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"Port {port} of 127.0.0.1 is in use.*--port"):
            bind("127.0.0.1", port)
    with pytest.raises(InputError, match="no address of this machine"):
        bind("nowhere.invalid", 0)
    with pytest.raises(InputError, match="cannot be used"):
        bind("192.0.2.1", 0)  # kept for documentation: nobody has it
    with pytest.raises(InputError, match="0 to 65535"):
        bind("127.0.0.1", 70000)


def test_a_client_that_sends_its_body_too_slowly_is_let_go() -> None:
    import socket

    with on_a_port(scripted(), limits=Limits(body_s=0.05)) as (url, _):
        address = ("127.0.0.1", int(url.rpartition(":")[2]))
        with socket.create_connection(address, timeout=30) as connection:
            head = (
                f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n"
            )
            connection.sendall(f"{head}\r\n{{".encode())
            reply = b""
            while part := connection.recv(4096):
                reply += part
    assert reply.startswith(b"HTTP/1.1 408")
    assert b"did not arrive" in reply


def test_what_is_no_http_is_refused_by_the_server() -> None:
    import socket

    with on_a_port(scripted()) as (url, _):
        for data in (
            b"\x00\x01\x02\r\n\r\n",
            b"GET / HTTP/9\r\n\r\n",
            b"GET / HTTP/1.1\r\nHost: a\r\n" + b"a" * 70_000,
        ):
            with socket.create_connection(("127.0.0.1", int(url.rpartition(":")[2])), timeout=30) as connection:
                connection.sendall(data)
                assert connection.recv(4096).startswith(b"HTTP/1.1 400")
        assert httpx.get(f"{url}/healthz").status_code == 200
        assert MODEL in httpx.get(f"{url}/v1/models").text
