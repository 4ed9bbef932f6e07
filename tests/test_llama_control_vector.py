"""Control vectors in llama.cpp itself: its own loader reads what is written here, and adds it after the block meant."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch

import foreign_steering as foreign
import tiny
from karma_electric.export.gguf import export_gguf
from karma_electric.steer.formats import acap, control_vector
from karma_electric.steer.formats.steering import AWAY, Steering

if TYPE_CHECKING:
    from transformers import PreTrainedModel

pytestmark = pytest.mark.skipif(
    (platform.system(), platform.machine()) != ("Linux", "x86_64"), reason="asks llama.cpp through its ABI there"
)
IDS = [5, 9, 40, 77, 120, 33]
AXIS = foreign.vectors(tiny.LAYERS, tiny.HIDDEN)  # away from the persona
ROUNDING = 0.05  # llama.cpp's attention is float16 by default: 0.02 on these logits, which are about 2


@pytest.fixture(scope="module")
def gguf_file(tiny_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    export_gguf(tiny_path, path, file_type="f32", name="tiny")
    return path


def llama(gguf_file: Path, vector: Path | str, first: int = 1, last: int = tiny.LAYERS) -> tuple[int, torch.Tensor]:
    """Width of the vector as llama.cpp read it (-1: refused), and the logits of the last token."""
    program = Path(__file__).with_name("llama_logits.py")
    words = [sys.executable, program, gguf_file, vector, 1.0, first, last, ",".join(map(str, IDS))]
    ended = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-1000:]
    answer = json.loads(ended.stdout.splitlines()[-1])
    return answer["n_embd"], torch.tensor(answer["logits"])


def added(model: PreTrainedModel, vectors: dict[int, torch.Tensor]) -> torch.Tensor:
    """Logits of the last token in transformers, with vectors added to the output of blocks."""
    handles = [
        model.model.layers[layer].register_forward_hook(lambda _, __, h, v=vector: h + v)
        for layer, vector in vectors.items()
    ]
    try:
        with torch.no_grad():
            logits: torch.Tensor = model(torch.tensor([IDS])).logits[0, -1]
    finally:
        for handle in handles:
            handle.remove()
    return logits


def distance(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).abs().max())


def test_what_is_written_is_added_toward_the_persona_at_every_block_but_the_first(
    gguf_file: Path, model: PreTrainedModel, tmp_path: Path
) -> None:
    control_vector.write(Steering(dict(enumerate(AXIS)), AWAY, n_layers=tiny.LAYERS), tmp_path / "v.gguf")
    width, logits = llama(gguf_file, tmp_path / "v.gguf")
    assert width == tiny.HIDDEN
    toward = {layer: -AXIS[layer] for layer in range(1, tiny.LAYERS)}
    assert distance(logits, added(model, toward)) < ROUNDING
    assert distance(logits, added(model, {})) > 10 * ROUNDING, "it acts"
    assert distance(logits, added(model, {k: -v for k, v in toward.items()})) > 10 * ROUNDING, "not the other way"


@pytest.mark.parametrize("layer", [1, 3, 5])
def test_direction_n_is_added_after_block_n_counted_from_0(
    gguf_file: Path, model: PreTrainedModel, tmp_path: Path, layer: int
) -> None:
    control_vector.write(Steering({layer: AXIS[layer]}, AWAY), tmp_path / "v.gguf")
    _, logits = llama(gguf_file, tmp_path / "v.gguf")
    off = {block: distance(logits, added(model, {block: -AXIS[layer]})) for block in range(tiny.LAYERS)}
    assert off.pop(layer) < ROUNDING
    assert min(off.values()) > 2 * ROUNDING, off


def test_llama_cpp_has_no_direction_for_block_0(gguf_file: Path, tmp_path: Path) -> None:
    """What makes us leave it out, and say so."""
    path = foreign.control_vector(tmp_path / "v.gguf", {0: AXIS[0], 1: AXIS[1]})
    assert llama(gguf_file, path)[0] == -1


def test_a_cap_for_the_fork_is_added_by_llama_cpp_which_asks_for_no_architecture(
    gguf_file: Path, model: PreTrainedModel, tmp_path: Path
) -> None:
    """The danger that the documentation warns of: stock llama.cpp takes the file, and pushes away from the persona."""
    acap.write(Steering({3: AXIS[3]}, AWAY, {3: 0.0}, alpha=1.0), tmp_path / "a.gguf")
    width, logits = llama(gguf_file, tmp_path / "a.gguf")
    assert width == tiny.HIDDEN
    assert distance(logits, added(model, {3: AXIS[3]})) < ROUNDING
