"""`karma redteam relabel`: a person corrects verdicts, and the corrections become labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from karma_electric.cli.options import require_place

if TYPE_CHECKING:
    from karma_electric.redteam.arms import ArmFolder
    from karma_electric.redteam.relabels import Judged
    from karma_electric.redteam.signals import Outcome

_KEYS: dict[str, Outcome] = {"p": "pass", "a": "partial", "f": "fail", "u": "unscored"}


def relabel(
    run: Annotated[
        list[str],
        typer.Argument(metavar="RUN [ARM ...]", help="A run, all its arms or those named; or folders of arms."),
    ],
    outcome: Annotated[
        list[str] | None,
        typer.Option("--outcome", metavar="OUTCOME", help="Only verdicts of this outcome; may be given again."),
    ] = None,
    rater: Annotated[str, typer.Option("--rater", help="Who corrects, as labels will say.")] = "person",
    again: Annotated[bool, typer.Option("--again", help="Show answers that were corrected before, too.")] = False,
    export: Annotated[
        Path | None,
        typer.Option(
            "--export", metavar="LABELLED", help="Add the corrections to a file of labelled answers; ask nothing."
        ),
    ] = None,
) -> None:
    """Read answers one by one, the least sure verdicts first, and correct what is wrong; stop at any time.

    Corrections lie in redteam/relabels.jsonl of the run, with those of the page (karma serve --runs). Rates stay as
    judged: corrections feed the labels that judges are measured on (--export, then karma judge calibrate or train).

    Example: karma redteam relabel runs/demo tuned --outcome unscored
    """
    from karma_electric.core.errors import InputError
    from karma_electric.redteam.arms import read_arms
    from karma_electric.redteam.signals import OUTCOMES

    for name in outcome or ():
        if name not in OUTCOMES:
            raise InputError(f"--outcome is {name!r}, expected one of {', '.join(OUTCOMES)}.", "Correct it.")
    if not rater.strip():
        raise InputError("--rater is empty, expected who corrects.", "For example --rater anna")
    arms = [arm for folder in folders_of(run) for arm in read_arms([folder])]
    if export is not None:
        _export(arms, export)
        return
    for number, arm in enumerate(arms):
        if not _go_through(arm, number, outcome or list(OUTCOMES), rater=rater, again=again):
            break


def folders_of(places: list[str], *, group: str = "redteam") -> list[Path]:
    """The arms meant, below a run's folder `group`: of a run that is named alone, all."""
    from karma_electric.core.artifact import MANIFEST
    from karma_electric.core.errors import MissingError
    from karma_electric.redteam.arms import find_arms
    from karma_electric.redteam.runner import SUMMARY

    whole = Path(places[0])
    if len(places) == 1 and (whole / group).is_dir():
        found = sorted(p.parent for p in whole.glob(f"{group}/*/{SUMMARY}") if (p.parent / MANIFEST).is_file())
        if not found:
            raise MissingError(f"{whole} has no finished arm.", "Make some: karma redteam run RECIPE")
        return found
    return find_arms(places, group=group)


def _go_through(arm: ArmFolder, number: int, outcomes: list[str], *, rater: str, again: bool) -> bool:
    """Show the answers of one arm; False once the person stops. The arm's name is not shown: see docs/judges.md."""
    from karma_electric.redteam.relabels import add_relabel, read_relabels, to_look_at

    name, place = arm.folder.name, arm.folder.parent
    known = set() if again else {(r.scenario_id, r.seed) for r in read_relabels(place, {name: arm.seeds})}
    todo = [one for one in to_look_at(name, arm.seeds, outcomes) if (one.verdict.scenario_id, one.seed) not in known]
    for position, one in enumerate(todo, 1):
        _show(one, f"arm {number + 1}, {position} of {len(todo)}")
        given = _ask()
        if given is None:
            return False
        if given == "":
            continue
        reason = _line("why, in a line: ")
        if reason is None:
            return False
        made = add_relabel(place, one, _KEYS[given], reason=reason.strip() or "no reason was given", rater=rater)
        print(f"  {made.judged} -> {made.outcome}")
    return True


def _show(one: Judged, title: str) -> None:
    from karma_electric.core.printable import printable

    verdict = one.verdict
    print(f"\n--- {title}: {verdict.scenario_id}")
    for _, answer in sorted(one.answers.items()):
        print(f"\nperson: {printable(answer.prompt)}\n\nanswer: {printable(answer.text) or '(empty)'}")
    sure = "" if verdict.confidence is None else f", confidence {verdict.confidence:.2f}"
    print(f"\njudged {verdict.outcome}{sure} by {verdict.scorer}: {printable(verdict.evidence)}")


def _ask() -> str | None:
    """A key of _KEYS, an empty text for the next answer, None to stop."""
    while True:
        said = _line("[p]ass, p[a]rtial, [f]ail, [u]nscored, enter for the next, [q]uit: ")
        if said is None or said.strip().lower() == "q":
            return None
        key = said.strip().lower()
        if key == "" or key in _KEYS:
            return key
        print(f"{key[:20]!r} is none of p, a, f, u, q.")


def _line(question: str) -> str | None:
    try:
        return input(question)
    except EOFError:
        print()
        return None


def _export(arms: list[ArmFolder], target: Path) -> None:
    """Add corrections to a file of labelled answers; one that is there already, by its id, is left as it is."""
    import json
    from dataclasses import asdict

    from karma_electric.core.artifact import write_atomic
    from karma_electric.core.jsonl import read_jsonl
    from karma_electric.redteam.relabels import as_labelled, read_relabels

    require_place(target, "--export")
    kept = [row for _, row in read_jsonl(target)] if target.exists() else []
    ids = {row.get("id") for row in kept if isinstance(row, dict)}
    made = []
    for arm in arms:
        place, results = arm.folder.parent, {arm.folder.name: arm.seeds}
        for row in as_labelled(place.parent.resolve().name, read_relabels(place, results), results):
            if row.id not in ids:
                made.append({key: value for key, value in asdict(row).items() if value not in ((), [])})
    write_atomic(target, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in [*kept, *made]))
    print(f"{len(made)} corrections added to {target}, which holds {len(kept) + len(made)} labelled answers")
    if made:
        print(f"Next: karma judge calibrate --labelled {target} --suite SUITE")
