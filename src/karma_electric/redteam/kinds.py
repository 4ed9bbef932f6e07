"""The kinds of suites that arms are asked, told apart by their lines, and who judges each.

attack      redteam/ARM      pass: not done harm with                    the judge that was chosen
benign      benign/ARM       pass: helped; the figure is over-refusal    over-refusal, or raters' labels
capability  capability/ARM   pass: correct                               each item's own check
drift       drift/ARM        not judged: projections on the axis say     none
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from karma_electric.core.artifact import damage, is_whole, read_manifest
from karma_electric.core.errors import ArtifactError, DataError, InputError
from karma_electric.core.progress import Progress
from karma_electric.redteam.runner import COMPLETIONS
from karma_electric.redteam.scenario import Scenario, load_suite
from karma_electric.redteam.scorers.over_refusal import IMPORTED, PREFIX
from karma_electric.redteam.scorers.protocol import Case, Scorer
from karma_electric.redteam.signals import Verdict
from karma_electric.redteam.suite_lines import ASKED, CONVERSATIONS, ITEMS, read_lines

Kind = Literal["attack", "benign", "capability", "drift"]
FOLDERS: dict[Kind, str] = {"attack": "redteam", "benign": "benign", "capability": "capability", "drift": "drift"}
GROUPS = tuple(FOLDERS.values())


class NoScorer:
    """For conversations that are measured in another way: leaves every one unscored, and says so."""

    spec = "drift"
    name = "drift-1"

    def score(
        self, cases: Sequence[Case], *, journal: Path | None = None, progress: Progress | None = None
    ) -> list[Verdict]:
        """See `Scorer`."""
        why = "not judged: drift is measured by projections"
        return [
            Verdict(case.scenario.id, "unscored", self.name, why, len(case.answers) or None, case.scenario.category)
            for case in cases
        ]


def kind_of(path: Path) -> Kind:
    """The kind of a suite's file, by its lines; scenarios whose ids all begin with `benign-` are harmless twins.

    Raises:
        MissingError: no such file.
        DataError: lines of no kind that can be asked, one that lacks a key, or attacks and harmless twins in one file.
    """
    form, rows = read_lines(path)
    if form not in ASKED:
        raise DataError(
            f"{path.name} holds {form.holds}, expected scenarios, capability items or conversations to be asked.",
            "See: karma redteam suites",
        )
    if form is ITEMS:
        return "capability"
    if form is CONVERSATIONS:
        return "drift"
    named = {number: str(row["id"]).startswith(PREFIX) for number, row in rows}
    if all(named.values()):
        return "benign"
    other = next(number for number, twin in named.items() if not twin)
    if any(named.values()):
        twin = next(number for number, twin in named.items() if twin)
        raise DataError(
            f"{path.name} line {twin} is a harmless twin, where helping passes (its id begins with {PREFIX}), and line "
            f"{other} is an attack, where helping fails; expected one kind.",
            "Make two files of it.",
        )
    old = next((number for number, row in rows if str(row["technique"]).startswith(IMPORTED)), None)
    if old is not None:
        raise DataError(
            f"{path.name} line {old} is a harmless twin that an earlier version imported: its id does not begin with "
            f"{PREFIX}, and it would be judged as an attack.",
            "Import it again: karma redteam import FILE OUT.jsonl --format xstest (or jailbreakbench) --benign",
        )
    return "attack"


def require_attacks(path: Path) -> None:
    """Refuse a suite that is not of attacks, where answers would be judged as if it were.

    Raises:
        MissingError: no such file.
        DataError: see `kind_of`.
        InputError: harmless twins, capability items or conversations.
    """
    kind = kind_of(path)
    if kind != "attack":
        what = "harmless twins, where helping is the pass" if kind == "benign" else f"a suite of kind {kind}"
        raise InputError(
            f"{path.name} holds {what}; expected attacks.", f"Ask it: karma redteam run RECIPE --suite {path}"
        )


def read_asked(path: Path) -> list[Scenario]:
    """What a suite of any kind asks, as scenarios.

    Raises:
        MissingError: no such file.
        DataError: the first line that cannot be used.
    """
    kind = kind_of(path)
    if kind == "capability":
        from karma_electric.redteam.capability import load_items
        from karma_electric.redteam.scorers.checked import as_scenarios

        return as_scenarios(load_items(path))
    if kind == "drift":
        from karma_electric.redteam.drift_suite import load_drift_suite

        return [
            Scenario(
                id=one.id,
                category=one.kind,
                technique="control" if one.control else "conversation",
                difficulty="medium",
                turns=one.turns,
                expected="The persona holds.",
                pass_criteria="Not judged.",
                fail_criteria="Not judged.",
                pass_signals=(),
                fail_signals=(),
            )
            for one in load_drift_suite(path)
        ]
    return load_suite(path)


def scorer_for(kind: Kind, path: Path, chosen: Callable[[], Scorer]) -> Scorer:
    """Who judges a suite; `chosen` opens the judge that was chosen for attacks, or for harmless twins."""
    if kind == "capability":
        from karma_electric.redteam.capability import load_items
        from karma_electric.redteam.scorers.checked import CheckedScorer

        return CheckedScorer(load_items(path))
    return NoScorer() if kind == "drift" else chosen()


def ready(
    kind: Kind,
    suite: Path,
    chosen: Callable[[], Scorer],
) -> tuple[list[Scenario], Scorer]:
    """What an arm is asked, and who judges it."""
    scenarios = read_asked(suite)
    return scenarios, scorer_for(kind, suite, chosen)


def reuse_answers(
    config: Mapping[str, Any],
    inputs: Mapping[str, str],
    contents: Mapping[str, str],
    earlier: Path,
    out: Path,
    progress: Progress,
) -> None:
    """Copy the answers of an arm that was asked the same of the same, so that another judge need not ask again.

    Args:
        config: what decides answers and judging; the keys of judging may differ.
        inputs: ids of what the answers are made from.
        contents: content hashes of those of them that are artifacts of the run: the same recipe trained again has the
            same ids and other weights.
        earlier: folder of the arm, finished or not there.
        out: where the arm is made anew.
        progress: told if anything was copied.
    """
    try:
        if not is_whole(earlier):
            return
        manifest = read_manifest(earlier)
    except ArtifactError:
        return  # a damaged manifest: nothing is known of these answers
    same = (
        _without_judging(manifest.config) == _without_judging(config)
        and all(manifest.inputs.get(role) == id_ for role, id_ in inputs.items())
        and all(manifest.parents.get(role) == digest for role, digest in contents.items())
    )
    if not same or damage(earlier):
        return
    for file in earlier.rglob(COMPLETIONS):
        place = out / file.relative_to(earlier)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, place)
    progress.say("  the answers are there already: only judged anew")


def _without_judging(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key not in ("scorer", "scorer_samples")}


def require_one_of_a_kind(paths: Sequence[Path]) -> dict[Kind, Path]:
    """Suites by kind.

    Raises:
        InputError: two of one kind: their arms would lie in one folder.
    """
    found: dict[Kind, Path] = {}
    for path in paths:
        kind = kind_of(path)
        if kind in found:
            raise InputError(
                f"{path.name} and {found[kind].name} are both suites of kind {kind}, expected one of a kind.",
                "Ask the other in a run of its own: karma redteam run RECIPE --suite FILE --out FOLDER",
            )
        found[kind] = path
    return found
