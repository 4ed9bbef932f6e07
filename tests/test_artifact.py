"""Artifacts: an id says what was asked for, a manifest means whole, and damage of every kind is found."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from karma_electric.core.artifact import (
    MANIFEST,
    SCHEMA,
    artifact_id,
    canonical_json,
    damage,
    disk_full,
    hash_tree,
    is_whole,
    read_json,
    read_manifest,
    require_space,
    seal,
    write_atomic,
    write_json,
)
from karma_electric.core.errors import ArtifactError, MissingError, SpaceError

SOURCE = Path(__file__).resolve().parent.parent / "src"
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
CONFIGS = st.dictionaries(st.text(max_size=5), VALUES, max_size=4)
INPUTS = st.dictionaries(st.text(max_size=5), st.text(max_size=8), max_size=3)


def names(folder: Path) -> list[str]:
    """What lies in a folder."""
    return sorted(path.name for path in folder.iterdir())


# --- ids


@given(kind=st.text(max_size=8), config=CONFIGS, inputs=INPUTS)
def test_an_id_depends_on_values_and_not_on_the_order_of_keys(
    kind: str, config: dict[str, Any], inputs: dict[str, str]
) -> None:
    turned = (dict(reversed(config.items())), dict(reversed(inputs.items())))
    assert artifact_id(kind, *turned) == artifact_id(kind, config, inputs)
    assert len(artifact_id(kind, config, inputs)) == 16


@given(config=CONFIGS, other=CONFIGS)
def test_another_configuration_has_another_id(config: dict[str, Any], other: dict[str, Any]) -> None:
    assume(canonical_json(config) != canonical_json(other))
    assert artifact_id("axis", config, {}) != artifact_id("axis", other, {})


@given(inputs=INPUTS, other=INPUTS)
def test_other_inputs_have_another_id(inputs: dict[str, str], other: dict[str, str]) -> None:
    assume(inputs != other)
    assert artifact_id("axis", {}, inputs) != artifact_id("axis", {}, other)


def test_kind_config_and_inputs_are_not_confused() -> None:
    ids = {
        artifact_id("a", {}, {}),
        artifact_id("b", {}, {}),
        artifact_id("a", {"x": "1"}, {}),
        artifact_id("a", {}, {"x": "1"}),
        artifact_id("a", {"x": 1}, {}),
        artifact_id("a", {"x": True}, {}),
        artifact_id("a", {"x": None}, {}),
    }
    assert len(ids) == 7


def test_an_id_never_changes_between_versions() -> None:
    """Runs made with a released version must be found again. If this must change, raise SCHEMA."""
    assert artifact_id("axis", {"alpha": 0.5, "layers": [1, 2]}, {"merged": "é"}) == "17fa058703cdcbe3"


# --- atomic writes


def test_a_write_replaces_the_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    write_atomic(file, "a long first text")
    write_atomic(file, b"short")
    assert file.read_bytes() == b"short"
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    file = tmp_path / "a.json"
    write_atomic(file, "old")

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*((os, "fsync") if step == "fsync" else (Path, "replace")), fail)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(file, "new")
    assert file.read_text() == "old"
    assert names(tmp_path) == ["a.json"]


def test_a_reader_never_sees_half_a_file_however_the_writer_dies(tmp_path: Path) -> None:
    file = tmp_path / "big"
    contents = [letter * 300_000 for letter in (b"a", b"b")]
    write_atomic(file, contents[0])
    code = (
        "import sys, pathlib; from karma_electric.core.artifact import write_atomic\n"
        "print(flush=True)\n"
        "while True:\n"
        "    for letter in (b'a', b'b'): write_atomic(pathlib.Path(sys.argv[1]), letter * 300_000)"
    )
    for delay_s in (0.0, 0.003, 0.007):
        writer = subprocess.Popen(
            [sys.executable, "-c", code, str(file)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
        )
        with writer:
            assert writer.stdout is not None
            writer.stdout.readline()
            time.sleep(delay_s)
            writer.send_signal(signal.SIGKILL)
        assert file.read_bytes() in contents


def test_json_holds_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"loss": float("nan")})
    assert names(tmp_path) == []


def test_a_missing_json_file_and_a_torn_one_are_different_errors(tmp_path: Path) -> None:
    with pytest.raises(MissingError, match="does not exist"):
        read_json(tmp_path / "a.json")
    (tmp_path / "a.json").write_text('{"loss": ')
    with pytest.raises(ArtifactError, match="is not JSON"):
        read_json(tmp_path / "a.json")


# --- sealing and damage


@pytest.fixture
def sealed(tmp_path: Path) -> Path:
    """An artifact of two files."""
    folder = tmp_path / "axis"
    (folder / "inner").mkdir(parents=True)
    (folder / "a.txt").write_text("one")
    (folder / "inner" / "b.txt").write_text("two")
    seal(folder, kind="axis", config={"alpha": 0.5}, inputs={"merged": "abc"})
    return folder


def edit_manifest(folder: Path, **changes: object) -> None:
    """Change keys of a manifest; None removes one."""
    manifest = json.loads((folder / MANIFEST).read_text()) | changes
    (folder / MANIFEST).write_text(json.dumps({k: v for k, v in manifest.items() if v is not None}))


def test_a_seal_can_be_read_back(sealed: Path) -> None:
    manifest = read_manifest(sealed)
    assert (manifest.kind, manifest.config, manifest.inputs) == ("axis", {"alpha": 0.5}, {"merged": "abc"})
    assert manifest.id == artifact_id("axis", {"alpha": 0.5}, {"merged": "abc"})
    assert manifest.sizes == {"a.txt": 3, "inner/b.txt": 3}
    assert manifest.schema == SCHEMA
    assert manifest.code["version"]
    assert is_whole(sealed)
    assert damage(sealed) == []


@pytest.mark.parametrize(
    ("spoil", "found", "whole"),
    [
        (lambda f: (f / "a.txt").unlink(), "a.txt is missing", False),
        (lambda f: (f / "a.txt").write_text("on"), "a.txt was changed after it was written", False),
        (lambda f: (f / "inner" / "b.txt").write_text("tow"), "inner/b.txt was changed after it was written", True),
        (lambda f: (f / "c.txt").write_text("new"), "c.txt is not in the manifest", True),
        (lambda f: (f / "inner" / MANIFEST).write_text("{}"), f"inner/{MANIFEST} is not in the manifest", True),
        (lambda f: edit_manifest(f, config={"alpha": 1.0}), "id does not match", True),
        (lambda f: edit_manifest(f, inputs={"merged": "abd"}), "id does not match", True),
        (lambda f: edit_manifest(f, files={}), "a.txt is not in the manifest", True),
    ],
    ids=["missing", "cut", "same size", "added", "hidden", "config", "inputs", "forgotten"],
)
def test_every_kind_of_damage_is_found(sealed: Path, spoil: Callable[[Path], object], found: str, whole: bool) -> None:
    """The quick check sees names and sizes only; `damage` hashes."""
    spoil(sealed)
    assert any(found in line for line in damage(sealed))
    assert is_whole(sealed) is whole


def test_without_a_manifest_nothing_is_whole(sealed: Path) -> None:
    (sealed / MANIFEST).unlink()
    assert not is_whole(sealed)
    with pytest.raises(MissingError):
        damage(sealed)


def test_a_newer_schema_says_to_upgrade(sealed: Path) -> None:
    edit_manifest(sealed, schema=SCHEMA + 1)
    with pytest.raises(ArtifactError, match="newer version") as caught:
        read_manifest(sealed)
    assert caught.value.hint == "Upgrade karma-electric."


def test_a_key_that_a_later_version_added_does_no_harm(sealed: Path) -> None:
    edit_manifest(sealed, signature="x")
    assert is_whole(sealed)


@pytest.mark.parametrize(
    "changes",
    [{"files": None}, {"id": None}, {"inputs": None}, {"config": None}, {"sizes": []}, {"schema": "1"}, {"parents": 3}],
    ids=str,
)
def test_a_file_that_is_no_manifest_is_refused(sealed: Path, changes: dict[str, object]) -> None:
    edit_manifest(sealed, **changes)
    with pytest.raises(ArtifactError, match="is not a manifest"):
        read_manifest(sealed)


def test_a_manifest_is_not_a_list(sealed: Path) -> None:
    (sealed / MANIFEST).write_text("[]")
    with pytest.raises(ArtifactError, match="is not a manifest"):
        read_manifest(sealed)


def test_a_tree_hash_depends_on_names_and_contents(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    hashes = [hash_tree(tmp_path)]
    (tmp_path / "a").write_text("y")
    hashes.append(hash_tree(tmp_path))
    (tmp_path / "a").rename(tmp_path / "b")
    hashes.append(hash_tree(tmp_path))
    assert len(set(hashes)) == 3


# --- disk space


def test_space_is_asked_of_the_disk_that_will_hold_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Path] = []

    def usage(path: Path) -> SimpleNamespace:
        asked.append(path)
        return SimpleNamespace(free=2_000_000_000)

    monkeypatch.setattr(shutil, "disk_usage", usage)
    require_space(tmp_path / "not" / "there" / "yet", 2_000_000_000)
    assert asked == [tmp_path]
    with pytest.raises(SpaceError, match=r"needs about 2\.1 GB, 2\.0 GB is free") as caught:
        require_space(tmp_path, 2_100_000_000)
    assert "--run-dir" in caught.value.hint


def chained(outer: Exception, inner: BaseException, *, explicit: bool) -> Exception:
    """`outer` as if raised from, or while handling, `inner`."""
    if explicit:
        outer.__cause__ = inner
    else:
        outer.__context__ = inner
    return outer


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(
    "error",
    [
        FULL,
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)"),  # safetensors
        RuntimeError("[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file data/0"),
        chained(RuntimeError("could not save"), FULL, explicit=True),
        chained(ValueError("while saving"), FULL, explicit=False),
        chained(KeyError("a"), chained(RuntimeError("b"), FULL, explicit=True), explicit=False),
    ],
    ids=["errno", "quota", "safetensors", "torch", "from", "while handling", "two deep"],
)
def test_a_full_disk_is_recognised_in_every_librarys_words(error: Exception) -> None:
    assert disk_full(error)


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EACCES, "Permission denied"), RuntimeError("CUDA out of memory"), FileNotFoundError("space")],
    ids=lambda error: type(error).__name__,
)
def test_another_failure_is_no_full_disk(error: Exception) -> None:
    assert not disk_full(error)


def write_with_python(file: BinaryIO) -> None:
    file.write(b"x")
    file.flush()


def write_with_numpy(file: BinaryIO) -> None:  # as gguf does
    import numpy as np

    np.zeros(4096).tofile(file)


def write_with_torch(file: BinaryIO) -> None:  # as the trainer keeps its optimiser
    import torch

    torch.save(torch.zeros(4096), file.name)


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs /dev/full, a device that is always full")
@pytest.mark.parametrize("write", [write_with_python, write_with_numpy, write_with_torch])
def test_what_a_full_device_really_raises_is_recognised(write: Callable[[BinaryIO], None]) -> None:
    """Not for safetensors: it renames a file of its own over the device."""
    with pytest.raises((OSError, RuntimeError)) as caught, Path("/dev/full").open("wb", buffering=0) as file:
        write(file)
    assert disk_full(caught.value)
