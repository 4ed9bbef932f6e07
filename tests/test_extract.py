"""Extraction as a whole: responses, prompts that are too long, chunks that belong together, memory that stays flat."""

from __future__ import annotations

import gc
import json
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file

import tiny
from karma_electric.core.errors import ArtifactError, DataError, InputError, MissingError
from karma_electric.core.messages import system, user
from karma_electric.core.progress import Silent
from karma_electric.models.blocks import SITES
from karma_electric.models.chat_template import prompt_ids
from karma_electric.models.engines.protocol import Sampling
from karma_electric.models.engines.scripted import ScriptedEngine
from karma_electric.models.loading import load_model
from karma_electric.models.processes import ALONE
from karma_electric.steer import extract as extraction
from karma_electric.steer.answers import ANSWERS_FILE, generate_answers, read_answers
from karma_electric.steer.axis import Axis, direction
from karma_electric.steer.chunks import FOLDER, chunk_path
from karma_electric.steer.contrast import ContrastSet
from karma_electric.steer.extract import Sides, extract, forget_chunks, iter_chunks
from karma_electric.steer.moments import SiteSums, separation

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedModel, PreTrainedTokenizerBase

CONTRAST = ContrastSet(prompts=tiny.prompts(8), toward=tiny.PERSONA, away=tiny.AWAY)
SYSTEMS = (tiny.PERSONA, *tiny.AWAY)
Extract = Callable[..., Axis]


class Said(Silent):
    """Keeps the lines."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, text: str) -> None:
        self.lines.append(text)


@pytest.fixture
def run(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Extract:
    """Extract into the test's folder."""

    def extracted(contrast: ContrastSet = CONTRAST, **settings: Any) -> Axis:
        settings = {"fingerprint": "tiny", "out": tmp_path, **settings}
        return extract(settings.pop("model", model), tokenizer, contrast, settings.pop("out"), **settings)

    return extracted


def answers(seed: int = 5) -> dict[tuple[str, str], str]:
    """Some text for every prompt under every system prompt."""
    texts = iter(tiny.prompts(len(CONTRAST.prompts) * len(SYSTEMS), seed))
    return {(prompt.id, text): next(texts).text for prompt in CONTRAST.prompts for text in SYSTEMS}


# Stats


def test_separation_is_tried_on_the_half_of_the_prompts_the_direction_was_not_made_from(
    run: Extract, tmp_path: Path
) -> None:
    axis = run()
    chunks = list(iter_chunks(tmp_path))
    for site in SITES:
        toward, away = (torch.cat([chunk[site][side] for chunk in chunks]) for side in (0, 1))
        v, _ = direction(toward[0::2], away[0::2])
        expected = separation((toward[1::2] * v).sum(-1), (away[1::2] * v).sum(-1))
        assert axis.stats[site]["d_prime"] == pytest.approx(expected["d_prime"], abs=1e-3)
        assert axis.stats[site]["away_higher"] == expected["away_higher"]
        error = ((away - toward).double().var(0).sum(-1) / len(toward)).sqrt()
        assert axis.stats[site]["norm_to_error"] == pytest.approx((axis.norms[site] / error).tolist(), rel=1e-4)


# Responses


@pytest.mark.parametrize("site", SITES)
def test_the_response_position_averages_over_the_answers_tokens(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, run: Extract, site: str
) -> None:
    given = answers()
    axis = run(position="response", answers=given)
    differences = []
    for prompt in CONTRAST.prompts:
        means = []
        for text in SYSTEMS:
            before = prompt_ids(tokenizer, [system(text), user(prompt.text)])
            answer = tokenizer(given[prompt.id, text], add_special_tokens=False)["input_ids"]
            seen = tiny.residuals(model, torch.tensor([before + answer]), site)  # type: ignore[arg-type]
            means.append(torch.stack([h[0, len(before) :].double().mean(0) for h in seen]))
        differences.append(torch.stack(means[1:]).mean(0) - means[0])
    expected = torch.stack(differences).mean(0)
    v = axis.directions[site].double()  # type: ignore[index]
    assert torch.nn.functional.cosine_similarity(v, expected, dim=-1).min() > 1 - 1e-9
    assert axis.position == "response"


