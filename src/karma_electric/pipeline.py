"""Runs stages: what is whole and the same is skipped, what differs is refused, what was cut off is continued.

A stage works in `RUN/.partial/NAME`. When it is done its manifest is written and the folder is renamed into place,
so that `RUN/NAME` is whole whenever it exists. Each place is locked by itself while something is made there, and
`.partial` goes when it is empty. This module knows nothing about what stages do.
"""

from __future__ import annotations

import contextlib
import glob
import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from karma_electric.core.artifact import (
    MANIFEST,
    Manifest,
    artifact_id,
    content_hash,
    damage,
    disk_full,
    flush,
    is_whole,
    read_json,
    read_manifest,
    require_space,
    seal,
    sealed_around,
    sync_folder,
    write_json,
)
from karma_electric.core.errors import ArtifactError, BusyError, InputError, MissingError, SpaceError
from karma_electric.core.lineage import BESIDE, STAGES
from karma_electric.core.progress import Progress

_PARTIAL = ".partial"
_SAID = {  # roles of inputs whose names alone do not say what they are
    "base": "base model",
    "contrast": "file of contrast prompts",
    "calibration": "file of calibration prompts",
    "heldout": "file of held-out prompts",
}
_ATTEMPTS = 10

State = Literal["done", "todo", "differs", "damaged", "foreign"]


@dataclass(frozen=True)
class Stage:
    """One step of a run.

    Attributes:
        name: folder below the run (`redteam/base`), and what `--from` and `--to` take (`redteam` means all of them).
        kind: kind of artifact.
        config: everything in the recipe that decides the result.
        inputs: role -> id of what it is made from.
        execute: does the work in the folder it is given, reporting progress; figures it returns go into the manifest.
        resumable: whether `execute` can continue in a folder that a killed attempt left.
        space_bytes: disk that what it makes takes, for the check before the run starts.
        scratch_bytes: disk it needs besides while it is at work.
        take_over: puts into the folder what may be kept of an earlier artifact; called before `execute` where it begins
            with an empty folder, and not where all of it is asked for again.
        require: raises `InputError` for what this stage would refuse and can be known before the first one runs.
    """

    name: str
    kind: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]
    execute: Callable[[Path, Progress], Mapping[str, Any] | None]
    resumable: bool = False
    space_bytes: int = 10_000_000
    scratch_bytes: int = 0
    take_over: Callable[[Path, Progress], None] | None = None
    require: Callable[[], None] | None = None

    @property
    def id(self) -> str:
        """The id the finished artifact will have."""
        return artifact_id(self.kind, self.config, self.inputs)

    @property
    def group(self) -> str:
        """First part of the name."""
        return self.name.split("/")[0]


def state_of(run: Path, stage: Stage, *, hashes: bool = False) -> State:
    """Where a stage stands; with `hashes`, every file is hashed again, else sizes are compared."""
    folder = run / stage.name
    if not folder.exists():
        return "todo"
    if not (folder / MANIFEST).is_file():
        return "foreign"
    try:
        manifest = read_manifest(folder)
        if manifest.id != stage.id or _changed_parents(run, manifest):
            return "differs"
        return "done" if is_whole(folder) and not (hashes and damage(folder)) else "damaged"
    except ArtifactError:
        return "damaged"


def parents_of(run: Path, inputs: Mapping[str, str]) -> dict[str, str]:
    """Content hashes of those inputs (role -> id) that are artifacts of this run, by role."""
    there = {role: read_manifest(run / role) for role in inputs if (run / role / MANIFEST).is_file()}
    return {role: content_hash(manifest) for role, manifest in there.items() if manifest.id == inputs[role]}


def _changed_parents(run: Path, manifest: Manifest) -> list[str]:
    """Inputs whose contents are no longer those the artifact was made from."""
    there = {role for role in manifest.parents if (run / role / MANIFEST).is_file()}
    return [role for role in there if content_hash(read_manifest(run / role)) != manifest.parents[role]]


def read_id(folder: Path) -> str:
    """Id of the artifact in a folder."""
    return read_manifest(folder).id


