"""Merging, against peft's own: adapters made with peft on tiny models, tied and not, in one file and in shards."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers.utils.hub import CHAT_TEMPLATE_DIR

import karma_electric.train.merge as merge_module
import tiny
from karma_electric.core.errors import ArtifactError, InputError, KarmaError, MissingError, RecipeError, SpaceError
from karma_electric.core.recipe import MergeSection, load_recipe
from karma_electric.models.chat_template import conversation_ids
from karma_electric.models.loading import import_quietly, load_model, load_tokenizer, quiet_transformers
from karma_electric.models.weights import Layout, stored_tensors
from karma_electric.train.adapter_file import Lora
from karma_electric.train.merge import merge_adapter
from karma_electric.train.merge_plan import Source

import_quietly("bitsandbytes", "peft")

FLOAT32 = MergeSection(dtype="float32")
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


# Models and adapters


def write_base(
    folder: Path,
    *,
    tied: bool = True,
    dtype: torch.dtype = torch.float32,
    shards: bool = False,
    biased: bool = False,
    **sizes: int,
) -> Path:
    """The tiny model's tokenizer with a model of another making: untied, in bfloat16, in shards, with biases."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        **{
            "vocab_size": tiny.VOCABULARY,
            "hidden_size": 64,
            "intermediate_size": 192,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            **sizes,
        },
        initializer_range=0.2,
        tie_word_embeddings=tied,
        attention_bias=biased,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        for name, parameter in model.named_parameters():
            if name.endswith(".bias"):
                torch.nn.init.normal_(parameter)
    folder.mkdir(parents=True)
    with quiet_transformers():
        model.to(dtype).save_pretrained(folder, max_shard_size="100KB" if shards else "1GB")
    tiny.write_tokenizer(folder)
    return folder


def write_adapter(base: Path, folder: Path, **options: Any) -> Path:
    """An adapter that peft made and saved, with every number it trains moved away from where it began."""
    from peft import LoraConfig, get_peft_model

    with quiet_transformers(), torch.random.fork_rng():
        torch.manual_seed(1)
        model = load_model(base, dtype="float32", device="cpu")
        adapted = get_peft_model(model, LoraConfig(**{"r": 4, "lora_alpha": 8, "task_type": "CAUSAL_LM", **options}))
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
        adapted.save_pretrained(folder)
    return folder


def with_adapter(base: Path, adapter: Path) -> Any:
    from peft import PeftModel

    with quiet_transformers():
        return PeftModel.from_pretrained(load_model(base, dtype="float32", device="cpu"), str(adapter)).eval()


def merged_by_peft(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    with quiet_transformers():
        return dict(with_adapter(base, adapter).merge_and_unload(safe_merge=True).state_dict())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a checkpoint, by the library."""
    return {name: t for file in sorted(folder.glob("*.safetensors")) for name, t in load_file(file).items()}


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=torch.arange(3, 60).unsqueeze(0)).logits[0]
    return found


def merged_logits(folder: Path) -> torch.Tensor:
    return logits(load_model(folder, dtype="float32", device="cpu"))


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("untied") / "base", tied=False)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base(tmp_path_factory.mktemp("tied") / "base")


@pytest.fixture(scope="module")
def plain(tied: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kind of adapter that karma trains: on every linear layer of the blocks."""
    return write_adapter(tied, tmp_path_factory.mktemp("plain") / "adapter", target_modules=ALL)


# Against peft


KINDS: dict[str, dict[str, Any]] = {
    "every linear layer": {"target_modules": ALL, "r": 7, "lora_alpha": 3},
    "rank-stabilised": {"target_modules": ALL, "use_rslora": True},
    "ranks and alphas by pattern": {
        "target_modules": ALL,
        "rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 9},
        "alpha_pattern": {r".*\.0\..*k_proj": 32, "up_proj": 1},
    },
    "one block": {"target_modules": ["q_proj", "up_proj"], "layers_to_transform": [1]},
    "targets by regular expression": {"target_modules": r".*\.layers\.0\..*(gate|o)_proj"},
    "all-linear": {"target_modules": "all-linear", "exclude_modules": ["v_proj"]},
    "DoRA": {"target_modules": ALL, "use_dora": True, "use_rslora": True},
    "trained modules beside it": {
        "target_modules": ATTENTION,
        "modules_to_save": ["lm_head", "embed_tokens", "norm", "input_layernorm"],
    },
    "a whole MLP beside it": {"target_modules": ["q_proj"], "modules_to_save": ["mlp"]},
    "the output embedding": {"target_modules": ["q_proj", "lm_head"]},
    "the input embedding": {"target_modules": ["q_proj", "embed_tokens"]},
    "DoRA on an embedding": {"target_modules": ["embed_tokens"], "use_dora": True},
    "trained tokens": {"target_modules": ["q_proj"], "trainable_token_indices": [11, 3, 399]},
    "trained tokens on both ends": {
        "target_modules": ["q_proj"],
        "trainable_token_indices": {"embed_tokens": [5], "lm_head": [7, 2]},
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_made_with_peft_merges_as_peft_merges_it(untied: Path, tmp_path: Path, kind: str) -> None:
    """In float32, equal to a few units in the last place: the sums of B A are added up in another order."""
    adapter = write_adapter(untied, tmp_path / "adapter", **KINDS[kind])
    merge_adapter(untied, adapter, FLOAT32, tmp_path / "out")
    expected, found, before = merged_by_peft(untied, adapter), weights(tmp_path / "out"), weights(untied)
    assert found.keys() == expected.keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-6)
    assert sum(not torch.equal(tensor, before[name]) for name, tensor in found.items()) > 0
    torch.testing.assert_close(
        merged_logits(tmp_path / "out"), logits(with_adapter(untied, adapter)), rtol=0, atol=2e-4
    )


@pytest.mark.parametrize("options", [{"bias": "all"}, {"bias": "lora_only"}, {"lora_bias": True}])
def test_biases_that_were_trained_are_merged(tmp_path: Path, options: dict[str, Any]) -> None:
    base = write_base(tmp_path / "base", biased=True)
    adapter = write_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "o_proj"], **options)
    merge_adapter(base, adapter, FLOAT32, tmp_path / "out")
    expected, found, before = merged_by_peft(base, adapter), weights(tmp_path / "out"), weights(base)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-6)
    bias = "model.layers.0.self_attn.q_proj.bias"
    assert not torch.equal(found[bias], before[bias])


