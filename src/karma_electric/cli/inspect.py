"""`karma show` and `karma verify`: what is in a run, an artifact or a recipe, and whether it is intact."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from karma_electric.core.lineage import STAGES, artifacts_of, problems_of, readable_manifests, run_around, said_of


def show(
    path: Annotated[Path, typer.Argument(help="A run, one of its artifacts, or a recipe file.")],
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show a run's artifacts, one artifact's manifest, or every key of a recipe with its meaning.

    Example: karma show runs/demo
    """
    from dataclasses import asdict

    from karma_electric.core.artifact import MANIFEST, read_manifest

    if path.suffix == ".toml":
        _show_recipe(path, json_)
        return
    if (path / MANIFEST).is_file():
        whole = asdict(read_manifest(path))
        if json_:
            print(json.dumps(whole, indent=2))
            return
        _show_artifact(whole)
        return
    folders = artifacts_of(path)
    rows = [(folder, read_manifest(folder)) for folder in folders]
    if json_:
        print(json.dumps({str(f.relative_to(path)): asdict(m) for f, m in rows}, indent=2))
        return
    print(f"{'artifact':<16} {'id':<17} {'size':>9}  made")
    for folder, manifest in rows:
        size = _size(sum(manifest.sizes.values()))
        print(f"{folder.relative_to(path).as_posix():<16} {manifest.id:<17} {size:>9}  {manifest.created}")


