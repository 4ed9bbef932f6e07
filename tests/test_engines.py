"""Engines: the same answers alone, in a batch and as a stream; a cap that is reported; and refusals before any work."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BloomConfig, BloomForCausalLM

import tiny
from karma_electric.core.errors import ArtifactError, InputError, MissingError
from karma_electric.core.messages import Conversation, assistant, system, user
from karma_electric.models.chat_template import prompt_ids
from karma_electric.models.engines.hf import HfEngine
from karma_electric.models.engines.protocol import Sampling
from karma_electric.models.engines.scripted import ScriptedEngine
from karma_electric.models.loading import load_model, load_tokenizer, pick_dtype
from karma_electric.steer.cap import capped
from karma_electric.steer.spec import Cap

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GREEDY = Sampling(temperature=0.0, max_new_tokens=24)
QUESTIONS: list[Conversation] = [
    [user("Who?")],
    [system(tiny.PERSONA), user("A nurse needs the medicine today. What should I do?")],
    [user("one"), assistant("A letter."), user("My neighbour hides the truth and does not know why.")],
]


@pytest.fixture(scope="module")
def engine(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> HfEngine:
    return HfEngine(model, tokenizer)


@pytest.fixture(scope="module")
def cap(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Cap:
    return tiny.cap_at(model, tokenizer, "mlp", alpha=1.0)


@pytest.fixture(scope="module")
def capped_engine(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cap: Cap) -> HfEngine:
    return HfEngine(model, tokenizer, intervention=lambda m, alpha: capped(m, cap, alpha=alpha))


def test_a_model_that_tells_no_longest_context_answers(tokenizer: PreTrainedTokenizerBase) -> None:
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=len(tokenizer), hidden_size=16, n_layer=1, n_head=2)
    engine = HfEngine(BloomForCausalLM(config).eval(), tokenizer)
    (answer,) = engine.generate([[user("Who?")]], Sampling(max_new_tokens=3))
    assert answer.usage.completion_tokens > 0


def greedy_by_hand(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, conversation: Conversation, n: int = 24
) -> list[int]:
    """Greedy decoding without batch, cache or generate()."""
    ids = prompt_ids(tokenizer, conversation)
    answer: list[int] = []
    while len(answer) < n:
        with torch.no_grad():
            token = int(model(input_ids=torch.tensor([ids + answer]), use_cache=False).logits[0, -1].argmax())
        if token == tokenizer.eos_token_id:
            break
        answer.append(token)
    return answer


# Answers


def test_a_batch_answers_like_each_conversation_alone(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, engine: HfEngine
) -> None:
    together = engine.generate(QUESTIONS, GREEDY)
    assert together == [engine.generate([question], GREEDY)[0] for question in QUESTIONS]
    assert len({c.usage.prompt_tokens for c in together}) == 3, "prompts of different lengths, so padding"
    for question, completion in zip(QUESTIONS, together, strict=True):
        expected = greedy_by_hand(model, tokenizer, question)
        assert completion.text == tokenizer.decode(expected, skip_special_tokens=True).strip()
        assert completion.usage.prompt_tokens == len(prompt_ids(tokenizer, question))
        assert completion.usage.completion_tokens == len(expected)


def test_every_end_of_turn_ends_an_answer_and_is_not_part_of_it(
    fresh_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Llama 3.1 has three of them. Here the fifth token of the first answer is made one."""
    answer = greedy_by_hand(fresh_model, tokenizer, QUESTIONS[0])
    stop = next(token for token in answer[4:] if token not in answer[:4])
    fresh_model.generation_config.eos_token_id = [tokenizer.eos_token_id, stop]
    completions = HfEngine(fresh_model, tokenizer).generate(QUESTIONS, GREEDY)
    length = answer.index(stop)
    assert completions[0].finish_reason == "stop"
    assert completions[0].usage.completion_tokens == length
    assert completions[0].text == tokenizer.decode(answer[:length]).strip()
    others = [greedy_by_hand(fresh_model, tokenizer, q) for q in QUESTIONS[1:]]
    for completion, ids in zip(completions[1:], others, strict=True):
        stopped = stop in ids or len(ids) < 24
        assert completion.finish_reason == ("stop" if stopped else "length")


def test_sampling_depends_on_its_seed_alone(engine: HfEngine) -> None:
    def sample(**more: Any) -> list[str]:
        sampling = Sampling(temperature=1.0, max_new_tokens=12, **more)
        return [c.text for c in engine.generate(QUESTIONS, sampling)]

    first = sample(seed=1)
    torch.manual_seed(999)
    assert sample(seed=1) == first
    assert sample(seed=2) != first
    nearly_greedy = [c.text for c in engine.generate(QUESTIONS, Sampling(max_new_tokens=12))]
    assert sample(seed=1, top_p=1e-6) == nearly_greedy


def test_no_conversations_no_completions(engine: HfEngine) -> None:
    assert engine.generate([], GREEDY) == []


