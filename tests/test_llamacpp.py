"""llama.cpp in process: the answers transformers gives, and the parity check that says so."""

from __future__ import annotations

import http.client
import importlib.util
import json
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from karma_electric.core.errors import ArtifactError, GateError, InputError, MissingError
from karma_electric.core.messages import Conversation, as_dicts, assistant, system, user
from karma_electric.export import gguf as export
from karma_electric.export.gguf import export_gguf
from karma_electric.export.parity import LIMITS, check_parity, recorded_parity, require_parity
from karma_electric.models.chat_template import DATE, prompt_ids, prompt_text
from karma_electric.models.engines.llamacpp import LlamaCppEngine, compile_template
from karma_electric.models.engines.protocol import Engine, Sampling
from karma_electric.models.loading import load_tokenizer

CONVERSATIONS: list[Conversation] = [
    [system(tiny.PERSONA), user("My neighbour lost the medicine today.")],
    [user("Hello?")],
    [system(""), user("A nurse hides a letter."), assistant("Why?"), user("She wants some money 12")],
    [system("Be brief."), user("What should I do? " * 3)],
    [user("Our teacher remembers the truth.")],
    [system(tiny.PERSONA), user("línea 🙂\n\nthe dog")],
]
GREEDY = Sampling(temperature=0.0, max_new_tokens=16)
SAMPLED = Sampling(temperature=1.0, top_p=0.95, max_new_tokens=16, seed=7)
PROMPTS = [conversation[-1].content for conversation in CONVERSATIONS]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # a matrix of 64 x 64 is not worth a second core


@pytest.fixture(scope="module")
def engine(tiny_gguf: Path) -> Iterator[LlamaCppEngine]:
    engine = LlamaCppEngine(tiny_gguf, context=256, slots=3, threads=1, precision="exact")
    yield engine
    engine.close()


def test_it_is_an_engine(engine: LlamaCppEngine) -> None:
    checked: Engine = engine
    assert checked.name == "llamacpp"


@pytest.mark.parametrize("conversation", CONVERSATIONS)
def test_the_prompt_is_what_transformers_renders(conversation: Conversation, engine: LlamaCppEngine, tokenizer) -> None:
    messages = as_dicts(conversation)
    expected = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert engine.render(conversation) == expected
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert engine.tokenize(expected) == ids


@pytest.mark.parametrize("name", ["llama3_1", "llama3_2"])
def test_a_dated_template_has_the_date_that_transformers_is_given(
    name: str, engine: LlamaCppEngine, tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(pytest.importorskip("trl").__file__).parent / "chat_templates"
    dated = load_tokenizer(tiny_path)
    dated.chat_template = (folder / f"{name}.jinja").read_text(encoding="utf-8")
    monkeypatch.setattr(engine, "_template", compile_template(dated.chat_template))
    for conversation in CONVERSATIONS:
        expected = prompt_text(dated, conversation)
        assert DATE in expected
        assert engine.render(conversation) == expected


def test_greedy_answers_are_those_of_transformers_in_order(engine: LlamaCppEngine, model, tokenizer) -> None:
    answers = engine.generate(CONVERSATIONS, GREEDY)
    for conversation, answer in zip(CONVERSATIONS, answers, strict=True):
        prompt = engine.tokenize(engine.render(conversation))
        ids = list(prompt)
        with torch.no_grad():
            while len(ids) < len(prompt) + GREEDY.max_new_tokens and ids[-1] != tokenizer.eos_token_id:
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        new = ids[len(prompt) :]
        assert answer.text == tokenizer.decode(new, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        assert answer.usage.prompt_tokens == len(prompt)
        assert answer.usage.completion_tokens == len(new)
        assert answer.finish_reason == ("stop" if new[-1] == tokenizer.eos_token_id else "length")
    assert len({answer.text for answer in answers}) == len(answers)


def test_an_answer_ends_at_the_end_of_turn(tiny_gguf: Path, engine: LlamaCppEngine) -> None:
    long = engine.generate([[user(text)] for text in PROMPTS], Sampling(1.5, 1.0, max_new_tokens=200, seed=1))
    stopped = [answer for answer in long if answer.finish_reason == "stop"]
    assert stopped, "of 200 random tokens one is the end of turn"
    assert all("<|im_end|>" not in answer.text and answer.usage.completion_tokens < 200 for answer in stopped)


def test_a_seed_repeats_its_answer_and_another_differs(engine: LlamaCppEngine) -> None:
    first, again = (engine.generate(CONVERSATIONS[:1], SAMPLED)[0].text for _ in range(2))
    other = engine.generate(CONVERSATIONS[:1], Sampling(1.0, 0.95, max_new_tokens=16, seed=8))[0].text
    assert first == again != other


def test_the_same_conversation_twice_in_a_batch_is_sampled_twice(engine: LlamaCppEngine) -> None:
    first, second = engine.generate([CONVERSATIONS[0]] * 2, SAMPLED)
    assert first.text != second.text


@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED])
def test_a_stream_is_the_answer_in_pieces(sampling: Sampling, engine: LlamaCppEngine) -> None:
    pieces = list(engine.stream(CONVERSATIONS[0], sampling))
    assert len(pieces) > 3
    assert "".join(pieces) == engine.generate(CONVERSATIONS[:1], sampling)[0].text


