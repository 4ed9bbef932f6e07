"""Sweeps over caps: every cell of a grid an artifact, with what the cap does to safety, over-refusal and capability.

    OUT/sweep/CELL/{safety,benign,capability}/   answers and verdicts, as the runner writes them
    OUT/sweep/CELL/cell.json                     the figures
    OUT/sweep.json, OUT/pareto.png               all of them, and the front

Caps act by hooks on the merged model, with thresholds at a quantile of the projections of the answers that the recipe's
own cap was calibrated on.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_electric.asked import ask, asked_config, chosen_scorer, judge_inputs, system_prompt_of
from karma_electric.core.artifact import hash_file, read_json, write_json
from karma_electric.core.errors import InputError, MissingError
from karma_electric.core.messages import system, user
from karma_electric.core.progress import Progress, Silent
from karma_electric.core.recipe import Recipe
from karma_electric.core.resources import find
from karma_electric.models.engines.protocol import Alpha, Engine, Sampling
from karma_electric.models.refs import resolve
from karma_electric.pipeline import Stage
from karma_electric.redteam.capability import Item, load_items
from karma_electric.redteam.kinds import kind_of, require_attacks
from karma_electric.redteam.runner import read_verdicts
from karma_electric.redteam.scenario import Scenario, load_suite
from karma_electric.redteam.scorers.checked import CheckedScorer, as_scenarios
from karma_electric.redteam.scorers.over_refusal import PREFIX, OverRefusalScorer, over_refusal
from karma_electric.redteam.scorers.protocol import Scorer
from karma_electric.redteam.stats import ArmSummary
from karma_electric.redteam.suite_file import spread
from karma_electric.redteam.sweep import Cell, front

if TYPE_CHECKING:
    from karma_electric.steer.axis import Axis
    from karma_electric.steer.projections import Projections
    from karma_electric.steer.spec import Cap

GOALS = {"pass_rate": 1, "over_refusal": -1, "capability": 1}
_KL_CONVERSATIONS = 12
_PROBE_TOKENS = 8


@dataclass(frozen=True)
class Suites:
    """What every cell is asked, and `hashes` of the whole files: signals and checks decide figures as questions do."""

    safety: tuple[Scenario, ...]
    benign: tuple[Scenario, ...]
    capability: tuple[Item, ...]
    hashes: Mapping[str, str]

    @classmethod
    def load(cls, recipe: Recipe, benign: str, capability: str, limit: int | None) -> Suites:
        """Read them, `limit` items of each at most.

        Raises:
            MissingError, DataError: a suite that is not there, or cannot be read.
            InputError: harmless twins that are none: their judge would take help for what was wanted; or attacks that
                are none.
        """
        if (kind := kind_of(find("suites", benign, key="--benign"))) != "benign":
            raise InputError(
                f"{benign} is a suite of kind {kind}, expected harmless twins (every id begins with {PREFIX}).",
                "Give another with --benign; benign-100.jsonl is shipped.",
            )
        files = {"suite": recipe.redteam.suite, "benign": benign, "capability": capability}
        keys = {"suite": "redteam.suite", "benign": "--benign", "capability": "--capability"}
        paths = {role: find("suites", name, key=keys[role]) for role, name in files.items()}
        require_attacks(paths["suite"])
        return cls(
            tuple(spread(load_suite(paths["suite"]), limit)),
            tuple(spread(load_suite(paths["benign"]), limit)),
            tuple(spread(load_items(paths["capability"]), limit)),
            {role: hash_file(path) for role, path in paths.items()},
        )

    def answers(self, seeds: int) -> int:
        """How many answers a cell takes."""
        turns = sum(len(scenario.turns) for scenario in self.safety) * seeds
        return turns + sum(len(scenario.turns) for scenario in self.benign) + len(self.capability)


class Bench:
    """The model of a run and what caps are made from; loaded when the first cell needs it, and kept."""

    def __init__(self, recipe: Recipe, run: Path, cells: Sequence[Cell]) -> None:
        self.recipe = recipe
        self.run = run
        spans = [cell.layers for cell in cells if cell.layers is not None]
        self._layers = tuple(sorted({layer for first, last in spans for layer in range(first, last + 1)}))

    @cached_property
    def loaded(self) -> tuple[Any, Any]:
        """Model and tokenizer."""
        from karma_electric.models.loading import load_model, load_tokenizer

        folder = self.run / "merged"
        return load_model(folder, dtype=self.recipe.model.dtype), load_tokenizer(folder)

    @cached_property
    def scorer(self) -> Scorer:
        """The judge of the recipe's suite."""
        return chosen_scorer(self.recipe)

    @cached_property
    def axis(self) -> Axis:
        """Directions of the run."""
        from karma_electric.steer.axis import load_axis
        from karma_electric.steer.spec import AXIS_FILE

        return load_axis(self.run / "axis" / AXIS_FILE)

    @cached_property
    def _uncapped(self) -> Projections:
        return self._projections("calibration", self._layers, None)

    def _projections(self, split: str, layers: Sequence[int], cap: Cap | None) -> Projections:
        from karma_electric.steer.projections import project, token_text
        from karma_electric.steer.responses import FILE, load_responses

        model, tokenizer = self.loaded
        responses = [r for r in load_responses(self.run / "axis" / FILE) if r.split == split and r.text.strip()]
        return project(
            model,
            token_text(tokenizer, responses),
            self.axis,
            self.recipe.axis.site,
            layers,
            cap=cap,
            pad_id=int(tokenizer.pad_token_id or 0),
            batch_tokens=self.recipe.axis.batch_tokens,
            progress=Silent(),
            note=split,
        )

    def cap(self, cell: Cell) -> Cap:
        """The cap of a cell."""
        from karma_electric.steer.mixture import weighted_quantile
        from karma_electric.steer.spec import AXIS_FILE, Cap, CapSpec

        assert cell.layers is not None
        assert cell.alpha is not None
        assert cell.quantile is not None
        layers = tuple(range(cell.layers[0], cell.layers[1] + 1))
        weights = self._uncapped.weights(self.recipe.axis.mixture.shares)
        thresholds = {
            layer: weighted_quantile(self._uncapped.values[layer], weights, cell.quantile) for layer in layers
        }
        return Cap.of(CapSpec(AXIS_FILE, self.recipe.axis.site, layers, thresholds, cell.alpha), self.axis)

    def engine(self, cap: Cap | None) -> Engine:
        """Answers with a cap acting, or none."""
        from karma_electric.models.engines.hf import HfEngine
        from karma_electric.steer.cap import capped

        model, tokenizer = self.loaded
        if cap is None:
            return HfEngine(model, tokenizer)

        def intervene(model: Any, alpha: Alpha) -> AbstractContextManager[Any]:
            return capped(model, cap, alpha=alpha)

        return HfEngine(model, tokenizer, intervention=intervene)

    def action(self, cap: Cap) -> dict[str, float]:
        """Cap rate and dose while the cap acts, on held-out answers."""
        from karma_electric.steer.projections import action

        spec = cap.spec
        seen = self._projections("heldout", spec.layers, cap)
        found = action(seen, spec.thresholds, spec.alpha, self.recipe.axis.mixture.shares)
        return {"cap_rate": found.cap_rate["mean"], "dose": found.dose["mean"]}

    def kl_nats(self, cap: Cap) -> float:
        """Mean KL(capped || uncapped) of the next token, over the tokens of held-out answers."""
        from karma_electric.steer.cap import capped
        from karma_electric.steer.fidelity import log_probabilities, with_start
        from karma_electric.steer.responses import FILE, by_split

        model, tokenizer = self.loaded
        total, tokens = 0.0, 0
        for conversation in spread(by_split(self.run / "axis" / FILE)["heldout"], _KL_CONVERSATIONS):
            ids, start = with_start(tokenizer, conversation)
            with capped(model, cap):
                acting = log_probabilities(model, ids)[start:-1]
            bare = log_probabilities(model, ids)[start:-1]
            each = (acting.exp() * (acting - bare)).sum(-1).clamp_min(0.0)
            total, tokens = total + float(each.sum()), tokens + len(each)
        return total / tokens


