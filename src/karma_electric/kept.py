"""Kept results: the small files of a run without its weights, as `results/` holds them.

kept.json says which files were left out on purpose, so that their absence is no damage; the manifests still hold their
sizes and hashes. A run folder has no kept.json, and there a missing file is one.
"""

from __future__ import annotations

from pathlib import Path

from karma_electric.core.artifact import is_whole, read_json, read_manifest, write_json
from karma_electric.core.errors import ArtifactError

KEPT = "kept.json"


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
