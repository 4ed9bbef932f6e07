"""Replacing a neuron: which one can best be spared, what the others take over, and the checkpoint that results."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file

import tiny
from baking import fitted
from karma_electric.models.chat_template import conversation_ids
from karma_electric.models.loading import load_model
from karma_electric.steer.checkpoint import write_baked
from karma_electric.steer.fit import fit_removals
from karma_electric.steer.gather import gather
from karma_electric.steer.prune import Moments, spare_in_turn

if TYPE_CHECKING:
    from pathlib import Path

    from transformers import PreTrainedTokenizerBase

CALIBRATION = tiny.chats(24, seed=31)


def moments(h: torch.Tensor) -> Moments:
    found = Moments()
    for part in h.split(100):
        found.add(part)
    return found


def test_a_neuron_that_the_others_determine_is_spared() -> None:
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(500, 6, generator=generator)
    h[:, 4] = 2 * h[:, 0] - h[:, 1]
    down = torch.randn(3, 6, generator=generator)
    down[:, 0] *= 50  # each of the three is determined by the others; this one's column is costly
    down[:, 1] *= 50
    removal = spare_in_turn(moments(h), down, 1)[0]
    assert removal.index == 4
    assert removal.share < 1e-3
    torch.testing.assert_close(removal.fold[:4].float(), torch.tensor([2.0, -1.0, 0.0, 0.0]), atol=0.02, rtol=0)
    assert removal.fold[4] == 0


def test_of_independent_neurons_the_one_that_adds_least_is_spared() -> None:
    h = torch.randn(4000, 4, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 3.0, 0.5, 2.0])
    down = torch.eye(4)
    removal = spare_in_turn(moments(h), down, 1)[0]
    assert removal.index == 2
    assert removal.share == pytest.approx(0.25 / (1 + 9 + 0.25 + 4), rel=0.1)


def test_the_cost_is_the_squared_output_that_is_lost() -> None:
    """Brute force: take each neuron out, let the others predict it by least squares, and measure."""
    h = torch.randn(800, 5, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    h = h @ torch.randn(5, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    down = torch.randn(7, 5, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    losses = []
    for j in range(5):
        others = [k for k in range(5) if k != j]
        solution = torch.linalg.lstsq(h[:, others], h[:, j]).solution
        lost = (h[:, j] - h[:, others] @ solution)[:, None] * down[:, j]
        losses.append(float(lost.pow(2).sum() / (h @ down.T).pow(2).sum()))
    removal = spare_in_turn(moments(h), down, 1)[0]
    assert removal.index == losses.index(min(losses))
    assert removal.share == pytest.approx(min(losses), rel=0.02)


def test_a_neuron_that_does_nothing_gives_way_to_the_cap(
    tiny_path: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Where one is dead in every capped block, replacing it is as good as appending, and nothing grows."""
    source = tmp_path / "source"
    source.mkdir()
    for file in tiny_path.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    weights = load_file(source / "model.safetensors")
    for layer in (2, 3, 4):
        weights[f"model.layers.{layer}.mlp.down_proj.weight"][:, 7 + layer] = 0
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    model = load_model(source, dtype="float32", device="cpu")
    cap = tiny.cap_at(model, tokenizer, "mlp", quantile=0.75, conversations=CALIBRATION)
    neurons = fitted(model, tokenizer, cap, CALIBRATION, ridge=1e-4)
    removed = fit_removals(model, [cap], gather(model, tokenizer, [cap], CALIBRATION, moments=True))
    assert {layer: removal.index for layer, (removal,) in removed.items()} == {2: 9, 3: 10, 4: 11}
    folders = {}
    for name, choice in (("append", None), ("replace", removed)):
        folders[name] = tmp_path / name
        folders[name].mkdir()
        changed = write_baked(source, neurons, folders[name], removed=choice)
        assert changed["placement"] == name
    assert changed["intermediate_size"] == {"before": 160, "after": 160}
    assert changed["replaced"]["3"][0]["neuron"] == 10
    ids = torch.tensor([conversation_ids(tokenizer, tiny.chats(1, seed=5)[0])])
    with torch.no_grad():
        appended, replaced = (
            load_model(folder, dtype="float32", device="cpu")(input_ids=ids).logits for folder in folders.values()
        )
        bare = model(input_ids=ids).logits
    torch.testing.assert_close(replaced, appended, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(replaced, bare, atol=1e-2)


def test_two_in_turn_cost_what_is_lost_without_both() -> None:
    """The second is chosen, and folded, as if the first had never been there: by least squares on the others."""
    h = torch.randn(800, 6, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    h = h @ torch.randn(6, 6, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    down = torch.randn(7, 6, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    first, second = spare_in_turn(moments(h), down, 2)
    columns = down
    for removal in (first, second):
        columns = columns + torch.outer(columns[:, removal.index], removal.fold)
    gone = [first.index, second.index]
    left = [k for k in range(6) if k not in gone]
    assert not second.fold[gone].any()
    lost = h @ down.T - h[:, left] @ columns[:, left].T
    # with both gone, no other columns for the rest lose less
    best = torch.linalg.lstsq(h[:, left], h @ down.T).solution
    least = h @ down.T - h[:, left] @ best
    assert float(lost.pow(2).sum()) == pytest.approx(float(least.pow(2).sum()), rel=0.01)
    share = float(least.pow(2).sum() / (h @ down.T).pow(2).sum())
    assert first.share + second.share == pytest.approx(share, rel=0.02)
