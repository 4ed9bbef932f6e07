"""Renders the terminal session in the README: the commands below are run, and what they print is put there.

python tools/session.py write     rewrite that part of README.md
python tools/session.py check     exit 1 if it differs from what the commands print now

Only commands that need no model and print the same everywhere.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BEGIN = "<!-- session: begin (rendered by `python tools/session.py write`; do not edit) -->"
END = "<!-- session: end -->"
WIDTH = 118
COMMANDS = (
    "karma run recipes/demo.toml --set train.epoch=1",
    "karma run recipes/demo.toml --to axis --dry-run",
    'karma data penalize --text "Great question! Studies show that honest people always sleep better."',
    "karma redteam compare results/demo tuned capped | head -n 8",
)


def said(command: str) -> str:
    """What a command prints, errors included."""
    shim = 'karma() { "$PYTHON" -m karma_electric "$@"; }; '
    environment = os.environ | {
        "PYTHON": sys.executable,
        "PYTHONPATH": str(ROOT / "src"),
        "COLUMNS": str(WIDTH),
        "HF_HUB_OFFLINE": "1",
    }
    environment.pop("KARMA_DEBUG", None)
    with tempfile.TemporaryDirectory() as folder:  # runs of the checkout would be seen there
        (Path(folder) / "results").symlink_to(ROOT / "results")
        done = subprocess.run(
            ["bash", "-c", shim + command],
            check=False,
            cwd=folder,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
    return done.stdout.rstrip()


def rendered() -> str:
    """The session as a block of text; sentences are wrapped."""
    lines = []
    for command in COMMANDS:
        lines.append(f"$ {command}")
        for line in said(command).splitlines():
            prose = "   " not in line  # tables stay as they are
            lines += (textwrap.wrap(line, WIDTH, subsequent_indent="  ") or [""]) if prose else [line]
        lines.append("")
    return "```console\n" + "\n".join(lines).rstrip() + "\n```"


def replaced(readme: str) -> str:
    """README text with its session made anew."""
    before, rest = readme.split(BEGIN)
    return f"{before}{BEGIN}\n{rendered()}\n{END}{rest.split(END, 1)[1]}"


def main() -> None:
    """Write or check."""
    readme = ROOT / "README.md"
    old = readme.read_text(encoding="utf-8")
    new = replaced(old)
    if sys.argv[1:] == ["write"]:
        readme.write_text(new, encoding="utf-8")
    elif sys.argv[1:] == ["check"]:
        if new != old:
            raise SystemExit(
                "error: README.md differs from what the commands print. Run: python tools/session.py write"
            )
    else:
        raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
