"""A server as a process: signals, exit codes, and `karma serve` itself."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from karma_electric.core import extras
from serving import MODEL, ask, soon
from test_cli import ENVIRONMENT, Ended, karma_here

CHAT = "/v1/chat/completions"
N_WORDS = 150  # three seconds: long enough to ask for something else meanwhile on a busy machine
PROGRAM = f"""
import sys
from karma_electric.serve.app import create_app
from karma_electric.serve.running import bind, listen, run, url_of
from serving import scripted, settings

def script(request):
    return "word " * (100_000 if request.sampling.max_new_tokens > {N_WORDS} else {N_WORDS})

app = create_app(scripted(script, delay_s=0.02), settings())
listener = bind("127.0.0.1", 0)
listen(listener)
print(url_of(listener), flush=True)
sys.exit(run(app, listener, drain_s=float(sys.argv[1])))
"""
Run = Callable[..., Ended]


@contextmanager
def started(*words: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A process of a server that says its address first, and that address, once it is ready."""
    environment = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([*sys.path, str(Path(__file__).parent)])}
    process = subprocess.Popen(
        [sys.executable, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        soon(lambda: is_ready(url), "ready")
        yield process, url
    finally:
        process.kill()
        process.communicate()


def is_ready(url: str) -> bool:
    try:
        return httpx.get(f"{url}/readyz").status_code == 200
    except httpx.TransportError:
        return False


def test_a_signal_lets_answers_finish_and_refuses_the_rest() -> None:
    with started("-c", PROGRAM, 60) as (process, url), httpx.Client(base_url=url, timeout=60) as client:
        with client.stream("POST", CHAT, json=ask(stream=True, max_tokens=N_WORDS)) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            soon(lambda: httpx.get(f"{url}/readyz").status_code == 503, "told that it is about to stop")
            assert httpx.post(f"{url}{CHAT}", json=ask()).status_code == 503
            chunks = [json.loads(line[6:]) for line in lines if line.startswith("data: {")]
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        assert text.split() == ["word"] * N_WORDS
        assert chunks[-1]["choices"][0]["finish_reason"] is not None
        assert process.wait(60) == 0
        assert process.stderr is not None
        said = process.stderr.read()
    assert "1 answer is finished first" in said
    assert "Traceback" not in said


def test_what_is_not_finished_in_time_is_cut_with_an_error_and_an_exit_code() -> None:
    with started("-c", PROGRAM, 0.2) as (process, url):
        with httpx.stream("POST", f"{url}{CHAT}", json=ask(stream=True), timeout=60) as stream:
            lines = stream.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            last = [json.loads(line[6:]) for line in lines if line][-1]
        assert "closed before the answer was complete" in last["error"]["message"]
        assert process.wait(60) == 1


def test_a_second_signal_stops_at_once() -> None:
    with started("-c", PROGRAM, 3600) as (process, url):
        with httpx.stream("POST", f"{url}{CHAT}", json=ask(stream=True), timeout=60) as stream:
            lines = stream.iter_lines()  # kept: the response is closed with it
            next(lines)
            process.send_signal(signal.SIGINT)
            soon(lambda: httpx.get(f"{url}/readyz").status_code == 503, "told that it is about to stop")
            process.send_signal(signal.SIGINT)
            assert process.wait(60) == 130
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read()


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `karma serve` in this process."""
    monkeypatch.delenv("KARMA_API_KEY", raising=False)
    return lambda *words: karma_here(monkeypatch, capsys, "serve", *words)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / f"{MODEL}.json"
    path.write_text('[{"answers": ["Yes."]}]')
    return path


def test_karma_serve_serves_until_it_is_told_to_stop(script: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    words = ["-m", "karma_electric", "serve", f"scripted:{script}", "--port", str(port)]
    process = subprocess.Popen([sys.executable, *words], stderr=subprocess.PIPE, text=True, env=ENVIRONMENT)
    try:
        url = f"http://127.0.0.1:{port}"
        soon(lambda: is_ready(url), "ready")
        reply = httpx.post(f"{url}/api/generate", json={"model": MODEL, "prompt": "Well?", "stream": False})
        assert reply.json()["response"] == "Yes."
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stderr is not None
        said = process.stderr.read()
    finally:
        process.kill()
        process.communicate()
    assert f"{url}/v1" in said
    assert '"route": "/api/generate", "status": 200' in said
    assert "Well?" not in said


def test_what_cannot_be_served_is_told_in_a_line(serve: Run, script: Path, tmp_path: Path) -> None:
    name = f"scripted:{script}"
    serve(name, "--host", "0.0.0.0").refused(2, "0.0.0.0", "KARMA_API_KEY")
    serve(name, "--api-key-file", tmp_path / "none").refused(3, "does not exist", "openssl")
    serve(name, "--alpha", "0.5").refused(2, "strength", "checkpoint")
    serve(name, "--allow-origin", "chat.example").refused(2, "no origin", "https://")
    serve(name, "--runs", tmp_path / "none").refused(3, "no folder")
    serve(name, "--max-n", "9", "--max-answers", "8").refused(2, "--max-n is 9")
    serve(name, "--no-persona", "--system", "x").refused(2, "--system and --no-persona")
    serve("scripted:none.json", "--port", "0").refused(3, "none.json")
    serve(tmp_path / "nothing", "--port", "0").refused(3, "nothing")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        serve(name, "--port", taken.getsockname()[1]).refused(2, "in use", "--port")


def test_a_missing_extra_is_told_with_the_command_that_brings_it(
    serve: Run, script: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extras, "is_present", lambda module: module != "uvicorn")
    serve(f"scripted:{script}").refused(3, "uvicorn", ".[serve]")
