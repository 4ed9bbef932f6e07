"""Reads a run, finished or not, into one value for the card and the report. Knows nothing of how it is shown.

A stage that has not run, or is not whole, is an empty dict here: what was not measured can be seen to be missing.
A file that is there and is not the one that was made is an error: nothing is said on its word. Kept results (a run's
small files without its weights) are read like the run: kept.json names what was left out on purpose, and manifests
still say its sizes and hashes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

from karma_electric.asked import labels_named
from karma_electric.core.artifact import MANIFEST, Manifest, damage, hash_file, read_json, read_manifest
from karma_electric.core.errors import GateError, MissingError
from karma_electric.core.lineage import broken_links
from karma_electric.core.recipe import Recipe
from karma_electric.core.resources import find
from karma_electric.kept import files_left_out, is_there
from karma_electric.redteam.arms import JUDGE, ArmFolder, judge_beside, read_arm, scorer_of
from karma_electric.redteam.beside import Beside, correct_together, read_beside
from karma_electric.redteam.comparing import ArmRates, PairReport, compare_pair, rates_of
from karma_electric.redteam.drift_figures import DRIFT, ArmDrifts, read_drifts
from karma_electric.redteam.judge_error import Judge
from karma_electric.redteam.kinds import FOLDERS, GROUPS, Kind
from karma_electric.redteam.paired import PairedComparison
from karma_electric.redteam.relabels import latest, read_relabels
from karma_electric.redteam.runner import COMPLETIONS, SUMMARY, Answer
from karma_electric.redteam.scenario import Scenario, load_suite
from karma_electric.redteam.scorers.over_refusal import OVER_REFUSAL
from karma_electric.redteam.seeds import SeedResult
from karma_electric.redteam.signals import Verdict
from karma_electric.suite_names import answer_raters, label_raters, names_of_suites

ORDER = ("release", "adapter", "merged", "axis", "capped", "gguf", *GROUPS)
ARMS = ("base", "tuned", "capped")
COMPARED = (("tuned", "capped"), ("base", "tuned"))  # each second arm against its first
_JUDGE = f"redteam/{JUDGE.partition('/')[0]}"
_MODEL_OF = {"base": "base", "tuned": "merged", "capped": "capped"}  # arm -> the input that it asks
_WEIGHTS = (".safetensors", ".gguf")  # told by their size alone: nothing here reads them
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
        asked: kind of suite -> its name, where the file that was asked is still there.
        modelfiles: name -> text.
        arms: in the order base, tuned, capped, others.
        differing_settings: what was not the same in all arms (prompt, sampling), so that they do not compare.
        comparisons: the pairs of COMPARED that were run.
        beside: over-refusal, capability and drift of the same arms, where they were measured.
        n_tests: how many comparisons `comparisons` and `beside` hold; their p values are corrected for that.
        drifts: of the arms whose conversations were measured, by name.
        agreement: of the scorer with labels, per half of the labelled answers, and with all.
        judge: its error on the labels that it was not tuned on; None where it was not measured, or another judge or
            suite was than the arms have.
        label_raters: who gave the labels that the judge was measured on; empty where that is not known.
        answer_raters: who gave the outcomes, where raters did and their file is still there.
        relabelled: answers of these arms that people have labelled since; no figure goes by that.
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
    asked: dict[Kind, str]
    modelfiles: dict[str, str]
    arms: tuple[Arm, ...]
    differing_settings: tuple[str, ...]
    comparisons: tuple[Comparison, ...]
    beside: tuple[Beside, ...]
    n_tests: int
    drifts: dict[str, ArmDrifts]
    agreement: dict[str, Any]
    judge: Judge | None
    label_raters: tuple[str, ...]
    answer_raters: tuple[str, ...]
    relabelled: int
    transcripts: tuple[Transcript, ...]

    def command(self, stage: str) -> str:
        """What to type to get a stage measured."""
        return f"karma run recipes/{self.recipe.name}.toml --to {stage}"

    @property
    def twins_judge_command(self) -> str:
        """What to type to have the judge of harmless twins measured."""
        words = [f"karma redteam run recipes/{self.recipe.name}.toml"]
        if not self.recipe.redteam.beside:
            words.append(f"--beside suites/{self.asked.get('benign', 'benign-100')}.jsonl")
        scorers = [scorer for side in self.beside if side.kind == "benign" for scorer in side.judges]
        words += [f"--benign-scorer {scorer}" for scorer in scorers[:1] if scorer != OVER_REFUSAL]
        if not labels_named(self.recipe, "benign"):
            words.append("--set redteam.benign_labelled=FILE")
        return " ".join(words)

    @property
    def scorer(self) -> str:
        """Who judged the arms: what they say themselves, else what the recipe asks for."""
        return scorer_of(self.arms[0].summary) if self.arms else self.recipe.redteam.scorer

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
        GateError: a file that is read is not the one that was made, or lies where another belongs.
        ArtifactError: a file was made as something that cannot be read.
        MissingError: an arm has lost its manifest.
    """
    left_out = files_left_out(run)
    _require_true(run, left_out)
    artifacts = {artifact.name: artifact for artifact in _artifacts(run, left_out)}
    absent = frozenset(run / name for name in left_out)
    folders = list(_arms(run, recipe.redteam.arms, absent))
    judge = _judge(run, folders)
    agreement = dict(read_json(run / "redteam" / JUDGE)) if judge is not None else {}
    arms = tuple(Arm(arm.name, arm.summary, arm.seeds, rates_of(arm.name, arm.verdicts, judge)) for arm in folders)
    by_name = {arm.name: arm for arm in arms}
    asked = sorted(dict.fromkeys(recipe.redteam.arms), key=_rank)  # each kind of suite has the arms of its own folder
    compared, beside, n_tests = correct_together(
        [
            compare_pair((a, _by_seed(by_name[a].seeds)), (b, _by_seed(by_name[b].seeds)), judge)
            for a, b in COMPARED
            if {a, b} <= by_name.keys()
        ],
        read_beside({name: run / "redteam" / name for name in asked}, COMPARED, absent=absent),
    )

    def read(stage: str, name: str) -> dict[str, Any]:
        if stage not in artifacts or name not in artifacts[stage].manifest.files or f"{stage}/{name}" in left_out:
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
        axis=_metadata(run / "axis" / "axis.safetensors") or read("axis", "diagnostics.json"),
        fidelity=read("capped", "fidelity.json"),
        parity=read("gguf", "parity.json"),
        config=read("merged", "config.json"),
        asked=names_of_suites(recipe, [artifact.manifest for artifact in artifacts.values()]),
        modelfiles={
            name: (run / "gguf" / name).read_text(encoding="utf-8")
            for name in sorted(gguf)
            if name.startswith("Modelfile") and (run / "gguf" / name).is_file()
        },
        arms=arms,
        differing_settings=tuple(
            key
            for key in ("system_prompt", "sampling", "seeds", "scorer")
            if any(_told(arm.summary, key) != _told(arms[0].summary, key) for arm in arms)
        ),
        comparisons=tuple(Comparison(report.a, report.b, report) for report in compared),
        beside=tuple(beside),
        n_tests=n_tests,
        drifts={
            name: read_drifts(folder)
            for name in asked
            if (folder := run / FOLDERS["drift"] / name)
            and (folder / MANIFEST).is_file()
            and (folder / DRIFT).is_file()
        },
        agreement=agreement,
        judge=judge,
        label_raters=tuple(agreement.get("raters", ()))
        or (label_raters(recipe, artifacts[_JUDGE].manifest) if judge is not None and _JUDGE in artifacts else ()),
        answer_raters=answer_raters([artifact.manifest for artifact in artifacts.values()]),
        relabelled=len(latest(read_relabels(run / "redteam", {arm.name: arm.seeds for arm in arms}))) if arms else 0,
        transcripts=tuple(_transcripts(arms, _suite(recipe, artifacts))),
    )


