"""Imports go downward only (design, section 2). Read from the source, so that late imports count as well."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import karma_electric

SOURCE = Path(karma_electric.__file__).parent
PACKAGE = "karma_electric"

# Highest first. A part may import from the layers below its own, and from its own unless its members are siblings.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("cli",),
    (
        "pipeline",
        "stages",
        "space",
        "arm_stages",
        "asked",
        "targets",
        "attacking",
        "sweeping",
        "serve",
        "card",
        "card_check",
        "card_text",
        "report",
        "arm_figures",
        "evidence",
        "kept",
        "recorded",
        "suite_names",
        "rendering",
        "publishing",
        "uploading",
        "hub_errors",
    ),
    ("data", "train", "steer", "export", "redteam"),
    ("models",),
    ("core",),
)
SIBLINGS = {"data", "train", "steer", "export", "redteam"}  # these exchange artifacts, never code
LEVEL = {part: level for level, parts in enumerate(LAYERS) for part in parts}


def imported_modules(tree: ast.AST, module: str, *, is_package: bool) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of everything in this package that a module imports: anywhere, TYPE_CHECKING included."""
    here = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            origin = ".".join([*base, *([node.module] if node.module else [])])
            # `from karma_electric import steer` imports a part, `from karma_electric.steer import cap` a module of one
            names = [f"{origin}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in ("importlib.import_module", "import_module"):
            names = [a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        else:
            continue
        yield from ((node.lineno, name) for name in names if name.split(".")[0] == PACKAGE)


def violations(source: Path) -> list[str]:
    """Every import below `source` that does not go downward, a line each."""
    found = []
    for file in sorted(source.rglob("*.py")):
        parts = [PACKAGE, *file.relative_to(source).with_suffix("").parts]
        is_package = parts[-1] == "__init__"
        parts = parts[:-1] if is_package else parts
        if len(parts) == 1:
            continue  # the package itself, which holds the version
        importer = parts[1]
        if importer not in LEVEL:
            found.append(f"{file.name}: {importer!r} is in no layer")
            continue
        for line, name in imported_modules(ast.parse(file.read_text()), ".".join(parts), is_package=is_package):
            target = name.split(".")[1] if "." in name else ""
            if target not in LEVEL:
                if target and target != "__version__":
                    found.append(f"{file.name}:{line}: {name} is in no layer")
            elif importer != target and (LEVEL[target] < LEVEL[importer] or {importer, target} <= SIBLINGS):
                found.append(f"{file.name}:{line}: {importer} imports {name}")
    return found


def test_imports_go_downward_only() -> None:
    assert violations(SOURCE) == []


def test_the_check_reads_the_real_modules() -> None:
    files = [file for file in SOURCE.rglob("*.py") if file.name != "__init__.py"]
    assert len(files) > 30
    assert {"cap.py", "qlora.py", "release.py"} <= {file.name for file in files}
    cap = ast.parse((SOURCE / "steer" / "cap.py").read_text())
    names = [name for _, name in imported_modules(cap, "karma_electric.steer.cap", is_package=False)]
    assert "karma_electric.models.blocks.decoder_blocks" in names


@pytest.mark.parametrize(
    ("path", "code", "message"),
    [
        ("core/a.py", "from karma_electric.models.refs import resolve", "core imports karma_electric.models"),
        ("models/a.py", "import karma_electric.steer.cap", "models imports karma_electric.steer.cap"),
        ("steer/a.py", "from karma_electric.train.merge import merge_adapter", "steer imports karma_electric.train"),
        ("train/a.py", "from karma_electric import steer", "train imports karma_electric.steer"),
        ("redteam/a.py", "from karma_electric.cli import main", "redteam imports karma_electric.cli"),
        ("data/a.py", "def f():\n    from karma_electric.steer import cap", "data imports karma_electric.steer.cap"),
        ("export/a.py", "from ..steer import cap", "export imports karma_electric.steer.cap"),
        ("export/__init__.py", "from ..steer.cap import Cap", "export imports karma_electric.steer.cap.Cap"),
        ("models/engines/a.py", "from ... import cli", "models imports karma_electric.cli"),
        ("pipeline.py", "from karma_electric.cli.main import main", "pipeline imports karma_electric.cli"),
        (
            "models/a.py",
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from karma_electric.steer.cap import Cap",
            "models imports karma_electric.steer.cap.Cap",
        ),
        (
            "core/a.py",
            "import importlib\nimportlib.import_module('karma_electric.cli.main')",
            "core imports karma_electric.cli.main",
        ),
        ("elsewhere.py", "", "'elsewhere' is in no layer"),
        ("cli/a.py", "from karma_electric.elsewhere import x", "karma_electric.elsewhere.x is in no layer"),
    ],
)
def test_the_check_finds_an_import_that_goes_up_or_sideways(tmp_path: Path, path: str, code: str, message: str) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(code + "\n")
    (found,) = violations(tmp_path)
    assert message in found


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("cli/a.py", "from karma_electric import pipeline\nfrom karma_electric.core import errors"),
        ("stages.py", "from karma_electric.pipeline import Stage\nfrom karma_electric.steer import cap"),
        ("steer/a.py", "from karma_electric.steer.axis import Axis\nfrom . import cap\nfrom .cap import Cap"),
        ("steer/a.py", "from karma_electric.models.blocks import Site\nimport torch, karma_electric.core.errors"),
        ("core/a.py", "from karma_electric import __version__"),
    ],
)
def test_the_check_lets_the_others_pass(tmp_path: Path, path: str, code: str) -> None:
    file = tmp_path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(code + "\n")
    assert violations(tmp_path) == []