def run_stages(
    run: Path,
    stages: Sequence[Stage],
    *,
    first: str | None = None,
    last: str | None = None,
    force: bool = False,
    dry_run: bool = False,
    before: Callable[[], None] | None = None,
    progress: Progress,
) -> list[tuple[str, str]]:
    """Bring every stage from `first` to `last` up to date, in order.

    Args:
        run: the run's folder; made if it is not there.
        stages: in order, each after its inputs.
        first: start here; what comes before must be done already.
        last: stop after this one.
        force: replace what differs or is damaged; together with `first`, redo everything from there on.
        dry_run: only say what would be done.
        before: called once the run is locked and nothing is refused, before the first stage.
        progress: told which stage runs.

    Returns:
        (name, "skipped" | "made" | what a dry run would do) for every stage looked at.

    Raises:
        BusyError: another process works in this run.
        ArtifactError: something else is there and `force` is off; says what differs.
        MissingError: a stage before `first` is not done.
        InputError: a chosen stage would refuse its model.
    """
    chosen = _between(stages, first, last)
    for stage in chosen:
        if stage.require is not None:
            stage.require()
    redo = {stage.name for stage in chosen} if force and first else set()
    _check_before(run, stages[: stages.index(chosen[0])], first)
    if dry_run:
        return [(stage.name, _plan(state_of(run, stage), stage.name in redo, force)) for stage in chosen]
    run.mkdir(parents=True, exist_ok=True)
    with _locked(run / ".lock", f"Another karma run is working in {run}."), _places(run, chosen):
        for torn in run.glob(".recipe.toml.*.tmp"):
            torn.unlink()
        return _bring_up_to_date(run, chosen, redo=redo, force=force, before=before, progress=progress)


def make_artifacts(
    folder: Path,
    stages: Sequence[Stage],
    *,
    force: bool = False,
    before: Callable[[], None] | None = None,
    progress: Progress,
) -> list[tuple[str, str]]:
    """Make artifacts in a folder that is the user's own, as `karma bake MODEL CAP OUT` does in the folder OUT is in.

    Like `run_stages`, but only the places of these artifacts are locked, others may be made beside them at the same
    time, and nothing but the artifacts stays in `folder`; of an attempt that was cut off, what it had written.

    Args:
        folder: made if it is not there, and removed again if nothing came of it.
        stages: the artifacts.
        force: replace what differs or is damaged.
        before: called once nothing is refused, before the first is made; not if all are there.
        progress: told which one is made.

    Returns:
        (name, "skipped" | "made") for each.

    Raises:
        BusyError: another process makes one of them.
        ArtifactError: something else is there and `force` is off; says what differs.
        InputError: `folder` lies in a finished artifact, which would no longer match its manifest.
    """
    sealed = sealed_around(folder)
    if sealed is not None:
        raise InputError(
            f"{sealed} is a finished artifact: what is made in it would not match its manifest.", "Give another folder."
        )
    missing = [place for place in (folder, *folder.parents) if not place.exists()]  # the innermost first
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with _places(folder, stages):
            return _bring_up_to_date(folder, stages, redo=set(), force=force, before=before, progress=progress)
    finally:
        for place in missing:
            _remove_if_empty(place)


def _bring_up_to_date(
    run: Path,
    chosen: Sequence[Stage],
    *,
    redo: set[str],
    force: bool,
    before: Callable[[], None] | None,
    progress: Progress,
) -> list[tuple[str, str]]:
    _recover(run, chosen)
    for stage in chosen:
        _refuse_other(run, stage, force)
    todo = [stage for stage in chosen if state_of(run, stage, hashes=force) != "done" or stage.name in redo]
    require_space(run, _space_needed(run, todo))
    if before is not None and todo:
        before()
    done = []
    for number, stage in enumerate(chosen, 1):
        if stage not in todo and state_of(run, stage) == "done":  # what it was made from may be new by now
            progress.say(f"[{number}/{len(chosen)}] {stage.name}: already there, skipped")
            done.append((stage.name, "skipped"))
            continue
        progress.say(f"[{number}/{len(chosen)}] {stage.name}")
        started = time.monotonic()
        _make(run, stage, progress, redo=stage.name in redo)
        progress.say(f"[{number}/{len(chosen)}] {stage.name}: done in {time.monotonic() - started:.0f} s")
        done.append((stage.name, "made"))
    return done


def _space_needed(run: Path, todo: Sequence[Stage]) -> int:
    """The most that these stages, one after the other, add to the disk, beyond what earlier attempts left there."""
    needed = kept = 0
    for stage in todo:
        partial = _partial(run, stage)
        there = 0
        if stage.resumable and partial.is_dir() and _read_mark(_beside(partial, "json")).get("id") == stage.id:
            there = sum(file.stat().st_size for file in partial.rglob("*") if file.is_file())
        needed = max(needed, kept + stage.space_bytes + stage.scratch_bytes - there)
        kept += stage.space_bytes - there
    return needed


