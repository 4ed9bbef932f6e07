"""`karma redteam run`: the red-team stages of a recipe alone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from karma_electric.pipeline import Stage


def run(
    recipe: Annotated[str, typer.Argument(help="A recipe file, here or among the shipped ones (demo.toml).")],
    arms: Annotated[
        str | None, typer.Option("--arms", metavar="A,B", help="Only these arms: base, tuned, capped.")
    ] = None,
    suite: Annotated[str | None, typer.Option("--suite", metavar="FILE", help="Another suite.")] = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Answers per scenario.")] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key, e.g. --set redteam.max_new_tokens=200."),
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", help="The run whose models answer; runs/NAME when not given.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Write redteam/ARM below this folder, not the run: another suite, more seeds."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace arms that were made from something else.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Ask the suite of a recipe of its arms, whose models must be there; what is there already is skipped.

    A killed run continues at most one batch back.

    Example: karma redteam run recipes/demo.toml --arms base,tuned --seeds 5 --out more-seeds
    """
    import json

    from karma_electric.cli.run import arm_table
    from karma_electric.core.errors import InputError
    from karma_electric.core.progress import Console
    from karma_electric.core.recipe import load_recipe
    from karma_electric.pipeline import run_stages
    from karma_electric.stages import plan_run, summaries

    overrides = list(set_ or [])
    if arms is not None:
        names = [name.strip() for name in arms.split(",") if name.strip()]
        overrides.append(f"redteam.arms={json.dumps(names)}")
    if seeds is not None:
        overrides.append(f"redteam.seeds={seeds}")
    if suite is not None:
        # labels belong to the recipe's own suite
        overrides += [f"redteam.suite={json.dumps(suite)}", 'redteam.labelled=""']
    loaded = load_recipe(recipe, overrides)
    models = run_dir or Path("runs") / loaded.name
    target = out or models
    for folder in (models, target):
        existing = next(path for path in (folder, *folder.absolute().parents) if path.exists())
        if not existing.is_dir():
            raise InputError(f"{existing} is a file, expected a folder.", "Choose another folder.")
    stages = plan_run(loaded, models)
    chosen = [stage for stage in stages if stage.group == "redteam"]
    _require_models(models, stages, chosen, recipe)
    outcome = run_stages(target, chosen, force=force, dry_run=dry_run, progress=Console())
    found = {} if dry_run else summaries(target, loaded)
    if json_:
        print(json.dumps({"run": str(target), "stages": dict(outcome), "redteam": found}, indent=2))
        return
    if dry_run:
        for name, what in outcome:
            print(f"{name:<16} {what}")
        return
    print(arm_table(found))
    if len(loaded.redteam.arms) > 1:
        print(f"\nNext: karma redteam compare {target} {' '.join(loaded.redteam.arms)}")


def _require_models(models: Path, stages: list[Stage], chosen: list[Stage], recipe: str) -> None:
    """Every model that an arm needs is there, whole, and what the recipe makes."""
    from karma_electric.core.errors import MissingError
    from karma_electric.pipeline import state_of

    needed = {role for stage in chosen for role in stage.inputs}
    for stage in stages:
        if stage.name in needed and (state := state_of(models, stage)) != "done":
            found = "is not there" if state == "todo" else "is not what this recipe makes"
            raise MissingError(
                f"{models / stage.name} {found}, and an arm answers with it.",
                f"Make it: karma run {recipe} --to {stage.name} (or --arms base, which needs no training).",
            )
