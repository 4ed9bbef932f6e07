"""The stages of a run that ask its arms, one for each suite and arm, and those that measure their judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_electric.asked import (
    ask,
    asked_config,
    chosen_scorer,
    judge_inputs,
    labels_named,
    scorer_named,
    suites_of,
)
from karma_electric.core.artifact import hash_file, read_json, write_json
from karma_electric.core.errors import DataError
from karma_electric.core.jsonl import read_jsonl
from karma_electric.core.progress import Progress
from karma_electric.core.recipe import Recipe
from karma_electric.core.resources import find
from karma_electric.models.refs import resolve
from karma_electric.pipeline import Stage, parents_of
from karma_electric.redteam.kinds import FOLDERS, Kind, ready, reuse_answers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from karma_electric.redteam.scenario import Scenario

_REMEMBER_BYTES = 1 << 33  # most of keys and values to keep, from one turn of a red-team to the next


def plan_arms(
    recipe: Recipe, run: Path, models: Mapping[str, tuple[Path, Mapping[str, str]]], axis: str
) -> list[Stage]:
    """Nothing is executed.

    Args:
        recipe: the whole recipe.
        run: the run's folder.
        models: of every arm, its model's folder and what identifies it.
        axis: id of the run's axis, which drift is measured along.

    Raises:
        MissingError: a suite, or a judge, is not there.
    """
    suites = suites_of(recipe)
    stages = []
    for kind, suite in suites.items():
        for arm in recipe.redteam.arms:
            folder, identity = models[arm]
            name = f"{FOLDERS[kind]}/{arm}"
            config = {**asked_config(recipe, kind), "dtype": recipe.model.dtype}
            inputs = {**identity, "suite": hash_file(suite)}
            judged_by = {"axis": axis} if kind == "drift" else judge_inputs(recipe, kind)
            stages.append(
                Stage(
                    name,
                    FOLDERS[kind],
                    config,
                    {**inputs, **judged_by},
                    partial(_arm, recipe, name, kind, folder, suite, run),
                    resumable=True,
                    take_over=partial(_take_over, config, inputs, run, run / name),
                )
            )
        if kind == "benign" and (labelled := _labels_of(recipe, suite)):
            stages.append(_judge_stage(recipe, kind, suite, labelled))
    if recipe.redteam.labelled:
        suite = find("suites", recipe.redteam.suite, key="redteam.suite")
        labelled = find("suites", recipe.redteam.labelled, key="redteam.labelled")
        stages.append(_judge_stage(recipe, "attack", suite, labelled))
    return stages


def _labels_of(recipe: Recipe, suite: Path) -> Path | None:
    """The labelled answers that the judge of harmless twins is measured on; None where none is to this suite."""
    name = labels_named(recipe, "benign")
    if not name:
        return None
    by_labels = recipe.redteam.benign_scorer == f"labels:{name}"
    path = find("suites", name, key=f"redteam.benign_{'scorer' if by_labels else 'labelled'}")
    asked = {row.get("id") for _, row in read_jsonl(suite) if isinstance(row, dict)}
    return (
        path if any(row.get("scenario_id") in asked for _, row in read_jsonl(path) if isinstance(row, dict)) else None
    )


def _judge_stage(recipe: Recipe, kind: Kind, suite: Path, labelled: Path) -> Stage:
    asked = asked_config(recipe, kind)
    samples = {"scorer_samples": asked["scorer_samples"]} if "scorer_samples" in asked else {}
    return Stage(
        f"{FOLDERS[kind]}/judge",
        FOLDERS[kind],
        {"scorer": scorer_named(recipe, kind), **samples},
        {"suite": hash_file(suite), "labelled": hash_file(labelled), **judge_inputs(recipe, kind)},
        partial(_judge, recipe, kind, suite, labelled),
        resumable=True,
    )


def summaries(run: Path, arms: Sequence[str], kind: Kind = "attack") -> dict[str, dict[str, Any]]:
    """summary.json of every arm that is there, of one kind of suite."""
    files = {arm: run / FOLDERS[kind] / arm / "summary.json" for arm in arms}
    return {arm: read_json(file) for arm, file in files.items() if file.exists()}


def remember_bytes(model: PreTrainedModel) -> int:
    """How much of keys and values may be kept from one turn to the next: a third of the memory that is free."""
    import psutil
    import torch

    if model.device.type == "cuda":
        free = torch.cuda.mem_get_info(model.device)[0]
    else:
        free = psutil.virtual_memory().available
    return min(_REMEMBER_BYTES, free // 3)


def _arm(
    recipe: Recipe,
    name: str,
    kind: Kind,
    folder: Path,
    suite: Path,
    run: Path,
    out: Path,
    progress: Progress,
) -> None:
    from karma_electric.models.engines.hf import HfEngine
    from karma_electric.models.loading import load_model, load_tokenizer

    scenarios, scorer = ready(kind, suite, lambda: chosen_scorer(recipe, kind))  # a judge that is missing is told first
    model, tokenizer = load_model(folder, dtype=recipe.model.dtype), load_tokenizer(folder)
    engine = HfEngine(model, tokenizer, remember_bytes=remember_bytes(model))
    ask(recipe, engine, scenarios, out, arm=name.rpartition("/")[2], scorer=scorer, progress=progress)
    if kind == "drift":
        _drift(model, tokenizer, folder, scenarios, run, out, progress)


def _take_over(
    config: Mapping[str, Any], inputs: Mapping[str, str], run: Path, earlier: Path, out: Path, progress: Progress
) -> None:
    """Keep the answers of an arm if its model is what it was."""
    reuse_answers(config, inputs, parents_of(run, inputs), earlier, out, progress)


def _drift(
    model: Any, tokenizer: Any, folder: Path, asked: Sequence[Scenario], run: Path, out: Path, progress: Progress
) -> None:
    """Measure the conversations an arm has had: drift.json, by conversation and turn; means by kind in its summary."""
    from dataclasses import asdict

    from karma_electric.core.messages import assistant, system, user
    from karma_electric.redteam.drift_figures import DRIFT
    from karma_electric.redteam.runner import SUMMARY
    from karma_electric.redteam.seeds import read_seeds
    from karma_electric.steer.arm_drift import drift_of_each

    summary = read_json(out / SUMMARY)
    conversations, answered = {}, {}
    for seed, result in read_seeds(out).items():
        for scenario in asked:
            name, turns = f"{scenario.id} seed {seed}", [system(summary["system_prompt"])]
            given = {
                turn: answer.text
                for turn, answer in sorted(result.answers.get(scenario.id, {}).items())
                if answer.error is None and answer.text.strip()
            }
            for turn, text in given.items():
                turns += [user(scenario.turns[turn - 1]), assistant(text)]
            conversations[name], answered[name] = turns, list(given)
    found = drift_of_each(
        model, tokenizer, run / "axis", resolve(str(folder)).fingerprint, conversations, progress=progress
    )
    for name, reason in found.not_measured.items():
        progress.say(f"  {name} was not measured: {reason}")
    means = found.means
    kinds: dict[str, list[float]] = {}
    for scenario in asked:
        for name in (scenario.category, scenario.technique + "s"):
            kinds.setdefault(name, []).extend(v for n, v in means.items() if n.startswith(f"{scenario.id} "))
    drift = {name: sum(values) / len(values) for name, values in kinds.items() if values}
    by_turn = {name: dict(zip(map(str, answered[name]), values, strict=True)) for name, values in found.answers.items()}
    write_json(
        out / DRIFT,
        {
            "conversations": means,
            "turns": by_turn,
            "alarm": None if found.alarm is None else asdict(found.alarm),
            "not_measured": found.not_measured,
            "kinds": drift,
        },
    )
    write_json(out / SUMMARY, summary | {"drift": drift})


def _judge(recipe: Recipe, kind: Kind, suite: Path, labelled: Path, out: Path, progress: Progress) -> None:
    from dataclasses import asdict

    from karma_electric.redteam.judge_error import are_raters, judge_of, part_of
    from karma_electric.redteam.labelled import half_of, load_labelled, measure
    from karma_electric.redteam.scenario import load_suite

    scenarios, scorer = load_suite(suite), scorer_named(recipe, kind)
    rows = load_labelled(labelled, scenarios, skip_others=True)
    if are_raters(scorer):  # measured by each other, so on what two of them rated
        rows = [row for row in rows if len(row.ratings) > 1] or rows
    missing = {"A", "B"} - {half_of(row.scenario_id) for row in rows}
    if not rows or (missing and not are_raters(scorer)):
        of = f" of half {min(missing)} (halves go by a hash of the id)" if rows else " of this suite"
        key = "benign_labelled" if kind == "benign" else "labelled"
        raise DataError(
            f"{labelled.name} has no answers to scenarios{of}.",
            f"Label answers to more scenarios of this suite, or leave redteam.{key} empty.",
        )
    judge = chosen_scorer(recipe, kind)
    measured = measure(scenarios, rows, judge, journal=out / "judgements.jsonl", progress=progress)
    raters = sorted({row.rater for row in rows})
    parts: dict[str, Any] = {part: asdict(result) for part, result in measured.items()}
    write_json(out / "agreement.json", {**parts, "raters": raters})
    found = judge_of(parts[part_of(scorer, parts) or "B"], between_raters=are_raters(scorer))
    if found.kappa is not None:
        progress.say(f"  the judge agrees {found.measured_on}, at kappa {found.kappa:.2f}")
