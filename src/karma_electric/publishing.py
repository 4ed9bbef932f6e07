"""What of a run goes to a hub repository, under which names, and what must hold before anything does.

    README.md NOTICE recipe.toml lineage/       the card, the licence's notice, every manifest of the run
    config.json model.safetensors ...           the capped model: what `from_pretrained("owner/name")` loads
    *.gguf Modelfile* template system params    both models for Ollama and llama.cpp
    merged/ adapter/ axis/                      the uncapped model, the LoRA adapter, the axis with its cap

This module knows nothing about the hub itself (`uploading` does), and prints nothing.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Literal, get_args

from karma_electric.card import LlamaTerms, llama_terms, render_card
from karma_electric.core.artifact import MANIFEST, hash_file, hash_text, read_json, read_manifest
from karma_electric.core.errors import ArtifactError, GateError, InputError, MissingError, RecipeError
from karma_electric.core.extras import require
from karma_electric.core.leaks import leaks_in
from karma_electric.core.lineage import artifacts_of, problems_of
from karma_electric.core.progress import Progress
from karma_electric.core.recipe import Recipe, load_recipe
from karma_electric.kept import KEPT

Part = Literal["capped", "merged", "gguf", "adapter", "axis"]
Root = Literal["capped", "merged"]
PARTS: tuple[Part, ...] = get_args(Part)

CARD = "README.md"
LINEAGE = "lineage"
_RECIPE = "recipe.toml"
_TOP = "config.json"  # where it lies at the top, a model does
_TERMS_FILES = ("LICENSE*", "USE_POLICY*")  # of the base model, where the user has put them into the run
_WEIGHTS = re.compile(r"model(-\d+-of-\d+)?\.safetensors(\.index\.json)?")
_READ_FOR_LEAKS = re.compile(
    r"(?!tokenizer|vocab|added_tokens|special_tokens).*\.(toml|json|md)|Modelfile.*|system|params"
)
_SECTION = ("<!-- karma push: begin -->", "<!-- karma push: end -->")


@dataclass(frozen=True)
class PlannedFile:
    """A file of the repository.

    Attributes:
        path: in the repository.
        source: where it lies here, or what it says.
        bytes: its size.
        sha256: of its content, as the manifest of its artifact has it.
    """

    path: str
    source: Path | str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Place:
    """A part of the run where a push may put it: in the folder of its name, or at the top.

    Attributes:
        part: which one.
        folder: in the repository, with its slash; "" is the top.
        files: those that its manifest names.
    """

    part: Part
    folder: str
    files: tuple[PlannedFile, ...]


@dataclass(frozen=True)
class Publication:
    """Everything that one push brings to a repository.

    Attributes:
        repo_id: owner/name.
        title: what the commit is called.
        files: the card first.
        weights_in: folders ("" is the root) that get a model, so that weights an earlier push left there are stale.
        remarks: what the user should know and need not change.
        card: the run's own, which has no word on the repository yet.
        root: the model that is put at the top.
        places: where all parts of the run would lie, those that are not published now too.
    """

    repo_id: str
    title: str
    files: tuple[PlannedFile, ...]
    weights_in: tuple[str, ...]
    remarks: tuple[str, ...]
    card: str
    root: Root
    places: tuple[Place, ...]

    def beside(self, paths: Iterable[str], same: Collection[PlannedFile] = ()) -> Publication:
        """The same for a repository that has files already: its card tells where the run's lie, and names others.

        Args:
            paths: what the repository has.
            same: files of `places` that it has with this very content.
        """
        sent = {file.path: file.sha256 for file in self.files if file.path != CARD}
        there = {path for path in paths if not self.supersedes(path)} | sent.keys()

        def is_there(file: PlannedFile) -> bool:
            return sent[file.path] == file.sha256 if file.path in sent else file.path in there and file in same

        whole = {(place.folder, place.part) for place in self.places if all(map(is_there, place.files))}
        root = next((root for root in get_args(Root) if ("", root) in whole), None)
        ours = sent.keys() | {file.path for place in self.places for file in place.files if is_there(file)}
        folders = {path.partition("/")[0] for path in there if "/" in path}
        others = [
            *([_TOP] if root is None and _TOP in there else []),
            *(f"{part}/" for part in PARTS if part in folders and (f"{part}/", part) not in whole and part != "gguf"),
            *sorted(path for path in there - ours if path.endswith(".gguf") and "/" not in path),
        ]
        known = sorted(path for path in there if not path.startswith(tuple(others)))
        text = with_layout(self.card, self.repo_id, known, root or self.root, others)
        return replace(self, files=(_written(CARD, text), *(file for file in self.files if file.path != CARD)))

    @property
    def bytes(self) -> int:
        """Size of all files."""
        return sum(file.bytes for file in self.files)

    def supersedes(self, path: str) -> bool:
        """Whether a file of the repository, which is not among these, would be read beside them by mistake.

        Shards of weights are, where a model was split otherwise before, and manifests of what is no longer there.
        """
        folder, _, name = path.rpartition("/")
        return folder == LINEAGE or (folder in self.weights_in and _WEIGHTS.fullmatch(name) is not None)


def plan_publication(
    run: Path, repo_id: str, *, only: Sequence[str] = (), root: Root = "capped", progress: Progress
) -> Publication:
    """Everything that is to be published of a run, once all of it has been found fit to be.

    Args:
        run: the run's folder.
        repo_id: owner/name on the hub.
        only: the parts; all of them when empty.
        root: the model that lies at the top of the repository; the other has a folder of its own.
        progress: told which artifact is being hashed.

    Raises:
        InputError: a name that the hub, or the licence, does not take.
        MissingError: a part, the card or the recipe is not there.
        GateError: artifacts are not whole, the card says something else, or a file holds a credential.
        RecipeError: name or licence may not be published like this.
    """
    check_repo_id(repo_id)
    parts = [part for part in PARTS if not only or part in only]
    recipe = _recipe(run)
    _require_parts(run, parts)
    config = run / "merged" / "config.json"
    terms = llama_terms(recipe, dict(read_json(config)) if config.is_file() else {})
    if terms and not repo_id.partition("/")[2].startswith(terms.prefix):
        raise RecipeError(
            f"{repo_id}: names of Llama derivatives begin with 'Llama', that of the repository too.",
            f"Push to {repo_id.partition('/')[0]}/{recipe.card.model_name}",
        )
    _require_whole(run, progress)
    _require_true_card(run, recipe)
    places = tuple(_places(run))
    files = list(_files(run, places, parts, root))
    files += _ollama_files(run) if "gguf" in parts else []
    files += [_written("NOTICE", _notice(terms))] if terms else []
    twice = {file.path for file in files if sum(other.path == file.path for other in files) > 1}
    if twice:
        raise ArtifactError(f"Two files would be {', '.join(sorted(twice))}.", "Publish them one by one with --only.")
    card = (run / "card" / CARD).read_text(encoding="utf-8")
    remarks = (*_look_for_leaks([_written(f"card/{CARD}", card), *files]), *_terms_remarks(run, terms))
    bare = Publication(
        repo_id=repo_id,
        title=f"{recipe.card.model_name}: {', '.join(parts)} of run {recipe.name}",
        files=tuple(files),
        weights_in=tuple(_folder(part, root).rstrip("/") for part in parts if part in get_args(Root)),
        remarks=remarks,
        card=card,
        root=root,
        places=places,
    )
    return bare.beside(())


def check_repo_id(repo_id: str) -> None:
    """Raise `InputError` unless it is owner/name as the hub takes it."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    try:
        validate_repo_id(repo_id)
    except HFValidationError:
        valid = False
    else:
        valid = repo_id.count("/") == 1
    if not valid:
        raise InputError(
            f"{repo_id!r} is not the id of a hub repository.",
            "Give OWNER/NAME: letters, digits, - _ and ., such as me/karma-electric-8b.",
        )


