"""The version with its commit; the built package is tried by tools/check_package.py."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import karma_electric
from karma_electric.core import artifact

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The package as it lies in an environment, without a checkout around it."""
    package = tmp_path / "site-packages" / "karma_electric"
    (package / "core").mkdir(parents=True)
    shutil.copyfile(Path(artifact.__file__), package / "core" / "artifact.py")
    monkeypatch.setattr(artifact, "__file__", str(package / "core" / "artifact.py"))
    return package


def test_without_git_and_note_there_is_the_version_alone(elsewhere: Path) -> None:
    assert artifact.code_version.__wrapped__() == {"version": karma_electric.__version__, "commit": None, "dirty": None}


def test_a_built_package_tells_the_commit_it_was_built_from(elsewhere: Path) -> None:
    (elsewhere / artifact.COMMIT_NOTE).write_text(json.dumps({"commit": "c" * 40, "dirty": False}))
    assert artifact.code_version.__wrapped__() == {
        "version": karma_electric.__version__,
        "commit": "c" * 40,
        "dirty": False,
    }


def test_a_checkout_asks_git_and_not_the_note(elsewhere: Path) -> None:
    root = elsewhere.parent.parent
    (elsewhere / artifact.COMMIT_NOTE).write_text(json.dumps({"commit": "c" * 40, "dirty": False}))
    git = ["git", "-C", str(root), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "init", "-q"], check=True)
    assert artifact.code_version.__wrapped__()["commit"] is None, "a checkout without a commit has none"
    subprocess.run([*git, "add", "."], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    head = subprocess.run([*git, "rev-parse", "HEAD"], check=True, capture_output=True, text=True).stdout.strip()
    assert artifact.code_version.__wrapped__() == {
        "version": karma_electric.__version__,
        "commit": head,
        "dirty": False,
    }
    (elsewhere / "core" / "artifact.py").write_text("changed")
    assert artifact.code_version.__wrapped__()["dirty"] is True


def test_every_version_number_is_the_same() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    newest = next(line for line in changelog.splitlines() if line.startswith("## "))
    assert newest.split()[1] == karma_electric.__version__


@pytest.mark.slow
def test_the_package_builds_installs_and_works_in_an_environment_of_its_own() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "tools" / "check_package.py"], check=False, capture_output=True, text=True, timeout=1800
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "without a note" in done.stdout
