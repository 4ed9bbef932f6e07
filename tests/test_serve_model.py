"""A real model behind the server: opened as `karma serve` opens it, asked by many, each answered as if alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from fastapi.testclient import TestClient

import tiny
from karma_electric.cli.serve_model import Opening, model_id, open_model
from karma_electric.core.errors import InputError, MissingError
from karma_electric.core.jsonl import append_jsonl
from karma_electric.export.gguf import export_gguf
from karma_electric.models import loading
from karma_electric.serve.settings import Persona
from karma_electric.steer.axis import save_axis
from karma_electric.steer.responses import FILE, Response
from karma_electric.steer.spec import AXIS_FILE, CAP_FILE, save_spec
from serving import in_process
from test_cli import RECIPE

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CHAT = "/v1/chat/completions"
TEMPLATE_TOKENS = "<|im_end|>\n<|im_start|>assistant\nYes.<|im_end|>\n<|im_start|>user\n"


@pytest.fixture(scope="module")
def cap_path(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A cap with its axis and the responses it was calibrated on."""
    folder = tmp_path_factory.mktemp("axis")
    save_axis(tiny.random_axis(), folder / AXIS_FILE)
    save_spec(replace(tiny.cap_at(model, tokenizer, "mlp").spec, cap_rate={"mean": 0.5}), folder / CAP_FILE)
    for split in ("calibration", "heldout"):
        chats = enumerate(tiny.chats(6, seed=len(split)))
        append_jsonl(
            folder / FILE,
            (asdict(Response(f"{split}{n}", split, c[0].content, c[1].content, c[2].content)) for n, c in chats),
        )
    return folder


@pytest.fixture(scope="module")
def client(tiny_path: Path, cap_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TestClient]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KARMA_CACHE", str(tmp_path_factory.mktemp("cache")))
        # in bfloat16 two tokens can be as good as equal, and the size of a batch decide between them
        patch.setattr(loading, "pick_dtype", lambda *_: torch.float32)
        engine, served = open_model(str(tiny_path), Opening(cap=cap_path, name="tiny"))
    with in_process(engine, served=served) as client:
        yield client


def asked(number: int, **more: Any) -> dict[str, Any]:
    body: dict[str, Any] = {"model": "tiny", "temperature": 0, "max_tokens": 16}
    body["messages"] = [{"role": "user", "content": tiny.prompts(40)[number].text}]
    return body | more


def answer(client: TestClient, body: dict[str, Any]) -> tuple[str, str, float]:
    """Text, reason and cap rate of an answer, streamed or not."""
    reply = client.post(CHAT, json=body)
    assert reply.status_code == 200, reply.text
    if not body.get("stream"):
        (choice,) = reply.json()["choices"]
        return choice["message"]["content"], choice["finish_reason"], reply.json()["karma"]["cap_rate"]
    chunks = [json.loads(line[6:]) for line in reply.text.split("\n\n")[:-2]]
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    return text, chunks[-1]["choices"][0]["finish_reason"], chunks[-1]["karma"]["cap_rate"]


def test_many_at_once_of_any_strength_get_what_they_get_alone(client: TestClient) -> None:
    bodies = [asked(n % 5, alpha=(0.0, 0.5, 1.0)[n % 3], stream=bool(n % 2)) for n in range(15)]
    alone = [answer(client, body) for body in bodies]
    assert len({text for text, _, _ in alone}) > 5, "strengths and questions make a difference"
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda body: answer(client, body), bodies))
    for one, other in zip(alone, together, strict=True):
        assert other[:2] == one[:2]
        assert other[2] == pytest.approx(one[2])


def test_alpha_0_is_off_and_says_so(client: TestClient) -> None:
    off = client.post(CHAT, json=asked(0, alpha=0)).json()["karma"]
    assert off["alpha"] == 0.0
    own = client.post(CHAT, json=asked(0)).json()["karma"]
    assert own["alpha"] == 0.5
    assert 0 < own["cap_rate"] < 1


def test_drift_has_a_projection_for_each_capped_block(client: TestClient) -> None:
    drift = client.post(CHAT, json=asked(0, drift=True)).json()["karma"]["drift"]
    measured = [token for token in drift["tokens"] if token["drift"] is not None]
    assert len(measured) >= len(drift["tokens"]) - 1 > 0
    assert {len(token["projections"]) for token in measured} == {3}
    assert drift["mean"] == pytest.approx(sum(token["drift"] for token in measured) / len(measured))


def test_the_reply_tells_log_probabilities(client: TestClient) -> None:
    reply = client.post(CHAT, json=asked(0, logprobs=True, top_logprobs=3)).json()["choices"][0]
    tokens = reply["logprobs"]["content"]
    assert len(tokens) == 16
    for token in tokens:
        assert len(token["top_logprobs"]) == 3
        assert token["logprob"] == token["top_logprobs"][0]["logprob"] < 0  # greedy
    text = client.post(
        "/v1/completions", json={"model": "tiny", "prompt": "She", "logprobs": 2, "max_tokens": 4}
    ).json()
    legacy = text["choices"][0]["logprobs"]
    assert [len(legacy[key]) for key in ("tokens", "token_logprobs", "top_logprobs", "text_offset")] == [4] * 4