def test_answers_are_generated_by_the_model_under_each_system_prompt(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, run: Extract, tmp_path: Path
) -> None:
    few = replace(CONTRAST, prompts=CONTRAST.prompts[:3])
    greedy = Sampling(temperature=0.0, max_new_tokens=6)
    axis = run(few, position="response", sampling=greedy)
    rows = [json.loads(line) for line in (tmp_path / ANSWERS_FILE).read_text().splitlines()]
    assert [(row["id"], row["system"]) for row in rows] == [(p.id, text) for p in few.prompts for text in SYSTEMS]
    for row in rows[:4]:
        ids = torch.tensor([prompt_ids(tokenizer, [system(row["system"]), user(row["prompt"])])])
        made = model.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0)[0, ids.shape[1] :]
        assert row["text"] == tokenizer.decode(made, skip_special_tokens=True).strip()
    again = run(few, position="response", answers=read_answers(tmp_path / ANSWERS_FILE, few), out=tmp_path / "given")
    assert again.directions["mlp"].equal(axis.directions["mlp"]), "what was generated may be given again"


def test_a_prompt_without_an_answer_under_every_system_prompt_is_left_out(run: Extract, tmp_path: Path) -> None:
    given = answers()
    given[CONTRAST.prompts[2].id, tiny.AWAY[1]] = " \n"
    said = Said()
    axis = run(position="response", answers=given, progress=said)
    assert (axis.n, axis.stats["left_out"]) == (7, ["p002"])
    assert axis.projections["mlp"].shape[1] == 7
    assert any("left out: p002" in line for line in said.lines)
    without = replace(CONTRAST, prompts=CONTRAST.prompts[:2] + CONTRAST.prompts[3:])
    alone = run(without, position="response", answers=given, out=tmp_path / "without")
    torch.testing.assert_close(axis.projections, alone.projections)


def test_a_model_that_answers_nothing_has_no_response_axis(run: Extract) -> None:
    with pytest.raises(DataError, match="answered nothing"):
        run(position="response", answers=dict.fromkeys(answers(), ""))


def generate(out: Path, engine: ScriptedEngine, contrast: ContrastSet) -> dict[tuple[str, str], str]:
    parts = out / FOLDER
    parts.mkdir(exist_ok=True)
    return generate_answers(
        engine,
        contrast,
        out,
        parts=parts,
        name="answers-x",
        sampling=Sampling(),
        processes=ALONE,
        progress=Silent(),
    )


def test_generation_that_was_cut_off_asks_only_the_batch_it_was_in(tmp_path: Path) -> None:
    contrast = replace(CONTRAST, prompts=tiny.prompts(30))  # 120 conversations: batches of 48, 48 and 24
    asked: list[int] = []

    class Counting(ScriptedEngine):
        def generate(self, conversations: Any, sampling: Sampling, *, alpha: float | None = None) -> Any:
            asked.append(len(conversations))
            return super().generate(conversations, sampling, alpha=alpha)

    engine = Counting(lambda conversation: conversation[0].content + "|" + conversation[1].content)
    whole = generate(tmp_path, engine, contrast)
    assert asked == [48, 48, 24]
    assert whole["p003", tiny.AWAY[1]] == f"{tiny.AWAY[1]}|{contrast.prompts[3].text}".strip()
    part = tmp_path / FOLDER / "answers-x-0.jsonl"
    lines = part.read_text().splitlines(keepends=True)
    part.write_text("".join(lines[:70]) + lines[70][:20])  # killed while the second batch was written
    (tmp_path / ANSWERS_FILE).unlink()
    asked.clear()
    assert generate(tmp_path, engine, contrast) == whole
    assert asked == [48, 24]
    assert len((tmp_path / ANSWERS_FILE).read_text().splitlines()) == 120


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: rows[:-1], "no answer to 1 of 32 prompts"),
        (lambda rows: [*rows, rows[0]], "line 33: a second answer to 'p000'"),
        (lambda rows: [{**rows[0], "prompt": "Another one?"}, *rows[1:]], "line 1: the prompt 'p000' is another one"),
        (lambda rows: [{"id": "p000", "text": "x"}, *rows], "exactly the keys id, system, prompt, text"),
        (lambda rows: [{**rows[0], "text": 5}, *rows[1:]], "line 1: .*each a text"),
        (lambda rows: [["p000"], *rows], "line 1: expected an object"),
    ],
)
def test_given_answers_that_cannot_be_used_are_refused(
    tmp_path: Path, change: Callable[[list[Any]], list[Any]], message: str
) -> None:
    texts = {prompt.id: prompt.text for prompt in CONTRAST.prompts}
    rows = [{"id": i, "system": s, "prompt": texts[i], "text": text} for (i, s), text in answers().items()]
    path = tmp_path / "given.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in change(rows)))
    with pytest.raises(DataError, match=message):
        read_answers(path, CONTRAST)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert read_answers(path, CONTRAST) == answers()


