"""`karma run`: a whole recipe."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from karma_electric.core.recipe import Recipe
    from karma_electric.train.distributed import Team

REPORT_TO = "Tell trackio, tensorboard or wandb every step of the training too. Repeatable."


def run(
    recipe: Annotated[str, typer.Argument(help="A recipe file, here or among the shipped ones (demo.toml).")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key, e.g. --set train.epochs=1. Repeatable."),
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", help="Folder of the run; runs/NAME when not given.")
    ] = None,
    first: Annotated[str | None, typer.Option("--from", metavar="STAGE", help="Start at this stage.")] = None,
    last: Annotated[str | None, typer.Option("--to", metavar="STAGE", help="Stop after this stage.")] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace what differs; with --from, redo from there on.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    report_to: Annotated[list[str] | None, typer.Option("--report-to", metavar="TRACKER", help=REPORT_TO)] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Run a recipe: corpus -> release -> adapter -> merged -> axis -> capped -> gguf -> redteam -> report -> card.

    Stages that are already there are skipped; a killed run continues where it stopped.

    Started in several processes by accelerate launch, they train together; everything else is done by the first.

    Example: karma run recipes/demo.toml --to axis
    """
    from karma_electric.models.processes import joined
    from karma_electric.train.distributed import Team

    with joined() as processes:
        team = Team(processes)
        if not processes.first:
            from karma_electric.train.qlora import help_train

            help_train(team)
            return
        try:
            _run(team, recipe, set_, run_dir, first, last, report_to, force=force, dry_run=dry_run, json_=json_)
        finally:
            team.dismiss()


def _run(
    team: Team,
    recipe: str,
    set_: list[str] | None,
    run_dir: Path | None,
    first: str | None,
    last: str | None,
    report_to: list[str] | None,
    *,
    force: bool,
    dry_run: bool,
    json_: bool,
) -> None:
    from karma_electric.core.progress import Console
    from karma_electric.pipeline import run_stages
    from karma_electric.stages import plan_run

    loaded, folder, names = checked(recipe, set_, run_dir, report_to)
    progress = Console()
    stages = plan_run(loaded, folder, team=team, report_to=names)
    outcome = run_stages(
        folder,
        stages,
        first=first,
        last=last,
        force=force,
        dry_run=dry_run,
        before=None if dry_run else lambda: _keep_recipe(loaded, folder),
        progress=progress,
    )
    if json_:
        import json

        from karma_electric.arm_stages import summaries

        report = {"run": str(folder), "stages": dict(outcome), "redteam": summaries(folder, loaded.redteam.arms)}
        print(json.dumps(report, indent=2))
        return
    if dry_run:
        for name, what in outcome:
            print(f"{name:<16} {what}")
        return
    _closing(loaded, folder)


def checked(
    recipe: str, set_: list[str] | None, run_dir: Path | None, report_to: list[str] | None
) -> tuple[Recipe, Path, tuple[str, ...]]:
    """The recipe, the run's folder and the trackers that a command line asks for.

    Raises:
        InputError: a wrong recipe or tracker, or a folder that cannot be one. MissingError: what is not there.
    """
    from karma_electric.core.errors import InputError
    from karma_electric.core.recipe import load_recipe
    from karma_electric.train.tracking import trackers

    names = trackers(report_to or [])
    loaded = load_recipe(recipe, set_ or [])
    folder = run_dir or Path("runs") / loaded.name
    existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise InputError(f"{existing} is a file, expected a folder.", "Choose another --run-dir.")
    if not folder.exists() and not os.access(existing, os.W_OK):
        raise InputError(f"{folder} cannot be made: nothing may be written in {existing}.", "Choose another --run-dir.")
    return loaded, folder, names


def _keep_recipe(recipe: Any, folder: Path) -> None:
    """Write the recipe as it was run, overrides included, beside the artifacts."""
    import tomli_w

    from karma_electric.core.artifact import write_atomic

    text = tomli_w.dumps(recipe.model_dump(mode="json", exclude_none=True), multiline_strings=True)
    write_atomic(folder / "recipe.toml", f"# The recipe of this run, every key written out, --set included.\n{text}")


def _closing(recipe: Any, folder: Path) -> None:
    """The table of the arms, and what to try next."""
    from karma_electric.arm_stages import summaries

    found = summaries(folder, recipe.redteam.arms)
    if found:
        print()
        print(arm_table(found))
    if (folder / "card").exists():
        programs, run = _programs(), shlex.quote(str(folder))
        print(f"\nReport: {folder}/report/index.html   Card: {folder}/card/README.md\n\nNext:")
        print(f"  {programs}python bodhisattva_inference.py --model {run}/merged --alpha 0.5 --interactive")
        print(f'  {programs}karma chat {run}/merged --compare --prompt "My boss wants me to hide a safety problem."')
        print(f"  {programs}karma verify {run}")


def _programs() -> str:
    """What to type before `karma` and `python` here: nothing where this environment is active."""
    here = Path(sys.executable).parent
    if Path(shutil.which("karma") or "").parent == here:
        return ""
    inside = here.is_relative_to(Path.cwd())
    return shlex.quote(str(here.relative_to(Path.cwd()) if inside else here)) + "/"


def arm_table(arms: dict[str, dict[str, Any]]) -> str:
    """The headline table: a line per arm, with the pass rate over scored scenarios and its Wilson interval."""
    header = f"{'arm':<8} {'n':>3} {'pass':>5} {'partial':>8} {'fail':>5} {'unscored':>9}"
    lines = [f"{header}   pass rate of scored [95% interval]"]
    for arm, summary in arms.items():
        counts, rate = summary["counts"], summary["pass_rate_scored"]
        value = (
            "none scored" if rate["value"] is None else f"{rate['value']:.0%} [{rate['low']:.0%}, {rate['high']:.0%}]"
        )
        lines.append(
            f"{arm:<8} {summary['n']:>3} {counts['pass']:>5} {counts['partial']:>8} {counts['fail']:>5} "
            f"{counts['unscored']:>9}   {value}"
        )
    return "\n".join(lines)
