"""500 requests, 32 at a time, of mixed strengths, through both APIs, some of whose clients vanish: nothing is lost or
crossed.
"""

from __future__ import annotations

import asyncio
import json
import random
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

import tiny
from karma_electric.cli.serve_model import Opening, open_model
from karma_electric.models import loading
from karma_electric.models.engines.live import LiveEngine, LiveRequest
from karma_electric.steer.axis import save_axis
from karma_electric.steer.spec import AXIS_FILE, CAP_FILE, save_spec
from serving import MODEL, on_a_port, scripted, soon

REQUESTS, TOGETHER = 500, 32
ALPHAS = (None, 0.0, 0.3, 0.5, 1.0)
CHAT, GENERATE = "/v1/chat/completions", "/api/generate"


@dataclass(frozen=True)
class Question:
    """One request: what to ask, how, and whether its client vanishes before the end."""

    number: int
    text: str
    alpha: float | None
    path: str
    stream: bool
    vanishes: bool

    def body(self, max_tokens: int) -> dict[str, Any]:
        strength = {} if self.alpha is None else {"alpha": self.alpha}
        if self.path == CHAT:
            messages = [{"role": "user", "content": self.text}]
            return {"model": MODEL, "messages": messages, "stream": self.stream, "temperature": 0,
                    "max_tokens": max_tokens, **strength}  # fmt: skip
        options = {"temperature": 0, "num_predict": max_tokens, **strength}
        return {"model": MODEL, "prompt": self.text, "stream": self.stream, "options": options}


def questions(n: int, texts: list[str]) -> list[Question]:
    generator = random.Random(0)
    return [
        Question(
            number,
            texts[number % len(texts)],
            generator.choice(ALPHAS),
            generator.choice((CHAT, GENERATE)),
            stream=generator.random() < 0.5,
            vanishes=generator.random() < 0.15,
        )
        for number in range(n)
    ]


def read(question: Question, raw: str) -> tuple[str, float]:
    """Text and strength of a reply."""
    if question.path == CHAT and question.stream:
        chunks = [json.loads(line[6:]) for line in raw.split("\n\n") if line and line != "data: [DONE]"]
        assert raw.endswith("data: [DONE]\n\n")
        text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
        return text, chunks[-1]["karma"]["alpha"]
    if question.path == CHAT:
        reply = json.loads(raw)
        return reply["choices"][0]["message"]["content"], reply["karma"]["alpha"]
    lines = [json.loads(line) for line in raw.splitlines()]
    assert lines[-1]["done"]
    return "".join(line["response"] for line in lines), lines[-1]["karma"]["alpha"]


async def ask_all(url: str, asked: list[Question], max_tokens: int) -> dict[int, tuple[str, float]]:
    """Replies by number, of those whose clients stayed."""
    replies: dict[int, tuple[str, float]] = {}
    places = asyncio.Semaphore(TOGETHER)

    async def one(client: httpx.AsyncClient, question: Question) -> None:
        async with places, client.stream("POST", question.path, json=question.body(max_tokens)) as reply:
            assert reply.status_code == 200
            if question.vanishes:
                async for _ in reply.aiter_bytes(16):
                    return
            replies[question.number] = read(question, (await reply.aread()).decode())

    limits = httpx.Limits(max_connections=TOGETHER)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        await asyncio.gather(*(one(client, question) for question in asked))
    return replies


def nothing_is_left(engine: LiveEngine, app: FastAPI, asked: int) -> None:
    service = app.state.service
    soon(lambda: engine.load().active + engine.load().waiting + service.admission.taken == 0, "all answers have ended")

    def counted() -> float:
        samples = service.metrics.requests.collect()[0].samples
        return sum(s.value for s in samples if s.name.endswith("_total") and s.labels["route"] in (CHAT, GENERATE))

    soon(lambda: counted() == asked, "every request is counted once")
    states = {s.labels["status"] for s in service.metrics.requests.collect()[0].samples}
    assert states <= {"200", "499"}


def said(request: LiveRequest) -> str:
    """An answer that only this question at this strength has."""
    assert not isinstance(request.prompt, str)
    return f"{request.prompt[-1].content} at {request.alpha} " + "and so on " * (len(request.prompt[-1].content) % 7)


@pytest.mark.slow
def test_nothing_is_lost_or_crossed() -> None:
    engine = scripted(said, rows=8, delay_s=0.0005)
    asked = questions(REQUESTS, [f"question {number}" for number in range(REQUESTS)])
    with on_a_port(engine) as (url, app):
        replies = asyncio.run(ask_all(url, asked, 100))
        nothing_is_left(engine, app, REQUESTS)
    stayed = {question.number: question for question in asked if not question.vanishes}
    assert set(replies) == set(stayed)
    for number, question in stayed.items():
        text, alpha = replies[number]
        assert text.split() == f"{question.text} at {question.alpha} {'and so on ' * (len(question.text) % 7)}".split()
        assert alpha == (0.5 if question.alpha is None else question.alpha)


@pytest.mark.slow
def test_a_real_model_loses_and_crosses_nothing(
    tiny_path: Path, tmp_path: Path, model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(loading, "pick_dtype", lambda *_: torch.float32)
    save_axis(tiny.random_axis(), tmp_path / AXIS_FILE)
    save_spec(tiny.cap_at(model, tokenizer, "mlp").spec, tmp_path / CAP_FILE)
    engine, served = open_model(str(tiny_path), Opening(cap=tmp_path, name=MODEL, drift=False))
    texts = [prompt.text for prompt in tiny.prompts(20)]
    asked = questions(REQUESTS, texts)
    with on_a_port(engine, served=replace(served, use_persona=False)) as (url, app):
        alone = {}
        for question in {(q.text, q.alpha): replace(q, vanishes=False) for q in asked}.values():
            (reply,) = asyncio.run(ask_all(url, [question], 12)).values()
            alone[question.text, question.alpha] = reply
        replies = asyncio.run(ask_all(url, asked, 12))
        nothing_is_left(engine, app, REQUESTS + len(alone))
    stayed = {question.number: question for question in asked if not question.vanishes}
    assert set(replies) == set(stayed)
    assert len({text for text, _ in alone.values()}) > 30, "questions and strengths make a difference"
    for number, question in stayed.items():
        assert replies[number] == alone[question.text, question.alpha]
