"""`karma data release`: freezes what a recipe asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def release(
    recipe: Annotated[str, typer.Argument(help="A recipe file, here or among the shipped ones (smollm2-v3.toml).")],
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a key, e.g. --set release.minimum_grade=32. Repeatable."
        ),
    ] = None,
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", help="Folder of the run; runs/NAME when not given.")
    ] = None,
    database: Annotated[
        Path | None,
        typer.Option("--db", envvar="KARMA_WORKBENCH", help="Also record the release in this workbench, for diff."),
    ] = None,
    force: Annotated[
        bool, typer.Option("--force", help="Replace another release there; use grades of a judge that was not checked.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be done, and do nothing.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print the manifest and the summary as JSON.")] = False,
) -> None:
    """Freeze a release: choose by status, grade, category and version; split by family; write it with its manifest.

    The same corpus and recipe give the same bytes. No model is needed. `karma run RECIPE` makes the same release first.

    Example: karma data release recipes/smollm2-v1.toml --set release.minimum_grade=32
    """
    import json
    from dataclasses import asdict

    from karma_electric.core.artifact import read_json, read_manifest
    from karma_electric.core.progress import Console
    from karma_electric.core.recipe import load_recipe
    from karma_electric.pipeline import run_stages
    from karma_electric.stages import plan_release

    loaded = load_recipe(recipe, set_ or [])
    run = run_dir or Path("runs") / loaded.name
    stages = [plan_release(loaded, force=force)]
    outcome = run_stages(run, stages, force=force, dry_run=dry_run, progress=Console())
    if dry_run:
        if json_:
            print(json.dumps({"run": str(run), "stages": dict(outcome)}, indent=2))
            return
        for name, what in outcome:
            print(f"{name:<16} {what}")
        return
    folder = run / "release"
    summary, manifest = read_json(folder / "summary.json"), asdict(read_manifest(folder))
    if database is not None:
        _record(database, loaded.name, folder, {**manifest, "summary": summary})
    if json_:
        print(
            json.dumps({"folder": str(folder), "manifest": manifest, "summary": summary}, indent=2, ensure_ascii=False)
        )
        return
    print(f"{folder}: {summary['examples']} examples, {summary['train']} to train on, {summary['validation']} held out")
    for title in ("categories", "versions", "licenses", "sources", "left_out"):
        if summary[title]:
            print(f"  {title.replace('_', ' '):<11} {_table(summary[title])}")
    for name, digest in manifest["files"].items():
        print(f"  {digest[:16]}  {name}")


def _table(counts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {count}" for name, count in counts.items())


def _record(database: Path, name: str, folder: Path, manifest: dict[str, Any]) -> None:
    from karma_electric.core.errors import InputError
    from karma_electric.data.release_diff import read_release_folder
    from karma_electric.data.store import Store

    members = read_release_folder(folder).members
    with Store.open(database) as store, store.transaction():
        known = {item.id: (item.category, item.content_sha256) for item in store.candidates()}
        other = [id_ for id_, m in members.items() if known.get(id_) != (m.category, m.content_sha256)]
        if other:
            named = ", ".join(other[:5]) + (", ..." if len(other) > 5 else "")
            raise InputError(
                f"{database} has other words or another category than {folder}, or nothing, for {len(other)} of its "
                f"{len(members)} examples ({named}). The release is made, and was not recorded.",
                f"Where the corpus is newer: karma data import CORPUS --replace --db {database}. Where the workbench "
                "was edited, bring that to the corpus first. Or leave out --db.",
            )
        held_out = [id_ for id_, member in members.items() if member.split == "validation"]
        store.add_release(name, manifest, list(members), validation=held_out)
