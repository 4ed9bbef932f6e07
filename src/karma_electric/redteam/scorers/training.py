"""Trains the semantic judge on labelled answers, and writes what it is worth beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from karma_electric.core.artifact import write_atomic, write_json
from karma_electric.core.errors import DataError
from karma_electric.core.progress import Progress
from karma_electric.redteam import evidence
from karma_electric.redteam.agreement import Agreement, agreement
from karma_electric.redteam.labelled import Labelled, half_of, rater_agreement
from karma_electric.redteam.scenario import Scenario
from karma_electric.redteam.scorers import fitting
from karma_electric.redteam.scorers.features import EXEMPLARS, PLAIN, VERSION, features, look
from karma_electric.redteam.scorers.fitting import Data
from karma_electric.redteam.scorers.protocol import Case
from karma_electric.redteam.scorers.weights import ABOUT, PREDICTIONS, TENSORS, Prediction, decide, key_of, save_tensors
from karma_electric.redteam.signals import OUTCOMES, Outcome

if TYPE_CHECKING:
    from karma_electric.models.sentences import SentenceModel

FEWEST_SCENARIOS = 2 * fitting.OUTER
_SHARES = (0.25, 0.5, 0.75, 1.0)  # of the scenarios of a fit, for the learning curve
_DRAWS = 3
_LEAST_OF_A_KIND = 10  # answers from which a part of the labels is reported by itself


def train(
    rows: Sequence[Labelled],
    scenarios: Sequence[Scenario],
    sentences: SentenceModel,
    out: Path,
    *,
    seed: int,
    progress: Progress,
) -> dict[str, Any]:
    """Fit the judge, measure it on scenarios that fits have not seen, and write both to `out`.

    Args:
        rows: labelled answers.
        scenarios: those that they answer.
        sentences: the sentence model.
        out: folder, made if absent.
        seed: of the folds.
        progress: told what is done.

    Returns:
        What judge.json holds.

    Raises:
        DataError: too few scenarios, or an outcome that no label has.
    """
    import numpy as np

    _check(rows)
    by_id = {scenario.id: scenario for scenario in scenarios}
    cases = [Case(by_id[row.scenario_id], row.all_answers) for row in rows]
    seen, exemplars = look(cases, lambda texts: sentences.encode(texts, progress))
    vectors, plain = features(seen, exemplars)
    groups = fitting.groups_of([row.scenario_id for row in rows], np.stack([one.prompt_vector for one in seen]))
    readable = [_is_readable(case) for case in cases]
    data = Data(vectors, plain, np.array([OUTCOMES.index(row.label) for row in rows]), groups)
    chosen = fitting.choose(data, seed=seed)
    weights = fitting.fit(data, chosen)
    progress.say(f"  {len(rows)} answers to {len(set(groups.tolist()))} groups of scenarios: cross-validating")
    found, thresholds = fitting.nested(data, seed=seed)
    predictions = [
        _prediction(row, probabilities, threshold, ok)
        for row, probabilities, threshold, ok in zip(rows, found, thresholds, readable, strict=True)
    ]
    about = {
        "judge": "semantic-1",
        "features": VERSION,
        "plain": list(PLAIN),
        "exemplars": {kind: list(texts) for kind, texts in EXEMPLARS.items()},
        "sentence_model": sentences.fingerprint,
        "outcomes": list(OUTCOMES),
        "labels": len(rows),
        "labels_by_outcome": {outcome: sum(row.label == outcome for row in rows) for outcome in OUTCOMES},
        "sources": _count(row.source for row in rows),
        "raters": sorted({row.rater for row in rows}),
        "rater_agreement": _figures(rater_agreement(rows)),
        "scenarios": sorted({row.scenario_id for row in rows}),
        "groups": len(set(groups.tolist())),
        "same_question": fitting.SAME_QUESTION,
        "chosen": asdict(chosen),
        "cross_validation": _measured(rows, predictions, found, data),
        "learning_curve": _learning_curve(data, readable, chosen, seed),
        "left_out": _left_out(rows, by_id, data, readable, chosen),
        "seed": seed,
    }
    out.mkdir(parents=True, exist_ok=True)
    save_tensors(weights, out / TENSORS)
    import json

    write_atomic(out / PREDICTIONS, "".join(json.dumps(asdict(one), ensure_ascii=False) + "\n" for one in predictions))
    write_json(out / ABOUT, about)
    return about


def _check(rows: Sequence[Labelled]) -> None:
    scenarios = {row.scenario_id for row in rows}
    if len(scenarios) < FEWEST_SCENARIOS:
        raise DataError(
            f"The labels are about {len(scenarios)} scenarios, at least {FEWEST_SCENARIOS} are needed: answers to one "
            "scenario are never on both sides of a cross-validation.",
            "Label answers to more scenarios.",
        )
    for outcome in OUTCOMES:
        having = {row.scenario_id for row in rows if row.label == outcome}
        if len(having) < fitting.INNER:
            raise DataError(
                f"The label {outcome!r} is given to answers of {len(having)} scenarios, at least {fitting.INNER} are "
                "needed.",
                f"Label more answers that are {outcome}.",
            )


def _is_readable(case: Case) -> bool:
    """Whether the judge would look at it at all; what it leaves unscored by rule is unscored here too."""
    return evidence.incoherence(evidence.normalise(case.answers[-1]), case.scenario.turns) is None


def _prediction(row: Labelled, probabilities: Any, threshold: float, readable: bool) -> Prediction:
    outcome, confidence = decide(probabilities, float(threshold))
    return Prediction(
        key=key_of(row.scenario_id, row.response),
        outcome=outcome if readable else "unscored",
        confidence=round(confidence, 6),
        probabilities={name: round(float(p), 6) for name, p in zip(OUTCOMES, probabilities, strict=True)},
    )


def _measured(rows: Sequence[Labelled], predictions: Sequence[Prediction], found: Any, data: Data) -> dict[str, Any]:
    """Agreement on scenarios that fits have not seen: of all, of the half no word list was tuned on, of each source."""
    given = [one.outcome for one in predictions]

    def of(chosen: Sequence[int]) -> dict[str, Any]:
        return _figures_of(
            agreement(
                [rows[i].label for i in chosen],
                [given[i] for i in chosen],
                groups=[rows[i].scenario_id for i in chosen],
            )
        )

    everything = range(len(rows))
    parts = {"all": list(everything), "half B": [i for i in everything if half_of(rows[i].scenario_id) == "B"]}
    for source in sorted({_kind(row.source) for row in rows}):
        parts[f"source {source}"] = [i for i in everything if _kind(rows[i].source) == source]
    return {
        "folds": fitting.OUTER,
        "parts": {name: of(part) for name, part in parts.items() if len(part) >= _LEAST_OF_A_KIND},
        "calibration_error": round(fitting.calibration_error(found, data.labels), 4),
        "unscored_though_labelled": sum(
            outcome == "unscored" != row.label for outcome, row in zip(given, rows, strict=True)
        ),
    }


def _learning_curve(data: Data, readable: Sequence[bool], chosen: fitting.Chosen, seed: int) -> list[dict[str, Any]]:
    """Kappa on unseen scenarios against how many scenarios a fit may see: whether more labels would help."""
    import numpy as np

    held = fitting.folds(data.groups, fitting.OUTER, seed)
    curve = []
    for share in _SHARES:
        kappas, sizes = [], []
        for draw in range(1 if share == 1 else _DRAWS):
            generator = np.random.default_rng(seed + draw)
            outcomes = np.zeros(len(data), dtype=int)
            for number in range(fitting.OUTER):
                names = np.unique(data.groups[held != number])
                kept = generator.permutation(names)[: max(2, round(share * len(names)))]
                inside = np.isin(data.groups, kept) & (held != number)
                if len(np.unique(data.labels[inside])) < 2 or not (held == number).any():
                    continue
                outcomes[held == number] = _outcomes(data[inside], data[held == number], chosen)
                sizes.append(int(inside.sum()))
            kappas.append(_kappa(data, outcomes, readable))
        curve.append(
            {"share": share, "labels": round(sum(sizes) / len(sizes)), "kappa": round(sum(kappas) / len(kappas), 4)}
        )
    return curve


def _left_out(
    rows: Sequence[Labelled],
    scenarios: dict[str, Scenario],
    data: Data,
    readable: Sequence[bool],
    chosen: fitting.Chosen,
) -> dict[str, Any]:
    """Kappa on a whole category, or on the outputs of real models, that a fit has seen nothing of."""
    import numpy as np

    by: dict[str, Any] = {}
    parts = {
        f"category {name}": np.array([scenarios[row.scenario_id].category == name for row in rows])
        for name in sorted({scenarios[row.scenario_id].category for row in rows})
    }
    if len({_kind(row.source) for row in rows}) > 1:
        parts["source model"] = np.array([_kind(row.source) == "model" for row in rows])
    for name, outside in parts.items():
        inside = ~outside & ~np.isin(data.groups, data.groups[outside])
        if outside.sum() < _LEAST_OF_A_KIND or len(np.unique(data.labels[inside])) < len(OUTCOMES):
            continue
        outcomes = _outcomes(data[inside], data[outside], chosen)
        kept = [ok for ok, out in zip(readable, outside, strict=True) if out]
        by[name] = {"labels": int(outside.sum()), "kappa": round(_kappa(data[outside], outcomes, kept), 4)}
    return by


def _outcomes(inside: Data, outside: Data, chosen: fitting.Chosen) -> Any:
    import numpy as np

    probabilities = fitting.fit(inside, chosen).probabilities(outside.vectors, outside.plain)
    return np.array([OUTCOMES.index(decide(row, chosen.threshold)[0]) for row in probabilities])


def _kappa(data: Data, outcomes: Any, readable: Sequence[bool]) -> float:
    given: list[Outcome] = [OUTCOMES[o] if ok else "unscored" for o, ok in zip(outcomes, readable, strict=True)]
    return agreement([OUTCOMES[label] for label in data.labels], given, resamples=1).kappa or 0.0


def _figures(found: Agreement | None) -> dict[str, Any] | None:  # pairs are in predictions.jsonl
    return None if found is None else _figures_of(found)


def _figures_of(found: Agreement) -> dict[str, Any]:
    return {key: value for key, value in asdict(found).items() if key != "pairs"}


def _kind(source: str) -> str:
    return source.partition(":")[0]


def _count(names: Any) -> dict[str, int]:
    from collections import Counter

    return dict(sorted(Counter(names).items()))
