"""The error tree. Everything a user can cause ends in one of these; anything else is a bug.

KarmaError
  GateError       exit 1   a check ran and did not pass
  InputError      exit 2   wrong usage or bad input
    RecipeError            a recipe key, type or combination
    DataError              a corpus, suite or transcript line
    ArtifactError          a run directory that holds something else, or damaged files
    BusyError              another process works in this run directory
    SpaceError             not enough disk
  MissingError    exit 3   an extra, a model or an artifact that is not there
"""

from __future__ import annotations

__all__ = [
    "ArtifactError",
    "BusyError",
    "DataError",
    "GateError",
    "InputError",
    "KarmaError",
    "MissingError",
    "RecipeError",
    "SpaceError",
]


class KarmaError(Exception):
    """What was found and expected (`message`), and what to type next (`hint`)."""

    exit_code = 2

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()


class GateError(KarmaError):
    """A check ran and did not pass."""

    exit_code = 1


class InputError(KarmaError):
    """Wrong usage or bad input."""


class RecipeError(InputError):
    """A recipe key, type or combination that cannot be."""


class DataError(InputError):
    """A line of a corpus, suite or transcript that cannot be used."""


class ArtifactError(InputError):
    """A run directory that holds something other than what was asked for, or damaged files."""


class BusyError(InputError):
    """Another process works in the same run directory."""


class SpaceError(InputError):
    """Not enough disk."""


class MissingError(KarmaError):
    """An extra, a model or an artifact that is not there."""

    exit_code = 3
