"""`karma ollama`: hands a GGUF file and its Modelfile over to Ollama."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Hand models over to Ollama.\n\nExample: karma ollama create karma-demo runs/demo --variant capped",
)
_LAST_LINES = 8


@app.callback()
def _group() -> None:
    """Keeps the verb a word of its own while there is only one."""


@app.command(short_help="Create a model in Ollama from a Modelfile.")
def create(
    name: Annotated[str, typer.Argument(help="Name of the model in Ollama, e.g. karma-demo.")],
    path: Annotated[Path, typer.Argument(help="A run, a folder with a GGUF file and Modelfiles, or a Modelfile.")],
    variant: Annotated[
        str | None,
        typer.Option(
            "--variant", help="Which Modelfile of a folder: capped means Modelfile.capped. Modelfile if none."
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show nothing of what ollama says, unless it fails.")] = False,
) -> None:
    """Create a model in Ollama from a Modelfile, which must lie beside its GGUF file.

    Without Ollama on this machine nothing is created: the commands that would do it are printed, to be run where
    Ollama is, and the exit code is 3. If Ollama refuses, it is 1.

    Example: karma ollama create karma-demo runs/demo --variant capped
    """
    import shlex
    import shutil

    from karma_electric.core.errors import MissingError

    file = find_modelfile(path, variant)
    check_name(name)
    weights = weights_of(file)
    command = ["ollama", "create", name, "-f", file.name]
    program = shutil.which("ollama")
    if program is None:
        print(f"cd {shlex.quote(str(file.parent))}\n{shlex.join(command)}\n{shlex.join(['ollama', 'run', name])}")
        raise MissingError(
            "ollama is not installed here, so nothing was created.",
            f"Run the commands above where it is, with {file.name} and {weights.name} in one folder "
            "(https://ollama.com/download).",
        )
    _run([program, *command[1:]], file.parent, quiet=quiet)
    print(f"created {name}; try: {shlex.join(['ollama', 'run', name])}")


def find_modelfile(path: Path, variant: str | None) -> Path:
    """The Modelfile that is meant.

    Raises:
        MissingError: it is not there; says which are.
        InputError: a file and a variant.
    """
    from karma_electric.core.errors import InputError, MissingError
    from karma_electric.core.lineage import missing_run_hint

    if path.is_file():
        if variant is not None:
            raise InputError(f"{path} is a file, --variant is for folders.", "Leave one out.")
        if path.suffix == ".gguf":
            raise InputError(f"{path} is a GGUF file, expected a Modelfile.", f"Type: karma modelfile {path}")
        return path.resolve()
    names = [f"Modelfile.{variant}" if variant else "Modelfile"]
    for folder in (path, path / "gguf"):
        if (folder / names[0]).is_file():
            return (folder / names[0]).resolve()
    there = sorted(file.name for folder in (path, path / "gguf") for file in folder.glob("Modelfile*"))
    if not path.exists():
        hint = missing_run_hint(path) or "Give a run, a folder with a Modelfile, or a Modelfile."
        raise MissingError(f"{path} does not exist.", hint)
    hint = (
        f"There are: {', '.join(there)}. --variant takes what follows the dot; without it, Modelfile is meant."
        if there
        else f'Write one with: karma modelfile {path} --recipe RECIPE (or --system "You are ...")'
    )
    raise MissingError(f"{path} has no {names[0]}.", hint)


def check_name(name: str) -> None:
    """Raise `InputError` unless Ollama takes the name: [HOST/][NAMESPACE/]MODEL[:TAG]."""
    import re

    from karma_electric.core.errors import InputError

    part = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
    if not re.fullmatch(rf"({part}(:\d+)?/)?({part}/)?{part}(:{part})?", name):
        raise InputError(
            f"{name!r} is not a name Ollama takes.", "Letters, digits, - _ and . as in karma-demo or me/karma-demo:v1."
        )


def weights_of(modelfile: Path) -> Path:
    """The file a Modelfile is FROM.

    Raises:
        MissingError: it is not beside the Modelfile. InputError: there is no FROM.
    """
    from karma_electric.core.errors import InputError, MissingError

    for line in modelfile.read_text(encoding="utf-8", errors="replace").splitlines():
        word, _, value = line.strip().partition(" ")
        if word.upper() == "FROM" and value.strip():
            weights = modelfile.parent / value.strip().strip('"')
            if weights.suffix == ".gguf" and not weights.is_file():
                raise MissingError(f"{modelfile.name} is FROM {value.strip()}, which is not there.", "Export it again.")
            return weights
    raise InputError(f"{modelfile} has no FROM line.", f"Write one with: karma modelfile {modelfile.parent}")


def _run(command: list[str], folder: Path, *, quiet: bool) -> None:
    """Run it in the Modelfile's folder, showing what it says.

    Raises:
        GateError: it failed, with its last lines.
    """
    import sys

    from karma_electric.core.errors import GateError
    from karma_electric.core.external import run_watched

    def show(line: str) -> None:
        if not quiet:
            print(line, file=sys.stderr)

    code, lines = run_watched(command, show, keep=_LAST_LINES, folder=folder)
    if code:
        said = " / ".join(line for line in lines if line) or "nothing"
        raise GateError(f"ollama ended with code {code} and said: {said}.", "Is its server running (ollama serve)?")