def test_layers_stored_the_other_way_round_are_merged(tmp_path: Path) -> None:
    """GPT-2 stores its linear layers [in, out]; `c_proj` is square, so that shapes alone do not tell."""
    from transformers import GPT2Config, GPT2LMHeadModel

    base = tmp_path / "base"
    with quiet_transformers():
        GPT2LMHeadModel(GPT2Config(vocab_size=50, n_positions=64, n_embd=32, n_layer=2, n_head=2)).save_pretrained(base)
    for name, options in {"lora": {}, "dora": {"use_dora": True}}.items():
        targets = ["c_attn", "c_proj"]
        adapter = write_adapter(base, tmp_path / name, target_modules=targets, fan_in_fan_out=True, **options)
        merge_adapter(base, adapter, FLOAT32, tmp_path / f"{name}-out")
        expected, found = merged_by_peft(base, adapter), weights(tmp_path / f"{name}-out")
        assert "transformer.h.0.attn.c_proj.weight" in found
        for tensor_name, tensor in found.items():
            torch.testing.assert_close(tensor, expected[tensor_name], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("shards", [False, True])
@pytest.mark.parametrize("kind", ["every linear layer", "DoRA", "trained modules beside it"])
def test_a_merge_to_bfloat16_is_pefts_rounded_once(tmp_path: Path, kind: str, shards: bool) -> None:
    """Equal but for numbers that lie, to float32, in the middle between two of bfloat16: these go either way."""
    base = write_base(tmp_path / "base", tied=False, dtype=torch.bfloat16, shards=shards)
    assert (base / "model.safetensors.index.json").exists() == shards
    adapter = write_adapter(base, tmp_path / "adapter", **KINDS[kind])
    merge_adapter(base, adapter, MergeSection(), tmp_path / "out")
    expected, found = merged_by_peft(base, adapter), weights(tmp_path / "out")
    assert found.keys() == expected.keys()
    numbers, different = 0, 0
    for name, tensor in found.items():
        rounded = expected[name].to(torch.bfloat16)
        assert tensor.dtype == torch.bfloat16
        torch.testing.assert_close(tensor, rounded, rtol=2**-7, atol=1e-6)
        numbers += tensor.numel()
        different += int((tensor != rounded).sum())
    assert different <= 1e-4 * numbers


def test_an_adapter_in_half_precision_is_added_in_float32(tied: Path, plain: Path, tmp_path: Path) -> None:
    adapter = shutil.copytree(plain, tmp_path / "adapter")
    save_file({k: t.bfloat16() for k, t in weights(plain).items()}, adapter / "adapter_model.safetensors")
    merge_adapter(tied, adapter, FLOAT32, tmp_path / "out")
    expected = merged_by_peft(tied, adapter)
    for name, tensor in weights(tmp_path / "out").items():
        torch.testing.assert_close(tensor, expected[name], rtol=1e-6, atol=1e-6)


@given(
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.integers(1, 4),
    st.integers(1, 40),
    st.booleans(),
    st.booleans(),
)
def test_the_formulas_hold_however_a_tensor_is_cut_into_pieces(
    tmp_path_factory: pytest.TempPathFactory,
    shape: tuple[int, int],
    rank: int,
    piece: int,
    stored_in_out: bool,
    dora: bool,
) -> None:
    """W + s B A, and m (W + s B A) / |W + s B A| per output, against float64."""
    outputs, inputs = shape
    path = tmp_path_factory.mktemp("f") / "t.safetensors"
    generator = torch.Generator().manual_seed(rank * piece)
    numbers = {
        "W": torch.randn(
            inputs if stored_in_out else outputs, outputs if stored_in_out else inputs, generator=generator
        ),
        "A": torch.randn(rank, inputs, generator=generator),
        "B": torch.randn(outputs, rank, generator=generator),
        "m": torch.rand(outputs, generator=generator) + 0.5,
    }
    save_file(numbers, path)
    stored = stored_tensors(path)
    lora = Lora(stored["A"], stored["B"], 1.75, stored["m"] if dora else None, None, on_embedding=False)
    source = Source(stored["W"], lora, stored_in_out=stored_in_out)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(merge_module, "_PIECE", piece)
        pieces = list(merge_module.merged_rows(source, Layout("W", "F32", stored["W"].shape)))
    assert len(pieces) >= min(numbers["W"].numel() // piece, len(numbers["W"]))
    w, a, b, m = (tensor.double() for tensor in numbers.values())
    expected = (w.T if stored_in_out else w) + 1.75 * b @ a  # [out, in]
    if dora:
        expected = m[:, None] * expected / expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(
        torch.cat(pieces), (expected.T if stored_in_out else expected).float(), rtol=1e-4, atol=1e-5
    )


# Tied embeddings

TIED: dict[str, tuple[bool, dict[str, Any]]] = {  # whether they have to be untied
    "nothing of them": (False, {"target_modules": ALL}),
    "the output end": (True, {"target_modules": ["q_proj", "lm_head"]}),
    "the input end": (True, {"target_modules": ["q_proj", "embed_tokens"]}),
    "both ends, differently": (True, {"target_modules": ["q_proj", "embed_tokens", "lm_head"]}),
    "both ends alike": (False, {"target_modules": ["q_proj", "embed_tokens"], "ensure_weight_tying": True}),
    "the input end, replaced": (True, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}),
    "the output end, replaced": (True, {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}),
    "both ends, replaced": (True, {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]}),
    "both ends, replaced alike": (
        False,
        {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True},
    ),
    "single tokens": (False, {"target_modules": ["q_proj"], "trainable_token_indices": [3, 9]}),
    "DoRA on the input end": (True, {"target_modules": ["embed_tokens"], "use_dora": True}),
}


