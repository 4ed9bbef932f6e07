"""Whether recipe.toml of a run still says what its artifacts were made by, as far as their manifests tell.

A manifest holds the keys that decided its artifact, under the names that its stage uses; here they are compared with
those of the recipe, and named as the recipe names them. Files that a recipe names (a corpus, a suite) are not looked
at: manifests hold the hashes of what was in them, and they may lie elsewhere by now.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from karma_electric.asked import asked_config
from karma_electric.core.artifact import Manifest
from karma_electric.core.errors import MissingError, RecipeError
from karma_electric.core.recipe import Recipe, load_recipe
from karma_electric.evidence import ARMS
from karma_electric.redteam.kinds import FOLDERS
from karma_electric.stages import configs_of

RECIPE = "recipe.toml"
_NAMED = 4  # artifacts, where a key is another in more of them
_SECTIONS = {
    "release": "release",
    "adapter": "train",
    "merged": "merge",
    "axis": "axis",
    "capped": "bake",
    "gguf": "gguf",
    "report": "card",
    "card": "card",
}
_DTYPE = {"dtype": "model.dtype"}
_PUBLISHED = {"persona": "persona.name", "base": "model.base"}
_OTHER_NAMES: dict[str, dict[str, str]] = {  # stage -> its key -> the recipe's, where that is not SECTION.key
    "release": {"system_prompt": "persona.system_prompt"},
    "adapter": _DTYPE,
    "axis": {"toward": "persona.system_prompt", "away": "persona.away", **_DTYPE},
    "capped": _DTYPE,
    "gguf": {"name": "card.model_name", "system_prompt": "persona.system_prompt", "license": "card.license"},
    "report": _PUBLISHED,
    "card": _PUBLISHED,
}
_OFARMS = {"persona": "persona.system_prompt", **_DTYPE}
_DERIVED = {"license_text"}  # of other keys, in words that a later version may choose otherwise
_LEFT_OUT = {"seeds": 1, "scorer": "signals"}  # what an arm's manifest does not say where it is this


def recipe_problems(run: Path, manifests: Mapping[str, Manifest]) -> list[str]:
    """What is wrong with the recipe of a run, a line each: it cannot be read, or says other than the artifacts do.

    Args:
        run: the run's folder, with a recipe.toml.
        manifests: of its artifacts, by name.
    """
    try:
        recipe = load_recipe(run.absolute() / RECIPE)
    except (MissingError, RecipeError) as error:
        return [str(error).replace(f"{run.absolute()}/", "").removeprefix(RECIPE).lstrip(": ").removesuffix(".")]
    found: dict[str, dict[str, list[str]]] = {}  # key -> "is X, but was Y" -> names of artifacts
    for name, given in _asked(recipe).items():
        if name not in manifests:
            continue
        for key, now, then in _changes(name, given, manifests[name].config):
            found.setdefault(f"{key} is {_short(now)}", {}).setdefault(_short(then), []).append(name)
    for report in ("report", "card"):
        if report in manifests and (arms := _arms_of(manifests[report])) and arms != {*recipe.redteam.arms}:
            then = json.dumps(sorted(arms, key=ARMS.index))
            found.setdefault(f"redteam.arms is {_short(recipe.redteam.arms)}", {}).setdefault(then, []).append(report)
    return [
        f"{now}, and {then} in {_first_of(names)}" for now, others in found.items() for then, names in others.items()
    ]


def _asked(recipe: Recipe) -> dict[str, dict[str, Any]]:
    """What the recipe asks of every artifact that there can be, by its name."""
    arms = {
        f"{folder}/{arm}": {**asked_config(recipe, kind), "dtype": recipe.model.dtype}
        for kind, folder in FOLDERS.items()
        for arm in ARMS
    }
    return {**configs_of(recipe), **arms}


def _changes(name: str, given: Mapping[str, Any], recorded: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """(the recipe's key, what it says, what the manifest says) of every key that both tell of, and not the same."""
    stage, _, arm = name.partition("/")
    if arm:
        left_out = {key: value for key, value in _LEFT_OUT.items() if key != "scorer" or stage == "redteam"}
        given, recorded = {**left_out, **given}, {**left_out, **recorded}
    for key, then in recorded.items():
        if key in given and key not in _DERIVED and given[key] != then:
            yield _name(stage, key, arm=bool(arm)), given[key], then


def _name(stage: str, key: str, *, arm: bool) -> str:
    if not arm:
        return _OTHER_NAMES.get(stage, {}).get(key, f"{_SECTIONS[stage]}.{key}")
    if (stage, key) == ("benign", "scorer"):
        return "redteam.benign_scorer"
    return _OFARMS.get(key, f"redteam.{key}")


def _arms_of(manifest: Manifest) -> set[str]:
    return {role.partition("/")[2] for role in manifest.inputs if role.startswith("redteam/")} & {*ARMS}


def _first_of(names: list[str]) -> str:
    return ", ".join(names) if len(names) <= _NAMED else f"{', '.join(names[:_NAMED])} and {len(names) - _NAMED} more"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
