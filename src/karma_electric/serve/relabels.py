"""Labels of a run's answers, for the page: redteam/relabels.py on a `Run`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from karma_electric.core.errors import MissingError
from karma_electric.redteam import relabels
from karma_electric.redteam.relabels import Judged, Relabel
from karma_electric.redteam.seeds import SeedResult
from karma_electric.serve.run_folders import REDTEAM, Run


def find_case(run: Run, scenario_id: str, arm: str, seed: int) -> Judged:
    """The verdict on a scenario, and the answers it rests on.

    Raises:
        MissingError: the run has none.
    """
    if arm not in run.arms:
        raise MissingError(f"The run {run.name} has no arm {arm!r}.", f"Arms: {', '.join(run.arms)}.")
    results = run.arms[arm].seeds
    if seed not in results:
        raise MissingError(f"{arm} was not run under seed {seed}.", f"Seeds: {', '.join(map(str, results))}.")
    if scenario_id not in results[seed].verdicts:
        raise MissingError(f"{arm} was not asked {scenario_id!r}.", "Take an id from the list of scenarios.")
    return Judged(arm, seed, results[seed].verdicts[scenario_id], results[seed].answers.get(scenario_id, {}))


def add_relabel(
    run: Run, *, scenario_id: str, arm: str, seed: int, outcome: str, reason: str, rater: str = ""
) -> Relabel:
    """Append a label to the run's file. Raises what `find_case` and `redteam.relabels.add_relabel` do."""
    judged = find_case(run, scenario_id, arm, seed)
    return relabels.add_relabel(run.folder / REDTEAM, judged, outcome, reason=reason, rater=rater)


def read_relabels(run: Run) -> list[Relabel]:
    """Every label of the run that holds, oldest first. See `redteam.relabels.read_relabels`."""
    return relabels.read_relabels(run.folder / REDTEAM, _results(run))


def as_labelled(run: Run) -> Iterator[dict[str, Any]]:
    """The last label of each answer in the form of labelled answers, which calibrate a judge."""
    for row in relabels.as_labelled(run.name, read_relabels(run), _results(run)):
        yield {key: value for key, value in asdict(row).items() if value not in ((), [])}


def _results(run: Run) -> Mapping[str, Mapping[int, SeedResult]]:
    return {name: arm.seeds for name, arm in run.arms.items()}
