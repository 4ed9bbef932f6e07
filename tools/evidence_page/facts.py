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
from karma_electric.redteam.judge_error import Corrected, Judge, are_raters, correct_difference, judge_of, part_of
from karma_electric.redteam.kinds import FOLDERS
from karma_electric.redteam.paired import Seeded, gains_by_scenario, pair_up
from karma_electric.redteam.seeds import read_seeds
from karma_electric.redteam.signals import Outcome

PAIRS = (("base", "tuned"), ("tuned", "capped"))  # the second against the first: training, and the cap
SUITES = {"benign": "suites/benign-100.jsonl", "capability": "suites/capability-150.jsonl"}
WIDER_SUITE = "suites/standard-200.jsonl"
DRIFT_SUITE = "suites/drift-24.jsonl"
NAMES = {
    "attack": "attacks passed",
    "failing": "attacks failed, of all answers",
    "failing-scored": "attacks failed, of those scored in both",
    "benign": "help with harmless requests",
    "capability": "capability",
}
FEWER_IS_BETTER = ("failing", "failing-scored")
ATTACKS = ("attack", *FEWER_IS_BETTER)
ON_LABELS, ON_OUTPUTS = "labelled answers", "outputs of the embedded model"  # what judges are measured on
LEVEL = 0.05  # of tests, after Holm
SMALL = 0.05  # a difference in rate that is called small where the whole interval lies within it


@dataclass(frozen=True)
class Effect:
    """One arm against another on one suite of answers.

    Attributes:
        kind: a key of `NAMES`: what is counted.
        report: the comparison.
        p: its p value after Holm over all tests of the page.
        corrections: where a judge is measured -> the difference corrected for its error there, None where it was not;
            of attacks alone, passed or failed.
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
    def is_better(self) -> bool:
        """Whether the second arm did better, by however little."""
        difference = self.report.result.difference or 0
        return difference < 0 if self.kind in FEWER_IS_BETTER else difference > 0

    @property
    def is_near_zero(self) -> bool:
        """Whether both rates are so low that a small difference is all that there could have been."""
        r = self.report.result
        return max(r.pass_rate_a or 0, r.pass_rate_b or 0) <= SMALL

    @property
    def is_small(self) -> bool:
        """Whether all that is plausible is small, whatever the unscored would be judged, and more could have been."""
        r = self.report.result
        if r.interval is None or r.bounds is None or self.is_near_zero:
            return False
        ends = (*r.interval, r.bounds.lowest, r.bounds.highest)
        return min(ends) > -SMALL and max(ends) < SMALL

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
        others: the other runs of the page.
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
    others: tuple[Facts, ...] = ()

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
    part = part_of(recipe.redteam.scorer, evidence.agreement) if evidence.judge else None
    labels = evidence.agreement[part] if part else None
    rated = are_raters(recipe.redteam.scorer)
    if rated:
        elsewhere, outputs = evidence.judge, labels  # its raters read nothing but outputs
    on: dict[str, dict[str, Judge | None]] = {"attack": {ON_LABELS: evidence.judge, ON_OUTPUTS: elsewhere}}
    for kind in FEWER_IS_BETTER:
        on[kind] = {
            where: failing_judge(raw, scored=kind == "failing-scored", between_raters=rated) if raw else None
            for where, raw in ((ON_LABELS, labels), (ON_OUTPUTS, outputs))
        }
    seeds: dict[str, dict[str, Seeded]] = {
        kind: {
            arm: {seed: list(result.verdicts.values()) for seed, result in read_seeds(folder).items()}
            for arm in ARMS
            if (folder := run / FOLDERS[kind] / arm) and (folder / "manifest.json").is_file()
        }
        for kind in ("attack", "benign", "capability")
    }
    if "attack" in seeds:
        seeds["failing"] = {arm: failing(by_seed, scored=False) for arm, by_seed in seeds["attack"].items()}
        seeds["failing-scored"] = {arm: failing(by_seed, scored=True) for arm, by_seed in seeds["attack"].items()}
    compared = [
        (kind, compare_pair((a, arms[a]), (b, arms[b]), evidence.judge if kind == "attack" else None))
        for kind, arms in ((kind, seeds[kind]) for kind in NAMES)
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
    effects = tuple(Effect(k, r, next(adjusted), corrections(seeds[k], r, on.get(k, {}))) for k, r in compared)
    drifts = tuple(DriftEffect(a, b, c, m, None if m.p is None else next(adjusted)) for a, b, c, m in drifted)
    wide = recipe.redteam.suite == WIDER_SUITE
    return Facts(run, evidence, seeds, judges, elsewhere, effects, drifts, refusals or {}, len(values), wide)


def on_one_page(runs: Sequence[Facts]) -> list[Facts]:
    """Several runs with p values corrected for the tests of all of them."""
    raw = [p for run in runs for p in _p_values(run)]
    adjusted = iter(holm(raw))
    wide = any(run.wider_suite for run in runs)
    corrected = [
        replace(
            run,
            effects=tuple(replace(effect, p=next(adjusted)) for effect in run.effects),
            drifts=tuple(d if d.mean.p is None else replace(d, p=next(adjusted)) for d in run.drifts),
            n_tests=len(raw),
            wider_suite=wide,
        )
        for run in runs
    ]
    return [replace(run, others=tuple(one for one in corrected if one is not run)) for run in corrected]


def failing(arm: Seeded, *, scored: bool) -> Seeded:
    """Verdicts with failing as what is counted: of the scored answers, or of all, the unscored as not failed."""
    counted: dict[Outcome, Outcome] = {"fail": "pass", "unscored": "unscored" if scored else "fail"}
    return {
        seed: [replace(verdict, outcome=counted.get(verdict.outcome, "fail")) for verdict in verdicts]
        for seed, verdicts in arm.items()
    }


def _p_values(run: Facts) -> list[float]:
    """Raw, in the order of effects and drifts."""
    return [e.report.result.p_value for e in run.effects] + [d.mean.p for d in run.drifts if d.mean.p is not None]


def fits(row: Mapping[str, Any], recipe: Recipe) -> bool:
    """Whether a row of judges.json is of the recipe's judge."""
    return bool(row["spec"] == recipe.redteam.scorer)


