"""The live llama.cpp engine: the answers of the engine below it, in pieces, many at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from karma_electric.core.errors import InputError
from karma_electric.core.messages import Conversation, system, user
from karma_electric.models.chat_template import prompt_ids
from karma_electric.models.engines.live import ClosedError, LiveEngine, LiveRequest, Load
from karma_electric.models.engines.live_llamacpp import LiveLlamaCpp
from karma_electric.models.engines.llamacpp import LlamaCppEngine
from karma_electric.models.engines.protocol import Sampling

QUESTIONS: list[Conversation] = [
    [system(tiny.PERSONA), user("My neighbour lost the medicine today.")],
    [user("Hello?")],
    [user("Our teacher remembers the truth.")],
]


@pytest.fixture(scope="module")
def below(tiny_gguf: Path) -> Iterator[LlamaCppEngine]:
    engine = LlamaCppEngine(tiny_gguf, context=256, slots=2, threads=1, precision="exact")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def engine(tiny_gguf: Path) -> Iterator[LiveLlamaCpp]:
    live = LiveLlamaCpp(tiny_gguf, rows=2, queue=20, context=256, threads=1, precision="exact")
    yield live
    live.close()


def asked(question: int = 0, n: int = 12, **more: Any) -> LiveRequest:
    return LiveRequest(QUESTIONS[question], Sampling(max_new_tokens=n, **more.pop("sampling", {})), **more)


def test_answers_are_those_of_the_engine_below(below: LlamaCppEngine, engine: LiveLlamaCpp) -> None:
    checked: LiveEngine = engine
    for more in ({}, {"sampling": {"temperature": 1.0, "seed": 5}}):
        answers = [checked.submit(asked(question, **more)) for question in range(3)]
        for request, answer in zip((asked(question, **more) for question in range(3)), answers, strict=True):
            text = "".join(piece.text for piece in answer)
            (expected,) = below.generate([request.prompt], request.sampling)
            rest = expected.text.removeprefix(text)
            assert not rest or rest[0] == "\ufffd", "but for what it took for part of a character"
            assert answer.completion == replace(expected, text=text)
    assert engine.load() == Load(0, 0)


def test_log_probabilities_and_ids_are_the_models(engine: LiveLlamaCpp, model, tokenizer) -> None:
    answer = engine.submit(asked(0, 6, logprobs=2, sampling={"temperature": 1.3, "seed": 2}))
    tokens = [token for piece in answer for token in piece.tokens]
    assert tokens
    prompt = prompt_ids(tokenizer, QUESTIONS[0])
    with torch.no_grad():
        first = model(torch.tensor([prompt])).logits[0, -1].log_softmax(-1)
    assert tokens[0].logprob == pytest.approx(float(first[tokens[0].id]), abs=1e-3)
    assert [p for _, p in tokens[0].top] == pytest.approx(first.topk(2).values.tolist(), abs=1e-3)
    (only,) = [t for p in engine.submit(asked(0, 1, logprobs=0)) for t in p.tokens]
    assert only.top == ()
    assert only.logprob is not None


def test_the_text_ends_before_a_stop_string(engine: LiveLlamaCpp) -> None:
    whole = engine.submit(asked(1, 20))
    text = "".join(piece.text for piece in whole)
    answer = engine.submit(asked(1, 20, stop=(text[5:9],)))
    assert "".join(piece.text for piece in answer) == text[: text.index(text[5:9])]
    assert answer.completion.finish_reason == "stop"


def test_cancelling_ends_the_decoding_and_lets_the_next_one_in(engine: LiveLlamaCpp) -> None:
    answers = [engine.submit(asked(question, 150, sampling={"temperature": 1.0})) for question in (0, 1, 2)]
    next(iter(answers[0]))
    for answer in answers:
        answer.cancel()
        assert list(answer) == []
    assert answers[0].completion.usage.completion_tokens < 150
    assert "".join(piece.text for piece in engine.submit(asked()))


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (asked(alpha=0.5), "runs this model as it is"),
        (asked(alpha=0.0), "runs this model as it is"),
        (asked(drift=True), "measures none"),
        (asked(n=250), "more than the model's context of 256"),
        (LiveRequest("", Sampling()), "no tokens"),
    ],
)
def test_what_it_cannot_do_is_refused(engine: LiveLlamaCpp, request_: LiveRequest, message: str) -> None:
    with pytest.raises(InputError, match=message):
        engine.submit(request_)


def test_closing_gives_up_what_is_not_done(tiny_gguf: Path) -> None:
    live = LiveLlamaCpp(tiny_gguf, rows=1, context=256, threads=1)
    answers = [live.submit(asked(question, 150, sampling={"temperature": 1.0})) for question in (0, 1)]
    next(iter(answers[0]))
    live.close()
    with pytest.raises(ClosedError):
        list(answers[1])
    with pytest.raises(ClosedError):
        live.submit(asked())
