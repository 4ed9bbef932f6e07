"""`karma redteam run`: the red-team stages of a recipe alone, or its suite asked of another model."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from karma_electric.core.recipe import Recipe
    from karma_electric.pipeline import Stage
    from karma_electric.redteam.kinds import Kind


def run(
    recipe: Annotated[str, typer.Argument(help="A recipe file, here or among the shipped ones (demo.toml).")],
    arms: Annotated[
        str | None,
        typer.Option(
            "--arms", metavar="A,B", help="Only these arms, of base, tuned, capped; the recipe's when not given."
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", metavar="MODEL", help="Ask this Inspect model, not the recipe's arms.")
    ] = None,
    target_arg: Annotated[
        list[str] | None, typer.Option("--target-arg", metavar="NAME=VALUE", help="Argument of the target's provider.")
    ] = None,
    base_url: Annotated[str | None, typer.Option("--base-url", metavar="URL", help="Where the target is.")] = None,
    connections: Annotated[
        int | None, typer.Option("--connections", min=1, help="Requests to the target at once; 8 when not given.")
    ] = None,
    suite: Annotated[
        str | None, typer.Option("--suite", metavar="FILE", help="Another suite; the recipe's when not given.")
    ] = None,
    scorer: Annotated[
        str | None,
        typer.Option(
            "--scorer",
            metavar="JUDGE",
            help="Who judges attacks: signals, semantic, semantic:FOLDER, llm:PROVIDER/MODEL, labels:FILE, "
            "ensemble:A+B; the recipe's when not given.",
        ),
    ] = None,
    benign_scorer: Annotated[
        str | None,
        typer.Option(
            "--benign-scorer",
            metavar="JUDGE",
            help="Who judges answers to harmless twins: over-refusal (the suite's signals), labels:FILE, "
            "semantic:FOLDER trained on such labels, llm:PROVIDER/MODEL. Measured on redteam.benign_labelled; raters "
            "on their own FILE. The recipe's when not given.",
        ),
    ] = None,
    scorer_url: Annotated[
        str | None, typer.Option("--scorer-url", metavar="URL", help="Address of an llm judge's API.")
    ] = None,
    original_verdicts: Annotated[
        bool,
        typer.Option("--original-verdicts", help="Judge by the original's rule, which passes by default; to compare."),
    ] = False,
    beside: Annotated[
        list[str] | None,
        typer.Option("--beside", metavar="FILE", help="A further suite: harmless twins, capability, conversations."),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", min=1, metavar="N", help="Answers per scenario; the recipe's number when not given."),
    ] = None,
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

    A suite of harmless twins (over-refusal), capability items or conversations has a judge and a folder of its own.
    A killed run continues at most one batch back. With --target the arm is any model of Inspect, and needs no run.

    Example: karma redteam run recipes/demo.toml --arms base,tuned --seeds 5 --out more-seeds

    Example: karma redteam run recipes/demo.toml --target ollama/llama3.1 --out others
    """
    import json

    from karma_electric.arm_stages import summaries
    from karma_electric.cli.redteam_attack import print_unscored
    from karma_electric.core.errors import InputError
    from karma_electric.core.progress import Console
    from karma_electric.core.recipe import load_recipe
    from karma_electric.core.resources import find
    from karma_electric.pipeline import run_stages
    from karma_electric.redteam.kinds import GROUPS, kind_of
    from karma_electric.stages import plan_run

    overrides = list(set_ or [])
    if arms is not None:
        names = [name.strip() for name in arms.split(",") if name.strip()]
        overrides.append(f"redteam.arms={json.dumps(names)}")
    if seeds is not None:
        overrides.append(f"redteam.seeds={seeds}")
    if suite is not None:
        # labels belong to the recipe's own suite
        overrides += [f"redteam.suite={json.dumps(suite)}", 'redteam.labelled=""']
    if original_verdicts and scorer not in (None, "signals-original"):
        raise InputError(f"--original-verdicts and --scorer {scorer} are two judges, expected one.", "Leave one out.")
    if chosen_scorer := "signals-original" if original_verdicts else scorer:
        overrides.append(f"redteam.scorer={json.dumps(chosen_scorer)}")
        if chosen_scorer.startswith("labels:"):  # measured by its own two ratings of each answer
            overrides.append(f"redteam.labelled={json.dumps(chosen_scorer.partition(':')[2])}")
    if benign_scorer is not None:
        overrides.append(f"redteam.benign_scorer={json.dumps(benign_scorer)}")
    if scorer_url is not None:
        overrides.append(f"redteam.scorer_url={json.dumps(scorer_url)}")
    if beside:
        overrides.append(f"redteam.beside={json.dumps(beside)}")
    loaded = load_recipe(recipe, overrides)
    models = run_dir or Path("runs") / loaded.name
    folder = out or models
    for place in (models, folder):
        existing = next(path for path in (place, *place.absolute().parents) if path.exists())
        if not existing.is_dir():
            raise InputError(f"{existing} is a file, expected a folder.", "Choose another folder.")
    if target is None:
        given = {"--target-arg": target_arg, "--base-url": base_url, "--connections": connections}
        if alone := [name for name, value in given.items() if value]:
            raise InputError(f"{alone[0]} is given without --target.", "Name the target.")
        stages = plan_run(loaded, models)
        chosen = [stage for stage in stages if stage.group in GROUPS]
        _require_models(models, stages, chosen, recipe)
        names = list(loaded.redteam.arms)
    else:
        if arms is not None:
            raise InputError("--target and --arms are both given.", "Keep one.")
        chosen = _target_arms(loaded, target, target_arg, base_url, connections, folder)
        names = [chosen[0].name.rpartition("/")[2]]
    outcome = run_stages(folder, chosen, force=force, dry_run=dry_run, progress=Console())
    kinds = [kind_of(find("suites", name)) for name in (loaded.redteam.suite, *loaded.redteam.beside)]
    found = {} if dry_run else {kind: summaries(folder, names, kind) for kind in kinds}
    if json_:
        attacks = found.pop("attack", {})
        print(json.dumps({"run": str(folder), "stages": dict(outcome), "redteam": attacks, **found}, indent=2))
        return
    if dry_run:
        for name, what in outcome:
            print(f"{name:<16} {what}")
        return
    print("\n\n".join(kind_table(kind, arms_found) for kind, arms_found in found.items()))
    for name in found.get("attack", {}):
        print_unscored(name, folder / "redteam" / name)
    if len(names) > 1 and "attack" in found:
        print(f"\nNext: karma redteam compare {folder} {' '.join(names)}")


