"""Our engines behind Inspect: what goes in comes out, what they cannot do is refused, and batches stay apart."""

from __future__ import annotations

import asyncio
import json
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

pytest.importorskip("inspect_ai")

from inspect_ai.model import (
    ChatMessageAssistant,
    ChatMessageSystem,
    ChatMessageUser,
    ContentImage,
    GenerateConfig,
    Model,
    ModelOutput,
    ResponseSchema,
    get_model,
)
from inspect_ai.tool import tool
from inspect_ai.util import JSONSchema

import tiny
from karma_electric.core.errors import DataError, InputError, MissingError
from karma_electric.core.messages import Conversation, user
from karma_electric.models import inspect_provider
from karma_electric.models.engines.gathering import Gathering, GivenUp
from karma_electric.models.engines.named import engine_kind, open_engine
from karma_electric.models.engines.protocol import Completion, Sampling, Usage
from karma_electric.models.engines.scripted import ScriptedEngine

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Inspect calls tenacity in a form that tenacity means to drop.
pytestmark = pytest.mark.filterwarnings("ignore:The 'initial' parameter is deprecated:DeprecationWarning")
ROOT = Path(__file__).resolve().parent.parent
QUESTIONS = [
    "Who?",
    "A nurse needs the medicine today. What should I do?",
    "My neighbour hides the truth.",
    "She lost.",
]


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: socket.socket, address: Any) -> None:
        if self.family != socket.AF_UNIX:
            raise AssertionError(f"a connection to {address} was tried")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket.socket, "connect_ex", refuse)


@pytest.fixture
def script(tmp_path: Path) -> Path:
    rules = [{"contains": "bread", "answers": ["Knead it.", "Bake it."]}, {"answers": ["Ask about bread."]}]
    file = tmp_path / "script.json"
    file.write_text(json.dumps(rules))
    return file


def karma(name: object, **arguments: Any) -> Model:
    return get_model(f"karma/{name}", memoize=False, **arguments)


def ask(model: Model, *prompts: str, **config: Any) -> list[ModelOutput]:
    """Ask all of it at once."""

    async def all_of_it() -> list[ModelOutput]:
        settings = GenerateConfig(max_connections=16, **config)
        return await asyncio.gather(*(model.generate(prompt, config=settings) for prompt in prompts))

    return asyncio.run(all_of_it())


# names


def test_the_name_karma_is_announced_to_inspect_and_its_module_registers_it() -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]["inspect_ai"]
    for module in declared.values():
        import_module(module)
    (name,) = declared.values()
    assert import_module(name).karma is inspect_provider.karma


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("builtin:smollm2-135m", "hf"),
        ("runs/demo/merged", "hf"),
        ("owner/name", "hf"),
        ("x/model-q8_0.gguf", "llamacpp"),
        ("scripted:answers.json", "scripted"),
    ],
)
def test_a_name_says_which_engine_runs_it(name: str, kind: str) -> None:
    assert engine_kind(name) == kind
    assert engine_kind(name, kind) == kind


@pytest.mark.parametrize(
    ("name", "asked", "hooks", "kind"),
    [
        ("model.gguf", "auto", False, "llamacpp"),
        ("model.gguf", "auto", True, "hf"),  # dequantised
        ("model.gguf", "hf", False, "hf"),
        ("model.gguf", "hf", True, "hf"),
        ("model.gguf", "llamacpp", True, None),
        ("runs/demo/merged", "auto", False, "hf"),
        ("runs/demo/merged", "auto", True, "hf"),
        ("runs/demo/merged", "llamacpp", False, None),
        ("builtin:smollm2-135m", "hf", True, "hf"),
        ("scripted:answers.json", "auto", False, "scripted"),
        ("scripted:answers.json", "auto", True, None),
        ("scripted:answers.json", "hf", False, None),
    ],
)
def test_auto_is_the_fastest_engine_that_can_do_what_is_asked(
    name: str, asked: str, hooks: bool, kind: str | None
) -> None:
    if kind is not None:
        assert engine_kind(name, asked, hooks=hooks) == kind
        return
    with pytest.raises(InputError):
        engine_kind(name, asked, hooks=hooks)


def test_an_engine_that_cannot_run_a_name_is_refused() -> None:
    with pytest.raises(InputError, match=r"for the engine hf, not llamacpp.*make one with karma gguf"):
        engine_kind("merged", "llamacpp")
    with pytest.raises(InputError, match="'vllm' is unknown"):
        engine_kind("model.gguf", "vllm")


