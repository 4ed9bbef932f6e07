"""Renders the model card of a run. Every figure in it is read from an artifact; what is missing is said to be missing.

Knows the rules for names and licences of Llama derivatives, and what the hub accepts as metadata.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from karma_electric.core.errors import RecipeError
from karma_electric.core.recipe import Recipe, load_recipe
from karma_electric.evidence import Evidence, read_run
from karma_electric.redteam.beside import TITLES
from karma_electric.redteam.kinds import Kind
from karma_electric.redteam.stats import Rate
from karma_electric.rendering import environment, judge_in_words, judged_by_raters

_TEMPLATE = "card.md.jinja"
_TAGS = ("ethics", "alignment", "activation-steering", "qlora", "red-teaming")
# Not the size in llama-3b; Llama 2 and before are known by their licence.
_LLAMA = re.compile(r"llama-?(3(?:\.[123])?|4)(?!\d|b\b)", re.IGNORECASE)
_NO_PREFIX = "llama2"  # its licence asks for no name
_LICENSE_ID = re.compile(r"[a-z0-9][a-z0-9.+-]*")
_LANGUAGE = re.compile(r"[a-z]{2,3}|multilingual|code")
_STAGES = ("release", "adapter", "merged", "axis", "capped", "gguf")
_PUBLISHED = ("gguf", "capped", "merged", "adapter", "axis")  # what somebody would download, the ready-made first
_BESIDE = (("benign", "over-refusal"), ("capability", "general capability"))
_SYNTHETIC = "synthetic-language-model"  # source of the shipped corpus, which was written under the guide
_MODEL_RATER = "language-model"
_FEWEST = 20  # scored answers behind a rate of the model-index, which is read without its interval
_SMALL = 1_000_000_000  # parameters below which the card says what so small a model cannot show


@dataclass(frozen=True)
class Indexed:
    """How a kind of suite is named in the model-index: its task, what the suite holds, the metric and its title."""

    task: str
    suite: str
    metric: str
    title: str


_INDEXED: dict[Kind, Indexed] = {
    "attack": Indexed("Red-team", "synthetic adversarial scenarios", "pass_rate", "Pass rate of scored scenarios"),
    "benign": Indexed(
        "Over-refusal",
        "harmless requests that sound harmful",
        "over_refusal_rate",
        "Harmless requests refused in whole or in part",
    ),
    "capability": Indexed(
        "Capability", "items with checkable answers", "accuracy", "Checkable items answered correctly"
    ),
}


@dataclass(frozen=True)
class PublishedFile:
    """A file worth downloading."""

    path: str
    bytes: int
    sha256: str
    description: str


@dataclass(frozen=True)
class LlamaTerms:
    """What the licence of a Llama derivative asks a card to say, and what names have to begin with."""

    built_with: str
    notice: str
    prefix: str


def render_card(run: Path, recipe: Recipe, *, earlier: Sequence[Path] = ()) -> str:
    """The model card of a run, as Markdown with a YAML head for the Hugging Face hub.

    Args:
        run: folder of the run; stages that are missing leave visible gaps.
        recipe: the recipe of the run.
        earlier: folders of earlier versions' runs, oldest first, for the version history.

    Raises:
        RecipeError: name, licence, language or base model that may not be published like this.
        GateError, ArtifactError: a file that is not what was made; see `read_run`.
    """
    evidence = read_run(run, recipe)
    terms = llama_terms(recipe, evidence.config)
    history = [read_run(folder, load_recipe(folder / "recipe.toml")) for folder in earlier]
    made = {name.partition("/")[0] for name in evidence.artifacts}
    wanted = [*_STAGES, *(f"redteam/{arm}" for arm in recipe.redteam.arms)]
    return _without_double_blanks(
        environment(autoescape=False)
        .get_template(_TEMPLATE)
        .render(
            metadata=_metadata(evidence),
            e=evidence,
            recipe=recipe,
            terms=terms,
            history=[*history, evidence],
            beside={kind: next((side for side in evidence.beside if side.kind == kind), None) for kind in TITLES},
            unmeasured=[words for kind, words in _BESIDE if kind not in {side.kind for side in evidence.beside}],
            judged_by=judge_in_words(evidence.scorer),
            judge_kind=evidence.scorer.partition(":")[0],
            synthetic=bool(evidence.release) and set(evidence.release["sources"]) == {_SYNTHETIC},
            by_people=judged_by_raters(evidence.scorer) and not _are_models(evidence.answer_raters),
            by_language_model=_are_models(evidence.label_raters),
            suites=_suites(recipe),
            made=made,
            files=published_files(evidence),
            unmade_files=[stage for stage in _PUBLISHED if stage not in made],
            unmade_artifacts=[name for name in wanted if name not in evidence.artifacts],
            hardware=hardware(evidence),
            tag=re.sub(r"[^a-z0-9._-]+", "-", recipe.card.model_name.lower()).strip("-"),
            small=evidence.base_parameters is not None and evidence.base_parameters < _SMALL,
        )
    )


def _without_double_blanks(text: str) -> str:
    """A text in Markdown with one blank line at most between its parts; fenced code stays as it is."""
    parts = re.split(r"^(````?\w*\n.*?^````?\n)", text, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if part.startswith("```") else re.sub(r"\n{3,}", "\n\n", part) for part in parts)


def _are_models(raters: Sequence[str]) -> bool:
    """Whether all of them are known to be language models."""
    return bool(raters) and all(rater.startswith(_MODEL_RATER) for rater in raters)


def _suites(recipe: Recipe) -> list[str]:
    """Names of the files of prompts and scenarios that a recipe asks for, without their folders."""
    axis, redteam = recipe.axis, recipe.redteam
    labels = redteam.labelled, redteam.benign_labelled
    names = (redteam.suite, *redteam.beside, *labels, axis.contrast, axis.calibration, axis.heldout)
    return list(dict.fromkeys(PurePosixPath(name).name for name in names if name))


def llama_terms(recipe: Recipe, config: dict[str, Any]) -> LlamaTerms | None:
    """What must be said of a Llama derivative, or None for other models.

    Args:
        recipe: names the base, the published model and its licence.
        config: config.json of the merged model, which may name where it came from; may be empty.

    Raises:
        RecipeError: a licence other than that of the base, or a published name that does not begin with "Llama".
    """
    card = recipe.card
    origin = " ".join([card.base_model or "", recipe.model.base, str(config.get("_name_or_path", ""))])
    named = list(_LLAMA.finditer(origin))
    licences = [f"llama{found[1]}" for found in named]
    if not card.license.startswith("llama") and not named:
        return None
    if named and card.license not in licences:
        raise RecipeError(
            f"card.license is {card.license!r}, but the base is {named[0][0]}, "
            "whose licence goes with what is made of it.",
            f'Write card.license = "{licences[0]}"',
        )
    prefix = "" if card.license == _NO_PREFIX else "Llama"
    if not card.model_name.startswith(prefix):
        raise RecipeError(
            f"card.model_name is {card.model_name!r}, but names of Llama derivatives begin with 'Llama' "
            f"({f'base {named[0][0]}' if named else f'licence {card.license}'}).",
            f'Write card.model_name = "Llama-{card.model_name}"',
        )
    version = card.license.removeprefix("llama")
    family = "Meta Llama 3" if version == "3" else f"Llama {version}".strip()
    return LlamaTerms(
        built_with="Built with Meta Llama 3" if version == "3" else "Built with Llama",
        notice=f"{family} is licensed under the {family} Community License, "
        "Copyright © Meta Platforms, Inc. All Rights Reserved.",
        prefix=prefix,
    )


def published_files(evidence: Evidence) -> list[PublishedFile]:
    """The files of a run that somebody would download, the ready-made ones first."""
    found: list[PublishedFile] = []
    for stage in _PUBLISHED:
        if stage not in evidence.artifacts:
            continue
        manifest = evidence.artifacts[stage].manifest
        for name in sorted(manifest.files):
            description = _describe(stage, name)
            if description:
                found.append(PublishedFile(f"{stage}/{name}", manifest.sizes[name], manifest.files[name], description))
    return found


def hardware(evidence: Evidence) -> str:
    """What the model was trained on, in words; empty where it was not trained."""
    if "adapter" not in evidence.artifacts:
        return ""
    machine = evidence.artifacts["adapter"].manifest.hardware
    if machine.get("gpus"):
        gpus = list(machine["gpus"])
        return ", ".join(f"{gpus.count(name)} x {name}" for name in dict.fromkeys(gpus))
    return f"{machine.get('cores')} CPU cores ({machine.get('processor') or machine.get('machine')})"


def _describe(stage: str, name: str) -> str:
    """What a file is, or nothing where it goes without saying (tokenizers, configurations, plots)."""
    suffix = PurePosixPath(name).suffix
    if stage == "gguf" and suffix == ".gguf":
        return (
            "Capped model for Ollama and llama.cpp" if "capped" in name else "Uncapped model for Ollama and llama.cpp"
        )
    if stage == "gguf" and name.startswith("Modelfile"):
        return "Ollama settings of the capped model" if "capped" in name else "Ollama settings of the uncapped model"
    if suffix == ".safetensors" and stage in ("capped", "merged", "adapter"):
        weights = name.startswith("model") or stage == "adapter"
        return {
            "capped": "Full weights with the cap neurons, for stock transformers or vLLM",
            "merged": "Full weights without the cap, for steering with hooks",
            "adapter": "LoRA adapter alone",
        }[stage] * weights
    return {"axis.safetensors": "Axis: one direction per block and site", "cap.json": "Cap: blocks and thresholds"}.get(
        name if stage == "axis" else "", ""
    )


def _metadata(evidence: Evidence) -> str:
    """The YAML head. Raises `RecipeError` for what the hub would refuse."""
    from huggingface_hub import ModelCardData

    card = evidence.recipe.card
    if not _LICENSE_ID.fullmatch(card.license):
        raise RecipeError(
            f"card.license is {card.license!r}.", "Use the hub's identifier, such as apache-2.0 or llama3.1."
        )
    for language in card.language:
        if not _LANGUAGE.fullmatch(language):
            raise RecipeError(f"card.language holds {language!r}.", "Use ISO 639 codes, such as en.")
    model_type = evidence.config.get("model_type")
    return ModelCardData(
        license=card.license,
        base_model=_base_model(evidence.recipe),
        language=list(card.language),
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=[*_TAGS, *([model_type] if model_type else [])],
        model_name=card.model_name,
        eval_results=_eval_results(evidence) or None,
    ).to_yaml()


def _base_model(recipe: Recipe) -> str | None:
    """Hub id of the base model; None where the base has none (a local folder, the embedded model)."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]

    base = recipe.model.base
    hub_like = base.count("/") == 1 and not base.startswith((".", "/", "~", "builtin:")) and not Path(base).exists()
    asked = recipe.card.base_model or (base if hub_like else None)
    if asked is None:
        return None
    try:
        validate_repo_id(asked)
    except HFValidationError as error:
        raise RecipeError(f"card.base_model: {asked!r} is not a hub id ({error}).", "Write owner/name.") from None
    return asked


