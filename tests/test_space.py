"""The disk a run asks for before it starts is what its stages write, and what the how-to says."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from karma_electric.core.recipe import load_recipe
from karma_electric.space import SLACK, Space, shapes_of, space_of

HOW_TO = Path(__file__).resolve().parent.parent / "docs" / "howto" / "train-v3.md"
LLAMA = {"num_hidden_layers": 32, "hidden_size": 4096, "intermediate_size": 14336, "vocab_size": 128256}
SMOLLM = {"num_hidden_layers": 30, "hidden_size": 576, "intermediate_size": 1536, "vocab_size": 49152}


def shapes(config: dict[str, int], *, kv: int, tied: bool) -> dict[str, tuple[int, ...]]:
    """The tensors of a Llama checkpoint, by their names there."""
    hidden, wide, words = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (words, hidden), "model.norm.weight": (hidden,)}
    if not tied:
        found["lm_head.weight"] = (words, hidden)
    for n in range(config["num_hidden_layers"]):
        block = {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (wide, hidden),
            "mlp.up_proj": (wide, hidden),
            "mlp.down_proj": (hidden, wide),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }
        found |= {f"model.layers.{n}.{name}.weight": shape for name, shape in block.items()}
    return found


def llama() -> dict[str, Space]:
    """What the recipe for Llama 3.1 8B takes."""
    return space_of(load_recipe("llama31-8b-v3.toml"), shapes(LLAMA, kv=1024, tied=False), LLAMA, prompts=200)


def test_the_8b_adapter_asks_for_an_adapter_and_its_checkpoints() -> None:
    """168M parameters in float32, and three checkpoints with two float32 moments each while one is written."""
    adapter = llama()["adapter"]
    assert adapter.stays - SLACK == 4 * 167_772_160
    assert adapter.scratch == pytest.approx(3 * 12 * 167_772_160, rel=0.02)


def test_the_8b_models_ask_for_their_weights() -> None:
    numbers = 8_030_261_248
    found = {name: space.stays - SLACK for name, space in llama().items()}
    assert found["merged"] == 2 * numbers
    assert found["merged"] < found["capped"] < 1.01 * found["merged"]
    assert found["gguf"] == pytest.approx(2 * 34 / 32 * numbers, rel=0.01)


def test_the_how_to_names_the_disk_that_is_asked_for() -> None:
    """All that stays, and what is needed besides while the last of it is made."""
    kept = needed = 0
    for space in llama().values():
        needed = max(needed, kept + space.stays + space.scratch)
        kept += space.stays
    said = re.search(r"(\d+) GB free beside it", HOW_TO.read_text(encoding="utf-8"))
    assert said is not None
    assert int(said[1]) == math.ceil(needed / 1e9 + 0.1)  # 0.1: the stages that hold text


def test_a_large_rank_on_a_small_model_asks_for_more_than_the_model() -> None:
    recipe = load_recipe("smollm2-v3.toml", ["train.rank=512"])
    found = space_of(recipe, shapes(SMOLLM, kv=192, tied=True), SMOLLM, prompts=200)
    trained = 8 * 19_537_920
    assert found["adapter"].scratch > 3 * 12 * trained
    assert found["merged"].stays - SLACK == 2 * 134_515_008


def test_a_type_of_four_bytes_asks_for_twice_as_much() -> None:
    changes = ["merge.dtype=float32", "gguf.type=f32"]
    recipe = load_recipe("smollm2-v3.toml", changes)
    wide = space_of(recipe, shapes(SMOLLM, kv=192, tied=True), SMOLLM, prompts=200)
    assert wide["merged"].stays - SLACK == 4 * 134_515_008
    assert wide["gguf"].stays - SLACK == pytest.approx(8 * 134_515_008, rel=0.02)


def test_checkpoints_that_are_saved_more_often_are_kept_in_larger_number() -> None:
    recipe = load_recipe("llama31-8b-v3.toml", ["train.save_steps=2"])
    found = space_of(recipe, shapes(LLAMA, kv=1024, tied=False), LLAMA, prompts=200)
    assert found["adapter"].scratch == pytest.approx(7 / 3 * llama()["adapter"].scratch)


def test_a_folder_without_weights_has_no_shapes(tmp_path: Path) -> None:
    assert shapes_of(tmp_path) == {}
