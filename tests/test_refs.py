"""Names of models: what a fingerprint counts, and what it does not."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from karma_electric.core.artifact import seal
from karma_electric.models.refs import folder_fingerprint, resolve

NOTES = ("merge.json", "fidelity.json", "README.md", "LICENSE", "karma/cap_neurons.safetensors", "original/params.json")
COMPUTES = (
    *("model.safetensors", "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"),
    *(
        "chat_template.jinja",
        "additional_chat_templates/tools.jinja",
        "model.safetensors.index.json",
        "tokenizer.model",
    ),
    *("special_tokens_map.json", "vocab.json", "merges.txt", "model-00001-of-00002.safetensors"),
)


@pytest.fixture
def folder(tiny_path: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_path, tmp_path / "model"))


def add(folder: Path, name: str) -> None:
    """Write a file, or change the one that is there."""
    (folder / name).parent.mkdir(exist_ok=True)
    with (folder / name).open("ab") as file:
        file.write(b" ")


def fingerprint(folder: Path, *, sealed: bool) -> str:
    (folder / "manifest.json").unlink(missing_ok=True)
    if sealed:
        seal(folder, kind="merged", config={}, inputs={})
    return folder_fingerprint(folder)


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("name", NOTES)
def test_what_lies_beside_the_weights_does_not_count(folder: Path, name: str, sealed: bool) -> None:
    before = fingerprint(folder, sealed=sealed)
    for _ in range(2):  # there at all, then changed
        add(folder, name)
        assert fingerprint(folder, sealed=sealed) == before


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("name", COMPUTES)
def test_whatever_decides_an_answer_counts(folder: Path, name: str, sealed: bool) -> None:
    seen = {fingerprint(folder, sealed=sealed)}
    for _ in range(2):
        add(folder, name)
        seen.add(fingerprint(folder, sealed=sealed))
    assert len(seen) == 3


def test_every_file_of_a_saved_model_counts(folder: Path) -> None:
    for file in sorted(folder.iterdir()):
        before = folder_fingerprint(folder)
        add(folder, file.name)
        assert folder_fingerprint(folder) != before, file.name


def test_a_resolved_model_has_the_fingerprint_of_its_folder(folder: Path) -> None:
    (folder / "fidelity.json").write_text(json.dumps({"alpha": 0.5}))
    assert resolve(str(folder)).fingerprint == folder_fingerprint(folder)


def test_a_sealed_model_that_was_edited_is_another(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    seal(folder, kind="merged", config={}, inputs={})
    before = folder_fingerprint(folder)
    (folder / "model.safetensors").write_bytes(b"others!")
    manifest = (folder / "manifest.json").stat()
    os.utime(folder / "model.safetensors", ns=(manifest.st_atime_ns, manifest.st_mtime_ns + 1))
    assert folder_fingerprint(folder) != before
