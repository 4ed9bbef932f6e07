"""A model of a layout that is not known, from `karma chat`: the error says what to write, and writing it helps."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import BioGptConfig, BioGptForCausalLM

import tiny
from karma_electric.cli.chat import open_session
from karma_electric.core.errors import InputError
from karma_electric.core.messages import user
from karma_electric.models.blocks import Site
from karma_electric.models.engines.protocol import Sampling
from karma_electric.steer.axis import save_axis
from karma_electric.steer.spec import AXIS_FILE, CAP_FILE, CapSpec, save_spec

ASKED = Sampling(temperature=0, max_new_tokens=6)


@pytest.fixture
def workplace(tmp_path: Path) -> Path:
    """A BioGPT, whose blocks and MLPs have names of their own, and an axis."""
    tiny.write_tokenizer(tmp_path / "model")
    config = BioGptConfig(
        vocab_size=tiny.VOCABULARY,
        hidden_size=tiny.HIDDEN,
        num_hidden_layers=tiny.LAYERS,
        num_attention_heads=4,
        intermediate_size=tiny.INTERMEDIATE,
        max_position_embeddings=256,
        initializer_range=0.3,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BioGptForCausalLM(config).save_pretrained(tmp_path / "model")
    save_axis(tiny.random_axis(), tmp_path / AXIS_FILE)
    return tmp_path


def answer(workplace: Path, site: Site, alpha: float) -> str:
    layers = (2, 3)
    save_spec(CapSpec(AXIS_FILE, site, layers, dict.fromkeys(layers, -300.0), 1.0), workplace / CAP_FILE)
    cap = workplace / CAP_FILE
    session = open_session(str(workplace / "model"), cap=cap, alpha=alpha, system=None, sampling=ASKED)
    return session.engine.generate([[user("What should I do?")]], ASKED, alpha=alpha)[0].text


def name_parts(workplace: Path, **parts: str) -> None:
    file = workplace / "model" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "karma_layout": parts}))


def test_a_chat_with_a_model_of_unknown_layout_says_what_to_write_in_config_json(workplace: Path) -> None:
    with pytest.raises(InputError, match=r"BioGptForCausalLM .* biogpt\.layers \(6\).*karma_layout"):
        answer(workplace, "block", 1.0)
    name_parts(workplace, blocks="biogpt.layers")
    bare = answer(workplace, "block", 0.0)
    assert answer(workplace, "block", 1.0) != bare
    with pytest.raises(InputError, match=r"its parts: .* fc2, final_layer_norm\).*karma_layout"):
        answer(workplace, "mlp", 1.0)
    name_parts(workplace, blocks="biogpt.layers", mlp="fc2", mlp_norm="final_layer_norm")
    assert answer(workplace, "mlp", 1.0) != bare
