"""Names of models: what a fingerprint counts, and what it does not."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers.utils.hub import CHAT_TEMPLATE_DIR

from karma_electric.core.artifact import amend, seal
from karma_electric.models import refs
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


def test_a_model_of_the_hub_is_fetched_with_its_terms_and_templates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub
    from huggingface_hub.utils import filter_repo_objects

    terms = ("LICENSE", "LICENSE.txt", "NOTICE", "USE_POLICY.md")
    needed = (
        "config.json",
        "model.safetensors",
        "tokenizer.model",
        "chat_template.jinja",
        f"{CHAT_TEMPLATE_DIR}/t.jinja",
    )
    asked: list[str] = []

    def fetch(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.extend(allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert resolve("someone/model").path == tmp_path
    there = [*terms, *needed, "README.md", "pytorch_model.bin", "model.gguf"]
    assert list(filter_repo_objects(there, allow_patterns=asked)) == [*terms, *needed]


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


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    """An artifact whose files are older than its manifest by more than the second that this tells."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    time.sleep(1.1)
    seal(folder, kind="merged", config={}, inputs={})
    time.sleep(0.02)  # longer than a tick of the file system's clock
    return folder


def swap_for_an_older_file(folder: Path) -> None:
    other = folder.parent / "others"
    other.write_bytes(b"others!")  # as large
    os.utime(other, (1e9, 1e9))
    other.replace(folder / "model.safetensors")


def swap_and_amend(folder: Path) -> None:
    swap_for_an_older_file(folder)
    amend(folder, measured={"figure": 1})


def add_an_older_template(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    os.utime(folder / "chat_template.jinja", (1e9, 1e9))


def cut_with_its_times_kept(folder: Path) -> None:
    """As a file system without times of change would show it."""
    (folder / "model.safetensors").write_bytes(b"weight")
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"created": "2100-01-01T00:00:00+00:00"}))


@pytest.mark.parametrize(
    "change", [swap_for_an_older_file, swap_and_amend, add_an_older_template, cut_with_its_times_kept]
)
def test_a_sealed_model_is_another_whatever_times_its_files_have(sealed: Path, change: Callable[[Path], None]) -> None:
    before = folder_fingerprint(sealed)
    change(sealed)
    assert folder_fingerprint(sealed) != before


def test_a_sealed_model_is_hashed_again_only_where_it_was_copied(
    sealed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = shutil.copytree(sealed, tmp_path / "copy")
    expected = folder_fingerprint(sealed)
    assert folder_fingerprint(copied) == expected
    monkeypatch.setattr(refs, "hash_file", lambda path: pytest.fail(f"{path} was read"))
    sealed.rename(tmp_path / "moved")
    assert folder_fingerprint(tmp_path / "moved") == expected


def test_a_tokenizer_that_was_loaded_offline_is_the_same_tokenizer(folder: Path) -> None:
    """The embedded model, unpacked by `make test`, which sets HF_HUB_OFFLINE, had another id than by `make demo`."""
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(folder).save_pretrained(folder)  # offline, by conftest.py
    file = folder / "tokenizer_config.json"
    offline = file.read_bytes()
    online = offline.replace(b'"local_files_only": true', b'"local_files_only": false')
    assert offline != online, "as transformers writes it"
    refs.forget_loading(folder)
    assert file.read_bytes() == online
    refs.forget_loading(folder)
    assert file.read_bytes() == online
