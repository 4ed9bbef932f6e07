"""Drift: each token's projection beyond the ceiling, the same in a transcript and while an answer is generated."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import tiny
from karma_electric.core.errors import ArtifactError, DataError, InputError, KarmaError
from karma_electric.core.jsonl import append_jsonl
from karma_electric.core.messages import Conversation, assistant, system, user
from karma_electric.core.progress import Silent
from karma_electric.core.transcripts import Transcript, read_transcripts, save_transcript
from karma_electric.models.blocks import SITES, Site
from karma_electric.models.chat_template import conversation_ids, prompt_ids
from karma_electric.models.engines.hf import HfEngine
from karma_electric.models.engines.protocol import Completion, Drift, Sampling, TokenDrift
from karma_electric.models.engines.scripted import ScriptedEngine
from karma_electric.steer.axis import save_axis
from karma_electric.steer.cap import capped
from karma_electric.steer.conversation_drift import (
    ConversationDrift,
    TurnDrift,
    project,
    render_all,
    trend_of,
    turn_drifts,
)
from karma_electric.steer.drift import measured, token_drifts
from karma_electric.steer.drift_reference import Alarm, Reference, measure_reference, quantile, reference_for
from karma_electric.steer.responses import Response
from karma_electric.steer.spec import AXIS_FILE, CAP_FILE, Cap, save_spec

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SCALES = {2: 1.5, 3: 0.7, 4: 2.0}
TALK: Conversation = [
    system(tiny.PERSONA),
    user("A nurse needs the medicine."),
    assistant("Why? Give it."),
    user("And the farmer 🙏, since the war?"),
    assistant("He looks for the truth, naïvely."),
]
QUESTIONS: list[Conversation] = [
    [user("Who?")],
    [system(tiny.PERSONA), user("A nurse needs the medicine today. What should I do?")],
    TALK[:4],
]
ANSWERS = ["A letter, and 🙏 the truth.", "Give it to her.", "She remembers some money and does not know why."]
both_sites = pytest.mark.parametrize("site", SITES)
alphas = pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])


@pytest.fixture(scope="module")
def caps(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[Site, Cap]:
    found: dict[Site, Cap] = {site: tiny.cap_at(model, tokenizer, site) for site in SITES}
    for cap in found.values():
        with capped(model, cap, alpha=1.0):
            pass  # the self-test is done once per model, here: not while a test counts or chooses what the model says
    return found


def projections_by_hand(model: PreTrainedModel, ids: Sequence[int], cap: Cap, alpha: float) -> np.ndarray:
    """[tokens, capped blocks], one sequence alone, through hooks of tiny.py, in float64.

    Under a cap at the block site those hooks see the corrected stream: h' = h - alpha * max(0, p - t) * v, whose
    projection p' = p - alpha * max(0, p - t) is solved for p. That has no solution for alpha 1, where p' is t.
    """
    with capped(model, cap, alpha=alpha):
        seen = tiny.residuals(model, torch.tensor([list(ids)]), cap.spec.site)
    columns = []
    for layer in cap.spec.layers:
        p = (seen[layer][0].double() @ cap.directions[layer].double()).numpy()
        t = cap.spec.thresholds[layer]
        if cap.spec.site == "block" and alpha:
            p = np.where(p > t, t + (p - t) / (1 - alpha), p)
        columns.append(p)
    return np.stack(columns, axis=1)


def drift_by_hand(projections: np.ndarray, cap: Cap) -> np.ndarray:
    return np.mean(
        [(projections[:, i] - cap.spec.thresholds[layer]) / SCALES[layer] for i, layer in enumerate(cap.spec.layers)],
        axis=0,
    )


def turns_of(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cap: Cap, talks: list[Conversation], **options: Any
) -> list[tuple[TurnDrift, ...]]:
    """The drift of conversations as `karma drift` measures it."""
    rendered = render_all(tokenizer, {f"talk {i}": talk for i, talk in enumerate(talks)}, tiny.CONTEXT)
    values = project(model, tokenizer, cap, rendered, progress=Silent(), **options)
    return [turn_drifts(one, p, cap, SCALES) for one, p in zip(rendered, values, strict=True)]


def numbers(drift: Drift) -> np.ndarray:
    """[measured tokens, 2 + capped blocks]."""
    return np.array([[t.drift, t.share_above, *t.projections] for t in drift.measured])


# The definition


@given(st.lists(st.tuples(*[st.floats(-50, 50, width=32)] * 3), min_size=1, max_size=6))
def test_drift_is_the_mean_excess_in_units_of_the_scales(caps: dict[Site, Cap], rows: list[tuple[float, ...]]) -> None:
    cap = caps["mlp"]
    found = token_drifts(torch.tensor(rows), cap, SCALES)
    for token, row in zip(found, rows, strict=True):
        assert token.projections == row
        t = [cap.spec.thresholds[layer] for layer in cap.spec.layers]
        z = [(p - ceiling) / s for p, ceiling, s in zip(row, t, SCALES.values(), strict=True)]
        assert token.drift == pytest.approx(sum(z) / 3, abs=1e-4)
        assert token.share_above == pytest.approx(np.mean(np.float32(row) > np.float32(t)))


def test_a_run_of_tokens_is_summed_up_without_those_that_are_missing() -> None:
    tokens = (TokenDrift(1.0, 0.5, (3.0, 1.0)), TokenDrift(-2.0, 0.0, (0.0, 0.0)), None)
    drift = Drift(tokens)
    assert (drift.mean, drift.max, drift.share_above) == (-0.5, 1.0, 0.25)
    assert drift.as_dict() == {
        "mean": -0.5,
        "max": 1.0,
        "share_above": 0.25,
        "tokens": [
            {"drift": 1.0, "share_above": 0.5, "projections": [3.0, 1.0]},
            {"drift": -2.0, "share_above": 0.0, "projections": [0.0, 0.0]},
            None,
        ],
    }
    assert Drift((None,)).as_dict(tokens=False) == {"mean": None, "max": None, "share_above": None}


# Transcripts


@both_sites
@pytest.mark.parametrize("alpha", [0.0, 0.5])
def test_a_transcript_is_measured_at_the_tokens_of_its_turns(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, caps: dict[Site, Cap], site: Site, alpha: float
) -> None:
    (turns,) = turns_of(model, tokenizer, caps[site], [TALK], alpha=alpha)
    by_hand = projections_by_hand(model, conversation_ids(tokenizer, TALK), caps[site], alpha)
    drifts = drift_by_hand(by_hand, caps[site])
    end = 0
    assert [turn.role for turn in turns] == ["system", "user", "assistant", "user", "assistant"]
    for turn, message in zip(turns, TALK, strict=True):
        start = end + len(tokenizer(f"<|im_start|>{message.role}\n")["input_ids"])
        length = len(tokenizer(message.content)["input_ids"])
        end = start + length
        np.testing.assert_allclose(
            [t.projections for t in turn.drift.measured], by_hand[start:end], rtol=1e-4, atol=1e-4
        )
        np.testing.assert_allclose([t.drift for t in turn.drift.measured], drifts[start:end], rtol=1e-4, atol=1e-4)
        end += len(tokenizer("<|im_end|>\n")["input_ids"])
    above = by_hand > np.array([caps[site].spec.thresholds[layer] for layer in caps[site].spec.layers])
    assert 0 < above.mean() < 1


@both_sites
@alphas
def test_a_batch_measures_like_each_conversation_alone(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, caps: dict[Site, Cap], site: Site, alpha: float
) -> None:
    talks = [TALK, TALK[1:3], *tiny.chats(3)]
    alone = [turns_of(model, tokenizer, caps[site], [talk], alpha=alpha)[0] for talk in talks]
    for batch_tokens in (2000, 150, 1):  # one batch, some, one for each
        together = turns_of(model, tokenizer, caps[site], talks, alpha=alpha, batch_tokens=batch_tokens)
        pairs = [(a, b) for many, one in zip(together, alone, strict=True) for a, b in zip(many, one, strict=True)]
        for a, b in pairs:
            assert a.pieces == b.pieces
            np.testing.assert_allclose(numbers(a.drift), numbers(b.drift), rtol=1e-4, atol=1e-4)


def test_the_first_position_is_left_out(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, caps: dict[Site, Cap], tiny_path: Path
) -> None:
    """It is an attention sink. Most templates begin with a header; with one that does not, a token is the turn's."""
    from karma_electric.models.loading import load_tokenizer

    bare = load_tokenizer(tiny_path)
    bare.chat_template = "{% for m in messages %}{{ m['content'] + '<|im_end|>' }}{% endfor %}"
    (turns,) = turns_of(model, bare, caps["mlp"], [[user("one two"), assistant("three")]])
    first = bare("one two")["input_ids"]
    assert len(turns[0].drift.tokens) == len(turns[0].pieces) == len(first) - 1 > 0
    assert len(turns[1].drift.tokens) == len(bare("three")["input_ids"])


