"""`karma chat`, and the original's command line: talk to a model with its activations capped, or not."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from karma_electric.core.messages import Conversation
    from karma_electric.models.engines.protocol import Engine, Sampling

_HELP = """\
  /alpha 0.3    change the strength of the cap (0 off, 0.5 soft, 1 hard)
  /compare      answer the last question again, capped and uncapped side by side
  /reset        forget the conversation
  /quit         leave (so does Ctrl-D); Ctrl-C stops an answer"""


@dataclass
class Session:
    """A model ready to talk to."""

    engine: Engine
    sampling: Sampling
    system_prompt: str | None
    alpha: float
    has_cap: bool


def chat(
    model: Annotated[str, typer.Argument(help="A model folder (runs/demo/merged), a hub id, or builtin:smollm2-135m.")],
    cap: Annotated[
        Path | None, typer.Option("--cap", help="cap.json, or its folder; found beside the model in a run.")
    ] = None,
    alpha: Annotated[
        float | None,
        typer.Option("--alpha", help="Strength: 0 off, 0.5 soft, 1 hard; the cap's own when not given."),
    ] = None,
    prompt: Annotated[str | None, typer.Option("--prompt", help="Answer this and leave.")] = None,
    compare: Annotated[bool, typer.Option("--compare", help="Show capped and uncapped answers side by side.")] = False,
    system: Annotated[
        str | None,
        typer.Option("--system", help="System prompt; the persona of the cap or run when not given."),
    ] = None,
    max_new_tokens: Annotated[int, typer.Option("--max-new-tokens", min=1, help="Longest answer, in tokens.")] = 256,
    temperature: Annotated[
        float, typer.Option("--temperature", min=0.0, help="0 always takes the likeliest token.")
    ] = 0.7,
    top_p: Annotated[
        float, typer.Option("--top-p", min=0.01, max=1.0, help="Sample from the likeliest tokens that sum to this.")
    ] = 0.9,
    seed: Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Seed of the sampling.")] = 0,
) -> None:
    """Chat with a model, with its activations capped as strongly as you like.

    Example: karma chat runs/demo/merged --alpha 0.5
    """
    from karma_electric.models.engines.protocol import Sampling

    if not math.isfinite(temperature) or temperature > 10:
        from karma_electric.core.errors import InputError

        raise InputError(f"--temperature is {temperature}, expected a number from 0 to 10.", "0.7 is usual.")
    sampling = Sampling(temperature=temperature, top_p=top_p, max_new_tokens=max_new_tokens, seed=seed)
    if prompt is not None and not prompt.strip():
        from karma_electric.core.errors import InputError

        raise InputError("--prompt is empty.", "Give the question in quotes.")
    session = open_session(model, cap=cap, alpha=alpha, system=system, sampling=sampling, compare=compare)
    if prompt is None:
        interactive(session, compare=compare)
    elif compare:
        print_comparison(session, _conversation(session, [], prompt))
    else:
        for piece in session.engine.stream(_conversation(session, [], prompt), sampling, alpha=_alpha(session)):
            print(piece, end="", flush=True)
        print()


def open_session(
    name: str,
    *,
    cap: Path | None,
    alpha: float | None,
    system: str | None,
    sampling: Sampling,
    compare: bool = False,
) -> Session:
    """Load a model and the cap that belongs to it.

    Raises:
        MissingError: no such model; or a strength is asked for, and there is no cap.
        InputError: alpha outside [0, 1]; or the cap is compiled into this model already.
        ArtifactError: the cap is for a model of another shape.
    """
    from karma_electric.core.errors import InputError
    from karma_electric.core.extras import require
    from karma_electric.models.engines.hf import HfEngine
    from karma_electric.models.loading import load_model, load_tokenizer
    from karma_electric.models.refs import resolve

    if alpha is not None and not 0.0 <= alpha <= 1.0:
        raise InputError(f"--alpha is {alpha:g}, expected a number from 0 (off) to 1 (hard).", "0.5 is the soft cap.")
    require("model")
    ref = resolve(name)
    found = find_cap(ref.path, cap, needed=bool(alpha) or compare)
    model, tokenizer = load_model(ref.path), load_tokenizer(ref.path)
    if found is None:
        engine = HfEngine(model, tokenizer)
        return Session(engine, sampling, system if system is not None else run_persona(ref.path), 0.0, has_cap=False)
    from karma_electric.steer.cap import capped
    from karma_electric.steer.compat import check_cap
    from karma_electric.steer.spec import describe, load_cap

    loaded, axis = load_cap(found)
    for warning in check_cap(model, tokenizer, loaded, axis, ref.fingerprint):
        print(f"warning: {warning}", file=sys.stderr)

    def intervene(model: Any, strength: float | None) -> AbstractContextManager[Any]:
        return capped(model, loaded, alpha=strength)

    strength = loaded.spec.alpha if alpha is None else alpha
    print(f"{describe(loaded.spec)}; alpha now {strength:g}", file=sys.stderr)
    return Session(
        HfEngine(model, tokenizer, intervention=intervene),
        sampling,
        system if system is not None else axis.toward,
        strength,
        has_cap=True,
    )


def find_cap(model: Path, given: Path | None, *, needed: bool) -> Path | None:
    """The cap for a model: the one given, else `axis/cap.json` beside the model in its run folder.

    Raises:
        InputError: the model has its cap compiled in. MissingError: a cap is needed and there is none.
    """
    from karma_electric.core.errors import InputError, MissingError
    from karma_electric.steer.neuron import FILE
    from karma_electric.steer.spec import CAP_FILE

    if (model / FILE).exists():
        if given is not None or needed:
            raise InputError(
                f"{model} has its cap compiled into the weights; hooks on top would cap twice.",
                f"Give the uncapped model ({model.parent / 'merged'}) to change alpha, or leave out --cap and --alpha.",
            )
        return None
    if given is not None:
        file = given / CAP_FILE if given.is_dir() else given
        if not file.is_file():
            raise MissingError(
                f"The cap {given} does not exist.",
                "Give the cap.json of a run, such as runs/demo/axis/cap.json.",
            )
        return file
    beside = model.parent / "axis" / CAP_FILE
    if beside.is_file() and (model.parent / "merged").resolve() == model.resolve():
        return beside
    if needed:
        raise MissingError(
            f"There is no cap beside {model} (looked for {beside}).",
            "Give one with --cap, or use --alpha 0 for the plain model.",
        )
    return None


def run_persona(model: Path) -> str | None:
    """The deployment prompt of the run a model lies in, if it lies in one."""
    recipe = model.parent / "recipe.toml"
    if not recipe.is_file():
        return None
    from karma_electric.core.recipe import load_recipe

    return load_recipe(recipe).persona.system_prompt


def interactive(session: Session, *, compare: bool) -> None:
    """Read lines and answer them until the end of input."""
    from karma_electric.core.errors import InputError, KarmaError
    from karma_electric.core.messages import assistant, user

    print("Type a message, or /help.", file=sys.stderr)
    history: Conversation = []
    last: str | None = None
    while True:
        try:
            line = input("\nyou> ").strip()
        except (EOFError, KeyboardInterrupt):
            print()
            return
        except UnicodeDecodeError:
            print("error: That line is not UTF-8. Set the terminal to UTF-8.", file=sys.stderr)
            continue
        try:
            if not line:
                continue
            if line.startswith("/"):
                command, _, argument = line.partition(" ")
                if command == "/quit":
                    return
                if command == "/help":
                    print(_HELP)
                elif command == "/reset":
                    history, last = [], None
                    print("(forgotten)")
                elif command == "/alpha":
                    session.alpha = _read_alpha(argument, session)
                    print(f"(alpha {session.alpha:g})")
                elif command == "/compare":
                    if last is None:
                        raise InputError("Nothing to compare yet.", "Ask something first.")
                    print_comparison(session, _conversation(session, history[:-2], last))
                else:
                    raise InputError(f"{command} is not a command.", "Type /help for the list.")
                continue
            conversation = _conversation(session, history, line)
            if compare:
                answer = print_comparison(session, conversation)
            else:
                answer = _print_stream(session.engine.stream(conversation, session.sampling, alpha=_alpha(session)))
            history += [user(line), assistant(answer or "(no answer)")]
            last = line
        except KarmaError as error:
            print(f"error: {error}", file=sys.stderr)


def _read_alpha(text: str, session: Session) -> float:
    from karma_electric.core.errors import InputError, MissingError

    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise InputError(f"/alpha {text!r} is not a number from 0 to 1.", "For example: /alpha 0.5")
    if value and not session.has_cap:
        raise MissingError("There is no cap for this model.", "Start again with --cap.")
    return value


def _print_stream(pieces: Iterator[str]) -> str:
    """Print an answer as it comes; Ctrl-C ends the answer, not the program."""
    answer = ""
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
            answer += piece
    except KeyboardInterrupt:
        pieces.close()  # type: ignore[attr-defined]
        print(" (stopped)", end="")
    print()
    return answer.strip()


def print_comparison(session: Session, conversation: Conversation) -> str:
    """Print the capped and the uncapped answer, side by side on a wide terminal. Returns the capped one."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    strengths = (session.alpha, 0.0)
    completions = [session.engine.generate([conversation], session.sampling, alpha=a)[0] for a in strengths]
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
    return completions[0].text


def _conversation(session: Session, history: Conversation, line: str) -> Conversation:
    from karma_electric.core.messages import system, user

    opening = [] if session.system_prompt is None else [system(session.system_prompt)]
    return [*opening, *history, user(line)]


def _alpha(session: Session) -> float | None:
    return session.alpha if session.has_cap else None