def with_layout(card: str, repo_id: str, paths: Sequence[str], root: Root, others: Sequence[str] = ()) -> str:
    """The card with a section under Usage that says what lies where in the repository, and how each is loaded.

    The card of a run is rendered before its repository has a name, and speaks of the run's own folders.

    Args:
        card: the run's.
        repo_id: owner/name.
        paths: what is of this run, or of nobody's business.
        root: the model at the top.
        others: folders and files that look like parts of a run, and are not of this one.
    """
    begin, end = _SECTION
    section = "\n".join([begin, "### In this repository", "", *_layout_lines(repo_id, paths, root, others), end])
    heading = "\n## Usage\n"
    if heading not in card:
        return f"{card.rstrip()}\n\n{section}\n"
    return card.replace(heading, f"{heading}\n{section}\n", 1)


def without_layout(card: str) -> str:
    """The card of a repository as the run had it: what `with_layout` added is taken away."""
    begin, end = (re.escape(mark) for mark in _SECTION)
    return re.sub(rf"\n{begin}\n.*?{end}\n", "", card, count=1, flags=re.DOTALL)


def _layout_lines(repo_id: str, paths: Sequence[str], root: Root, others: Sequence[str]) -> Iterator[str]:
    top = {path for path in paths if "/" not in path}
    folders = {path.partition("/")[0] for path in paths if "/" in path}
    words = {"capped": "the capped model, in stock transformers and vLLM", "merged": "the model without the cap"}
    if _TOP in top:
        yield f'- The top: {words[root]}: `AutoModelForCausalLM.from_pretrained("{repo_id}")`, `vllm serve {repo_id}`'
    for part in get_args(Root):
        if part in folders:
            yield f'- `{part}/`: {words[part]}: `from_pretrained("{repo_id}", subfolder="{part}")`'
    for name in sorted(path for path in top if path.endswith(".gguf")):
        yield f"- `{name}`: `ollama run hf.co/{repo_id}:{name}`"
    if "adapter" in folders:
        yield f'- `adapter/`: the LoRA adapter: `PeftModel.from_pretrained(base, "{repo_id}", subfolder="adapter")`'
    if "axis" in folders:
        yield "- `axis/`: the axis, and the cap by hooks: `karma serve merged --cap axis` in a copy of this repository"
    yield f"- `{LINEAGE}/`: the manifest of every artifact of the run, with the hash of each of its files"
    if others:
        names = ", ".join("the model at the top" if path == _TOP else f"`{path}`" for path in others)
        yield f"- From an earlier push, not of this version: {names}. `{LINEAGE}/` and this card do not tell of them."
    moved = [f"`{root}/`"] * (_TOP in top) + ["`gguf/`"] * any(path.endswith(".gguf") for path in top)
    if moved:
        yield ""
        yield f"What the rest of this card calls {' and '.join(moved)}, as the run does, lies at the top here."


