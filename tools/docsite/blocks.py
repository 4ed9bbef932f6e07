"""Blocks of code in the tutorial and the how-to pages: read with their marks, and run.

A fence says what happens to it, after its language:

    bash run                      run, in order, in the page's working directory
    bash run slow                 the same, in `make test-slow` alone; so are all blocks after it
    bash run exit="1"             run, and end with this code
    python run                    run as a program
    toml file="mine.toml"         written to this file
    bash skip="needs a GPU"       not run, for this reason
    text                          output or a drawing: nothing to run

All blocks of a page share one directory, which has the folders of the checkout (corpus, suites, recipes, examples,
results) beside what the page makes.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("docs/tutorial.md", "docs/howto")
_FENCE = re.compile(r"^(?P<indent> *)(?P<ticks>`{3,}|~{3,})(?P<info>[^\n`]*)$")
_LINKED = ("corpus", "suites", "recipes", "examples", "results", "bodhisattva_inference.py")
_NO_CODE = {"", "text"}
_MARKS = {"run", "slow", "skip", "file", "exit"}


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        where: file and line, as a reader would look for it.
        language: first word after the fence.
        text: what is inside.
        marks: the words after the language; a word without a value has "".
    """

    where: str
    language: str
    text: str
    marks: dict[str, str] = field(default_factory=dict)

    @property
    def problem(self) -> str:
        """What is wrong with its marks, or nothing."""
        unknown = self.marks.keys() - _MARKS
        kinds = self.marks.keys() & {"run", "skip", "file"}
        if self.language in _NO_CODE:
            return ""
        if unknown:
            return f"{self.where}: unknown mark {sorted(unknown)}"
        if len(kinds) != 1:
            return f"{self.where}: a block of {self.language} needs one of run, file=NAME or skip=REASON"
        if "skip" in kinds and len(self.marks["skip"]) < 8:
            return f"{self.where}: say why it is skipped"
        if "run" in kinds and self.language not in {"bash", "python"}:
            return f"{self.where}: {self.language} cannot be run"
        return ""


def pages(root: Path = ROOT) -> list[Path]:
    """The pages whose blocks are held to this."""
    found = [root / name for name in PAGES]
    return [page for path in found for page in (sorted(path.rglob("*.md")) if path.is_dir() else [path])]


def blocks(text: str, name: str) -> Iterator[Block]:
    """All fenced blocks of a page, in order."""
    lines = iter(enumerate(text.splitlines(), 1))
    for number, line in lines:
        opening = _FENCE.match(line)
        if opening is None:
            continue
        inside = []
        for _, other in lines:
            closing = _FENCE.match(other)
            if closing and closing["ticks"].startswith(opening["ticks"]) and not closing["info"].strip():
                break
            inside.append(other.removeprefix(opening["indent"]))
        language, *marks = shlex.split(opening["info"]) or [""]
        pairs = {mark.partition("=")[0]: mark.partition("=")[2] for mark in marks}
        yield Block(f"{name}:{number}", language, "\n".join(inside) + "\n", pairs)


def runnable(found: Sequence[Block], *, slow: bool) -> list[Block]:
    """Blocks to run or write: all of them, or those before the first slow one."""
    chosen = [block for block in found if block.marks.keys() & {"run", "file"}]
    first_slow = next((n for n, block in enumerate(chosen) if "slow" in block.marks), len(chosen))
    return chosen if slow else chosen[:first_slow]


def prepare(folder: Path, root: Path = ROOT) -> dict[str, str]:
    """Make a page's working directory; gives the environment of its blocks, with `karma` on the path."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in _LINKED:
        (folder / name).symlink_to(root / name)
    binaries = folder / ".bin"
    binaries.mkdir()
    for name, words in {"karma": " -m karma_electric", "python": ""}.items():
        file = binaries / name
        file.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)}{words} "$@"\n', encoding="utf-8")
        file.chmod(0o755)
    inherited = {name: value for name, value in os.environ.items() if name != "KARMA_DEBUG"}
    return inherited | {
        "PATH": f"{binaries}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(root / "src"),
        "HF_HUB_OFFLINE": "1",
        "MPLBACKEND": "Agg",
    }


def run(block: Block, folder: Path, environment: dict[str, str], *, timeout_s: float = 1800) -> str:
    """Run or write one block; gives what it printed.

    Raises:
        AssertionError: it did not end as it should; with what it printed.
    """
    if "file" in block.marks:
        file = folder / block.marks["file"]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(block.text, encoding="utf-8")
        return ""
    command = {"bash": ["bash", "-euo", "pipefail", "-c", block.text], "python": [sys.executable, "-c", block.text]}
    done = subprocess.run(
        command[block.language],
        check=False,
        cwd=folder,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout_s,
    )
    expected = int(block.marks.get("exit", "0"))
    if done.returncode != expected:
        raise AssertionError(f"{block.where} ended with {done.returncode}, expected {expected}:\n{done.stdout[-4000:]}")
    return done.stdout