def _between(stages: Sequence[Stage], first: str | None, last: str | None) -> list[Stage]:
    def position(asked: str, option: str) -> list[int]:
        found = [i for i, stage in enumerate(stages) if asked in (stage.name, stage.group)]
        if not found:
            groups = dict.fromkeys(stage.group for stage in stages)
            raise InputError(f"{option} {asked!r} is not a stage of this recipe.", f"Stages: {', '.join(groups)}.")
        return found

    start = position(first, "--from")[0] if first else 0
    end = position(last, "--to")[-1] if last else len(stages) - 1
    if start > end:
        raise InputError(f"--from {first} comes after --to {last}.", "Swap them.")
    return list(stages[start : end + 1])


def _check_before(run: Path, earlier: Sequence[Stage], first: str | None) -> None:
    for stage in earlier:
        state = state_of(run, stage)
        if state != "done":
            found = "is not there" if state == "todo" else "is not what this recipe makes"
            raise MissingError(
                f"--from {first} needs {run / stage.name}, which {found}.",
                f"Run without --from, or --from {stage.group}.",
            )


def _plan(state: State, redo: bool, force: bool) -> str:
    if redo:
        return "would be made again (--force)"
    if state == "done":
        return "already there"
    if state == "todo":
        return "would be made"
    if state == "foreign":
        return "would be refused: the folder was not made by karma"
    return "would be replaced" if force else f"{state}: would be refused without --force"


def _refuse_other(run: Path, stage: Stage, force: bool) -> None:
    state = state_of(run, stage)
    folder = run / stage.name
    if state == "foreign":
        raise _foreign(folder, "Move it away, or choose another folder (--run-dir, or OUT); it is never deleted.")
    if force or state in ("todo", "done"):
        return
    if state == "damaged":
        raise ArtifactError(f"{folder} is damaged (see: karma verify {run}).", "Replace it with --force.")
    manifest = read_manifest(folder)
    others = _changed_files(run, manifest.inputs, stage.inputs)
    changes = difference(
        {"config": manifest.config, "inputs": {r: id_ for r, id_ in manifest.inputs.items() if r not in others}},
        {"config": stage.config, "inputs": {r: id_ for r, id_ in stage.inputs.items() if r not in others}},
    )
    changes += [f"the {_SAID.get(role, role)} has changed since, or is another" for role in others]
    changes += [f"the contents of {role} have changed since" for role in _changed_parents(run, manifest)]
    raise ArtifactError(
        f"{folder} was made from something else: {'; '.join(changes)}.",
        "Replace it and what follows from it with --force, or keep it and choose another folder (--run-dir, or OUT).",
    )


