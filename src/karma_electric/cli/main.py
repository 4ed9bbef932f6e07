"""The `karma` command: gathers the verbs, and turns every expected failure into one line and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Annotated

import typer

from karma_electric.cli import (
    axis,
    bake,
    card,
    chat,
    data,
    doctor,
    drift,
    gguf,
    inspect,
    judge,
    merge,
    modelfile,
    ollama,
    push,
    redteam,
    run,
    serve,
    train,
)

_INTERRUPTED = 130
_READER_GONE = 141  # 128 + SIGPIPE, as other programs end

app = typer.Typer(
    name="karma",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help starts twice as fast
    pretty_exceptions_enable=False,
    help="Make a value-aligned language model, cap its drift in the weights, and prove what it does.\n\n"
    "Example: karma run recipes/demo.toml",
    epilog="Exit codes: 0 ok, 1 a check did not pass, 2 wrong usage or bad input, "
    "3 a missing extra, model or artifact.",
)
app.command("run")(run.run)
app.command("train")(train.train)
app.command("merge")(merge.merge)
app.command("chat")(chat.chat)
app.command("serve")(serve.serve)
app.command("bake")(bake.bake)
app.command("card")(card.card)
app.command("drift")(drift.drift)
app.command("gguf")(gguf.gguf)
app.command("modelfile")(modelfile.modelfile)
app.command("push")(push.push)
app.command("show")(inspect.show)
app.command("verify")(inspect.verify)
app.command("doctor")(doctor.doctor)
app.add_typer(axis.app, name="axis")
app.add_typer(data.app, name="data")
app.add_typer(redteam.app, name="redteam")
app.add_typer(judge.app, name="judge")
app.add_typer(ollama.app, name="ollama")


def _version(asked: bool) -> None:
    if asked:
        from karma_electric.core.artifact import code_version

        code = code_version()
        commit = f" ({code['commit'][:12]}{', changed' if code['dirty'] else ''})" if code["commit"] else ""
        print(f"karma-electric {code['version']}{commit}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Options before the verb."""


def main() -> None:
    """Entry point."""
    guarded(lambda: app(standalone_mode=True))


def guarded(action: object) -> None:
    """Run `action` and exit the way the design says: no tracebacks for what a user can cause."""
    from karma_electric.core.errors import KarmaError, SpaceError

    try:
        action()  # type: ignore[operator]
    except KarmaError as error:
        _fail(error.message, error.hint, error.exit_code)
    except KeyboardInterrupt:
        _stopped()
    except SystemExit as exit_:
        # typer ends these two itself: Ctrl-C without a word, a reader that went away with the code of a failed check
        if exit_.code == _INTERRUPTED:
            _stopped()
        if isinstance(exit_.__context__, BrokenPipeError):
            _reader_gone()
        raise
    except BrokenPipeError:
        _reader_gone()
    except OSError as error:
        from karma_electric.core.artifact import disk_full

        if disk_full(error):
            _fail("The disk is full.", "Free some space and run the same command again.", SpaceError.exit_code)
        if isinstance(error, PermissionError):
            _fail(f"No permission for {error.filename}.", "Check its owner, or write elsewhere.", 2)
        if error.filename is not None and error.strerror:
            _fail(f"{error.strerror}: {error.filename}.", "Check the path, or write elsewhere.", 2)
        _bug(error)
    except Exception as error:
        _bug(error)


def _reader_gone() -> None:
    """As in `karma show | head`: quiet, with the code of a broken pipe, so that a gate cut short never passes."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.__stdout__.fileno())  # type: ignore[union-attr]
    raise SystemExit(_READER_GONE) from None


def _stopped() -> None:
    if os.environ.get("RANK", "0") != "0":  # Ctrl-C reaches all processes of a launcher: the first speaks
        raise SystemExit(_INTERRUPTED) from None
    _fail("Stopped.", "Run the same command again to continue.", _INTERRUPTED)


def _fail(message: str, hint: str, code: int) -> None:
    print(f"error: {message} {hint}".rstrip(), file=sys.stderr)
    raise SystemExit(code) from None


def _bug(error: Exception) -> None:
    if os.environ.get("KARMA_DEBUG"):
        traceback.print_exc()
    name = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    _fail(f"Unexpected {name}.", "This is a bug. Set KARMA_DEBUG=1 to see where, and please report it.", 70)
