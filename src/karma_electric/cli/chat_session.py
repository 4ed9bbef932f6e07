"""A conversation with a model in a terminal: lines, commands, streamed answers, two answers side by side."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from karma_electric.cli.chat_drift import Gauge, OpenGauge
    from karma_electric.core.errors import MissingError
    from karma_electric.core.messages import Conversation
    from karma_electric.models.engines.protocol import Engine, Sampling

_HELP = """\
  /alpha 0.3    change the strength of the cap (0 off, 0.5 soft, 1 hard)
  /compare      answer the last question again, capped and uncapped side by side
  /drift        tell how far each answer goes from the persona; again to stop
  /retry        answer the last question anew, with other random numbers
  /system TEXT  change the system prompt; /system none: have none; /system: show it
  /save FILE    write the conversation to a .json file, for karma drift
  /reset        forget the conversation
  /quit         leave (so does Ctrl-D); Ctrl-C stops an answer
  Several lines: end a line with \\, or put them between \"\"\" and \"\"\"."""


@dataclass
class Session:
    """A model ready to talk to.

    Attributes:
        engine: answers.
        sampling: how.
        system_prompt: opens every conversation, None for none.
        alpha: strength of the cap now.
        has_cap: whether there is one.
        compiled: whether the model has one compiled into its weights, which no strength can change.
        model, cap: folder and cap.json, for what is saved.
        open_gauge: makes what measures drift; None without a cap.
        gauge: the one that is in use while drift is told.
        history: the conversation so far, without the system prompt.
        alphas: strength at which each turn of `history` was given; None for the user's, and without a cap.
        saved: files this session has written, which it may write again.
        retries: how often the last question was answered anew.
    """

    engine: Engine
    sampling: Sampling
    system_prompt: str | None
    alpha: float
    has_cap: bool
    compiled: bool = False
    model: str | None = None
    cap: str | None = None
    open_gauge: OpenGauge | None = None
    gauge: Gauge | None = None
    history: Conversation = field(default_factory=list)
    alphas: list[float | None] = field(default_factory=list)
    saved: set[Path] = field(default_factory=set)
    retries: int = 0

    def switch_drift(self, *, on: bool) -> None:
        """Tell the drift of answers from now on, or stop.

        Raises:
            InputError: the cap is compiled into the model.
            MissingError: there is no cap, or nothing tells what drift is usual.
        """
        from karma_electric.core.errors import MissingError

        if not on:
            self.gauge = None
            return
        self.require_not_compiled()
        if self.open_gauge is None:
            raise MissingError(
                "There is no cap for this model, so no ceiling to drift over.", "Start again with --cap."
            )
        self.gauge = self.open_gauge()

    def require_not_compiled(self) -> None:
        """Refuse what needs a cap that can be changed or left out.

        Raises:
            InputError: the cap is compiled into the model.
        """
        from karma_electric.cli.chat import require_changeable

        if self.compiled and self.model is not None:
            require_changeable(Path(self.model))

    def conversation(self, history: Conversation, line: str | None = None) -> Conversation:
        """The system prompt, what was said and, if given, a line of the user."""
        from karma_electric.core.messages import system, user

        opening = [] if self.system_prompt is None else [system(self.system_prompt)]
        return [*opening, *history, *([] if line is None else [user(line)])]

    @property
    def answering(self) -> Engine:
        """The engine that measures drift while that is on."""
        return self.engine if self.gauge is None else self.gauge.engine

    @property
    def asked_sampling(self) -> Sampling:
        """How tokens are chosen now: every retry has a seed of its own."""
        from dataclasses import replace

        return replace(self.sampling, seed=(self.sampling.seed + self.retries) % 2**63)

    @property
    def asked_alpha(self) -> float | None:
        """The strength to ask the engine for."""
        return self.alpha if self.has_cap else None


