"""`karma drift`, and `/drift` and `/save` in a chat: what they show, find by themselves and refuse."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

import tiny
from karma_electric.cli.chat import open_session
from karma_electric.cli.chat_session import Session, interactive
from karma_electric.core.jsonl import append_jsonl
from karma_electric.core.messages import as_dicts, assistant, system, user
from karma_electric.models.engines.protocol import Sampling
from karma_electric.steer.axis import save_axis
from karma_electric.steer.responses import FILE, Response
from karma_electric.steer.spec import AXIS_FILE, CAP_FILE, save_spec
from test_cli import Ended, karma_here

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TALK = [
    system(tiny.PERSONA),
    user("A nurse needs the medicine."),
    assistant("Why? Give it."),
    user("And the farmer?"),
    assistant("He looks for the truth."),
]
PLAIN = [user("Who?"), assistant("She remembers.")]
Run = Callable[..., Ended]


@pytest.fixture(scope="module")
def made(
    tiny_path: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A run folder with merged/, axis/ and capped/ (the same weights, marked as compiled)."""
    run = tmp_path_factory.mktemp("run")
    shutil.copytree(tiny_path, run / "merged")
    shutil.copytree(tiny_path, run / "capped")
    (run / "capped" / "karma").mkdir()
    (run / "capped" / "karma" / "cap_neurons.safetensors").touch()
    (run / "axis").mkdir()
    save_axis(tiny.random_axis(), run / "axis" / AXIS_FILE)
    save_spec(tiny.cap_at(model, tokenizer, "mlp").spec, run / "axis" / CAP_FILE)
    responses = [
        Response(f"{split}{n}", split, talk[0].content, talk[1].content, talk[2].content)
        for split, count, seed in (("calibration", 6, 1), ("heldout", 5, 2))
        for n, talk in enumerate(tiny.chats(count, seed=seed))
    ]
    append_jsonl(run / "axis" / FILE, map(asdict, responses))
    return run