@pytest.mark.parametrize("stored_twice", [False, True])
@pytest.mark.parametrize("changed", TIED)
def test_tied_embeddings_answer_as_the_adapter_was_trained(
    tied: Path, tmp_path: Path, changed: str, stored_twice: bool
) -> None:
    """peft itself adds a change of one end to both; what counts is adapter on base, which was trained."""
    untie, options = TIED[changed]
    base = shutil.copytree(tied, tmp_path / "base")
    if stored_twice:  # some checkpoints hold the output embedding although it is tied
        both = weights(base)
        both["lm_head.weight"] = both["model.embed_tokens.weight"].clone()
        save_file(both, base / "model.safetensors", {"format": "pt"})
    adapter = write_adapter(base, tmp_path / "adapter", **options)
    summary = merge_adapter(base, adapter, FLOAT32, tmp_path / "out")
    torch.testing.assert_close(merged_logits(tmp_path / "out"), logits(with_adapter(base, adapter)), rtol=0, atol=2e-4)
    assert summary["untied"] == untie
    assert json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"] != untie
    assert ("lm_head.weight" in weights(tmp_path / "out")) == (untie or stored_twice)


def test_ends_that_a_checkpoint_holds_with_different_values_are_not_tied(tied: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tied, tmp_path / "base")
    both = weights(base)
    both["lm_head.weight"] = both["model.embed_tokens.weight"].flip(0).contiguous()
    save_file(both, base / "model.safetensors", {"format": "pt"})
    adapter = write_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "lm_head"])
    merge_adapter(base, adapter, FLOAT32, tmp_path / "out")
    torch.testing.assert_close(merged_logits(tmp_path / "out"), logits(with_adapter(base, adapter)), rtol=0, atol=2e-4)