def interactive(session: Session, *, compare: bool, keep_history: bool = False) -> None:
    """Read messages and answer them until the end of input. `keep_history`: of lines, between sessions.

    Ctrl-C stops an answer, whatever else is being done, or drops what is being typed: never the chat.
    """
    from karma_electric.cli.chat_input import line_editing, read_typed
    from karma_electric.core.errors import KarmaError

    print("Type a message, or /help.", file=sys.stderr)
    with line_editing(keep=keep_history):
        while True:
            try:
                typed = read_typed()
            except EOFError:
                print()
                return
            except KeyboardInterrupt:
                print("\n(Ctrl-D or /quit to leave)")
                continue
            except UnicodeDecodeError:
                print("error: That line is not UTF-8. Set the terminal to UTF-8.", file=sys.stderr)
                continue
            try:
                if typed.command and typed.text == "/quit":
                    return
                if typed.command:
                    command, _, argument = typed.text.partition(" ")
                    _obey(session, command, argument.strip(), compare=compare)
                elif typed.text:
                    session.retries = 0
                    _answer(session, typed.text, compare=compare)
            except KarmaError as error:
                print(f"error: {error}", file=sys.stderr)
            except KeyboardInterrupt:
                print(" (stopped)")


def _answer(session: Session, line: str, *, compare: bool) -> None:
    """Answer a line of the user, and remember both."""
    from karma_electric.core.messages import assistant, user

    conversation = session.conversation(session.history, line)
    answer = (print_comparison if compare else ask)(session, conversation)
    session.history += [user(line), assistant(answer or "(no answer)")]
    session.alphas += [None, session.asked_alpha]


def _retry(session: Session, *, compare: bool) -> None:
    """Answer the last question anew. The old answer is forgotten once there is a new one."""
    from karma_electric.core.errors import InputError

    if not session.history:
        raise InputError("Nothing to answer again yet.", "Ask something first.")
    if session.sampling.temperature == 0:
        print("(temperature 0: the answer only changes with alpha or the system prompt)")
    history, alphas = list(session.history), list(session.alphas)
    session.retries += 1
    del session.history[-2:], session.alphas[-2:]
    try:
        _answer(session, history[-2].content, compare=compare)
    except BaseException:
        session.history[:], session.alphas[:] = history, alphas
        raise


def _set_system(session: Session, text: str) -> None:
    """Show the system prompt, change it, or do without one."""
    if text:
        session.system_prompt = None if text == "none" else text
        so_far = "; the conversation so far stays" if session.history else ""
        print(f"(system prompt {'left out' if text == 'none' else 'changed'}{so_far})")
    else:
        print("(no system prompt)" if session.system_prompt is None else session.system_prompt)


def _obey(session: Session, command: str, argument: str, *, compare: bool) -> None:
    """Carry out a line that starts with a slash."""
    from karma_electric.core.errors import InputError

    if command == "/help":
        print(_HELP)
    elif command == "/reset":
        session.history.clear()
        session.alphas.clear()
        print("(forgotten)")
    elif command == "/alpha":
        session.alpha = _read_alpha(argument, session)
        print(f"(alpha {session.alpha:g})")
    elif command == "/retry":
        _retry(session, compare=compare)
    elif command == "/system":
        _set_system(session, argument)
    elif command == "/drift":
        session.switch_drift(on=session.gauge is None)
        if session.gauge is None:
            print("(drift is no longer told)")
            return
        if session.history:
            session.gauge.print_so_far(session.conversation(session.history), session.alpha)
            if note := _strengths_note(session):
                print(note)
        print(f"(drift on; an answer is beyond the alarm level above {session.gauge.alarm.level:+.2f} sd)")
    elif command == "/save":
        save(session, argument)
    elif command == "/compare":
        if not session.history:
            raise InputError("Nothing to compare yet.", "Ask something first.")
        session.require_not_compiled()
        if not session.has_cap:
            raise _no_cap()
        print_comparison(session, session.conversation(session.history[:-1]))
    else:
        raise InputError(f"{command} is not a command.", "Type /help for the list.")


