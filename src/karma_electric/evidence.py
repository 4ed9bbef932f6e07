"""Reads a run, finished or not, into one value for the card and the report. Knows nothing of how it is shown.

A stage that has not run, or is not whole, is an empty dict here: what was not measured can be seen to be missing.
A file that is there but damaged is an error, as everywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from karma_electric.core.artifact import MANIFEST, Manifest, hash_file, is_whole, read_json, read_manifest
from karma_electric.core.errors import MissingError
from karma_electric.core.recipe import Recipe
from karma_electric.core.resources import find
from karma_electric.redteam.arms import JUDGE
from karma_electric.redteam.comparing import ArmRates, PairReport, compare_pair, rates_of
from karma_electric.redteam.judge_error import Judge, judge_of
from karma_electric.redteam.paired import PairedComparison
from karma_electric.redteam.runner import COMPLETIONS, SUMMARY, Answer
from karma_electric.redteam.scenario import Scenario, load_suite
from karma_electric.redteam.seeds import SeedResult, read_seeds
from karma_electric.redteam.signals import Verdict

ORDER = ("release", "adapter", "merged", "axis", "capped", "gguf", "redteam")
ARMS = ("base", "tuned", "capped")
COMPARED = (("tuned", "capped"), ("base", "tuned"))  # each second arm against its first
_MAIN_FILES = {"release": "train.jsonl", "axis": "axis.safetensors", "redteam": COMPLETIONS}


@dataclass(frozen=True)
class Artifact:
    """A whole artifact of the run: its folder below the run (`adapter`, `redteam/base`) and its manifest."""

    name: str
    manifest: Manifest

    @property
    def main_file(self) -> str:
        """The file that the artifact is about: the one its kind is known for, else the largest."""
        known = _MAIN_FILES.get(self.manifest.kind, "")
        return known if known in self.manifest.files else max(self.manifest.sizes, key=self.manifest.sizes.__getitem__)

    @property
    def commit(self) -> str | None:
        """The commit it was made with, shortened, marked where there were uncommitted changes."""
        commit = self.manifest.code.get("commit")
        return f"{commit[:12]}{' + changes' if self.has_changes else ''}" if commit else None

    @property
    def has_changes(self) -> bool:
        """Whether the code that made it had uncommitted changes."""
        return bool(self.manifest.code.get("dirty"))


@dataclass(frozen=True)
class Arm:
    """What one arm did: summary.json, its verdicts and answers by seed, and its rates."""

    name: str
    summary: dict[str, Any]
    seeds: dict[int, SeedResult]
    rates: ArmRates


@dataclass(frozen=True)
class Turn:
    """One user turn of a scenario, and what each arm answered to it, by name of the arm."""

    prompt: str
    answers: dict[str, Answer]


@dataclass(frozen=True)
class Transcript:
    """One scenario over all arms, under one seed. `scenario` is None where the suite is not the one that was asked.

    `seed` is None where the arms have one: then it need not be told.
    """

    id: str
    seed: int | None
    category: str
    scenario: Scenario | None
    verdicts: dict[str, Verdict]
    turns: tuple[Turn, ...]

    @property
    def title(self) -> str:
        """The id, with the seed where there are several."""
        return self.id if self.seed is None else f"{self.id} seed {self.seed}"

    @property
    def anchor(self) -> str:
        """A name for links that no other transcript has."""
        return self.id if self.seed is None else f"{self.id}.seed-{self.seed}"

    def differs(self, a: str, b: str) -> bool:
        """Whether two arms both have a verdict here, and not the same outcome."""
        return {a, b} <= self.verdicts.keys() and self.verdicts[a].outcome != self.verdicts[b].outcome


@dataclass(frozen=True)
class Comparison:
    """Arm `second` against arm `first`."""

    first: str
    second: str
    report: PairReport

    @property
    def result(self) -> PairedComparison:
        """All categories together."""
        return self.report.result


@dataclass(frozen=True)
class Evidence:
    """Everything a run has measured.

    Attributes:
        run: folder of the run.
        recipe: what was asked for.
        artifacts: the whole ones, in the order they are made.
        release, training, merge, cap, axis, fidelity, parity: their JSON; `axis` is the metadata of axis.safetensors.
        config: config.json of the merged model.
        modelfiles: name -> text.
        arms: in the order base, tuned, capped, others.
        differing_settings: what was not the same in all arms (prompt, sampling), so that they do not compare.
        comparisons: the pairs of COMPARED that were run.
        agreement: of the scorer with labels, per half of the labelled answers.
        judge: its error on the half that it was not tuned on; None where it was not measured.
        transcripts: one per scenario and seed, in the order of the suite.
    """

    run: Path
    recipe: Recipe
    artifacts: dict[str, Artifact]
    release: dict[str, Any]
    training: dict[str, Any]
    merge: dict[str, Any]
    cap: dict[str, Any]
    axis: dict[str, Any]
    fidelity: dict[str, Any]
    parity: dict[str, Any]
    config: dict[str, Any]
    modelfiles: dict[str, str]
    arms: tuple[Arm, ...]
    differing_settings: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    agreement: dict[str, Any]
    judge: Judge | None
    transcripts: tuple[Transcript, ...]

    def command(self, stage: str) -> str:
        """What to type to get a stage measured."""
        return f"karma run recipes/{self.recipe.name}.toml --to {stage}"

    @property
    def created(self) -> str:
        """Date of the newest artifact (YYYY-MM-DD), or an empty text."""
        return max((artifact.manifest.created for artifact in self.artifacts.values()), default="")[:10]

    @property
    def base_parameters(self) -> int | None:
        """Parameters of the model without its adapter."""
        if not {"parameters", "trainable_parameters"} <= self.training.keys():
            return None
        return int(self.training["parameters"]) - int(self.training["trainable_parameters"])

    def image(self, stage: str, name: str) -> bytes | None:
        """A figure that a stage made."""
        known = stage in self.artifacts and name in self.artifacts[stage].manifest.files
        return (self.run / stage / name).read_bytes() if known else None


def read_run(run: Path, recipe: Recipe) -> Evidence:
    """Read what there is of a run.

    Raises:
        ArtifactError: a file that is there is not what it should be.
    """
    artifacts = {artifact.name: artifact for artifact in _artifacts(run)}
    file = run / "redteam" / JUDGE
    agreement = dict(read_json(file)) if file.is_file() else {}
    judge = judge_of(agreement["B"], str(file)) if "B" in agreement else None
    arms = tuple(_arms(run, recipe.redteam.arms, judge))
    by_name = {arm.name: arm for arm in arms}

    def read(stage: str, name: str) -> dict[str, Any]:
        if stage not in artifacts or name not in artifacts[stage].manifest.files:
            return {}
        return dict(read_json(run / stage / name))

    gguf = artifacts["gguf"].manifest.files if "gguf" in artifacts else {}
    return Evidence(
        run=run,
        recipe=recipe,
        artifacts=artifacts,
        release=read("release", "summary.json"),
        training=read("adapter", "training.json"),
        merge=read("merged", "merge.json"),
        cap=read("axis", "cap.json"),
        axis=_metadata(run / "axis" / "axis.safetensors") if "axis" in artifacts else {},
        fidelity=read("capped", "fidelity.json"),
        parity=read("gguf", "parity.json"),
        config=read("merged", "config.json"),
        modelfiles={
            name: (run / "gguf" / name).read_text(encoding="utf-8")
            for name in sorted(gguf)
            if name.startswith("Modelfile")
        },
        arms=arms,
        differing_settings=tuple(
            key
            for key in ("system_prompt", "sampling", "seeds")
            if any(a.summary.get(key) != arms[0].summary.get(key) for a in arms)
        ),
        comparisons=tuple(
            Comparison(a, b, compare_pair((a, _by_seed(by_name[a].seeds)), (b, _by_seed(by_name[b].seeds)), judge))
            for a, b in COMPARED
            if {a, b} <= by_name.keys()
        ),
        agreement=agreement,
        judge=judge,
        transcripts=tuple(_transcripts(arms, _suite(recipe, artifacts))),
    )


def _artifacts(run: Path) -> Iterator[Artifact]:
    for kind in ORDER:
        folders = sorted(p.parent for p in (*run.glob(f"{kind}/{MANIFEST}"), *run.glob(f"{kind}/*/{MANIFEST}")))
        names = [folder.relative_to(run).as_posix() for folder in folders if is_whole(folder)]
        for name in sorted(names, key=lambda name: _rank(name.rpartition("/")[2])):
            manifest = read_manifest(run / name)
            if manifest.files:
                yield Artifact(name, manifest)


def _rank(arm: str) -> tuple[int, str]:
    return (ARMS.index(arm) if arm in ARMS else len(ARMS), arm)


def _arms(run: Path, names: Sequence[str], judge: Judge | None) -> Iterator[Arm]:
    """The recipe's arms that are there; others that lie in the run are of another recipe."""
    folders = [folder for name in names if ((folder := run / "redteam" / name) / SUMMARY).is_file()]
    for folder in sorted(folders, key=lambda folder: _rank(folder.name)):
        seeds = read_seeds(folder)
        rates = rates_of(folder.name, _by_seed(seeds), judge)
        yield Arm(folder.name, read_json(folder / SUMMARY), seeds, rates)


