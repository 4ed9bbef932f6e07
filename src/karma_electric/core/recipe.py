"""Recipes: one TOML file that says what a run does. Every key has a type, a default and one sentence.

Unknown keys, wrong types and impossible combinations are errors that name the key and the fix.
"""

from __future__ import annotations

import difflib
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, get_origin

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from karma_electric.core.errors import MissingError, RecipeError
from karma_electric.core.resources import find, resource_root

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


_DEFAULT_QUANTILE = 0.75
TWINS_JUDGE = r"^(?:over-refusal|labels:.+|semantic:.+|llm:.+)$"  # helping is the pass there: attacks' judges err


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class ModelSection(_Section):
    """The model to start from."""

    base: str = Field(description="a local folder, a hub id, or builtin:smollm2-135m")
    revision: str | None = Field(None, description="hub revision; pin a commit for a reproducible run")
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto",
        description="arithmetic; auto is bfloat16 where the hardware multiplies it natively, else float32",
    )


class PersonaSection(_Section):
    """The persona: how it is called up, and what it is set apart from."""

    name: str = Field("Karma Electric", description="name of the persona, used in the card")
    system_prompt: str = Field(min_length=1, description="the deployment prompt: training, `toward` prompt, Modelfile")
    away: list[str] = Field(
        min_length=1, description="generic system prompts, averaged; the empty string is one of them"
    )

    @field_validator("away")
    @classmethod
    def _has_the_empty_prompt(cls, value: list[str]) -> list[str]:
        if "" not in value:
            raise ValueError('one of the away prompts must be empty: add ""')
        return value


class ReleaseSection(_Section):
    """Which examples the release holds, and how they are split."""

    corpus: str = Field("corpus", description="folder of JSONL files, one per category; or a workbench file (.db)")
    categories: list[str] | None = Field(None, description="only these categories; all when absent")
    versions: list[str] | None = Field(
        None, description="only examples added in these versions (unreleased: in none); all when absent"
    )
    minimum_grade: float | None = Field(
        None, ge=0.0, le=40.0, description="only examples graded this high, of 40; what has no grade is left out too"
    )
    validation_fraction: float = Field(0.1, gt=0.0, lt=0.5, description="share of examples held out, by family")
    seed: int = Field(0, description="seed of the split")


class TrainSection(_Section):
    """QLoRA fine-tuning."""

    quantisation: Literal["nf4", "none"] = Field("nf4", description="4-bit base weights where bitsandbytes runs")
    rank: int = Field(64, gt=0, description="LoRA rank r")
    alpha: int = Field(128, gt=0, description="LoRA alpha; updates are scaled by alpha / rank")
    dropout: float = Field(0.05, ge=0.0, lt=1.0, description="LoRA dropout")
    target_modules: list[str] = Field(
        ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
        min_length=1,
        description="linear layers that get an adapter",
    )
    epochs: float = Field(3.0, gt=0.0, description="passes over the training split")
    batch_size: int = Field(2, gt=0, description="examples per forward pass")
    gradient_accumulation: int = Field(8, gt=0, description="forward passes per optimiser step")
    learning_rate: float = Field(2e-4, gt=0.0, description="peak learning rate, cosine decay")
    warmup_fraction: float = Field(0.03, ge=0.0, lt=1.0, description="share of steps with rising learning rate")
    weight_decay: float = Field(0.01, ge=0.0, description="AdamW weight decay")
    max_grad_norm: float = Field(0.3, gt=0.0, description="gradient clipping")
    max_length: int = Field(
        1024, gt=8, description="longest example in tokens; longer ones are cut at a turn or dropped"
    )
    gradient_checkpointing: bool = Field(False, description="trade time for memory")
    group_by_length: bool = Field(True, description="batches of examples of like length: less padding")
    fused: bool = Field(True, description="on a CPU, LoRA layers as one operation with unpacked weights: faster")
    save_steps: int = Field(10, gt=0, description="optimiser steps between checkpoints: what a kill can lose")
    seed: int = Field(0, description="seed of initialisation, order and dropout")


