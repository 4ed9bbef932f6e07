"""Malformed and malicious steering files: each is refused with its reason, and nothing in it runs or is allocated."""

from __future__ import annotations

import json
import os
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import foreign_steering as foreign
from karma_electric.core.errors import ArtifactError, InputError, KarmaError, MissingError
from karma_electric.steer.formats import acap, control_vector, karma, original, paper
from karma_electric.steer.formats.registry import FORMATS, detect
from karma_electric.steer.formats.registry import read as read_as
from karma_electric.steer.formats.steering import AWAY, MAX_BYTES, ReadOptions

PLAIN = ReadOptions()
TOLD = ReadOptions(orientation=AWAY)
AXIS = foreign.vectors()
Readers = tuple[tuple[str, Callable[[Path, ReadOptions], Any]], ...]
TORCH_READERS: Readers = (
    ("original", original.read),
    ("paper-axis", paper.read_axis),
    ("paper-capping", paper.read_capping),
)
torch_readers = pytest.mark.parametrize("read", [read for _, read in TORCH_READERS], ids=[n for n, _ in TORCH_READERS])
gguf_readers = pytest.mark.parametrize("read", [control_vector.read, acap.read], ids=["control-vector", "acap"])


class Payload:
    """Unpickling one runs a command. The command leaves a mark."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


def refusal(read: Callable[[Path, ReadOptions], Any], path: Path) -> str:
    """The path if reading it is refused with a reason that names it, empty if it is read; all else is a bug."""
    try:
        read(path, PLAIN)
    except KarmaError as error:
        return str(path) if str(path) in error.message else error.message
    return ""


# Pickles


@torch_readers
def test_a_payload_is_refused_and_does_not_run(tmp_path: Path, read: Callable[[Path, ReadOptions], Any]) -> None:
    mark = tmp_path / "mark"
    torch.save({"axis": AXIS, "vectors": Payload(mark)}, tmp_path / "evil.pt")
    with pytest.raises(ArtifactError, match=r"refused.*system.*Nothing was run"):
        read(tmp_path / "evil.pt", PLAIN)
    assert not mark.exists()
    torch.load(tmp_path / "evil.pt", weights_only=False)
    assert mark.exists(), "the payload works where it is let run, so the test above means something"


def test_a_payload_in_the_thresholds_is_refused_too(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    torch.save({2: Payload(mark)}, tmp_path / "thresholds.pt")
    axis = foreign.original_axis(tmp_path, AXIS)
    with pytest.raises(ArtifactError, match=r"Nothing was run"):
        original.read(axis, ReadOptions(thresholds=tmp_path / "thresholds.pt"))
    assert not mark.exists()


def test_recognising_a_payload_does_not_run_it(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    torch.save(Payload(mark), tmp_path / "evil.pt")
    with pytest.raises(ArtifactError, match=r"Nothing was run"):
        detect(tmp_path / "evil.pt", MAX_BYTES)
    assert not mark.exists()


@torch_readers
def test_a_bare_pickle_is_refused_unopened(tmp_path: Path, read: Callable[[Path, ReadOptions], Any]) -> None:
    mark = tmp_path / "mark"
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Payload(mark)))
    with pytest.raises(ArtifactError, match=r"not a torch file"):
        read(tmp_path / "evil.pt", PLAIN)
    assert not mark.exists()


@pytest.mark.parametrize("content", [[1, 2], "text", 3.5, None, {"axis": "text"}, {"a": AXIS}])
@torch_readers
def test_a_pickle_of_something_else_is_refused(
    tmp_path: Path, content: Any, read: Callable[[Path, ReadOptions], Any]
) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ArtifactError, match=r"x\.pt"):
        read(tmp_path / "x.pt", PLAIN)


# Archives


def rezip(source: Path, target: Path, *, compress: int = zipfile.ZIP_STORED, **changed: bytes) -> Path:
    """Copy a torch file's entries into another zip, some with other bytes (by the last part of their name)."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compress) as new:
        for item in old.infolist():
            name = item.filename.rsplit("/", 1)[-1].partition(".")[0]
            new.writestr(item.filename, changed.get(name, old.read(item.filename)))
    return target


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02N.")
        archive.writestr("archive/data/0", bytes(300_000_000))
    assert (tmp_path / "bomb.pt").stat().st_size < 1_000_000
    with pytest.raises(ArtifactError, match=r"compressed"):
        original.read(tmp_path / "bomb.pt", PLAIN)


