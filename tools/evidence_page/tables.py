"""The tables of docs/evidence.md, each a generator of lines."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from evidence_page.facts import (
    ATTACKS,
    DRIFT_SUITE,
    LEVEL,
    NAMES,
    ON_LABELS,
    ON_OUTPUTS,
    PAIRS,
    SUITES,
    Facts,
    fits,
    read_loose,
)
from evidence_page.writing import capped_share, correction, deviations, gap, head, kappa, p_text, points, rate, share
from karma_electric.evidence import Arm
from karma_electric.redteam.comparing import RESAMPLES
from karma_electric.redteam.drift_figures import above_controls, difference_beyond_controls
from karma_electric.redteam.judge_error import Corrected, Judge, correct_rate
from karma_electric.redteam.paired import read
from karma_electric.redteam.scorers.over_refusal import OVER_REFUSAL


def about(facts: Facts) -> Iterator[str]:
    """What was run."""
    e, section = facts.evidence, facts.recipe.redteam
    first = e.arms[0] if e.arms else None
    hardware = next((a.manifest.hardware for a in e.artifacts.values()), {})
    yield "| | |"
    yield "|---|---|"
    yield f"| Run | `results/{facts.run.name}`, {e.created or 'not dated'} |"
    yield f"| Base | {facts.recipe.card.base_model or facts.recipe.model.base} |"
    commits = sorted({a.commit for a in e.artifacts.values() if a.commit})
    yield f"| Code | commit {', '.join(commits) or 'not recorded'} |"
    if hardware:
        processor = hardware.get("processor", hardware.get("machine", "?"))
        yield f"| Machine | {hardware.get('cores', '?')} cores, {processor} |"
    yield f"| Attacks | `{section.suite}`{f', {first.rates.scenarios} scenarios' if first else ''} |"
    count = len(first.rates.seeds) if first else section.seeds
    yield f"| Seeds | {count} |"
    yield (
        f"| Sampling | temperature {section.temperature:g}, top_p {section.top_p:g}, at most {section.max_new_tokens} "
        "tokens an answer |"
    )
    prompt = "the persona's, of base too" if section.system_prompt == "persona" else section.system_prompt
    yield f"| System prompt of every arm | {prompt} |"
    yield f"| Judge of the attacks | `{section.scorer}` |"
    if e.differing_settings:
        yield f"| **Not alike in all arms** | {', '.join(e.differing_settings)} |"


def safety(facts: Facts) -> Iterator[str]:
    """Outcomes and rates of the attacks."""
    if not facts.evidence.arms:
        yield gap(f"karma run recipes/{facts.recipe.name}.toml --to redteam")
        return
    yield from head(
        "Arm",
        "Pass rate of scored (95%)",
        "Corrected for the judge's error on labels",
        "Corrected for its error on outputs",
        "At worst and best for the unscored",
        "Answers",
        "Pass",
        "Partial",
        "Fail",
        "Unscored",
        right=5,
    )
    for arm in facts.evidence.arms:
        summary, rates = arm.rates.summary, arm.rates
        counts = " | ".join(str(summary.counts[outcome]) for outcome in ("pass", "partial", "fail", "unscored"))
        bounds = f"{share(rates.all_fail)} to {share(rates.all_pass)}"
        on_outputs = None if facts.elsewhere is None else corrected_rate(arm, facts.elsewhere)
        yield (
            f"| {arm.name} | {rate(rates.scored)} | {correction(rates.corrected)} | {correction(on_outputs)} | "
            f"{bounds} | {summary.n} | {counts} |"
        )
    yield ""
    parts = {arm.name: arm.rates.summary for arm in facts.evidence.arms}
    failed = ", ".join(f"{name} {share(s.counts['fail'] / s.n)}" for name, s in parts.items() if s.n)
    yield f"Of all answers, the unscored counted, this share failed: {failed}."
    yield ""
    yield agreement(facts)


def agreement(facts: Facts) -> str:
    """What is known of the judge, beside its rates."""
    if facts.recipe.redteam.scorer.startswith("labels:"):
        two = judged("of these answers", facts.evidence.judge) or "how far two of them agree is not known"
        return (
            f"Judged by {who_rated(facts.evidence.judge)} who saw neither arm nor verdict, "
            f"`{facts.recipe.redteam.scorer}`. The label against the rater who was not followed: {two}. What is "
            "corrected counts where that one differed as the judge's error; of what raters get wrong together it knows "
            "nothing."
        )
    labels = judged("labelled answers that it was not tuned on", facts.evidence.judge)
    if labels is None:
        labels = f"on labelled answers {gap(f'karma run recipes/{facts.recipe.name}.toml --to redteam')}"
    outputs = judged("labelled outputs of the embedded model", facts.elsewhere)
    if outputs is None:
        outputs = f"on outputs of the embedded model {gap(JUDGES)}"
    return f"The judge of these rates, `{facts.recipe.redteam.scorer}`: {labels}; {outputs}."


def who_rated(judge: Judge | None) -> str:
    """Raters as what they are."""
    models = judge is not None and judge.raters and all(name.startswith("language-model") for name in judge.raters)
    return "two language models (no person)" if models else "two raters"


def corrected_rate(arm: Arm, measured: Judge) -> Corrected:
    """Pass rate of an arm corrected by another measurement of its judge."""
    groups: dict[str, list[int]] = {}
    for result in arm.seeds.values():
        for verdict in result.verdicts.values():
            counted = groups.setdefault(verdict.scenario_id, [0, 0])
            counted[0] += verdict.outcome == "pass"
            counted[1] += verdict.outcome != "unscored"
    pairs = [(passed, scored) for passed, scored in groups.values()]
    return correct_rate(pairs, measured, confidence=0.95, resamples=RESAMPLES, seed=0)


def judged(where: str, judge: Judge | None) -> str | None:
    """A judge's agreement in words."""
    if judge is None:
        return None
    agrees = kappa({"kappa": judge.kappa, "kappa_interval": judge.kappa_interval})
    wrongly = None if judge.specificity is None else 1 - judge.specificity
    able, who = ("both can", "the second") if judge.between_raters else ("it can", "it")
    return (
        f"kappa {agrees} on {judge.n} {where}, of which {able} judge {judge.n_scored}: of those {who} passes "
        f"{share(judge.sensitivity)} of the {sum(n for _, n in judge.passes)} passes and {share(wrongly)} of the others"
    )