def test_the_model_is_left_without_hooks(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, caps: dict[Site, Cap]
) -> None:
    before = tiny.hook_count(model)
    with contextlib.suppress(ZeroDivisionError), measured(model, caps["mlp"], SCALES, alpha=0.5):
        assert tiny.hook_count(model) > before
        raise ZeroDivisionError
    assert tiny.hook_count(model) == before


def test_a_model_whose_hooks_are_not_called_is_an_error_and_not_a_zero(
    model: PreTrainedModel, caps: dict[Site, Cap]
) -> None:
    with measured(model, caps["mlp"], SCALES, alpha=0.0) as meter, pytest.raises(KarmaError, match="no drift was"):
        meter.drifts([3])


def test_a_cap_of_another_shape_is_refused(model: PreTrainedModel, caps: dict[Site, Cap]) -> None:
    narrow = replace(caps["mlp"], directions={layer: torch.ones(32) for layer in SCALES})
    with pytest.raises(ArtifactError, match="hidden size 32"), measured(model, narrow, SCALES, alpha=0.5):
        pass


def test_a_conversation_that_is_too_long_names_the_turn(tokenizer: PreTrainedTokenizerBase) -> None:
    ids = conversation_ids(tokenizer, TALK)
    assert len(render_all(tokenizer, {"talk": TALK}, len(ids))) == 1
    before = len(prompt_ids(tokenizer, TALK[:4]))
    with pytest.raises(InputError, match=rf"talk has {len(ids)} tokens, .*context of {before}: turn 5 \(assistant\)"):
        render_all(tokenizer, {"talk": TALK}, before)
    last = before - len(tokenizer("<|im_end|>\n<|im_start|>assistant\n")["input_ids"]) - 1
    for context, number in ((last, 4), (last + 1, 5)):
        with pytest.raises(InputError, match=rf"turn {number} \("):
            render_all(tokenizer, {"talk": TALK}, context)
    with pytest.raises(InputError, match=r"turn 1 \(system\) does not fit"):
        render_all(tokenizer, {"talk": TALK}, 5)


