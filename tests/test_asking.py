"""Asking a model: endpoints that behave badly are named and outlived, and one that is gone stops the work."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("inspect_ai")

from chat_server import ChatServer, Responder, Response, chat_server, half_json, html, refused, said
from karma_electric.core.errors import InputError, MissingError
from karma_electric.core.messages import user
from karma_electric.data.judge import response_schema
from karma_electric.models.asking import (
    Asker,
    Endpoint,
    NoAnswer,
    Outage,
    Said,
    back_off_s,
    in_parallel,
    parse_model_args,
)

# Inspect calls tenacity in a form that tenacity means to drop.
pytestmark = pytest.mark.filterwarnings("ignore:The 'initial' parameter is deprecated:DeprecationWarning")


@pytest.fixture(autouse=True)
def no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_API_KEY", raising=False)
    monkeypatch.delenv("LOCAL_BASE_URL", raising=False)


def asker(url: str, **settings: Any) -> Asker:
    return Asker(Endpoint("openai-api/local/judge", base_url=url, **settings), wait_s=lambda _: 0.01)


def ask(model: Asker, prompt: str = "hello", **how: Any) -> Said:
    async def once() -> Said:
        async with model:
            return await model.ask([user(prompt)], **how)

    return asyncio.run(once())


def in_turn(*responses: Response) -> Responder:
    """Answer with each response in turn; the last repeats."""
    remaining: Iterator[Response] = iter(responses)

    def respond(_: dict[str, Any]) -> Response:
        return next(remaining, responses[-1])

    return respond


def fails(respond: Responder, **settings: Any) -> tuple[NoAnswer, ChatServer]:
    with chat_server(respond) as server:
        with pytest.raises(NoAnswer) as caught:
            ask(asker(server.url, **settings))
        return caught.value, server


# good answers


def test_text_finish_and_tokens_come_back() -> None:
    with chat_server(lambda _: said("Yes.")) as server:
        assert ask(asker(server.url)) == Said("Yes.", "stop", 100, 20)


def test_settings_are_sent_with_the_request() -> None:
    with chat_server(lambda _: said("Yes.")) as server:
        ask(asker(server.url, temperature=0.3, top_p=0.9, max_tokens=77), seed=5)
    (request,) = server.requests
    assert (request["temperature"], request["top_p"], request["max_tokens"], request["seed"]) == (0.3, 0.9, 77, 5)


def test_half_a_surrogate_pair_is_no_character() -> None:
    with chat_server(lambda _: said("cut \ud83d")) as server:
        assert ask(asker(server.url)).text == "cut \ufffd"


def test_an_answer_that_was_cut_off_says_so() -> None:
    with chat_server(lambda _: said("Yes, bec", finish_reason="length")) as server:
        assert ask(asker(server.url)).finish == "length"


def test_a_server_that_needs_no_key_needs_none() -> None:
    with chat_server(lambda _: said("Yes.")) as server:
        assert ask(asker(server.url)).text == "Yes."


# bad answers


@pytest.mark.parametrize(
    ("response", "kind", "reason"),
    [
        (html(), "garbled", "Gateway login"),
        (html(502), "server-error", "502"),
        (half_json(), "garbled", "not the chat API's"),
        (Response(b""), "garbled", "not the chat API's"),
        (Response(b"[1, 2]"), "garbled", "not the chat API's"),
        (Response(b'{"choices": []}'), "garbled", "not the chat API's"),
        (Response(b'{"error": {"message": "boom"}}'), "garbled", "not the chat API's"),
        (refused(500, "boom"), "server-error", "boom"),
    ],
    ids=["html", "html-502", "half-json", "empty-body", "list", "no-choices", "error-with-200", "500"],
)
def test_an_answer_that_is_none_is_named_after_all_retries(response: Response, kind: str, reason: str) -> None:
    failure, server = fails(lambda _: response, retries=2)
    assert failure.kind == kind
    assert reason in failure.reason
    assert len(server.requests) == 3


@pytest.mark.parametrize("response", [html(), html(502), half_json(), refused(500, "boom")])
def test_an_endpoint_that_recovers_is_outlived(response: Response) -> None:
    with chat_server(in_turn(response, response, said("Yes."))) as server:
        assert ask(asker(server.url, retries=2)).text == "Yes."


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_refusal_is_not_asked_again(status: int) -> None:
    failure, server = fails(lambda _: refused(status, "no such model"), retries=5)
    assert failure.kind == "refused"
    assert "no such model" in failure.reason
    assert len(server.requests) == 1


def test_an_endpoint_that_hangs_is_given_up_after_the_time_limit() -> None:
    began = time.monotonic()
    failure, server = fails(lambda _: said("late", pause_s=3), timeout_s=1, retries=1)
    assert (failure.kind, failure.reason) == ("timeout", "no answer within 1 s")
    assert len(server.requests) == 2
    assert time.monotonic() - began < 4


def test_an_address_where_nothing_listens_is_unreachable() -> None:
    with pytest.raises(NoAnswer, match="Connection error") as caught:
        ask(asker("http://127.0.0.1:9/v1", retries=0))
    assert caught.value.kind == "unreachable"


# rate limits


def test_a_rate_limit_waits_as_long_as_the_server_says_and_costs_no_retry() -> None:
    limited = refused(429, "slow down", {"Retry-After": "0.5"})
    with chat_server(in_turn(limited, limited, said("Yes."))) as server:
        began = time.monotonic()
        assert ask(asker(server.url, retries=0)).text == "Yes."
    assert 1.0 <= time.monotonic() - began < 5
    assert len(server.requests) == 3


def test_a_rate_limit_holds_back_the_other_requests_too() -> None:
    times: list[float] = []

    def respond(_: dict[str, Any]) -> Response:
        times.append(time.monotonic())
        return refused(429, "slow down", {"Retry-After": "0.6"}) if len(times) == 1 else said("Yes.")

    async def both(model: Asker) -> None:
        async with model:

            async def later() -> None:
                await asyncio.sleep(0.3)
                await model.ask([user("second")])

            await asyncio.gather(model.ask([user("first")]), later())

    with chat_server(respond) as server:
        asyncio.run(both(asker(server.url, retries=0)))
    assert min(times[1:]) - times[0] >= 0.5


def test_waits_double_up_to_a_minute() -> None:
    assert [back_off_s(times) for times in (1, 2, 3, 4)] == [1, 2, 4, 8]
    assert back_off_s(50) == 60


# structured output


def test_a_response_schema_is_sent() -> None:
    with chat_server(lambda _: said("{}")) as server:
        model = asker(server.url)
        ask(model, schema=response_schema())
    schema = server.requests[0]["response_format"]["json_schema"]
    assert set(schema["schema"]["required"]) >= {"suffering", "clarity"}
    assert model.structured is True


@pytest.mark.parametrize("status", [400, 422, 500])
def test_an_endpoint_that_refuses_the_schema_is_asked_without_from_then_on(status: int) -> None:
    def respond(request: dict[str, Any]) -> Response:
        return refused(status, "response_format?") if "response_format" in request else said("{}")

    async def twice(model: Asker) -> None:
        async with model:
            for _ in range(2):
                await model.ask([user("hello")], schema=response_schema())

    with chat_server(respond) as server:
        model = asker(server.url)
        asyncio.run(twice(model))
    assert ["response_format" in request for request in server.requests] == [True, False, False]
    assert model.structured is False


def test_a_refusal_that_has_another_reason_leaves_the_schema_in_use() -> None:
    with chat_server(lambda _: refused(400, "too long")) as server:
        model = asker(server.url)
        with pytest.raises(NoAnswer, match="too long"):
            ask(model, schema=response_schema())
    assert model.structured is None


def test_our_own_engines_are_never_sent_a_schema(tmp_path: Any) -> None:
    (tmp_path / "s.json").write_text('[{"answers": ["yes"]}]')
    model = Asker(Endpoint(f"karma/scripted:{tmp_path / 's.json'}"))
    assert ask(model, schema=response_schema()).text == "yes"


# what cannot be asked at all


def test_a_missing_key_is_named() -> None:
    with pytest.raises(MissingError, match="LOCAL_API_KEY"):
        Asker(Endpoint("openai-api/local/judge"))


@pytest.mark.parametrize("name", ["gpt", "nowhere/gpt"])
def test_a_name_that_is_none_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=name):
        Asker(Endpoint(name))


def test_an_argument_that_a_provider_does_not_take_is_refused() -> None:
    with pytest.raises(InputError, match="wings"):
        Asker(Endpoint("ollama/x", model_args={"wings": 2}))


def test_model_arguments_are_read_as_json_or_text() -> None:
    assert parse_model_args(["alpha=0.5", "cap=runs/demo/axis", "stream=true", "a=b=c"]) == {
        "alpha": 0.5,
        "cap": "runs/demo/axis",
        "stream": True,
        "a": "b=c",
    }
    with pytest.raises(InputError, match="no '='"):
        parse_model_args(["alpha"])


# outages


@pytest.fixture
def outage() -> Callable[[int], Outage]:
    class Connections:
        name = "m"

        def __init__(self, max_connections: int) -> None:
            self.max_connections = max_connections

    return lambda connections: Outage(Connections(connections))  # type: ignore[arg-type]


def count_until_stopped(notice: Callable[[], None], most: int = 1000) -> int:
    for number in range(1, most):
        try:
            notice()
        except MissingError:
            return number
    return most


@pytest.mark.parametrize("kind", ["unreachable", "timeout", "garbled", "refused", "server-error"])
def test_the_first_failures_all_of_one_kind_stop_the_work(outage: Callable[[int], Outage], kind: Any) -> None:
    watch = outage(4)
    assert count_until_stopped(lambda: watch.failed(NoAnswer(kind, "same"))) == 4


def test_failures_of_different_kinds_do_not(outage: Callable[[int], Outage]) -> None:
    watch = outage(4)
    kinds: Any = itertools.cycle(("unreachable", "timeout"))
    assert count_until_stopped(lambda: watch.failed(NoAnswer(next(kinds), "x")), most=21) == 21


def test_refusals_with_different_reasons_do_not(outage: Callable[[int], Outage]) -> None:
    watch = outage(4)
    numbers = itertools.count()
    refused = lambda: watch.failed(NoAnswer("refused", f"{next(numbers)} tokens are too many"))  # noqa: E731
    assert count_until_stopped(refused, most=21) == 21


def test_an_answer_in_between_begins_the_count_again(outage: Callable[[int], Outage]) -> None:
    watch = outage(4)
    watch.answered()
    for _ in range(5):
        for _ in range(10):
            watch.failed(NoAnswer("timeout", "x"))
        watch.answered()
    assert count_until_stopped(lambda: watch.failed(NoAnswer("timeout", "x"))) == 16


def test_after_an_answer_refusals_never_stop_the_work(outage: Callable[[int], Outage]) -> None:
    watch = outage(4)
    watch.answered()
    assert count_until_stopped(lambda: watch.failed(NoAnswer("refused", "same")), most=100) == 100


# in parallel


def test_items_are_worked_on_so_many_at_a_time_and_taken_only_when_there_is_room() -> None:
    taken: list[int] = []
    running = most = 0

    def items() -> Iterator[int]:
        for number in range(20):
            taken.append(number)
            yield number

    async def work(number: int) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        assert len(taken) <= number + 3
        await asyncio.sleep(0.001)
        running -= 1

    asyncio.run(in_parallel(items(), work, connections=3))
    assert (most, len(taken)) == (3, 20)


def test_the_first_error_ends_the_work() -> None:
    done: list[int] = []

    async def work(number: int) -> None:
        await asyncio.sleep(0.001)
        if number == 5:
            raise MissingError("gone")
        done.append(number)

    with pytest.raises(MissingError, match="gone"):
        asyncio.run(in_parallel(range(1000), work, connections=2))
    assert len(done) < 10
