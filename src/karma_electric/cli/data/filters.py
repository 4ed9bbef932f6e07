"""The options that the two filters share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

SentenceFolder = Annotated[Path | None, typer.Option("--model", help="Folder of another sentence-transformers model.")]
Apply = Annotated[bool, typer.Option("--apply", help="Record the removals in the workbench, or write --out.")]
Out = Annotated[Path | None, typer.Option("--out", help="For a file: write the lines that stay here.")]
Report = Annotated[Path | None, typer.Option("--report", help="Write everything that was found, as JSON.")]
Show = Annotated[int, typer.Option("--show", min=0, help="Pairs to print.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print the report as JSON.")]
