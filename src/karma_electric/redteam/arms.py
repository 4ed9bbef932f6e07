"""Finds arms on disk and checks that they may be compared. Knows nothing of statistics."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karma_electric.core.artifact import MANIFEST, Manifest, read_json, read_manifest, require_undamaged
from karma_electric.core.errors import ArtifactError, InputError, MissingError
from karma_electric.core.lineage import missing_run_hint
from karma_electric.redteam.judge_error import Judge, are_raters, judge_of, part_of
from karma_electric.redteam.kinds import GROUPS
from karma_electric.redteam.runner import SUMMARY
from karma_electric.redteam.seeds import SeedResult, read_seeds
from karma_electric.redteam.signals import Verdict

JUDGE = "judge/agreement.json"  # beside the arms: part of the labels -> Agreement


@dataclass(frozen=True)
class ArmFolder:
    """A finished arm.

    Attributes:
        name: what it is called in a comparison.
        folder: where it lies.
        manifest: of its artifact.
        summary: its summary.json.
        seeds: its results by seed.
    """

    name: str
    folder: Path
    manifest: Manifest
    summary: dict[str, Any]
    seeds: dict[int, SeedResult]

    @property
    def verdicts(self) -> dict[int, list[Verdict]]:
        """Seed -> verdicts."""
        return {seed: list(result.verdicts.values()) for seed, result in self.seeds.items()}


def find_arms(places: Sequence[str], *, group: str = "redteam") -> list[Path]:
    """Folders of the arms that a command line names.

    Args:
        places: folders of arms; or folders of runs, each followed by names of its arms.
        group: folder of the arms below a run, by kind of suite.

    Raises:
        MissingError: no such folder, or no such arm in the run.
        InputError: a run without the name of an arm.
    """
    found: list[Path] = []
    run: Path | None = None
    named = True  # whether the last run was followed by a name
    for place in places:
        folder = Path(place)
        if run is not None and "/" not in place and (run / group / place / MANIFEST).is_file():
            found.append(run / group / place)
            named = True
        elif (folder / group).is_dir():
            if not named:
                break
            run, named = folder, False
        elif run is not None and "/" not in place and not folder.exists():
            raise MissingError(f"{run} has no arm {place!r}.", f"Arms there: {_arms_of(run, group)}.")
        else:
            found.append(folder)
    if not named:
        raise InputError(
            f"{run} is a whole run, expected an arm of it.",
            f"Write the arms after it. Arms there: {_arms_of(run, group)}.",
        )
    return found


def read_arms(folders: Sequence[Path]) -> list[ArmFolder]:
    """Read finished arms, and check that they were asked and judged alike.

    Raises:
        MissingError: a folder that is not there, or has no manifest.
        ArtifactError: it is no arm, or its files are not those that were written.
        InputError: the same folder twice, or arms of different suites, scorers, or without a seed in common.
    """
    names = _names(folders)
    seen: dict[Path, str] = {}
    for folder in folders:
        if (same := folder.resolve()) in seen:
            raise InputError(
                f"{folder} and {seen[same]} are one folder: an arm cannot be compared with itself.", "Name two arms."
            )
        seen[same] = str(folder)
    arms = [read_arm(folder, name) for folder, name in zip(folders, names, strict=True)]
    for other in arms[1:]:
        _check_alike(arms[0], other)
    return arms


def remarks(a: ArmFolder, b: ArmFolder) -> list[str]:
    """What else sets two arms apart, and what of them is left out; a sentence each."""
    said = []
    for key in ("engine", "system_prompt"):
        if a.summary.get(key) != b.summary.get(key):
            said.append(_differs(key, a, b, a.summary.get(key), b.summary.get(key)))
    first, second = a.summary.get("sampling", {}), b.summary.get("sampling", {})
    for key in dict.fromkeys([*first, *second]):
        if key != "seed" and first.get(key) != second.get(key):
            said.append(_differs(key, a, b, first.get(key), second.get(key)))
    for one, other in ((a, b), (b, a)):
        alone = [seed for seed in one.seeds if seed not in other.seeds]
        if alone:
            listed = ", ".join(map(str, alone))
            said.append(
                f"Only {one.name} was run under seed {listed}: left out, since {other.name} has no pair for it."
            )
    if a.manifest.files == b.manifest.files:
        said.append(f"{a.name} and {b.name} hold the same files to the byte: one answer set under two names.")
    return said


def judged_by(arm: ArmFolder) -> list[str]:
    """What is the same in two arms whose outcomes are of one judge: its versions and, of raters, their labels."""
    versions = [str(name) for name in arm.summary.get("scorers") or ()]
    spec = scorer_of(arm.summary)
    if not are_raters(spec):
        return versions
    labels = arm.manifest.inputs.get(spec)
    return [*versions, spec if labels is None else f"on {labels[:16]}"]


def find_judge(arms: Sequence[ArmFolder]) -> Judge | None:
    """The judge that was measured beside one of the arms, on the suite and with the scorer of all; None where none.

    Raises:
        ArtifactError: its file is damaged.
    """
    found = (judge_beside(arm.folder.parent, arm.manifest.inputs.get("suite"), scorer_of(arm.summary)) for arm in arms)
    return next((judge for judge in found if judge is not None), None)


def judge_beside(group: Path, suite: str | None, scorer: str) -> Judge | None:
    """The judge that was measured beside the arms of a folder such as RUN/redteam, on that suite and of that name.

    Raises:
        ArtifactError: its file is damaged.
    """
    folder = (group / JUDGE).parent
    if not (folder / MANIFEST).is_file():
        return None
    manifest = read_manifest(folder)
    alike = manifest.inputs.get("suite") == suite and manifest.config.get("scorer") == scorer
    return read_judge(folder) if alike else None


def read_judge(folder: Path) -> Judge | None:
    """The judge of a folder such as RUN/redteam/judge; None where none was measured to the end.

    Raises:
        ArtifactError: its files are not those that were written, or not what the measurement writes.
    """
    file = folder / Path(JUDGE).name
    if not (folder / MANIFEST).is_file():
        return None
    require_undamaged(folder)
    scorer, parts = str(read_manifest(folder).config.get("scorer", "")), read_json(file)
    part = part_of(scorer, parts)
    if part is None:
        return None
    return judge_of(
        parts[part],
        str(file),
        between_raters=are_raters(scorer),
        raters=[str(name) for name in parts.get("raters", ())],
    )


def scorer_of(summary: Mapping[str, Any]) -> str:
    """The judge of an arm, as recipes name it. Arms that do not say were made when `signals` was the only one."""
    return str(summary.get("scorer", "signals"))


def read_arm(folder: Path, name: str, *, absent: Collection[Path] = ()) -> ArmFolder:
    """One finished arm, whose files are those that were written; those in `absent` may be missing.

    Raises:
        MissingError: the folder is not there, or has no manifest.
        ArtifactError: it is no arm, or its files are not those that were written.
    """
    if not folder.is_dir():
        hint = missing_run_hint(folder) or "Give the folder of an arm, such as runs/demo/redteam/base."
        raise MissingError(f"{folder} does not exist.", hint)
    if not (folder / MANIFEST).is_file():
        raise MissingError(
            f"{folder} has no {MANIFEST}: it is not a finished arm.", "Finish it: karma redteam run RECIPE"
        )
    manifest = read_manifest(folder)
    if manifest.kind not in GROUPS or SUMMARY not in manifest.files:
        raise ArtifactError(
            f"{folder} holds {manifest.kind} and no {SUMMARY}, expected an arm of a red-team.",
            "Give a folder such as runs/demo/redteam/base.",
        )
    require_undamaged(folder, absent=absent)
    summary = read_json(folder / SUMMARY)
    return ArmFolder(name, folder, manifest, summary, read_seeds(folder))


def _check_alike(a: ArmFolder, b: ArmFolder) -> None:
    suites = [arm.manifest.inputs.get("suite") for arm in (a, b)]
    if suites[0] != suites[1]:
        first, second = ({v.scenario_id for vs in arm.verdicts.values() for v in vs} for arm in (a, b))
        shared = len(first & second)
        common = f"{shared} of their scenario ids are the same" if shared else "they have no scenario in common"
        raise InputError(
            f"{a.name} and {b.name} were asked different suites ({str(suites[0])[:12]} and {str(suites[1])[:12]}; "
            f"{common}).",
            "Run both on one suite file: karma redteam run RECIPE --suite FILE",
        )
    judges = [judged_by(arm) for arm in (a, b)]
    if judges[0] != judges[1]:
        ours, theirs = (" ".join(judge) for judge in judges)
        raise InputError(
            f"{a.name} was judged by {ours} and {b.name} by {theirs}: that difference would be the judges'.",
            "Run the older one again: karma redteam run RECIPE --force",
        )
    if not a.seeds.keys() & b.seeds.keys():
        raise InputError(
            f"{a.name} has the seeds {_listed(a.seeds)} and {b.name} {_listed(b.seeds)}: none in common to pair.",
            "Run both under the same seeds: karma redteam run RECIPE --seeds N",
        )


def _names(folders: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart, without the folder `redteam`: base, or v1/tuned."""
    parts = [[part for part in folder.absolute().parts if part != "redteam"] for folder in folders]
    for depth in range(1, max(map(len, parts)) + 1):
        names = ["/".join(each[-depth:]) for each in parts]
        if len(set(names)) == len(names):
            return names
    return [str(folder) for folder in folders]


def _arms_of(run: Path | None, group: str) -> str:
    found = sorted(path.parent.name for path in (run or Path()).glob(f"{group}/*/{SUMMARY}"))
    return ", ".join(found) or "none"


def _differs(key: str, a: ArmFolder, b: ArmFolder, first: object, second: object) -> str:
    return (
        f"The arms also differ in {key} ({_short(first)} in {a.name}, {_short(second)} in {b.name}), so the difference "
        "is not the models' alone."
    )


def _listed(seeds: dict[int, SeedResult]) -> str:
    return ", ".join(map(str, seeds))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