def categories(facts: Facts) -> Iterator[str]:
    """Passed of scored by category."""
    arms = facts.evidence.arms
    if not arms:
        yield gap(f"karma run recipes/{facts.recipe.name}.toml --to redteam")
        return
    yield "| Category | " + " | ".join(arm.name for arm in arms) + " |"
    yield "|---|" + "---|" * len(arms)
    names = dict.fromkeys(name for arm in arms for name in arm.rates.summary.categories)
    for name in names:
        yield f"| {name} | " + " | ".join(cell(arm.rates.summary.categories.get(name, {})) for arm in arms) + " |"


def cell(counts: Mapping[str, int]) -> str:
    """Passed of scored, and the unscored."""
    unscored = counts.get("unscored", 0)
    scored = sum(counts.values()) - unscored
    said = f"{counts['pass'] / scored:.0%} ({counts['pass']} of {scored})" if scored else "none scored"
    return f"{said}, {unscored} unscored" if unscored else said


def comparisons(facts: Facts) -> Iterator[str]:
    """Paired differences on every suite, and the attacks in words."""
    if not facts.effects:
        yield gap(f"karma run recipes/{facts.recipe.name}.toml --to redteam")
        return
    yield from head(
        "Suite",
        "Arms",
        "Difference in points (95%)",
        "p",
        "p after Holm",
        "Corrected, labels",
        "Corrected, outputs",
        "Pairs (scenarios)",
        "Found 4 times in 5",
    )
    for effect in facts.effects:
        r = effect.report.result
        span = f" ({points(r.interval[0])} to {points(r.interval[1])})" if r.interval else ""
        found = "none" if r.difference is None else f"{points(r.difference)}{span}"
        least = "none" if r.smallest_effect is None else f"{100 * r.smallest_effect:.0f} points"
        by = [effect.corrections.get(where) for where in (ON_LABELS, ON_OUTPUTS)]
        cells = [correction(c, signed=True) if effect.kind in ATTACKS else "" for c in by]
        yield (
            f"| {NAMES[effect.kind]} | {effect.report.b} against {effect.report.a} | {found} | {p_text(r.p_value)} | "
            f"{p_text(effect.p)} | {cells[0]} | {cells[1]} | {r.n_pairs} ({r.n_scenarios}) | {least} |"
        )
    yield ""
    for effect in facts.effects:
        if effect.kind == "attack":
            yield f"- {read(effect.report.result, effect.report.a, effect.report.b, p=effect.p, alpha=LEVEL)}"
    yield ""
    yield f"p after Holm counts the {facts.n_tests} tests of this page, drift among them; the sentences go by it."


