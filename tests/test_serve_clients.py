"""The real clients, openai and ollama, against a real server on a free port."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import ollama
import openai
import pytest
from fastapi import FastAPI

from karma_electric.models.engines.live import LiveRequest
from karma_electric.models.engines.live_scripted import LiveScripted
from karma_electric.serve.settings import Limits, Served
from serving import MODEL, PERSONA, WORDS, on_a_port, scripted, soon

KEY = "0123456789abcdef0123"
HELLO = [{"role": "user", "content": "Hello"}]
GO_ON = threading.Event()


def script(request: LiveRequest) -> str:
    if isinstance(request.prompt, str) or request.prompt[-1].content != "Wait":
        return WORDS
    assert GO_ON.wait(30)
    return "Waited."


@pytest.fixture(scope="module")
def engine() -> LiveScripted:
    return scripted(script)


@pytest.fixture(scope="module")
def running(engine: LiveScripted) -> Iterator[tuple[str, FastAPI]]:
    served = Served(MODEL, persona=PERSONA, parameters=135_000_000)
    with on_a_port(engine, keys=(KEY,), served=served, limits=Limits(answers=2, n=2)) as (url, app):
        soon(lambda: app.state.service.warm and not app.state.service.admission.taken, "ready")
        yield url, app


@pytest.fixture
def url(running: tuple[str, FastAPI]) -> str:
    return running[0]


@pytest.fixture
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=0) as client:
        yield client


@pytest.fixture
def llama(url: str) -> Iterator[ollama.Client]:
    with ollama.Client(url, headers={"Authorization": f"Bearer {KEY}"}) as client:
        yield client


def test_openai_chats(client: openai.OpenAI) -> None:
    reply = client.chat.completions.create(model=MODEL, messages=HELLO, extra_body={"alpha": 1.0, "drift": True})
    assert reply.choices[0].message.content == WORDS
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 5
    assert reply.model_extra is not None
    assert reply.model_extra["karma"]["alpha"] == 1.0
    assert len(reply.model_extra["karma"]["drift"]["tokens"]) == 5


def test_openai_streams(client: openai.OpenAI) -> None:
    stream = client.chat.completions.create(
        model=MODEL, messages=HELLO, stream=True, stream_options={"include_usage": True}, n=2
    )
    texts, reasons, usage = ["", ""], [], None
    for chunk in stream:
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons += [choice.finish_reason] if choice.finish_reason else []
        usage = chunk.usage or usage
    assert texts == [WORDS, WORDS]
    assert reasons == ["stop", "stop"]
    assert usage is not None
    assert usage.completion_tokens == 10


def test_openai_completes(client: openai.OpenAI) -> None:
    assert client.completions.create(model=MODEL, prompt="Once").choices[0].text == WORDS
    stream = client.completions.create(model=MODEL, prompt="Once", stream=True)
    assert "".join(chunk.choices[0].text for chunk in stream) == WORDS


def test_openai_lists_models(client: openai.OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).owned_by == "karma-electric"


def test_openai_knows_our_errors(url: str, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="alpha is 2") as wrong:
        client.chat.completions.create(model=MODEL, messages=HELLO, extra_body={"alpha": 2})
    assert wrong.value.param == "alpha"
    with pytest.raises(openai.NotFoundError, match="This server has"):
        client.chat.completions.create(model="gpt-4", messages=HELLO)
    wrong_key = openai.OpenAI(base_url=f"{url}/v1", api_key="wrong", max_retries=0)
    with wrong_key as other, pytest.raises(openai.AuthenticationError):
        other.models.list()
    with pytest.raises(openai.NotFoundError):
        client.embeddings.create(model=MODEL, input="x")


def test_openai_waits_and_asks_again_when_told_to(running: tuple[str, FastAPI], client: openai.OpenAI) -> None:
    url, app = running
    waiting = [
        threading.Thread(
            target=client.chat.completions.create,
            kwargs={"model": MODEL, "messages": [{"role": "user", "content": "Wait"}]},
        )
        for _ in range(2)
    ]
    for thread in waiting:
        thread.start()
    soon(lambda: app.state.service.admission.taken == 2, "the server is full")
    with pytest.raises(openai.RateLimitError) as refused:
        client.chat.completions.create(model=MODEL, messages=HELLO)
    assert int(refused.value.response.headers["retry-after"]) >= 1
    with openai.OpenAI(base_url=f"{url}/v1", api_key=KEY, max_retries=5) as patient:
        threading.Timer(0.1, GO_ON.set).start()
        assert patient.chat.completions.create(model=MODEL, messages=HELLO).choices[0].message.content == WORDS
    for thread in waiting:
        thread.join()


def test_ollama_chats(llama: ollama.Client) -> None:
    reply = llama.chat(MODEL, messages=HELLO, options={"alpha": 1.0, "num_predict": 3})
    assert (reply.message.content, reply.done, reply.done_reason) == ("One two three", True, "length")
    assert (reply.prompt_eval_count, reply.eval_count) == (4, 3)
    parts = list(llama.chat(MODEL, messages=HELLO, stream=True, keep_alive="5m"))
    assert "".join(part.message.content or "" for part in parts) == WORDS
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]


def test_ollama_generates(llama: ollama.Client, engine: LiveScripted) -> None:
    assert llama.generate(MODEL, "Hello", system="Be brief.", options={"seed": 1}).response == WORDS
    assert "".join(part.response or "" for part in llama.generate(MODEL, "Hello", raw=True, stream=True)) == WORDS
    assert engine.requests[-1].prompt == "Hello"
    assert llama.generate(MODEL).done_reason == "load"


def test_ollama_lists_and_shows(llama: ollama.Client) -> None:
    (listed,) = llama.list().models
    assert listed.model == f"{MODEL}:latest"
    (running,) = llama.ps().models
    assert running.digest == listed.digest
    shown = llama.show(f"{MODEL}:latest")
    assert shown.details is not None
    assert (shown.details.parameter_size, shown.capabilities) == ("135M", ["completion"])


def test_ollama_knows_our_errors(url: str, llama: ollama.Client) -> None:
    with pytest.raises(ollama.ResponseError, match="This server has") as missing:
        llama.chat("llama3", messages=HELLO)
    assert missing.value.status_code == 404
    with pytest.raises(ollama.ResponseError, match="not supported"):
        list(llama.chat(MODEL, messages=HELLO, format="json", stream=True))
    with ollama.Client(url) as stranger, pytest.raises(ollama.ResponseError, match="no API key"):
        stranger.list()