# The base in 4 bits


def test_a_dequantised_base_is_the_model_that_was_trained(tmp_path: Path) -> None:
    """As bitsandbytes holds it in training: every linear layer of the blocks is rounded, with an adapter or without."""
    import bitsandbytes as bnb
    from peft import PeftModel
    from transformers import BitsAndBytesConfig

    base = write_base(tmp_path / "base", dtype=torch.bfloat16, hidden_size=128)
    adapter = write_adapter(base, tmp_path / "adapter", target_modules=["q_proj", "down_proj"])
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    with quiet_transformers():
        trained = PeftModel.from_pretrained(load_model(base, dtype="float32", quantisation=nf4), str(adapter))
    summary = merge_adapter(base, adapter, MergeSection(dtype="float32", base="dequantised-nf4"), tmp_path / "out")
    found, original = weights(tmp_path / "out"), weights(base)
    quantised = set()
    for name, module in trained.get_base_model().named_modules():
        if isinstance(getattr(module, "base_layer", module), bnb.nn.Linear4bit) and not name.endswith("base_layer"):
            layer = getattr(module, "base_layer", module).weight
            expected = bnb.functional.dequantize_4bit(layer.data, layer.quant_state)
            if hasattr(module, "get_delta_weight"):
                expected = expected + module.get_delta_weight("default")
            torch.testing.assert_close(found[f"{name}.weight"], expected, rtol=1e-6, atol=1e-6)
            assert (expected - original[f"{name}.weight"].float()).abs().max() > 0.01
            quantised.add(f"{name}.weight")
    assert (summary["base_weights"], summary["dequantised_tensors"], len(quantised)) == ("dequantised-nf4", 14, 14)
    for name in original.keys() - quantised:
        assert torch.equal(found[name], original[name].float()), name


def test_a_recipe_that_trains_on_16_bits_does_not_merge_into_4() -> None:
    with pytest.raises(RecipeError, match="for an adapter that was trained on NF4"):
        load_recipe("demo.toml", ["merge.base=dequantised-nf4", "train.quantisation=none"])


# Files


def test_a_merged_folder_is_whole_and_loads_from_shards(tied: Path, plain: Path, tmp_path: Path) -> None:
    one, many = tmp_path / "one", tmp_path / "many"
    merge_adapter(tied, plain, MergeSection(), one)
    summary = merge_adapter(tied, plain, MergeSection(max_shard_size="0.1MB"), many)
    assert [p.name for p in one.glob("*.safetensors*")] == ["model.safetensors"]
    files = sorted(p.name for p in many.glob("*.safetensors"))
    assert files == [f"model-{n:05d}-of-{len(files):05d}.safetensors" for n in range(1, len(files) + 1)]
    assert summary["files"] == len(files) > 2
    index = json.loads((many / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(files)
    assert index["metadata"]["total_size"] == sum(t.nbytes for t in weights(many).values()) == summary["bytes"]
    whole, parts = weights(one), weights(many)
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], tensor) for name, tensor in parts.items())
    torch.testing.assert_close(merged_logits(many), merged_logits(one), rtol=0, atol=0)


def test_what_is_beside_the_weights_is_the_bases(tied: Path, plain: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tied, tmp_path / "base")
    (base / "LICENSE.txt").write_text("terms")
    (base / "README.md").write_text("a card of another model")
    (base / CHAT_TEMPLATE_DIR).mkdir()
    (base / CHAT_TEMPLATE_DIR / "tools.jinja").write_text("{{ messages }}")
    merge_adapter(base, plain, MergeSection(), tmp_path / "out")
    kept = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json", "LICENSE.txt")
    for name in (*kept, f"{CHAT_TEMPLATE_DIR}/tools.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (base / name).read_bytes()
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (base, tmp_path / "out"))
    assert after == {**before, "dtype": "bfloat16"}
    assert {p.name for p in (tmp_path / "out").iterdir()} == {
        *kept,
        CHAT_TEMPLATE_DIR,
        "config.json",
        "merge.json",
        "model.safetensors",
    }