def test_a_conversation_without_an_answer_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    with pytest.raises(DataError, match="talk has no assistant turn"):
        render_all(tokenizer, {"talk": TALK[:2]}, tiny.CONTEXT)


# While an answer is generated


@contextlib.contextmanager
def saying(model: PreTrainedModel, rows: list[list[int]]) -> Iterator[None]:
    """Make the model choose these tokens, one row of the batch each, whatever its logits are."""
    step = 0

    def choose(_: Any, __: Any, logits: torch.Tensor) -> torch.Tensor:
        nonlocal step
        forced = torch.zeros_like(logits)
        for row, ids in enumerate(rows):
            forced[row, -1, ids[min(step, len(ids) - 1)]] = 100.0
        step += 1
        return forced

    handle = model.get_output_embeddings().register_forward_hook(choose)
    try:
        yield
    finally:
        handle.remove()


def answer_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return [*tokenizer(text, add_special_tokens=False)["input_ids"], int(tokenizer.eos_token_id)]


def measuring(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cap: Cap) -> HfEngine:
    return HfEngine(model, tokenizer, intervention=lambda m, alpha: measured(m, cap, SCALES, alpha=alpha))


def generate(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cap: Cap, alpha: float, n: int = 60
) -> list[Completion]:
    """All questions in a batch, answered with ANSWERS."""
    with saying(model, [answer_ids(tokenizer, text) for text in ANSWERS]):
        return measuring(model, tokenizer, cap).generate(QUESTIONS, Sampling(max_new_tokens=n), alpha=alpha)