@pytest.fixture
def here(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a transcript, where the run is reached as `run`."""
    monkeypatch.setenv("KARMA_CACHE", str(made / "cache"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").symlink_to(made)
    (tmp_path / "talk.json").write_text(json.dumps({"messages": as_dicts(TALK)}))
    return tmp_path


@pytest.fixture
def drift(here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `karma drift` in this process."""
    return lambda *words: karma_here(monkeypatch, capsys, "drift", *words)


def measured(ended: Ended) -> dict[str, Any]:
    assert ended.code == 0, ended.err
    value: dict[str, Any] = json.loads(ended.out)
    return value


# What is shown


def test_a_table_names_every_turn_and_its_verdict(drift: Run) -> None:
    ended = drift("talk.json", "--model", "run/merged")
    assert ended.code == 0, ended.err
    lines = ended.out.splitlines()
    assert lines[0].endswith("merged: blocks 2-4, site mlp, no cap acting.")
    assert "the mean that 1% of 5 ordinary answers exceed" in lines[1]
    rows = [line.split() for line in lines if line[:4].strip().isdigit()]
    assert [(row[0], row[1]) for row in rows] == [
        ("1", "system"),
        ("2", "user"),
        ("3", "assistant"),
        ("4", "user"),
        ("5", "assistant"),
    ]
    assert any("the alarm level" in line and "of its tokens above it" in line for line in lines)
    assert any("over 2 answers only: too few to call it a trend" in line for line in lines)


def test_the_json_adds_up(drift: Run) -> None:
    found = measured(drift("talk.json", "--model", "run/merged", "--json", "--tokens"))
    assert (found["layers"], found["site"], found["alpha"]) == ([2, 3, 4], "mlp", 0.0)
    assert len(found["ordinary_answers"]) == 5
    (talk,) = found["conversations"]
    for turn, message in zip(talk["turns"], TALK, strict=True):
        tokens = turn["tokens"]
        assert "".join(token["text"] for token in tokens) == message.content
        for token in tokens:
            z = [
                (p - t) / s for p, t, s in zip(token["projections"], found["thresholds"], found["scales"], strict=True)
            ]
            assert token["drift"] == pytest.approx(sum(z) / 3, abs=1e-4)
        assert turn["mean"] == pytest.approx(sum(token["drift"] for token in tokens) / len(tokens))
        assert turn["max"] == max(token["drift"] for token in tokens)
        assert turn["beyond_alarm"] == (message.role == "assistant" and turn["mean"] > found["alarm"])
    assert talk["beyond_alarm"] == [turn["turn"] for turn in talk["turns"] if turn["beyond_alarm"]]
    short = measured(drift("talk.json", "--model", "run/merged", "--json"))
    assert "tokens" not in short["conversations"][0]["turns"][0]


def test_tokens_beyond_the_ceiling_are_marked(drift: Run) -> None:
    found = measured(drift("talk.json", "--model", "run/merged", "--json", "--tokens"))
    shown = drift("talk.json", "--model", "run/merged", "--tokens").out
    for turn in found["conversations"][0]["turns"][2::2]:
        marked = ""
        for token in turn["tokens"]:
            marked += f"«{token['text']}»" if token["drift"] > 0 else token["text"]
        assert marked.replace("»«", "") in shown
        assert "«" in marked


def test_several_conversations_are_measured_like_each_alone(drift: Run, here: Path) -> None:
    lines = [json.dumps({"messages": as_dicts(talk)}) for talk in (TALK, PLAIN)]
    (here / "both.jsonl").write_text("\n".join(lines))
    (here / "plain.json").write_text(json.dumps(as_dicts(PLAIN)))
    both = measured(drift("both.jsonl", "--model", "run/merged", "--json"))["conversations"]
    assert [one["name"] for one in both] == ["both.jsonl line 1", "both.jsonl line 2"]
    for one, file in zip(both, ("talk.json", "plain.json"), strict=True):
        (alone,) = measured(drift(file, "--model", "run/merged", "--json"))["conversations"]
        means = [[turn["mean"] for turn in talk["turns"]] for talk in (one, alone)]
        assert means[0] == pytest.approx(means[1], abs=0.05), "bfloat16, where the machine has it"


def test_a_transcript_from_standard_input(drift: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin = SimpleNamespace(buffer=io.BytesIO((here / "talk.json").read_bytes()))
    monkeypatch.setattr("sys.stdin", stdin)
    piped = measured(drift("-", "--model", "run/merged", "--json"))["conversations"][0]
    assert piped["name"] == "standard input"
    assert (
        piped["turns"] == measured(drift("talk.json", "--model", "run/merged", "--json"))["conversations"][0]["turns"]
    )


def test_the_cap_acts_when_it_is_asked_for(drift: Run) -> None:
    off, on = (
        measured(drift("talk.json", "--model", "run/merged", "--json", "--alpha", a))["conversations"][0]["turns"]
        for a in (0, 1)
    )
    assert off != on
    assert sum(turn["mean"] for turn in on) < sum(turn["mean"] for turn in off)


def test_the_plot_is_a_picture(drift: Run, here: Path) -> None:
    from matplotlib import image

    assert drift("talk.json", "--model", "run/merged", "--plot", "drift.png").code == 0
    picture = image.imread(here / "drift.png")
    assert picture.shape[0] > 300
    assert picture.shape[1] > 800
    assert len({tuple(pixel) for pixel in picture.reshape(-1, picture.shape[2])[::7].tolist()}) > 50


# The alarm


@pytest.mark.parametrize(("level", "code"), [("100", 0), ("-100", 1)])
def test_a_check_fails_where_an_answer_is_beyond_the_level(drift: Run, level: str, code: int) -> None:
    ended = drift("talk.json", "--model", "run/merged", "--check", f"--alarm={level}")
    assert ended.code == code
    assert f"Alarm level {float(level):+.2f} sd: as given" in ended.out
    if code:
        ended.refused(1, "1 of 1 conversations went beyond the alarm level (-100.00 sd): talk.json")


def test_without_a_check_an_alarm_is_no_failure(drift: Run) -> None:
    ended = drift("talk.json", "--model", "run/merged", "--alarm=-100")
    assert ended.code == 0
    assert "Turns 3 and 5 are beyond the alarm level" in ended.out


def test_an_alarm_may_be_a_share_of_ordinary_answers(drift: Run) -> None:
    found = measured(drift("talk.json", "--model", "run/merged", "--json", "--alarm", "50%"))
    assert found["alarm"] == pytest.approx(sorted(found["ordinary_answers"])[2])
    assert found["alarm_source"] == "the mean that 50% of 5 ordinary answers exceed"


# Model and cap


@pytest.mark.parametrize("words", [("--model", "run/merged"), ("--cap", "run/axis"), ("--cap", "run/axis/cap.json")])
def test_model_and_cap_are_found_from_each_other(drift: Run, made: Path, words: tuple[str, ...]) -> None:
    found = measured(drift("talk.json", *words, "--json"))
    assert Path(found["model"]).samefile(made / "merged")
    assert Path(found["cap"]).samefile(made / "axis" / CAP_FILE)


def test_a_compiled_model_is_measured_against_a_cap_that_is_given(drift: Run) -> None:
    ended = drift("talk.json", "--model", "run/capped", "--cap", "run/axis")
    assert ended.code == 0, ended.err
    assert "its compiled cap acting" in ended.out
    assert "warning" not in ended.err, "that it is another model than the axis was made on is no news"


def test_without_responses_the_transcript_is_its_own_measure(drift: Run, here: Path, made: Path) -> None:
    shutil.copytree(made / "axis", here / "bare")
    (here / "bare" / FILE).unlink()
    ended = drift("talk.json", "--model", "run/merged", "--cap", "bare")
    assert ended.code == 0, ended.err
    assert "cannot be compared with another's" in " ".join(ended.err.split())
    assert "Alarm level +0.00 sd: the ceiling itself" in ended.out
    drift("talk.json", "--model", "run/merged", "--cap", "bare", "--alarm", "5%").refused(2, "no responses.jsonl")


@pytest.mark.parametrize(
    ("words", "code", "named"),
    [
        (["nowhere.json", "--model", "run/merged"], 3, ["nowhere.json does not exist"]),
        (["empty.json", "--model", "run/merged"], 2, ["empty.json is empty", '"messages"']),
        (["roles.json", "--model", "run/merged"], 2, ["roles.json", "turn 1 has role 'tool'"]),
        (["asked.json", "--model", "run/merged"], 2, ["asked.json has no assistant turn"]),
        (["talk.json"], 3, ["Nothing says which model", "--model"]),
        (["talk.json", "--model", "gguf/model-Q8_0.gguf"], 2, ["has no activations", "runs/demo/merged"]),
        (["talk.json", "--model", "nothing/at/all"], 3, ["no cap beside nothing/at/all", "--cap"]),
        (["talk.json", "--model", "./nothing", "--cap", "run/axis"], 3, ["The model './nothing' does not exist"]),
        (["talk.json", "--model", "builtin:smollm2-135m"], 3, ["no cap beside builtin:smollm2-135m", "--cap"]),
        (["talk.json", "--model", "run/merged", "--cap", "nowhere"], 3, ["The cap nowhere does not exist"]),
        (["talk.json", "--model", "run/capped"], 2, ["compiled into the weights", "--cap", "run/axis"]),
        (["talk.json", "--model", "run/capped", "--cap", "run/axis", "--alpha", "0.5"], 2, ["cap twice"]),
        (["talk.json", "--model", "run/merged", "--alpha", "1.5"], 2, ["--alpha is 1.5"]),
        (["talk.json", "--model", "run/merged", "--alarm", "high"], 2, ["--alarm is 'high'", "5%"]),
        (["talk.json", "--model", "run/merged", "--alarm", "100%"], 2, ["--alarm is '100%'"]),
        (["talk.json", "--model", "run/merged", "--plot", "drift.pdf"], 2, ["--plot is drift.pdf", ".png"]),
        (["talk.json", "--model", "run/merged", "--plot", "no/drift.png"], 2, ["a folder that exists"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) and "--model" in value else None,
)
def test_a_mistake_is_one_line(drift: Run, here: Path, words: list[str], code: int, named: list[str]) -> None:
    (here / "empty.json").write_text("")
    (here / "roles.json").write_text('[{"role": "tool", "content": "x"}]')
    (here / "asked.json").write_text(json.dumps(as_dicts(TALK[:2])))
    drift(*words).refused(code, *named)


def test_a_cap_of_another_shape_is_refused(drift: Run, here: Path, made: Path) -> None:
    shutil.copytree(made / "axis", here / "narrow")
    save_axis(tiny.random_axis(hidden=32), here / "narrow" / AXIS_FILE)
    for model in ("run/merged", "run/capped"):
        drift("talk.json", "--model", model, "--cap", "narrow").refused(2, "hidden size 32", f"{tiny.HIDDEN}")


def test_a_transcript_longer_than_the_context_names_its_turn(drift: Run, here: Path) -> None:
    long = [user("a b c d " * 200), assistant("x")]
    (here / "long.json").write_text(json.dumps(as_dicts(long)))
    drift("long.json", "--model", "run/merged").refused(
        2, "long.json has ", f"context of {tiny.CONTEXT}", "turn 1 (user)"
    )


# In a chat


@pytest.fixture
def chat(here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Type lines into a chat with the run's model; returns what was printed, errors included."""
    session: list[Session] = []

    def talk(*lines: str, compare: bool = False) -> str:
        if not session:
            sampling = Sampling(temperature=0.0, max_new_tokens=6)
            session.append(open_session("run/merged", cap=None, alpha=0.5, system=None, sampling=sampling))
        typed = iter(lines)

        def read(_: str) -> str:
            try:
                return next(typed)
            except StopIteration:
                raise EOFError from None

        monkeypatch.setattr("builtins.input", read)
        capsys.readouterr()
        interactive(session[0], compare=compare)
        captured = capsys.readouterr()
        return captured.out + captured.err

    return talk


def test_drift_is_told_after_every_answer_while_it_is_on(chat: Callable[..., str]) -> None:
    assert "drift:" not in chat("Who?")
    switched = chat("/drift")
    assert "so far, at alpha 0.5" in switched
    assert "(drift on; an answer is beyond the alarm level above" in switched
    told = chat("And the farmer?")
    assert told.count("drift: mean ") == 1
    assert "the alarm level (" in told
    assert "of ordinary answers" in told
    assert "no longer told" in chat("/drift")
    assert "drift:" not in chat("Why?")


def test_drift_so_far_tells_of_answers_given_at_other_strengths(chat: Callable[..., str]) -> None:
    chat("Who?", "/alpha 0.25", "Why?")
    told = chat("/drift")
    assert "given at alpha answer 1: 0.5; answer 2: 0.25. All are read at 0.25 here" in told
    assert "given at alpha" not in chat("/drift", "/reset", "Who?", "/drift")


def test_a_comparison_tells_the_drift_of_both(chat: Callable[..., str]) -> None:
    told = chat("/drift", "Who?", compare=True)
    assert told.count("drift: mean ") == 2


def test_a_saved_chat_is_measured_without_naming_anything(
    chat: Callable[..., str], drift: Run, here: Path, made: Path
) -> None:
    """/save writes model, cap and alpha beside the turns."""
    assert "(saved: karma drift chat.json)" in chat("Who?", "And the farmer?", "/save chat.json")
    saved = json.loads((here / "chat.json").read_text())
    assert [m["role"] for m in saved["messages"]] == ["system", "user", "assistant", "user", "assistant"]
    assert saved["messages"][0]["content"] == tiny.PERSONA
    assert saved["alpha"] == 0.5
    ended = drift("chat.json", "--json")
    assert Path(measured(ended)["model"]).samefile(made / "merged")
    assert "saved at alpha 0.5 and is measured at 0" in ended.err
    assert "saved at alpha" not in drift("chat.json", "--alpha", "0.5").err


def test_a_saved_chat_tells_the_strength_of_every_answer(chat: Callable[..., str], drift: Run, here: Path) -> None:
    chat("Who?", "/alpha 0.25", "Why?", "/compare", "/alpha 1", "/save chat.json")
    saved = json.loads((here / "chat.json").read_text())
    assert [message.get("alpha") for message in saved["messages"]] == [None, None, 0.5, None, 0.25]
    assert saved["alpha"] == 1.0
    ended = drift("chat.json", "--alpha", "0.5", "--json")
    assert len(measured(ended)["conversations"][0]["turns"]) == 5
    assert "the strength changed during chat.json: alpha 0.5 in turn 3; 0.25 in turn 5." in ended.err
    assert "All of it is measured at 0.5." in ended.err


def test_what_was_forgotten_is_not_in_the_strengths(chat: Callable[..., str], here: Path) -> None:
    chat("Who?", "/reset", "/alpha 0.25", "Why?", "/save chat.json")
    saved = json.loads((here / "chat.json").read_text())
    assert [message.get("alpha") for message in saved["messages"]] == [None, None, 0.25]


def test_a_session_replaces_only_what_it_saved_itself(chat: Callable[..., str], here: Path) -> None:
    chat("Who?", "/save mine.json")
    first = (here / "mine.json").read_text()
    assert "error" not in chat("Why?", "/save mine.json")
    assert (here / "mine.json").read_text() != first
    before = (here / "talk.json").read_text()
    assert "talk.json is there already, and not from this chat" in chat("/save talk.json")
    assert (here / "talk.json").read_text() == before


def test_a_save_that_cannot_be_does_not_end_the_chat(chat: Callable[..., str]) -> None:
    assert "nothing to save yet" in chat("/save chat.json")
    told = chat("Who?", "/save", "/save nowhere/at/all.json", "/help")
    assert "needs the name of a file" in told
    assert "nowhere/at/all.json cannot be written" in told
    assert "/drift" in told


def test_without_a_cap_there_is_no_drift(here: Path, tiny_path: Path) -> None:
    session = open_session(str(tiny_path), cap=None, alpha=None, system="", sampling=Sampling())
    with pytest.raises(Exception, match="no ceiling to drift over") as refused:
        session.switch_drift(on=True)
    assert refused.value.exit_code == 3  # type: ignore[attr-defined]


def test_one_answer_with_its_drift(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ("chat", "run/merged", "--prompt", "Who?", "--drift", "--max-new-tokens", "5", "--temperature", "0")
    ended = karma_here(monkeypatch, capsys, *words)
    assert ended.code == 0, ended.err
    assert ended.out.splitlines()[-1].startswith("  drift: mean ")
