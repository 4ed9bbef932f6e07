"""`karma chat` in a terminal: what can be typed, what is remembered, and that Ctrl-C stops a reply, not the program."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import tiny
from karma_electric.cli.chat import open_session
from karma_electric.cli.chat_input import Typed, history_file, read_typed
from karma_electric.cli.chat_session import Session, interactive
from karma_electric.core.messages import assistant, system, user
from karma_electric.export.gguf import export_gguf
from karma_electric.models.chat_template import prompt_ids
from karma_electric.models.engines.hf import HfEngine
from karma_electric.models.engines.protocol import Sampling
from karma_electric.models.engines.scripted import ScriptedEngine
from karma_electric.steer.cap import capped
from karma_electric.steer.neuron import FILE

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SAMPLED = Sampling(temperature=1.0, max_new_tokens=6, seed=3)
GREEDY = Sampling(max_new_tokens=6)
Talk = Callable[..., str]


def type_in(monkeypatch: pytest.MonkeyPatch, *lines: str | BaseException) -> None:
    """What `input` gives, line by line, and then the end of input."""
    typed: Iterator[str | BaseException] = iter(lines)

    def read(_: str) -> str:
        line = next(typed, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Talk:
    """Type lines into a session; returns what was printed, errors included."""

    def typed(session: Session, *lines: str | BaseException, compare: bool = False) -> str:
        type_in(monkeypatch, *lines)
        capsys.readouterr()
        interactive(session, compare=compare)
        captured = capsys.readouterr()
        return captured.out + captured.err

    return typed


@pytest.fixture
def session(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Session:
    """A chat with the tiny model, capped."""
    cap = tiny.cap_at(model, tokenizer, "mlp", alpha=1.0)
    engine = HfEngine(model, tokenizer, intervention=lambda m, alpha: capped(m, cap, alpha=alpha))
    return Session(engine, GREEDY, tiny.PERSONA, 1.0, has_cap=True)


# What can be typed


@pytest.mark.parametrize(
    ("lines", "typed"),
    [
        ([" Hello "], Typed("Hello", command=False)),
        (["one\\", "two\\", "three"], Typed("one\ntwo\nthree", command=False)),
        (["one\\"], Typed("one", command=False)),
        (['"""one', "", "two\\", 'three"""'], Typed("one\n\ntwo\\\nthree", command=False)),
        (['"""', "one", '"""'], Typed("one", command=False)),
        (['"""one"""'], Typed("one", command=False)),
        (['"""one', "two"], Typed("one\ntwo", command=False)),
        (["/alpha 0.5"], Typed("/alpha 0.5", command=True)),
        (['"""/alpha is a path"""'], Typed("/alpha is a path", command=False)),
        (["/system Be\\", "brief."], Typed("/system Be\nbrief.", command=True)),
        (["pasted\nlines"], Typed("pasted\nlines", command=False)),
        (["  "], Typed("", command=False)),
    ],
)
def test_a_message_may_have_several_lines(lines: list[str], typed: Typed, monkeypatch: pytest.MonkeyPatch) -> None:
    type_in(monkeypatch, *lines)
    assert read_typed() == typed


# Commands


def test_the_system_prompt_can_be_changed_shown_and_left_out(session: Session, talk: Talk) -> None:
    assert tiny.PERSONA in talk(session, "/system")
    assert "(system prompt changed)" in talk(session, "/system Be brief.")
    talk(session, "Who?")
    assert session.conversation(session.history)[0] == system("Be brief.")
    assert "left out; the conversation so far stays" in talk(session, "/system none", "Why?")
    assert [message.role for message in session.conversation(session.history)] == ["user", "assistant"] * 2
    assert "(no system prompt)" in talk(session, "/system")