def test_a_directory_that_lies_about_sizes_is_refused(tmp_path: Path) -> None:
    data = bytearray(foreign.original_axis(tmp_path, AXIS).read_bytes())
    at = data.rindex(b"PK\x01\x02")
    data[at + 20 : at + 28] = struct.pack("<II", 1 << 31, 1 << 31)  # stored, and 2 GiB both ways
    (tmp_path / "lie.pt").write_bytes(data)
    with pytest.raises(ArtifactError, match=r"unpacks to 2147 MB"):
        original.read(tmp_path / "lie.pt", PLAIN)


def test_a_tensor_larger_than_its_record_is_refused(tmp_path: Path) -> None:
    source = foreign.original_axis(tmp_path, AXIS)
    with zipfile.ZipFile(source) as archive:
        (name,) = [n for n in archive.namelist() if n.endswith("/data.pkl")]
        pickled = archive.read(name)
    shape = b"K\x06K\x08\x86"  # (6, 8)
    count = b"K" + bytes([AXIS.numel()])
    assert shape in pickled
    assert count in pickled
    forged = pickled.replace(shape, b"J\x00\x00\x20\x00K\x08\x86").replace(count, b"J\x00\x00\x00\x01")
    with pytest.raises(ArtifactError, match=r"not a whole torch file"):
        original.read(rezip(source, tmp_path / "forged.pt", data=forged), PLAIN)


def test_a_tensor_that_repeats_one_number_is_not_blown_up(tmp_path: Path) -> None:
    torch.save(torch.ones(1).expand(1 << 20, 1 << 20), tmp_path / "wide.pt")
    with pytest.raises(ArtifactError, match=r"too large"):
        original.read(tmp_path / "wide.pt", PLAIN)


def test_another_zip_is_not_a_torch_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    with pytest.raises(ArtifactError, match=r"not one that torch.save writes"):
        original.read(tmp_path / "x.pt", PLAIN)


def test_numbers_in_the_other_byte_order_are_refused(tmp_path: Path) -> None:
    big = rezip(foreign.original_axis(tmp_path, AXIS), tmp_path / "big.pt", byteorder=b"big")
    with pytest.raises(ArtifactError, match=r"big-endian"):
        original.read(big, PLAIN)


@settings(max_examples=300)
@given(data=st.data())
def test_no_damage_to_a_torch_file_ends_in_anything_but_a_reason(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("damage")
    raw = bytearray(foreign.capping_config(folder / "c.pt", AXIS, {"e": {2: 1.0}}).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = folder / "damaged.pt"
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw)
    assert refusal(paper.read_capping, path) in ("", str(path))


# Vectors and thresholds


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("read", [original.read, paper.read_axis])
def test_numbers_that_are_not_finite_are_refused(
    tmp_path: Path, value: float, read: Callable[[Path, ReadOptions], Any]
) -> None:
    axis = AXIS.clone()
    axis[3, 5] = value
    with pytest.raises(ArtifactError, match=r"block 3 holds NaN"):
        read(foreign.original_axis(tmp_path, axis), PLAIN)


def test_numbers_too_large_for_float32_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"block 0 holds NaN, infinities or numbers too large"):
        original.read(foreign.original_axis(tmp_path, AXIS.double() * 1e40), PLAIN)


def test_a_zero_vector_is_no_direction(tmp_path: Path) -> None:
    axis = AXIS.clone()
    axis[:2] = 0.0
    file = foreign.original_axis(tmp_path, axis)
    with pytest.raises(ArtifactError, match=r"block 0 is zero.*--layers"):
        original.read(file, PLAIN)
    assert original.read(file, ReadOptions(layers=(2, 3, 4, 5))).layers == [2, 3, 4, 5]


@pytest.mark.parametrize("shape", [(8,), (2, 6, 8), (0, 8), (6, 0)])
def test_an_axis_of_another_shape_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ArtifactError, match=r"expected \[blocks, hidden\]"):
        original.read(foreign.original_axis(tmp_path, torch.ones(shape)), PLAIN)


@pytest.mark.parametrize("tensor", [torch.ones(6, 8, dtype=torch.int64), torch.eye(8).to_sparse()])
def test_an_axis_of_another_kind_of_tensor_is_refused(tmp_path: Path, tensor: torch.Tensor) -> None:
    with pytest.raises(
        ArtifactError, match=r"expected a dense tensor of floating-point numbers|not a whole torch file"
    ):
        original.read(foreign.original_axis(tmp_path, tensor), PLAIN)


