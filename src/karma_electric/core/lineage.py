"""The artifacts of a run: which there are, whether they are intact, and whether each was made from those beside it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from karma_electric.core.artifact import MANIFEST, Manifest, content_hash, damage, read_manifest
from karma_electric.core.errors import MissingError

STAGES = ("release", "adapter", "merged", "axis", "capped", "gguf", "redteam", "report", "card")
_RUNS = "runs"  # where runs are made unless they are told otherwise
_MAKE_A_RUN = "Make a run first: karma run recipes/demo.toml"
BESIDE = ("benign", "capability", "drift")  # further suites that arms are asked; most runs have none


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
    """
    groups = ("redteam", *BESIDE)
    manifests = [
        *run.glob(f"*/{MANIFEST}"),
        *(found for group in groups for found in run.glob(f"{group}/*/{MANIFEST}")),
    ]
    folders = [m.parent for m in manifests if not m.relative_to(run).parts[0].startswith(".")]
    if not folders:
        state = "has no artifacts" if run.is_dir() else "is no run" if run.exists() else "does not exist"
        raise MissingError(f"{run} {state}.", _MAKE_A_RUN)
    order = ("release", "adapter", "merged", "axis", "capped", "gguf", *groups, "report", "card")
    rank = {kind: number for number, kind in enumerate(order)}
    return sorted(folders, key=lambda f: (rank.get(read_manifest(f).kind, 99), read_manifest(f).created, f.name))


def problems_of(
    run: Path,
    each: Callable[[int, int, str], None] = lambda done, total, name: None,
    *,
    absent: Collection[Path] = (),
) -> dict[str, list[str]]:
    """What is wrong with each artifact of a run, by its name; every file is hashed again, and the lineage followed.

    Args:
        run: the run's folder.
        each: told (done, total, name) before each artifact is hashed.
        absent: files that may be missing, see `damage`.

    Raises:
        MissingError: no such folder, or nothing made there yet.
        ArtifactError: a manifest that cannot be read.
    """
    folders = {folder.relative_to(run).as_posix(): folder for folder in artifacts_of(run)}
    manifests = {name: read_manifest(folder) for name, folder in folders.items()}
    found: dict[str, list[str]] = {}
    for done, (name, folder) in enumerate(folders.items()):
        each(done, len(folders), name)
        found[name] = damage(folder, absent=absent) + broken_links(manifests[name], manifests)
    for name in (stage for stage in STAGES if stage != "redteam"):
        if name not in found and (run / name).exists():
            found[name] = ["has no manifest"]
    return found


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