def test_the_same_merge_gives_the_same_bytes(tied: Path, plain: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        merge_adapter(tied, plain, MergeSection(max_shard_size="0.2MB"), tmp_path / name)
    for file in (tmp_path / "a").iterdir():
        assert file.read_bytes() == (tmp_path / "b" / file.name).read_bytes(), file.name


class Reaper:
    """A progress that stops the merge when `at` tensors are done."""

    def __init__(self, at: int) -> None:
        self.at, self.done = at, 0

    def update(self, done: int, total: int, note: str = "") -> None:
        self.done = done
        if done == self.at:
            raise Killed

    def say(self, text: str) -> None:
        """Ignore."""


def test_a_killed_merge_goes_on_with_the_next_file(tied: Path, plain: Path, tmp_path: Path) -> None:
    section, out = MergeSection(max_shard_size="0.1MB"), tmp_path / "out"
    merge_adapter(tied, plain, section, tmp_path / "whole")
    with pytest.raises(Killed):
        merge_adapter(tied, plain, section, out, progress=Reaper(17))
    written = sorted(out.glob("*.safetensors"))
    assert 2 <= len(written) < len(list((tmp_path / "whole").glob("*.safetensors")))
    assert not (out / "config.json").exists()
    damaged = bytearray(written[0].read_bytes())
    damaged[-1] ^= 1  # the right size, another content
    written[0].write_bytes(damaged)
    before = {file: file.stat().st_mtime_ns for file in written}
    merge_adapter(tied, plain, section, out)
    assert [file.stat().st_mtime_ns == before[file] for file in written] == [False, *[True] * (len(written) - 1)]
    for file in (tmp_path / "whole").iterdir():
        assert file.read_bytes() == (out / file.name).read_bytes(), file.name
    assert len(list(out.iterdir())) == len(list((tmp_path / "whole").iterdir()))


def test_files_of_another_merge_are_not_continued(tied: Path, plain: Path, tmp_path: Path) -> None:
    with pytest.raises(Killed):
        merge_adapter(tied, plain, MergeSection(max_shard_size="0.1MB"), tmp_path / "out", progress=Reaper(12))
    (tmp_path / "out" / ".model-00003-of-00003.safetensors.1.tmp").touch()  # torn by a kill that nothing could catch
    merge_adapter(tied, plain, FLOAT32, tmp_path / "out")
    assert [p.name for p in (tmp_path / "out").glob("*model*")] == ["model.safetensors"]
    assert all(tensor.dtype == torch.float32 for tensor in weights(tmp_path / "out").values())


def test_a_full_disk_is_found_before_anything_is_written(
    tied: Path, plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(SpaceError, match="is free"):
        merge_adapter(tied, plain, MergeSection(), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


# Memory

MEASURE = """
import gc, json, sys
from pathlib import Path
import torch
from karma_electric.models.loading import import_quietly
import_quietly("bitsandbytes", "peft", "transformers.models.llama.modeling_llama")
from karma_electric.core.recipe import MergeSection
from karma_electric.models.skeleton import read_skeleton
from karma_electric.train.merge import merge_adapter
from karma_electric.train.nf4 import nf4_round_trip

def status(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))

torch.set_num_threads(1)
read_skeleton(Path(sys.argv[1]))  # what the libraries load when they are first used is not what is measured
nf4_round_trip(torch.ones(64, 64) @ torch.ones(64, 64))
gc.collect()
open("/proc/self/clear_refs", "w").write("5")  # from here on the peak is measured anew
before = status("VmRSS")
base, adapter, out = map(Path, sys.argv[1:4])
merge_adapter(base, adapter, MergeSection(**json.loads(sys.argv[4])), out)
print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the peak is read from Linux's /proc")
@pytest.mark.parametrize("base_weights", ["bf16", "dequantised-nf4"])
def test_a_merge_takes_less_memory_than_two_files_and_the_adapter(tmp_path: Path, base_weights: str) -> None:
    """142 MB of weights in files of 24 MB; to hold them all, as peft does, would take more than twice the bound."""
    hidden, layers, rank, limit = 512, 16, 16, 24_000_000
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    shapes = {"mlp.down_proj": (hidden, 2048), "mlp.gate_proj": (2048, hidden), "mlp.up_proj": (2048, hidden)}
    shapes |= {f"self_attn.{name}": (hidden, hidden) for name in ATTENTION}
    tensors = {"model.embed_tokens.weight": torch.randn(8000, hidden), "model.norm.weight": torch.ones(hidden)}
    pairs = {}
    for layer in range(layers):
        prefix = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}.{norm}.weight"] = torch.ones(hidden)
        for name, (outputs, inputs) in shapes.items():
            tensors[f"{prefix}.{name}.weight"] = torch.randn(outputs, inputs)
            pairs[f"base_model.model.{prefix}.{name}.lora_A.weight"] = torch.randn(rank, inputs)
            pairs[f"base_model.model.{prefix}.{name}.lora_B.weight"] = torch.randn(outputs, rank)
    write_by_hand(base, adapter, tensors, pairs, rank, limit)
    total = sum(2 * tensor.numel() for tensor in tensors.values())
    bound = 2 * limit + sum(tensor.nbytes for tensor in pairs.values())
    assert total > 2 * bound, "a bound that a merge of the whole model in memory would break"
    settings = {"base": base_weights, "max_shard_size": f"{limit / 1e6:g}MB"}
    done = subprocess.run(
        [sys.executable, "-c", MEASURE, base, adapter, tmp_path / "out", json.dumps(settings)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out").glob("*.safetensors"))) >= 6
    peak = int(done.stdout.split()[-1])
    print(f"peak {peak / 1e6:.0f} MB, bound {bound / 1e6:.0f} MB, weights {total / 1e6:.0f} MB")
    assert peak < bound


def write_by_hand(
    base: Path, adapter: Path, tensors: dict[str, Any], pairs: dict[str, Any], rank: int, limit: int
) -> None:
    """A sharded Llama in bfloat16 and an adapter for it, without ever building the model."""
    from transformers import LlamaConfig

    hidden = tensors["model.norm.weight"].numel()
    config = LlamaConfig(
        vocab_size=8000,
        hidden_size=hidden,
        intermediate_size=2048,
        num_hidden_layers=16,
        num_attention_heads=8,
        tie_word_embeddings=True,
    )
    config.architectures = ["LlamaForCausalLM"]
    config.save_pretrained(base)
    weight_map, shard, number = {}, {}, 1
    for name, tensor in tensors.items():
        shard[name] = tensor.bfloat16()
        weight_map[name] = f"model-{number}.safetensors"
        if sum(part.nbytes for part in shard.values()) > limit:
            save_file(shard, base / weight_map[name], {"format": "pt"})
            shard, number = {}, number + 1
    save_file(shard, base / f"model-{number}.safetensors", {"format": "pt"})
    (base / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    adapter.mkdir()
    save_file(pairs, adapter / "adapter_model.safetensors")
    options = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": ALL}
    (adapter / "adapter_config.json").write_text(json.dumps(options))


# The comparison with adapter on base


@pytest.mark.parametrize(("dtype", "rounding"), [("float32", 1e-4), ("bfloat16", 0.25)])
def test_the_summary_says_how_far_the_merged_model_is_from_adapter_on_base(
    tied: Path, plain: Path, tmp_path: Path, dtype: Any, rounding: float
) -> None:
    """`rounding` is the mean difference of logits, as a share of what the adapter itself changes."""
    conversations = tiny.chats(3, seed=2)
    summary = merge_adapter(tied, plain, MergeSection(dtype=dtype), tmp_path, conversations=conversations)
    tokenizer = load_tokenizer(tied)
    models = (
        with_adapter(tied, plain),
        load_model(tmp_path, dtype="float32", device="cpu"),
        load_model(tied, dtype="float32", device="cpu"),
    )
    probes = [torch.tensor([conversation_ids(tokenizer, c)]) for c in conversations]
    with torch.no_grad():
        expected, found, base = (torch.cat([m(input_ids=i).logits[0] for i in probes]) for m in models)
    difference = (found - expected).abs()
    assert difference.mean() < rounding * (base - expected).abs().mean()
    assert json.loads((tmp_path / "merge.json").read_text()) == summary
    assert summary["max_abs_logit_difference"] == pytest.approx(difference.max().item(), abs=1e-5)
    assert summary["mean_abs_logit_difference"] == pytest.approx(difference.mean().item(), abs=1e-6)
    kl = torch.nn.functional.kl_div(
        found.log_softmax(-1), expected.log_softmax(-1), log_target=True, reduction="batchmean"
    )
    assert summary["mean_kl_nats"] == pytest.approx(kl.item(), abs=1e-6)
    assert summary["same_top_token"] == pytest.approx((found.argmax(-1) == expected.argmax(-1)).float().mean().item())
    assert (summary["tokens"], summary["conversations"], summary["arithmetic"]) == (len(expected), 3, "float32")
    assert (summary["dtype"], summary["base_weights"], summary["merged_modules"]) == (dtype, "bf16", 14)
    assert (summary["ranks"], summary["scales"]) == ([4], [2.0])


def test_a_dequantised_merge_is_compared_with_the_adapter_on_that_base(tied: Path, plain: Path, tmp_path: Path) -> None:
    section = MergeSection(dtype="float32", base="dequantised-nf4")
    summary = merge_adapter(tied, plain, section, tmp_path, conversations=tiny.chats(2))
    assert summary["mean_kl_nats"] < 1e-6


# What is refused


def edited(adapter: Path, folder: Path, change: Callable[[dict[str, Any]], Any]) -> Path:
    """A copy of an adapter with its configuration changed."""
    shutil.copytree(adapter, folder)
    config = json.loads((folder / "adapter_config.json").read_text())
    change(config)
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def with_tensors(adapter: Path, folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> Path:
    """A copy of an adapter with its tensors changed."""
    shutil.copytree(adapter, folder)
    tensors = weights(folder)
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def refused(base: Path, adapter: Path, out: Path, kind: type[KarmaError], message: str) -> None:
    """Check that a merge is refused so, and that nothing was written."""
    with pytest.raises(kind, match=message):
        merge_adapter(base, adapter, MergeSection(), out)
    assert not list(out.glob("*"))


OPTIONS = {
    "alora_invocation_tokens": [1],
    "layer_replication": [[0, 1]],
    "target_parameters": ["mlp.experts"],
    "use_bdlora": {"nblocks": 2},
    "use_qalora": True,
    "init_lora_weights": "pissa",
    "bias": "some",
    "peft_type": "IA3",
}


@pytest.mark.parametrize("option", OPTIONS)
def test_kinds_of_adapters_that_plain_weights_cannot_hold_are_named(
    tied: Path, plain: Path, tmp_path: Path, option: str
) -> None:
    adapter = edited(plain, tmp_path / "adapter", lambda config: config.update({option: OPTIONS[option]}))
    refused(tied, adapter, tmp_path / "out", InputError, option)


CONTRADICTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "rank": ({"r": 8}, "has rank 4, and adapter_config.json says 8"),
    "DoRA": ({"use_dora": True}, "no lora_magnitude_vector"),
    "bias": ({"lora_bias": True}, r"no lora_B\.bias"),
    "targets too many": (
        {"target_modules": [*ALL, "embed_tokens"]},
        r"no tensors for 1 .* such as model\.embed_tokens",
    ),
    "targets too few": ({"target_modules": ["q_proj"]}, "which its configuration does not target"),
    "no alpha": ({"lora_alpha": None}, "no number for 'lora_alpha'"),
}


@pytest.mark.parametrize("what", CONTRADICTIONS)
def test_a_configuration_that_contradicts_the_tensors_is_an_error(
    tied: Path, plain: Path, tmp_path: Path, what: str
) -> None:
    change, message = CONTRADICTIONS[what]
    adapter = edited(plain, tmp_path / "adapter", lambda config: config.update(change))
    refused(tied, adapter, tmp_path / "out", ArtifactError, message)


Q = "base_model.model.model.layers.0.self_attn.q_proj.lora_"


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (lambda t: t.pop(f"{Q}B.weight"), ArtifactError, r"no lora_B for model\.layers\.0\.self_attn\.q_proj"),
        (lambda t: t[f"{Q}A.weight"].fill_(float("nan")), InputError, r"q_proj\.lora_A\.weight holds a NaN"),
        (lambda t: t[f"{Q}B.weight"][3, 1].fill_(float("inf")), InputError, "holds a NaN or an infinity"),
        (lambda t: t.update({f"{Q}C.weight": torch.ones(2)}), ArtifactError, "which no LoRA of this kind has"),
        (lambda t: t.update({"q.lora_A.weight": torch.ones(2, 2)}), ArtifactError, "names that begin with"),
        (lambda t: t.update({f"{Q}A.weight": torch.ones(4, 2, 2, 2)}), ArtifactError, r"lora_A is \[4, 2, 2, 2\]"),
        (lambda t: t.update({f"{Q}A.weight": torch.ones(4, 64).int()}), ArtifactError, "stored as I32"),
        (
            lambda t: t.update({"base_model.model.score.weight": torch.ones(2, 64)}),
            ArtifactError,
            r"changes score\.weight, which this base has not",
        ),
        (
            lambda t: t.update({"base_model.model.model.norm.weight": torch.ones(65)}),
            ArtifactError,
            r"model\.norm\.weight is \[65\], expected \[64\]",
        ),
        (lambda t: t.clear(), ArtifactError, "holds no tensors"),
    ],
)
def test_tensors_that_cannot_be_merged_are_named(
    tied: Path, plain: Path, tmp_path: Path, change: Any, kind: type[KarmaError], message: str
) -> None:
    refused(tied, with_tensors(plain, tmp_path / "adapter", change), tmp_path / "out", kind, message)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"intermediate_size": 160}, r"down_proj\.lora_A\.weight is \[4, 192\], expected \[4, 160\] for .*\[64, 160\]"),
        ({"hidden_size": 32}, r"lora_B\.weight is \[64, 4\], expected \[32, 4\]"),
        ({"num_hidden_layers": 3}, r"no tensors for 7 of the 21 modules .* such as model\.layers\.2"),
        ({"num_hidden_layers": 1}, r"tensors for model\.layers\.1"),
    ],
)
def test_an_adapter_of_another_base_is_refused(
    plain: Path, tmp_path: Path, sizes: dict[str, int], message: str
) -> None:
    refused(write_base(tmp_path / "base", **sizes), plain, tmp_path / "out", ArtifactError, message)


def test_a_vocabulary_that_was_resized_is_refused(untied: Path, tmp_path: Path) -> None:
    adapter = write_adapter(untied, tmp_path / "a", target_modules=["q_proj"], modules_to_save=["lm_head"])
    name = "base_model.model.lm_head.weight"
    wider = with_tensors(adapter, tmp_path / "b", lambda t: t.update({name: torch.ones(401, 64)}))
    refused(untied, wider, tmp_path / "out", ArtifactError, r"lm_head\.weight is \[401, 64\], expected \[400, 64\]")


def test_an_adapter_trained_on_other_tied_embeddings_is_refused(tied: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tied, tmp_path / "a", target_modules=["lm_head"])
    name = "base_model.model.lm_head.base_layer.weight"
    other = with_tensors(adapter, tmp_path / "b", lambda t: t[name].add_(1))
    refused(tied, other, tmp_path / "out", ArtifactError, "trained on other values of lm_head")


def test_a_trained_bias_needs_one_in_the_base(tied: Path, tmp_path: Path) -> None:
    adapter = write_adapter(tied, tmp_path / "adapter", target_modules=["q_proj"], lora_bias=True)
    refused(tied, adapter, tmp_path / "out", InputError, "this base has none there")


def test_a_base_that_is_not_finite_is_refused(plain: Path, tied: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tied, tmp_path / "base")
    broken = weights(base)
    broken["model.norm.weight"][0] = float("nan")
    save_file(broken, base / "model.safetensors", {"format": "pt"})
    refused(base, plain, tmp_path / "out", InputError, r"The merged model\.norm\.weight holds a NaN")


def test_a_base_without_one_of_its_weights_is_refused(plain: Path, tied: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tied, tmp_path / "base")
    rest = weights(base)
    del rest["model.embed_tokens.weight"]
    save_file(rest, base / "model.safetensors", {"format": "pt"})
    refused(base, plain, tmp_path / "out", ArtifactError, r"has no model\.embed_tokens\.weight")


def test_a_quantised_base_is_refused(plain: Path, tied: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tied, tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    refused(base, plain, tmp_path / "out", InputError, "holds quantised weights")


def test_pickled_weights_are_refused(tied: Path, plain: Path, tmp_path: Path) -> None:
    adapter = shutil.copytree(plain, tmp_path / "adapter")
    (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    refused(tied, adapter, tmp_path / "out", InputError, r"adapter_model\.bin, a pickle")


@pytest.mark.parametrize("name", ["adapter_config.json", "adapter_model.safetensors"])
def test_a_missing_file_is_named(tied: Path, plain: Path, tmp_path: Path, name: str) -> None:
    adapter = shutil.copytree(plain, tmp_path / "adapter")
    (adapter / name).unlink()
    refused(tied, adapter, tmp_path / "out", MissingError, f"has no {name}")


def test_another_name_of_the_base_and_unknown_options_are_only_noted(tied: Path, plain: Path, tmp_path: Path) -> None:
    changes = {"base_model_name_or_path": "someone/other", "use_magic": True, "unused": None}
    adapter = edited(plain, tmp_path / "adapter", lambda config: config.update(changes))
    (adapter / "chat_template.jinja").write_text("{{ messages }}")
    summary = merge_adapter(tied, adapter, MergeSection(), tmp_path / "out", base_names=("mine",))
    options, base, template = summary["warnings"]
    assert "'use_magic'" in options
    assert "names someone/other as its base, and is merged into mine" in base
    assert "chat template" in template
    assert merge_adapter(tied, plain, MergeSection(), tmp_path / "own")["warnings"] == []