@pytest.mark.parametrize("name", ["/nowhere/merged", "nowhere.gguf", "scripted:nowhere.json"])
def test_a_model_that_is_not_there_is_missing(name: str) -> None:
    with pytest.raises(MissingError):
        karma(name)


# scripts


def test_a_script_answers_by_the_first_rule_that_fits_in_turn(script: Path) -> None:
    model = karma(f"scripted:{script}")
    answers = [ask(model, prompt)[0].completion for prompt in ("bread", "more bread", "stones", "bread?")]
    assert answers == ["Knead it.", "Bake it.", "Ask about bread.", "Knead it."]


@pytest.mark.parametrize(
    "rules",
    [[], {}, [{"answers": []}], [{"answers": "yes"}], [{"answers": ["a"], "when": "b"}], ["a"], [{"answers": [1]}]],
)
def test_a_file_that_is_no_script_is_refused(tmp_path: Path, rules: object) -> None:
    (tmp_path / "bad.json").write_text(json.dumps(rules))
    with pytest.raises(DataError, match=r"bad\.json"):
        open_engine(f"scripted:{tmp_path / 'bad.json'}")


def test_a_question_that_no_rule_fits_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "one.json").write_text('[{"contains": "bread", "answers": ["Yes."]}]')
    with pytest.raises(InputError, match="no rule for 'stones'"):
        ask(karma(f"scripted:{tmp_path / 'one.json'}"), "stones")


# what goes in and what comes out


def test_text_stop_reason_and_token_counts_come_from_the_engine(script: Path) -> None:
    (whole,) = ask(karma(f"scripted:{script}"), "some bread")
    (cut,) = ask(karma(f"scripted:{script}"), "some bread", max_tokens=1)
    assert (whole.completion, whole.stop_reason) == ("Knead it.", "stop")
    assert (cut.completion, cut.stop_reason) == ("Knead", "max_tokens")
    assert whole.usage is not None
    assert (whole.usage.input_tokens, whole.usage.output_tokens, whole.usage.total_tokens) == (2, 2, 4)


def test_settings_reach_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Sampling] = []

    class Spy(ScriptedEngine):
        def generate(
            self, conversations: Sequence[Conversation], sampling: Sampling, *, alpha: float | None = None
        ) -> list[Completion]:
            seen.append(sampling)
            return super().generate(conversations, sampling, alpha=alpha)

    monkeypatch.setattr(inspect_provider, "open_engine", lambda *_, **__: Spy(["yes"]))
    ask(karma("scripted:x"), "a", temperature=0.5, top_p=0.8, max_tokens=7, seed=11)
    ask(karma("scripted:x"), "a")
    assert seen == [
        Sampling(temperature=0.5, top_p=0.8, max_new_tokens=7, seed=11),
        Sampling(max_new_tokens=inspect_provider.DEFAULT_MAX_TOKENS),
    ]


def test_the_system_prompt_and_earlier_turns_reach_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = ScriptedEngine(["yes"])
    monkeypatch.setattr(inspect_provider, "open_engine", lambda *_, **__: engine)
    turns = [
        ChatMessageSystem(content="Be kind."),
        ChatMessageUser(content="one"),
        ChatMessageAssistant(content="two"),
        ChatMessageUser(content="three"),
    ]
    asyncio.run(karma("scripted:x").generate(turns))
    roles = [(message.role, message.content) for message in engine.calls[0][0]]
    assert roles == [("system", "Be kind."), ("user", "one"), ("assistant", "two"), ("user", "three")]


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"top_k": 5}, "top_k"),
        ({"stop_seqs": ["."], "logprobs": True}, "logprobs, stop_seqs"),
        ({"num_choices": 3}, "num_choices"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"response_schema": ResponseSchema(name="x", json_schema=JSONSchema(type="object"))}, "response_schema"),
    ],
)
def test_a_setting_that_our_engines_lack_is_refused_by_name(script: Path, config: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=f"does not have {named}"):
        ask(karma(f"scripted:{script}"), "bread", **config)


def test_settings_that_ask_for_what_happens_anyway_pass(script: Path) -> None:
    (output,) = ask(karma(f"scripted:{script}"), "bread", num_choices=1, logprobs=False, max_retries=3, timeout=60)
    assert output.completion == "Knead it."


def test_tools_are_refused(script: Path) -> None:
    @tool
    def add() -> Callable[..., Any]:
        async def execute(x: int) -> int:
            """Add one.

            Args:
                x: a number.
            """
            return x + 1

        return execute

    with pytest.raises(InputError, match="does not have tools"):
        asyncio.run(karma(f"scripted:{script}").generate("bread", tools=[add()]))


