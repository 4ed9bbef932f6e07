"""`karma data review`: a person accepts, rejects or edits candidates, on a screen or by id."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from karma_electric.cli.data.endpoint import Workbench

if TYPE_CHECKING:
    from karma_electric.data.store import Store


def review(
    ctx: typer.Context,
    database: Workbench = Path("workbench.db"),
    status: Annotated[
        str, typer.Option("--status", help="Which to go through: candidate, accepted, rejected or all.")
    ] = "candidate",
    category: Annotated[str | None, typer.Option("--category", help="Only those of this category.")] = None,
    accept: Annotated[
        list[str] | None,
        typer.Option(
            "--accept", metavar="ID", help="Accept without a screen: an id, or several with commas. Repeatable."
        ),
    ] = None,
    reject: Annotated[
        list[str] | None,
        typer.Option(
            "--reject", metavar="ID", help="Reject without a screen: an id, or several with commas. Repeatable."
        ),
    ] = None,
    reason: Annotated[str, typer.Option("--reason", help="Why; --reject needs one.")] = "",
    reviewer: Annotated[
        str | None, typer.Option("--reviewer", help="Who decides; the name of the user when not given.")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="With --accept or --reject: print JSON.")] = False,
) -> None:
    """Go through candidates one at a time, with grades and penalties beside each. Every decision is saved at once.

    Keys: a accepts, r rejects and asks why, e edits, s skips, b goes back, u undoes, / searches, q quits. Decisions and
    earlier versions are kept in the workbench with who made them.

    Example: karma data review --status candidate --category adversarial --db workbench.db
    """
    import getpass
    import json
    import sys

    from karma_electric.cli.data.given import refuse_unused
    from karma_electric.core.errors import InputError
    from karma_electric.core.extras import require
    from karma_electric.data.example import CATEGORIES, STATUSES
    from karma_electric.data.store import Store

    if status not in (*STATUSES, "all"):
        raise InputError(f"--status {status!r} is unknown.", f"Give one of {', '.join(STATUSES)} or all.")
    if category is not None and category not in CATEGORIES:
        raise InputError(f"--category {category!r} is unknown.", f"Give one of {', '.join(CATEGORIES)}.")
    if reviewer is None:
        try:
            reviewer = getpass.getuser()
        except (KeyError, OSError):  # no such user in this container
            reviewer = "unknown"
    if accept or reject:
        why = "--accept and --reject name the candidates"
        refuse_unused(ctx, "status", "category", why=why, hint="Leave it out.")
        if reject and not reason.strip():
            raise InputError("--reject needs a reason.", "Add one: --reason 'invents a statute'")
        with Store.open(database) as store:
            decided = _decide(store, accept or [], reject or [], reason.strip(), reviewer)
        if json_:
            print(json.dumps(decided, indent=2, ensure_ascii=False))
        else:
            print(f"{database}: " + ", ".join(f"{len(ids)} {name}" for name, ids in decided.items() if ids))
        return
    refuse_unused(
        ctx, "reason", "json_", why="decisions are made on the screen", hint="Add --accept ID or --reject ID."
    )
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise InputError(
            "Reviewing needs a terminal, and this is none.",
            "Without one: karma data review --accept ID, or --reject ID --reason TEXT.",
        )
    require("data")  # textual comes with inspect_ai
    from karma_electric.data.review_session import ReviewSession

    with Store.open(database) as store:
        wanted = None if status == "all" else status
        ids = [candidate.id for candidate in store.candidates(status=wanted, category=category)]
        if not ids:
            raise InputError(f"{database} has nothing to review with status {status}.", "Widen --status or --category.")
        from karma_electric.cli.data.review_screen import ReviewApp

        ReviewApp(ReviewSession(store, ids, reviewer)).run()


def _decide(store: Store, accept: list[str], reject: list[str], reason: str, reviewer: str) -> dict[str, list[str]]:
    from karma_electric.core.errors import InputError

    wanted = {"accepted": _split(store, accept), "rejected": _split(store, reject)}
    if both := set(wanted["accepted"]) & set(wanted["rejected"]):
        raise InputError(f"{min(both)!r} is both accepted and rejected.", "Give it once.")
    if not (wanted["accepted"] or wanted["rejected"]):
        raise InputError("--accept and --reject name no candidate.", "Give ids: karma data search WORDS finds them.")
    with store.transaction():  # all of them, or none where one does not exist
        for status, ids in wanted.items():
            for id_ in ids:
                store.decide(id_, status, reason=reason, reviewer=reviewer)
    return wanted


def _split(store: Store, given: list[str]) -> list[str]:
    """Ids, one by one; an id may itself have a comma."""
    ids: list[str] = []
    for text in given:
        whole = store.rows("SELECT 1 FROM candidates WHERE id = ?", (text,))
        ids += [text] if whole else [part.strip() for part in text.split(",") if part.strip()]
    return list(dict.fromkeys(ids))
