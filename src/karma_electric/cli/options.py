"""Arguments that several verbs take, worded once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def require_place(path: Path, said: str = "") -> None:
    """Raise `InputError` unless a file can be written there; `said` is the option that named it."""
    if path.is_dir() or not path.absolute().parent.is_dir():
        from karma_electric.core.errors import InputError

        what = "is a folder" if path.is_dir() else f"cannot be written: {path.absolute().parent} does not exist"
        raise InputError(
            f"{said} {path} {what}, expected a file.".lstrip(), "Give the name of a file in a folder that exists."
        )


Model = Annotated[
    str, typer.Argument(help="A model folder (runs/demo/merged), a .gguf file, a hub id, or builtin:smollm2-135m.")
]
CapFile = Annotated[
    Path | None, typer.Option("--cap", help="cap.json, or its folder; found beside the model in a run.")
]
