"""Finds the corpus, suites and recipes that ship with the package: in a wheel, or in a checkout."""

from __future__ import annotations

from pathlib import Path

from karma_electric.core.errors import MissingError

_PACKAGE = Path(__file__).resolve().parent.parent
_KINDS = ("corpus", "suites", "recipes")


def resource_root(kind: str) -> Path:
    """The folder of shipped `corpus`, `suites` or `recipes`."""
    if kind not in _KINDS:
        raise ValueError(f"kind is {kind!r}, expected one of {_KINDS}")
    in_wheel = _PACKAGE / "resources" / kind
    in_checkout = _PACKAGE.parent.parent / kind
    for folder in (in_wheel, in_checkout):
        if folder.is_dir():
            return folder
    raise MissingError(f"The shipped folder {kind!r} was not found.", "Reinstall karma-electric.")


def find(kind: str, name: str, *, relative_to: Path | None = None) -> Path:
    """Resolve `name` to an existing file or folder.

    Tried in this order: as given (relative to `relative_to`, then to the working directory), then among the
    shipped resources of that kind, with and without the kind itself as the first folder (`suites/x.jsonl` and
    `x.jsonl` are the same there).

    Raises:
        MissingError: listing what is shipped under that kind.
    """
    asked = Path(name)
    shipped = resource_root(kind)
    stripped = Path(*asked.parts[1:]) if len(asked.parts) > 1 and asked.parts[0] == kind else asked
    candidates = [] if relative_to is None else [relative_to / asked]
    candidates += [Path.cwd() / asked, shipped / stripped]
    if asked == Path(kind):
        candidates.append(shipped)
    for candidate in candidates:
        if candidate.exists():
            return candidate
    available = (
        ", ".join(sorted(p.name for p in shipped.iterdir() if p.is_file() and not p.name.startswith("."))) or "nothing"
    )
    raise MissingError(f"{kind}: {name!r} does not exist.", f"Shipped with the package: {available}.")