def _recipe(run: Path) -> Recipe:
    artifacts_of(run)  # says what is wrong with the folder, where it is no run
    if not (run / _RECIPE).is_file():
        raise MissingError(f"{run} has no {_RECIPE}.", "Copy the recipe that it was made with there.")
    return load_recipe(run / _RECIPE)


def _require_parts(run: Path, parts: Sequence[str]) -> None:
    missing = [part for part in parts if not (run / part / MANIFEST).is_file()]
    there = [part for part in parts if part not in missing]
    again = f"karma run {run}/{_RECIPE} --run-dir {run} --to"
    if missing:
        rest = f", or publish the rest: {' '.join(f'--only {part}' for part in there)}" if there else ""
        raise MissingError(f"{run} has no {', '.join(missing)}.", f"Make it: {again} {missing[-1]}{rest}")
    if not (run / "card" / MANIFEST).is_file():
        raise MissingError(f"{run} has no card, and no model is published without.", f"Make it: {again} card")


def _require_whole(run: Path, progress: Progress) -> None:
    found = problems_of(run, lambda done, total, name: progress.update(done, total, f"artifacts hashed; now {name}"))
    progress.update(len(found), len(found), "artifacts hashed")
    bad = [f"{name}: {problem}" for name, problems in found.items() for problem in problems]
    if bad and (run / KEPT).is_file():
        raise GateError(
            f"{run} has the kept figures of a run without its weights ({KEPT}), so nothing of it can be published.",
            f"Push the run that they came from, or make it again: karma run {run}/{_RECIPE}",
        )
    if bad:
        more = f" (and {len(bad) - 3} more)" if len(bad) > 3 else ""
        raise GateError(
            f"{run} is not whole, so nothing of it is published. {'; '.join(bad[:3])}{more}.",
            f"See: karma verify {run}. Make it again: karma run {run}/{_RECIPE} --run-dir {run} --force",
        )


