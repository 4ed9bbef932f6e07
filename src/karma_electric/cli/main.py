"""The `karma` command: gathers the verbs, and turns every expected failure into one line and an exit code."""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

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


class _Verbs(TyperGroup):
    """The verbs; `karma version` is told what it is called."""

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        if args[0] == "version":
            ctx.fail("No such command 'version'. Did you mean '--version'?")
        return super().resolve_command(ctx, args)


_WORDS = ("words",)  # arguments that are no paths or names: `karma data search`


class _Verb(TyperCommand):
    """A verb that refuses an empty word for a path or a name, as an unset variable gives: it would mean the folder."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given, _, _ = self.make_parser(ctx).parse_args(args=list(args))
        for parameter in self.get_params(ctx):
            value = given.get(parameter.name or "")
            annotation = getattr(getattr(parameter, "type_descriptor", None), "annotation", str)
            is_option = parameter.opts[0].startswith("-")
            if "" in (value if isinstance(value, (list, tuple)) else [value]) and (
                annotation in (Path, list[Path]) or not (is_option or parameter.name in _WORDS)
            ):
                from karma_electric.core.errors import InputError

                name = parameter.opts[0] if is_option else (parameter.metavar or parameter.name or "").upper()
                raise InputError(f"{name} is empty.", "Give a name or a path; . is this folder.")
        return super().parse_args(ctx, args)


app = typer.Typer(
    name="karma",
    cls=_Verbs,
    context_settings={"help_option_names": ["--help", "-h"]},  # of every verb too
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # plain help starts twice as fast
    pretty_exceptions_enable=False,
    help="Make a value-aligned language model, cap its drift in the weights, and prove what it does.\n\n"
    "Example: karma run recipes/demo.toml",
    epilog="Exit codes: 0 ok, 1 a check did not pass, 2 wrong usage or bad input, "
    "3 a missing extra, model or artifact.",
)
app.command("run", short_help="Run a recipe, from the corpus to a capped, tested model.")(run.run)
app.command("train", short_help="Fine-tune an adapter as a recipe says.")(train.train)
app.command("merge", short_help="Fold a LoRA adapter into the weights of its base.")(merge.merge)
app.command("chat", short_help="Chat with a model, capped as strongly as you like.")(chat.chat)
app.command("serve", short_help="Serve a model over HTTP, as OpenAI and Ollama do.")(serve.serve)
app.command("bake", short_help="Compile a cap into the weights of a plain checkpoint.")(bake.bake)
app.command("card", short_help="Print or write the model card of a run.")(card.card)
app.command("drift", short_help="Measure how far a conversation drifts from the persona.")(drift.drift)
app.command("gguf", short_help="Write a model as GGUF, for llama.cpp and Ollama.")(gguf.gguf)
app.command("modelfile", short_help="Write a Modelfile beside each GGUF file.")(modelfile.modelfile)
app.command("push", short_help="Publish a run on the Hugging Face hub.")(push.push)
app.command("show", short_help="Show a run, one of its artifacts, or a recipe's keys.")(inspect.show)
app.command("verify", short_help="Check that a run is whole: hashes, lineage, recipe.")(inspect.verify)
app.command("doctor", short_help="Print versions, devices, free space, missing extras.")(doctor.doctor)
app.add_typer(axis.app, name="axis", short_help="Extract an axis, look at it, set a cap on it, convert.")
app.add_typer(data.app, name="data", short_help="Grow, grade, filter and freeze a corpus.")
app.add_typer(redteam.app, name="redteam", short_help="Ask attacks of models, judge and compare the answers.")
app.add_typer(judge.app, name="judge", short_help="Measure and train the judges of a red-team.")
app.add_typer(ollama.app, name="ollama", short_help="Hand models over to Ollama.")

for _group in (app, axis.app, data.app, redteam.app, judge.app, ollama.app):
    for _command in _group.registered_commands:
        _command.cls = _Verb


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
        bool, typer.Option("--version", "-V", callback=_version, is_eager=True, help="Print the version.")
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