@both_sites
@alphas
def test_generating_tells_what_the_saved_transcript_tells(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    caps: dict[Site, Cap],
    site: Site,
    alpha: float,
    tmp_path: Path,
) -> None:
    """Cached decode of a batch padded on the left, against one pass over the text that was saved and read again."""
    completions = generate(model, tokenizer, caps[site], alpha)
    assert [c.text for c in completions] == ANSWERS
    assert len({c.usage.prompt_tokens for c in completions}) == 3, "padding"
    for number, (question, completion) in enumerate(zip(QUESTIONS, completions, strict=True)):
        file = tmp_path / f"{number}.json"
        save_transcript(Transcript("", [*question, assistant(completion.text)], None, None, alpha), file)
        (transcript,) = read_transcripts(str(file))
        (turns,) = turns_of(model, tokenizer, caps[site], [transcript.messages], alpha=alpha)
        assert completion.drift is not None
        assert len(completion.drift.tokens) == completion.usage.completion_tokens == len(turns[-1].pieces)
        assert None not in completion.drift.tokens, "the end of the turn was chosen, so all before it were fed back"
        np.testing.assert_allclose(numbers(completion.drift), numbers(turns[-1].drift), rtol=2e-4, atol=2e-4)


@both_sites
@alphas
def test_a_stream_tells_the_same_token_by_token(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, caps: dict[Site, Cap], site: Site, alpha: float
) -> None:
    whole = generate(model, tokenizer, caps[site], alpha)
    for question, text, completion in zip(QUESTIONS, ANSWERS, whole, strict=True):
        told: list[tuple[str, TokenDrift | None]] = []
        ids = answer_ids(tokenizer, text)
        with saying(model, [ids]):
            stream = measuring(model, tokenizer, caps[site]).stream(
                question, Sampling(max_new_tokens=60), alpha=alpha, on_drift=lambda t, d, told=told: told.append((t, d))
            )
            assert "".join(stream) == text
        assert [piece for piece, _ in told] == [tokenizer.decode([i]) for i in ids[:-1]]
        assert completion.drift is not None
        streamed = Drift(tuple(drift for _, drift in told))
        np.testing.assert_allclose(numbers(streamed), numbers(completion.drift), rtol=2e-4, atol=2e-4)


def test_each_token_is_told_before_the_answer_goes_on(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, caps: dict[Site, Cap]
) -> None:
    """It streams: the first is told while later ones are still to come."""
    told: list[str] = []
    passes: list[int] = []
    handle = model.get_decoder().register_forward_pre_hook(lambda *_: passes.append(1))
    try:
        with saying(model, [answer_ids(tokenizer, "a " * 100)]):
            stream = measuring(model, tokenizer, caps["mlp"]).stream(
                QUESTIONS[0], Sampling(max_new_tokens=300), on_drift=lambda text, _: told.append(text)
            )
            while not told:
                next(stream)
            stream.close()
    finally:
        handle.remove()
    assert len(passes) < 100


def test_the_last_token_of_an_answer_that_was_cut_is_missing(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, caps: dict[Site, Cap]
) -> None:
    """It was never fed back, so nothing was computed at its position. The transcript has it."""
    cap = caps["mlp"]
    completions = generate(model, tokenizer, cap, 0.5, n=4)
    assert all(c.finish_reason == "length" for c in completions)
    ids = answer_ids(tokenizer, ANSWERS[1])[:4]
    whole = projections_by_hand(model, [*prompt_ids(tokenizer, QUESTIONS[1]), *ids], cap, 0.5)[-4:]
    drift = completions[1].drift
    assert drift is not None
    assert [token is None for token in drift.tokens] == [False, False, False, True]
    np.testing.assert_allclose([t.projections for t in drift.measured], whole[:3], rtol=2e-4, atol=2e-4)
    told: list[TokenDrift | None] = []
    with saying(model, [ids]):
        stream = measuring(model, tokenizer, cap).stream(
            QUESTIONS[1], Sampling(max_new_tokens=4), alpha=0.5, on_drift=lambda _, d: told.append(d)
        )
        list(stream)
    assert [token is None for token in told] == [False, False, False, True]