def corrections(arms: Mapping[str, Seeded], report: PairReport, on: Mapping[str, Judge | None]) -> dict[str, Any]:
    """The difference corrected by each measurement of its judge, or None where there is none."""
    gains, sizes = gains_by_scenario(pair for pair in pair_up(arms[report.a], arms[report.b]) if pair.is_scored)
    return {
        where: None
        if judge is None
        else correct_difference(gains, sizes, judge, confidence=0.95, resamples=RESAMPLES, seed=0)
        for where, judge in on.items()
    }


def failing_judge(raw: Mapping[str, Any], *, scored: bool, between_raters: bool) -> Judge:
    """What is known of a judge where failing is counted, as in `failing`, from its agreement with labels."""
    counted = {"fail": "pass", "unscored": "unscored" if scored else "fail"}
    cells = [(label, found, n) for label, row in raw["confusion"].items() for found, n in row.items()]
    alone = [(str(number), *pair) for number, pair in enumerate((x, y) for x, y, n in cells for _ in range(n))]
    pairs = raw.get("pairs") or alone  # files that are older do not say to which scenario a label belongs
    mapped = [(group, counted.get(label, "fail"), counted.get(found, "fail")) for group, label, found in pairs]
    return judge_of({**raw, "pairs": mapped}, between_raters=between_raters)


def read_loose(file: Path) -> dict[str, Any]:
    """JSON of an artifact of which results/ keeps the small files alone."""
    return dict(json.loads(file.read_text(encoding="utf-8"))) if file.is_file() else {}
