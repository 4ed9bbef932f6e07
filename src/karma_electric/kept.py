"""Kept results: the small files of a run without its weights, as `results/` holds them.

kept.json says which files were left out on purpose, so that their absence is no damage; the manifests still hold their
sizes and hashes. A run folder has no kept.json, and there a missing file is one.
"""

from __future__ import annotations

from pathlib import Path

from karma_electric.core.artifact import MANIFEST, is_whole, read_json, read_manifest, write_json
from karma_electric.core.errors import ArtifactError, MissingError, RecipeError
from karma_electric.core.lineage import readable_manifests, said_of
from karma_electric.core.recipe import load_recipe

KEPT = "kept.json"
_RECIPE = "recipe.toml"


def write_kept(results: Path) -> list[str]:
    """Write kept.json for a folder of kept results. Returns the files that it lacks, relative to it."""
    names = [
        f"{manifest.parent.relative_to(results).as_posix()}/{name}"
        for manifest in sorted(results.rglob("manifest.json"))
        for name in read_manifest(manifest.parent).files
        if not (manifest.parent / name).exists()
    ]
    write_json(results / KEPT, {"left_out": names})
    return names


def files_left_out(run: Path) -> frozenset[str]:
    """Files that kept results lack on purpose, relative to the folder; none for a run itself.

    Raises:
        ArtifactError: kept.json is damaged.
    """
    if not (run / KEPT).is_file():
        return frozenset()
    raw = read_json(run / KEPT)
    names = raw.get("left_out") if isinstance(raw, dict) else None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ArtifactError(
            f"{run / KEPT} holds no list left_out.", "Keep the run again: python tools/results.py keep RUN"
        )
    return frozenset(names)


def kept_problems(results: Path) -> list[str]:
    """What is wrong with kept.json of kept results, a line each: it is damaged, or lists what no artifact has."""
    try:
        listed = files_left_out(results)
    except ArtifactError as error:
        said = said_of(results, error).removeprefix(f"{KEPT} ")
        return [f"{said}, so what was left out on purpose is not known"]
    manifests = readable_manifests(results)
    known = {f"{name}/{file}" for name, manifest in manifests.items() for file in manifest.files}
    unreadable = {m.parent for m in results.rglob(MANIFEST)} - {results / name for name in manifests}
    return [
        f"lists {name}, which no artifact here has"
        for name in sorted(listed - known)
        if unreadable.isdisjoint((results / name).parents)
    ]


def is_there(run: Path, folder: Path, left_out: frozenset[str]) -> bool:
    """Whether an artifact of a run is whole, but for files that were left out on purpose."""
    if not left_out:
        return is_whole(folder)
    for name, size in read_manifest(folder).sizes.items():
        path = folder / name
        if not path.is_file():
            if path.relative_to(run).as_posix() not in left_out:
                return False
        elif path.stat().st_size != size:
            return False
    return True


def kept_around(path: Path) -> Path | None:
    """The kept results that a path is, or lies in: `results/demo` for `results/demo/merged`; else None."""
    deepest = 2  # an arm in redteam/, a file of an artifact
    above = (path, *path.parents[:deepest])
    return next((folder for folder in above if (folder / KEPT).is_file()), None)


def absent_on_purpose(path: Path) -> frozenset[Path]:
    """Files of kept results that are not there on purpose: those of the whole run, or of one artifact of it.

    Raises:
        ArtifactError: kept.json is damaged.
    """
    results = kept_around(path)
    if results is None:
        return frozenset()
    files = (results / name for name in files_left_out(results))
    return frozenset(file for file in files if file.is_relative_to(path) and not file.is_file())


def made_anew(results: Path) -> tuple[str, str]:
    """The command that makes the run of kept results again, beside them and not in their place; and its folder."""
    command = f"karma run {results / _RECIPE}"
    try:
        name = load_recipe(results.absolute() / _RECIPE).name
    except (MissingError, RecipeError):
        return command, "runs/NAME"
    return command, f"runs/{name}"


def require_weights(path: Path, part: str = ".") -> None:
    """Raise `MissingError` where kept results lack what a model, an axis or a run is loaded from, or the file itself.

    Args:
        path: what was asked for: the results, an artifact or a file of them.
        part: of a run, what to ask for instead where the results as a whole were given.

    Raises:
        ArtifactError: kept.json is damaged.
    """
    results = kept_around(path)
    if results is None or not absent_on_purpose(path):
        return
    command, run = made_anew(results)
    inside = path.relative_to(results).as_posix() if path != results else part
    raise MissingError(
        f"{path} has the kept figures of a run without its weights (left out on purpose, see {results / KEPT}).",
        f"Make the run again: {command}. Then give {run if inside == '.' else f'{run}/{inside}'}.",
    )