def verify(
    path: Annotated[Path, typer.Argument(help="A run, or one of its artifacts.")],
    json_: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Hash every file again and follow the lineage: exit code 1 if anything is missing, changed or unconnected.

    Of a whole run, recipe.toml is compared with what the manifests say the artifacts were made by.
    Of kept results, as in results/, the files that kept.json lists are left out on purpose, and count as no damage.

    Example: karma verify runs/demo
    """
    from karma_electric.core.artifact import MANIFEST
    from karma_electric.core.errors import ArtifactError, GateError
    from karma_electric.kept import absent_on_purpose, kept_around

    if kept_around(path) is None and kept_around(path.absolute()) is not None:
        path = path.absolute()  # typed from within
    single = (path / MANIFEST).is_file()
    if not single:
        _require_whole_run(path)
    try:
        absent = absent_on_purpose(path)
    except ArtifactError:  # told with the other problems
        absent = frozenset()
    found = _problems_of_one(path, absent) if single else problems_of(path, absent=absent)
    files = _problems_of_files(path, single=single)
    made = {name.partition("/")[0] for name in found}
    not_made = [stage for stage in STAGES if stage not in made]
    bad = [name for name, problems in found.items() if problems]
    bad_files = [name for name, problems in files.items() if problems]
    if json_:
        left_out = sorted(file.relative_to(path).as_posix() for file in absent)
        ok = not bad and not bad_files
        print(json.dumps({"ok": ok, "artifacts": found, "files": files, "left_out": left_out}, indent=2))
    else:
        for name, problems in found.items():
            folder = path if single else path / name
            out = sum(file.is_relative_to(folder) for file in absent)
            words = f"{_files(out)} left out on purpose" if out else ""
            print(f"{name:<16} {'; '.join(problems) or ', '.join(filter(None, ['ok', words]))}")
        for name, problems in files.items():
            print(f"{name:<16} {'; '.join(problems) or 'ok'}")
        if not single and not_made:
            print(f"not made yet: {', '.join(not_made)}")
        if absent:
            print(f"These are kept results: {_files(len(absent))} left out on purpose (kept.json).")
    said = [f"{len(bad)} of {len(found)} artifacts are not intact."] if bad else []
    said += [f"{name} is not as it should be (see above)." for name in bad_files]
    if said:
        kept = kept_around(path)
        raise GateError(" ".join(said), _make_again(path, bad_files) if kept is None else _take_again(kept))


def _require_whole_run(path: Path) -> None:
    """Refuse a part of a run that is no artifact of its own, such as redteam/: its lineage lies outside it."""
    from karma_electric.core.errors import InputError

    run = run_around(path)
    if run is not None and path.exists():
        raise InputError(f"{path} is part of the run {run}, and no artifact of its own.", f"Type: karma verify {run}")


def _problems_of_one(folder: Path, absent: Collection[Path]) -> dict[str, list[str]]:
    """What is wrong with an artifact, by its name."""
    from karma_electric.core.artifact import damage
    from karma_electric.core.errors import ArtifactError

    name = folder.absolute().name
    try:
        return {name: damage(folder, absent=absent)}
    except ArtifactError as error:
        return {name: [said_of(folder, error)]}


def _problems_of_files(path: Path, *, single: bool) -> dict[str, list[str]]:
    """What is wrong with the files beside the artifacts, by name: the run's recipe, and what kept results left out."""
    from karma_electric.kept import KEPT, kept_around, kept_problems

    found = {}
    if not single and (path / "recipe.toml").is_file():
        from karma_electric.recorded import recipe_problems

        found["recipe.toml"] = recipe_problems(path, readable_manifests(path))
    results = kept_around(path)
    problems = [] if results is None else kept_problems(results)
    return found | ({KEPT: problems} if problems else {})


def _make_again(path: Path, bad_files: Sequence[str]) -> str:
    """What to type where a run, or an artifact of one, is not intact."""
    from karma_electric.core.errors import MissingError, RecipeError
    from karma_electric.core.recipe import load_recipe

    run = run_around(path) or path
    if not (run / "recipe.toml").is_file():
        return f"Make them again with the recipe they were made by: karma run RECIPE --run-dir {run} --force"
    again = f"karma run {run}/recipe.toml --run-dir {run} --force"
    if "recipe.toml" not in bad_files:
        return f"Make them again: {again}"
    try:
        load_recipe(run.absolute() / "recipe.toml")
    except (MissingError, RecipeError):
        return f"Mend {run}/recipe.toml, or put it back as it was. Then: karma verify {run}"
    return f"Put {run}/recipe.toml back as it was, or make the artifacts by what it says now: {again}"


def _take_again(results: Path) -> str:
    """What to type where kept results are not intact: nothing that would put other results in their place."""
    from karma_electric.kept import made_anew

    command, run = made_anew(results)
    return (
        f"They are kept results, so nothing is made in their place: compare them with where they came from (git diff "
        f"{results}), or make the run anew in {run}: {command}"
    )


def _size(in_bytes: int) -> str:
    if in_bytes < 1e3:
        return f"{in_bytes} B"
    return f"{in_bytes / 1e6:.1f} MB" if in_bytes >= 1e6 else f"{in_bytes / 1e3:.1f} kB"


def _files(count: int) -> str:
    return f"{count} file{'s' * (count != 1)}"


def _show_artifact(manifest: dict[str, Any]) -> None:
    version = manifest["code"].get("version")
    print(f"{manifest['kind']}  {manifest['id']}  made {manifest['created']} by version {version}")
    for title in ("config", "inputs", "packages", "hardware"):
        print(f"\n{title}")
        for key, value in manifest[title].items():
            print(f"  {key:<24} {_clip(value)}")
    print("\nfiles")
    for name, digest in manifest["files"].items():
        print(f"  {manifest['sizes'][name]:>12,}  {digest[:16]}  {name}")


def _show_recipe(path: Path, json_: bool) -> None:
    from pydantic import BaseModel

    from karma_electric.core.recipe import load_recipe

    recipe = load_recipe(path)
    if json_:
        print(json.dumps(recipe.model_dump(mode="json"), indent=2))
        return
    for name, field in type(recipe).model_fields.items():
        value = getattr(recipe, name)
        if not isinstance(value, BaseModel):
            print(f"{name} = {json.dumps(value)}  # {field.description}")
            continue
        print(f"\n[{name}]  # {(type(value).__doc__ or '').strip()}")
        values = value.model_dump(mode="json")
        for key, inner in type(value).model_fields.items():
            note = f"  # {inner.description}" if inner.description else ""
            print(f"{key} = {_clip(json.dumps(values[key], ensure_ascii=False))}{note}")


def _clip(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    flat = " ".join(text.split())
    return flat if len(flat) <= 100 else flat[:97] + "..."
