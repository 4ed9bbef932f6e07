"""Artifacts: a folder of files and a manifest written last, so that a manifest means "whole".

An artifact's id is a hash of its kind, its configuration and the ids of its inputs. It says what was asked
for; the hashes of the files say what came out. This module knows nothing about what the files contain.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Collection, Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from functools import cache
from pathlib import Path
from typing import Any

from karma_electric.core.errors import ArtifactError, MissingError, SpaceError
from karma_electric.core.extras import version_of

MANIFEST = "manifest.json"
SCHEMA = 1
_REQUIRED = {"kind": str, "id": str, "inputs": dict, "config": dict, "files": dict, "sizes": dict, "schema": int}
_OPTIONAL = {"parents": dict, "code": dict, "packages": dict, "hardware": dict, "created": str, "measured": dict}
_DISK_FULL_SIGNS = (
    "No space left",
    "os error 28",  # safetensors
    "PytorchStreamWriter failed",  # torch.save, when its first write fails
    "unexpected pos",  # torch.save, when a later one does
    " requested and ",  # numpy's tofile, as gguf uses it: "4000000 requested and 262112 written"
)
_PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "trl",
    "bitsandbytes",
    "accelerate",
    "safetensors",
    "gguf",
    "xllamacpp",
)
COMMIT_NOTE = "_commit.json"  # in a package that was built from a checkout


@dataclass(frozen=True)
class Manifest:
    """What an artifact is, what it was made from and with, and the hash of each of its files.

    `inputs` are ids: what was asked for. `parents` are hashes of the contents that were really read, for those
    inputs that are artifacts of the same run. `measured` are figures of checks that the artifact passed.
    """

    kind: str
    id: str
    inputs: dict[str, str]
    config: dict[str, Any]
    parents: dict[str, str] = field(default_factory=dict)  # role -> content_hash of that artifact
    files: dict[str, str] = field(default_factory=dict)  # relative path -> sha256
    sizes: dict[str, int] = field(default_factory=dict)  # relative path -> bytes
    code: dict[str, Any] = field(default_factory=dict)
    packages: dict[str, str] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    created: str = ""
    measured: dict[str, Any] = field(default_factory=dict)  # check -> its figures
    schema: int = SCHEMA


def canonical_json(value: object) -> str:
    """JSON with sorted keys and no spaces, the form that is hashed."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def hash_text(text: str) -> str:
    """SHA-256 of a text, as hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def hash_file(path: Path) -> str:
    """SHA-256 of a file, as hex, read in blocks of 4 MiB."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()


def hash_tree(path: Path) -> str:
    """One hash for a file, or for the names and contents of all files below a folder."""
    if path.is_file():
        return hash_file(path)
    return hash_text(canonical_json({p: hash_file(path / p) for p in list_files(path)}))


def artifact_id(kind: str, config: Mapping[str, Any], inputs: Mapping[str, str]) -> str:
    """The id of an artifact: 16 hex digits over kind, configuration and input ids."""
    asked = {"schema": SCHEMA, "kind": kind, "config": dict(config), "inputs": dict(inputs)}
    return hash_text(canonical_json(asked))[:16]