def test_sampling_with_a_seed_gives_the_same_again(client: TestClient) -> None:
    body = asked(1, temperature=1.5, seed=3, n=2)
    first, second = (
        [c["message"]["content"] for c in client.post(CHAT, json=body).json()["choices"]] for _ in range(2)
    )
    assert first == second
    assert first[0] != first[1]


def test_special_tokens_that_users_write_are_text(client: TestClient) -> None:
    def prompt_tokens(content: str) -> int:
        body = asked(0, messages=[{"role": "user", "content": content}], max_tokens=1)
        return int(client.post(CHAT, json=body).json()["usage"]["prompt_tokens"])

    plain = prompt_tokens("x" + TEMPLATE_TOKENS.replace("<|im_end|>", "").replace("<|im_start|>", ""))
    assert prompt_tokens("x" + TEMPLATE_TOKENS) >= plain + 4 * 5  # four tokens would be four


def test_what_does_not_fit_is_refused_with_the_figures(client: TestClient) -> None:
    refused = client.post(CHAT, json=asked(0, max_tokens=511)).json()["error"]
    assert refused["code"] == "context_length_exceeded"
    assert str(tiny.CONTEXT) in refused["message"]


def test_what_is_told_of_the_model_and_its_cap(client: TestClient) -> None:
    told = client.get("/karma/model").json()
    assert (told["engine"], told["context"], told["persona"]["system_prompt"]) == ("hf", tiny.CONTEXT, tiny.PERSONA)
    assert (told["cap"]["layers"], told["cap"]["alpha"], told["cap"]["cap_rate"]) == ([2, 3, 4], 0.5, 0.5)
    assert len(told["cap"]["thresholds"]) == 3
    assert len(told["cap"]["sha256"]) == 64
    assert set(told["drift_reference"]["scales"]) == {"2", "3", "4"}
    shown = client.post("/api/show", json={"model": "tiny"}).json()
    assert shown["template"] == tiny.CHAT_TEMPLATE
    assert shown["details"]["family"] == "llama"


def test_a_gguf_file_is_served_as_it_is(tiny_path: Path, tmp_path: Path) -> None:
    file = tmp_path / "tiny-q8.gguf"
    export_gguf(tiny_path, file, file_type="q8_0", name="tiny")
    engine, served = open_model(str(file), Opening(system="Be kind.", context=128, rows=2))
    assert (served.id, served.numbers, served.family) == ("tiny-q8", "Q8_0", "llama")
    with in_process(engine, served=served) as client:
        body = asked(0, model="tiny-q8")
        assert client.post(CHAT, json=body).json()["usage"]["completion_tokens"] == 16
        assert client.post(CHAT, json=body | {"alpha": 0.5}).status_code == 400
        assert client.post(CHAT, json=body | {"max_tokens": 127}).json()["error"]["code"] == "context_length_exceeded"
        assert client.post("/api/show", json={"model": "tiny-q8"}).json()["system"] == "Be kind."


def test_what_cannot_be_opened_is_told(tiny_path: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="does not exist"):
        open_model(str(tiny_path), Opening(cap=tmp_path / "none"))
    with pytest.raises(InputError, match="--alpha is 2"):
        open_model(str(tiny_path), Opening(alpha=2.0))
    with pytest.raises(InputError, match=r"runs 'some\.gguf' as it is"):
        open_model("some.gguf", Opening(alpha=0.5, engine="llamacpp"))
    with pytest.raises(MissingError):
        open_model(str(tmp_path / "none.gguf"), Opening())
    baked = shutil.copytree(tiny_path, tmp_path / "capped")
    (baked / "karma").mkdir()
    (baked / "karma" / "cap_neurons.safetensors").touch()
    with pytest.raises(InputError, match="compiled into the weights"):
        open_model(str(baked), Opening(alpha=0.0))


def test_a_model_is_named_after_its_run_and_stage(tmp_path: Path) -> None:
    (tmp_path / "demo" / "merged").mkdir(parents=True)
    assert model_id(str(tmp_path / "demo" / "merged")) == "merged"
    (tmp_path / "demo" / "recipe.toml").write_text("")
    assert model_id(str(tmp_path / "demo" / "merged")) == "demo-merged"
    assert model_id("builtin:smollm2-135m") == "smollm2-135m"
    assert model_id("a/model name.gguf") == "model-name"
    assert model_id("owner/Model-8B") == "Model-8B"


def test_the_persona_of_a_run_is_its_recipe_s(tiny_path: Path, tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text(RECIPE.format(base="builtin:smollm2-135m"))
    shutil.copytree(tiny_path, tmp_path / "merged")
    engine, served = open_model(str(tmp_path / "merged"), Opening())
    engine.close()
    assert served.persona == Persona("Karma Electric", "Be kind.")