def test_vectors_of_different_widths_are_refused(tmp_path: Path) -> None:
    torch.save({2: torch.ones(8), 3: torch.ones(9)}, tmp_path / "x.pt")
    with pytest.raises(ArtifactError, match=r"block 3 has shape \[9\], others have \[8\]"):
        original.read(tmp_path / "x.pt", PLAIN)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ({"2": torch.ones(8), 2: torch.ones(8)}, "block 2 twice"),
        ({"02": torch.ones(8)}, "'02', which is no block number"),
        ({-1: torch.ones(8)}, "'-1', which is no block number"),
        ({"layer_2": torch.ones(8)}, "'layer_2', which is no block number"),
        ({True: torch.ones(8)}, "'True', which is no block number"),
        ({}, "no vectors"),
    ],
)
def test_keys_that_are_not_block_numbers_are_refused(tmp_path: Path, raw: Any, message: str) -> None:
    torch.save(raw, tmp_path / "x.pt")
    with pytest.raises(ArtifactError, match=message):
        original.read(tmp_path / "x.pt", PLAIN)


@pytest.mark.parametrize(
    ("thresholds", "message"),
    [
        ({2: float("nan")}, "block 2 is 'nan', expected a finite number"),
        ({2: float("inf")}, "expected a finite number"),
        ({2: "1.0"}, "expected a finite number"),
        ({2: True}, "expected a finite number"),
        ({2: torch.ones(3)}, "expected a finite number"),
        ({9: 1.0}, "threshold for block 9, which has no vector"),
        ({2: 1.0, "2": 2.0}, "block 2 twice"),
        ({}, "expected a dict of block to threshold"),
        ([1.0, 2.0], "expected a dict of block to threshold"),
    ],
)
def test_thresholds_that_cannot_be_are_refused(tmp_path: Path, thresholds: Any, message: str) -> None:
    torch.save(thresholds, tmp_path / "t.pt")
    with pytest.raises(ArtifactError, match=message):
        original.read(foreign.original_axis(tmp_path, AXIS), ReadOptions(thresholds=tmp_path / "t.pt"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "no thresholds"),
        ('{"thresholds": {}}', "no thresholds"),
        ('{"thresholds": {"2": {"mean": 1.0}}}', "expected a finite number"),
        ('{"thresholds": {"2": NaN}}', "expected a finite number"),
        ('{"thresholds": {"2": 1e999}}', "expected a finite number"),
        ('{"thresholds": {"2": 1.0}, "capping_layers": [2, 3]}', "blocks 3 are capped and have no threshold"),
        ('{"thresholds": {"2": 1.0}, "capping_layers": "all"}', "expected a list of blocks"),
        ('{"thresholds": {"2": 1.0}, "n_layers": 32}', "is for 32 blocks"),
        ('{"thresholds": {"2": 1.0}, "alpha": 5}', "alpha is 5"),
    ],
)
def test_stats_that_cannot_be_are_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "stats.json").write_text(text)
    with pytest.raises(ArtifactError, match=message):
        original.read(foreign.original_axis(tmp_path, AXIS), ReadOptions(thresholds=tmp_path / "stats.json"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vectors": []}, "no `vectors`"),
        ({"experiments": []}, "no `experiments`"),
        ({"experiments": [{"interventions": []}]}, "no `experiments` with an id"),
        ({"experiments": [{"id": "a", "interventions": []}] * 2}, "no `experiments` with an id"),
        ({"experiments": [{"id": "a"}]}, "no list of interventions"),
        ({"experiments": [{"id": "a", "interventions": []}]}, "caps nothing"),
        ({"experiments": [{"id": "a", "interventions": [{"vector": "w", "cap": 1.0}]}]}, "'w', which is not there"),
        ({"experiments": [{"id": "a", "interventions": [{"cap": 1.0}]}]}, "'None', which is not there"),
        ({"experiments": [{"id": "a", "interventions": [{"vector": "v", "cap": None}]}]}, "expected a finite number"),
        ({"experiments": [{"id": "a", "interventions": [{"vector": "v", "cap": 1.0}] * 2}]}, "several vectors"),
        ({"vectors": {"v": {"layer": -2, "vector": torch.ones(8)}}}, "no block number"),
        ({"vectors": {"v": {"layer": 2, "vector": [1.0] * 8}}}, "expected a dense tensor"),
        ({"vectors": {"v": {"layer": 2, "vector": torch.zeros(8)}}}, "block 2 is zero"),
        ({"vectors": {"v": {"layer": 2, "vector": torch.ones(1, 8)}}}, "others have"),
    ],
)
def test_capping_configs_that_cannot_be_are_refused(tmp_path: Path, change: Any, message: str) -> None:
    config = {
        "vectors": {"v": {"layer": 2, "vector": torch.ones(8)}},
        "experiments": [{"id": "a", "interventions": [{"vector": "v", "cap": 1.0}]}],
    }
    torch.save(config | change, tmp_path / "c.pt")
    with pytest.raises(ArtifactError, match=message):
        paper.read_capping(tmp_path / "c.pt", PLAIN)


