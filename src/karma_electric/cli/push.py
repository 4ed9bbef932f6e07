"""`karma push`: a run to a repository of the Hugging Face hub."""

from __future__ import annotations

import json
import sys
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:
    from karma_electric.publishing import Publication
    from karma_electric.uploading import Hub, Standing


class Part(str, Enum):
    """What can be published by itself (typer knows no list of literals)."""

    capped = "capped"
    merged = "merged"
    gguf = "gguf"
    adapter = "adapter"
    axis = "axis"


def push(
    run: Annotated[Path, typer.Argument(help="A run, with its card.")],
    repository: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="Repository of the hub; made if need be.")],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would be published, and send nothing.")] = False,
    only: Annotated[
        list[Part] | None,
        typer.Option(
            "--only",
            metavar="PART",
            help="Publish only capped, merged, gguf, adapter or axis, with the card. Repeatable; all when absent.",
        ),
    ] = None,
    root: Annotated[
        Literal["capped", "merged"],
        typer.Option("--root", help="The model at the top of the repository; the other has a folder."),
    ] = "capped",
    private: Annotated[bool, typer.Option("--private", help="Make the repository, if it is new, private.")] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", metavar="BRANCH", help="Branch; main when absent, made if need be.")
    ] = None,
    endpoint: Annotated[
        str | None, typer.Option("--endpoint", metavar="URL", help="Another hub (HF_ENDPOINT does the same).")
    ] = None,
    json_: Annotated[bool, typer.Option("--json", help="Print files and commit as JSON.")] = False,
) -> None:
    """Publish a run on the Hugging Face hub: models, card, GGUF files, adapter, axis and lineage, in one commit.

    Nothing is sent unless every file is what its manifest says, the card says what the artifacts say, the licence's
    rules are kept and no file holds a credential. A push that was cut off has published nothing; run it again, and it
    sends what is missing. It uses the token of `hf auth login`, or HF_TOKEN.

    Example: karma push runs/demo me/karma-electric-demo --dry-run
    """
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]

    from karma_electric.core.progress import Console
    from karma_electric.publishing import check_repo_id, plan_publication
    from karma_electric.uploading import Hub

    progress = Console()
    check_repo_id(repository)
    hub = Hub(repository, endpoint=endpoint, revision=revision)
    if not dry_run:
        progress.say(f"token of {hub.require_access()} on {hub.endpoint}")  # before gigabytes are hashed
    publication = plan_publication(
        run, repository, only=[part.value for part in only or ()], root=root, progress=progress
    )
    for remark in publication.remarks:
        progress.say(f"note: {remark}")
    if dry_run:
        _show(publication, *_ask(hub), json_=json_)
        return
    if not sys.stderr.isatty():
        disable_progress_bars()
    done = hub.push(publication, private=private, progress=progress)
    if json_:
        report = {"repository": repository, "url": done.url, "commit": done.commit}
        print(json.dumps(report | {"sent": done.sent, "same": done.same, "removed": done.removed}, indent=2))
    elif done.sent or done.removed:
        print(
            f"published {len(done.sent)} files ({len(done.same)} were there, {len(done.removed)} removed): {done.url}"
        )
    else:
        print(f"all {len(done.same)} files were there already: {done.url}")


def _ask(hub: Hub) -> tuple[Standing | None, str]:
    """What the repository has, and in words how that is known."""
    from karma_electric.core.errors import KarmaError

    if hub.offline:
        return None, "not asked, HF_HUB_OFFLINE is set"
    try:
        standing = hub.look()
    except KarmaError as error:
        return None, error.message.rstrip(".")
    if not standing.exists:
        return standing, "not there yet, or not to be seen with this token; it would be made"
    if standing.head is None:
        return standing, f"there, without the branch {hub.revision}, which would be made"
    return standing, f"there, {len(standing.files)} files, {'private' if standing.private else 'public'}"


def _show(publication: Publication, standing: Standing | None, known: str, *, json_: bool) -> None:
    from karma_electric.uploading import beside, compare

    if standing is not None:
        publication = beside(publication, standing)
    states: dict[str, Any] = dict(compare(publication, standing)) if standing is not None else {}
    removed = sorted(path for path, state in states.items() if state == "removed")
    if json_:
        files = [
            {"path": file.path, "bytes": file.bytes, "sha256": file.sha256, "state": states.get(file.path)}
            for file in publication.files
        ]
        report = {"repository": publication.repo_id, "standing": known, "bytes": publication.bytes, "files": files}
        print(json.dumps(report | {"removed": removed, "remarks": publication.remarks}, indent=2))
        return
    for file in publication.files:
        print(f"{file.bytes:>15,}  {file.sha256[:16]}  {states.get(file.path, ''):<8}  {file.path}")
    for path in removed:
        print(f"{'':>15}  {'':<16}  removed   {path}")
    print(f"{publication.bytes:>15,}  bytes in {len(publication.files)} files; nothing was sent")
    print(f"{publication.repo_id}: {known}")