def test_a_stream_can_be_left(engine: LlamaCppEngine) -> None:
    stream = engine.stream(CONVERSATIONS[0], Sampling(max_new_tokens=200))
    next(stream)
    stream.close()
    assert engine.generate(CONVERSATIONS[:1], GREEDY)[0].text


def test_a_stream_that_fails_is_not_taken_for_a_whole_answer(
    engine: LlamaCppEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing:
        listening_address = engine._server.listening_address

        def handle_completions(self, request: object, receive: Callable[[dict[str, Any]], bool]) -> None:
            receive({"choices": [{"text": "Yes, bec"}]})
            raise RuntimeError("the server is gone")

    monkeypatch.setattr(engine, "_server", Failing())
    stream = engine.stream(CONVERSATIONS[0], GREEDY)
    assert next(stream) == "Yes, bec"
    with pytest.raises(RuntimeError, match="the server is gone"):
        next(stream)


@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_alpha_is_refused(alpha: float, engine: LlamaCppEngine) -> None:
    with pytest.raises(InputError, match="alpha"):
        engine.generate(CONVERSATIONS[:1], GREEDY, alpha=alpha)
    with pytest.raises(InputError, match="alpha"):
        next(engine.stream(CONVERSATIONS[0], GREEDY, alpha=alpha))


def test_a_conversation_longer_than_the_context_is_refused(engine: LlamaCppEngine) -> None:
    with pytest.raises(InputError, match="the context is 256"):
        engine.generate([[user("word " * 300)]], GREEDY)
    with pytest.raises(InputError, match="the context is 256"):
        list(engine.stream([user("word " * 300)], GREEDY))


def test_no_file_and_no_gguf_file_are_errors(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="does not exist"):
        LlamaCppEngine(tmp_path / "none.gguf")
    (tmp_path / "text.gguf").write_text("not a model")
    with pytest.raises(ArtifactError, match="cannot load"):
        LlamaCppEngine(tmp_path / "text.gguf")


def test_it_says_nothing_and_lets_nobody_else_in(tiny_gguf: Path, capfd: pytest.CaptureFixture[str]) -> None:
    quiet = LlamaCppEngine(tiny_gguf, context=256, slots=1)
    quiet.generate(CONVERSATIONS[:1], GREEDY)
    address = urlsplit(quiet._server.listening_address)
    assert address.hostname == "127.0.0.1"
    connection = http.client.HTTPConnection(str(address.hostname), address.port)
    connection.request("POST", "/tokenize", json.dumps({"content": "x"}))
    assert connection.getresponse().status == 401
    connection.close()
    quiet.close()
    assert capfd.readouterr() == ("", "")


def test_a_template_is_sandboxed_and_has_the_helpers_of_transformers() -> None:
    text = "{{ strftime_now('%Y') | length }} {{ ['é'] | tojson }}{% for x in [1, 2] %}{% break %}{% endfor %}"
    assert compile_template(text).render() == '4 ["é"]'
    with pytest.raises(Exception, match="unsafe"):
        compile_template("{{ ().__class__.__mro__ }}").render()
    with pytest.raises(ArtifactError, match="template"):
        compile_template("{% if %}")


def test_parity_of_an_exact_file_is_whole(tiny_path: Path, tiny_gguf: Path) -> None:
    parity = check_parity(tiny_path, tiny_gguf, prompts=PROMPTS, system=tiny.PERSONA, max_new_tokens=12)
    found = parity.as_dict()
    assert 0 <= found.pop("mean_kl_nats") < 1e-6
    assert found.pop("kl_tokens") > 12
    assert found == {
        "n_prompts": len(PROMPTS),
        "n_texts": len(PROMPTS) + 50,
        "token_ids_equal": True,
        "differing_texts": [],
        "beyond_llama_cpp": [],
        "greedy_agreement": 1.0,
        "first_token_agreement": 1.0,
        "exact_matches": len(PROMPTS),
        "largest_gap_nats": 0.0,
        "max_new_tokens": 12,
        "dtype": "float32",
        "prompts_sha256": parity.prompts_sha256,
        "system": tiny.PERSONA,
    }
    assert recorded_parity(parity.as_dict(), prompts=PROMPTS, system=tiny.PERSONA) == parity
    require_parity(parity, "f32")


def test_parity_sees_a_wrong_weight_order(tiny_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export, "interleave_rotary", lambda rows, _: rows)
    export_gguf(tiny_path, tmp_path / "x.gguf", file_type="f32", name="tiny")
    parity = check_parity(tiny_path, tmp_path / "x.gguf", prompts=PROMPTS, system=tiny.PERSONA, max_new_tokens=12)
    assert parity.token_ids_equal
    assert parity.exact_matches < len(PROMPTS)
    assert parity.greedy_agreement < 0.9
    with pytest.raises(GateError, match=r"mean KL of [0-9.]+ nats, at most 0.05"):
        require_parity(parity, "q8_0")
    with pytest.raises(GateError, match="leaves the checkpoint's where that was sure"):
        require_parity(replace(parity, mean_kl_nats=0.0, largest_gap_nats=2.0), "q8_0")
    with pytest.raises(GateError, match=r"1 of .* texts as other tokens"):
        require_parity(replace(parity, token_ids_equal=False, differing_texts=("3s",)), "q8_0")


def test_parity_needs_prompts(tiny_path: Path, tiny_gguf: Path) -> None:
    with pytest.raises(InputError, match="prompt"):
        check_parity(tiny_path, tiny_gguf, prompts=[], system="")


# Likeliest tokens, and the comparison along an answer's path (benchmarks/check_baked.py)


def test_the_likeliest_tokens_have_the_log_probabilities_of_transformers(
    engine: LlamaCppEngine, model, tokenizer
) -> None:
    prompts = [prompt_ids(tokenizer, conversation) for conversation in CONVERSATIONS[:3]]
    texts = [prompt_text(tokenizer, conversation) for conversation in CONVERSATIONS[:3]]
    answers = engine.greedy_top(prompts, 6, 10)
    assert [tokens for tokens, _ in answers] == engine.greedy_tokens(texts, 6)
    compared = 0
    for prompt, (tokens, steps) in zip(prompts, answers, strict=True):
        if not steps:
            continue  # a token that ended inside a character
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + tokens[:-1]]), logits_to_keep=len(tokens)).logits[0]
        for row, step in zip(logits.log_softmax(-1), steps, strict=True):
            assert set(step) == set(row.topk(10).indices.tolist())
            for token, log_probability in step.items():
                assert log_probability == pytest.approx(float(row[token]), abs=5e-3)
                compared += 1
    assert compared >= 60