# Streams


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_stream_adds_up_to_the_answer(engine: HfEngine, question: Conversation) -> None:
    pieces = list(engine.stream(question, GREEDY))
    assert "".join(pieces).strip() == engine.generate([question], GREEDY)[0].text
    assert sum(bool(piece) for piece in pieces) > 1


def test_a_capped_stream_adds_up_to_the_capped_answer(engine: HfEngine, capped_engine: HfEngine) -> None:
    question = QUESTIONS[1]
    streamed = "".join(capped_engine.stream(question, GREEDY)).strip()
    assert streamed == capped_engine.generate([question], GREEDY)[0].text
    assert streamed != engine.generate([question], GREEDY)[0].text


def test_closing_a_stream_stops_the_generation(model: PreTrainedModel, capped_engine: HfEngine) -> None:
    hooks, threads = tiny.hook_count(model), threading.active_count()
    passes: list[int] = []
    handle = model.get_decoder().register_forward_pre_hook(lambda *_: passes.append(1))
    try:
        stream = capped_engine.stream(QUESTIONS[0], Sampling(max_new_tokens=400))
        next(stream)
        assert threading.active_count() == threads + 1
        stream.close()
        assert threading.active_count() == threads
        assert len(passes) < 200, "it was stopped, not awaited"
    finally:
        handle.remove()
    assert tiny.hook_count(model) == hooks, "the cap is detached"


def test_a_failure_while_streaming_reaches_the_reader(model: PreTrainedModel, engine: HfEngine) -> None:
    threads = threading.active_count()

    def fail(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        if inputs[0].shape[1] == 1:  # while decoding
            raise RuntimeError("out of luck")

    handle = model.model.layers[0].register_forward_pre_hook(fail)
    try:
        with pytest.raises(RuntimeError, match="out of luck"):
            list(engine.stream(QUESTIONS[0], GREEDY))
    finally:
        handle.remove()
    assert threading.active_count() == threads


# What is refused


def test_a_conversation_that_does_not_fit_is_refused(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    length = len(prompt_ids(tokenizer, QUESTIONS[1]))
    just_enough = HfEngine(model, tokenizer, context=length + 4)
    assert just_enough.generate(QUESTIONS[1:2], Sampling(max_new_tokens=4))[0].text
    message = f"{length} tokens; with 5 new ones that is more than the model's context of {length + 4}"
    with pytest.raises(InputError, match=message):
        just_enough.generate(QUESTIONS[1:2], Sampling(max_new_tokens=5))
    with pytest.raises(InputError, match=message):
        next(just_enough.stream(QUESTIONS[1], Sampling(max_new_tokens=5)))


def test_the_models_own_context_is_the_limit(engine: HfEngine) -> None:
    with pytest.raises(InputError, match=f"context of {tiny.CONTEXT}"):
        engine.generate([[user("a b " * tiny.CONTEXT)]], GREEDY)


def test_an_alpha_without_a_cap_is_refused(engine: HfEngine) -> None:
    with pytest.raises(InputError, match=r"alpha is 0.5, but no cap was loaded.* --cap"):
        engine.generate(QUESTIONS, GREEDY, alpha=0.5)
    with pytest.raises(InputError, match="no cap was loaded"):
        next(engine.stream(QUESTIONS[0], GREEDY, alpha=0.5))
    with pytest.raises(InputError, match="no cap was loaded"):
        engine.generate(QUESTIONS, GREEDY, alpha=[0.0, 0.0, 0.5])
    assert engine.generate(QUESTIONS, GREEDY, alpha=0.0) == engine.generate(QUESTIONS, GREEDY)


# Caps


def test_the_cap_rate_is_that_of_the_tokens_that_were_fed_back(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cap: Cap, capped_engine: HfEngine
) -> None:
    """In a batch with padding: the same as reading each whole exchange again, alone, under the cap."""
    completions = capped_engine.generate(QUESTIONS, GREEDY)
    for question, completion in zip(QUESTIONS, completions, strict=True):
        with capped(model, cap):
            answer = greedy_by_hand(model, tokenizer, question)
            fed_back = answer if completion.finish_reason == "stop" else answer[:-1]
            prompt = prompt_ids(tokenizer, question)
            seen = tiny.residuals(model, torch.tensor([prompt + fed_back]), "mlp")
        above = [seen[layer][0, len(prompt) :] @ cap.directions[layer] > t for layer, t in cap.spec.thresholds.items()]
        assert completion.text == tokenizer.decode(answer, skip_special_tokens=True).strip()
        assert completion.cap_rate == pytest.approx(torch.stack(above).float().mean().item())
        assert 0 < completion.cap_rate < 1


def test_without_a_cap_there_is_no_rate(engine: HfEngine) -> None:
    assert [c.cap_rate for c in engine.generate(QUESTIONS, GREEDY)] == [None, None, None]


def test_an_alpha_of_0_turns_the_cap_off_for_one_call(engine: HfEngine, capped_engine: HfEngine) -> None:
    off = capped_engine.generate(QUESTIONS, GREEDY, alpha=0.0)
    assert [c.text for c in off] == [c.text for c in engine.generate(QUESTIONS, GREEDY)]
    assert [c.cap_rate for c in off] == [0.0, 0.0, 0.0]
    own, again = capped_engine.generate(QUESTIONS, GREEDY), capped_engine.generate(QUESTIONS, GREEDY, alpha=1.0)
    assert own == again
    assert [c.text for c in own] != [c.text for c in off]


def test_every_conversation_of_a_batch_may_have_its_own_strength(capped_engine: HfEngine) -> None:
    strengths = [1.0, 0.0, 0.3]
    alone = [capped_engine.generate([q], GREEDY, alpha=a)[0] for q, a in zip(QUESTIONS, strengths, strict=True)]
    assert capped_engine.generate(QUESTIONS, GREEDY, alpha=strengths) == alone
    with pytest.raises(InputError, match="2 strengths were given for 3 conversations"):
        capped_engine.generate(QUESTIONS, GREEDY, alpha=[1.0, 0.5])


# The scripted engine


def test_a_script_answers_in_turn_and_repeats_its_last_line() -> None:
    engine = ScriptedEngine(["one", "two three"])
    texts = [c.text for c in engine.generate(QUESTIONS, GREEDY)]
    assert texts == ["one", "two three", "two three"]
    assert engine.calls == [QUESTIONS]


def test_a_script_may_read_the_conversation() -> None:
    engine = ScriptedEngine(lambda conversation: conversation[-1].content.upper())
    assert engine.generate([[user("why?")]], GREEDY)[0].text == "WHY?"


def test_a_scripted_answer_is_cut_like_a_real_one() -> None:
    engine = ScriptedEngine(["a b c d"])
    cut, whole = (engine.generate([QUESTIONS[0]], Sampling(max_new_tokens=n))[0] for n in (3, 4))
    assert (cut.text, cut.finish_reason, cut.usage.completion_tokens) == ("a b c", "length", 3)
    assert (whole.text, whole.finish_reason) == ("a b c d", "stop")


def test_a_scripted_stream_adds_up() -> None:
    engine = ScriptedEngine(["a b  c"])
    pieces = list(engine.stream(QUESTIONS[0], GREEDY))
    assert "".join(pieces) == "a b  c"
    assert len(pieces) == 4
    assert engine.calls == [[QUESTIONS[0]]]


def test_an_empty_script_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="at least one answer"):
        ScriptedEngine([])


# Loading


@pytest.fixture
def copied(tiny_path: Path, tmp_path: Path) -> Path:
    """A copy of the tiny checkpoint, to damage."""
    for file in tiny_path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_a_folder_without_a_model_is_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match=r"has no config\.json"):
        load_model(tmp_path)


