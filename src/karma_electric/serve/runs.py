"""HTTP access to red-team runs: what the page /runs.html reads, and where it puts people's labels.

Everything is below /karma/runs; who may ask is decided before it comes here (see guard.py).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import anyio.to_thread
from fastapi import APIRouter, Query, Request, Response
from fastapi.routing import APIRoute
from pydantic import Field

from karma_electric.core.errors import ArtifactError, BusyError, KarmaError, MissingError
from karma_electric.redteam.relabels import LONGEST_RATER, LONGEST_REASON, Relabel
from karma_electric.redteam.signals import Outcome
from karma_electric.serve import looking
from karma_electric.serve.bodies import Body, checked, read_object
from karma_electric.serve.errors import HttpError
from karma_electric.serve.openapi import body_of
from karma_electric.serve.relabels import add_relabel, as_labelled, read_relabels
from karma_electric.serve.run_folders import find_runs, open_run
from karma_electric.serve.settings import Limits

_NAME = Annotated[str, Query(max_length=200)]
_SEED = {"ge": -(2**63), "lt": 2**63}
_PAGE = 500  # cases a request may ask for
_LIMITS = Limits(body_bytes=32 << 10)
_CONFLICT: dict[int | str, dict[str, Any]] = {
    409: {"description": "A file of the run is damaged, or cannot be written"}
}


class NewLabel(Body):
    """A label for the answers of one arm to one scenario."""

    scenario_id: str = Field(max_length=200)
    arm: str = Field(max_length=200)
    seed: int = Field(ge=-(2**63), lt=2**63)
    outcome: Outcome
    reason: str = Field(min_length=1, max_length=LONGEST_REASON)
    rater: str = Field("", max_length=LONGEST_RATER)


def runs_router(root: Path) -> APIRouter:
    """The routes below /karma/runs, for the runs at or below `root`.

    Raises:
        MissingError: there is no such folder.
    """
    if not root.is_dir():
        raise MissingError(f"{root} is no folder.", "Give the folder of your runs: karma serve MODEL --runs runs")
    router = APIRouter(prefix="/karma/runs", tags=["runs"], route_class=_Route, responses=_CONFLICT)

    @router.get("")
    def runs() -> dict[str, Any]:
        """Every run below the folder; one that cannot be read says why."""
        listed = []
        for name in find_runs(root):
            try:
                listed.append(looking.overview(open_run(root, name)))
            except KarmaError as error:
                listed.append({"id": name, "problem": str(error)})
        return {"runs": listed}

    @router.get("/{run}")
    def run_overview(run: str) -> dict[str, Any]:
        """Arms, judge, categories and counts of one run."""
        return looking.overview(open_run(root, run))

    @router.get("/{run}/cases")
    def cases(
        run: str,
        category: _NAME = "",
        difficulty: _NAME = "",
        outcome: _NAME = "",
        arm: _NAME = "",
        text: _NAME = "",
        first: _NAME = "",
        second: _NAME = "",
        change: looking.Change = "",
        labelled: bool = False,
        offset: Annotated[int, Query(ge=0, lt=2**31)] = 0,
        limit: Annotated[int, Query(ge=1, le=_PAGE)] = 100,
    ) -> dict[str, Any]:
        """Scenarios that the filters leave, each with the outcome of every arm."""
        opened = open_run(root, run)
        filters = looking.Filters(category, difficulty, outcome, arm, text, first, second, change, labelled)
        found = looking.list_cases(opened, filters)
        return {"total": len(opened.cases), "matched": len(found), "cases": found[offset : offset + limit]}

    @router.get("/{run}/transcript")
    def one_transcript(
        run: str,
        scenario: _NAME,
        seed: Annotated[int, Query(**_SEED)] = 0,
    ) -> dict[str, Any]:
        """Every turn of one scenario in every arm, evidence marked, with verdicts and labels."""
        return looking.transcript(open_run(root, run), scenario, seed)

    @router.get("/{run}/relabels.jsonl", response_class=Response)
    def relabels(run: str) -> Response:
        """The labels that people gave, oldest first, as they lie in the run's file."""
        return _lines(asdict(label) for label in read_relabels(open_run(root, run)))

    @router.get("/{run}/labelled.jsonl", response_class=Response)
    def labelled_answers(run: str) -> Response:
        """The labels as labelled responses, for `karma judge calibrate --labelled FILE`."""
        return _lines(as_labelled(open_run(root, run)))

    @router.post("/{run}/relabels", status_code=201, openapi_extra=body_of(NewLabel))
    async def relabel(run: str, request: Request) -> Relabel:
        """Label the answers of one arm to one scenario. The verdict stays as it is."""
        label = checked(NewLabel, await read_object(request, _LIMITS))
        try:
            return await anyio.to_thread.run_sync(lambda: add_relabel(open_run(root, run), **label.model_dump()))
        except OSError as error:
            raise HttpError(
                409, f"The label could not be written ({error.strerror}).", "Check the permissions of the run's folder."
            ) from None

    return router


def _lines(rows: Iterable[Mapping[str, Any]]) -> Response:
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    return Response(text, media_type="application/x-ndjson")


class _Route(APIRoute):
    """A route that answers 404 for what is not there and 409 for what cannot be read, where others would answer 500."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def told(request: Request) -> Response:
            try:
                return await handle(request)
            except KarmaError as error:
                kinds = ((MissingError, 404), (ArtifactError, 409), (BusyError, 409))
                status = next((status for kind, status in kinds if isinstance(error, kind)), 400)
                raise HttpError(status, error.message, error.hint) from None
            except OSError as error:  # gone or replaced between two looks at it, or not ours to read
                found = f"A file of the run could not be read ({error.strerror})."
                raise HttpError(409, found, "Ask again; see the folder's permissions.") from None

        return told
