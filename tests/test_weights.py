"""Safetensors read and written in pieces: what the library itself reads and writes, to the bit."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from karma_electric.core.errors import ArtifactError, MissingError
from karma_electric.models.weights import (
    INDEX,
    Layout,
    checkpoint_tensors,
    format_dtype,
    index_of,
    shard_names,
    split_in_shards,
    stored_tensors,
    write_tensors,
)

TYPES = (torch.float32, torch.bfloat16, torch.float16, torch.int64, torch.uint8, torch.bool)
SHAPES = st.lists(st.integers(0, 5), max_size=3).map(tuple)


def tensor(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> torch.Tensor:
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 3).to(dtype)


@given(st.lists(st.tuples(SHAPES, st.sampled_from(TYPES)), min_size=1, max_size=5), st.integers(1, 4))
def test_a_file_written_in_pieces_is_what_the_library_reads(
    tmp_path_factory: pytest.TempPathFactory, contents: list[tuple[tuple[int, ...], torch.dtype]], step: int
) -> None:
    path = tmp_path_factory.mktemp("w") / "model.safetensors"
    tensors = {f"t{n}": tensor(shape, dtype, n) for n, (shape, dtype) in enumerate(contents)}
    layouts = [Layout(name, format_dtype(str(t.dtype).removeprefix("torch.")), t.shape) for name, t in tensors.items()]
    (shard,) = split_in_shards(layouts, 10**9)

    def pieces(layout: Layout) -> Any:
        whole = tensors[layout.name]
        if whole.ndim == 0:
            return [whole]
        return [whole[first : first + step] for first in range(0, len(whole), step)]

    write_tensors(path, shard, pieces)
    found = load_file(path)
    assert set(found) == set(tensors)
    for name, expected in tensors.items():
        assert found[name].dtype == expected.dtype
        assert torch.equal(found[name], expected)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}


@given(st.lists(st.tuples(SHAPES, st.sampled_from(TYPES)), min_size=1, max_size=5), st.data())
def test_rows_are_those_that_the_library_wrote(
    tmp_path_factory: pytest.TempPathFactory, contents: list[tuple[tuple[int, ...], torch.dtype]], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("r") / "model.safetensors"
    tensors = {f"t{n}": tensor(shape, dtype, n) for n, (shape, dtype) in enumerate(contents)}
    save_file(tensors, path)
    for name, stored in stored_tensors(path).items():
        assert torch.equal(stored.read(), tensors[name])
        if tensors[name].ndim:
            first = data.draw(st.integers(0, stored.n_rows))
            last = data.draw(st.integers(first, stored.n_rows))
            assert torch.equal(stored.rows(first, last), tensors[name][first:last])


def test_the_hash_is_the_files(tmp_path: Path) -> None:
    from karma_electric.core.artifact import hash_file

    path = tmp_path / "a.safetensors"
    sha256 = write_tensors(path, [Layout("x", "F32", (2, 3))], lambda _: [torch.ones(2, 3)])
    assert sha256 == hash_file(path)


def test_a_write_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def broken(_: Layout) -> Any:
        yield torch.ones(1, 3)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_tensors(tmp_path / "a.safetensors", [Layout("x", "F32", (2, 3))], broken)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("pieces", [[torch.ones(1, 3)], [torch.ones(2, 3, dtype=torch.float64)]])
def test_too_few_rows_or_another_type_are_not_written(tmp_path: Path, pieces: list[torch.Tensor]) -> None:
    with pytest.raises(RuntimeError, match=r"x: .* announced"):
        write_tensors(tmp_path / "a.safetensors", [Layout("x", "F32", (2, 3))], lambda _: pieces)
    assert list(tmp_path.iterdir()) == []


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12), st.integers(1, 100))
def test_shards_hold_every_tensor_once_and_no_more_than_asked(sizes: list[int], largest: int) -> None:
    layouts = [Layout(f"t{n}", "U8", (size,)) for n, size in enumerate(sizes)]
    shards = split_in_shards(layouts, largest)
    assert [layout for shard in shards for layout in shard] == layouts, "in order"
    for shard in shards:
        assert len(shard) == 1 or sum(layout.n_bytes for layout in shard) <= largest
    for one, following in itertools.pairwise(shards):
        assert sum(t.n_bytes for t in one) + following[0].n_bytes > largest, "no file is begun without need"


def test_shards_and_index_are_named_as_every_loader_expects() -> None:
    assert shard_names(1) == ["model.safetensors"]
    assert shard_names(2) == ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    shards = {"a": [Layout("x", "BF16", (2, 3))], "b": [Layout("y", "F32", (4,))]}
    assert index_of(shards) == {"metadata": {"total_size": 28}, "weight_map": {"x": "a", "y": "b"}}


# What is damaged or missing


@pytest.mark.parametrize("kept", [0, 7, 20, -1])
def test_a_cut_off_file_is_named(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"x": torch.ones(4, 4)}, path)
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ArtifactError, match=r"model\.safetensors is not a whole safetensors file"):
        stored_tensors(path)


def test_an_index_that_its_shards_do_not_match_is_an_error(tmp_path: Path) -> None:
    save_file({"x": torch.ones(2)}, tmp_path / "a.safetensors")
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"x": "a.safetensors", "y": "a.safetensors"}}))
    with pytest.raises(ArtifactError, match=r"disagree on 1 tensors \(y\)"):
        checkpoint_tensors(tmp_path)
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"x": "b.safetensors"}}))
    with pytest.raises(MissingError, match=r"b\.safetensors does not exist"):
        checkpoint_tensors(tmp_path)
    (tmp_path / INDEX).write_text("[]")
    with pytest.raises(ArtifactError, match="no weight_map"):
        checkpoint_tensors(tmp_path)


def test_a_folder_with_other_weights_says_what_it_has(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").touch()
    with pytest.raises(MissingError, match=r"only pytorch_model\.bin"):
        checkpoint_tensors(tmp_path)


def test_a_quantised_type_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"x": torch.ones(4).to(torch.float8_e4m3fn)}, path)
    with pytest.raises(ArtifactError, match="stored as F8_E4M3"):
        stored_tensors(path)["x"].read()