def _names(run: Path) -> list[str]:
    """The artifacts of a run that are told of, whole or not, in the order they are made."""
    found: list[str] = []
    for kind in ORDER:
        folders = sorted(p.parent for p in (*run.glob(f"{kind}/{MANIFEST}"), *run.glob(f"{kind}/*/{MANIFEST}")))
        names = [folder.relative_to(run).as_posix() for folder in folders]
        found += sorted(names, key=lambda name: _rank(name.rpartition("/")[2]))
    return found


def _artifacts(run: Path, left_out: frozenset[str]) -> Iterator[Artifact]:
    for name in _names(run):
        if is_there(run, run / name, left_out) and (manifest := read_manifest(run / name)).files:
            yield Artifact(name, manifest)


def _require_true(run: Path, left_out: frozenset[str]) -> None:
    """Raise `GateError` where a file that is read is not the one that was made, there and from what lies beside it.

    A stage that lacks a file has not run, and so is no error; an arm that does is.
    """
    manifests = {name: read_manifest(run / name) for name in _names(run)}
    for name, manifest in manifests.items():
        folder = run / name
        arms = name.partition("/")[0] in GROUPS
        unread = {
            file for file in manifest.files if PurePosixPath(file).suffix in _WEIGHTS and file != "axis.safetensors"
        }
        absent = {folder / file for file in manifest.files if not arms or f"{name}/{file}" in left_out}
        inputs = {role: given for role, given in manifest.inputs.items() if role in manifests}
        found = [
            *damage(folder, absent=absent, unread=unread),
            *broken_links(replace(manifest, inputs=inputs), manifests),
        ] or list(_misplaced(name, folder, manifest))
        if found:
            raise GateError(
                f"{folder} is not what was made there: {found[0]}.",
                f"See: karma verify {run}. Put back what was made, or make it again with --force.",
            )


