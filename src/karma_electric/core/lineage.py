"""The artifacts of a run: which there are, whether they are intact, and whether each was made from those beside it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from pathlib import Path

from karma_electric.core.artifact import MANIFEST, Manifest, content_hash, damage, read_manifest
from karma_electric.core.errors import ArtifactError, MissingError

STAGES = ("release", "adapter", "merged", "axis", "capped", "gguf", "redteam", "report", "card")
_RUNS = "runs"  # where runs are made unless they are told otherwise
_MAKE_A_RUN = "Make a run first: karma run recipes/demo.toml"
BESIDE = ("benign", "capability", "drift")  # further suites that arms are asked; most runs have none
_GROUPS = ("redteam", *BESIDE)  # folders with an artifact for each arm


def missing_run_hint(path: Path) -> str | None:
    """What to type where a path is not there, and it would lie in a run below `runs/`; None of any other path.

    That is to make the run, or where there is one, its stage.
    """
    parts = path.parts
    if path.exists() or _RUNS not in parts[:-1]:
        return None
    name, *inside = parts[parts.index(_RUNS) + 1 :]
    run = Path(*parts[: parts.index(_RUNS) + 1], name)
    if not run.is_dir():
        return _MAKE_A_RUN
    if (run / "recipe.toml").is_file() and inside and inside[0] in STAGES and not (run / inside[0]).exists():
        return f"Make it: karma run {run}/recipe.toml --run-dir {run} --to {inside[0]}"
    return None


def artifacts_of(run: Path) -> list[Path]:
    """The artifact folders of a run, in the order they were made.

    Raises:
        MissingError: no such folder, or nothing made there yet.
        ArtifactError: a manifest that cannot be read.
    """
    manifests = {folder: read_manifest(folder) for folder in _folders_of(run)}
    return _in_order(run, manifests, manifests)


def _folders_of(run: Path) -> list[Path]:
    manifests = [
        *run.glob(f"*/{MANIFEST}"),
        *(found for group in _GROUPS for found in run.glob(f"{group}/*/{MANIFEST}")),
    ]
    folders = [m.parent for m in manifests if not m.relative_to(run).parts[0].startswith(".")]
    if not folders:
        state = "has no artifacts" if run.is_dir() else "is no run" if run.exists() else "does not exist"
        raise MissingError(f"{run} {state}.", _MAKE_A_RUN)
    return folders


def _in_order(run: Path, folders: Collection[Path], manifests: Mapping[Path, Manifest]) -> list[Path]:
    """Folders by kind and time; of one whose manifest cannot be read, the place stands for its kind."""
    order = ("release", "adapter", "merged", "axis", "capped", "gguf", *_GROUPS, "report", "card")
    rank = {kind: number for number, kind in enumerate(order)}

    def place(folder: Path) -> tuple[int, str, str]:
        read = manifests.get(folder)
        kind, created = (folder.relative_to(run).parts[0], "") if read is None else (read.kind, read.created)
        return rank.get(kind, 99), created, folder.name

    return sorted(folders, key=place)


def run_around(path: Path) -> Path | None:
    """The run that a path is a part of (`runs/demo` for `runs/demo/redteam`); None for a run, or elsewhere."""
    whole = path.absolute()
    if (path / "recipe.toml").is_file():
        return None
    deepest = 2  # an arm in redteam/
    for number, above in enumerate(whole.parents[:deepest], 1):
        is_run = (above / "recipe.toml").is_file() or any((above / stage / MANIFEST).is_file() for stage in STAGES)
        if is_run and whole.parts[-number] in (*STAGES, *BESIDE):
            return Path(*path.parts[:-number]) if len(path.parts) > number else above
    return None


def problems_of(
    run: Path,
    each: Callable[[int, int, str], None] = lambda done, total, name: None,
    *,
    absent: Collection[Path] = (),
) -> dict[str, list[str]]:
    """What is wrong with each artifact of a run, by its name; every file is hashed again, and the lineage followed.

    A manifest that cannot be read is what is wrong with its artifact, and is no reason to leave the others.

    Args:
        run: the run's folder.
        each: told (done, total, name) before each artifact is hashed.
        absent: files that may be missing, see `damage`.

    Raises:
        MissingError: no such folder, or nothing made there yet.
    """
    folders = _folders_of(run)
    read: dict[Path, Manifest] = {}
    unreadable: dict[str, str] = {}
    for folder in folders:
        try:
            read[folder] = read_manifest(folder)
        except ArtifactError as error:
            unreadable[folder.relative_to(run).as_posix()] = said_of(folder, error)
    manifests = {folder.relative_to(run).as_posix(): manifest for folder, manifest in read.items()}
    found: dict[str, list[str]] = {}
    for done, folder in enumerate(_in_order(run, folders, read)):
        name = folder.relative_to(run).as_posix()
        each(done, len(folders), name)
        if name in unreadable:
            found[name] = [unreadable[name]]
            continue
        known = {role: id_ for role, id_ in manifests[name].inputs.items() if role not in unreadable}
        links = broken_links(replace(manifests[name], inputs=known), manifests)
        found[name] = damage(folder, absent=absent) + links
    for name in (stage for stage in STAGES if stage != "redteam"):
        if name not in found and (run / name).exists():
            found[name] = ["has no manifest"]
    return found


def readable_manifests(run: Path) -> dict[str, Manifest]:
    """The manifests of a run's artifacts by name, without those that cannot be read."""
    manifests = {}
    for folder in _folders_of(run):
        try:
            manifests[folder.relative_to(run).as_posix()] = read_manifest(folder)
        except ArtifactError:
            continue  # told by `problems_of`
    return manifests


def said_of(folder: Path, error: ArtifactError) -> str:
    """What an error says of an artifact, named from its folder and without a stop, for a list of its problems."""
    return error.message.replace(f"{folder}/", "").removesuffix(".")


def broken_links(manifest: Manifest, manifests: Mapping[str, Manifest]) -> list[str]:
    """Inputs that name an artifact of this run, when that is gone, has another id, or other contents.

    Other roles (`base`, `model`) are hashes of files, whatever folder has the same name.
    """
    found = []
    for role, given in manifest.inputs.items():
        if role.partition("/")[0] not in (*STAGES, *BESIDE):
            continue
        if role not in manifests:
            found.append(f"was made from {role}, which is missing")
        elif manifests[role].id != given:
            found.append(f"was made from another {role} (id {given}, here {manifests[role].id})")
        elif role in manifest.parents and manifest.parents[role] != content_hash(manifests[role]):
            found.append(f"was made from other contents of {role} than lie here")
    return found