def over_refusal(facts: Facts) -> Iterator[str]:
    """Over-refusal of every arm that was asked."""
    side = next((s for s in facts.evidence.beside if s.kind == "benign"), None)
    if side is None:
        yield gap(facts.command(SUITES["benign"]))
        return
    yield from head(
        "Arm",
        "Refused in whole or in part, of scored (95%)",
        "Answers",
        "Helped",
        "Helped in part",
        "Refused",
        "Unscored",
        right=5,
    )
    shares = []
    for name, arm in side.arms.items():
        seeds = facts.seeds["benign"][name].values()
        counts = tally(("all", verdict.outcome) for verdicts in seeds for verdict in verdicts)["all"]
        refused = counts["partial"] + counts["fail"]
        shares.append(f"{name} {share(counts['pass'] / arm.n)} helped and {share(refused / arm.n)} refused")
        cells = " | ".join(str(counts[outcome]) for outcome in ("pass", "partial", "fail", "unscored"))
        yield f"| {name} | {rate(arm.rate)} | {arm.n} | {cells} |"
    yield from missing_arms(facts, side.arms, SUITES["benign"])
    yield ""
    yield f"Of all answers, the unscored counted: {'; '.join(shares)} in whole or in part."
    yield ""
    yield refusals_judged(facts)


def refusals_judged(facts: Facts) -> str:
    """Who told help from refusal, and how far that may be believed."""
    spec, found = facts.recipe.redteam.benign_scorer, facts.refusals
    raters = found.get("raters")
    row = next((row["all"] for row in found.get("judges", ()) if row["spec"] == OVER_REFUSAL), None)
    decided = [counts for label, counts in (row or {}).get("confusion", {}).items() if label != "unscored"]
    left, all_ = sum(counts["unscored"] for counts in decided), sum(sum(counts.values()) for counts in decided)
    rule = (
        f"how far it agrees with raters is {gap(TWINS_JUDGES)}"
        if row is None
        else f"it agrees with raters of {row['n']} answers of these arms at kappa {kappa(row)}, and leaves {left} of "
        f"the {all_} unscored that they could decide"
    )
    if not spec.startswith("labels:"):
        return f"Judged by `{spec}`: {rule}."
    known = f"how far two of them agree is {gap(TWINS_JUDGES)}"
    if raters and spec.rpartition("/")[2] in found["labelled"]:
        known = f"two of them agree on {raters['n']} answers at kappa {kappa(raters)}"
    return (
        f"Judged by raters (language models, no person), who saw neither arm nor verdict, `{spec}`: {known}. As for "
        f"the rule `{OVER_REFUSAL}`, which needs nobody: {rule}."
    )


def capability(facts: Facts) -> Iterator[str]:
    """Correct answers by kind of item."""
    side = next((s for s in facts.evidence.beside if s.kind == "capability"), None)
    if side is None:
        yield gap(facts.command(SUITES["capability"]))
        return
    arms = facts.seeds["capability"]
    yield "| Kind | " + " | ".join(arms) + " |"
    yield "|---|" + "---|" * len(arms)
    counts = {
        arm: tally((v.category, v.outcome) for of_seed in by_seed.values() for v in of_seed)
        for arm, by_seed in arms.items()
    }
    for kind in dict.fromkeys(kind for found in counts.values() for kind in found):
        yield f"| {kind} | " + " | ".join(cell(found.get(kind, {})) for found in counts.values()) + " |"
    yield "| **all (95%)** | " + " | ".join(rate(side.arms[arm].rate) for arm in arms) + " |"
    yield from missing_arms(facts, side.arms, SUITES["capability"])


def tally(pairs: Iterable[tuple[str, str]]) -> dict[str, dict[str, int]]:
    """Outcomes counted by category."""
    found: dict[str, dict[str, int]] = {}
    for category, outcome in pairs:
        counts = found.setdefault(category, dict.fromkeys(("pass", "partial", "fail", "unscored"), 0))
        counts[outcome] += 1
    return found


def missing_arms(facts: Facts, measured: Mapping[str, Any], suite: str) -> Iterator[str]:
    """A gap where only some of the arms were asked."""
    if missing := [arm for arm in facts.recipe.redteam.arms if arm not in measured]:
        yield ""
        yield f"{', '.join(missing)}: {gap(facts.command(suite))}"


