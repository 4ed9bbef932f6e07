"""The releases on the embedded model against each other: one suite, one file of labels for the answers of all of them.

Each release's own labels came from raters of its own, so that its rates do not compare with those of another. Here all
answers of all arms to the shared suite were read on one sheet, by raters who saw neither release nor arm:

    karma redteam sheet results/smollm2-v*/redteam/* --suite suites/standard-58.jsonl --out sheet.jsonl
    python tools/results.py releases LABELS      what `karma redteam rated` made of it -> results/releases/

The weights of the base are the same in every release, so its arms tell how far two samplings of one model lie apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evidence_page.facts import failing
from evidence_page.writing import gap, head, kappa, p_text, points, share
from karma_electric.core.artifact import hash_file, read_json, read_manifest, seal, write_json
from karma_electric.redteam.comparing import compare_pair, correct_for_many, rates_of
from karma_electric.redteam.labelled import load_labelled, rater_agreement
from karma_electric.redteam.paired import Seeded
from karma_electric.redteam.scenario import Scenario, load_suite
from karma_electric.redteam.scorers.labels import NOT_RATED, LabelsScorer
from karma_electric.redteam.scorers.protocol import Case
from karma_electric.redteam.seeds import read_seeds

RELEASES = ("smollm2-v1", "smollm2-v2", "smollm2-v3")  # recipes of the releases, on the embedded model
ARMS = ("base", "tuned", "capped")
SUITE = "suites/standard-58.jsonl"  # v3 was asked standard-200, which holds it
FOLDER, RATES = "releases", "rates.json"
WITHIN = (("base", "tuned"), ("tuned", "capped"))
ACROSS = (("smollm2-v1", "smollm2-v2"), ("smollm2-v2", "smollm2-v3"), ("smollm2-v1", "smollm2-v3"))


def write(labels: str, root: Path) -> Path:
    """Judge every arm of every release under `root`/results by `labels`, and write results/releases. Returns it.

    Raises:
        SystemExit: an answer is not among the labels.
    """
    folder = root / "results" / FOLDER
    found = measure(labels, root)
    folder.mkdir(exist_ok=True)
    write_json(folder / RATES, found)
    inputs = {name: hash_file(root / name) for name in (SUITE, labels)}
    for name in _names():
        inputs[name] = read_manifest(root / "results" / _arm(name)).id
    seal(folder, kind="releases", config={"labels": labels, "suite": SUITE}, inputs=inputs)
    return folder


def measure(labels: str, root: Path) -> dict[str, Any]:
    """Rates of every arm and all comparisons, corrected together (Holm), as JSON."""
    suite, scorer = load_suite(root / SUITE), LabelsScorer(str(root / labels))
    found = {name: _judged(root / "results" / _arm(name), suite, scorer) for name in _names()}
    pairs = [(f"{release}/{a}", f"{release}/{b}") for release in RELEASES for a, b in WITHIN]
    pairs += [(f"{a}/{arm}", f"{b}/{arm}") for arm in ARMS for a, b in ACROSS]
    failed = {name: failing(seeded, scored=False) for name, seeded in found.items()}
    reports = correct_for_many(
        [compare_pair((a, arms[a]), (b, arms[b]), None) for arms in (found, failed) for a, b in pairs]
    )
    agree = rater_agreement(load_labelled(root / labels, suite))
    return {
        "suite": SUITE,
        "labels": labels,
        "scenarios": len(suite),
        "raters": None if agree is None else {key: value for key, value in asdict(agree).items() if key != "pairs"},
        "arms": {name: asdict(rates_of(name, seeded, None)) for name, seeded in found.items()},
        "comparisons": [asdict(report) for report in reports[: len(pairs)]],
        "failures": [asdict(report) for report in reports[len(pairs) :]],  # of all answers, the unscored as not failed
    }


def table(root: Path) -> Iterator[str]:
    """What every arm of every release did, and what may be said of them against each other."""
    file = root / "results" / FOLDER / RATES
    if not file.is_file():
        yield gap("python tools/results.py releases LABELS")
        return
    found = read_json(file)
    yield from head(
        "Release", "Arm", "Passed of scored (95%)", "Answers", "Pass", "Partial", "Fail", "Unscored", right=5
    )
    for name, arm in found["arms"].items():
        release, which = name.split("/")
        counts = arm["summary"]["counts"]
        cells = [str(counts[outcome]) for outcome in ("pass", "partial", "fail", "unscored")]
        yield f"| {release} | {which} | {passed(arm)} | {arm['summary']['n']} | {' | '.join(cells)} |"
    yield ""
    raters = found["raters"]
    yield (
        f"All answers to `{found['suite']}` were labelled together in `{found['labels']}`: two raters agree on "
        f"{raters['n']:,} of them at kappa {kappa(raters)}. P values are corrected for all "
        f"{2 * len(found['comparisons'])} comparisons (Holm)."
    )
    yield ""
    yield from head(
        "Comparison",
        "Scored in both",
        "Passed, of those (95%)",
        "p after Holm",
        "At most, by the unscored",
        "Failed, of all answers (95%)",
        "p after Holm",
    )
    for pair, failures in zip(found["comparisons"], found["failures"], strict=True):
        yield _line(pair, failures)


def passed(arm: dict[str, Any]) -> str:
    """Share passed of the scored answers with its interval, and how many those are."""
    rate = arm["scored"]
    span = f" ({share(rate['low'])} to {share(rate['high'])})" if rate["n"] else ""
    return f"{share(rate['value'])}{span} of {rate['n']}"


def _line(pair: dict[str, Any], failures: dict[str, Any]) -> str:
    result = pair["result"]
    of = f"{result['n_pairs']} answers to {result['n_scenarios']} scenarios"
    bounds = result["bounds"]
    most = f"{points(bounds['lowest'])} to {points(bounds['highest'])}"
    cells = [_difference(pair), p_text(pair["p_holm"]), most, _difference(failures), p_text(failures["p_holm"])]
    return f"| {pair['b']} against {pair['a']} | {of} | {' | '.join(cells)} |"


def _difference(pair: dict[str, Any]) -> str:
    result = pair["result"]
    if result["interval"] is None:
        return "none"
    low, high = result["interval"]
    return f"{points(result['difference'])} points ({points(low)} to {points(high)})"


def _names() -> list[str]:
    return [f"{release}/{arm}" for release in RELEASES for arm in ARMS]


def _arm(name: str) -> Path:
    release, arm = name.split("/")
    return Path(release) / "redteam" / arm


def _judged(arm: Path, suite: list[Scenario], scorer: LabelsScorer) -> Seeded:
    """Verdicts by seed on the shared suite, by the labels alone: those that the arm was given before do not count."""
    verdicts = {}
    for seed, result in read_seeds(arm).items():
        given = [(scenario, result.answers[scenario.id]) for scenario in suite]
        cases = [Case(scenario, tuple(turns[turn].text for turn in sorted(turns))) for scenario, turns in given]
        verdicts[seed] = scorer.score(cases)
    missing = sum(verdict.evidence == NOT_RATED for of_seed in verdicts.values() for verdict in of_seed)
    if missing:
        raise SystemExit(f"error: {scorer.spec} has no label for {missing} answers of {arm}. Rate a sheet of all arms.")
    return verdicts