def list_files(folder: Path) -> list[str]:
    """Relative POSIX paths of all files below `folder`, sorted, without its own manifest."""
    paths = (p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    return sorted(p for p in paths if p != MANIFEST)


def write_atomic(path: Path, data: str | bytes) -> None:
    """Write a file so that a reader sees the old content or the new, never a part, even after a power cut."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data.encode() if isinstance(data, str) else data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def write_json(path: Path, value: object) -> None:
    """Write indented JSON atomically. NaN and infinities are refused: no other reader takes them."""
    write_atomic(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Read a JSON file of ours.

    Raises:
        MissingError: the file is not there.
        ArtifactError: it is not JSON.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise MissingError(f"{path} does not exist.", "Run the stage that makes it.") from None
    except (ValueError, RecursionError) as error:  # not JSON, not UTF-8, a number too long, nested too deeply
        raise ArtifactError(f"{path} is not JSON ({error}).", "Make it again with --force.") from None


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to disk where the system can (renames survive a power cut)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def flush(folder: Path) -> None:
    """Flush the files of a folder to disk, so that what is written after them is not there without them."""
    for name in list_files(folder):
        with (folder / name).open("rb") as file:
            os.fsync(file.fileno())


def content_hash(manifest: Manifest) -> str:
    """One hash for all files of an artifact."""
    return hash_text(canonical_json(manifest.files))


def seal(
    folder: Path,
    *,
    kind: str,
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    parents: Mapping[str, str] | None = None,
    measured: Mapping[str, Any] | None = None,
) -> Manifest:
    """Hash the files of `folder` and write its manifest, last and atomically. Returns the manifest."""
    flush(folder)
    names = list_files(folder)
    manifest = Manifest(
        kind=kind,
        id=artifact_id(kind, config, inputs),
        inputs=dict(inputs),
        config=dict(config),
        parents=dict(parents or {}),
        files={name: hash_file(folder / name) for name in names},
        sizes={name: (folder / name).stat().st_size for name in names},
        code=code_version(),
        packages={name: version for name in _PACKAGES if (version := version_of(name))},
        hardware=hardware(),
        created=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        measured=dict(measured or {}),
    )
    write_json(folder / MANIFEST, asdict(manifest))
    return manifest


def amend(folder: Path, *, names: Iterable[str] = (), measured: Mapping[str, Any] | None = None) -> Manifest:
    """Add files that were written into a whole artifact later, or figures, to its manifest. Returns the manifest.

    What the artifact was made from, its id and the hashes of its other files stay. Files named before are hashed again.
    """
    manifest = read_manifest(folder)
    hashes = {name: hash_file(folder / name) for name in names}
    sizes = {name: (folder / name).stat().st_size for name in hashes}
    manifest = replace(
        manifest,
        files=dict(sorted((manifest.files | hashes).items())),
        sizes=dict(sorted((manifest.sizes | sizes).items())),
        measured={**manifest.measured, **(measured or {})},
    )
    write_json(folder / MANIFEST, asdict(manifest))
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """Read the manifest of an artifact.

    Raises:
        MissingError: there is none.
        ArtifactError: it is damaged, or written by a newer version.
    """
    raw = read_json(folder / MANIFEST)
    kinds = {**_REQUIRED, **{key: kind for key, kind in _OPTIONAL.items() if isinstance(raw, dict) and key in raw}}
    if not isinstance(raw, dict) or not all(isinstance(raw.get(key), kind) for key, kind in kinds.items()):
        raise ArtifactError(f"{folder / MANIFEST} is not a manifest.", "Make the artifact again with --force.")
    if raw["schema"] > SCHEMA:
        raise ArtifactError(
            f"{folder} was written by a newer version (schema {raw['schema']}, this one reads {SCHEMA}).",
            "Upgrade karma-electric.",
        )
    known = Manifest.__dataclass_fields__
    return Manifest(**{key: value for key, value in raw.items() if key in known})


def sealed_around(folder: Path) -> Path | None:
    """The finished artifact that a folder is, or lies in: with anything added it would not match its manifest."""
    resolved = folder.resolve()
    return next((place for place in (resolved, *resolved.parents) if (place / MANIFEST).is_file()), None)


def is_whole(folder: Path) -> bool:
    """Whether `folder` has a manifest and every file in it with its recorded size (hashes: see `damage`)."""
    if not (folder / MANIFEST).is_file():
        return False
    manifest = read_manifest(folder)
    paths = {name: folder / name for name in manifest.files}
    return all(path.is_file() and path.stat().st_size == manifest.sizes.get(name) for name, path in paths.items())


def damage(folder: Path, *, absent: Collection[Path] = (), unread: Collection[str] = ()) -> list[str]:
    """What differs between an artifact's files and its manifest, a line each; empty means none.

    Args:
        folder: of the artifact.
        absent: files that may be missing.
        unread: names of files that are not hashed, because nobody reads them now.
    """
    manifest = read_manifest(folder)
    found = []
    for name, expected in manifest.files.items():
        if not (folder / name).is_file():
            found += [] if folder / name in absent else [f"{name} is missing"]
        elif name not in unread and hash_file(folder / name) != expected:
            found.append(f"{name} was changed after it was written")
    found += [f"{name} is not in the manifest" for name in list_files(folder) if name not in manifest.files]
    if artifact_id(manifest.kind, manifest.config, manifest.inputs) != manifest.id:
        found.append("the manifest's id does not match its own configuration and inputs")
    return found


def require_undamaged(folder: Path, *, absent: Collection[Path] = ()) -> None:
    """Raise `ArtifactError` unless an artifact's files are those that were written; see `damage`."""
    if found := damage(folder, absent=absent):
        raise ArtifactError(f"{folder} is damaged: {found[0]}.", "Make it again with --force.")


def require_space(folder: Path, needed_bytes: int) -> None:
    """Raise `SpaceError` unless the disk that holds `folder` has `needed_bytes` free."""
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    free = shutil.disk_usage(existing).free
    if free < needed_bytes:
        raise SpaceError(
            f"{folder} needs about {needed_bytes / 1e9:.1f} GB, {free / 1e9:.1f} GB is free.",
            "Free some, or write elsewhere with --run-dir.",
        )


def disk_full(error: BaseException) -> bool:
    """Whether an exception, or one it came from, means that the disk is full (each library has its own words)."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(sign in str(seen) for sign in _DISK_FULL_SIGNS):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@cache
def code_version() -> dict[str, Any]:
    """Version of the package, with its commit and whether files differed from it.

    These are of the checkout that it runs from, else of the one that it was built from (hatch_build.py), else None.
    """
    from karma_electric import __version__

    package = Path(__file__).resolve().parents[1]
    root = package.parents[1]
    version: dict[str, Any] = {"version": __version__, "commit": None, "dirty": None}
    if (root / ".git").exists():
        try:
            version["commit"] = _git(root, "rev-parse", "HEAD")
            version["dirty"] = bool(_git(root, "status", "--porcelain", "--untracked-files=no"))
        except (OSError, subprocess.CalledProcessError):
            pass  # no git, or no commit yet: the version alone then
    elif (package / COMMIT_NOTE).is_file():
        noted = read_json(package / COMMIT_NOTE)
        version |= {"commit": noted["commit"], "dirty": noted["dirty"]}
    return version


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@cache
def hardware() -> dict[str, Any]:
    """Processor, cores and accelerators of this machine."""
    found: dict[str, Any] = {
        "system": platform.system(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "cores": os.cpu_count(),
    }
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        lines = cpuinfo.read_text().splitlines()
        parts = [line.partition(":") for line in reversed(lines)]  # reversed: of several processors the first
        said = {key.strip(): value.strip() for key, colon, value in parts if colon}
        name = said.get("model name", platform.processor())
        if {"cpu family", "model"} <= said.keys():  # virtual machines often tell no more than the maker by name
            name = f"{name} (family {said['cpu family']}, model {said['model']})"
        found["processor"] = name
    import sys

    torch = sys.modules.get("torch")  # asked only where a stage has loaded it
    if torch is not None and torch.cuda.is_available():
        found["gpus"] = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found
