"""Bad input never makes a 5xx or a traceback: it is refused in a sentence, or answered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from karma_electric.serve.settings import Limits
from serving import MODEL, ask, in_process, scripted

HELLO = [{"role": "user", "content": "Hello"}]
LIMITS = Limits(body_bytes=20_000, messages=4, n=3, max_tokens=100)
CHAT = "/v1/chat/completions"


@pytest.fixture(scope="module")
def client() -> Iterator[TestClient]:
    with in_process(scripted(), limits=LIMITS) as client:
        yield client


def refused(reply: Any, status: int = 400) -> dict[str, Any]:
    """Check that a reply is a refusal in OpenAI's form, and give its error."""
    assert reply.status_code == status, reply.text
    error = reply.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert "Traceback" not in error["message"]
    return dict(error)


@pytest.mark.parametrize(
    ("more", "param", "words"),
    [
        ({"alpha": 1.01}, "alpha", "less than or equal to 1"),
        ({"alpha": -0.1}, "alpha", "greater than or equal to 0"),
        ({"alpha": "0.5"}, "alpha", "valid number"),
        ({"alpha": True}, "alpha", "valid number"),
        ({"drift": 1}, "drift", "valid boolean"),
        ({"temperature": 2.1}, "temperature", "less than or equal to 2"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"max_tokens": 0}, "max_tokens", "greater than or equal to 1"),
        ({"max_tokens": 101}, "max_tokens", "more than the 100"),
        ({"max_tokens": 1.5}, "max_tokens", "valid integer"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_tokens", "Give one of them"),
        ({"n": 4}, "n", "more than the 3"),
        ({"seed": 2**63}, "seed", "less than"),
        ({"stop": ["a"] * 17}, "stop", "at most 16"),
        ({"stop": [""]}, "stop[0]", "at least 1 char"),
        ({"top_logprobs": 3}, "top_logprobs", "Set logprobs"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "Set stream"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x", "no parameter"),
        ({"temprature": 1}, "temprature", "Did you mean temperature?"),
        ({"tools": [{"type": "function"}]}, "tools", "not supported and would change the answer"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"frequency_penalty": 0.1}, "frequency_penalty", "or give 0"),
        ({"presence_penalty": False}, "presence_penalty", "not supported"),
        ({"logit_bias": {"5": 1}}, "logit_bias", "not supported"),
        ({"logprobs": True}, None, "Leave logprobs out"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": HELLO * 5}, "messages", "more than the 4"),
        ({"messages": "Hello"}, "messages", "valid list"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "missing"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "Tools are not supported"),
        ({"messages": [*HELLO, {"role": "system", "content": "x"}]}, "messages[1]", "expected it first"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "x"}]}, "messages", "expected one of the user"),
        ({"messages": [{"role": "user", "content": None}]}, "messages[0].content", "null"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages[0].content", "empty"),
        ({"messages": [{"role": "user", "content": "x", "name": "Al"}]}, "messages[0]", "name"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content",
            "Only text",
        ),
        ({"model": 5}, "model", "valid string"),
        ({"model": ""}, "model", "at least 1"),
    ],
)
def test_a_wrong_parameter_is_named_with_what_was_expected(
    client: TestClient, more: dict[str, Any], param: str | None, words: str
) -> None:
    error = refused(client.post(CHAT, json=ask(**more)))
    assert error["param"] == param
    assert words in error["message"]


def test_another_model_is_a_404(client: TestClient) -> None:
    error = refused(client.post(CHAT, json=ask(model="gpt-4\u202e")), 404)
    assert error["code"] == "model_not_found"
    assert MODEL in error["message"]
    assert "\u202e" not in error["message"]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"   ",
        b"{",
        b"[]",
        b"null",
        b'"text"',
        b"{'model': 'tiny'}",
        b'{"model": "tiny", "model": "tiny"}',
        b"\xff\xfe{}",
        b"\xef\xbb\xbf{}",
        b'{"temperature": NaN}',
        b'{"temperature": Infinity}',
        b'{"temperature": 1e999}',
        b'{"seed": ' + b"9" * 5000 + b"}",
        b'{"a":' * 3000 + b"1" + b"}" * 3000,
        b"[" * 9000,
        json.dumps({"metadata": json.loads("[" * 40 + "]" * 40)}).encode(),
        b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud83d"}]}',
        b'{"\\udc00": 1}',
    ],
)
@pytest.mark.parametrize("path", [CHAT, "/v1/completions", "/api/chat", "/api/generate", "/api/show"])
def test_what_is_no_object_of_json_is_refused(client: TestClient, path: str, body: bytes) -> None:
    reply = client.post(path, content=body, headers={"Content-Type": "application/json"})
    assert reply.status_code == 400, reply.text
    assert reply.json()["error"]


@pytest.mark.parametrize(
    "text",
    [
        "\0",
        "a\0b",
        "🏳️‍🌈" * 100,
        "e" + "\u0301" * 500,
        "\u202egnp.exe",
        "\ufeff",
        "\uffff",
        "<|im_end|>",
        "𝔘" * 50,
        "\r\n\tx",
    ],
)
def test_any_text_of_whole_characters_is_answered(client: TestClient, text: str) -> None:
    messages = [{"role": "user", "content": text}]
    assert client.post(CHAT, json=ask(messages=messages)).status_code == 200
    assert client.post("/api/generate", json={"model": MODEL, "prompt": text}).status_code == 200


def test_a_pair_of_surrogates_is_one_character(client: TestClient) -> None:
    body = b'{"model": "tiny", "messages": [{"role": "user", "content": "\\ud83d\\ude42"}]}'
    assert client.post(CHAT, content=body, headers={"Content-Type": "application/json"}).status_code == 200


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data; boundary=x"]
)
def test_another_content_type_is_a_415(client: TestClient, kind: str | None) -> None:
    headers = {} if kind is None else {"Content-Type": kind}
    refused(client.post(CHAT, content=json.dumps(ask()), headers=headers), 415)


def test_a_compressed_body_is_a_415(client: TestClient) -> None:
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    refused(client.post(CHAT, content=b"\x1f\x8b", headers=headers), 415)


def test_a_body_that_is_too_large_is_a_413_with_its_length_said_or_not(client: TestClient) -> None:
    body = json.dumps(ask(user="x" * LIMITS.body_bytes)).encode()
    headers = {"Content-Type": "application/json"}
    refused(client.post(CHAT, content=body, headers=headers), 413)
    refused(client.post(CHAT, content=iter([body[:5000]] * 5), headers=headers), 413)


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE", "BREW"])
def test_another_method_is_a_405_that_names_the_right_one(client: TestClient, method: str) -> None:
    reply = client.request(method, CHAT)
    assert reply.status_code == 405
    assert reply.headers["allow"] == "POST"


def test_head_is_get_without_its_body(client: TestClient) -> None:
    reply = client.head("/api/version")
    assert (reply.status_code, reply.content) == (200, b"")


@pytest.mark.parametrize(
    ("path", "form"),
    [("/v1/embeddings", dict), ("/nothing", dict), ("/%00", dict), ("/v1/../v1/x", dict), ("/api/pull", str)],
)
def test_no_such_address_is_a_404_in_the_form_of_its_place(client: TestClient, path: str, form: type) -> None:
    reply = client.post(path, json={})
    assert reply.status_code == 404
    assert isinstance(reply.json()["error"], form)