def _require_true_card(run: Path, recipe: Recipe) -> None:
    """Raise `GateError` unless the run's card says what its artifacts say now; text that was added may stay."""
    require("evidence")
    from karma_electric.card_check import check_card

    checked = check_card((run / "card" / CARD).read_text(encoding="utf-8"), render_card(run, recipe))
    if not checked.differences:
        return
    first = checked.differences[0]
    where = f"line {first.line}" if first.line else first.where
    raise GateError(
        f"The card does not say what the artifacts say, in {len(checked.differences)} places: {run}/card/{CARD} "
        f"{where} has {_short(first.card)}, rendered now it is {_short(first.artifacts)}.",
        f"See all: karma card {run} --check {run}/card/{CARD}. Render it again: karma run {run}/{_RECIPE} --run-dir "
        f"{run} --from card --force",
    )


def _short(text: str) -> str:
    return repr(text if len(text) <= 80 else text[:77] + "...") if text else "nothing"


def _folder(part: str, root: str) -> str:
    """Folder of a part in the repository, with its slash."""
    return "" if part in (root, "gguf") else f"{part}/"


def _places(run: Path) -> Iterator[Place]:
    for part in PARTS:
        if not (run / part / MANIFEST).is_file():
            continue
        manifest = read_manifest(run / part)
        for folder in sorted({_folder(part, root) for root in get_args(Root)}):
            files = (
                PlannedFile(folder + name, run / part / name, manifest.sizes[name], manifest.files[name])
                for name in sorted(manifest.files)
            )
            yield Place(part, folder, tuple(files))


def _files(run: Path, places: Sequence[Place], parts: Sequence[str], root: str) -> Iterator[PlannedFile]:
    for place in places:
        if place.part not in parts or place.folder != _folder(place.part, root):
            continue
        yield from place.files
        if place.part != "gguf":  # a folder with its manifest is an artifact again wherever it is downloaded
            yield _local(place.folder + MANIFEST, run / place.part / MANIFEST)
    for artifact in artifacts_of(run):
        name = artifact.relative_to(run).as_posix().replace("/", "-")
        yield _local(f"{LINEAGE}/{name}.json", artifact / MANIFEST)
    yield _local(_RECIPE, run / _RECIPE)
    for file in sorted(file for pattern in _TERMS_FILES for file in run.glob(pattern) if file.is_file()):
        yield _local(file.name, file)


def _local(path: str, source: Path) -> PlannedFile:
    return PlannedFile(path, source, source.stat().st_size, hash_file(source))


def _written(path: str, text: str) -> PlannedFile:
    return PlannedFile(path, text, len(text.encode()), hash_text(text))


def _ollama_files(run: Path) -> list[PlannedFile]:
    """What `ollama run hf.co/...` reads in place of a Modelfile; both models have the same."""
    from karma_electric.export.modelfile import hub_settings

    file = next((run / "gguf" / n for n in ("Modelfile.capped", "Modelfile") if (run / "gguf" / n).is_file()), None)
    settings = hub_settings(file.read_text(encoding="utf-8")) if file else {}
    return [_written(name, text) for name, text in settings.items()]


def _notice(terms: LlamaTerms) -> str:
    return (
        f"{terms.built_with}\n\n{terms.notice}\n\n"
        "Use of these weights is subject to that licence and to its acceptable use policy, both published at\n"
        "https://www.llama.com under the name of the model that they are derived from.\n"
    )


def _terms_remarks(run: Path, terms: LlamaTerms | None) -> Iterator[str]:
    for pattern in _TERMS_FILES if terms else ():
        if not any(run.glob(pattern)):
            name = pattern.rstrip("*")
            yield f"The Llama licence is to be passed on: with {name} of the base model in {run}, it is published too."


def _look_for_leaks(files: Sequence[PlannedFile]) -> list[str]:
    """Paths of this machine that would be published, as remarks.

    Raises:
        GateError: a credential would be.
    """
    remarks: dict[str, str] = {}
    for file in files:
        if not _READ_FOR_LEAKS.fullmatch(PurePosixPath(file.path).name):
            continue
        where = file.path if isinstance(file.source, str) else str(file.source)
        text = file.source if isinstance(file.source, str) else file.source.read_text("utf-8", errors="replace")
        for leak in leaks_in(text):
            if leak.credential:
                raise GateError(
                    f"{where} line {leak.line} holds {leak.what}, and would be public.",
                    "Revoke it, take it out of what it came from (recipe or environment), and run that again.",
                )
            remarks.setdefault(leak.what, f"{where} line {leak.line} tells the public {leak.what}.")
    return list(remarks.values())