def test_an_answer_of_one_token_that_was_cut_has_no_drift(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, caps: dict[Site, Cap]
) -> None:
    for completion in generate(model, tokenizer, caps["mlp"], 0.5, n=1):
        assert completion.drift == Drift((None,))


@both_sites
def test_the_share_above_is_the_cap_rate_where_a_cap_acts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, caps: dict[Site, Cap], site: Site
) -> None:
    for completion in generate(model, tokenizer, caps[site], 0.5):
        assert completion.drift is not None
        assert completion.cap_rate == pytest.approx(completion.drift.share_above)
        assert 0 < completion.cap_rate < 1


def test_measuring_changes_no_answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, caps: dict[Site, Cap]
) -> None:
    greedy = Sampling(max_new_tokens=12)
    plain = HfEngine(model, tokenizer, intervention=lambda m, alpha: capped(m, caps["mlp"], alpha=alpha))
    for alpha in (0.0, 1.0):
        answers = measuring(model, tokenizer, caps["mlp"]).generate(QUESTIONS, greedy, alpha=alpha)
        assert [replace(a, drift=None) for a in answers] == plain.generate(QUESTIONS, greedy, alpha=alpha)


def test_engines_without_a_gauge_tell_no_drift(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, caps: dict[Site, Cap]
) -> None:
    told: list[object] = []
    plain = HfEngine(model, tokenizer, intervention=lambda m, alpha: capped(m, caps["mlp"], alpha=alpha))
    for engine in (plain, HfEngine(model, tokenizer), ScriptedEngine(["a b"])):
        assert engine.generate(QUESTIONS[:1], Sampling(max_new_tokens=2))[0].drift is None
        list(engine.stream(QUESTIONS[0], Sampling(max_new_tokens=2), on_drift=lambda *d: told.append(d)))
    assert told == []


# Turns and conversations


def turn(number: int, role: Any, *drifts: float) -> TurnDrift:
    tokens = tuple(TokenDrift(d, float(d > 0), (d,)) for d in drifts)
    return TurnDrift(number, role, Drift(tokens), tuple(f" w{i}" for i in range(len(drifts))))


def talk_of(*means: float, alarm: float = 1.0, ordinary: tuple[float, ...] = ()) -> ConversationDrift:
    """Answers with these means after questions with a mean of 9."""
    turns = []
    for number, mean in enumerate(means):
        turns += [turn(2 * number + 1, "user", 9.0), turn(2 * number + 2, "assistant", mean - 0.5, mean + 0.5)]
    return ConversationDrift(tuple(turns), alarm, ordinary)


def test_only_answers_are_held_against_the_alarm_level() -> None:
    drift = talk_of(0.5, 1.5, 1.0)
    assert [t.number for t in drift.beyond] == [4]
    assert drift.verdict == (
        "Turn 4 is beyond the alarm level (+1.00 sd): mean 1.50 sd above the ceiling, 100% of its tokens above it."
    )
    assert talk_of(-0.2).verdict == (
        "No answer is beyond the alarm level (+1.00 sd): turn 2 is highest, mean 0.20 sd below the ceiling, 50% of its "
        "tokens above it."
    )
    assert talk_of(2.0, 3.0, 0.0, 1.5).verdict.startswith(
        "Turns 2, 4 and 8 are beyond the alarm level (+1.00 sd): turn 4 is highest, mean 3.00 sd above"
    )


def test_the_rank_is_the_share_of_ordinary_answers_below() -> None:
    drift = talk_of(0.25, 2.0, ordinary=(-1.0, 0.0, 0.25, 1.0))
    assert [drift.rank(t) for t in drift.turns] == [None, 0.5, None, 1.0]
    assert talk_of(0.25).rank(talk_of(0.25).turns[1]) is None


def test_the_peak_is_shown_with_the_words_around_it() -> None:
    assert turn(1, "user", 0.0, 1.0, 5.0, 2.0).peak == (" w0 w1", " w2", " w3")
    assert turn(1, "user", 3.0).peak == ("", " w0", "")
    assert turn(1, "system").peak is None