def test_a_retry_answers_the_same_question_with_other_random_numbers(session: Session, talk: Talk) -> None:
    session.sampling = SAMPLED
    assert "Nothing to answer again yet" in talk(session, "/retry")
    talk(session, "One?", "Two?")
    before = list(session.history)
    talk(session, "/retry")
    assert session.history[:3] == before[:3]
    assert session.history[3] != before[3]
    again = session.history[3]
    talk(session, "/retry")
    assert session.history[3] not in (again, before[3])
    assert len(session.alphas) == len(session.history) == 4
    same = "".join(session.engine.stream(session.conversation(before[:2], "Three?"), SAMPLED)).strip()
    talk(session, "/reset")
    session.history[:], session.alphas[:] = before[:2], [None, 1.0]
    talk(session, "Three?")
    assert session.history[3].content == same, "the next question has the chat's own seed"


def test_a_retry_that_fails_keeps_the_old_answer(talk: Talk) -> None:
    class Failing(ScriptedEngine):
        def stream(self, *arguments: Any, **more: Any) -> Iterator[str]:
            if len(self.calls) == 1:
                raise KeyboardInterrupt
            return super().stream(*arguments, **more)

    session = Session(Failing(["Yes."]), GREEDY, None, 0.0, has_cap=False)
    assert "(stopped)" in talk(session, "Who?", "/retry")
    assert session.history == [user("Who?"), assistant("Yes.")]


def test_a_change_of_alpha_starts_from_an_empty_cache(
    session: Session, talk: Talk, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """The whole conversation is read again under the new strength, and answered as if it had never been another."""
    talk(session, "Who?")
    read: list[list[int]] = []
    handle = model.register_forward_pre_hook(
        lambda _, __, kwargs: read.append(kwargs["input_ids"][0].tolist()), with_kwargs=True
    )
    try:
        talk(session, "/alpha 0.25", "Why?")
    finally:
        handle.remove()
    conversation = session.conversation(session.history[:-1])
    assert read[0] == prompt_ids(tokenizer, conversation)
    (fresh,) = session.engine.generate([conversation], GREEDY, alpha=0.25)
    assert session.history[-1].content == fresh.text
    (other,) = session.engine.generate([conversation], GREEDY, alpha=1.0)
    assert other.text != fresh.text, "the strength matters here"


def test_an_interrupt_while_typing_drops_the_line_alone(session: Session, talk: Talk) -> None:
    told = talk(session, '"""half', KeyboardInterrupt(), "/system", KeyboardInterrupt())
    assert "Ctrl-D or /quit" in told
    assert tiny.PERSONA in told
    assert session.history == []


def test_a_compiled_cap_is_said_and_neither_changed_nor_left_out(
    tiny_path: Path, tmp_path: Path, talk: Talk, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tiny_path, tmp_path / "capped")
    (folder / FILE).parent.mkdir()
    (folder / FILE).touch()
    session = open_session(str(folder), cap=None, alpha=None, system=None, sampling=GREEDY)
    assert "capped (compiled in)" in capsys.readouterr().err
    talk(session, "Who?")
    for line in ("/alpha 0", "/alpha 0.5", "/compare", "/drift"):
        told = talk(session, line)
        assert "has its cap compiled into the weights" in told, line
        assert "uncapped  " not in told
    assert session.alphas == [None, None]


def test_without_a_cap_there_is_nothing_to_compare(talk: Talk) -> None:
    session = Session(ScriptedEngine(["Yes."]), GREEDY, None, 0.0, has_cap=False)
    assert "There is no cap" in talk(session, "Who?", "/compare")


# Engines


def test_a_gguf_file_is_chatted_with_in_llama_cpp(tiny_path: Path, tmp_path: Path, talk: Talk) -> None:
    export_gguf(tiny_path, tmp_path / "x.gguf", file_type="f32", name="x")
    session = open_session(str(tmp_path / "x.gguf"), cap=None, alpha=None, system=None, sampling=GREEDY)
    try:
        assert session.engine.name == "llamacpp"
        talk(session, "Who?")
        assert len(session.history) == 2
        assert "There is no cap" in talk(session, "/alpha 0.5")
    finally:
        session.engine.close()  # type: ignore[attr-defined]


def test_a_script_can_be_chatted_with(tmp_path: Path, talk: Talk) -> None:
    (tmp_path / "s.json").write_text('[{"answers": ["Bake it."]}]')
    session = open_session(f"scripted:{tmp_path / 's.json'}", cap=None, alpha=None, system=None, sampling=GREEDY)
    assert "Bake it." in talk(session, "How?")


# In a terminal


# The terminal becomes the program's own, so that Ctrl-C reaches it.
_IN_A_TERMINAL = """
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from karma_electric.cli.main import main
main()
"""


class Terminal:
    """`karma chat` in a pseudo-terminal."""

    def __init__(self, *words: str, state: Path) -> None:
        self._master, slave = pty.openpty()
        environment = os.environ | {"XDG_STATE_HOME": str(state), "TERM": "xterm", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _IN_A_TERMINAL, "chat", *words],
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environment,
            start_new_session=True,
        )
        os.close(slave)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def wait_for(self, pattern: str) -> str:
        """Read until something new is shown that fits; the test's own limit is long, for slow machines."""
        until = time.monotonic() + 240
        while not (found := re.search(pattern, self.shown, re.DOTALL)):
            ready, _, _ = select.select([self._master], [], [], until - time.monotonic())
            try:
                data = os.read(self._master, 65536) if ready else b""
            except OSError:  # Linux says so when the other end is closed
                data = b""
            assert data, f"waited for {pattern!r}, saw {self.shown!r}"
            self.shown += data.decode(errors="replace")
        self.shown = self.shown[found.end() :]
        return found.group()

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self._master)


