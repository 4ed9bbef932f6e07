"""Finds the corpus, suites and recipes that ship with the package: in a wheel, or in a checkout."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from karma_electric.core.errors import MissingError

_PACKAGE = Path(__file__).resolve().parent.parent
_KINDS = ("corpus", "suites", "recipes")
_SUFFIXES = {"suites": ".jsonl", "recipes": ".toml"}


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


def find(kind: str, name: str, *, relative_to: Path | None = None, key: str = "") -> Path:
    """Resolve `name` to an existing file or folder.

    Tried in this order: as given (relative to `relative_to`, then to the working directory), then among the
    shipped resources of that kind, with and without the kind itself as the first folder (`suites/x.jsonl` and
    `x.jsonl` are the same there).

    Args:
        kind: corpus, suites or recipes.
        name: a path, or the name of a shipped file.
        relative_to: another folder to look in first.
        key: the recipe's key that holds the name, for the error.

    Raises:
        MissingError: saying where it was looked for, with the name that is closest, else what is shipped.
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
    folder = asked.parent if asked.is_absolute() else Path.cwd() / asked.parent
    known = _names(kind, shipped)
    here = [] if folder == shipped else [(asked.parent / near).as_posix() for near in _names(kind, folder)]
    close = _closest(name, [*here, *known])
    raise MissingError(
        f"{f'{key}: ' if key else ''}{name!r} does not exist (looked in {folder} and among the shipped {kind}).",
        f"Did you mean {close!r}?" if close else f"Shipped with the package: {', '.join(known)}.",
    )


def _names(kind: str, folder: Path) -> list[str]:
    """What in a folder can be meant where a recipe, a suite or a corpus is asked for."""
    if kind == "corpus" and folder == resource_root(kind):
        return [kind]  # as a whole: its files are categories of it
    if not folder.is_dir():
        return []
    there = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    if kind == "corpus":
        return [path.name for path in there if path.suffix == ".db" or (path.is_dir() and any(path.glob("*.jsonl")))]
    return [path.name for path in there if path.is_file() and path.suffix == _SUFFIXES[kind]]


def _closest(name: str, known: Sequence[str]) -> str | None:
    """The name that is most like another. Endings do not count: they are alike anyway."""
    stems = {Path(other).stem: other for other in reversed(known)}
    close = difflib.get_close_matches(Path(name).stem, stems, n=1)
    return stems[close[0]] if close else None
