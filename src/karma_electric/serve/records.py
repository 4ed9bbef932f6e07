"""One line per request, for the operator: JSON on stderr, without anything that was said."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any

from starlette.types import Scope

_KEY = "karma.record"


@dataclass
class Record:
    """What is noted of a request while it is worked on."""

    id: str
    started: float = field(default_factory=time.monotonic)
    fields: dict[str, Any] = field(default_factory=dict)

    def note(self, **fields: Any) -> None:
        """Note facts: numbers and words of our own, never a client's text."""
        self.fields |= {name: value for name, value in fields.items() if value is not None}

    @property
    def took_s(self) -> float:
        """Time since the request came."""
        return time.monotonic() - self.started

    def write(self, *, method: str, route: str, status: int, client: str) -> None:
        """Write the line."""
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "request": self.id,
            "client": client,
            "method": method,
            "route": route,
            "status": status,
            "took_s": round(self.took_s, 4),
        }
        print(json.dumps(line | self.fields), file=sys.stderr, flush=True)


def record_of(scope: Scope) -> Record:
    """The record of a request; one that is never written where none was begun."""
    record: Record = scope.setdefault(_KEY, Record(id=""))
    return record


def begin_record(scope: Scope, request_id: str) -> Record:
    """Begin the record of a request."""
    scope[_KEY] = record = Record(id=request_id)
    return record
