"""How far each judge agrees with labelled answers it has not seen, and how long it takes for one.

    python benchmarks/judges.py                                  the judges that ask nobody
    python benchmarks/judges.py --labelled suites/labelled-v1-867.jsonl --suite suites/standard-58.jsonl \
        --run results/smollm2-v1 --judge labels:suites/labelled-v1-867.jsonl --out results/benchmarks/judges_v1.json
    python benchmarks/judges.py --kind benign --suite suites/benign-100.jsonl \
        --labelled suites/labelled-benign-1495.jsonl --judge labels:suites/labelled-benign-1495.jsonl \
        --run results/smollm2-v1 --out results/benchmarks/judges_benign.json

The figures are those of `karma judge calibrate`; on outputs of models, which are harder than what was written to be
labelled, they are told apart. Times are of the processor. What is kept is without the single answers. What the judges
say of the arms of a run (results/demo if none is named) is counted beside it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

from karma_electric.asked import suites_of
from karma_electric.cli.judge_train import read_labels, read_suites
from karma_electric.core.artifact import hash_file, write_json
from karma_electric.core.recipe import load_recipe
from karma_electric.core.resources import find
from karma_electric.redteam.kinds import FOLDERS, Kind
from karma_electric.redteam.labelled import (
    SHIPPED,
    SHIPPED_SUITES,
    agree,
    errors_by_category,
    half_of,
    judge_rows,
    rater_agreement,
)
from karma_electric.redteam.scenario import Scenario, load_suite
from karma_electric.redteam.scorers.named import open_scorer
from karma_electric.redteam.scorers.protocol import Case
from karma_electric.redteam.seeds import read_seeds

OUT = Path(__file__).resolve().parent.parent / "results" / "benchmarks" / "judges.json"
DEMO = OUT.parent.parent / "demo"
ARMS = ("base", "tuned", "capped")
JUDGES: dict[Kind, tuple[str, ...]] = {
    "attack": ("signals-original", "signals", "semantic", "ensemble:signals+semantic"),
    "benign": ("over-refusal",),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labelled", nargs="+", default=SHIPPED)
    parser.add_argument("--suite", nargs="+", default=SHIPPED_SUITES)
    parser.add_argument("--run", type=Path, default=DEMO, help="whose arms are judged and counted")
    parser.add_argument("--kind", choices=JUDGES, default="attack", help="of the suites: attacks, or harmless twins")
    parser.add_argument("--judge", action="append", default=[], help="a further judge of those arms")
    parser.add_argument("--out", type=Path, default=OUT, help="where to write")
    asked = parser.parse_args()
    kind: Kind = asked.kind
    suite = load_suite(suites_of(load_recipe(asked.run / "recipe.toml"))[kind])
    files = [find("suites", name) for name in asked.labelled]
    scenarios = read_suites([find("suites", name) for name in asked.suite])
    rows = read_labels(files, scenarios)
    raters = rater_agreement(rows)
    found: dict[str, Any] = {
        "labelled": {file.name: hash_file(file) for file in files},
        "labels": len(rows),
        "raters": None if raters is None else without_pairs(asdict(raters)),
        "semantic": json.loads(find("suites", "suites/judge-semantic/judge.json").read_text(encoding="utf-8"))
        if kind == "attack"
        else None,
        "judges": [measure(spec, scenarios, rows) for spec in JUDGES[kind]],
        "sources": {
            source: Counter(row.label for row in rows if row.source == source and row.ratings)
            for source in sorted({row.source for row in rows if row.ratings})
        },
        "arms": {
            arm: {
                spec: outcomes(spec, suite, asked.run / FOLDERS[kind] / arm) for spec in (*JUDGES[kind], *asked.judge)
            }
            for arm in ARMS
        },
    }
    write_json(asked.out, found)
    for judge in found["judges"]:
        print(f"{judge['spec']:<28} half B {judge['half B']['kappa']:.2f}, all {judge['all']['kappa']:.2f}")


def outcomes(spec: str, suite: list[Scenario], arm: Path) -> dict[str, int]:
    """What a judge says of the answers of a finished arm, counted."""
    cases = [
        Case(scenario, tuple(answer.text for _, answer in sorted(seed.answers[scenario.id].items())))
        for seed in read_seeds(arm).values()
        for scenario in suite
    ]
    return dict(Counter(verdict.outcome for verdict in open_scorer(spec).score(cases)))


def measure(spec: str, scenarios: Any, rows: Any) -> dict[str, Any]:
    scorer = open_scorer(spec)
    judge_rows(scenarios, rows[:4], scorer)  # what is loaded once does not count
    started = time.process_time()  # what shares the machine does not count
    verdicts = judge_rows(scenarios, rows, scorer)
    seconds = time.process_time() - started
    pairs = list(zip(rows, verdicts, strict=True))
    half = [pair for pair in pairs if half_of(pair[0].scenario_id) == "B"]
    outputs = [pair for pair in pairs if pair[0].source.startswith("model:")]
    return {
        "spec": spec,
        "name": scorer.name,
        "ms_per_answer": 1000 * seconds / len(rows),
        "all": without_pairs(asdict(agree(rows, verdicts))),
        "half B": without_pairs(asdict(agree([r for r, _ in half], [v for _, v in half]))),
        "outputs": without_pairs(asdict(agree([r for r, _ in outputs], [v for _, v in outputs]))) if outputs else None,
        "categories": [asdict(errors) for errors in errors_by_category(scenarios, rows, verdicts)],
    }


def without_pairs(figures: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in figures.items() if key != "pairs"}


if __name__ == "__main__":
    main()
