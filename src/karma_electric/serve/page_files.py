"""The files of the pages: what lies in ui/, as it is."""

from __future__ import annotations

import mimetypes
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.staticfiles import StaticFiles
from starlette.types import Scope

UI = Path(__file__).parent / "ui"

mimetypes.add_type("text/javascript", ".js")  # some systems say otherwise, and browsers then refuse modules


class PageFiles(StaticFiles):
    """Serves the pages. Browsers ask each time whether a file has changed: after an upgrade none is an old one."""

    def __init__(self) -> None:
        super().__init__(directory=UI, html=True)

    async def get_response(self, path: str, scope: Scope) -> Response:
        """What lies at a path. There is nothing that could be written to: any other method finds nothing."""
        if scope["method"] not in ("GET", "HEAD"):
            raise HTTPException(404)
        return await super().get_response(path, scope)

    def file_response(self, *args: Any, **more: Any) -> Response:
        """A file, or that it has not changed."""
        response = super().file_response(*args, **more)
        response.headers["Cache-Control"] = "no-cache"
        return response