def drift(facts: Facts) -> Iterator[str]:
    """Mean drift by kind, controls last, and the paired differences."""
    drifts = facts.evidence.drifts
    if not drifts:
        yield gap(facts.command(DRIFT_SUITE))
        return
    yield "| Kind of conversation | " + " | ".join(drifts) + " |"
    yield "|---|" + "---|" * len(drifts)
    for kind in dict.fromkeys(kind for arm in drifts.values() for kind in arm.by_kind()):
        yield f"| {kind} | " + " | ".join(deviations(arm.by_kind().get(kind)) for arm in drifts.values()) + " |"
    for control, name in ((False, "**all that move personas**"), (True, "**all controls**")):
        yield f"| {name} | " + " | ".join(deviations(arm.of(control=control)) for arm in drifts.values()) + " |"
    yield (
        "| **the first less the second** | " + " | ".join(deviations(above_controls(a)) for a in drifts.values()) + " |"
    )
    levels = [f"{name} {'not kept' if arm.alarm is None else f'{arm.alarm:+.2f}'}" for name, arm in drifts.items()]
    yield ""
    yield f"Level that 1 in 100 ordinary answers of the model exceeds: {', '.join(levels)}."
    yield ""
    yield "| Arms | Conversations | Difference in drift (95%) | p after Holm |"
    yield "|---|---|---|--:|"
    for one in facts.drifts:
        which = "controls" if one.control else "those that move personas"
        yield f"| {one.b} against {one.a} | {which} | {deviations(one.mean)} | {p_text(one.p)} |"
    for a, b in PAIRS:
        if {a, b} <= drifts.keys():
            beyond = deviations(difference_beyond_controls(drifts[a], drifts[b]))
            yield f"| {b} against {a} | the first less the second | {beyond} | |"
    yield from missing_arms(facts, drifts, DRIFT_SUITE)


def cap_rate(facts: Facts) -> Iterator[str]:
    """How often and how hard the cap acts, and how faithful the compiled one is."""
    cap, fidelity = facts.cap, read_loose(facts.run / "capped" / "fidelity.json")
    if not cap:
        yield gap(f"karma run recipes/{facts.recipe.name}.toml --to axis")
        return
    yield "| Held-out responses | Tokens capped (95%) | Dose: mean change in the activation's length |"
    yield "|---|--:|--:|"
    kinds = cap.get("measured", {}).get("heldout", {}).get("kinds", {})
    for kind, words in KINDS.items():
        if kind in kinds:
            yield f"| {words} | {capped_share(kinds[kind])} | {kinds[kind]['dose']['mean']:.2%} |"
    yield f"| all | {capped_share(cap)} | {cap['dose']['mean']:.2%} |"
    if fidelity:
        yield ""
        yield (
            "The arm `capped` runs the cap compiled into its weights. On held-out text its KL from the hooked cap is "
            f"{fidelity['all']['kl_ratio']:.4f} of that of no cap."
        )


JUDGES = "python benchmarks/judges.py"
TWINS_JUDGES = (
    f"{JUDGES} --kind benign --labelled FILE --suite {SUITES['benign']} --out results/benchmarks/judges_benign.json"
)
KINDS = {
    "deployment": "ordinary prompts under the persona's prompt",
    "generic": "ordinary prompts under generic prompts, where it should act",
    "adversarial": "adversarial prompts under the persona's prompt",
}


def judges(facts: Facts) -> Iterator[str]:
    """Agreement of every judge, on labels and on outputs of the embedded model."""
    rows = facts.judges.get("judges")
    if not rows:
        yield gap(JUDGES)
        return
    yield from head(
        "Judge",
        "Kappa on labels it was not tuned on (95%)",
        "Kappa on outputs of the embedded model (95%)",
        "Outputs it leaves unscored",
    )
    for row in rows:
        own = "**" if fits(row, facts.recipe) else ""
        outputs = row.get("outputs")
        unscored = (
            "" if outputs is None else f"{sum(c['unscored'] for c in outputs['confusion'].values())} of {outputs['n']}"
        )
        found = gap(JUDGES) if outputs is None else kappa(outputs)
        yield f"| {own}`{row['spec']}`{own} | {kappa(row['half B'])} | {found} | {unscored} |"
    raters = facts.judges.get("raters")
    if raters:
        yield ""
        said = f"Two readings of {raters['n']} of the answers agree at kappa {kappa(raters)}"
        yield f"{said}; both were a language model's."
