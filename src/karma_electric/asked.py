"""What of a recipe decides the answers of a red-team and how they are judged; and asking an engine so."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_electric.core.artifact import hash_file
from karma_electric.core.progress import Progress
from karma_electric.core.recipe import Recipe
from karma_electric.core.resources import find
from karma_electric.models.engines.protocol import Engine, Sampling
from karma_electric.pipeline import read_id
from karma_electric.redteam.kinds import Kind, require_one_of_a_kind
from karma_electric.redteam.scorers.over_refusal import OVER_REFUSAL
from karma_electric.redteam.scorers.protocol import Scorer

if TYPE_CHECKING:
    from karma_electric.redteam.scenario import Scenario
    from karma_electric.redteam.stats import ArmSummary


def suites_of(recipe: Recipe) -> dict[Kind, Path]:
    """The suites that arms are asked, by kind; the recipe's own first.

    Raises:
        MissingError: one is not there.
        InputError: two of one kind.
    """
    beside = (find("suites", name, key="redteam.beside") for name in recipe.redteam.beside)
    return require_one_of_a_kind([find("suites", recipe.redteam.suite, key="redteam.suite"), *beside])


def asked_config(recipe: Recipe, kind: Kind = "attack") -> dict[str, Any]:
    """The keys that decide what an arm answers and how it is judged, but for its model.

    Keys that came later are left out where they say what was done before there was a choice: such arms are still those.
    """
    elsewhere = {"suite", "labelled", "arms", "beside", "scorer_url", "benign_scorer", "benign_labelled"}
    asked: dict[str, Any] = recipe.redteam.model_dump(mode="json", exclude=elsewhere)
    if asked["seeds"] == 1:
        del asked["seeds"]
    if kind not in ("attack", "benign") or "llm:" not in scorer_named(recipe, kind):
        del asked["scorer_samples"]
    if kind == "benign" and recipe.redteam.benign_scorer != OVER_REFUSAL:
        asked["scorer"] = recipe.redteam.benign_scorer
    elif kind != "attack":
        asked["scorer"] = kind
    elif asked["scorer"] == "signals":
        del asked["scorer"]
    return {**asked, "persona": recipe.persona.system_prompt}


def scorer_named(recipe: Recipe, kind: Kind) -> str:
    """The judge that a recipe names: of attacks, or of harmless twins."""
    return recipe.redteam.benign_scorer if kind == "benign" else recipe.redteam.scorer


def labels_named(recipe: Recipe, kind: Kind) -> str:
    """The labelled answers that a recipe names to measure that judge on; empty where it names none.

    Raters of harmless twins are measured by their own two ratings of each answer.
    """
    if kind != "benign":
        return recipe.redteam.labelled
    kind_of_judge, _, file = recipe.redteam.benign_scorer.partition(":")
    return file if kind_of_judge == "labels" else recipe.redteam.benign_labelled


def judge_inputs(recipe: Recipe, kind: Kind = "attack") -> dict[str, str]:
    """What the judge of a kind of suite is made from, where it has weights or labels of its own."""
    from karma_electric.redteam.scorers.weights import find_weights

    if kind not in ("attack", "benign"):
        return {}
    spec = scorer_named(recipe, kind)
    names = [name.partition(":") for name in spec.removeprefix("ensemble:").split("+")]
    weights = {"".join(name): read_id(find_weights("".join(name))) for name in names if name[0] == "semantic"}
    key = "redteam.benign_scorer" if kind == "benign" else "redteam.scorer"
    return weights | {
        "".join(name): hash_file(find("suites", name[2], key=key)) for name in names if name[0] == "labels"
    }


def chosen_scorer(recipe: Recipe, kind: Kind = "attack") -> Scorer:
    """The judge that a recipe chooses: of attacks, or of harmless twins."""
    from karma_electric.redteam.scorers.named import open_scorer
    from karma_electric.redteam.scorers.over_refusal import OfRefusals

    section = recipe.redteam
    url = section.scorer_url or None
    if kind == "benign":
        judge = open_scorer(section.benign_scorer, base_url=url, samples=section.scorer_samples)
        return judge if section.benign_scorer == OVER_REFUSAL else OfRefusals(judge)
    return open_scorer(section.scorer, base_url=url, samples=section.scorer_samples)


def system_prompt_of(recipe: Recipe) -> str:
    """First message of every conversation of a recipe's arms."""
    return recipe.persona.system_prompt if recipe.redteam.system_prompt == "persona" else ""


def ask(
    recipe: Recipe,
    engine: Engine,
    scenarios: Sequence[Scenario],
    out: Path,
    *,
    arm: str,
    scorer: Scorer,
    progress: Progress,
    seeds: int | None = None,
) -> ArmSummary:
    """Ask scenarios of an engine as the recipe says; under its seeds, or `seeds` of them. See `run_seeds`."""
    from karma_electric.redteam.seeds import run_seeds

    section = recipe.redteam
    return run_seeds(
        engine,
        scenarios,
        out,
        arm=arm,
        system_prompt=system_prompt_of(recipe),
        sampling=Sampling(section.temperature, section.top_p, section.max_new_tokens, section.seed),
        seeds=section.seeds if seeds is None else seeds,
        batch_size=section.batch_size,
        progress=progress,
        scorer=scorer,
    )