# GGUF headers


def a_vector(path: Path, **lies: Any) -> Path:
    return foreign.gguf(
        path, {"direction.2": AXIS[2]}, [foreign.entry("general.architecture", "controlvector")], **lies
    )


@pytest.mark.parametrize(
    ("lies", "message"),
    [
        ({"n_tensors": 1 << 60}, "claims 1152921504606846976 tensors"),
        ({"n_keys": 1 << 60}, "1152921504606846976 keys"),
        ({"n_tensors": 50}, "is refused"),
        ({"version": 1}, "version is 1"),
        ({"version": 3 << 24}, "version is 50331648"),
        ({"magic": b"GGML"}, "starts with b'GGML'"),
        ({"shape": [1 << 40]}, "left in the file"),
        ({"shape": [1 << 62]}, "left in the file"),
        ({"shape": [0]}, "no elements"),
        ({"shape": [4, 2]}, r"has shape \[4, 2\], expected one dimension"),
        ({"shape": []}, "expected one dimension"),
        ({"shape": [1] * 9}, "9 dimensions"),
        ({"cut": 10}, "left in the file"),
        ({"cut": 100}, "left in the file"),
    ],
)
@gguf_readers
def test_a_gguf_header_that_lies_is_refused(
    tmp_path: Path, lies: Any, message: str, read: Callable[[Path, ReadOptions], Any]
) -> None:
    with pytest.raises(ArtifactError, match=message):
        read(a_vector(tmp_path / "x.gguf", **lies), TOLD if read is control_vector.read else PLAIN)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (foreign.text("k", 10 << 30) + b"x", "a key is said to have 10737418240 bytes, 256 are allowed"),
        (foreign.text("k") + struct.pack("<I", 8) + foreign.text("v", 10 << 30), "1048576 are allowed"),
        (foreign.text("k") + struct.pack("<I", 8) + foreign.text("v", 1 << 20), "left in the file"),
        (foreign.text("k") + struct.pack("<IIQ", 9, 10, 1 << 60), "is said to have 9223372036854775808 bytes"),
        (foreign.text("k") + struct.pack("<IIQ", 9, 8, 1 << 60), "is said to have 1152921504606846976 texts"),
        (foreign.text("k") + struct.pack("<IIQ", 9, 9, 1), "an array of the type 9"),
        (foreign.text("k") + struct.pack("<I", 99), "unknown type 99"),
        (foreign.text(b"\xff\xfe") + struct.pack("<I", 8) + foreign.text("v"), "not text"),
        (foreign.entry("general.alignment", 0, "u32"), "alignment is 0"),
        (foreign.entry("general.alignment", 1 << 31, "u32"), "alignment is 2147483648"),
        (foreign.entry("a", 1, "u32") + foreign.entry("a", 2, "u32"), "the key 'a' twice"),
    ],
)
def test_a_gguf_key_that_lies_is_refused_before_anything_is_allocated(tmp_path: Path, key: bytes, message: str) -> None:
    keys = [foreign.entry("general.architecture", "controlvector"), key]
    n_keys = 3 if key.count(b"\x01\x00\x00\x00\x00\x00\x00\x00a") == 2 else 2
    path = foreign.gguf(tmp_path / "x.gguf", {"direction.2": AXIS[2]}, keys, n_keys=n_keys)
    tracemalloc.start()
    try:
        with pytest.raises(ArtifactError, match=message):
            control_vector.read(path, TOLD)
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("blk.0.attn_q.weight", "the tensor 'blk.0.attn_q.weight'.*Is it a model"),
        ("direction.02", "'02', which is no block number"),
        ("direction.-1", "no block number"),
        ("direction.", "no block number"),
        ("direction.99999999999999999999", "no block number"),
    ],
)
@gguf_readers
def test_tensors_of_another_name_are_refused(
    tmp_path: Path, name: str, message: str, read: Callable[[Path, ReadOptions], Any]
) -> None:
    with pytest.raises(ArtifactError, match=message):
        read(foreign.gguf(tmp_path / "x.gguf", {name: AXIS[0]}), PLAIN)


