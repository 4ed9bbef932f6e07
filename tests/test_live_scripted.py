"""The scripted live engine, and what every live engine refuses."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from karma_electric.core.errors import InputError
from karma_electric.core.messages import user
from karma_electric.models.engines.live import ClosedError, FullError, LiveAnswer, LiveEngine, LiveRequest, Load
from karma_electric.models.engines.live_scripted import LiveScripted
from karma_electric.models.engines.protocol import Sampling, TokenDrift

WORDS = "Knead it, let it rise, bake it."


def asked(prompt: str = "How?", **more: Any) -> LiveRequest:
    sampling = Sampling(max_new_tokens=more.pop("max_new_tokens", 50), **more.pop("sampling", {}))
    return LiveRequest([user(prompt)], sampling, **more)


def text(answer: LiveAnswer) -> str:
    return "".join(piece.text for piece in answer)


def test_it_answers_in_pieces_that_add_up() -> None:
    engine = LiveScripted([WORDS])
    checked: LiveEngine = engine
    answer = checked.submit(asked())
    pieces = list(answer)
    assert len(pieces) == 7
    assert "".join(p.text for p in pieces) == answer.completion.text == WORDS
    assert [t.text for p in pieces for t in p.tokens] == [p.text for p in pieces]
    assert answer.completion.finish_reason == "stop"
    assert answer.completion.usage.completion_tokens == 7
    assert answer.completion.cap_rate is None
    engine.close()


def test_a_script_may_read_the_request() -> None:
    engine = LiveScripted(lambda request: f"at {request.alpha}", alpha=0.5)
    answers = [engine.submit(asked(alpha=alpha)) for alpha in (None, 0.25)]
    assert [text(answer) for answer in answers] == ["at None", "at 0.25"]
    assert [answer.completion.cap_rate for answer in answers] == [0.5, 0.25]
    engine.close()


def test_an_answer_is_cut_at_its_limit_and_at_a_stop_string() -> None:
    engine = LiveScripted([WORDS])
    cut, stopped = engine.submit(asked(max_new_tokens=2)), engine.submit(asked(stop=("rise", "let it")))
    assert (text(cut), cut.completion.finish_reason) == ("Knead it,", "length")
    assert (text(stopped), stopped.completion.finish_reason) == ("Knead it, ", "stop")
    engine.close()


def test_drift_comes_with_the_tokens_a_step_later() -> None:
    engine = LiveScripted(["a b c"], drift=lambda number: TokenDrift(float(number), 0.0, (1.0,)))
    answer = engine.submit(asked(drift=True))
    pieces = list(answer)
    assert [t.text for t in pieces[0].tokens] == []
    drifts = [t.drift.drift for p in pieces for t in p.tokens if t.drift]
    assert drifts == [0.0, 1.0, 2.0]
    assert answer.completion.drift is not None
    assert answer.completion.drift.mean == 1.0
    engine.close()


def test_cancelling_frees_the_row_for_who_waits() -> None:
    engine = LiveScripted(["word " * 1000], delay_s=30.0, rows=1)
    first, second = engine.submit(asked()), engine.submit(asked("Second?"))
    assert engine.load() == Load(active=1, waiting=1)
    first.cancel()
    first.cancel()
    assert list(first) == []
    second.cancel()
    assert engine.load() == Load(0, 0)
    engine.close()
    assert first.completion.text == ""


def test_a_full_queue_and_a_closed_engine_are_said() -> None:
    engine = LiveScripted([WORDS], delay_s=30.0, rows=1, queue=1)
    answers = [engine.submit(asked()) for _ in range(2)]
    with pytest.raises(FullError, match="2 requests"):
        engine.submit(asked())
    threading.Timer(0.05, engine.close).start()
    for answer in answers:
        with pytest.raises(ClosedError):
            list(answer)
        with pytest.raises(ClosedError):
            _ = answer.completion
    with pytest.raises(ClosedError):
        engine.submit(asked())


def test_closing_lets_answers_finish_while_there_is_time() -> None:
    engine = LiveScripted([WORDS], delay_s=0.001)
    answers = [engine.submit(asked()) for _ in range(6)]
    engine.close(drain_s=60.0)
    assert [text(answer) for answer in answers] == [WORDS] * 6


def test_what_a_script_raises_is_its_own_answers_failure() -> None:
    engine = LiveScripted(lambda request: {"How?": WORDS}[str(request.prompt)])
    bad, good = engine.submit(LiveRequest("No?", Sampling())), engine.submit(LiveRequest("How?", Sampling()))
    with pytest.raises(KeyError):
        list(bad)
    assert text(good) == WORDS
    engine.close()


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (LiveRequest([], Sampling()), "conversation is empty"),
        (LiveRequest("", Sampling()), "no tokens"),
        (asked(alpha=0.5), "runs this model as it is"),
        (asked(drift=True), "measures none"),
        (asked(logprobs=0), "no log-probabilities"),
        (asked(stop=("",)), "1 of them empty"),
        (asked(stop=("a",) * 17), "at most 16"),
        (asked(max_new_tokens=0), "0 new tokens"),
        (asked(max_new_tokens=5000), "more than the model's context"),
        (asked(sampling={"temperature": float("nan")}), "temperature is nan"),
        (asked(sampling={"temperature": -1.0}), "temperature is -1"),
        (asked(sampling={"top_p": 0.0}), "top_p is 0"),
        (asked(sampling={"seed": -1}), "seed is -1"),
    ],
)
def test_what_cannot_be_answered_is_refused(request_: LiveRequest, message: str) -> None:
    engine = LiveScripted([WORDS])
    with pytest.raises(InputError, match=message):
        engine.submit(request_)
    assert engine.requests == []
    engine.close()


@pytest.mark.parametrize("alpha", [-0.1, 1.5, float("nan"), float("inf")])
def test_a_strength_out_of_range_is_refused(alpha: float) -> None:
    engine = LiveScripted([WORDS], alpha=0.5)
    with pytest.raises(InputError, match="expected a number from 0"):
        engine.submit(asked(alpha=alpha))
    engine.close()
