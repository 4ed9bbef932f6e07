"""Files of ours that say what they cannot are refused with a reason; files of others are left as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from karma_electric.core.errors import ArtifactError, InputError
from karma_electric.steer.axis import load_axis, save_axis
from karma_electric.steer.formats.registry import with_blocks
from karma_electric.steer.formats.steering import AWAY, Steering
from karma_electric.steer.responses import FILE, by_split
from karma_electric.steer.spec import CapSpec, load_spec, save_spec

GOOD = CapSpec(
    axis="axis.safetensors",
    site="mlp",
    layers=(2, 3),
    thresholds={2: 1.0, 3: 2.0},
    alpha=0.5,
    cap_rate={"2": 0.2, "3": 0.2, "mean": 0.2},
    reference={"mean": {"2": 0.1, "3": 0.1}, "sd": {"2": 1.0, "3": 1.0}, "tokens_sha256": "x", "conversations": 1},
)


def written(tmp_path: Path, **changes: Any) -> Path:
    path = tmp_path / "cap.json"
    save_spec(GOOD, path)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return path


def test_a_cap_that_is_one_is_read(tmp_path: Path) -> None:
    assert load_spec(written(tmp_path)) == GOOD


@pytest.mark.parametrize(
    "changes",
    [
        {"axis": 5},
        {"axis": "/etc/passwd"},
        {"axis": "../axis.safetensors"},
        {"method": None},
        {"calibrated_on": None},
        {"cap_rate": {"mean": "x"}},
        {"cap_rate": {"2": 0.2}},
        {"reference": {"mean": {"2": 0.1, "3": 0.1}}},
        {"layers": [True, 3]},
        {"layers": [2, 2, 3]},
        {"layers": [3, 2]},
        {"layers": 2},
        {"alpha": 10**400},
        {"thresholds": [1.0, 2.0]},
    ],
    ids=str,
)
def test_a_field_that_cannot_be_is_named(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(ArtifactError, match="is not a cap"):
        load_spec(written(tmp_path, **changes))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"alpha": ' + "9" * 5000 + "}", "\ud800"])
def test_json_that_cannot_be_read_is_no_bug(tmp_path: Path, text: str) -> None:
    path = tmp_path / "cap.json"
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    with pytest.raises(ArtifactError, match="is not JSON"):
        load_spec(path)


def changed_axis(tmp_path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]) -> Path:
    from safetensors import safe_open
    from safetensors.torch import save_file

    path = tmp_path / "axis.safetensors"
    save_axis(tiny.random_axis(), path)
    with safe_open(path, framework="pt") as file:
        held = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        said = file.metadata()
    save_file({**held, **tensors}, path, metadata={**said, **metadata})
    return path


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        ({"direction.mlp": torch.ones(tiny.LAYERS, tiny.HIDDEN, dtype=torch.int32)}, {}),
        ({"direction.mlp": torch.eye(tiny.LAYERS, tiny.HIDDEN).to(torch.complex64)}, {}),
        ({"direction.mlp": torch.ones(tiny.HIDDEN) / tiny.HIDDEN**0.5}, {}),
        ({"norm.mlp": torch.full((tiny.LAYERS,), float("nan"))}, {}),
        ({}, {"away": "[1, 2]"}),
        ({}, {"stats": "[" * 100_000}),
        ({}, {"stats": "[]"}),
    ],
)
def test_an_axis_that_cannot_be_is_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], metadata: dict[str, str]
) -> None:
    path = changed_axis(tmp_path, tensors, metadata)
    with pytest.raises(ArtifactError, match="axis"):
        load_axis(path)


def test_no_model_has_a_milliard_of_blocks() -> None:
    steering = Steering(vectors={0: torch.ones(4)}, orientation=AWAY)
    with pytest.raises(InputError, match="No model has"):
        with_blocks(steering, 10**9)


def test_who_reads_responses_leaves_the_file_as_it_is(tmp_path: Path) -> None:
    """A last line without a line break is a line: only whoever writes the file may take it for torn."""
    line = {"id": "1", "split": "heldout", "kind": "deployment", "system": "s", "prompt": "p", "text": "t"}
    path = tmp_path / FILE
    path.write_text(json.dumps(line))
    before = path.read_bytes()
    assert len(by_split(path)["heldout"]) == 1
    assert path.read_bytes() == before