def _strengths_note(session: Session) -> str:
    """What to say where answers were given at other strengths than the conversation is read at."""
    given = [alpha for alpha in session.alphas if alpha is not None]
    if all(alpha == session.alpha for alpha in given):
        return ""
    answers = "; ".join(f"answer {number}: {alpha:g}" for number, alpha in enumerate(given, 1))
    return (
        f"  (given at alpha {answers}. All are read at {session.alpha:g} here: their words are the same, "
        "their drift is not what it was then)"
    )


def save(session: Session, name: str) -> None:
    """Write the conversation so far, with the strength of every answer.

    A file that this session has not written is never replaced.

    Raises:
        InputError: nothing was said yet, no name, a file that is there, or one that cannot be written.
    """
    from karma_electric.core.errors import InputError
    from karma_electric.core.transcripts import Transcript, save_transcript

    if not session.history:
        raise InputError("There is nothing to save yet.", "Ask something first.")
    if not name:
        raise InputError("/save needs the name of a file.", "For example: /save chat.json")
    file = Path(name).expanduser().resolve()
    if file.exists() and file not in session.saved:
        raise InputError(f"{name} is there already, and not from this chat.", "Give another name.")
    conversation = session.conversation(session.history)
    opening: list[float | None] = [None] * (len(conversation) - len(session.history))
    transcript = Transcript(
        name, conversation, session.model, session.cap, session.asked_alpha, (*opening, *session.alphas)
    )
    try:
        save_transcript(transcript, file)
    except OSError as error:
        raise InputError(f"{name} cannot be written ({error.strerror}).", "Give another place.") from None
    session.saved.add(file)
    print(f"(saved: karma drift {name})" if session.has_cap else f"(saved to {name})")


def ask(session: Session, conversation: Conversation, *, keep_what_was_said: bool = True) -> str:
    """Print an answer as it comes, and return it. Ctrl-C ends the answer and, unless what was said so far is kept,
    the program.
    """
    gauge = session.gauge
    pieces = session.answering.stream(
        conversation,
        session.asked_sampling,
        alpha=session.asked_alpha,
        on_drift=None if gauge is None else gauge.listen(),
    )
    answer = ""
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
            answer += piece
    except KeyboardInterrupt:
        pieces.close()  # type: ignore[attr-defined]
        if not keep_what_was_said:
            raise
        print(" (stopped)", end="")
    print()
    if gauge is not None:
        print(f"  {gauge.line()}")
    return answer.strip()


def print_comparison(session: Session, conversation: Conversation) -> str:
    """Print the capped and the uncapped answer, side by side on a wide terminal. Returns the capped one."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    strengths = (session.alpha, 0.0)
    completions = [session.answering.generate([conversation], session.asked_sampling, alpha=a)[0] for a in strengths]
    rate = completions[0].cap_rate
    measured = "" if rate is None else f" ({rate:.0%} of tokens)"
    capped = f"capped, alpha {session.alpha:g}{measured}" if session.alpha else "alpha 0, not capped"
    titles = [capped, "uncapped"]
    width = shutil.get_terminal_size((80, 24)).columns
    if width >= 80:
        table = Table(*titles, expand=True, width=width)
        table.add_row(*(Text(c.text) for c in completions))
        Console(width=width).print(table)
    else:
        for title, completion in zip(titles, completions, strict=True):
            print(f"--- {title}\n{completion.text}\n")
    for title, completion in zip(titles, completions, strict=True):
        if session.gauge is not None and completion.drift is not None:
            print(f"  {title}: {session.gauge.line_of(completion.drift)}")
    return completions[0].text


def _read_alpha(text: str, session: Session) -> float:
    from karma_electric.core.errors import InputError

    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise InputError(f"/alpha {text!r} is not a number from 0 to 1.", "For example: /alpha 0.5")
    session.require_not_compiled()
    if value and not session.has_cap:
        raise _no_cap()
    return value


def _no_cap() -> MissingError:
    from karma_electric.core.errors import MissingError

    return MissingError("There is no cap for this model.", "Start again with --cap.")