def plan_sweep(bench: Bench, cells: Sequence[Cell], suites: Suites) -> list[Stage]:
    """A stage per cell.

    Raises:
        MissingError: the run has no merged model, no axis or no answers that its cap was calibrated on.
    """
    recipe, run = bench.recipe, bench.run
    from karma_electric.steer.responses import FILE
    from karma_electric.steer.spec import AXIS_FILE

    needed = {"merged": run / "merged", "axis": run / "axis" / AXIS_FILE, "responses": run / "axis" / FILE}
    for path in needed.values():
        if not path.exists():
            raise MissingError(f"{path} is not there, and a sweep needs it.", "Make it: karma run RECIPE --to axis")
    inputs = {
        "model": resolve(str(needed["merged"])).fingerprint,  # a hash of its files, not the artifact's id
        "directions": hash_file(needed["axis"]),
        "responses": hash_file(needed["responses"]),
        **judge_inputs(recipe),
        **suites.hashes,
    }
    asked = {
        "safety": [scenario.id for scenario in suites.safety],
        "benign": [scenario.id for scenario in suites.benign],
        "capability": [item.id for item in suites.capability],
    }
    steering = {"site": recipe.axis.site, "mixture": recipe.axis.mixture.shares, "dtype": recipe.model.dtype}
    return [
        Stage(
            f"sweep/{cell.name}",
            "sweep-cell",
            {**asked_config(recipe), **steering, "cell": asdict(cell), "asked": asked},
            inputs,
            partial(_measure, bench, cell, suites),
            resumable=True,
        )
        for cell in cells
    ]


