"""Which suites a run was asked, and who labelled: found by the hashes that its manifests hold, never by a path."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from karma_electric.core.artifact import Manifest, hash_file
from karma_electric.core.errors import MissingError
from karma_electric.core.jsonl import read_jsonl
from karma_electric.core.recipe import Recipe
from karma_electric.core.resources import find, resource_root
from karma_electric.redteam.kinds import FOLDERS, Kind


def names_of_suites(recipe: Recipe, manifests: Sequence[Manifest]) -> dict[Kind, str]:
    """Kind of suite -> name of the file that the arms were asked; a kind whose file has changed or gone is left out.

    Args:
        recipe: names suites of its own, which are looked for first.
        manifests: of the arms, among others.
    """
    kinds: dict[str, Kind] = {folder: kind for kind, folder in FOLDERS.items()}
    hashes = {kinds[m.kind]: m.inputs["suite"] for m in manifests if m.kind in kinds and "suite" in m.inputs}
    if not hashes:
        return {}
    names: dict[str, str] = {}
    for path, hash_ in _hashed("*.jsonl", (recipe.redteam.suite, *recipe.redteam.beside)):
        names.setdefault(hash_, path.stem)
    return {kind: names[hash_] for kind, hash_ in hashes.items() if hash_ in names}


def label_raters(recipe: Recipe, judge: Manifest) -> tuple[str, ...]:
    """Who rated the labelled answers that a judge was measured on; empty where their file has changed or gone."""
    labelled = recipe.redteam.labelled
    for path, hash_ in _hashed("labelled-*.jsonl", [labelled] if labelled else []):
        if hash_ == judge.inputs.get("labelled"):
            return _raters(path)
    return ()


def answer_raters(manifests: Sequence[Manifest]) -> tuple[str, ...]:
    """Who gave the labels that arms were judged by (labels:FILE); empty where such a file has changed or gone."""
    files = {
        (role.partition(":")[2], hash_)
        for manifest in manifests
        for role, hash_ in manifest.inputs.items()
        if role.startswith("labels:")
    }
    found: set[str] = set()
    for name, hash_ in files:
        path = next((path for path, is_ in _hashed("labelled-*.jsonl", [name]) if is_ == hash_), None)
        if path is None:
            return ()
        found |= {*_raters(path)}
    return tuple(sorted(found))


def _raters(path: Path) -> tuple[str, ...]:
    return tuple(sorted({str(row.get("rater") or "unknown") for _, row in read_jsonl(path) if isinstance(row, dict)}))


def _hashed(shipped: str, named: Sequence[str]) -> Iterator[tuple[Path, str]]:
    """Files that a recipe names, then the shipped suites of a pattern, each with its hash."""
    for name in named:
        try:
            path = find("suites", name)
        except MissingError:
            continue
        if path.is_file():
            yield path, hash_file(path)
    for path in sorted(resource_root("suites").glob(shipped)):
        yield path, hash_file(path)
