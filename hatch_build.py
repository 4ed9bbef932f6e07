"""Notes the commit in what is built, so that `karma --version` can tell it where there is no git.

A wheel or sdist that is built from a checkout gets `karma_electric/_commit.json`. A wheel that is built from an sdist
takes over the note that lies in it. Where neither is there, nothing is noted.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

NOTE = "_commit.json"


class CommitHook(BuildHookInterface):  # type: ignore[type-arg]
    """The build hook; hatchling calls it for every wheel and sdist."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the note outside the source tree and add it to what is built."""
        if version == "editable":  # runs from the checkout, where git is asked
            return
        found = commit(Path(self.root))
        if found is None:
            return
        note = Path(self.directory) / NOTE
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps(found), encoding="utf-8")
        inside = "src/karma_electric" if self.target_name == "sdist" else "karma_electric"
        build_data["force_include"][str(note)] = f"{inside}/{NOTE}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        """Remove the note again."""
        (Path(self.directory) / NOTE).unlink(missing_ok=True)


def commit(root: Path) -> dict[str, Any] | None:
    """Commit of the checkout at `root` and whether files differ from it; None where it is none."""
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        return {"commit": head, "dirty": bool(_git(root, "status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()
