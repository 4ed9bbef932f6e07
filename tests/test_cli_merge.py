"""`karma merge`: an artifact from base and adapter, and what it refuses."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from karma_electric.cli import merge as cli_merge
from karma_electric.core.artifact import damage, read_manifest, seal
from karma_electric.core.lineage import problems_of
from karma_electric.core.messages import as_dicts
from karma_electric.core.recipe import MergeSection
from karma_electric.models.loading import load_model
from test_cli import Ended, karma_here
from test_merge import Killed, Reaper, logits, with_adapter, write_adapter, write_base

Run = Any


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "adapter"
    return write_adapter(base, folder, target_modules=["q_proj", "v_proj", "down_proj"])


@pytest.fixture
def merge(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `karma merge` in this process."""

    def run(*words: object) -> Ended:
        return karma_here(monkeypatch, capsys, "merge", *words)

    return run


def test_a_merge_is_an_artifact_that_loads(merge: Run, base: Path, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "merged"
    ended = merge(base, adapter, out, "--dtype", "float32", "--max-shard-size", "0.1MB")
    assert ended.code == 0, ended.err
    assert "6 low-rank changes (rank 4, scale 2)" in ended.out
    assert damage(out) == []
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["kind"] == "merged"
    assert manifest["config"] == {"dtype": "float32", "base": "bf16", "max_shard_size": "0.1MB"}
    assert set(manifest["inputs"]) == {"base", "adapter_folder"}
    merged = load_model(out, dtype="float32", device="cpu")
    torch.testing.assert_close(logits(merged), logits(with_adapter(base, adapter)), rtol=0, atol=2e-4)
    again = merge(base, adapter, out, "--dtype", "float32", "--max-shard-size", "0.1MB")
    assert again.code == 0
    assert "already there, skipped" in again.err
    assert list(tmp_path.iterdir()) == [out]


def test_a_merge_is_not_taken_for_one_of_another_adapter_beside_it(
    merge: Run, base: Path, adapter: Path, tmp_path: Path
) -> None:
    (tmp_path / "adapter").mkdir()
    seal(tmp_path / "adapter", kind="adapter", config={}, inputs={})  # a run's own, which is not merged
    assert merge(base, adapter, tmp_path / "m").code == 0
    assert read_manifest(tmp_path / "m").parents == {}
    assert problems_of(tmp_path) == {"adapter": [], "m": []}


def test_the_check_takes_prompts_or_conversations(merge: Run, base: Path, adapter: Path, tmp_path: Path) -> None:
    texts = tmp_path / "texts.jsonl"
    lines = [{"id": "a", "messages": as_dicts(tiny.chats(1)[0])}, {"id": "b", "kind": "everyday", "prompt": "Why?"}]
    texts.write_text("".join(json.dumps(line) + "\n" for line in lines))
    ended = merge(base, adapter, tmp_path / "m", "--check", texts, "--json")
    assert ended.code == 0, ended.err
    report = json.loads(ended.out)
    assert report["conversations"] == 2
    assert 0 <= report["mean_kl_nats"] < 0.1
    assert report == json.loads((tmp_path / "m" / "merge.json").read_text())
    assert "check" in json.loads((tmp_path / "m" / "manifest.json").read_text())["inputs"]


def test_a_killed_merge_goes_on_where_it_stopped(base: Path, adapter: Path, tmp_path: Path) -> None:
    section = MergeSection(max_shard_size="0.1MB")
    out = tmp_path / "m"

    def make(progress: Any) -> None:
        cli_merge._make(str(base), adapter, out, section, check=None, force=False, progress=progress)

    with pytest.raises(Killed):
        make(Reaper(17))
    assert not out.exists()
    first = tmp_path / ".partial" / "m" / "model-00001-of-00003.safetensors"
    written = first.stat().st_mtime_ns
    make(Reaper(-1))
    assert (out / first.name).stat().st_mtime_ns == written
    assert damage(out) == []


def test_another_merge_in_the_same_place_needs_force(merge: Run, base: Path, adapter: Path, tmp_path: Path) -> None:
    out = tmp_path / "m"
    assert merge(base, adapter, out).code == 0
    merge(base, adapter, out, "--base-weights", "dequantised-nf4").refused(
        2, 'base: "bf16" -> "dequantised-nf4"', "--force"
    )
    ended = merge(base, adapter, out, "--base", "dequantised-nf4", "--force")  # what the option was called before
    assert ended.code == 0, ended.err
    assert "14 tensors rounded to NF4" in ended.out


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--dtype", "float8"], ["--dtype", "float8", "bfloat16"]),
        (["--base-weights", "nf4"], ["--base-weights", "nf4", "dequantised-nf4"]),
        (["--max-shard-size", "huge"], ["--max-shard-size", "huge", "2GB"]),
        (["--max-shard-size", "0GB"], ["--max-shard-size", "0GB", "2GB"]),
    ],
)
def test_options_that_cannot_be_are_named(
    merge: Run, base: Path, adapter: Path, tmp_path: Path, words: list[str], named: list[str]
) -> None:
    merge(base, adapter, tmp_path / "m", *words).refused(2, *named)


def test_what_is_merged_is_never_replaced(merge: Run, base: Path, adapter: Path) -> None:
    for out in (base, adapter):
        merge(base, adapter, out, "--force").refused(2, "is what is merged")
    assert (base / "config.json").exists()


def test_missing_parts_are_named(merge: Run, base: Path, adapter: Path, tmp_path: Path) -> None:
    merge(tmp_path / "none", adapter, tmp_path / "m").refused(3, "none")
    merge(base, tmp_path, tmp_path / "m").refused(3, "adapter_config.json")
    merge(base, adapter, tmp_path / "m", "--check", "nothing.jsonl").refused(3, "nothing.jsonl", "heldout-48.jsonl")
    assert not (tmp_path / "m").exists()


@pytest.mark.parametrize(("line", "named"), [('{"id": "a"}', "line 1"), ("", "is empty")])
def test_a_check_file_without_text_is_an_error(
    merge: Run, base: Path, adapter: Path, tmp_path: Path, line: str, named: str
) -> None:
    (tmp_path / "texts.jsonl").write_text(line)
    merge(base, adapter, tmp_path / "m", "--check", tmp_path / "texts.jsonl").refused(2, "texts.jsonl", named)


def test_an_adapter_of_another_base_is_refused_with_the_tensor(merge: Run, adapter: Path, tmp_path: Path) -> None:
    other = write_base(tmp_path / "other", intermediate_size=160)
    merge(other, adapter, tmp_path / "m").refused(2, "down_proj.lora_A.weight is [4, 192], expected [4, 160]")


def test_another_name_of_the_base_is_only_noted(merge: Run, base: Path, adapter: Path, tmp_path: Path) -> None:
    renamed = shutil.copytree(base, tmp_path / "renamed")
    ended = merge(renamed, adapter, tmp_path / "m")
    assert ended.code == 0
    assert "note: the adapter names" in ended.err