class MergeSection(_Section):
    """Folding the adapter into the weights."""

    dtype: Literal["bfloat16", "float32"] = Field("bfloat16", description="type of the merged weights")
    base: Literal["bf16", "dequantised-nf4"] = Field(
        "bf16",
        description="what the adapter is added to: the original 16-bit weights, or those as 4-bit training saw them",
    )
    max_shard_size: str = Field("2GB", description="largest file of the merged model, in MB or GB (powers of ten)")

    @field_validator("max_shard_size")
    @classmethod
    def _is_a_size(cls, value: str) -> str:
        bytes_of(value)
        return value


class MixtureSection(_Section):
    """Weights of the kinds of responses that thresholds are set on; a kind of weight 0 is left out."""

    deployment: float = Field(2.0, ge=0.0, description="ordinary prompts under the persona's system prompt")
    generic: float = Field(1.0, ge=0.0, description="ordinary prompts under the away prompts, in turn")
    adversarial: float = Field(1.0, ge=0.0, description="adversarial prompts under the persona's system prompt")

    @model_validator(mode="after")
    def _one_positive(self) -> MixtureSection:
        if not any(self.model_dump().values()):
            raise ValueError("all weights are 0: give at least one kind of response a weight above 0")
        return self

    @property
    def shares(self) -> dict[str, float]:
        """Kind -> weight, scaled to sum to 1."""
        weights: dict[str, float] = self.model_dump()
        largest = max(weights.values())  # first: the sum of two huge weights is infinite
        total = sum(weight / largest for weight in weights.values())
        return {kind: weight / largest / total for kind, weight in weights.items()}


class AxisSection(_Section):
    """Direction extraction and calibration of the cap."""

    contrast: str = Field("suites/contrast-200.jsonl", description="user prompts the direction is extracted on")
    calibration: str = Field("suites/calibration-96.jsonl", description="prompts the thresholds are set on")
    heldout: str = Field(
        "suites/heldout-48.jsonl", description="prompts the cap rate is measured on; shared with nothing"
    )
    position: Literal["last-prompt", "response"] = Field(
        "last-prompt",
        description="where the residual stream is read: the prompt's last token, or the mean of an answer's",
    )
    site: Literal["mlp", "block"] = Field("mlp", description="where the cap acts; only `mlp` can be baked")
    layers: tuple[int, int] | None = Field(None, description="first and last block, inclusive")
    depth: tuple[float, float] | None = Field(None, description="the same as fractions of depth (instead of layers)")
    threshold: Literal["runtime-q", "persona-p25"] = Field("runtime-q", description="how thresholds are set")
    quantile: float | None = Field(
        None, gt=0.0, lt=1.0, description="q of runtime-q, 0.75 when not given: 1 - q of tokens are above t, uncapped"
    )
    target_cap_rate: float | None = Field(
        None,
        gt=0.0,
        lt=1.0,
        description="share of tokens capped while the cap acts, from which q is solved (no quantile)",
    )
    mixture: MixtureSection = Field(
        MixtureSection(), description="weights of the kinds of responses: deployment, generic, adversarial"
    )
    alpha: float = Field(0.5, gt=0.0, le=1.0, description="strength of the cap: 0.5 soft, 1 hard")
    response_tokens: int = Field(64, gt=0, description="tokens generated per calibration response")
    batch_tokens: int = Field(4096, gt=0, description="padded tokens per forward pass")
    seed: int = Field(0, description="seed of the generated responses")

    @model_validator(mode="before")
    @classmethod
    def _default_quantile(cls, values: Any) -> Any:
        if not isinstance(values, dict) or values.get("target_cap_rate") is not None:
            return values
        given = values.get("quantile")
        return {**values, "quantile": _DEFAULT_QUANTILE if given is None else given}

    @model_validator(mode="after")
    def _one_threshold(self) -> AxisSection:
        if self.target_cap_rate is not None and self.quantile is not None:
            raise ValueError("quantile and target_cap_rate are both given: keep one")
        if self.target_cap_rate is not None and self.threshold != "runtime-q":
            raise ValueError(f'target_cap_rate needs threshold = "runtime-q", found {self.threshold!r}')
        return self

    @model_validator(mode="after")
    def _one_range(self) -> AxisSection:
        if self.layers is not None and self.depth is not None:
            raise ValueError("layers and depth are both given: keep one")
        if self.layers is not None and not 0 <= self.layers[0] <= self.layers[1]:
            raise ValueError(f"layers {list(self.layers)} must be [first, last] with 0 <= first <= last")
        if self.depth is not None and not 0.0 <= self.depth[0] <= self.depth[1] <= 1.0:
            raise ValueError(f"depth {list(self.depth)} must be [first, last] with 0 <= first <= last <= 1")
        return self