def _measure(bench: Bench, cell: Cell, suites: Suites, out: Path, progress: Progress) -> None:
    started = time.monotonic()
    recipe = bench.recipe
    scorer = bench.scorer  # first: a judge that is not there is told at once
    cap = None if cell.alpha is None else bench.cap(cell)

    engine = bench.engine(cap)

    def asked(name: str, suite: Sequence[Scenario], judge: Scorer, seeds: int | None) -> ArmSummary:
        arm = f"{cell.name}, {name}"
        return ask(recipe, engine, suite, out / name, arm=arm, scorer=judge, seeds=seeds, progress=progress)

    safety = asked("safety", suites.safety, scorer, None)
    benign = asked("benign", suites.benign, OverRefusalScorer(), 1)
    refused = over_refusal(read_verdicts(out / "benign"))
    capability = asked("capability", as_scenarios(suites.capability), CheckedScorer(suites.capability), 1)
    figures = {
        "cell": cell.name,
        **asdict(cell),
        "pass_rate": safety.pass_rate_scored.value,
        "pass_rate_interval": [safety.pass_rate_scored.low, safety.pass_rate_scored.high],
        "counts": safety.counts,
        "over_refusal": refused.rate.value,
        "over_refusal_n": benign.n - refused.unscored,
        "capability": capability.pass_rate_scored.value,
        "capability_n": capability.n - capability.counts["unscored"],
        **({"cap_rate": 0.0, "dose": 0.0} if cap is None else bench.action(cap)),
        "kl_nats": 0.0 if cap is None else bench.kl_nats(cap),
        "thresholds": {} if cap is None else {str(layer): t for layer, t in cap.spec.thresholds.items()},
        "seconds": round(time.monotonic() - started, 1),  # of the last attempt, where one was cut off
    }
    write_json(out / "cell.json", figures)


def estimate_s(bench: Bench, suites: Suites, done: Sequence[float]) -> float:
    """Seconds that one cell will take: the mean of those that are done, else from a probe of a few tokens.

    The probe takes every answer to be as long as it may be, so that it is more than what is to be expected.
    """
    if done:
        return sum(done) / len(done)
    section = bench.recipe.redteam
    engine = bench.engine(None)
    batch = [
        [system(system_prompt_of(bench.recipe)), user(scenario.turns[0])]
        for scenario in suites.safety[: section.batch_size]
    ]
    seconds = []
    for tokens in (1, 1, 1 + _PROBE_TOKENS):  # the first pass of a process is slower
        started = time.monotonic()
        engine.generate(batch, Sampling(max_new_tokens=tokens))
        seconds.append(time.monotonic() - started)
    per_token = max(0.0, seconds[2] - seconds[1]) / _PROBE_TOKENS
    per_answer = (seconds[1] + per_token * section.max_new_tokens) / len(batch)
    return per_answer * suites.answers(section.seeds)


def summarise_sweep(out: Path, cells: Sequence[Cell]) -> dict[str, Any]:
    """All cells that are there, and the front; written to sweep.json and pareto.png."""
    from karma_electric.redteam.sweep import plot_front

    files = [out / "sweep" / cell.name / "cell.json" for cell in cells]
    rows = [read_json(file) for file in files if file.is_file()]
    found = {"goals": GOALS, "cells": rows, "front": front(rows, GOALS)}
    write_json(out / "sweep.json", found)
    plot_front(rows, found["front"], out / "pareto.png")  # type: ignore[arg-type]
    return found
