"""`karma redteam sweep`: a grid of caps on the merged model of a run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def sweep(
    recipe: Annotated[str, typer.Argument(help="A recipe file, here or among the shipped ones (demo.toml).")],
    alphas: Annotated[str, typer.Option("--alphas", metavar="A,B", help="Strengths, from 0 to 1.")] = "0,0.25,0.5,1",
    layers: Annotated[
        str | None,
        typer.Option("--layers", metavar="F-L,F-L", help="Ranges of blocks; the run's own when not given."),
    ] = None,
    quantiles: Annotated[
        str, typer.Option("--quantiles", metavar="A,B", help="Where the thresholds lie among runtime projections.")
    ] = "0.5,0.75,0.9",
    limit: Annotated[int | None, typer.Option("--limit", min=1, help="Items of each suite, spread over it.")] = None,
    scorer: Annotated[
        str | None,
        typer.Option(
            "--scorer",
            metavar="JUDGE",
            help="Who judges the recipe's suite: signals, semantic, llm:PROVIDER/MODEL, ensemble:A+B; the judge of the "
            "recipe when not given.",
        ),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option("--seeds", min=1, metavar="N", help="Answers per scenario; the recipe's number when not given."),
    ] = None,
    benign: Annotated[str, typer.Option("--benign", metavar="FILE", help="Harmless twins.")] = "benign-100.jsonl",
    capability: Annotated[
        str, typer.Option("--capability", metavar="FILE", help="Items with checkable answers.")
    ] = "capability-150.jsonl",
    set_: Annotated[list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Change a key.")] = None,
    run_dir: Annotated[Path | None, typer.Option("--run-dir", help="The run; runs/NAME when not given.")] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Write here, not into the run.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace cells that were made from something else.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say which cells would be measured and how long it takes.")
    ] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Measure caps over strength, blocks and threshold: safety, over-refusal, capability, cap rate, dose and KL.

    Every cell is kept; a killed sweep goes on in the cell where it stopped. sweep.json and pareto.png hold the front.

    Example: karma redteam sweep recipes/demo.toml --alphas 0,0.5,1 --layers 18-23,21-26 --quantiles 0.75 --limit 30
    """
    import json

    from karma_electric.core.artifact import read_json
    from karma_electric.core.errors import MissingError
    from karma_electric.core.extras import require
    from karma_electric.core.progress import Console
    from karma_electric.core.recipe import load_recipe
    from karma_electric.models.blocks import layer_range
    from karma_electric.pipeline import run_stages
    from karma_electric.redteam.sweep import parse_grid
    from karma_electric.sweeping import Bench, Suites, estimate_s, plan_sweep, summarise_sweep

    overrides = list(set_ or []) + ([] if seeds is None else [f"redteam.seeds={seeds}"])
    if scorer is not None:
        overrides.append(f"redteam.scorer={json.dumps(scorer)}")
    loaded = load_recipe(recipe, overrides)
    run = run_dir or Path("runs") / loaded.name
    parse_grid(alphas, layers or "0", quantiles, n_layers=None)  # a wrong grid is wrong without the model too
    config = run / "merged" / "config.json"
    if not config.is_file():
        raise MissingError(f"{run / 'merged'} is not there.", f"Make it: karma run {recipe} --to axis")
    n_layers = int(read_json(config)["num_hidden_layers"])
    if layers is None:
        own = layer_range(n_layers, layers=loaded.axis.layers, depth=loaded.axis.depth)
        layers = f"{own[0]}-{own[-1]}"
    cells = parse_grid(alphas, layers, quantiles, n_layers=n_layers)
    suites = Suites.load(loaded, benign, capability, limit)
    require("model")
    require("evidence")
    bench = Bench(loaded, run, cells)
    stages = plan_sweep(bench, cells, suites)
    target = out or run
    outcome = run_stages(target, stages, force=force, dry_run=dry_run, progress=Console())
    if dry_run:
        files = [target / stage.name / "cell.json" for stage in stages]
        seconds = [read_json(file)["seconds"] for file in files if file.is_file()]
        left = sum(what != "already there" for _, what in outcome)
        each = estimate_s(bench, suites, seconds) if left else 0.0
        plan = {"cells": dict(outcome), "seconds_per_cell": round(each, 1), "seconds": round(each * left, 1)}
        if json_:
            print(json.dumps(plan, indent=2))
            return
        for name, what in outcome:
            print(f"{name:<48} {what}")
        print(f"{left} cells of about {_duration(each)} each: {_duration(each * left)}")
        return
    found = summarise_sweep(target, cells)
    if json_:
        print(json.dumps(found, indent=2))
        return
    print(_table(found))
    print(f"\nFront: {', '.join(found['front']) or 'none'}\nDrawn: {target / 'pareto.png'}")


def _table(found: dict[str, Any]) -> str:
    heads = ("pass", "over-ref.", "capab.", "cap rate", "dose", "KL", "unscored")
    lines = [f"{'cell':<36}" + "".join(f"{head:>10}" for head in heads)]
    for row in found["cells"]:
        values = [_share(row[key]) for key in ("pass_rate", "over_refusal", "capability", "cap_rate")]
        values += [f"{row['dose']:.4f}", f"{row['kl_nats']:.4f}", str(row["counts"]["unscored"])]
        mark = "*" if row["cell"] in found["front"] else " "
        lines.append(f"{mark}{row['cell']:<35}" + "".join(f"{value:>10}" for value in values))
    return "\n".join(lines)


def _share(value: float | None) -> str:
    return "none" if value is None else f"{value:.0%}"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