# Prompts that are too long


def test_a_long_prompt_is_shortened_alike_under_every_system_prompt(
    tokenizer: PreTrainedTokenizerBase, run: Extract, tmp_path: Path
) -> None:
    lengths = {p.id: max(len(prompt_ids(tokenizer, c)) for c in CONTRAST.conversations(p)) for p in CONTRAST.prompts}
    limit = sorted(lengths.values())[-3]
    said = Said()
    axis = run(max_length=limit, progress=said)
    long = [prompt.id for prompt in CONTRAST.prompts if lengths[prompt.id] > limit]
    assert long
    assert axis.stats["shortened"] == long
    assert any(f"fit {limit} tokens: {', '.join(long)}" in line for line in said.lines)
    least = max(len(prompt_ids(tokenizer, [system(text), user("")])) for text in SYSTEMS)
    cut = run(max_length=least, out=tmp_path / "cut")
    assert len(cut.stats["shortened"]) == 8
    assert cut.projections["mlp"].std(1).max() < 1e-3, "nothing but the system prompt is left, and the header"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_length": 12}, "tokens without any user text, more than the 12"),
        ({"max_length": tiny.CONTEXT + 1}, f"the model's context is {tiny.CONTEXT}"),
        ({"position": "response", "sampling": Sampling(max_new_tokens=tiny.CONTEXT)}, "more than the 0"),
    ],
)
def test_lengths_that_cannot_be_are_refused(run: Extract, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(**settings)


# What belongs together


def test_a_persona_prompt_that_is_also_generic_is_refused(run: Extract) -> None:
    with pytest.raises(InputError, match="one of the away prompts"):
        run(replace(CONTRAST, away=("", CONTRAST.toward)))


def test_a_template_that_drops_the_system_prompt_gives_no_axis(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    import copy

    deaf = copy.copy(tokenizer)
    deaf.chat_template = "{% for m in messages if m.role == 'user' %}<|im_start|>{{ m.content }}{% endfor %}"
    with pytest.raises(InputError, match="writes the toward prompt as it writes ''"):
        extract(model, deaf, CONTRAST, tmp_path, fingerprint="tiny")


def test_a_model_that_computes_no_numbers_gives_no_axis(
    fresh_model: PreTrainedModel, run: Extract, tmp_path: Path
) -> None:
    fresh_model.model.layers[4].mlp.down_proj.weight.data[0, 0] = float("nan")
    with pytest.raises(ArtifactError, match="site mlp of block 5 has a length of nan"):
        run(model=fresh_model)


def test_a_template_that_refuses_a_system_prompt_is_an_error_not_a_bug(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    import copy

    gemma = copy.copy(tokenizer)
    gemma.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(InputError, match="System role not supported"):
        extract(model, gemma, CONTRAST, tmp_path, fingerprint="tiny")


@pytest.mark.parametrize(
    "changed",
    [
        {"fingerprint": "another"},
        {"contrast": replace(CONTRAST, toward="You are somebody else.")},
        {"contrast": replace(CONTRAST, away=("", "Hello."))},
        {"contrast": replace(CONTRAST, prompts=tiny.prompts(8, seed=9))},
        {"contrast": replace(CONTRAST, prompts=CONTRAST.prompts[:5])},
        {"position": "response", "answers": answers()},
        {"max_length": 60},
    ],
)
def test_chunks_of_another_extraction_are_never_mixed_in(
    run: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]
) -> None:
    """A folder with chunks that were made with other settings gives what an empty folder gives."""
    monkeypatch.setattr(extraction, "_CHUNK", 3)
    run()
    assert len(list(iter_chunks(tmp_path))) == 3
    in_used, in_new = run(**changed), run(**changed, out=tmp_path / "new")
    for site in SITES:
        assert in_used.directions[site].equal(in_new.directions[site])
        assert in_used.projections[site].equal(in_new.projections[site])
    assert sum(len(chunk["mlp"][0]) for chunk in iter_chunks(tmp_path)) == in_new.n


def test_chunks_in_another_number_format_are_not_mixed_in(run: Extract, tiny_path: Path, tmp_path: Path) -> None:
    run()
    before = load_file(chunk_path(tmp_path, 0))
    run(model=load_model(tiny_path, dtype="bfloat16", device="cpu"))
    assert not load_file(chunk_path(tmp_path, 0))["toward.mlp"].equal(before["toward.mlp"])


def test_a_damaged_chunk_is_made_again(run: Extract, tmp_path: Path) -> None:
    whole = run()
    path = chunk_path(tmp_path, 0)
    path.write_bytes(path.read_bytes()[:-100])
    assert run().directions["mlp"].equal(whole.directions["mlp"])


def test_chunks_can_be_read_again_and_again_but_not_in_part(
    run: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "_CHUNK", 3)
    run()
    first, second = list(iter_chunks(tmp_path)), list(iter_chunks(tmp_path))
    assert [len(chunk["mlp"][0]) for chunk in first] == [3, 3, 2]
    assert all(a["block"][1].equal(b["block"][1]) for a, b in zip(first, second, strict=True))
    chunk_path(tmp_path, 1).unlink()
    with pytest.raises(MissingError, match="2 of 3 chunks"):
        list(iter_chunks(tmp_path))
    run(CONTRAST, out=tmp_path / "other", fingerprint="another")
    chunk_path(tmp_path, 1).write_bytes(chunk_path(tmp_path / "other", 1).read_bytes())
    with pytest.raises(ArtifactError, match="several extractions"):
        list(iter_chunks(tmp_path))
    forget_chunks(tmp_path)
    with pytest.raises(MissingError, match="no chunks"):
        list(iter_chunks(tmp_path))


# Memory


def live_bytes() -> int:
    """Of all tensors that anything refers to, each storage once; torch.compile's stand-ins have no memory."""
    storages = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.layout == torch.strided:
            storage = thing.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


class Watching(Silent):
    """Notes the most that was alive at any step of either pass."""

    def __init__(self) -> None:
        self.before = live_bytes()
        self.peak = 0

    def update(self, done: int, total: int, note: str = "") -> None:
        self.peak = max(self.peak, live_bytes() - self.before)


PER_PROMPT = 2 * len(SITES) * tiny.LAYERS * tiny.HIDDEN * 4  # bytes of a prompt's activations, both sides


def growth(run: Extract, tmp_path: Path) -> float:
    """By how many prompts' activations the peak grows when there are 40 more prompts."""
    peaks = []
    for n in (20, 60):
        watching = Watching()
        run(replace(CONTRAST, prompts=tiny.prompts(n)), out=tmp_path / str(n), progress=watching)
        peaks.append(watching.peak)
    return (peaks[1] - peaks[0]) / PER_PROMPT


@pytest.mark.slow
def test_memory_does_not_grow_with_the_number_of_prompts(
    run: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extraction, "_CHUNK", 10)
    assert growth(run, tmp_path) < 4, "only projections, a number for 64, are kept of every prompt"


@pytest.mark.slow
def test_the_measure_of_memory_sees_what_is_kept(run: Extract, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An extraction that keeps its activations, for the test above to be one that can fail."""
    monkeypatch.setattr(extraction, "_CHUNK", 10)
    kept: list[Sides] = []
    read_chunk = extraction.read_chunk
    monkeypatch.setattr(extraction, "read_chunk", lambda path: kept.append(read_chunk(path)) or kept[-1])
    assert growth(run, tmp_path) > 30


def test_the_sums_are_as_large_for_one_prompt_as_for_many() -> None:
    one, many = (SiteSums.of(*torch.randn(2, n, 6, 64), 0) for n in (1, 50))
    assert one.difference.squares.shape == many.difference.squares.shape == (6, 64)
    assert many.difference.mean.dtype == torch.float64