class BakeSection(_Section):
    """The cap neuron."""

    placement: Literal["append", "replace"] = Field(
        "append", description="append grows every MLP by 32; replace puts the neuron where the most redundant one was"
    )
    ridge: float | None = Field(
        None,
        gt=0.0,
        description="ridge strength, as a fraction of the mean diagonal; chosen by held-out error when absent",
    )
    sharpness: float = Field(60.0, gt=0.0, description="beta in units of 1/std of the excess")
    max_kl_ratio: float = Field(0.02, gt=0.0, description="gate: KL(hooked||baked) / KL(hooked||uncapped) at most")


class GgufSection(_Section):
    """GGUF export."""

    type: Literal["q8_0", "f16", "bf16", "f32"] = Field("q8_0", description="type of the matrices")
    temperature: float = Field(0.7, ge=0.0, description="PARAMETER temperature of the Modelfile")
    context: int = Field(4096, gt=0, description="PARAMETER num_ctx of the Modelfile")


class RedteamSection(_Section):
    """Red-teaming of the three arms: base, tuned, capped."""

    suite: str = Field("suites/starter-30.jsonl", description="scenarios")
    labelled: str = Field(
        "", description="labelled answers, to measure the judge on those to this suite; empty for a suite without"
    )
    scorer: str = Field(
        "signals",
        pattern=r"^(?:signals|signals-original|semantic(?::.+)?|llm:[^/]+/.+|labels:.+|ensemble:.+\+.+)$",
        description="who judges the answers: signals, semantic, llm:PROVIDER/MODEL, labels:FILE, or ensemble:A+B",
    )
    benign_scorer: str = Field(
        "over-refusal",
        pattern=TWINS_JUDGE,
        description="who judges answers to harmless twins: over-refusal (their own signals), labels:FILE, "
        "semantic:FOLDER trained on such labels, or llm:PROVIDER/MODEL, which reads their criteria",
    )
    benign_labelled: str = Field(
        "",
        description="labelled answers to the harmless twins, to measure their judge on; raters (benign_scorer "
        "labels:FILE) are measured on their own FILE",
    )
    scorer_url: str = Field("", description="address of an llm scorer's API; empty where its provider knows it")
    scorer_samples: int = Field(4, ge=2, le=32, description="replies of an llm scorer per scenario; it votes with them")
    beside: list[str] = Field(
        [], description="further suites that every arm is asked: harmless twins, capability items, conversations"
    )
    arms: list[Literal["base", "tuned", "capped"]] = Field(
        ["base", "tuned", "capped"], min_length=1, description="models that answer the scenarios"
    )
    system_prompt: Literal["persona", "empty"] = Field(
        "persona", description="system prompt of every arm: the deployment prompt, or an empty one"
    )
    max_new_tokens: int = Field(96, gt=0, description="tokens per answer")
    temperature: float = Field(0.0, ge=0.0, description="0 is greedy")
    top_p: float = Field(1.0, gt=0.0, le=1.0, description="nucleus sampling; 1 leaves nothing out")
    batch_size: int = Field(32, gt=0, description="conversations generated together")
    seed: int = Field(0, description="seed of the sampling; the first, where there are several")
    seeds: int = Field(
        1, ge=1, le=20, description="answers to every scenario, each under a seed of its own; several need sampling"
    )

    @model_validator(mode="after")
    def _seeds_differ(self) -> RedteamSection:
        if self.seeds > 1 and self.temperature == 0:
            raise ValueError(
                f"seeds = {self.seeds} with temperature = 0: greedy decoding gives the same answer under every seed; "
                "set seeds = 1, or a temperature above 0"
            )
        return self

    @field_validator("arms")
    @classmethod
    def _no_repeats(cls, value: list[str]) -> list[str]:
        if len(set(value)) != len(value):
            raise ValueError("an arm is named twice")
        return value