@given(st.lists(st.floats(-5, 5), min_size=3, max_size=12))
def test_the_trend_is_the_least_squares_slope(means: list[float]) -> None:
    """Against numpy's polynomial fit and its covariance, scaled by the residuals."""
    trend = trend_of(means)
    assert trend is not None
    assert trend.error is not None
    x = np.arange(len(means))
    slope, height = np.polyfit(x, means, 1)
    left = float(((np.array(means) - slope * x - height) ** 2).sum())
    assert trend.slope == pytest.approx(slope, abs=1e-8)
    assert trend.error == pytest.approx(np.sqrt(left / (len(x) - 2) / ((x - x.mean()) ** 2).sum()), abs=1e-6)


def test_few_answers_are_no_trend() -> None:
    assert talk_of(1.0).trend is None
    three = talk_of(0.0, 1.0, 2.0).trend
    assert three is not None
    assert three.sentence == "+1.00 sd per answer, over 3 answers only: too few to call it a trend."
    rising, flat = talk_of(0.0, 1.0, 2.0, 3.1).trend, talk_of(0.0, 1.0, 0.0, 1.0).trend
    assert rising is not None
    assert flat is not None
    assert rising.sentence.startswith("The answers drift away from the persona: +1.03 +- 0.0")
    assert flat.sentence.startswith("No clear trend: +0.20 +-")


# What it is measured in


