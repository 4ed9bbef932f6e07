"""Reference of the command line, from the objects that parse it: every verb, as its own `--help` says it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from docsite.markdown import code, fence, plain, table

if TYPE_CHECKING:
    from click import Command, Context

NAME = "karma"


def root() -> Command:
    """The whole command, with all its groups."""
    from typer.main import get_command

    from karma_electric.cli.main import app

    return get_command(app)


def contexts(command: Command, name: str = NAME, parent: Context | None = None) -> Iterator[tuple[str, Context]]:
    """(words, context) of a command and of all below it, groups included."""
    context = command.context_class(command, info_name=name.rsplit(maxsplit=1)[-1], parent=parent)
    yield name, context
    for word, child in getattr(command, "commands", {}).items():
        yield from contexts(child, f"{name} {word}", context)


def pages() -> dict[str, str]:
    """Path below reference/ -> Markdown: an overview, and a page per verb or group."""
    top = list(contexts(root()))
    names = [name for name, _ in top if name.count(" ") == 1]
    made = {"cli/index.md": _overview(top, names)}
    for name in names:
        below = [(words, context) for words, context in top if words == name or words.startswith(name + " ")]
        made[f"cli/{name.split()[1]}.md"] = "\n".join(_section(words, context) for words, context in below)
    return made


def _overview(top: list[tuple[str, Context]], names: list[str]) -> str:
    rows = [
        (f"[{code(words)}]({words.split()[1]}.md)", plain(_summary(context)))
        for words, context in top[1:]
        if not hasattr(context.command, "commands")
    ]
    toctree = "\n".join(name.split()[1] for name in names)
    return (
        "# Command line\n\nRead off the code of this version, not written by hand.\n\n"
        + _body(top[0][1])
        + "\n"
        + table(["Verb", "What it does"], rows)
        + f"\n```{{toctree}}\n:hidden:\n\n{toctree}\n```\n"
    )


def _summary(context: Context) -> str:
    """First paragraph of the help."""
    return " ".join((context.command.help or "").split("\n\n")[0].split())


def _section(words: str, context: Context) -> str:
    level = "#" if words.count(" ") == 1 else "##"
    return f"{level} {words}\n\n" + _body(context)


def _body(context: Context) -> str:
    command = context.command
    text = ""
    for paragraph in (command.help or "").split("\n\n"):
        said = " ".join(paragraph.replace("\b", "").split())
        if said.startswith("Example"):
            text += "Example:\n\n" + fence(said.partition(": ")[2], "console") + "\n"
        elif said:
            text += plain(said) + "\n\n"
    if not hasattr(command, "commands"):
        text += fence(" ".join([context.command_path, *command.collect_usage_pieces(context)]), "text") + "\n"
    records = [record for parameter in command.get_params(context) if (record := _record(parameter, context))]
    text += table(["Argument or option", "Meaning"], [(code(names), plain(meaning)) for names, meaning in records])
    return text + (f"\n{plain(command.epilog)}\n" if command.epilog else "")


def _record(parameter: Any, context: Context) -> tuple[str, str] | None:
    found = parameter.get_help_record(context)
    return None if found is None else (str(found[0]), str(found[1]))
