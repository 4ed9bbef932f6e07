"""`karma judge train`: the semantic judge from labelled answers."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from karma_electric.redteam.labelled import Labelled
    from karma_electric.redteam.scenario import Scenario

SUITES = ["suites/starter-30.jsonl", "suites/standard-200.jsonl"]


def train(
    labelled: Annotated[
        list[str], typer.Argument(metavar="LABELLED... OUT", help="Files of labelled answers, and the folder to write.")
    ],
    suite: Annotated[
        list[str] | None,
        typer.Option("--suite", metavar="FILE", help="A suite that they answer; the shipped attacks when not given."),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the folds.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace a judge that was made from something else.")] = False,
    json_: Annotated[bool, typer.Option("--json", help="Print what is known of the judge as JSON.")] = False,
) -> None:
    """Train the semantic judge, and measure it on scenarios it has not seen (nested cross-validation).

    Use it with: karma redteam run RECIPE --scorer semantic:OUT

    Example: karma judge train suites/labelled-*.jsonl my-judge
    """
    import json

    from karma_electric.core.artifact import hash_file, hash_text, read_json
    from karma_electric.core.errors import InputError
    from karma_electric.core.extras import require
    from karma_electric.core.progress import Console
    from karma_electric.core.resources import find
    from karma_electric.models.sentences import SentenceModel
    from karma_electric.pipeline import Stage, make_artifacts
    from karma_electric.redteam.scorers.features import PLAIN, VERSION
    from karma_electric.redteam.scorers.training import train as train_judge
    from karma_electric.redteam.scorers.weights import ABOUT, KIND

    require("data")
    if len(labelled) < 2:
        raise InputError(
            "One path was given, expected labelled answers and a folder.",
            "For example: karma judge train suites/labelled-*.jsonl my-judge",
        )
    *names, out = labelled
    folder = Path(out).absolute()
    if folder.suffix == ".jsonl" or folder.is_file():
        raise InputError(f"{out} is a file, expected the folder to write as the last argument.", "Name a folder.")
    files, suites = [find("suites", name) for name in names], [find("suites", name) for name in suite or SUITES]
    scenarios = read_suites(suites)
    rows = read_labels(files, scenarios)
    sentences = SentenceModel.load()
    stage = Stage(
        folder.name,
        KIND,
        {"judge": "semantic", "features": VERSION, "names": hash_text("\n".join(PLAIN))[:16], "seed": seed},
        {
            "labelled": hash_text("".join(hash_file(file) for file in files)),
            "suite": hash_text("".join(hash_file(file) for file in suites)),
            "sentence_model": sentences.fingerprint,
        },
        lambda place, progress: _discard(train_judge(rows, scenarios, sentences, place, seed=seed, progress=progress)),
        resumable=True,
    )
    make_artifacts(folder.parent, [stage], force=force, progress=Console())
    about = read_json(folder / ABOUT)
    if json_:
        print(json.dumps(about, indent=2, ensure_ascii=False))
        return
    for line in describe(about):
        print(line)


def read_suites(files: list[Path]) -> list[Scenario]:
    """The scenarios of several suites; one that stands in two is the same in both, or an error."""
    from karma_electric.core.errors import DataError
    from karma_electric.redteam.scenario import load_suite

    found: dict[str, Scenario] = {}
    for file in files:
        for scenario in load_suite(file):
            if found.setdefault(scenario.id, scenario) != scenario:
                raise DataError(
                    f"{file.name}: the scenario {scenario.id!r} stands in another suite with other words.",
                    "Give suites whose scenarios have ids of their own.",
                )
    return list(found.values())


def read_labels(files: list[Path], scenarios: list[Scenario]) -> list[Labelled]:
    """Labelled answers of several files; ids are unique across them."""
    from karma_electric.core.errors import DataError
    from karma_electric.redteam.labelled import load_labelled

    found: dict[str, Labelled] = {}
    for file in files:
        for row in load_labelled(file, scenarios):
            if row.id in found:
                raise DataError(f"{file.name}: id {row.id!r} is in another file as well.", "Ids are unique.")
            found[row.id] = row
    return list(found.values())


def describe(about: dict[str, Any]) -> list[str]:
    """What is known of a judge, in lines."""
    lines = [
        f"semantic judge from {about['labels']} labels on {len(about['scenarios'])} scenarios "
        f"({about['groups']} groups that ask different things)",
        f"{'on scenarios it has not seen':<36} {'n':>4} {'kappa':>6}  {'95% interval':<14} {'quadratic':>9} "
        f"{'accuracy':>9}",
    ]
    for name, part in about["cross_validation"]["parts"].items():
        low, high = part["kappa_interval"] or (float("nan"), float("nan"))
        quadratic = "none" if part["weighted_kappa"] is None else f"{part['weighted_kappa']:.2f}"
        kappa = "none" if part["kappa"] is None else f"{part['kappa']:.2f}"
        lines.append(
            f"  {name:<34} {part['n']:>4} {kappa:>6}  {f'{low:.2f} to {high:.2f}':<14} {quadratic:>9} "
            f"{part['accuracy']:>9.0%}"
        )
    for name, part in about["left_out"].items():
        lines.append(f"  {f'all of {name} left out':<34} {part['labels']:>4} {part['kappa']:>6.2f}")
    curve = ", ".join(f"{point['labels']} labels {point['kappa']:.2f}" for point in about["learning_curve"])
    lines.append(f"kappa by number of labels: {curve}")
    rated = about["rater_agreement"]
    if rated is None:
        lines.append("the answers have one rating each: how far raters agree is not known")
    else:
        lines.append(f"two ratings of {rated['n']} answers agree at kappa {rated['kappa']:.2f}")
    return lines


def _discard(_: object) -> None:
    """A stage returns nothing."""