@pytest.mark.parametrize("keep", [0, 1000, -5000])
def test_torn_weights_are_refused(copied: Path, keep: int) -> None:
    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(ArtifactError, match="could not be loaded as a model"):
        load_model(copied, dtype="float32", device="cpu")


def test_weights_that_lack_a_tensor_are_refused(copied: Path) -> None:
    """transformers would fill it with random numbers and say so only in a log that we silence."""
    tensors = load_file(copied / "model.safetensors")
    del tensors["model.layers.3.mlp.up_proj.weight"]
    save_file(tensors, copied / "model.safetensors", {"format": "pt"})
    with pytest.raises(ArtifactError, match=r"layers\.3\.mlp\.up_proj"):
        load_model(copied, dtype="float32", device="cpu")


def test_weights_of_another_shape_are_refused(copied: Path) -> None:
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"intermediate_size": 128}))
    with pytest.raises(ArtifactError, match="could not be loaded as a model"):
        load_model(copied, dtype="float32", device="cpu")


@pytest.mark.parametrize("text", ["", "{", '{"model_type": "no such"}', "[]"])
def test_a_damaged_config_is_refused(copied: Path, text: str) -> None:
    (copied / "config.json").write_text(text)
    with pytest.raises(ArtifactError, match="could not be loaded as a model"):
        load_model(copied, dtype="float32", device="cpu")


def test_a_damaged_tokenizer_is_refused(copied: Path) -> None:
    (copied / "tokenizer.json").write_text("{")
    with pytest.raises(ArtifactError, match="no usable tokenizer"):
        load_tokenizer(copied)


def test_a_base_model_without_a_template_is_refused(copied: Path) -> None:
    (copied / "chat_template.jinja").unlink()
    with pytest.raises(ArtifactError, match="no chat template"):
        load_tokenizer(copied)


def test_a_model_is_loaded_in_the_type_that_was_asked_for(tiny_path: Path) -> None:
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        model = load_model(tiny_path, dtype=name, device="cpu")
        assert {p.dtype for p in model.parameters()} == {dtype}
        assert not model.training
    assert pick_dtype("auto", "mps") == torch.float32
