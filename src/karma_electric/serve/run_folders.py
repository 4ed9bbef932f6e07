"""Red-team runs below a folder, read for looking at them. Knows nothing of HTTP.

A run is only ever found by walking the folder: a name that somebody sends is looked up among what was found, and never
becomes part of a path.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from karma_electric.core.artifact import MANIFEST, hash_file, read_json, read_manifest
from karma_electric.core.errors import KarmaError, MissingError
from karma_electric.core.resources import resource_root
from karma_electric.redteam.arms import JUDGE
from karma_electric.redteam.judge_error import Judge, are_raters, judge_of, part_of
from karma_electric.redteam.runner import SUMMARY
from karma_electric.redteam.scenario import Scenario, load_suite
from karma_electric.redteam.seeds import SeedResult, read_seeds

ARMS = ("base", "tuned", "capped")  # the order of those that are there; others follow by name
REDTEAM = "redteam"
_DEEPEST = 4  # folders below the root


@dataclass(frozen=True)
class Arm:
    """A finished arm: its name, summary.json and results by seed."""

    name: str
    summary: dict[str, Any]
    seeds: dict[int, SeedResult]


@dataclass(frozen=True)
class MeasuredJudge:
    """What is known of the judge of a run.

    Attributes:
        scorer: its name.
        half: which labels the figures rest on: "B" are those it was not tuned on, "all" those of raters.
        judge: its agreement with them.
    """

    scorer: str
    half: str
    judge: Judge


@dataclass(frozen=True)
class Run:
    """One run: the scenarios that its arms were asked, and what they answered.

    Attributes:
        name: the run's name below the root; folders in it are joined by "~".
        folder: where it lies.
        arms: by name, base, tuned and capped first.
        suite: the scenarios by id, in order; empty where no suite of that hash is known.
        suite_file: name of the suite's file, None where it is not known.
        judge: None where none was measured beside the arms.
        created: date and time of the newest arm, or an empty text.
    """

    name: str
    folder: Path
    arms: dict[str, Arm]
    suite: dict[str, Scenario]
    suite_file: str | None
    judge: MeasuredJudge | None
    created: str

    @property
    def cases(self) -> list[tuple[str, int]]:
        """(scenario id, seed) of everything that an arm has a verdict on: in the suite's order, then by seed."""
        results = [(seed, result) for arm in self.arms.values() for seed, result in arm.seeds.items()]
        rank = {id_: number for number, id_ in enumerate(self.suite)}
        for _, result in results:
            for id_ in result.verdicts:
                rank.setdefault(id_, len(rank))
        found = {(id_, seed) for seed, result in results for id_ in result.verdicts}
        return sorted(found, key=lambda case: (rank[case[0]], case[1]))


def find_runs(root: Path) -> dict[str, Path]:
    """Name -> folder of every run at or below `root`, by name. Links to folders are not followed."""
    found: dict[str, Path] = {}
    for place, folders, _ in os.walk(root):
        folder = Path(place)
        depth = len(folder.relative_to(root).parts)
        if any((folder / REDTEAM).glob(f"*/{SUMMARY}")):
            found["~".join(folder.relative_to(root).parts) or (folder.resolve().name or "run")] = folder
        folders[:] = sorted(
            name for name in folders if depth < _DEEPEST and name != REDTEAM and not name.startswith(".")
        )
    return dict(sorted(found.items()))


def open_run(root: Path, name: str) -> Run:
    """The run of that name, read again only where a file of it has changed.

    Raises:
        MissingError: there is none.
        ArtifactError: a file of it is damaged.
    """
    folders = find_runs(root)
    if name not in folders:
        listed = ", ".join(folders) or "none"
        raise MissingError(f"There is no run {name!r}.", f"Runs: {listed}.")
    folder = folders[name]
    return _read(name, folder, _state(folder))


def _state(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """What tells whether a run has changed: path, time and size of the files that are read."""
    files = [*(folder / REDTEAM).glob("*/**/*.jsonl"), *(folder / REDTEAM).glob("*/**/*.json")]
    stats = [(str(file), file.stat()) for file in sorted(files)]
    return tuple((name, stat.st_mtime_ns, stat.st_size) for name, stat in stats)


@lru_cache(maxsize=32)
def _read(name: str, folder: Path, _: tuple[tuple[str, int, int], ...]) -> Run:
    names = sorted((file.parent.name for file in (folder / REDTEAM).glob(f"*/{SUMMARY}")), key=_rank)
    arms = {arm: _arm(folder / REDTEAM / arm) for arm in names}
    manifests = [
        read_manifest(folder / REDTEAM / arm) for arm in names if (folder / REDTEAM / arm / MANIFEST).is_file()
    ]
    asked = {str(manifest.inputs["suite"]) for manifest in manifests if "suite" in manifest.inputs}
    file = _suite_file(asked.pop(), folder) if len(asked) == 1 else None
    return Run(
        name=name,
        folder=folder,
        arms=arms,
        suite=_scenarios(file, hash_file(file)) if file else {},
        suite_file=file.name if file else None,
        judge=_judge(folder / REDTEAM / JUDGE),
        created=max((manifest.created for manifest in manifests), default=""),
    )


@lru_cache(maxsize=8)
def _scenarios(file: Path, _: str) -> dict[str, Scenario]:
    """A suite by id; the hash says when to read it again, which takes a second or two (every pattern is checked)."""
    return {scenario.id: scenario for scenario in load_suite(file)}


def _rank(arm: str) -> tuple[int, str]:
    return (ARMS.index(arm) if arm in ARMS else len(ARMS), arm)


def _arm(folder: Path) -> Arm:
    return Arm(folder.name, read_json(folder / SUMMARY), read_seeds(folder))


def _suite_file(sha256: str, run: Path) -> Path | None:
    """The suite of that hash: among the shipped ones, or the one that the run's recipe names."""
    return next((path for path in _suites(run) if path.is_file() and hash_file(path) == sha256), None)


def _suites(run: Path) -> Iterator[Path]:
    yield from sorted(resource_root("suites").glob("*.jsonl"))
    recipe = run / "recipe.toml"
    if recipe.is_file():
        from karma_electric.core.recipe import load_recipe
        from karma_electric.core.resources import find

        try:
            yield find("suites", load_recipe(str(recipe)).redteam.suite, relative_to=run)
        except KarmaError:
            return  # an older recipe, or a suite that is gone: the transcripts tell what was asked


def _judge(file: Path) -> MeasuredJudge | None:
    if not file.is_file():
        return None
    halves = read_json(file)
    config = read_manifest(file.parent).config if (file.parent / MANIFEST).is_file() else {}
    scorer = str(config.get("scorer", "the judge"))
    half = part_of(scorer, halves) or ("A" if isinstance(halves, Mapping) and "A" in halves else None)
    if half is None:
        return None
    judge = judge_of(halves[half], file.name, between_raters=are_raters(scorer))
    return MeasuredJudge(scorer, half, judge)
