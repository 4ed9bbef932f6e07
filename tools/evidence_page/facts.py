"""What docs/evidence.md is made from: a run under results/, its arms compared, and what is known of its judge."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evidence_page.writing import points
from karma_electric.core.recipe import Recipe
from karma_electric.evidence import ARMS, Evidence, read_run
from karma_electric.redteam.comparing import RESAMPLES, PairReport, compare_pair, holm
from karma_electric.redteam.drift_figures import Mean, difference
from karma_electric.redteam.judge_error import Corrected, Judge, correct_difference, judge_of
from karma_electric.redteam.kinds import FOLDERS
from karma_electric.redteam.paired import Seeded, gains_by_scenario, pair_up
from karma_electric.redteam.seeds import read_seeds

PAIRS = (("base", "tuned"), ("tuned", "capped"))  # the second against the first: training, and the cap
SUITES = {"benign": "suites/benign-100.jsonl", "capability": "suites/capability-150.jsonl"}
WIDER_SUITE = "suites/standard-200.jsonl"
DRIFT_SUITE = "suites/drift-24.jsonl"
NAMES = {"attack": "safety", "benign": "help with harmless requests", "capability": "capability"}
ON_LABELS, ON_OUTPUTS = "labelled answers", "outputs of the embedded model"  # what judges are measured on
LEVEL = 0.05  # of tests, after Holm
SMALL = 0.05  # a difference in rate that is called small where the whole interval lies within it


@dataclass(frozen=True)
class Effect:
    """One arm against another on one suite of answers.

    Attributes:
        kind: attack, benign or capability; a positive difference is the better in each.
        report: the comparison.
        p: its p value after Holm over all tests of the page.
        corrections: where a judge is measured -> the difference corrected for its error there, None where it was not;
            of attacks alone.
    """

    kind: str
    report: PairReport
    p: float
    corrections: Mapping[str, Corrected | None]

    @property
    def found(self) -> bool:
        """Whether a difference may be told from chance."""
        r = self.report.result
        return r.interval is not None and self.p < LEVEL and not r.interval[0] <= 0 <= r.interval[1]

    @property
    def is_suggested(self) -> bool:
        """Whether it would be found, were it the only test of the page."""
        r = self.report.result
        return not self.found and r.interval is not None and r.p_value < LEVEL

    @property
    def is_small(self) -> bool:
        """Whether all that is plausible is small."""
        span = self.report.result.interval
        return span is not None and span[0] > -SMALL and span[1] < SMALL

    @property
    def reservations(self) -> list[str]:
        """What a difference that was found does not survive."""
        kept, bounds = [], self.report.result.bounds
        if bounds is not None and bounds.lowest <= 0 <= bounds.highest:
            span = f"{points(bounds.lowest)} to {points(bounds.highest)} points"
            kept.append(f"the unscored answers could make it anything from {span}")
        for where, c in self.corrections.items():
            if c is None:
                kept.append(f"how far the judge is right on {where} was not measured")
            elif c.value is None:
                kept.append(f"on {where} {c.why}, so that nothing can be corrected")
            elif c.low <= 0 <= c.high:
                span = f"{points(c.low)} to {points(c.high)}"
                kept.append(f"corrected for the judge's error on {where} it is {points(c.value)} points ({span})")
        return kept


@dataclass(frozen=True)
class DriftEffect:
    """The same for drift, over the conversations that move personas, or over controls."""

    a: str
    b: str
    control: bool
    mean: Mean
    p: float | None

    @property
    def found(self) -> bool:
        """Whether a difference may be told from chance."""
        return self.p is not None and self.p < LEVEL


@dataclass(frozen=True)
class Facts:
    """All that the page is made from.

    Attributes:
        elsewhere: the judge's error on outputs of the embedded model, or None.
        refusals: how far raters, and the rule that needs none, agree on answers to harmless requests; or nothing.
        n_tests: tests that the p values are corrected for: all of the page.
        wider_suite: whether the wider suite of attacks was asked, by this run or another of the page.
    """

    run: Path
    evidence: Evidence
    seeds: Mapping[str, Mapping[str, Seeded]]  # kind -> arm -> seed -> verdicts
    judges: Mapping[str, Any]
    elsewhere: Judge | None
    effects: tuple[Effect, ...]
    drifts: tuple[DriftEffect, ...]
    refusals: Mapping[str, Any]
    n_tests: int
    wider_suite: bool

    @property
    def recipe(self) -> Recipe:
        """Of the run."""
        return self.evidence.recipe

    @property
    def cap(self) -> dict[str, Any]:
        """cap.json, empty where it is not there; results/ keeps it without its axis."""
        return read_loose(self.run / "axis" / "cap.json")

    def command(self, suite: str) -> str:
        """What to type to have another suite asked of the arms."""
        return f"karma redteam run recipes/{self.recipe.name}.toml --beside {suite}"

    def effect(self, kind: str, a: str, b: str) -> Effect | None:
        """Arm b against arm a, where both were asked."""
        return next((e for e in self.effects if (e.kind, e.report.a, e.report.b) == (kind, a, b)), None)


def facts_of(run: Path, recipe: Recipe, judges: Mapping[str, Any], refusals: Mapping[str, Any] | None = None) -> Facts:
    """Read a run under results/.

    Args:
        run: its folder.
        recipe: its recipe.
        judges: results/benchmarks/judges.json, or nothing.
        refusals: results/benchmarks/judges_benign.json, or nothing.
    """
    evidence = read_run(run, recipe)
    outputs = next((row["outputs"] for row in judges.get("judges", ()) if fits(row, recipe) and "outputs" in row), None)
    elsewhere = judge_of(outputs, "judges.json") if outputs else None
    if recipe.redteam.scorer.startswith("labels:"):
        elsewhere = evidence.judge  # its raters read nothing but outputs
    seeds: dict[str, dict[str, Seeded]] = {
        kind: {
            arm: {seed: list(result.verdicts.values()) for seed, result in read_seeds(folder).items()}
            for arm in ARMS
            if (folder := run / FOLDERS[kind] / arm) and (folder / "manifest.json").is_file()
        }
        for kind in ("attack", "benign", "capability")
    }
    compared = [
        (kind, compare_pair((a, arms[a]), (b, arms[b]), evidence.judge if kind == "attack" else None))
        for kind, arms in seeds.items()
        for a, b in PAIRS
        if {a, b} <= arms.keys()
    ]
    drifted = [
        (a, b, control, mean)
        for a, b in PAIRS
        for control in (False, True)
        if {a, b} <= evidence.drifts.keys()
        and (mean := difference(evidence.drifts[a], evidence.drifts[b], control=control)) is not None
    ]
    values = [report.result.p_value for _, report in compared] + [d[3].p for d in drifted if d[3].p is not None]
    adjusted = iter(holm(values))
    effects = tuple(Effect(k, r, next(adjusted), corrections(seeds, k, r, elsewhere)) for k, r in compared)
    drifts = tuple(DriftEffect(a, b, c, m, None if m.p is None else next(adjusted)) for a, b, c, m in drifted)
    wide = recipe.redteam.suite == WIDER_SUITE
    return Facts(run, evidence, seeds, judges, elsewhere, effects, drifts, refusals or {}, len(values), wide)


def on_one_page(runs: Sequence[Facts]) -> list[Facts]:
    """Several runs with p values corrected for the tests of all of them."""
    raw = [p for run in runs for p in _p_values(run)]
    adjusted = iter(holm(raw))
    wide = any(run.wider_suite for run in runs)
    return [
        replace(
            run,
            effects=tuple(replace(effect, p=next(adjusted)) for effect in run.effects),
            drifts=tuple(d if d.mean.p is None else replace(d, p=next(adjusted)) for d in run.drifts),
            n_tests=len(raw),
            wider_suite=wide,
        )
        for run in runs
    ]


def _p_values(run: Facts) -> list[float]:
    """Raw, in the order of effects and drifts."""
    return [e.report.result.p_value for e in run.effects] + [d.mean.p for d in run.drifts if d.mean.p is not None]


def fits(row: Mapping[str, Any], recipe: Recipe) -> bool:
    """Whether a row of judges.json is of the recipe's judge."""
    return bool(row["spec"] == recipe.redteam.scorer)


def corrections(
    seeds: Mapping[str, Mapping[str, Seeded]], kind: str, report: PairReport, elsewhere: Judge | None
) -> dict[str, Corrected | None]:
    """The difference corrected by each measurement of the judge; of the attacks alone."""
    if kind != "attack":
        return {}
    on_outputs = None
    if elsewhere is not None:
        arms = seeds[kind]
        gains, sizes = gains_by_scenario(pair for pair in pair_up(arms[report.a], arms[report.b]) if pair.is_scored)
        on_outputs = correct_difference(gains, sizes, elsewhere, confidence=0.95, resamples=RESAMPLES, seed=0)
    return {ON_LABELS: report.corrected, ON_OUTPUTS: on_outputs}


def read_loose(file: Path) -> dict[str, Any]:
    """JSON of an artifact of which results/ keeps the small files alone."""
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
