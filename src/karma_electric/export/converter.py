"""Runs llama.cpp's own converter, for the architectures that this package does not write itself.

The converter is a program of llama.cpp's source tree (`convert_hf_to_gguf.py`), not a package: it is run in a process
of its own, with the `gguf` library of its own tree, and what it needs must be installed beside us or in PYTHON.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from karma_electric.core.artifact import disk_full, require_space, sync_folder
from karma_electric.core.errors import InputError, MissingError
from karma_electric.core.external import run_watched
from karma_electric.core.progress import Progress
from karma_electric.export.gguf import FileType, GgufSummary

_LAST_LINES = 12
SCRIPT = "convert_hf_to_gguf.py"


def find_script(converter: Path) -> Path:
    """The converter's script, given itself or the tree it is in.

    Raises:
        MissingError: it is not there.
    """
    script = converter / SCRIPT if converter.is_dir() else converter
    if not script.is_file():
        raise MissingError(
            f"{script} does not exist.", f"Give {SCRIPT} of a llama.cpp checkout: --converter llama.cpp/{SCRIPT}"
        )
    return script


def run_converter(
    converter: Path, model_dir: Path, out: Path, *, file_type: FileType, name: str, progress: Progress
) -> GgufSummary:
    """Convert a checkpoint with llama.cpp's converter. The file appears under `out` whole, or not at all.

    Args:
        converter: `convert_hf_to_gguf.py`, in its tree, or that tree.
        model_dir: Hugging Face folder.
        out: the file to write; replaced if it is there.
        file_type: type of the matrices.
        name: the model's name in the file.
        progress: told each of the converter's lines about a tensor.

    Raises:
        MissingError: no such converter.
        InputError: it failed, or wrote something that is no GGUF file; with its last lines.
    """
    from gguf import GGUFReader

    script = find_script(converter)
    out.parent.mkdir(parents=True, exist_ok=True)
    weights = sum(file.stat().st_size for file in model_dir.glob("*.safetensors"))
    require_space(out.parent, 2 * weights if file_type == "f32" else weights)
    temporary = out.with_name(f".{out.name}.tmp")
    own = script.parent / "gguf-py"
    path = os.pathsep.join(filter(None, (str(own) if own.is_dir() else "", os.environ.get("PYTHONPATH"))))
    # fmt: off
    command = [
        sys.executable, str(script.resolve()), str(model_dir.resolve()), "--outfile", str(temporary.resolve()),
        "--outtype", file_type, "--model-name", name,
    ]
    # fmt: on
    try:
        lines = _run(command, os.environ | {"PYTHONPATH": path}, progress)
        if not temporary.is_file():
            raise _failed("wrote no file", lines)
        try:
            n_tensors = len(GGUFReader(temporary).tensors)
        except Exception as error:  # the reader raises what it likes
            raise _failed(f"wrote a file that is no whole GGUF file ({error})", lines) from None
        size = temporary.stat().st_size
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(out)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(out.parent)
    return GgufSummary(path=out, bytes=size, n_tensors=n_tensors, file_type=file_type)


def _run(command: list[str], environment: dict[str, str], progress: Progress) -> list[str]:
    """Run it, and return its last lines."""
    seen = 0

    def watch(line: str) -> None:
        nonlocal seen
        if "-->" in line:  # a line for each tensor
            seen += 1
            progress.update(seen, seen + 1, line.split(",", maxsplit=1)[0].rsplit(":", maxsplit=1)[-1].strip())

    code, lines = run_watched(command, watch, keep=_LAST_LINES, environment=environment)
    if code:
        said = OSError("\n".join(lines))
        if disk_full(said):
            raise said
        raise _failed(f"ended with code {code}", lines)
    return lines


def _failed(what: str, lines: list[str]) -> InputError:
    said = "\n  ".join(line for line in lines if line.strip()) or "(nothing)"
    return InputError(
        f"llama.cpp's converter {what}. Its last lines:\n  {said}\n",
        "It needs the packages of its own requirements; a module that is missing can be installed beside karma.",
    )