def _eval_results(evidence: Evidence) -> list[Any]:
    """Entries of the model-index: one per arm and kind of suite, of those with a rate of enough answers."""
    suite = PurePosixPath(evidence.recipe.redteam.suite).stem
    found = [
        _eval_result(_INDEXED["attack"], suite, arm.name, Rate(**arm.summary["pass_rate_scored"]))
        for arm in evidence.arms
    ]
    for side in evidence.beside:
        if side.kind in _INDEXED:
            suite = evidence.asked.get(side.kind, side.kind)
            rates = ((name, arm.rate) for name, arm in side.arms.items() if arm.rate is not None)
            found += [_eval_result(_INDEXED[side.kind], suite, name, rate) for name, rate in rates]
    return [result for result in found if result is not None]


def _eval_result(said: Indexed, suite: str, arm: str, rate: Rate) -> Any:
    from huggingface_hub import EvalResult

    if rate.value is None or rate.n < _FEWEST:
        return None
    return EvalResult(
        task_type="text-generation",
        task_name=said.task,
        dataset_type=suite,
        dataset_name=f"{suite} ({said.suite})",
        metric_type=said.metric,
        metric_name=f"{said.title}, arm {arm} (n = {rate.n})",
        metric_value=round(float(rate.value), 4),
    )
