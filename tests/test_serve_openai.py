"""OpenAI's endpoints: what an answer is made of, whole and streamed, and what reaches the engine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from karma_electric.core.messages import system, user
from karma_electric.models.engines.live import EngineError, LiveRequest, Piece
from karma_electric.models.engines.live_answer import QueuedAnswer
from karma_electric.models.engines.live_scripted import LiveScripted
from karma_electric.serve.settings import Limits, Served
from serving import MODEL, PERSONA, WORDS, ask, in_process, scripted


@pytest.fixture(scope="module")
def engine() -> LiveScripted:
    return scripted()


@pytest.fixture(scope="module")
def client(engine: LiveScripted) -> Iterator[TestClient]:
    with in_process(engine) as client:
        yield client


def events(text: str) -> list[Any]:
    """The events of a stream, without its end, which must be there."""
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_a_chat_answer_is_openai_s(client: TestClient) -> None:
    reply = client.post("/v1/chat/completions", json=ask()).json()
    assert reply["object"] == "chat.completion"
    assert reply["model"] == MODEL
    (choice,) = reply["choices"]
    assert choice["message"] == {"role": "assistant", "content": WORDS, "refusal": None}
    assert choice["finish_reason"] == "stop"
    assert reply["usage"] == {"prompt_tokens": 1, "completion_tokens": 5, "total_tokens": 6}
    assert reply["karma"] == {"alpha": 0.5, "cap_rate": 0.5, "drift": None}


def test_a_streamed_answer_adds_up_to_the_whole_one(client: TestClient) -> None:
    reply = client.post("/v1/chat/completions", json=ask(stream=True, stream_options={"include_usage": True}))
    assert reply.headers["content-type"].startswith("text/event-stream")
    *chunks, last = events(reply.text)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == WORDS
    assert [c["choices"][0]["finish_reason"] for c in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert all(chunk["usage"] is None for chunk in chunks)
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 5)
    assert len({chunk["id"] for chunk in [*chunks, last]}) == 1


def test_usage_is_not_streamed_unless_asked_for(client: TestClient) -> None:
    chunks = events(client.post("/v1/chat/completions", json=ask(stream=True)).text)
    assert all(chunk["choices"] and "usage" not in chunk for chunk in chunks)


def test_what_is_asked_for_reaches_the_engine(client: TestClient, engine: LiveScripted) -> None:
    wanted = {"temperature": 0.25, "top_p": 0.5, "max_tokens": 3, "seed": 7, "stop": ["x", "y"], "alpha": 1}
    reply = client.post("/v1/chat/completions", json=ask(**wanted)).json()
    asked = engine.requests[-1]
    sampling = asked.sampling
    assert (sampling.temperature, sampling.top_p, sampling.max_new_tokens, sampling.seed) == (0.25, 0.5, 3, 7)
    assert (asked.stop, asked.alpha) == (("x", "y"), 1.0)
    assert reply["choices"][0]["finish_reason"] == "length"
    assert reply["karma"]["alpha"] == 1.0


def test_what_is_not_asked_for_is_the_server_s_default() -> None:
    engine = scripted(context=100)
    with in_process(engine, temperature=0.3, top_p=0.8, limits=Limits(max_tokens=50)) as client:
        for _ in range(2):
            client.post("/v1/chat/completions", json=ask())
    first, second = (request.sampling for request in engine.requests[-2:])
    assert (first.temperature, first.top_p, first.max_new_tokens) == (0.3, 0.8, 50)
    assert first.seed != second.seed


def test_an_answer_without_a_limit_gets_the_room_that_is_left() -> None:
    engine = scripted(lambda _: "word " * 50, context=10)
    with in_process(engine) as client:
        reply = client.post("/v1/chat/completions", json=ask()).json()
        refused = client.post("/v1/chat/completions", json=ask(max_tokens=10))
    assert reply["usage"] == {"prompt_tokens": 1, "completion_tokens": 9, "total_tokens": 10}
    assert reply["choices"][0]["finish_reason"] == "length"
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_n_answers_have_seeds_one_after_the_other(client: TestClient, engine: LiveScripted) -> None:
    reply = client.post("/v1/chat/completions", json=ask(n=3, seed=2**63 - 1)).json()
    assert [choice["index"] for choice in reply["choices"]] == [0, 1, 2]
    assert sorted(request.sampling.seed for request in engine.requests[-3:]) == [0, 1, 2**63 - 1]
    assert reply["usage"] == {"prompt_tokens": 1, "completion_tokens": 15, "total_tokens": 16}


def test_streamed_answers_to_one_request_are_told_apart_by_index() -> None:
    engine = scripted(lambda request: f"answer {request.sampling.seed}")
    with in_process(engine) as client:
        chunks = events(client.post("/v1/chat/completions", json=ask(n=3, seed=5, stream=True)).text)
    texts = ["", "", ""]
    for chunk in chunks:
        (choice,) = chunk["choices"]
        texts[choice["index"]] += choice["delta"].get("content", "")
    assert texts == ["answer 5", "answer 6", "answer 7"]


def test_max_completion_tokens_is_max_tokens(client: TestClient) -> None:
    reply = client.post("/v1/chat/completions", json=ask(max_completion_tokens=2)).json()
    assert reply["usage"]["completion_tokens"] == 2


def test_drift_is_told_of_every_token_of_a_whole_answer(client: TestClient) -> None:
    drift = client.post("/v1/chat/completions", json=ask(drift=True)).json()["karma"]["drift"]
    assert [(token["text"], token["drift"]) for token in drift["tokens"]][:2] == [("One", 0.0), (" two", 1.0)]
    assert drift["tokens"][0]["projections"] == [1.0, 2.0]
    assert (drift["mean"], drift["max"], drift["share_above"]) == (2.0, 4.0, 0.5)


def test_drift_is_streamed_with_the_tokens_and_summed_up_at_the_end(client: TestClient) -> None:
    chunks = events(client.post("/v1/chat/completions", json=ask(drift=True, stream=True, max_tokens=4)).text)
    told = [token for chunk in chunks[1:-1] for token in chunk["karma"]["tokens"]]
    assert [(token["text"], token["drift"]) for token in told] == [
        ("One", 0.0), (" two", 1.0), (" three", 2.0), (" four", None),
    ]  # fmt: skip
    assert chunks[-1]["karma"]["drift"] == {"mean": 1.0, "max": 2.0, "share_above": 0.5}


def test_a_model_without_a_cap_tells_nothing_of_one() -> None:
    with in_process(LiveScripted([WORDS])) as client:
        reply = client.post("/v1/chat/completions", json=ask())
        refused = client.post("/v1/chat/completions", json=ask(alpha=0.5))
    assert "karma" not in reply.json()
    assert refused.status_code == 400
    assert "Leave alpha out" in refused.json()["error"]["message"]


def test_texts_are_continued_as_they_are(engine: LiveScripted, client: TestClient) -> None:
    reply = client.post("/v1/completions", json={"model": MODEL, "prompt": ["a b", "c"], "n": 2, "max_tokens": 2})
    assert [(c["index"], c["text"]) for c in reply.json()["choices"]] == [(i, "One two") for i in range(4)]
    assert sorted(str(request.prompt) for request in engine.requests[-4:]) == ["a b", "a b", "c", "c"]
    assert reply.json()["usage"] == {"prompt_tokens": 3, "completion_tokens": 8, "total_tokens": 11}


def test_a_streamed_text_adds_up(client: TestClient) -> None:
    chunks = events(client.post("/v1/completions", json={"model": MODEL, "prompt": "a", "stream": True}).text)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == WORDS
    assert chunks[-1]["choices"][0]["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("use", "messages", "expected"),
    [
        (True, [{"role": "user", "content": "Hello"}], [system(PERSONA.system_prompt), user("Hello")]),
        (False, [{"role": "user", "content": "Hello"}], [user("Hello")]),
        (
            True,
            [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hello"}],
            [system("Be brief."), user("Hello")],
        ),
        (True, [{"role": "system", "content": ""}, {"role": "user", "content": "Hello"}], [system(""), user("Hello")]),
    ],
)
def test_the_persona_speaks_where_no_system_message_is(use: bool, messages: Any, expected: Any) -> None:
    engine = scripted()
    with in_process(engine, served=Served(MODEL, persona=PERSONA, use_persona=use)) as client:
        client.post("/v1/chat/completions", json={"model": MODEL, "messages": messages})
    assert engine.requests[-1].prompt == expected


def test_an_answer_s_message_can_be_handed_back(client: TestClient) -> None:
    answer = client.post("/v1/chat/completions", json=ask()).json()["choices"][0]["message"]
    again = {"role": "user", "content": [{"type": "text", "text": "And then?"}]}
    more = ask(messages=[{"role": "user", "content": "Hello"}, answer, again])
    assert client.post("/v1/chat/completions", json=more).status_code == 200


def test_the_model_is_listed(client: TestClient) -> None:
    (listed,) = client.get("/v1/models").json()["data"]
    assert listed["id"] == MODEL
    assert client.get(f"/v1/models/{MODEL}").json() == listed
    assert client.get("/v1/models/other").json()["error"]["code"] == "model_not_found"


def test_what_changes_nothing_is_ignored_and_named(client: TestClient) -> None:
    reply = client.post("/v1/chat/completions", json=ask(user="me", metadata={"a": "b"}, tools=[], logit_bias=None))
    assert reply.status_code == 200
    assert reply.headers["x-karma-ignored"] == "metadata, user"


def test_what_a_bug_raises_is_a_500_that_does_not_show_it() -> None:
    def script(request: LiveRequest) -> str:
        return str(1 // (request.sampling.max_new_tokens - 7))

    with in_process(scripted(script)) as client:
        replies = [client.post("/v1/chat/completions", json=ask(max_tokens=7, stream=s)) for s in (False, True)]
        assert client.get("/healthz").status_code == 200
    for reply in replies:
        assert reply.status_code == 500
        assert reply.json()["error"]["type"] == "server_error"
        assert "ZeroDivision" not in reply.text


def test_what_fails_in_the_middle_of_a_stream_is_told_in_it_and_by_healthz() -> None:
    class Breaking(LiveScripted):
        def submit(self, request: LiveRequest) -> QueuedAnswer:
            if request.sampling.max_new_tokens != 7:
                return super().submit(request)
            answer = QueuedAnswer()
            answer.put(Piece("One"))
            answer.fail(EngineError("It broke.", broken=True))
            return answer

    with in_process(Breaking([WORDS])) as client:
        lines = client.post("/v1/chat/completions", json=ask(max_tokens=7, stream=True)).text.split("\n\n")
        health = client.get("/healthz")
        refused = client.post("/v1/chat/completions", json=ask())
    assert json.loads(lines[1].removeprefix("data: "))["choices"][0]["delta"] == {"content": "One"}
    assert json.loads(lines[2].removeprefix("data: "))["error"]["message"] == "It broke."
    assert "[DONE]" not in "".join(lines)
    assert (health.status_code, refused.status_code) == (503, 503)


def test_karma_model_tells_what_can_be_asked() -> None:
    served = Served(MODEL, persona=PERSONA, cap={"site": "mlp"}, drift_reference={"scales": {}})
    with in_process(scripted(), served=served) as client:
        told = client.get("/karma/model").json()
    assert told["persona"] == {"name": PERSONA.name, "system_prompt": PERSONA.system_prompt}
    assert (told["can_alpha"], told["can_drift"], told["can_logprobs"]) == (True, True, False)
    assert (told["model"], told["engine"], told["cap"]) == (MODEL, "scripted", {"site": "mlp"})