def test_a_picture_is_refused(script: Path) -> None:
    picture = ContentImage(image="data:image/png;base64,iVBORw0KGgo=")
    with pytest.raises(InputError, match="holds image, expected text"):
        asyncio.run(karma(f"scripted:{script}").generate([ChatMessageUser(content=[picture])]))


def test_a_conversation_that_ends_with_an_answer_is_refused(script: Path) -> None:
    turns = [ChatMessageUser(content="bread"), ChatMessageAssistant(content="Knead")]
    with pytest.raises(InputError, match="ends with the assistant's turn"):
        asyncio.run(karma(f"scripted:{script}").generate(turns))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"batchsize": 3}, "'batchsize'"),
        ({"base_url": "http://localhost:1"}, "'base_url'"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"alpha": 0.5}, "no cap was given"),
        ({"cap": "cap.json"}, "as it is: no cap"),
    ],
)
def test_an_argument_that_does_not_fit_is_refused_by_name(script: Path, arguments: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        karma(f"scripted:{script}", **arguments)


def test_tokens_are_counted_without_a_download(script: Path) -> None:
    assert asyncio.run(karma(f"scripted:{script}").count_tokens("a text of some words")) > 0


# batches


class Recorder:
    """An engine that answers with the question, and notes what it was asked together."""

    name = "recorder"

    def __init__(self) -> None:
        self.batches: list[tuple[Sampling, list[str]]] = []

    def generate(
        self, conversations: Sequence[Conversation], sampling: Sampling, *, alpha: float | None = None
    ) -> list[Completion]:
        texts = [conversation[-1].content for conversation in conversations]
        self.batches.append((sampling, texts))
        if "bad" in texts:
            raise InputError("bad is bad.")
        return [Completion(text, "stop", Usage(1, 1)) for text in texts]


def gather(gathering: Gathering, requests: Sequence[tuple[str, Sampling]]) -> list[str | Exception]:
    """Ask from a thread each, all at once."""
    answers: list[str | Exception] = [""] * len(requests)
    barrier = threading.Barrier(len(requests))

    def work(number: int) -> None:
        barrier.wait()
        try:
            answers[number] = gathering.ask([user(requests[number][0])], requests[number][1]).text
        except Exception as error:
            answers[number] = error

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(requests))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_requests_that_come_together_are_answered_together_each_with_its_own_answer() -> None:
    engine = Recorder()
    asked = [(f"q{number}", Sampling(seed=number)) for number in range(10)]
    assert gather(Gathering(engine, batch_size=4), asked) == [f"q{number}" for number in range(10)]
    sizes = [len(texts) for _, texts in engine.batches]
    assert sum(sizes) == 10
    assert max(sizes) <= 4
    assert len(sizes) < 10


def test_requests_with_other_settings_never_share_a_batch() -> None:
    engine = Recorder()
    settings = [Sampling(temperature=t, max_new_tokens=n) for t in (0.0, 0.7) for n in (5, 9)]
    asked = [(f"{number}-{s.temperature}-{s.max_new_tokens}", s) for number in range(5) for s in settings]
    gather(Gathering(engine, batch_size=8), asked)
    for sampling, texts in engine.batches:
        assert {text.split("-", 1)[1] for text in texts} == {f"{sampling.temperature}-{sampling.max_new_tokens}"}


def test_a_request_that_fails_does_not_fail_those_beside_it() -> None:
    answers = gather(Gathering(Recorder(), batch_size=8), [(text, Sampling()) for text in ("a", "bad", "c", "d")])
    assert [answers[0], *answers[2:]] == ["a", "c", "d"]
    assert isinstance(answers[1], InputError)


def test_a_request_alone_keeps_its_seed() -> None:
    engine = Recorder()
    gathering = Gathering(engine, batch_size=1)
    gather(gathering, [("a", Sampling(seed=7)), ("b", Sampling(seed=8))])
    assert {texts[0]: sampling.seed for sampling, texts in engine.batches} == {"a": 7, "b": 8}


def test_a_request_that_was_given_up_is_not_made() -> None:
    engine = Recorder()
    given_up = threading.Event()
    given_up.set()
    with pytest.raises(GivenUp):
        Gathering(engine, batch_size=4).ask([user("a")], Sampling(), given_up)
    assert engine.batches == []


# real engines


@pytest.fixture(scope="module")
def checkpoint(tiny_path: Path) -> str:
    return str(tiny_path)