def _changed_files(run: Path, old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    """Roles of inputs that are files of the user's and are others now; the rest are artifacts of the run."""
    both = [role for role in new if role in old and old[role] != new[role]]
    stages = (*STAGES, *BESIDE)
    return [role for role in both if role.partition("/")[0] not in stages and not (run / role / MANIFEST).is_file()]


def _foreign(folder: Path, hint: str) -> ArtifactError:
    return ArtifactError(
        f"{folder} is there and has no manifest: it was not made by karma, or lost its manifest.", hint
    )


def difference(old: object, new: object, path: str = "") -> list[str]:
    """What differs between two JSON values, as `key: old -> new`."""
    old, new = json.loads(json.dumps(old)), json.loads(json.dumps(new))
    if isinstance(old, dict) and isinstance(new, dict):
        keys = list(dict.fromkeys([*old, *new]))
        return [
            line for key in keys for line in difference(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        ]
    if old == new:
        return []
    return [f"{path.removeprefix('config.')}: {_short(old)} -> {_short(new)}"]


def _short(value: object) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else text[:57] + "..."


def _make(run: Path, stage: Stage, progress: Progress, *, redo: bool) -> None:
    partial = _partial(run, stage)
    mark = _beside(partial, "json")  # what is being made in `partial`, from what, and how far it is
    begun: dict[str, Any] = {"id": stage.id, "parents": parents_of(run, stage.inputs)}
    found = _read_mark(mark) if partial.is_dir() else {}
    same = all(found.get(key) == begun[key] for key in ("id", "parents"))
    if redo and not found.get("redo"):
        same = False  # whoever asks for all of it again does not want the rest of an earlier attempt
    begun["redo"] = redo or (same and found.get("redo") is True)
    executed = same and found.get("executed") is True
    measured = dict(found.get("measured") or {}) if executed else {}
    continued = executed or (stage.resumable and same)
    if not continued:
        mark.unlink(missing_ok=True)  # first: a kill while wiping must not leave half a folder that seems resumable
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        if stage.take_over is not None and not redo:
            stage.take_over(partial, progress)
        write_json(mark, begun)
    elif any(partial.iterdir()):
        progress.say("  continuing where the last attempt stopped")
    try:
        if not executed:
            measured = dict(stage.execute(partial, progress) or {})
            flush(partial)
            # a kill while hashing must not cost the whole stage
            write_json(mark, begun | {"executed": True} | ({"measured": measured} if measured else {}))
        seal(
            partial,
            kind=stage.kind,
            config=stage.config,
            inputs=stage.inputs,
            parents=begun["parents"],
            measured=measured,
        )
    except Exception as error:
        if disk_full(error):
            raise SpaceError(
                f"The disk is full: {stage.name} could not be written.",
                "Free some space and run the same command again.",
            ) from error
        raise
    _put_in_place(run, stage, partial)
    mark.unlink()


def _read_mark(mark: Path) -> dict[str, Any]:
    try:
        found = read_json(mark)
    except (MissingError, ArtifactError):
        return {}
    return found if isinstance(found, dict) else {}


def _put_in_place(run: Path, stage: Stage, partial: Path) -> None:
    """Move what is sealed in `partial` to its place, and delete the artifact that was there.

    Raises:
        ArtifactError: something of the user's came there meanwhile. Both stay where they are.
    """
    final, replaced = run / stage.name, _beside(partial, "replaced")
    final.parent.mkdir(parents=True, exist_ok=True)
    if final.exists():
        if not (final / MANIFEST).is_file():
            raise _foreign(final, f"Move it away and run the same command again; what was made is kept in {partial}.")
        shutil.rmtree(replaced, ignore_errors=True)
        final.replace(replaced)
    partial.replace(final)
    sync_folder(final.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def _recover(run: Path, stages: Sequence[Stage]) -> None:
    """Finish what a kill between sealing and renaming left, and remove atomic writes that were cut off.

    Only at the places of these stages: others may be in use by another process.
    """
    for stage in stages:
        partial = _partial(run, stage)
        for torn in (*partial.parent.glob(f".{glob.escape(partial.name)}.json.*.tmp"), *partial.rglob(".*.tmp")):
            torn.unlink()
        if (partial / MANIFEST).is_file() and is_whole(partial) and read_manifest(partial).id == stage.id:
            _put_in_place(run, stage, partial)
            _beside(partial, "json").unlink(missing_ok=True)
        shutil.rmtree(_beside(partial, "replaced"), ignore_errors=True)


def _partial(run: Path, stage: Stage) -> Path:
    return run / _PARTIAL / stage.name.replace("/", ".")


def _beside(partial: Path, suffix: str) -> Path:
    """What belongs to a stage's place and lies beside it: `json`, `lock`, `replaced`."""
    return partial.with_name(f"{partial.name}.{suffix}")


@contextlib.contextmanager
def _places(run: Path, stages: Sequence[Stage]) -> Iterator[None]:
    """Hold the places of stages for this process. In the end those that are empty are removed, and their locks."""
    with contextlib.ExitStack() as held:
        held.callback(_remove_if_empty, run / _PARTIAL)
        for stage in stages:
            partial = _partial(run, stage)
            lock = _beside(partial, "lock")
            held.enter_context(_locked(lock, f"Another karma process is making {run / stage.name}."))
            # While it is held: whoever opened the same file meanwhile sees that it is gone, and does not take it.
            held.callback(_unlink, lock)
            held.callback(_forget_if_empty, partial)
        yield


def _forget_if_empty(partial: Path) -> None:
    """Remove the place of a stage that has written nothing there, so that there is nothing to continue."""
    _remove_if_empty(partial)
    if not partial.exists():
        _beside(partial, "json").unlink(missing_ok=True)


def _unlink(lock: Path) -> None:
    with contextlib.suppress(OSError):  # Windows keeps a file that is open
        lock.unlink()


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


@contextlib.contextmanager
def _locked(path: Path, busy: str) -> Iterator[None]:
    """Hold a lock file for this process; the system lets go of it however the process ends."""
    from filelock import FileLock, Timeout

    lock = FileLock(path, timeout=0)
    for attempt in range(_ATTEMPTS):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            break
        except (FileNotFoundError, FileExistsError):  # a process beside this one has just removed the empty folder
            if attempt == _ATTEMPTS - 1:
                raise
        except Timeout:
            raise BusyError(busy, "Wait for it to end, or use another folder (--run-dir, or OUT).") from None
    try:
        yield
    finally:
        lock.release()