def _misplaced(name: str, folder: Path, manifest: Manifest) -> Iterator[str]:
    """What in an undamaged artifact tells that it was made for another folder."""
    group, _, arm = name.partition("/")
    if manifest.kind != group:
        yield f"{MANIFEST} is of kind {manifest.kind}, expected {group}"
    if not arm:
        return
    if SUMMARY in manifest.files:
        told = read_json(folder / SUMMARY)
        made_for = told.get("arm", arm) if isinstance(told, dict) else arm
        if made_for != arm:
            yield f"{SUMMARY} is of the arm {made_for}, expected {arm}"
    asked = [role for role in _MODEL_OF.values() if role in manifest.inputs]
    if arm in _MODEL_OF and asked and _MODEL_OF[arm] not in asked:
        yield f"{MANIFEST} is of an arm that asked {asked[0]}, expected {_MODEL_OF[arm]}"


def _rank(arm: str) -> tuple[int, str]:
    return (ARMS.index(arm) if arm in ARMS else len(ARMS), arm)


def _arms(run: Path, names: Sequence[str], absent: frozenset[Path]) -> Iterator[ArmFolder]:
    """The recipe's arms that are there; others that lie in the run are of another recipe."""
    folders = [folder for name in names if ((folder := run / "redteam" / name) / SUMMARY).is_file()]
    for folder in sorted(folders, key=lambda folder: _rank(folder.name)):
        yield read_arm(folder, folder.name, absent=absent)


def _judge(run: Path, arms: Sequence[ArmFolder]) -> Judge | None:
    """The judge of all arms, if it was measured on their suite; None too where not all have one judge and suite."""
    asked = {(arm.manifest.inputs.get("suite"), scorer_of(arm.summary)) for arm in arms}
    if len(asked) != 1:
        return None
    [(suite, scorer)] = asked
    return judge_beside(run / "redteam", suite, scorer)


def _told(summary: Mapping[str, Any], key: str) -> Any:
    return scorer_of(summary) if key == "scorer" else summary.get(key)


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
