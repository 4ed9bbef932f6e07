"""The baked checkpoint: an ordinary one, file by file, with the memory of one tensor, whatever lies beside it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM
from transformers.utils.hub import CHAT_TEMPLATE_DIR

import tiny
from baking import fitted, logits_of, written
from karma_electric.core.errors import ArtifactError, InputError, MissingError
from karma_electric.models.chat_template import conversation_ids
from karma_electric.models.loading import load_model
from karma_electric.models.weights import checkpoint_tensors
from karma_electric.steer import checkpoint
from karma_electric.steer.checkpoint import write_baked
from karma_electric.steer.fit import fit_removals
from karma_electric.steer.gather import gather
from karma_electric.steer.insertion import Insertion, inserted
from karma_electric.steer.neuron import FILE, Neurons, load_neurons, require_plain, save_neurons

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from karma_electric.steer.spec import Cap

CALIBRATION = tiny.chats(32, seed=21)
UNSEEN = tiny.chats(4, seed=22)


@pytest.fixture(scope="module")
def cap(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Cap:
    """A soft cap at blocks 2-4, with thresholds that a quarter of the calibration tokens are above."""
    return tiny.cap_at(model, tokenizer, "mlp", quantile=0.75, conversations=CALIBRATION)


@pytest.fixture(scope="module")
def neurons(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cap: Cap) -> Neurons:
    return fitted(model, tokenizer, cap, CALIBRATION)


@pytest.fixture(scope="module")
def baked_path(tiny_path: Path, neurons: Neurons, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("baked")
    write_baked(tiny_path, neurons, out)
    return out


def test_the_baked_checkpoint_is_an_ordinary_one(baked_path: Path, tiny_path: Path) -> None:
    model, info = AutoModelForCausalLM.from_pretrained(baked_path, output_loading_info=True)
    assert type(model) is LlamaForCausalLM
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert not info["mismatched_keys"]
    before, after = (json.loads((path / "config.json").read_text()) for path in (tiny_path, baked_path))
    assert after == before | {"intermediate_size": 192}  # 160 + 1, up to the next multiple of 32; every field is kept


STOCK = """
import sys
sys.modules["karma_electric"] = None  # importing any code of ours fails
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32)
tokenizer = AutoTokenizer.from_pretrained(sys.argv[1])
chat = [{"role": "user", "content": "What should I do?"}]
ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
answer = model.generate(**ids, max_new_tokens=5, do_sample=False)
save_file({"logits": model(**ids).logits, "answer": answer, "ids": ids["input_ids"]}, sys.argv[2])
"""


def test_stock_transformers_loads_it_with_no_code_of_ours(baked_path: Path, tmp_path: Path) -> None:
    """In a process of its own that cannot import us; the same logits and the same greedy tokens."""
    out = tmp_path / "out.safetensors"
    subprocess.run([sys.executable, "-I", "-c", STOCK, baked_path, out], check=True, cwd=tmp_path)
    theirs, ours = load_file(out), load_model(baked_path, dtype="float32", device="cpu")
    torch.testing.assert_close(logits_of(ours, theirs["ids"]), theirs["logits"], rtol=1e-5, atol=1e-5)
    answer = ours.generate(theirs["ids"], max_new_tokens=5, do_sample=False)
    assert torch.equal(answer, theirs["answer"])
    assert answer.shape[1] > theirs["ids"].shape[1]


def test_everything_but_the_new_rows_is_the_old_checkpoint(baked_path: Path, tiny_path: Path, neurons: Neurons) -> None:
    old, new = load_file(tiny_path / "model.safetensors"), load_file(baked_path / "model.safetensors")
    assert old.keys() == new.keys()
    for name, tensor in old.items():
        if "mlp" not in name:
            assert torch.equal(new[name], tensor)
            continue
        columns = new[name].T if "down_proj" in name else new[name]  # [intermediate, hidden]
        before = tensor.T if "down_proj" in name else tensor
        assert columns.shape == (192, tiny.HIDDEN)
        assert torch.equal(columns[:160], before)
        assert not columns[161:].any(), "zeros up to the multiple of 32"
        layer, part = int(name.split(".")[2]), name.split(".")[4].removesuffix("_proj")
        if layer in neurons:
            assert torch.equal(columns[160], getattr(neurons[layer][0], part))
        else:
            assert not columns[160].any()


def test_growing_without_neurons_changes_no_logit(
    tiny_path: Path, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    grown = written(tiny_path, {}, tmp_path / "out")
    for conversation in UNSEEN:
        ids = torch.tensor([conversation_ids(tokenizer, conversation)])
        torch.testing.assert_close(logits_of(grown, ids), logits_of(model, ids), rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("old", "new"), [(160, 192), (159, 160), (191, 192), (192, 224)])
def test_the_width_is_the_next_multiple_of_32_with_room_for_one(tmp_path: Path, old: int, new: int) -> None:
    source, out = tmp_path / "source", tmp_path / "out"
    tiny.write_checkpoint(source, intermediate=old)
    out.mkdir()
    assert write_baked(source, {}, out)["intermediate_size"] == {"before": old, "after": new}
    assert load_model(out, dtype="float32", device="cpu").config.intermediate_size == new


def test_as_many_neurons_as_caps_fit_beside_each_other(neurons: Neurons) -> None:
    (neuron,) = neurons[3]
    assert Insertion({3: (neuron,) * 2}, None, 159).new == 192
    assert Insertion({3: (neuron,) * 2}, None, 158).new == 160


# In memory


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("placement", ["append", "replace"])
def test_neurons_put_in_in_memory_are_the_checkpoint_s(
    tokenizer: PreTrainedTokenizerBase, tmp_path: Path, cap: Cap, placement: str, stored: torch.dtype
) -> None:
    """benchmarks/neuron.py measures many caps this way; the rows are rounded as the file would round them."""
    source = tiny.write_checkpoint(tmp_path / "source")
    rounded = {name: tensor.to(stored) for name, tensor in load_file(source / "model.safetensors").items()}
    save_file(rounded, source / "model.safetensors", {"format": "pt"})
    model = load_model(source, dtype="float32", device="cpu")
    gathered = gather(model, tokenizer, [cap], CALIBRATION, moments=True)
    neurons = fitted(model, tokenizer, cap, CALIBRATION)
    removed = fit_removals(model, [cap], gathered) if placement == "replace" else None
    from_file = written(source, neurons, tmp_path / "out", removed=removed)
    ids = torch.tensor([conversation_ids(tokenizer, UNSEEN[0])])
    before = logits_of(model, ids)
    with inserted(model, Insertion(neurons, removed, tiny.INTERMEDIATE), stored):
        torch.testing.assert_close(logits_of(model, ids), logits_of(from_file, ids), rtol=1e-5, atol=1e-4)
        assert not torch.allclose(logits_of(model, ids), before, atol=0.05)
    assert torch.equal(logits_of(model, ids), before), "and it is taken out again"


# Shards


@pytest.fixture(scope="module")
def sharded(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    source = tmp_path_factory.mktemp("sharded")
    model.save_pretrained(source, max_shard_size="200KB")
    tokenizer.save_pretrained(source)
    return source


def test_a_checkpoint_in_shards_keeps_them_and_its_index(
    sharded: Path, tokenizer: PreTrainedTokenizerBase, baked_path: Path, tmp_path: Path, neurons: Neurons
) -> None:
    baked = written(sharded, neurons, tmp_path / "out")
    old, new = (json.loads((path / "model.safetensors.index.json").read_text()) for path in (sharded, tmp_path / "out"))
    assert new["weight_map"] == old["weight_map"]
    assert len(set(new["weight_map"].values())) > 2
    tensors = checkpoint_tensors(tmp_path / "out")  # raises where index and shards disagree
    assert new["metadata"]["total_size"] == sum(tensor.n_bytes for tensor in tensors.values())
    assert new["metadata"]["total_size"] > old["metadata"]["total_size"]
    ids = torch.tensor([conversation_ids(tokenizer, UNSEEN[0])])
    whole = load_model(baked_path, dtype="float32", device="cpu")
    assert torch.equal(logits_of(baked, ids), logits_of(whole, ids))


PEAK = """
import resource, sys
from pathlib import Path
import torch
from karma_electric.steer.checkpoint import write_baked
from karma_electric.steer.neuron import Neuron
hidden = 512
neuron = Neuron(*(torch.ones(hidden) for _ in range(3)), 0.5, 1.0, 1.0, 1e-3)
write_baked(Path(sys.argv[2]), {0: (neuron,)}, Path(sys.argv[3]))  # imports and allocators, on a small model
start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
write_baked(Path(sys.argv[1]), {0: (neuron,)}, Path(sys.argv[3]))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start) * 1024)
"""


def llama_in_shards(folder: Path, *, layers: int, intermediate: int, shard: str) -> list[int]:
    """A Llama of hidden size 512; returns the sizes of its files."""
    config = LlamaConfig(
        vocab_size=64, hidden_size=512, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=4, num_key_value_heads=4,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder, max_shard_size=shard)
    return [file.stat().st_size for file in folder.glob("*.safetensors")]


def test_the_memory_is_that_of_one_tensor_and_not_of_the_model(tmp_path: Path) -> None:
    """Peak resident memory of a process that bakes 160 MB in 4 files, above what it has after its imports."""
    small, large, out = (tmp_path / name for name in ("small", "large", "out"))
    llama_in_shards(small, layers=1, intermediate=32, shard="100MB")
    sizes = llama_in_shards(large, layers=5, intermediate=4096, shard="50MB")
    assert len(sizes) > 2
    assert sum(sizes) > 130e6
    out.mkdir()
    done = subprocess.run([sys.executable, "-c", PEAK, large, small, out], check=True, capture_output=True, text=True)
    largest_tensor = 512 * 4096 * 4
    assert int(done.stdout) < 5 * largest_tensor < max(sizes)
    assert len(list(out.glob("model-*.safetensors"))) == len(sizes)


# What lies beside the weights


def test_what_belongs_to_the_model_is_kept_and_what_is_not_of_it_is_left(
    tiny_path: Path, neurons: Neurons, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for file in tiny_path.iterdir():
        (source / file.name).write_bytes(file.read_bytes())
    kept = (
        "special_tokens_map.json", "added_tokens.json", "merges.txt", "vocab.json", "tokenizer.model", "LICENSE",
        "USE_POLICY.md", "NOTICE", "preprocessor_config.json", "chat_template.json", "generation_config.json",
    )  # fmt: skip
    left = (
        "README.md", "pytorch_model.bin", "consolidated.safetensors", "model.gguf", "manifest.json", "merge.json",
        "modeling_x.py", ".gitattributes",
    )  # fmt: skip
    for name in (*kept, *left):
        (source / name).write_text(f"this is {name}")
    (source / CHAT_TEMPLATE_DIR).mkdir()
    (source / CHAT_TEMPLATE_DIR / "tool_use.jinja").write_text("{{ messages }}")
    out = tmp_path / "out"
    out.mkdir()
    write_baked(source, neurons, out)
    for name in (*kept, "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (out / name).read_bytes() == (source / name).read_bytes(), name
    assert (out / CHAT_TEMPLATE_DIR / "tool_use.jinja").exists()
    assert not [name for name in left if (out / name).exists()]


def test_a_model_that_has_a_cap_already_is_refused(tiny_path: Path, neurons: Neurons, tmp_path: Path) -> None:
    require_plain(tiny_path)
    (tmp_path / FILE).parent.mkdir()
    save_neurons(neurons, None, tmp_path / FILE)
    with pytest.raises(InputError, match="has a cap compiled into the weights already"):
        require_plain(tmp_path)


def test_mlps_that_are_not_floats_and_missing_shards_are_refused(
    sharded: Path, tiny_path: Path, neurons: Neurons, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    whole, torn = tmp_path / "whole", tmp_path / "torn"
    whole.mkdir()
    torn.mkdir()
    (whole / "config.json").write_bytes((tiny_path / "config.json").read_bytes())
    weights = load_file(tiny_path / "model.safetensors")
    weights["model.layers.3.mlp.up_proj.weight"] = weights["model.layers.3.mlp.up_proj.weight"].to(torch.int8)
    save_file(weights, whole / "model.safetensors")
    with pytest.raises(ArtifactError, match="stored as I8"):
        write_baked(whole, neurons, out)
    missing = sorted(sharded.glob("model-*.safetensors"))[1].name
    for file in sharded.iterdir():
        if file.name != missing:
            (torn / file.name).write_bytes(file.read_bytes())
    with pytest.raises(MissingError, match=missing):
        write_baked(torn, neurons, out)
    assert not list(out.iterdir()), "nothing is written before all is read"


def test_large_tensors_that_stay_are_copied_in_pieces(
    tiny_path: Path, baked_path: Path, neurons: Neurons, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_PIECE_BYTES", 1000)
    write_baked(tiny_path, neurons, tmp_path)
    assert (tmp_path / "model.safetensors").read_bytes() == (baked_path / "model.safetensors").read_bytes()


def test_an_mlp_with_biases_is_baked_too(tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """Llama's `mlp_bias` and `attention_bias`: the new neuron has none, and the old ones keep theirs."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=tiny.VOCABULARY, hidden_size=32, intermediate_size=40, num_hidden_layers=3,
        num_attention_heads=2, num_key_value_heads=1, initializer_range=0.3, mlp_bias=True, attention_bias=True,
        pad_token_id=0,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("proj.bias"):
            torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(tmp_path / "source")
    ids = torch.tensor([conversation_ids(tokenizer, UNSEEN[0])])
    grown = written(tmp_path / "source", {}, tmp_path / "out")
    torch.testing.assert_close(logits_of(grown, ids), logits_of(model, ids), rtol=1e-5, atol=1e-4)
    cap = tiny.cap_at(model, tokenizer, "mlp", layers=(1,), conversations=CALIBRATION)
    neurons = fitted(model, tokenizer, cap, CALIBRATION)
    gathered = gather(model, tokenizer, [cap], CALIBRATION, moments=True)
    removed = fit_removals(model, [cap], gathered)
    replaced = written(tmp_path / "source", neurons, tmp_path / "replaced", removed=removed)
    index = removed[1][0].index
    mlp = replaced.model.layers[1].mlp
    assert not torch.stack([mlp.gate_proj.bias[index], mlp.up_proj.bias[index]]).any()
    assert torch.equal(mlp.gate_proj.weight[index], neurons[1][0].gate)
    assert torch.equal(mlp.down_proj.bias, model.model.layers[1].mlp.down_proj.bias)


def test_neurons_and_what_they_replace_survive_their_file(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, cap: Cap, neurons: Neurons, tmp_path: Path
) -> None:
    removed = fit_removals(model, [cap], gather(model, tokenizer, [cap], CALIBRATION[:4], moments=True))
    for gone in (None, removed):
        save_neurons(neurons, gone, tmp_path / "cap_neurons.safetensors")
        loaded, loaded_gone = load_neurons(tmp_path / "cap_neurons.safetensors")
        assert loaded.keys() == neurons.keys()
        for layer, (neuron,) in neurons.items():
            for part in ("gate", "up", "down"):
                assert torch.equal(getattr(loaded[layer][0], part), getattr(neuron, part))
            assert (loaded[layer][0].fit(), loaded[layer][0].alpha) == (neuron.fit(), neuron.alpha)
        if gone is None:
            assert loaded_gone is None
            continue
        assert loaded_gone is not None
        for layer, (removal,) in gone.items():
            assert loaded_gone[layer][0].as_dict() == removal.as_dict()
            assert torch.equal(loaded_gone[layer][0].fold, removal.fold)