def test_a_greedy_answer_is_the_same_alone_and_in_a_batch(checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from karma_electric.models import loading

    # random weights in bfloat16 are so flat that the last bits decide
    monkeypatch.setattr(loading, "pick_dtype", lambda *_: torch.float32)
    model = karma(checkpoint)
    together = [output.completion for output in ask(model, *QUESTIONS, temperature=0.0, max_tokens=16)]
    alone = [ask(model, question, temperature=0.0, max_tokens=16)[0].completion for question in QUESTIONS]
    assert together == alone
    assert len(set(alone)) > 1


def test_with_batches_of_one_a_sampled_answer_depends_on_its_seed_alone(checkpoint: str) -> None:
    model = karma(checkpoint, batch_size=1)

    def sampled(*seeds: int) -> list[str]:
        async def all_of_it() -> list[ModelOutput]:
            return await asyncio.gather(
                *(
                    model.generate(QUESTIONS[0], config=GenerateConfig(seed=s, temperature=1.0, max_tokens=16))
                    for s in seeds
                )
            )

        return [output.completion for output in asyncio.run(all_of_it())]

    first, second, again = sampled(1, 2, 1)
    assert first == again != second
    assert sampled(2) == [second]


def test_a_conversation_longer_than_the_context_is_an_error_with_both_lengths(checkpoint: str) -> None:
    with pytest.raises(InputError, match=r"model's context of \d+"):
        ask(karma(checkpoint, context=40), "word " * 100, max_tokens=8)


def test_a_generation_that_nobody_waits_for_is_stopped(checkpoint: str) -> None:
    calls = 0

    def stop() -> bool:
        nonlocal calls
        calls += 1
        return calls > 5

    engine = open_engine(checkpoint, stop=stop)
    with pytest.raises(GivenUp):
        engine.generate([[user("Who?")]], Sampling(temperature=1.0, max_new_tokens=200))
    assert calls == 6
    calls = -1000
    assert engine.generate([[user("Who?")]], Sampling(max_new_tokens=3))[0].usage.completion_tokens <= 3


def test_a_cancelled_request_ends_the_work_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    stopped = threading.Event()

    class Endless(ScriptedEngine):
        def generate(
            self, conversations: Sequence[Conversation], sampling: Sampling, *, alpha: float | None = None
        ) -> list[Completion]:
            for _ in range(500):
                if self.stop():
                    stopped.set()
                    raise GivenUp
                time.sleep(0.01)
            return super().generate(conversations, sampling, alpha=alpha)

    def endless(*_: object, stop: Callable[[], bool], **__: object) -> Endless:
        engine = Endless(["late"])
        engine.stop = stop  # type: ignore[attr-defined]
        return engine

    monkeypatch.setattr(inspect_provider, "open_engine", endless)
    model = karma("scripted:x")

    async def cancelled() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(model.generate("Who?"), timeout=0.2)

    asyncio.run(cancelled())
    assert stopped.wait(timeout=3)


@pytest.fixture
def cap_folder(tmp_path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Path:
    from karma_electric.steer.axis import save_axis
    from karma_electric.steer.spec import save_spec

    folder = tmp_path / "axis"
    folder.mkdir()
    save_axis(tiny.random_axis(), folder / tiny.AXIS_FILE)
    save_spec(tiny.cap_at(model, tokenizer, "mlp", alpha=1.0).spec, folder / "cap.json")
    return folder


def test_a_cap_acts_and_its_rate_is_reported(checkpoint: str, cap_folder: Path) -> None:
    import_module("karma_electric.cli.inspect_models")
    settings = {"temperature": 0.0, "max_tokens": 16}
    (plain,) = ask(karma(checkpoint), QUESTIONS[1], **settings)
    (off,) = ask(karma(checkpoint, cap=str(cap_folder), alpha=0.0), QUESTIONS[1], **settings)
    (hard,) = ask(karma(checkpoint, cap=str(cap_folder / "cap.json"), alpha=1.0), QUESTIONS[1], **settings)
    assert off.completion == plain.completion != hard.completion
    assert plain.metadata is None
    assert hard.metadata is not None
    assert 0.0 < hard.metadata["cap_rate"] <= 1.0


def test_without_the_command_line_a_cap_says_what_to_import(
    checkpoint: str, cap_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspect_provider, "_cap_opener", None)
    with pytest.raises(MissingError, match=r"karma_electric\.cli\.inspect_models"):
        karma(checkpoint, cap=str(cap_folder))


@pytest.mark.slow
def test_the_embedded_model_answers_through_inspect() -> None:
    outputs = ask(karma("builtin:smollm2-135m"), *QUESTIONS, temperature=0.7, seed=1, max_tokens=24)
    assert all(output.completion for output in outputs)
    assert all(output.usage is not None and 0 < output.usage.output_tokens <= 24 for output in outputs)
