"""`karma train`: fine-tune by a recipe, or say beforehand what that takes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from karma_electric.cli.run import REPORT_TO, checked, run

if TYPE_CHECKING:
    from karma_electric.core.recipe import Recipe
    from karma_electric.train.estimate import Estimate


def train(
    recipe: Annotated[str, typer.Argument(help="A recipe file, here or among the shipped ones (smollm2-v3.toml).")],
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="Change a key, e.g. --set train.epochs=1. Repeatable."),
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", help="Folder of the run; runs/NAME when not given.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a release or an adapter that differs.")] = False,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Print steps, tokens, parameters, estimated memory and time; train nothing."),
    ] = False,
    report_to: Annotated[list[str] | None, typer.Option("--report-to", metavar="TRACKER", help=REPORT_TO)] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Freeze the release of a recipe and fine-tune an adapter on it: `karma run RECIPE --to adapter`.

    A killed training continues from its last checkpoint when the same command is given again. On several GPUs:
    accelerate launch --config_file recipes/accelerate/ddp.yaml -m karma_electric train RECIPE

    Example: karma train recipes/llama31-8b-v3.toml --dry-run
    """
    import json

    from karma_electric.core.progress import Silent

    if not dry_run:
        run(recipe, set_, run_dir=run_dir, last="adapter", force=force, report_to=report_to, json_=json_)
        return
    from karma_electric.pipeline import run_stages
    from karma_electric.stages import plan_run

    loaded, folder, names = checked(recipe, set_, run_dir, report_to)
    planned = plan_run(loaded, folder, report_to=names)
    stages = dict(run_stages(folder, planned, last="adapter", force=force, dry_run=True, progress=Silent()))
    found, speed, device = _estimated(loaded)
    if json_:
        plan = {"run": str(folder), "stages": stages}
        print(json.dumps({**plan, **found.as_dict(), "device": device, "measured_flops_per_second": speed}, indent=2))
        return
    print("\n".join(f"{name:<11} {what}" for name, what in stages.items()))
    print(describe(found, loaded, speed, device))


def _estimated(recipe: Recipe) -> tuple[Estimate, float, str]:
    """The estimate for a recipe, the measured speed of matrix products in 1/s, and the device."""
    import tempfile

    from karma_electric.core.extras import require
    from karma_electric.core.resources import find
    from karma_electric.data.release import write_release
    from karma_electric.models.loading import load_tokenizer, pick_device, pick_dtype
    from karma_electric.models.refs import resolve
    from karma_electric.train.estimate import estimate, measure_speed
    from karma_electric.train.tokenize import read_split, tokenize_split

    require("train")
    base = resolve(recipe.model.base, recipe.model.revision)
    tokenizer = load_tokenizer(base.path)
    with tempfile.TemporaryDirectory() as folder:
        source = find("corpus", recipe.release.corpus)
        write_release(recipe.release, source, recipe.persona.system_prompt, Path(folder))
        splits = [
            tokenize_split(read_split(Path(folder) / f"{name}.jsonl"), tokenizer, recipe.train.max_length)
            for name in ("train", "validation")
        ]
    device = pick_device()
    compute = pick_dtype(recipe.model.dtype, device)
    speed = measure_speed(compute, device)
    train_, validation = splits
    found = estimate(
        base.path, train_, validation, recipe.train, compute=compute, device=device, flops_per_second=speed
    )
    return found, speed, device


def describe(found: Estimate, recipe: Recipe, speed: float, device: str) -> str:
    """The estimate for people, a figure a line."""
    from karma_electric.train.estimate import UTILISATION

    section = recipe.train
    memory = sorted(found.memory_bytes.items(), key=lambda item: -item[1])
    rows: list[tuple[str, Any]] = [
        (
            "examples",
            f"{found.examples} to train on, {found.validation_examples} held out; longest {found.longest} tokens",
        ),
        ("tokens", f"{found.tokens:,} per epoch, {found.learned_tokens:,} of them learned"),
        (
            "steps",
            f"{found.steps} ({section.epochs:g} epochs, batches of {section.batch_size} x "
            f"{section.gradient_accumulation})",
        ),
        (
            "parameters",
            f"{found.trainable_parameters:,} trainable, {found.trainable_parameters / found.parameters:.1%} of "
            f"{found.parameters:,} in the base",
        ),
        (
            "memory",
            f"about {_gigabytes(sum(found.memory_bytes.values()))} at the peak, on {device}: "
            + ", ".join(f"{what} {_gigabytes(size)}" for what, size in memory),
        ),
        ("disk", f"about {_gigabytes(found.disk_bytes)}: the adapter, and checkpoints until it is done"),
    ]
    if found.seconds is not None:
        rows.append(
            (
                "time",
                f"about {_duration(found.seconds)}, within a factor of two: {UTILISATION:.0%} of the "
                f"{speed / 1e9:,.0f} GFLOP/s that matrix products reach here",
            )
        )
    for verb, ids in (("cut", found.cut), ("dropped", found.dropped)):
        if ids:
            rows.append(
                (
                    verb,
                    f"{len(ids)} longer than {section.max_length} tokens: {', '.join(ids[:8])}"
                    + (" ..." if len(ids) > 8 else ""),
                )
            )
    return "\n".join(f"{name:<11} {text}" for name, text in rows)


def _gigabytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e8 else f"{size / 1e6:.0f} MB"


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