def _by_seed(seeds: Mapping[int, SeedResult]) -> dict[int, list[Verdict]]:
    return {seed: list(result.verdicts.values()) for seed, result in seeds.items()}


def _suite(recipe: Recipe, artifacts: Mapping[str, Artifact]) -> dict[str, Scenario]:
    """The suite the arms were asked, by id; empty where the file has changed since, or is gone."""
    asked = {a.manifest.inputs.get("suite") for a in artifacts.values() if a.manifest.kind == "redteam"}
    try:
        path = find("suites", recipe.redteam.suite)
    except MissingError:
        return {}
    same = path.is_file() and asked == {hash_file(path)}
    return {scenario.id: scenario for scenario in load_suite(path)} if same else {}


def _transcripts(arms: tuple[Arm, ...], suite: Mapping[str, Scenario]) -> Iterator[Transcript]:
    numbers = sorted({seed for arm in arms for seed in arm.seeds})
    ids = dict.fromkeys([*suite, *(id_ for arm in arms for result in arm.seeds.values() for id_ in result.verdicts)])
    for id_ in ids:
        for number in numbers:
            results = {arm.name: arm.seeds[number] for arm in arms if number in arm.seeds}
            verdicts = {name: result.verdicts[id_] for name, result in results.items() if id_ in result.verdicts}
            if not verdicts:
                continue
            answers = {name: result.answers.get(id_, {}) for name, result in results.items()}
            turns = []
            for turn in sorted({turn for given in answers.values() for turn in given}):
                given = {name: by_turn[turn] for name, by_turn in answers.items() if turn in by_turn}
                turns.append(Turn(next(iter(given.values())).prompt, given))
            yield Transcript(
                id=id_,
                seed=number if len(numbers) > 1 else None,
                category=next(iter(verdicts.values())).category,
                scenario=suite.get(id_),
                verdicts=verdicts,
                turns=tuple(turns),
            )


def _metadata(path: Path) -> dict[str, Any]:
    """Metadata of a safetensors file, read without loading a tensor (and so without torch)."""
    from safetensors import safe_open

    if not path.is_file():
        return {}
    with safe_open(path, framework="np") as file:
        return dict(file.metadata() or {})