@pytest.fixture
def endless(tmp_path: Path, fresh_model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Path:
    """The tiny model with an end of turn that it never says."""
    end = tokenizer.eos_token_id
    head = torch.nn.Linear(tiny.HIDDEN, tiny.VOCABULARY, bias=False)
    head.weight.data.copy_(fresh_model.lm_head.weight.data)
    head.weight.data[end] = 0
    fresh_model.config.tie_word_embeddings = False
    fresh_model.lm_head = head
    fresh_model.save_pretrained(tmp_path / "endless")
    tokenizer.save_pretrained(tmp_path / "endless")
    return tmp_path / "endless"


def test_in_a_terminal_ctrl_c_stops_a_reply_and_lines_are_kept(endless: Path, tmp_path: Path) -> None:
    terminal = Terminal(str(endless), "--max-new-tokens", "400", "--temperature", "0", state=tmp_path)
    try:
        terminal.wait_for("you> ")
        terminal.type("Who are you?\r")
        # Some of the reply. What readline writes when a line ends is not it: until then Ctrl-C drops the line.
        terminal.wait_for(r"Who are you\?\r?\n(?:\x1b\[\?2004l\r?)?[^\x1b].{7}")
        terminal.type("\x03")
        terminal.wait_for(r"\(stopped\)")
        terminal.wait_for("you> ")
        terminal.type("\x1b[200~/system pasted\nlines\x1b[201~\r")
        terminal.wait_for("system prompt changed")
        terminal.wait_for("you> ")
        terminal.type("\x03")
        terminal.wait_for("Ctrl-D or /quit")
        terminal.wait_for("you> ")
        terminal.type("\x04")
        assert terminal.process.wait(timeout=120) == 0
    finally:
        terminal.close()
    file = tmp_path / "karma-electric" / "chat-history"
    assert "Who are you?" in file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_without_history_nothing_is_kept(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('[{"answers": ["Bake it."]}]')
    terminal = Terminal(f"scripted:{tmp_path / 's.json'}", "--no-history", state=tmp_path)
    try:
        terminal.wait_for("you> ")
        terminal.type("How?\r")
        terminal.wait_for("Bake it.")
        terminal.wait_for("you> ")
        terminal.type("/quit\r")
        assert terminal.process.wait(timeout=120) == 0
    finally:
        terminal.close()
    assert [file.name for file in tmp_path.iterdir()] == ["s.json"]


def test_the_history_lies_in_the_users_state(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    assert history_file() == tmp_path / "karma-electric" / "chat-history"
    monkeypatch.delenv("XDG_STATE_HOME")
    assert history_file() == Path.home() / ".local" / "state" / "karma-electric" / "chat-history"
