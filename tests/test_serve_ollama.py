"""Ollama's endpoints: chat, generate, what is there; lines of JSON and whole answers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from karma_electric.core.messages import system, user
from karma_electric.models.engines.live_scripted import LiveScripted
from karma_electric.serve.settings import Served
from serving import MODEL, PERSONA, WORDS, in_process, scripted


@pytest.fixture(scope="module")
def engine() -> LiveScripted:
    return scripted()


@pytest.fixture(scope="module")
def client(engine: LiveScripted) -> Iterator[TestClient]:
    served = Served(MODEL, persona=PERSONA, parameters=135_000_000, cap={"site": "mlp"}, family="llama")
    with in_process(engine, served=served) as client:
        yield client


def chat(client: TestClient, **more: Any) -> Any:
    return client.post("/api/chat", json={"model": MODEL, "messages": [{"role": "user", "content": "Hello"}], **more})


def generate(client: TestClient, **more: Any) -> Any:
    return client.post("/api/generate", json={"model": MODEL, "prompt": "Hello", **more})


def test_chat_streams_lines_unless_told_not_to(client: TestClient) -> None:
    reply = chat(client)
    assert reply.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in reply.text.splitlines()]
    assert "".join(line["message"]["content"] for line in lines) == WORDS
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    last = lines[-1]
    assert (last["done_reason"], last["prompt_eval_count"], last["eval_count"]) == ("stop", 4, 5)
    assert last["karma"] == {"alpha": 0.5, "cap_rate": 0.5, "drift": None}
    whole = chat(client, stream=False).json()
    assert (whole["message"], whole["done"]) == ({"role": "assistant", "content": WORDS}, True)


def test_generate_answers_a_prompt_under_the_persona_or_a_system_prompt_of_its_own(
    client: TestClient, engine: LiveScripted
) -> None:
    lines = [json.loads(line) for line in generate(client).text.splitlines()]
    assert "".join(line["response"] for line in lines) == WORDS
    assert engine.requests[-1].prompt == [system(PERSONA.system_prompt), user("Hello")]
    generate(client, system="Be brief.", stream=False)
    assert engine.requests[-1].prompt == [system("Be brief."), user("Hello")]


def test_a_raw_prompt_is_continued_as_it_is(client: TestClient, engine: LiveScripted) -> None:
    generate(client, raw=True)
    assert engine.requests[-1].prompt == "Hello"
    assert generate(client, raw=True, system="x").status_code == 400


def test_options_reach_the_engine(client: TestClient, engine: LiveScripted) -> None:
    options = {"num_predict": 2, "temperature": 0, "top_p": 0.5, "seed": -1, "stop": ["x"], "alpha": 0.25, "num_ctx": 9}
    reply = chat(client, options=options, stream=False)
    asked = engine.requests[-1]
    assert (asked.sampling.temperature, asked.sampling.top_p, asked.sampling.max_new_tokens) == (0.0, 0.5, 2)
    assert (asked.sampling.seed, asked.stop, asked.alpha) == (2**63 - 1, ("x",), 0.25)
    assert reply.json()["done_reason"] == "length"
    assert reply.headers["x-karma-ignored"] == "num_ctx"


@pytest.mark.parametrize("where", [{"alpha": 1.0, "drift": True}, {"options": {"alpha": 1.0, "drift": True}}])
def test_alpha_and_drift_may_stand_at_the_top_or_among_the_options(client: TestClient, where: dict[str, Any]) -> None:
    whole = chat(client, stream=False, **where).json()["karma"]
    assert whole["alpha"] == 1.0
    assert [token["text"] for token in whole["drift"]["tokens"]] == ["One", " two", " three", " four", " five."]
    lines = [json.loads(line) for line in chat(client, **where).text.splitlines()]
    told = [token for line in lines[:-1] for token in line["karma"]["tokens"]]
    assert told == whole["drift"]["tokens"]
    assert lines[-1]["karma"]["drift"] == {"mean": 2.0, "max": 4.0, "share_above": 0.5}


@pytest.mark.parametrize("length", [-1, -2])
def test_as_many_tokens_as_fit_may_be_asked_for(client: TestClient, engine: LiveScripted, length: int) -> None:
    assert chat(client, options={"num_predict": length}, stream=False).status_code == 200
    assert engine.requests[-1].sampling.max_new_tokens == 1024


@pytest.mark.parametrize(
    ("path", "body"),
    [("/api/chat", {"messages": []}), ("/api/generate", {}), ("/api/generate", {"prompt": "", "keep_alive": 0})],
)
def test_without_a_question_the_model_is_only_looked_for(client: TestClient, path: str, body: dict[str, Any]) -> None:
    reply = client.post(path, json={"model": f"{MODEL}:latest", **body}).json()
    assert (reply["done"], reply["done_reason"], reply["model"]) == (True, "load", f"{MODEL}:latest")


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({"format": "json"}, "format"),
        ({"tools": [{"type": "function"}]}, "tools"),
        ({"think": True}, "think"),
        ({"options": {"repeat_penalty": 1.1}}, "options.repeat_penalty"),
        ({"options": {"top_k": 40}}, "options.top_k"),
        ({"options": {"num_predict": 0}}, "num_predict"),
        ({"options": {"temprature": 1}}, "Did you mean temperature?"),
        ({"alpha": 0.1, "options": {"alpha": 0.2}}, "alpha"),
        ({"model": "other"}, "other"),
    ],
)
def test_what_cannot_be_done_is_refused_in_ollama_s_form(client: TestClient, body: dict[str, Any], named: str) -> None:
    reply = chat(client, **body)
    assert reply.status_code in (400, 404)
    assert named in reply.json()["error"]


def test_curl_without_a_content_type_is_understood(client: TestClient) -> None:
    body = json.dumps({"model": MODEL, "prompt": "Hello", "stream": False})
    form = {"Content-Type": "application/x-www-form-urlencoded"}
    assert client.post("/api/generate", content=body, headers=form).json()["response"] == WORDS


def test_the_model_is_listed_and_shown(client: TestClient) -> None:
    (listed,) = client.get("/api/tags").json()["models"]
    assert listed["name"] == f"{MODEL}:latest"
    assert len(listed["digest"]) == 64
    assert client.get("/api/ps").json()["models"][0]["digest"] == listed["digest"]
    shown = client.post("/api/show", json={"model": MODEL}).json()
    assert shown["system"] == PERSONA.system_prompt
    assert PERSONA.system_prompt in shown["modelfile"]
    assert shown["details"]["parameter_size"] == "135M"
    assert shown["model_info"]["karma.cap"] == {"site": "mlp"}
    assert client.get("/api/version").json()["version"]


def test_a_persona_that_is_turned_off_is_not_shown_as_the_system_prompt() -> None:
    with in_process(scripted(), served=Served(MODEL, persona=PERSONA, use_persona=False)) as client:
        assert "system" not in client.post("/api/show", json={"name": MODEL}).json()
