"""`karma card`: the model card of a run, and whether a published one still says what the run measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from karma_electric.cli.options import require_place

if TYPE_CHECKING:
    from karma_electric.card_check import Checked

_WIDTH = 160  # of what is quoted of a line


def card(
    run: Annotated[Path, typer.Argument(help="Folder of a run, or of kept results such as results/demo.")],
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the card to this file instead of printing it.")
    ] = None,
    earlier: Annotated[
        list[Path] | None,
        typer.Option(
            "--earlier", metavar="RUN", help="An earlier version, for the version history; repeatable, oldest first."
        ),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            "--check", metavar="CARD", help="Compare this published card with the run; 1 if a figure differs."
        ),
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print what --check found as JSON.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Let --out replace a file that is not a card of this model.")
    ] = False,
) -> None:
    """Print or write the model card of a run. Figures come from its artifacts; what was not measured is a visible gap.

    With --check nothing is written: every figure of the published card that is not what the artifacts say is named, in
    the YAML head as in the text, and so are lines, rows and sections that it lacks. Text that was added may stay.

    Example: karma card runs/smollm2-v3 --earlier runs/smollm2-v1 --earlier runs/smollm2-v2 --out model-card.md

    Example: karma card runs/smollm2-v3 --check model-card.md
    """
    from karma_electric.core.errors import GateError, InputError, MissingError
    from karma_electric.core.extras import require

    require("evidence")
    if check is not None and out is not None:
        raise InputError("--check and --out are both given.", "Check the card first, then write it anew.")
    if json_ and check is None:
        raise InputError("--json is given without --check.", "Leave it out, or name the card to check.")
    if force and out is None:
        raise InputError("--force is given without --out.", "Leave it out, or name the file to write: --out FILE")
    for folder in (run, *(earlier or ())):
        if not (folder / "recipe.toml").is_file():
            raise MissingError(f"{folder} holds no recipe.toml: it is not a run.", "Give a folder such as runs/demo.")
    folders = [folder.resolve() for folder in (run, *(earlier or ()))]
    for number, folder in enumerate(earlier or (), 1):
        if folder.resolve() in folders[:number]:
            raise InputError(
                f"--earlier {folder} is {'the run itself' if folder.resolve() == folders[0] else 'given twice'}: "
                "expected earlier versions, each once.",
                "Leave it out.",
            )
    published = None if check is None else _read(check)
    if out is not None:
        require_place(out, "--out")
    from karma_electric.card import render_card
    from karma_electric.core.recipe import load_recipe

    recipe = load_recipe(run / "recipe.toml")
    model = recipe.card.model_name
    if out is not None and not force:
        _require_own(out, model)
    rendered = render_card(run, recipe, earlier=earlier or ())
    if published is not None:
        from karma_electric.card_check import check_card
        from karma_electric.card_text import model_of

        checked = check_card(published, rendered, name=str(check))
        _print_checked(checked, str(check), json_=json_)
        if checked.differences and (named := model_of(published, str(check))) != model:
            raise GateError(
                f"{check} {f'is the card of {named}' if named else 'names no model'}, and {run} is {model}: expected a "
                "card of this run.",
                f"Check it against the run that it belongs to, or check this run's: karma card {run} --check "
                f"{run}/card/README.md",
            )
        if checked.differences:
            again = " ".join(["karma card", str(run), *(f"--earlier {folder}" for folder in earlier or ())])
            raise GateError(
                f"{check} is not what {run} says, in {_count(len(checked.differences), 'place')}.",
                f"Render it anew, and put your own text back: {again} --out {check}",
            )
    elif out is not None:
        from karma_electric.core.artifact import write_atomic

        write_atomic(out, rendered)
        print(f"{out} written")
    else:
        print(rendered, end="")


def _read(path: Path) -> str:
    from karma_electric.core.errors import InputError, MissingError

    if path.is_dir():
        raise InputError(f"--check {path} is a folder, expected a card.", f"Give the file, such as {path}/README.md")
    if not path.exists():
        raise MissingError(f"--check {path} does not exist.", "Give the README.md of the published model.")
    try:
        text = path.read_text(encoding="utf-8")
        if not text.strip():
            raise InputError(f"--check {path} is empty, expected a card.", "Give the README.md of the published model.")
        return text
    except UnicodeDecodeError as error:
        raise InputError(f"--check {path} is not UTF-8 text ({error.reason}).", "Give a card, as Markdown.") from None


def _require_own(path: Path, model: str) -> None:
    """Raise `InputError` where a file would be replaced that is not a card of the model."""
    from karma_electric.card_text import model_of
    from karma_electric.core.errors import InputError

    if not path.exists():
        return
    try:
        named = model_of(path.read_text(encoding="utf-8"), str(path))
    except (InputError, UnicodeDecodeError):
        named = None
    if named != model:
        raise InputError(
            f"--out {path} is there already, and is {f'the card of {named}' if named else 'no card'}: expected a new "
            f"file, or a card of {model}.",
            "Give another file, or replace it with --force.",
        )


def _print_checked(checked: Checked, name: str, *, json_: bool) -> None:
    if json_:
        import json
        from dataclasses import asdict

        report = {"ok": not checked.differences, "card": name, **asdict(checked)}
        print(json.dumps(report, indent=2, ensure_ascii=False))
        return
    from karma_electric.card_check import MEANING

    for kind, words in MEANING.items():
        of_kind = [one for one in checked.differences if one.kind == kind]
        if of_kind:
            print(f"{words}: {len(of_kind)}")
        for one in of_kind:
            print(f"  {name}{f':{one.line}' if one.line else ''}  {one.where}")
            print(f"    the card       {_clip(one.card) or 'nothing'}")
            print(f"    the artifacts  {_clip(one.artifacts) or 'nothing'}")
    if checked.own:
        lines = ", ".join(map(str, checked.own))
        print(f"figures in text that was added, which nothing here can check: line {lines}")
    if not checked.differences:
        print(f"{name}: all {checked.compared} headings, lines and results are what the artifacts say")


def _clip(text: str) -> str:
    return text if len(text) <= _WIDTH else f"{text[: _WIDTH - 3]}..."


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"
