"""What no other tool looks at: what a merge leaves behind, and the Makefile."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
_MARKER = re.compile(rb"^(?:<{7} |>{7} )", re.MULTILINE)


def tracked() -> list[Path]:
    """Files of the repository; the test is skipped where git cannot tell."""
    git = shutil.which("git")
    listed = subprocess.run([git, "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False) if git else None
    if listed is None or listed.returncode:
        pytest.skip("not a git checkout")
    return [ROOT / name for name in listed.stdout.decode().split("\0") if name]


def test_no_merge_was_left_half_done() -> None:
    files = [file for file in tracked() if file.is_file()]
    assert len(files) > 100
    assert [file.relative_to(ROOT).as_posix() for file in files if _MARKER.search(file.read_bytes())] == []


def test_make_reads_its_file_and_every_target_is_explained() -> None:
    if shutil.which("make") is None:
        pytest.skip("there is no make")
    helped = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert helped.returncode == 0, helped.stderr
    targets = re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert {line.split()[0] for line in helped.stdout.splitlines()} == set(targets)