@pytest.mark.parametrize("bad", [AXIS[2] * 0, AXIS[2] * float("nan")])
@gguf_readers
def test_zero_and_nan_directions_are_refused(
    tmp_path: Path, bad: torch.Tensor, read: Callable[[Path, ReadOptions], Any]
) -> None:
    keys = [foreign.entry("general.architecture", "controlvector")] if read is control_vector.read else []
    path = foreign.gguf(tmp_path / "x.gguf", {"direction.2": bad}, keys)
    with pytest.raises(ArtifactError, match=r"block 2 (is zero|holds NaN)"):
        read(path, TOLD if read is control_vector.read else PLAIN)


def test_quantised_directions_are_refused(tmp_path: Path) -> None:
    path = foreign.gguf(tmp_path / "x.gguf", {"direction.2": AXIS[2].double()})
    with pytest.raises(ArtifactError, match=r"tensor type 28, expected F32, F16 or BF16"):
        acap.read(path, PLAIN)


@pytest.mark.parametrize(
    ("key", "message"),
    [
        (foreign.entry("acap.threshold.2", float("nan"), "f32"), "expected a finite number"),
        (foreign.entry("acap.threshold.2", 1, "u32"), "not stored as a floating-point number"),
        (foreign.entry("acap.threshold.5", 1.0, "f32"), "threshold for block 5, which has no vector"),
        (foreign.entry("acap.threshold.02", 1.0, "f32"), "no block number"),
        (foreign.entry("karma.block_count", "six"), "expected a whole number"),
        (foreign.entry("karma.block_count", 2, "u32"), "of a model of 2"),
        (foreign.entry("karma.orientation", "toward-persona"), "is a control vector"),
    ],
)
def test_thresholds_in_a_gguf_that_cannot_be_are_refused(tmp_path: Path, key: bytes, message: str) -> None:
    with pytest.raises(ArtifactError, match=message):
        acap.read(foreign.gguf(tmp_path / "x.gguf", {"direction.2": AXIS[2]}, [key]), PLAIN)


def test_a_control_vector_is_not_read_as_a_cap_nor_a_cap_as_a_control_vector(tmp_path: Path) -> None:
    vector = foreign.control_vector(tmp_path / "v.gguf", {2: AXIS[2]})
    with pytest.raises(ArtifactError, match=r"is a control vector, which is added"):
        acap.read(vector, PLAIN)
    cap = foreign.acap(tmp_path / "a.gguf", {2: AXIS[2]}, {2: 1.0})
    with pytest.raises(ArtifactError, match=r"architecture None, expected 'controlvector'.*--from acap"):
        control_vector.read(cap, TOLD)


@settings(max_examples=300)
@given(data=st.data())
def test_no_damage_to_a_gguf_ends_in_anything_but_a_reason(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.mktemp("damage")
    raw = bytearray(foreign.acap(folder / "a.gguf", {2: AXIS[2]}, {2: 1.0}).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = folder / "damaged.gguf"
    path.write_bytes(raw[: data.draw(st.integers(0, len(raw)))] if data.draw(st.booleans()) else raw)
    assert refusal(acap.read, path) in ("", str(path))


# Our own folder, and any file


@pytest.mark.parametrize("head", [struct.pack("<Q", 1 << 60), struct.pack("<Q", 90_000_000), b"abc"])
def test_a_safetensors_header_that_lies_is_refused(tmp_path: Path, head: bytes) -> None:
    (tmp_path / "axis.safetensors").write_bytes(head + b'{"karma-electric-axis"}')
    with pytest.raises(ArtifactError, match=r"not a safetensors file"):
        karma.read(tmp_path, PLAIN)


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "karma"])
def test_a_file_that_is_too_large_is_refused_unopened_and_can_be_allowed(tmp_path: Path, name: str) -> None:
    path = tmp_path / "large"
    with path.open("wb") as file:
        file.truncate(2_000_000)  # sparse, and nothing any format could open
    with pytest.raises(InputError, match=r"2 MB, more than the 1 MB allowed.*--max-mb"):
        read_as(FORMATS[name], path, ReadOptions(max_bytes=1_000_000))
    with pytest.raises(ArtifactError):
        read_as(FORMATS[name], path, ReadOptions(max_bytes=3_000_000))


@pytest.mark.parametrize("name", list(FORMATS))
def test_a_file_that_is_not_there_is_missing(tmp_path: Path, name: str) -> None:
    with pytest.raises(MissingError, match=r"does not exist"):
        read_as(FORMATS[name], tmp_path / "nothing", PLAIN)


def test_json_of_the_wrong_shape_is_not_a_cap_of_ours(tmp_path: Path) -> None:
    (tmp_path / "cap.json").write_text(json.dumps({"site": "block"}))
    with pytest.raises(ArtifactError, match=r"not a cap"):
        karma.read(tmp_path, PLAIN)
