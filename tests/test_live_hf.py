"""The live transformers engine: each request gets what it would get alone, and a failure stays with its own."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import torch

import tiny
from karma_electric.core.errors import InputError
from karma_electric.core.messages import Conversation, assistant, system, user
from karma_electric.models.blocks import SITES, Site
from karma_electric.models.chat_template import prompt_ids
from karma_electric.models.engines import row_cache
from karma_electric.models.engines.hf import HfEngine
from karma_electric.models.engines.live import (
    ClosedError,
    EngineError,
    FullError,
    LiveAnswer,
    LiveEngine,
    LiveRequest,
    Load,
    Piece,
)
from karma_electric.models.engines.live_hf import LiveHf
from karma_electric.models.engines.protocol import Completion, Sampling
from karma_electric.models.loading import load_model, load_tokenizer
from karma_electric.models.refs import BUILTIN, resolve
from karma_electric.steer.drift import measured
from karma_electric.steer.live import live_cap
from karma_electric.steer.spec import Cap

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Models = tuple["PreTrainedModel", "PreTrainedTokenizerBase"]

SCALES = dict.fromkeys((2, 3, 4), 1.5)
QUESTIONS: list[Conversation] = [
    [user("Who?")],
    [system(tiny.PERSONA), user("A nurse needs the medicine today. What should I do?")],
    [user("one"), assistant("A letter."), user("My neighbour hides the truth and does not know why. " * 3)],
    [system(""), user("The farmer gave away the dog again!")],
]
ENDLESS = Sampling(max_new_tokens=300)


@pytest.fixture(scope="module")
def models(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Models:
    return model, tokenizer


@contextmanager
def opened(models: Models, cap: Cap | None = None, **more: Any) -> Iterator[LiveHf]:
    model, tokenizer = models
    hooks = tiny.hook_count(model)
    intervention = None if cap is None else partial(live_cap, cap=cap, scales=SCALES)
    engine = LiveHf(model, tokenizer, intervention=intervention, **more)
    try:
        yield engine
    finally:
        engine.close()
        assert tiny.hook_count(model) == hooks, "the cap is detached"


def asked(question: int = 0, n: int = 12, **more: Any) -> LiveRequest:
    sampling = Sampling(max_new_tokens=n, **more.pop("sampling", {}))
    return LiveRequest(QUESTIONS[question], sampling, **more)


def read(answer: LiveAnswer) -> tuple[str, list[int], Completion]:
    pieces = list(answer)
    text = "".join(piece.text for piece in pieces)
    assert text == answer.completion.text
    return text, [token.id for piece in pieces for token in piece.tokens], answer.completion


def in_company(engine: LiveHf, requests: list[LiveRequest]) -> list[tuple[str, list[int], Completion]]:
    """Answers to requests of which the next one comes after some pieces of one before it."""
    answers, begun = [], []
    for number, request in enumerate(requests):
        answers.append(engine.submit(request))
        pieces = iter(answers[-1])
        begun.append((list(itertools.islice(pieces, number % 3)), pieces))
    results = []
    for answer, (first, rest) in zip(answers, begun, strict=True):
        pieces = [*first, *rest]
        ids = [token.id for piece in pieces for token in piece.tokens]
        results.append(("".join(piece.text for piece in pieces), ids, answer.completion))
    return results


MIXED = [
    asked(question, n, alpha=alpha, drift=drift)
    for (question, alpha), n, drift in zip(
        itertools.product(range(4), (None, 0.0, 0.3, 1.0)),
        itertools.cycle((3, 14, 7, 22, 1)),
        itertools.cycle((0, 1, 1)),
    )
]


# The same as alone


@pytest.mark.parametrize("site", SITES)
def test_in_company_a_request_gets_exactly_what_it_gets_alone(models: Models, site: Site) -> None:
    """Greedy tokens, cap rate and drift, beside requests of other strengths and lengths that come and go."""
    cap = tiny.cap_at(*models, site, alpha=0.7)
    plain = HfEngine(*models, intervention=lambda m, alpha: measured(m, cap, SCALES, alpha=alpha))
    alone = [plain.generate([r.prompt], r.sampling, alpha=r.alpha)[0] for r in MIXED]
    with opened(models, cap, rows=5, chunk=24) as engine:
        assert engine.default_alpha == 0.7
        together = in_company(engine, MIXED)
        assert engine.load() == Load(0, 0)
    for request, expected, (text, ids, completion) in zip(MIXED, alone, together, strict=True):
        assert text.strip() == expected.text
        assert len(ids) == completion.usage.completion_tokens
        assert completion.usage == expected.usage
        assert completion.finish_reason == expected.finish_reason
        assert completion.cap_rate == pytest.approx(expected.cap_rate)
        if not request.drift:
            assert completion.drift is None
            continue
        assert completion.drift is not None
        assert expected.drift is not None
        for mine, its in zip(completion.drift.tokens, expected.drift.tokens, strict=True):
            assert (mine and mine.share_above) == (its and its.share_above)
            assert (mine and mine.drift) == (its and pytest.approx(its.drift, abs=1e-3))
    by_alpha = [completion.text for _, _, completion in together[12:16]]
    assert len(set(by_alpha)) > 1, "strengths make a difference"


def test_a_seed_gives_the_same_answer_alone_and_in_company(models: Models) -> None:
    requests = [
        asked(n % 4, 10 + n, sampling={"temperature": 0.5 + n / 5, "top_p": 1.0 if n % 2 else 0.9, "seed": n})
        for n in range(8)
    ]
    with opened(models) as engine:
        alone = [read(engine.submit(request))[:2] for request in requests]
        together = [result[:2] for result in in_company(engine, requests)]
        other = read(engine.submit(asked(0, 10, sampling={"temperature": 0.5, "top_p": 0.9, "seed": 99})))[:2]
    assert together == alone
    assert other != alone[0]


def test_chunks_of_a_prompt_change_nothing(models: Models) -> None:
    with opened(models, chunk=7) as small, opened(models) as large:
        for question in range(4):
            assert read(small.submit(asked(question)))[:2] == read(large.submit(asked(question)))[:2]


def test_it_is_a_live_engine_without_a_cap_too(models: Models) -> None:
    with opened(models) as engine:
        checked: LiveEngine = engine
        assert not checked.can_alpha
        assert checked.default_alpha is None
        assert checked.context == tiny.CONTEXT
        completion = read(checked.submit(asked()))[2]
        assert completion.cap_rate is None
        with pytest.raises(InputError, match="runs this model as it is"):
            checked.submit(asked(alpha=0.5))
        with pytest.raises(InputError, match="measures none"):
            checked.submit(asked(drift=True))


def test_raw_text_is_continued_without_a_template(models: Models) -> None:
    model, tokenizer = models
    ids = tokenizer("The nurse hides")["input_ids"]
    with opened(models) as engine:
        answer = engine.submit(LiveRequest("The nurse hides", Sampling(max_new_tokens=1)))
        (token,) = read(answer)[1]
        with torch.no_grad():
            assert token == int(model(torch.tensor([ids])).logits[0, -1].argmax())
        assert answer.completion.usage.prompt_tokens == len(ids)


# Text, tokens, log-probabilities


def test_the_text_ends_before_a_stop_string_that_lies_across_tokens(models: Models) -> None:
    with opened(models) as engine:
        text, _, whole = read(engine.submit(asked(1, 20)))
        stop = text[6:11]
        answer = engine.submit(asked(1, 20, stop=("never said", stop), logprobs=0))
        pieces = list(answer)
    assert answer.completion.text == text[: text.index(stop)]
    assert answer.completion.finish_reason == "stop"
    assert answer.completion.usage.completion_tokens < whole.usage.completion_tokens
    said = "".join(token.text for piece in pieces for token in piece.tokens)
    assert said.startswith(answer.completion.text)
    assert len(said) < len(answer.completion.text) + len(stop), "no token that lies behind"


def test_log_probabilities_are_the_models_own(models: Models) -> None:
    """Before temperature and top_p, of the token that was taken and of the likeliest."""
    model, tokenizer = models
    sampling = {"temperature": 1.3, "top_p": 0.9, "seed": 3}
    with opened(models) as engine:
        answer = engine.submit(asked(1, 8, logprobs=3, sampling=sampling))
        tokens = [token for piece in answer for token in piece.tokens]
    prompt = prompt_ids(tokenizer, QUESTIONS[1])
    with torch.no_grad():
        logits = model(torch.tensor([prompt + [t.id for t in tokens]])).logits[0, len(prompt) - 1 :]
    for token, row in zip(tokens, logits.log_softmax(-1), strict=False):
        assert token.logprob == pytest.approx(float(row[token.id]), abs=1e-4)
        values, ids = row.topk(3)
        assert [text for text, _ in token.top] == [tokenizer.decode([i]) for i in ids.tolist()]
        assert [p for _, p in token.top] == pytest.approx(values.tolist(), abs=1e-4)


def test_every_end_of_turn_ends_an_answer(fresh_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    with opened((fresh_model, tokenizer)) as engine:
        ids = read(engine.submit(asked(0, 20)))[1]
    stop = next(token for token in ids[4:] if token not in ids[:4])
    fresh_model.generation_config.eos_token_id = [tokenizer.eos_token_id, stop]
    with opened((fresh_model, tokenizer)) as engine:
        _, cut, completion = read(engine.submit(asked(0, 20)))
    assert cut == ids[: ids.index(stop)]
    assert completion.finish_reason == "stop"


# Coming and going


def test_cancelling_frees_the_row(models: Models) -> None:
    with opened(models, rows=1) as engine:
        first, second, third = (engine.submit(LiveRequest(q, ENDLESS)) for q in QUESTIONS[:3])
        pieces = iter(first)
        next(pieces)
        assert engine.load() == Load(active=1, waiting=2)
        second.cancel()
        first.cancel()
        assert list(pieces) == []
        next(iter(third))
        assert 0 < first.completion.usage.completion_tokens < 300
        assert second.completion.usage.completion_tokens == 0
        third.cancel()
        assert read(engine.submit(asked()))[0]


def test_too_many_are_refused(models: Models) -> None:
    with opened(models, rows=1, queue=1) as engine:
        first = engine.submit(LiveRequest(QUESTIONS[0], ENDLESS))
        second = engine.submit(LiveRequest(QUESTIONS[1], ENDLESS))
        with pytest.raises(FullError):
            engine.submit(asked())
        first.cancel()
        second.cancel()


def test_what_does_not_fit_is_refused(models: Models) -> None:
    length = len(prompt_ids(models[1], QUESTIONS[1]))
    with opened(models, context=length + 4) as engine:
        assert read(engine.submit(asked(1, 4)))[0]
        with pytest.raises(InputError, match=f"{length} tokens; with 5 new ones that is more than"):
            engine.submit(asked(1, 5))
        with pytest.raises(InputError, match="half a surrogate"):
            engine.submit(LiveRequest([user("\ud800")], Sampling()))


def test_closing_waits_for_answers_or_gives_them_up(models: Models) -> None:
    with opened(models) as engine:
        answers = [engine.submit(asked(n)) for n in range(4)]
        engine.close(drain_s=60.0)
        assert all(read(answer)[0] for answer in answers)
        with pytest.raises(ClosedError):
            engine.submit(asked())
    with opened(models) as engine:
        answer = engine.submit(LiveRequest(QUESTIONS[0], ENDLESS))
        pieces = iter(answer)
        next(pieces)
        engine.close()
        with pytest.raises(ClosedError):
            list(pieces)


def passes(model: PreTrainedModel, act: Callable[[torch.Tensor], None]) -> Any:
    """Call `act` with the input ids [rows, tokens] of every forward pass."""
    return model.register_forward_pre_hook(lambda _, __, kwargs: act(kwargs["input_ids"]), with_kwargs=True)


def test_a_long_prompt_does_not_hold_up_the_others(models: Models) -> None:
    seen: list[int] = []
    with opened(models, chunk=16) as engine:
        first = engine.submit(LiveRequest(QUESTIONS[0], ENDLESS))
        next(iter(first))
        handle = passes(models[0], lambda ids: seen.append(ids.shape[1]))
        second = engine.submit(asked(2, 2))
        read(second)
        handle.remove()
        first.cancel()
    assert sum(n > 1 for n in seen) > 3, "in several chunks"
    assert not any(a > 1 and b > 1 for a, b in itertools.pairwise(seen)), "a step between two of them"


# What goes wrong


def failing(models: Models, error: BaseException, when: Callable[[torch.Tensor], bool]) -> Any:
    def act(ids: torch.Tensor) -> None:
        if when(ids):
            raise error

    return passes(models[0], act)


def test_a_prompt_that_fails_fails_alone(models: Models) -> None:
    length = len(prompt_ids(models[1], QUESTIONS[1]))
    with opened(models) as engine:
        handle = failing(models, RuntimeError("out of luck"), lambda ids: ids.shape[1] == length)
        try:
            good, bad, also = (engine.submit(asked(n)) for n in (0, 1, 2))
            with pytest.raises(EngineError, match="out of luck") as caught:
                list(bad)
            assert not caught.value.broken
            assert read(good)[0]
            assert read(also)[0]
        finally:
            handle.remove()
        assert read(engine.submit(asked(1)))[0]


def test_where_memory_is_short_the_last_to_join_gives_way(models: Models) -> None:
    with opened(models) as engine:
        expected = read(engine.submit(asked(0, 40)))[0]
        handle = failing(models, torch.OutOfMemoryError("too much"), lambda ids: ids.shape[0] > 1)
        try:
            first = engine.submit(asked(0, 40))
            pieces = iter(first)
            begun = next(pieces)
            with pytest.raises(EngineError, match="not enough memory"):
                list(engine.submit(asked(1)))
            assert "".join(p.text for p in (begun, *pieces)) == expected
        finally:
            handle.remove()


@pytest.mark.parametrize("growing", ["join", "reserve"])
def test_where_memory_ends_while_the_cache_grows_only_the_last_to_join_gives_way(
    models: Models, monkeypatch: pytest.MonkeyPatch, growing: str
) -> None:
    """Some blocks have larger buffers by then, and others have not."""
    monkeypatch.setattr(row_cache, "_ROOM", 4)
    n_rows = {"join": 1, "reserve": 2}[growing]  # that the cache has when a second row makes it grow
    moves: list[int] = []
    move = row_cache._Layer.move

    def grow(layer: Any, rows: int, width: int, n_tokens: int) -> None:
        if rows > 1 and len(layer.columns.lengths) == n_rows:
            moves.append(rows)
            if len(moves) == 3:
                raise torch.OutOfMemoryError("too much")
        move(layer, rows, width, n_tokens)

    with opened(models) as engine:
        expected = read(engine.submit(asked(0, 120)))[0]
        monkeypatch.setattr(row_cache._Layer, "move", grow)
        first = engine.submit(asked(0, 120))
        pieces = iter(first)
        begun = next(pieces)
        with pytest.raises(EngineError, match="not enough memory"):
            list(engine.submit(asked(3, 100)))
        assert "".join(p.text for p in (begun, *pieces)) == expected
        assert len(moves) >= 3


def test_a_step_that_fails_fails_its_rows_and_not_the_engine(models: Models) -> None:
    with opened(models) as engine:
        handle = failing(models, ValueError("no such device"), lambda ids: ids.shape[1] == 1)
        try:
            for answer in [engine.submit(asked(n)) for n in (0, 1)]:
                with pytest.raises(EngineError, match="no such device"):
                    list(answer)
        finally:
            handle.remove()
        assert read(engine.submit(asked()))[0]


def test_logits_that_are_no_numbers_are_said(fresh_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    with opened((fresh_model, tokenizer)) as engine:
        fresh_model.model.norm.weight.data[0] = float("nan")
        with pytest.raises(EngineError, match="not finite"):
            list(engine.submit(asked()))


def test_an_engine_that_breaks_leaves_nobody_waiting(models: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(models, rows=1) as engine:
        answers = [engine.submit(LiveRequest(q, ENDLESS)) for q in QUESTIONS[:2]]
        pieces: Iterator[Piece] = iter(answers[0])
        next(pieces)
        monkeypatch.setattr(engine, "_decode", lambda: 1 / 0)
        for rest in (pieces, answers[1]):
            with pytest.raises(EngineError, match="ZeroDivisionError") as caught:
                list(rest)
            assert caught.value.broken
        with pytest.raises(EngineError, match="stopped working"):
            engine.submit(asked())
        assert engine.load() == Load(0, 0)


def test_models_with_more_than_keys_and_values_are_refused(
    fresh_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    fresh_model.config.layer_types = ["full_attention", "linear_attention"] * 3
    with pytest.raises(InputError, match="linear_attention"):
        LiveHf(fresh_model, tokenizer)


@pytest.mark.slow
def test_the_embedded_model_answers_in_company_as_alone() -> None:
    """In float32, 12 requests of four strengths."""
    folder = resolve(BUILTIN).path
    models = (load_model(folder, dtype="float32", device="cpu"), load_tokenizer(folder))
    cap = tiny.cap_at(*models, "mlp", layers=(21, 22, 23), alpha=0.5)
    requests = [
        LiveRequest(chat[:-1], Sampling(max_new_tokens=8 + 3 * n), alpha=(None, 0.0, 0.25, 1.0)[n % 4])
        for n, chat in enumerate(tiny.chats(12, seed=2))
    ]
    intervention = partial(live_cap, cap=cap)
    engine = LiveHf(*models, intervention=intervention, rows=8)
    alone = [read(engine.submit(request))[:2] for request in requests]
    together = [result[:2] for result in in_company(engine, requests)]
    engine.close()
    assert together == alone
    plain = HfEngine(
        *models, intervention=lambda m, alpha: measured(m, cap, dict.fromkeys((21, 22, 23), 1.0), alpha=alpha)
    )
    assert [t[0].strip() for t in alone[:4]] == [
        plain.generate([r.prompt], r.sampling, alpha=r.alpha)[0].text for r in requests[:4]
    ]
