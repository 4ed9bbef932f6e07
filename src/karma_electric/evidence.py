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
from karma_electric.core.jsonl import read_jsonl
from karma_electric.core.recipe import Recipe
from karma_electric.core.resources import find
from karma_electric.redteam.runner import COMPLETIONS, SUMMARY, Answer, read_verdicts
from karma_electric.redteam.scenario import Scenario, load_suite
from karma_electric.redteam.signals import Verdict
from karma_electric.redteam.stats import PairedComparison, compare

ORDER = ("release", "adapter", "merged", "axis", "capped", "gguf", "redteam")
ARMS = ("base", "tuned", "capped")
COMPARED = (("tuned", "capped"), ("base", "tuned"))  # each second arm against its first
AGREEMENT = "judge/agreement.json"  # in redteam/: half -> Agreement, as `labelled.measure` returns
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
    """What one arm did: summary.json, and per scenario id the verdict and the answers by turn."""

    name: str
    summary: dict[str, Any]
    verdicts: dict[str, Verdict]
    answers: dict[str, dict[int, Answer]]


@dataclass(frozen=True)
class Turn:
    """One user turn of a scenario, and what each arm answered to it, by name of the arm."""

    prompt: str
    answers: dict[str, Answer]


@dataclass(frozen=True)
class Transcript:
    """One scenario over all arms. `scenario` is None where the suite is not the one that was asked."""

    id: str
    category: str
    scenario: Scenario | None
    verdicts: dict[str, Verdict]
    turns: tuple[Turn, ...]

    def differs(self, a: str, b: str) -> bool:
        """Whether two arms both have a verdict here, and not the same outcome."""
        return {a, b} <= self.verdicts.keys() and self.verdicts[a].outcome != self.verdicts[b].outcome


@dataclass(frozen=True)
class Comparison:
    """Arm `second` against arm `first`."""

    first: str
    second: str
    result: PairedComparison


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
        transcripts: one per scenario, in the order of the suite.
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
    arms = tuple(_arms(run, recipe.redteam.arms))
    by_name = {arm.name: arm for arm in arms}

    def read(stage: str, name: str) -> dict[str, Any]:
        if stage not in artifacts or name not in artifacts[stage].manifest.files:
            return {}
        return dict(read_json(run / stage / name))

    gguf = artifacts["gguf"].manifest.files if "gguf" in artifacts else {}
    agreement = run / "redteam" / AGREEMENT
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
            for key in ("system_prompt", "sampling")
            if any(a.summary.get(key) != arms[0].summary.get(key) for a in arms)
        ),
        comparisons=tuple(
            Comparison(a, b, _compare(by_name[a], by_name[b])) for a, b in COMPARED if {a, b} <= by_name.keys()
        ),
        agreement=dict(read_json(agreement)) if agreement.is_file() else {},
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


def _arms(run: Path, names: Sequence[str]) -> Iterator[Arm]:
    """The recipe's arms that are there; others that lie in the run are of another recipe."""
    folders = [folder for name in names if ((folder := run / "redteam" / name) / SUMMARY).is_file()]
    for folder in sorted(folders, key=lambda folder: _rank(folder.name)):
        answers: dict[str, dict[int, Answer]] = {}
        for _, line in read_jsonl(folder / COMPLETIONS):
            answer = Answer(**line)
            answers.setdefault(answer.scenario_id, {})[answer.turn] = answer  # a turn asked again replaces the first
        verdicts = {verdict.scenario_id: verdict for verdict in read_verdicts(folder)}
        yield Arm(folder.name, read_json(folder / SUMMARY), verdicts, answers)


def _compare(a: Arm, b: Arm) -> PairedComparison:
    return compare(list(a.verdicts.values()), list(b.verdicts.values()), name_a=a.name, name_b=b.name)


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
    ids = dict.fromkeys([*suite, *(id_ for arm in arms for id_ in arm.verdicts)])
    for id_ in ids:
        verdicts = {arm.name: arm.verdicts[id_] for arm in arms if id_ in arm.verdicts}
        if not verdicts:
            continue
        answers = {arm.name: arm.answers.get(id_, {}) for arm in arms}
        numbers = sorted({number for turns in answers.values() for number in turns})
        turns = []
        for number in numbers:
            given = {name: by_turn[number] for name, by_turn in answers.items() if number in by_turn}
            turns.append(Turn(next(iter(given.values())).prompt, given))
        yield Transcript(id_, next(iter(verdicts.values())).category, suite.get(id_), verdicts, tuple(turns))


def _metadata(path: Path) -> dict[str, Any]:
    """Metadata of a safetensors file, read without loading a tensor (and so without torch)."""
    from safetensors import safe_open

    if not path.is_file():
        return {}
    with safe_open(path, framework="np") as file:
        return dict(file.metadata() or {})