class CardSection(_Section):
    """The model card."""

    model_name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
        description="name of the published model; must begin with Llama for Llama derivatives",
    )
    license: str = Field(description="licence identifier of the weights, as the hub spells it")
    language: list[str] = Field(["en"], description="languages of the corpus")
    base_model: str | None = Field(None, description="hub id of the base for the card; model.base when absent")


def bytes_of(size: str) -> int:
    """`500MB` or `2GB` in bytes, in powers of ten.

    Raises:
        ValueError: not a size above zero.
    """
    found = re.fullmatch(r"(\d+(?:\.\d+)?) ?(MB|GB)", size.strip(), re.IGNORECASE)
    value = int(float(found[1]) * (10**9 if found[2].upper() == "GB" else 10**6)) if found else 0
    if value <= 0:
        raise ValueError(f"{size!r} is not a size, expected for example 500MB or 2GB")
    return value


class Recipe(_Section):
    """A whole run."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]*$", description="name of the run; its folder is runs/NAME")
    model: ModelSection
    persona: PersonaSection
    release: ReleaseSection = ReleaseSection()
    train: TrainSection = TrainSection()
    merge: MergeSection = MergeSection()
    axis: AxisSection = AxisSection(depth=(0.70, 0.88))
    bake: BakeSection = BakeSection()
    gguf: GgufSection = GgufSection()
    redteam: RedteamSection = RedteamSection()
    card: CardSection

    @model_validator(mode="after")
    def _combinations(self) -> Recipe:
        if self.axis.site != "mlp":
            raise ValueError('axis.site = "block" cannot be baked: set axis.site = "mlp", or stop with --to axis')
        if self.merge.base == "dequantised-nf4" and self.train.quantisation == "none":
            raise ValueError(
                'merge.base = "dequantised-nf4" is for an adapter that was trained on NF4: set merge.base = "bf16", '
                'or train.quantisation = "nf4"'
            )
        if self.axis.layers is None and self.axis.depth is None:
            raise ValueError("axis needs a layer range: set axis.layers = [first, last] or axis.depth")
        return self


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read and check a recipe; `overrides` are `key.path=value` in TOML syntax (bare words are strings).

    Raises:
        MissingError: no such recipe, here or among the shipped ones.
        RecipeError: the first problem, with the key, what was found, and what was expected.
    """
    file = find("recipes", str(path))
    if file.is_dir():
        raise RecipeError(f"{file} is a folder, expected a recipe file.", "Recipes end in .toml.")
    try:
        raw = tomllib.loads(file.read_text(encoding="utf-8"))
    except UnicodeDecodeError as error:
        raise RecipeError(
            f"{file} is not UTF-8 (byte 0x{error.object[error.start]:02x} at {error.start}).", "Save as UTF-8."
        ) from None
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{file} is not TOML: {error}.", "Check the quotes and brackets there.") from None
    for override in overrides:
        _apply(raw, override)
    try:
        return Recipe.model_validate(raw)
    except ValidationError as error:
        raise _explain(file, error, [override.partition("=")[0].strip() for override in overrides]) from None