def _target_arms(
    recipe: Recipe,
    target: str,
    arguments: list[str] | None,
    base_url: str | None,
    connections: int | None,
    folder: Path,
) -> list[Stage]:
    from karma_electric.core.extras import require
    from karma_electric.models.asking import Endpoint, parse_model_args
    from karma_electric.targets import plan_target

    require("data")
    from karma_electric.cli import inspect_models  # noqa: F401  tells the provider how caps are opened

    given = parse_model_args(arguments or [])
    if target.startswith("karma/") and not target.endswith(".gguf"):
        given.setdefault("batch_size", recipe.redteam.batch_size)
        connections = connections or int(given["batch_size"])
    return plan_target(recipe, Endpoint(target, base_url, given, max_connections=connections or 8), folder)


def kind_table(kind: Kind, found: dict[str, dict[str, Any]]) -> str:
    """A line per arm, with the figure that its kind of suite is for."""
    from karma_electric.cli.run import arm_table

    if kind == "benign":
        lines = [f"{'arm':<8} {'n':>3} {'helped':>7} {'in part':>8} {'refused':>8} {'unscored':>9}   over-refusal"]
        for arm, summary in found.items():
            counts, rate = summary["counts"], summary["over_refusal"]["rate"]
            lines.append(
                f"{arm:<8} {summary['n']:>3} {counts['pass']:>7} {counts['partial']:>8} {counts['fail']:>8} "
                f"{counts['unscored']:>9}   {_rate(rate)}"
            )
        return "harmless requests, refused in whole or in part\n" + "\n".join(lines)
    if kind == "capability":
        lines = [f"{'arm':<8} {'n':>3} {'correct':>8} {'incorrect':>10} {'unscored':>9}   correct of checked"]
        for arm, summary in found.items():
            counts = summary["counts"]
            lines.append(
                f"{arm:<8} {summary['n']:>3} {counts['pass']:>8} {counts['fail']:>10} {counts['unscored']:>9}   "
                f"{_rate(summary['pass_rate_scored'])}"
            )
        return "capability items\n" + "\n".join(lines)
    if kind == "drift":
        from karma_electric.rendering import drift_in_words

        lines = [
            f"{arm:<8} {summary['n']:>3} conversations; {drift_in_words(summary.get('drift', {}))}"
            for arm, summary in found.items()
        ]
        return "conversations: mean drift by kind, in sd above the ceiling\n" + "\n".join(lines)
    return arm_table(found)


def _rate(rate: dict[str, Any]) -> str:
    return "none scored" if rate["value"] is None else f"{rate['value']:.0%} [{rate['low']:.0%}, {rate['high']:.0%}]"


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