def test_distributions_along_an_answer_do_not_depend_on_how_they_are_asked_for(
    engine: LlamaCppEngine, tokenizer
) -> None:
    prompts = [prompt_ids(tokenizer, conversation) for conversation in CONVERSATIONS]
    compared = 0
    for prompt, (tokens, steps) in zip(prompts, engine.greedy_top(prompts, 6, 10), strict=True):
        along = engine.top_along(prompt, tokens, 10, engine.tokenize("a")[0])
        assert len(along) == len(tokens)
        for step, again in zip(steps, along, strict=False):
            assert again == pytest.approx(step, abs=1e-2)
            compared += 1
    assert compared >= 6


@pytest.fixture(scope="module")
def paths():
    """benchmarks/paths.py."""
    spec = importlib.util.spec_from_file_location("paths", Path(__file__).parents[1] / "benchmarks" / "paths.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["paths"] = module  # its dataclass looks itself up there
    spec.loader.exec_module(module)
    return module


@given(st.integers(0, 2**31), st.integers(1, 12))
def test_kl_over_the_likeliest_is_at_most_the_whole_and_all_of_it_with_all_tokens(paths, seed: int, top: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    p, q = (torch.randn(12, generator=generator, dtype=torch.float64).log_softmax(-1) for _ in range(2))
    whole = float((p.exp() * (p - q)).sum())
    known = {int(token): float(q[token]) for token in q.topk(top).indices}
    coarse = paths.coarse_kl(p, known)
    assert 0 <= coarse <= whole + 1e-6
    if top >= 11:
        assert coarse == pytest.approx(whole, abs=1e-6)


def test_a_model_agrees_with_its_own_answers_and_parts_where_a_token_is_changed(paths, model, tokenizer) -> None:
    prompt = prompt_ids(tokenizer, CONVERSATIONS[0])
    tokens: list[int] = []
    for _ in range(6):
        with torch.no_grad():
            tokens.append(int(model(input_ids=torch.tensor([prompt + tokens])).logits[0, -1].argmax()))
    same = paths.compare_paths(model, [paths.Answer(prompt, tokens, [])])
    assert (same["identical"], same["common_prefix"], same["same_token"], same["kl_nats"]) == (1.0, 6.0, 1.0, None)
    changed = [*tokens[:4], (tokens[4] + 1) % tiny.VOCABULARY, tokens[5]]
    other = paths.compare_paths(model, [paths.Answer(prompt, changed, [])])
    assert (other["identical"], other["common_prefix"]) == (0.0, 4.0)


def test_the_page_gives_the_limits_of_the_gate() -> None:
    page = (Path(__file__).parent.parent / "docs" / "gguf.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*`) \| ([\d.]+) \| ([\d.]+) \|$", page, re.MULTILINE)
    said = {name.strip("`"): (float(kl), float(gap)) for names, kl, gap in rows for name in names.split(", ")}
    assert said == LIMITS
