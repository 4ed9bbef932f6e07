"""`karma redteam attack`: adaptive attacks along the scenarios of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from karma_electric.models.asking import Endpoint


def attack(
    recipe: Annotated[str, typer.Argument(help="A recipe file, here or among the shipped ones (demo.toml).")],
    method: Annotated[str, typer.Option("--method", help="crescendo, persona, best-of-n or drift.")],
    attacker: Annotated[
        str | None, typer.Option("--attacker", metavar="MODEL", help="Inspect model that leads; best-of-n needs none.")
    ] = None,
    attacker_arg: Annotated[
        list[str] | None,
        typer.Option("--attacker-arg", metavar="NAME=VALUE", help="Argument of the attacker's provider."),
    ] = None,
    arms: Annotated[
        str | None, typer.Option("--arms", metavar="A,B", help="Attack these: base, tuned, capped; the recipe's else.")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", metavar="MODEL", help="Attack this Inspect model, not the recipe's arms.")
    ] = None,
    target_arg: Annotated[
        list[str] | None, typer.Option("--target-arg", metavar="NAME=VALUE", help="Argument of the target's provider.")
    ] = None,
    base_url: Annotated[str | None, typer.Option("--base-url", metavar="URL", help="Where the target is.")] = None,
    connections: Annotated[
        int | None, typer.Option("--connections", min=1, help="Requests to the target at once; 8 when not given.")
    ] = None,
    turns: Annotated[int, typer.Option("--turns", min=1, help="User turns of a conversation.")] = 5,
    queries: Annotated[
        int, typer.Option("--queries", min=1, help="Questions to the target per scenario and seed.")
    ] = 20,
    candidates: Annotated[int, typer.Option("--candidates", min=1, help="Messages that drift chooses from.")] = 3,
    suite: Annotated[
        str | None,
        typer.Option("--suite", metavar="FILE", help="Another suite of attacks; the recipe's when not given."),
    ] = None,
    scorer: Annotated[
        str | None,
        typer.Option(
            "--scorer",
            metavar="JUDGE",
            help="Who judges: signals, semantic, llm:PROVIDER/MODEL, ensemble:A+B; the recipe's else.",
        ),
    ] = None,
    scorer_url: Annotated[
        str | None, typer.Option("--scorer-url", metavar="URL", help="Address of an llm judge's API.")
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", min=1, metavar="N", help="Attacks per scenario; the recipe's number when not given."),
    ] = None,
    limit: Annotated[
        int | None, typer.Option("--limit", min=1, help="So many scenarios, spread over the suite.")
    ] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key.")] = None,
    run_dir: Annotated[Path | None, typer.Option("--run-dir", help="The run; runs/NAME when not given.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write attacks/METHOD/ARM below this folder.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace attacks that were made from something else.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Attack models with conversations that go on from what they said. The goals are the suite's scenarios.

    A killed attack, or one whose target went away, goes on with the conversations that are missing. An attacker that
    fails, refuses or loops leaves its scenario unscored, and is counted. Logs: inspect view --log-dir
    runs/NAME/attacks/METHOD/ARM/inspect

    Example: karma redteam attack recipes/demo.toml --method crescendo --attacker ollama/llama3.1 --arms tuned,capped
    """
    import json

    from karma_electric.attacking import Plan, endpoint_of_arm, plan_attack
    from karma_electric.cli.run import arm_table
    from karma_electric.core.artifact import read_json
    from karma_electric.core.errors import InputError
    from karma_electric.core.extras import require
    from karma_electric.core.progress import Console
    from karma_electric.core.recipe import load_recipe
    from karma_electric.pipeline import run_stages
    from karma_electric.targets import slug

    require("data")
    from karma_electric.cli import inspect_models  # noqa: F401  tells the provider how caps are opened

    overrides = list(set_ or [])
    if seeds is not None:
        overrides.append(f"redteam.seeds={seeds}")
    if suite is not None:
        overrides += [f"redteam.suite={json.dumps(suite)}", 'redteam.labelled=""']
    if scorer is not None:
        overrides.append(f"redteam.scorer={json.dumps(scorer)}")
    if scorer_url is not None:
        overrides.append(f"redteam.scorer_url={json.dumps(scorer_url)}")
    if arms is not None:
        names = [name.strip() for name in arms.split(",") if name.strip()]
        overrides.append(f"redteam.arms={json.dumps(names)}")
    if target is not None and arms is not None:
        raise InputError("--target and --arms are both given.", "Keep one.")
    given = {"--target-arg": target_arg, "--base-url": base_url, "--connections": connections}
    if target is None and (alone := [name for name, value in given.items() if value]):
        raise InputError(f"{alone[0]} is given without --target.", "Name the target.")
    if target is not None and not target.startswith("karma/"):
        connections = connections or 8  # ours batch what they are asked, and know how much
    loaded = load_recipe(recipe, overrides)
    run = run_dir or Path("runs") / loaded.name
    leader = None if attacker is None else _endpoint(attacker, attacker_arg)
    plan = Plan(method, leader, turns, queries, candidates, limit, connections)
    targets = (
        {arm: endpoint_of_arm(run, loaded, arm, method) for arm in loaded.redteam.arms}
        if target is None
        else {slug(target): _endpoint(target, target_arg, base_url)}
    )
    stages = [plan_attack(loaded, plan, arm, endpoint) for arm, endpoint in targets.items()]
    folder = out or run
    outcome = run_stages(folder, stages, force=force, dry_run=dry_run, progress=Console())
    if dry_run:
        for name, what in outcome:
            print(f"{name:<40} {what}")
        return
    found: dict[str, dict[str, Any]] = {
        arm: read_json(folder / stage.name / "summary.json") for arm, stage in zip(targets, stages, strict=True)
    }
    if json_:
        print(json.dumps({"run": str(folder), "stages": dict(outcome), "attacks": found}, indent=2))
        return
    print(arm_table(found))
    for arm, stage in zip(targets, stages, strict=True):
        faults = found[arm]["attacker_faults"]
        if faults:
            print(f"{arm}: attacker's faults: " + ", ".join(f"{kind} {n}" for kind, n in sorted(faults.items())))
        print_unscored(arm, folder / stage.name)


def print_unscored(arm: str, folder: Path) -> None:
    """Say why answers of a finished arm are unscored, the commonest reasons first."""
    from collections import Counter

    from karma_electric.redteam.seeds import read_seeds

    verdicts = [verdict for result in read_seeds(folder).values() for verdict in result.verdicts.values()]
    reasons = Counter(verdict.evidence for verdict in verdicts if verdict.outcome == "unscored")
    if reasons:
        shown = "; ".join(f"{n} {reason[:100]}" for reason, n in reasons.most_common(4))
        more = sum(n for _, n in reasons.most_common()[4:])
        print(f"{arm}: unscored: {shown}" + (f"; {more} for other reasons" if more else ""))


def _endpoint(model: str, arguments: list[str] | None, base_url: str | None = None) -> Endpoint:
    from karma_electric.models.asking import Endpoint, parse_model_args

    return Endpoint(model, base_url, parse_model_args(arguments or []))