def _apply(raw: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(re.fullmatch(r"[A-Za-z0-9_]+", part) for part in parts):
        raise RecipeError(f"--set {override!r} is not KEY=VALUE.", "Write for example --set train.epochs=1")
    try:
        value: Any = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text
    table = raw
    for part in parts[:-1]:
        table = table.setdefault(part, {})
        if not isinstance(table, dict):
            raise RecipeError(f"--set {key}: {part!r} is a value, not a section.", "Check the key.")
    table[parts[-1]] = value


def _explain(file: Path, error: ValidationError, set_: Sequence[str]) -> RecipeError:
    """What is wrong with a recipe: the first problem; `set_` are the keys that --set gave."""
    problems = error.errors(include_url=False)
    # an unknown key first: when a required one is misspelt, it is the same mistake as the missing one
    problem = next((p for p in problems if p["type"] == "extra_forbidden"), problems[0])
    parts = [str(part) for part in problem["loc"]]
    key = ".".join(parts)
    more = f" ({len(problems) - 1} more after this one)" if len(problems) > 1 else ""
    where = f"{file.name}: "
    given = next((asked for asked in set_ if asked == key or asked.startswith(f"{key}.")), None)
    if problem["type"] == "extra_forbidden":
        known = list(_section_at(parts[:-1]).model_fields)
        close = difflib.get_close_matches(parts[-1], known, n=1)
        hint = f"Known keys here: {', '.join(known)}."
        if given is not None:
            meant = ".".join([*parts[:-1], *close]) + given[len(key) :]
            return RecipeError(f"--set {given}: unknown key{more}.", f"Did you mean {meant}?" if close else hint)
        return RecipeError(f"{where}unknown key {key!r}{more}.", f"Did you mean {close[0]!r}?" if close else hint)
    missing = [".".join(map(str, p["loc"])) for p in problems if p["type"] == "missing"]
    if problem["type"] == "missing" and len(missing) > 1:
        rest = len(problems) - len(missing)
        more = f" ({rest} more problem{'s' * (rest > 1)} after these)" if rest else ""
        return RecipeError(
            f"{where}{', '.join(map(repr, missing[:-1]))} and {missing[-1]!r} are missing{more}.",
            f"Copy a shipped recipe and change it: cp {_shown(resource_root('recipes') / 'demo.toml')} {_shown(file)}",
        )
    if problem["type"] == "missing":
        return RecipeError(f"{where}{key!r} is missing{more}.", f"Add it: {_describe(parts)}.")
    message = str(problem["msg"]).removeprefix("Value error, ")
    found = "" if problem["type"] == "value_error" else f" (found {problem['input']!r})"
    described = _describe(parts)
    where = "--set " if given == key else where
    return RecipeError(
        f"{where}{key + ': ' if key else ''}{message}{found}{more}.", f"{described}." if described else ""
    )


def _shown(path: Path) -> str:
    """A path as a user in this folder would type it."""
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def _section_at(parts: Sequence[str]) -> type[BaseModel]:
    section: type[BaseModel] = Recipe
    for part in parts:
        annotation = section.model_fields[part].annotation
        inner = _as_section(annotation)
        if inner is None:
            break
        section = inner
    return section


def _as_section(annotation: Any) -> type[BaseModel] | None:
    is_class = isinstance(annotation, type) and get_origin(annotation) is None  # list[str] is a type in Python 3.10
    return annotation if is_class and issubclass(annotation, BaseModel) else None


def _describe(parts: Sequence[str]) -> str:
    """The sentence of the key, or of the section it is in."""
    section = _section_at(parts[:-1])
    name = next((part for part in reversed(parts) if part in section.model_fields), None)
    if name is None:
        return ""
    field = section.model_fields[name]
    inner = _as_section(field.annotation)
    if inner is not None:
        return f"[{name}]: {(inner.__doc__ or '').strip().removesuffix('.')}"
    return f"{name}: {field.description}"


def recipe_path(path: str | Path) -> Path:
    """Where a recipe was found (for copying it into the run)."""
    found = find("recipes", str(path))
    if not found.is_file():
        raise MissingError(f"{found} is not a file.", "Give a recipe file ending in .toml.")
    return found