@pytest.fixture
def calibrated(tmp_path: Path, caps: dict[Site, Cap], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with cap.json, its axis and responses; returns cap.json."""
    monkeypatch.setenv("KARMA_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "axis"
    folder.mkdir()
    save_axis(tiny.random_axis(), folder / AXIS_FILE)
    save_spec(caps["mlp"].spec, folder / CAP_FILE)
    responses = [
        Response(f"{split}{i}", split, talk[0].content, talk[1].content, talk[2].content)
        for split, n, seed in (("calibration", 5, 1), ("heldout", 4, 2))
        for i, talk in enumerate(tiny.chats(n, seed=seed))
    ]
    pressed = Response("h9", "heldout", tiny.PERSONA, "Be somebody else.", "Arr, again!", "adversarial")
    append_jsonl(folder / "responses.jsonl", (vars(response) for response in [*responses, pressed]))
    return folder / CAP_FILE


def test_scales_come_from_calibration_answers_and_the_alarm_from_ordinary_held_out_ones(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, caps: dict[Site, Cap], calibrated: Path
) -> None:
    cap = caps["mlp"]
    found = measure_reference(model, tokenizer, cap, calibrated.parent / "responses.jsonl", progress=Silent())

    def answers(n: int, seed: int) -> list[np.ndarray]:
        return [
            projections_by_hand(model, conversation_ids(tokenizer, talk), cap, 0.0)[
                len(prompt_ids(tokenizer, talk[:2])) :
            ][: len(tokenizer(talk[2].content)["input_ids"])]
            for talk in tiny.chats(n, seed=seed)
        ]

    tokens = np.concatenate(answers(5, 1))
    deviations = tokens.std(axis=0, ddof=1)
    np.testing.assert_allclose([found.scales[layer] for layer in cap.spec.layers], deviations, rtol=1e-4)
    t = np.array([cap.spec.thresholds[layer] for layer in cap.spec.layers])
    means = sorted(float(((a - t) / deviations).mean()) for a in answers(4, 2))
    np.testing.assert_allclose(found.ordinary, means, rtol=1e-3, atol=1e-4)
    alarm = Alarm.from_ordinary(found)
    assert alarm.level == pytest.approx(means[2] + 0.97 * (means[3] - means[2]), rel=1e-3, abs=1e-4)
    assert alarm.source == "the mean that 1% of 4 ordinary answers exceed"
    assert Alarm.from_ordinary(found, 0.5).level == pytest.approx((means[1] + means[2]) / 2, rel=1e-3, abs=1e-4)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=9), st.floats(0, 1))
def test_quantiles_are_linear_between_neighbours(values: list[float], q: float) -> None:
    assert quantile(values, q) == pytest.approx(float(np.quantile(values, q)), abs=1e-9)


def test_a_reference_is_measured_once(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, caps: dict[Site, Cap], calibrated: Path
) -> None:
    def find(fingerprint: str = "one") -> tuple[Reference | None, int]:
        passes: list[int] = []
        handle = model.get_decoder().register_forward_pre_hook(lambda *_: passes.append(1))
        try:
            return reference_for(model, tokenizer, caps["mlp"], calibrated, fingerprint, progress=Silent()), len(passes)
        finally:
            handle.remove()

    first, passes = find()
    assert passes > 0
    assert find() == (first, 0)
    assert find("another model")[1] > 0
    (kept, *_) = (calibrated.parent.parent / "cache" / "drift").glob("*.json")
    for damaged in ("{", "[]", '{"scales": {}}'):
        kept.write_text(damaged)
        assert find()[0] == find("another model")[0] == first
    append_jsonl(calibrated.parent / "responses.jsonl", [vars(Response("more", "heldout", "", "Who?", "She."))])
    assert find()[1] > 0


def test_without_responses_there_is_no_reference(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, caps: dict[Site, Cap], calibrated: Path
) -> None:
    (calibrated.parent / "responses.jsonl").unlink()
    assert reference_for(model, tokenizer, caps["mlp"], calibrated, "one", progress=Silent()) is None
    assert Alarm.from_ordinary(Reference(SCALES, ())) == Alarm(0.0, "the ceiling itself")


# Transcripts on disk

ONE = '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "id": 7}'
LIST = '[{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]'


@pytest.mark.parametrize(
    ("text", "names"),
    [
        (ONE, ["t.json"]),
        (LIST, ["t.json"]),
        (LIST.replace("}, {", "},\n{").replace("[", "[\n"), ["t.json"]),
        (f"{ONE}\n\n{LIST}\n", ["t.json line 1", "t.json line 3"]),
        (f"[{ONE}, {LIST}]", ["t.json conversation 1", "t.json conversation 2"]),
    ],
)
def test_the_forms_of_a_transcript(tmp_path: Path, text: str, names: list[str]) -> None:
    file = tmp_path / "t.json"
    file.write_text(text)
    found = read_transcripts(str(file))
    assert [t.name for t in found] == names
    assert all(t.messages == [user("a"), assistant("b")] for t in found)


@pytest.mark.parametrize(
    ("alpha", "alphas"), [("0.5", (None, 0.5)), ("0", (None, 0.0)), ('"soft"', ()), ("null", ()), ("true", ())]
)
def test_an_answer_may_say_its_strength(tmp_path: Path, alpha: str, alphas: tuple[float | None, ...]) -> None:
    file = tmp_path / "t.json"
    file.write_text(LIST.replace('"b"', f'"b", "alpha": {alpha}'))
    (found,) = read_transcripts(str(file))
    assert (found.messages, found.alphas) == ([user("a"), assistant("b")], alphas)
    save_transcript(found, file)
    (again,) = read_transcripts(str(file))
    assert (again.messages, again.alphas) == (found.messages, alphas)


def test_what_the_user_says_has_no_strength(tmp_path: Path) -> None:
    file = tmp_path / "t.json"
    file.write_text(LIST.replace('"a"', '"a", "alpha": 0.5'))
    with pytest.raises(DataError, match="turn 1 has the unknown key 'alpha'"):
        read_transcripts(str(file))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "t.json is empty"),
        ("\n \n", "t.json is empty"),
        ("[]", "holds no conversation"),
        ('{"messages": []}', "holds no conversation"),
        ("3", "holds no conversation"),
        ("{", "not JSON"),
        (f"{ONE}\n{{", "t.json line 2: not JSON"),
        ('[{"role": "tool", "content": "a"}]', "turn 1 has role 'tool', expected one of system, user, assistant"),
        ('[{"role": "assistant", "content": "a"}]', "assistant turn after nothing, expected user"),
        ('[{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]', "user turn after user"),
        (f'{ONE}\n[{{"role": "user", "content": " "}}]', r"t.json line 2: turn 1 \(user\) is empty"),
    ],
)
def test_what_is_no_transcript(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "t.json"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        read_transcripts(str(file))
